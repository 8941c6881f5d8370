"""A hub that sends without end, or slowly, or nonsense; and repositories that name code."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from huggingface_hub import HfApi

import bridge
from bridge.core.twins import twin_files
from bridge.formats.foreign import our_code
from bridge.hub import client, limits, pull, push
from bridge.hub.files import leave_out_code, named_code, wanted
from jaxmodels.__main__ import main
from jaxmodels.errors import CORRUPT, NETWORK, UNSAFE, Problem
from jaxmodels.runtime.manifest import damage
from tests.bridge.hub_server import logged_in

ADDRESS = "hf://someone/model"
SHA = "0" * 40


class _Answers(BaseHTTPRequestHandler):
    """Sends `server.listing`, and pieces of a file with pauses, until the other side leaves."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.send_response(200)
        usual = {"X-Repo-Commit": SHA, "ETag": '"a"', "Content-Length": "9"}
        for name, value in (usual | self.server.head).items():
            self.send_header(name, value)
        self.end_headers()

    def do_GET(self):
        self.close_connection = True
        api, server = self.path.startswith("/api"), self.server
        self.send_response(200)
        for name, value in server.headers.items():
            self.send_header(name, value)
        self.end_headers()
        server.asked.append(self.path)
        answer = server.listing if api else server.content
        if answer is not None:
            self.wfile.write(answer)
            return
        try:
            while not server.left.wait(server.pause):
                self.wfile.write(server.piece)
        except OSError:
            pass


@pytest.fixture
def endless(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Answers)
    server.daemon_threads, server.left, server.headers = True, threading.Event(), {}
    server.listing, server.piece, server.pause = None, b" " * 2**16, 0
    server.head, server.content, server.asked = {}, None, []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    for module in (push, pull, client):
        monkeypatch.setattr(module, "client", lambda: HfApi(endpoint=url))
    monkeypatch.setattr(limits, "SPARE", 0)
    yield server
    server.left.set()
    server.shutdown()
    server.server_close()


def files(*rows, **more):
    return json.dumps({"id": "someone/model", "sha": SHA, "siblings": list(rows), **more}).encode()


def refused(exit_code, folder, says):
    begin = time.monotonic()
    with pytest.raises(Problem) as caught:
        bridge.pull(ADDRESS, folder)
    assert (caught.value.exit_code, says) == (exit_code, says)
    assert says in f"{caught.value.what} {caught.value.why}"
    assert time.monotonic() - begin < 5
    assert not folder.exists()


def test_a_listing_without_end(endless, tmp_path):
    refused(NETWORK, tmp_path / "new", "more than it should")


def test_a_file_without_end(endless, tmp_path):
    endless.listing = files({"rfilename": "config.json", "size": 9})
    refused(NETWORK, tmp_path / "new", "more than it should")


def test_a_slow_drip(endless, tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "PATIENCE", 0.5)
    monkeypatch.setattr(pull, "seconds_for", lambda size: 0.5)
    endless.listing = files({"rfilename": "model.safetensors", "size": 10**6})
    endless.piece, endless.pause = b" ", 0.05
    refused(NETWORK, tmp_path / "new", "takes too long")


def test_an_answer_that_unfolds(endless, tmp_path):
    endless.headers = {"Content-Encoding": "gzip"}
    endless.listing = files()
    refused(NETWORK, tmp_path / "new", "compressed")


@pytest.mark.parametrize(
    "listing",
    [
        b"[]",
        b"[" * 100_000,
        b'"words"',
        files(7),
        files({"rfilename": "config.json"}),
        files({"rfilename": ["config.json"], "size": 3}),
        files({"rfilename": "config.json", "size": "3"}),
        files({"rfilename": "config.json", "size": -3}),
        files({"rfilename": "config.json", "size": 3}, sha=None),
        files({"rfilename": "config.json", "size": 3}, sha="../../x"),
        files({"rfilename": "config.json", "size": 3}, siblings={"a": 1}),
    ],
)
def test_a_listing_of_nonsense(endless, tmp_path, listing):
    endless.listing = listing
    refused(NETWORK, tmp_path / "new", "")


@pytest.mark.parametrize("content", [b"", b"{}", b"<html>web page</html>"])
def test_a_file_of_another_size_than_listed(endless, tmp_path, content):
    endless.listing = files({"rfilename": "config.json", "size": 9})
    endless.head, endless.content = {"Content-Length": str(len(content))}, content
    refused(NETWORK, tmp_path / "new", "more than it" if len(content) > 9 else "another file than")


@pytest.mark.parametrize(
    "etag", ['"../../../../../escaped"', '"a/../../escaped"', f'"{"a" * 5000}"']
)
def test_an_etag_that_is_no_name(endless, tmp_path, etag):
    endless.listing = files({"rfilename": "config.json", "size": 9})
    endless.head, endless.content = {"ETag": etag}, b'{"a": 12}'
    refused(NETWORK, tmp_path / "new", "makes no sense")
    assert not [path for path in tmp_path.rglob("*") if "escaped" in path.name]


def test_names_that_are_none(endless, tmp_path):
    odd = [
        "../a.md",
        "/a.md",
        "a//b.md",
        "a\n.md",
        "\u202ea.md",
        "a\0.md",
        "x" * 250 + ".md",
        ".a.md",
    ]
    rows = [{"rfilename": name, "size": 9} for name in ("config.json", *odd)]
    endless.listing, endless.content = files(*rows), b'{"a": 12}'
    found = bridge.pull(ADDRESS, tmp_path / "new")
    assert (found.files, found.left_out) == (["config.json"], sorted(odd))
    assert [path.name for path in (tmp_path / "new").rglob("*")] == ["config.json"]


def test_no_other_transport_is_taken(endless, tmp_path):
    """hf_xet's bytes would not be counted, and its address is one that the answer names."""
    endless.listing = files({"rfilename": "config.json", "size": 9})
    link = f'<http://127.0.0.1:{endless.server_port}/steal>; rel="xet-auth"'
    endless.head, endless.content = {"X-Xet-Hash": "a" * 64, "Link": link}, b'{"a": 12}'
    assert bridge.pull(ADDRESS, tmp_path / "new").files == ["config.json"]
    assert not any("steal" in path for path in endless.asked)


def test_an_error_within_the_client_is_the_answers():
    for error in (UnboundLocalError("x"), KeyError("a"), AssertionError(), RuntimeError("b")):

        def call(error=error):
            raise error

        with pytest.raises(Problem, match="makes no sense") as caught:
            client.ask(ADDRESS, "write", call)
        assert caught.value.exit_code == NETWORK


@pytest.fixture
def server(monkeypatch):
    with logged_in(monkeypatch) as found:
        yield found


def test_a_config_that_names_code_loses_it(server, model_directory, tmp_path, capfd):
    bridge.push(model_directory, ADDRESS)
    held = server.repositories["someone/model"]["main"]
    config = json.loads(held["config.json"])
    assert config["auto_map"]  # ours, which stays where nothing else is named
    config["auto_map"] = {"AutoModel": "mallory/evil--modeling.Evil"}
    config["text_config"] = {"auto_map": {"AutoModel": "setup.Evil"}, "width": 3}
    held["config.json"] = json.dumps(config).encode()
    del held["manifest.json"]
    held["tokenizer_config.json"] = b'{"auto_map": {"AutoTokenizer": ["a.B", null]}}'
    held["modules.json"] = held["d/setup.py"] = held["LICENSE.py"] = b"[]"
    assert main(["pull", ADDRESS, str(tmp_path / "new")]) == 0
    said = capfd.readouterr().err
    for name in ("auto_map in config.json", "auto_map in tokenizer_config.json", "modules.json"):
        assert f"left out: {name}" in said
    config = json.loads((tmp_path / "new" / "config.json").read_text())
    assert "auto_map" not in config
    assert config["text_config"] == {"width": 3}
    kept = {path.name for path in (tmp_path / "new").rglob("*.py")}
    assert kept <= our_code().keys()


def test_our_own_folder_keeps_what_names_our_code(server, model_directory, tmp_path):
    bridge.push(model_directory, ADDRESS)
    report = bridge.pull(ADDRESS, tmp_path / "new")
    assert report.left_out == []
    config = json.loads((tmp_path / "new" / "config.json").read_text())
    assert config["auto_map"]["AutoModelForCausalLM"].startswith("modeling_charlm.")
    assert damage(tmp_path / "new") == []


@pytest.mark.slow
def test_push_refuses_what_names_code_and_leaves_code_out(server, tmp_path):
    from tests.bridge.helpers import GOLDEN

    golden, folder = GOLDEN.parent / "bwetaf_rope", tmp_path / "model"
    folder.mkdir()
    for name in ("good_stuff.pkl", "understanding_good_stuff.json"):
        (folder / name).write_bytes((golden / name).read_bytes())
    (folder / "setup.py").write_text("import os")
    (folder / "modeling_charlm.py").write_text("import os")
    report = bridge.push(folder, ADDRESS)
    assert report.left_out == ["modeling_charlm.py", "setup.py"]
    assert not [f for f in server.repositories["someone/model"]["main"] if f.endswith(".py")]
    (folder / "config.json").write_text('{"auto_map": {"AutoModel": "setup.Evil"}}')
    with pytest.raises(Problem) as caught:
        bridge.push(folder, ADDRESS, force=True)
    assert caught.value.exit_code == UNSAFE
    (folder / "config.json").write_text("{")
    with pytest.raises(Problem) as caught:
        bridge.push(folder, ADDRESS, force=True)
    assert caught.value.exit_code == CORRUPT


def test_a_processor_may_name_our_code_only(tmp_path):
    """It is pulled and pushed, and loses what names other code."""
    name = "processor_config.json"
    assert wanted([name, "processing_bitgen.py", "processing_evil.py"]) == [
        "processing_bitgen.py",
        name,
    ]
    processing = next(path for path in twin_files() if path.name == "processing_bitgen.py")
    (tmp_path / processing.name).write_bytes(processing.read_bytes())
    for value in ("processing_bitgen.BitGenProcessor", "processing_evil.Evil"):
        config = {"processor_class": "P", "auto_map": {"AutoProcessor": value}}
        (tmp_path / name).write_text(json.dumps(config))
        ours = value.startswith("processing_bitgen")
        assert named_code(tmp_path, [name]) == ([] if ours else [f"auto_map in {name}"])
        leave_out_code(tmp_path, [name])
        assert ("auto_map" in json.loads((tmp_path / name).read_text())) == ours
