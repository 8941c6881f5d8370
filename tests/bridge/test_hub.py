import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from flax.serialization import msgpack_restore, msgpack_serialize

import bridge
from bridge.hub import client, files, push
from jaxmodels.__main__ import main
from jaxmodels.errors import CORRUPT, EXISTS, NETWORK, UNVERIFIED, USAGE, Problem
from jaxmodels.runtime.manifest import damage, digests
from tests.bridge.helpers import GOLDEN, SEED, flip
from tests.bridge.hub_server import TOKEN, logged_in

ADDRESS = "hf://someone/model"


@pytest.fixture
def server(monkeypatch):
    with logged_in(monkeypatch) as found:
        yield found


def refused(exit_code, call, *arguments, **options):
    with pytest.raises(Problem) as caught:
        call(*arguments, **options)
    problem = caught.value
    text = "\n".join([problem.what, problem.where, problem.why, problem.fix])
    assert problem.exit_code == exit_code, text
    assert TOKEN not in text
    return text


def left_behind(folder):
    return sorted(path.name for path in folder.iterdir())


def test_push_and_pull_give_the_same_folder(server, model_directory, tmp_path, capfd):
    assert main(["push", str(model_directory), ADDRESS, "--json"]) == 0
    pushed = json.loads(capfd.readouterr().out)
    assert server.commits == 1
    assert pushed["commit"] == server.sha
    assert main(["pull", ADDRESS, str(tmp_path / "new"), "--json"]) == 0
    pulled = json.loads(capfd.readouterr().out)
    assert (pulled["digests_ok"], pulled["format"], pulled["left_out"]) == (True, "safetensors", [])
    assert pulled["revision"] == server.sha
    assert digests(tmp_path / "new") == digests(model_directory)
    assert left_behind(tmp_path) == ["new"]
    assert bridge.diff(tmp_path / "new", model_directory).same


def test_a_second_push_asks_for_force_and_removes_what_is_stale(server, model_directory):
    server.repositories["someone/model"] = {"main": {".gitattributes": b"", "old.safetensors": b""}}
    assert "old.safetensors" in refused(EXISTS, bridge.push, model_directory, ADDRESS)
    assert server.commits == 0
    report = bridge.push(model_directory, ADDRESS, force=True)
    assert report.removed == ["old.safetensors"]
    held = set(server.repositories["someone/model"]["main"])
    assert held == {*report.files, ".gitattributes"}


def test_private_repositories_and_branches(server, model_directory, tmp_path, monkeypatch):
    bridge.push(model_directory, ADDRESS, revision="trial", private=True)
    assert server.private == {"someone/model"}
    assert set(server.repositories["someone/model"]["main"]) == {".gitattributes"}
    assert "revision" in refused(NETWORK, bridge.pull, ADDRESS, tmp_path / "a", revision="other")
    report = bridge.pull(ADDRESS, tmp_path / "a", revision="trial")
    assert report.digests_ok
    monkeypatch.setenv("HF_TOKEN", "hf_of_a_stranger")
    assert "HF_TOKEN" in refused(NETWORK, bridge.pull, ADDRESS, tmp_path / "b", revision="trial")
    assert left_behind(tmp_path) == ["a"]


def test_push_refuses_what_should_not_be_published(server, model_directory, run, tmp_path):
    assert "convert" in refused(USAGE, bridge.push, run, ADDRESS)
    assert "convert" in refused(USAGE, bridge.push, run / "checkpoints" / "200", ADDRESS)
    assert "convert" in refused(USAGE, bridge.push, model_directory / "model.safetensors", ADDRESS)
    (tmp_path / "empty").mkdir()
    refused(CORRUPT, bridge.push, tmp_path / "empty", ADDRESS)
    refused(USAGE, bridge.push, model_directory, "someone/model")
    broken = shutil.copytree(model_directory, tmp_path / "broken")
    flip(broken / "config.json")
    assert "config.json" in refused(UNVERIFIED, bridge.push, broken, ADDRESS)
    assert server.repositories == {}


def test_the_model_card_may_be_edited(server, model_directory, tmp_path):
    folder = shutil.copytree(model_directory, tmp_path / "model")
    (folder / "README.md").write_text("---\nlicense: mit\n---\nMine.\n")
    bridge.push(folder, ADDRESS)
    assert bridge.pull(ADDRESS, tmp_path / "new").digests_ok
    assert "Mine." in (tmp_path / "new" / "README.md").read_text()


def test_a_table_of_results_goes_into_the_published_card(server, model_directory, tmp_path):
    """And replaces the one that an earlier card had; the folder stays as it is."""
    table, before = tmp_path / "table.md", (model_directory / "README.md").read_text()
    for results in ("| Recall | 1% |", "| Recall | 2% |"):
        table.write_text(results)
        bridge.push(model_directory, ADDRESS, table=table, force=True)
        card = server.repositories["someone/model"]["main"]["README.md"].decode()
        assert card.startswith(before.rstrip())
        assert f"## Evaluation\n\n{results}" in card
        assert card.count("## Evaluation") == 1
    assert (model_directory / "README.md").read_text() == before
    assert "cannot be read" in refused(
        CORRUPT, bridge.push, model_directory, ADDRESS, force=True, table=tmp_path / "none.md"
    )


def test_a_later_part_of_the_card_stays(tmp_path):
    card, table = tmp_path / "README.md", tmp_path / "table.md"
    card.write_text("# A\n\n## Evaluation\n\nold\n\n## Thanks\n\nto all\n")
    table.write_text("new")
    text = push._with_table(card, table).decode()
    assert text == "# A\n\n## Evaluation\n\nnew\n\n## Thanks\n\nto all\n"


def test_pull_takes_a_whole_sound_repository_or_nothing(server, model_directory, tmp_path):
    bridge.push(model_directory, ADDRESS)
    held = server.repositories["someone/model"]["main"]
    server.cut = "model.safetensors"
    refused(NETWORK, bridge.pull, ADDRESS, tmp_path / "new")
    assert left_behind(tmp_path) == [".new.parts"]
    server.cut = ""
    sound = held["model.safetensors"]
    held["model.safetensors"] = sound[:-1] + bytes([sound[-1] ^ 1])
    assert "model.safetensors" in refused(UNVERIFIED, bridge.pull, ADDRESS, tmp_path / "new")
    assert left_behind(tmp_path) == []
    del held["model.safetensors"]
    assert "is missing" in refused(UNVERIFIED, bridge.pull, ADDRESS, tmp_path / "new")
    held["model.safetensors"] = sound
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "mine").touch()
    refused(EXISTS, bridge.pull, ADDRESS, tmp_path / "new")
    assert left_behind(tmp_path / "new") == ["mine"]
    bridge.pull(ADDRESS, tmp_path / "new", force=True)
    assert digests(tmp_path / "new") == digests(model_directory)


@pytest.mark.parametrize("file", ["model.safetensors", "README.md"])
def test_a_file_of_another_digest_than_the_list_is_refused(server, model_directory, tmp_path, file):
    """Also without a manifest: the hub lists digests of large files and of small ones."""
    bridge.push(model_directory, ADDRESS)
    del server.repositories["someone/model"]["main"]["manifest.json"]
    server.changed = file
    assert f"{file} has another" in refused(NETWORK, bridge.pull, ADDRESS, tmp_path / "new")
    assert left_behind(tmp_path) == [".new.parts"]
    server.changed = ""
    report = bridge.pull(ADDRESS, tmp_path / "new")  # without what was refused
    assert file in report.files
    assert left_behind(tmp_path) == ["new"]


def test_a_pull_that_was_cut_off_goes_on(server, model_directory, tmp_path):
    bridge.push(model_directory, ADDRESS)
    server.cut = "model.safetensors"
    refused(NETWORK, bridge.pull, ADDRESS, tmp_path / "new")
    first, server.sent, server.cut = server.sent, [], ""
    report = bridge.pull(ADDRESS, tmp_path / "new")
    assert report.digests_ok
    assert digests(tmp_path / "new") == digests(model_directory)
    assert left_behind(tmp_path) == ["new"]
    whole = {file for file, _ in first} - {"model.safetensors"}
    assert len(whole) > 2
    assert not whole & {file for file, _ in server.sent}
    # The client goes on within a file by steps of 10 MB; this one is fetched once more.
    assert [file for file, _ in server.sent].count("model.safetensors") == 1


def test_what_was_fetched_of_another_revision_is_not_taken(server, model_directory, tmp_path):
    bridge.push(model_directory, ADDRESS)
    server.cut = "model.safetensors"
    refused(NETWORK, bridge.pull, ADDRESS, tmp_path / "new")
    server.cut = ""
    bridge.push(model_directory, ADDRESS, force=True)
    server.sent = []
    bridge.pull(ADDRESS, tmp_path / "new")
    assert ("model.safetensors", 0) in server.sent
    assert left_behind(tmp_path) == ["new"]


def test_foreign_code_is_left_out(server, model_directory, tmp_path):
    bridge.push(model_directory, ADDRESS)
    held = server.repositories["someone/model"]["main"]
    held |= {"modeling_charlm.py": b"import os", "setup.py": b"import os", "more.pkl": b"."}
    report = bridge.pull(ADDRESS, tmp_path / "new")
    # The config named the modelling file, which is not there any more.
    keys = ["auto_map in config.json"]
    assert report.left_out == ["modeling_charlm.py", "more.pkl", "setup.py", *keys]
    assert damage(tmp_path / "new") == []
    assert left_behind(tmp_path / "new") == sorted(report.files)
    assert bridge.diff(tmp_path / "new", model_directory).same


def test_a_repository_without_manifest(server, tmp_path):
    """The seed's own Orbax folder goes up and comes back."""
    bridge.push(SEED, ADDRESS)
    report = bridge.pull(ADDRESS, tmp_path / "new")
    assert (report.digests_ok, report.format, report.left_out) == (None, "orbax", [])
    assert digests(tmp_path / "new") == digests(SEED)


def test_what_a_run_was_converted_to_is_no_run(server, run, tmp_path):
    bridge.convert(run, tmp_path / "orbax", to="orbax")
    bridge.push(tmp_path / "orbax", ADDRESS)
    assert bridge.pull(ADDRESS, tmp_path / "new").digests_ok


@pytest.mark.slow
def test_text_from_a_repository_of_seed_003(server, tmp_path, capfd):
    """What its `SetUpAPI(prompt, repo)` does, on a small model with its vocabulary."""
    golden = GOLDEN.parent / "bwetaf_rope"
    folder = tmp_path / "seed"
    folder.mkdir()
    tree = msgpack_restore((golden / "good_stuff.pkl").read_bytes())
    rows = np.random.default_rng(0).normal(size=(50_260, 32), scale=0.02)
    tree["params"]["emb"]["embedding"] = rows.astype(np.float32)
    (folder / "good_stuff.pkl").write_bytes(msgpack_serialize(tree))
    said = json.loads((golden / "understanding_good_stuff.json").read_text())
    (folder / "understanding_good_stuff.json").write_text(json.dumps(said | {"vocab_size": 50_260}))
    bridge.push(folder, ADDRESS)
    assert main(["pull", ADDRESS, str(tmp_path / "new")]) == 0
    assert digests(tmp_path / "new") == digests(folder)
    capfd.readouterr()
    words = ["--prompt", "Hello there", "--max-new-tokens", "4"]
    assert main(["generate", str(tmp_path / "new"), *words]) == 0
    assert capfd.readouterr().out.startswith("Hello there")


def test_a_repository_without_a_checkpoint(server, tmp_path):
    server.repositories["someone/model"] = {"main": {"train.py": b"", "evil.pkl": b""}}
    assert "evil.pkl" in refused(CORRUPT, bridge.pull, ADDRESS, tmp_path / "new")
    assert "no such repository" in refused(NETWORK, bridge.pull, "hf://no/one", tmp_path / "new")


def test_which_files_are_wanted():
    data = ["config.json", "d/ab12", "good_stuff.pkl", "stage1_best.pt", "step_100.zip"]
    never = ["../up.json", "/etc/x.json", ".env", "a/.git/x.json", "a.so", "b.pkl", "x.pt", "a.py"]
    never += ["..\\up.json", "a//b.json"]
    assert files.wanted([*never, *data]) == data
    assert files.wanted([*never, "pytorch_model.bin", "model.safetensors"]) == ["model.safetensors"]


@pytest.mark.parametrize("address", ["a/b", "hf://a", "hf://a/b/c", "hf://a/..", "hf://a/b\n"])
def test_addresses(address):
    assert client.repository("hf://a-b/c.d_e") == "a-b/c.d_e"
    refused(USAGE, client.repository, address)


def test_the_token_is_never_shown(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)

    def ask():
        with client.asking(ADDRESS, "read"):
            raise ValueError(f"illegal header: Bearer {TOKEN}")

    assert "illegal header" in refused(NETWORK, ask)


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["push", "pull"])
def test_without_network(verb, model_directory, tmp_path):
    """The real client, and nobody at the other end."""
    pair = {"push": [str(model_directory), ADDRESS], "pull": [ADDRESS, str(tmp_path / "new")]}
    done = subprocess.run(
        [sys.executable, "-m", "jaxmodels", verb, *pair[verb]],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_TOKEN": TOKEN},
    )
    assert done.returncode == NETWORK, done.stderr
    assert "cannot be reached" in done.stderr
    assert "Traceback" not in done.stderr
    assert TOKEN not in done.stderr + done.stdout
    assert left_behind(tmp_path) == []
