"""Files beside other people's checkpoints: code, pipes, odd JSON, odd names."""

import json
import os
import shutil
import struct

import numpy as np
import pytest
import torch

import bridge
from bridge.core.tensors import DTYPES, Tensor
from bridge.formats.foreign import data_only, without_code
from bridge.formats.raw import origin_of, upstream_of
from bridge.storage.safetensors_writer import write_file
from jaxmodels import cli
from jaxmodels.__main__ import main
from jaxmodels.errors import CORRUPT, DONE, MISMATCH, USAGE, Problem
from jaxmodels.reading import json_object, read_limited

EVIL = {"AutoModelForCausalLM": "modeling_evil.Evil"}


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    """A small GPT-2 as transformers saves it; not to be changed."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=11, n_positions=8)
    folder = tmp_path_factory.mktemp("gpt2") / "model"
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def edited(source, target, name="config.json", **values):
    shutil.copytree(source, target)
    path = target / name
    said = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(said | values))
    return target


def test_no_key_that_names_code_is_carried_over(gpt2, tmp_path):
    more = {"auto_map": EVIL, "custom_pipelines": {"x": {"impl": "modeling_evil.P"}}}
    more |= {"_attn_implementation": "mallory/kernel", "task_specific_params": {"a": {"b": 1}}}
    folder = edited(gpt2, tmp_path / "in", **more)
    (folder / "modeling_evil.py").write_text("raise SystemExit('executed')")
    (folder / "tokenizer_config.json").write_text(json.dumps({"auto_map": EVIL}))
    for to in ("gpt2", "safetensors"):
        report = bridge.convert(folder, tmp_path / to, to=to)
        assert any("modeling_evil.py, auto_map in config.json" in note for note in report.notes)
        assert not list((tmp_path / to).rglob("*.py"))
        for file in (tmp_path / to).glob("*.json"):
            assert "evil" not in file.read_text()
            assert "mallory" not in file.read_text()
    assert json.loads((tmp_path / "gpt2" / "config.json").read_text())["task_specific_params"]


def test_nor_from_a_manifest(tmp_path):
    source = {"seed": {"gpt2": {"auto_map": EVIL, "n_head": 2}}, "step": [1], "x": 1}
    (tmp_path / "manifest.json").write_text(json.dumps({"source": source}))
    origin = origin_of(tmp_path)
    assert origin.keys() == {"seed"}
    assert upstream_of(origin, "gpt2") == {"n_head": 2}


def test_what_is_data():
    said = {"dataset": "shakespeare_char", "device": "cuda", "n_layer": 2, "bias": True}
    assert data_only("nanogpt", said) == said
    assert data_only("nanogpt", {"config": said}) == {"config": said}
    assert data_only("nanogpt", {"config": {"dataset": "../../evil"}}) == {}
    assert data_only("bwetaf", {"possible_opt_path": "/tmp/evil.pkl"}) == {}
    labels = {"id2label": {"0": "any text/at all"}, "architectures": ["GPT2LMHeadModel"]}
    assert data_only("gpt2", labels) == labels
    assert data_only("gpt2", {"architectures": ["mallory/evil--x.Y"]}) == {}


def test_keys_that_name_code():
    kept = {"kernel_size": 3, "attn_implementation": "eager", "a": [{"b": 1}]}
    assert without_code(kept, set()) == (kept, [])
    ours = {"auto_map": {"AutoModel": "modeling_ours.A"}}
    assert without_code(ours, {"modeling_ours.py"}) == (ours, [])
    for value in ("x/y--modeling_ours.A", ["setup.A"], {"A": "modeling_ours.A", "B": "x.B"}):
        held = {"deep": [{"auto_map": value}]}
        assert without_code(held, {"modeling_ours.py"}) == ({"deep": [{}]}, ["auto_map"])


@pytest.mark.parametrize("name", ["config.json", "manifest.json", "tokenizer.json", "merges.txt"])
@pytest.mark.parametrize("kind", ["folder", "pipe", "loop", "device"])
def test_what_is_no_file_is_refused(gpt2, tmp_path, name, kind):
    folder = tmp_path / "in"
    shutil.copytree(gpt2, folder)
    path = folder / name
    path.unlink(missing_ok=True)
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(name if kind == "loop" else "/dev/zero")
    assert main(["inspect", str(folder)]) == CORRUPT
    with pytest.raises(Problem) as caught:
        bridge.open_checkpoint(folder)
    assert caught.value.exit_code == CORRUPT
    assert name in caught.value.where


def test_a_pipe_itself(tmp_path):
    os.mkfifo(tmp_path / "model.safetensors")
    for path in (tmp_path, tmp_path / "model.safetensors"):
        assert main(["inspect", str(path)]) == CORRUPT
    with pytest.raises(ValueError, match="not a regular file"):
        read_limited(tmp_path / "model.safetensors", 10)


@pytest.mark.parametrize("name", ["config.json", "manifest.json", "tokenizer.json"])
def test_a_sparse_file_of_gigabytes(gpt2, tmp_path, name):
    folder = tmp_path / "in"
    shutil.copytree(gpt2, folder)
    with (folder / name).open("wb") as file:
        file.truncate(3 * 10**9)
    assert main(["inspect", str(folder)]) == CORRUPT


TEXTS = ["[]", '{"a": 1, "a": 2}', "[" * 10**5, '{"a":' * 60 + "1" + "}" * 60, "\ud800", "{"]
TEXTS += ['{"a": ' + "9" * 5000 + "}", '{"a": ' + "9" * 50 + "}"]


@pytest.mark.parametrize("text", TEXTS)
def test_odd_json(text):
    with pytest.raises(ValueError, match=r"."):
        json_object(text.encode(errors="surrogatepass"))


def code_of(path):
    try:
        bridge.open_checkpoint(path)
    except Problem as problem:
        return problem.exit_code
    return DONE


ODD = [None, True, [], {}, "x", "\ud800", -1, 10**30, 1.5, float("nan"), [[1]], {"a": [1]}]


@pytest.mark.parametrize("file", ["config.json", "manifest.json", "tokenizer_config.json"])
def test_odd_types_are_no_defect(gpt2, tmp_path, file):
    """Each value of a side file in turn becomes something else."""
    base = edited(gpt2, tmp_path / "in", file)
    said = json.loads((base / file).read_text())
    keys = [*said] or ["files", "tensors", "source"]
    rng = np.random.default_rng(0)
    for key in keys:
        for value in rng.permutation(len(ODD))[:4]:
            (base / file).write_text(json.dumps(said | {key: ODD[value]}))
            assert code_of(base) in (DONE, CORRUPT, MISMATCH, USAGE), (key, value)


def test_names_are_shown_escaped(tmp_path, capfd):
    name = "evil\x1b]0;owned\x07\u202e\nproblem: none\ud800"
    header = {name: {"dtype": "F32", "shape": [1, 2], "data_offsets": [0, 8]}}
    text = json.dumps(header).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"\0" * 8)
    assert main(["inspect", str(path), "--tensors"]) == 0
    assert main(["convert", str(path), str(tmp_path / "out")]) == MISMATCH
    shown = capfd.readouterr()
    for text in (shown.out, shown.err):
        assert r"evil\x1b]0;owned\x07\u202e\nproblem: none\ud800" in text
        assert not set(text) & {"\x1b", "\x07", "\u202e", "\ud800"}


def test_what_is_written_by_a_model():
    assert cli.escape_control("a\x1b[2J\tb\n漢👩‍🚀\ud800") == "a\\x1b[2J\tb\n漢👩‍🚀\\ud800"
    assert cli.visible("plain 漢") == "plain 漢"


def test_many_tensors_of_one_storage(tmp_path, monkeypatch):
    """Their values are looked at as far as the files' size goes; the storage is summed up once."""
    storage = torch.arange(50_000, dtype=torch.float32)
    torch.save({f"t{i}": storage[i:] for i in range(300)}, tmp_path / "shared.pt")
    monkeypatch.setattr("bridge.checks.values.ALWAYS_READ", 2**20)
    report = bridge.inspect(tmp_path / "shared.pt")
    assert report.tensors == 300
    assert any("were not looked at" in note for note in report.notes)


def test_more_tensors_than_any_model_has(tmp_path, monkeypatch):
    monkeypatch.setattr("bridge.storage.safetensors_reader.MAX_TENSORS", 10)
    nothing = np.zeros(0, np.float32)
    tensors = [Tensor(f"t{i}", (0,), DTYPES["F32"], lambda: nothing) for i in range(11)]
    write_file(tmp_path / "model.safetensors", tensors)
    assert main(["inspect", str(tmp_path / "model.safetensors")]) == CORRUPT
