"""nanoGPT's checkpoints: in, through every format of ours, and out again."""

import json
import os
import pickle
import struct
import zipfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import torch

import bridge
from jaxmodels.__main__ import main
from jaxmodels.errors import CORRUPT, DONE, EXISTS, MISMATCH, UNSAFE, USAGE, Problem
from tests.bridge.helpers import SEED, flip, random_params, save_tree, vocabulary

GOLDEN = Path(__file__).parents[1] / "golden"
GOLDENS = ["nanogpt_bias", "nanogpt_nobias"]


def refused(exit_code, call, *arguments, **options):
    with pytest.raises(Problem) as caught:
        call(*arguments, **options)
    assert caught.value.exit_code == exit_code
    return "\n".join([caught.value.what, caught.value.where, caught.value.why, caught.value.fix])


def checkpoint(name="nanogpt_bias"):
    """A golden checkpoint as torch reads it, without torch.compile's prefix."""
    value = torch.load(GOLDEN / name / "ckpt.pt", weights_only=True)
    value["model"] = {key.removeprefix("_orig_mod."): x for key, x in value["model"].items()}
    return value


def saved(folder, value):
    torch.save(value, folder / "ckpt.pt")
    return folder / "ckpt.pt"


@pytest.mark.slow
@pytest.mark.parametrize("name", GOLDENS)
@pytest.mark.parametrize("part", ["", "ckpt.pt"])
def test_golden_logits(name, part):
    model, golden = bridge.load(GOLDEN / name / part), np.load(GOLDEN / name / "io.npz")
    logits, _ = model(jnp.asarray(golden["ids"]))
    assert np.abs(np.asarray(logits) - golden["logits"]).max() <= 2e-5
    assert model.config.gelu == "exact"


def test_what_the_file_says():
    source = bridge.open_checkpoint(GOLDEN / "nanogpt_bias")
    assert (source.format, source.arch, source.config.bias) == ("nanogpt", "wikigpt", True)
    assert source.origin["step"] == 1234
    assert source.origin["metrics"]["best_val_loss"] == pytest.approx(2.345)
    assert source.assumed == {"tokens": 97, "gelu": "exact"}
    assert any("--set gelu=tanh" in note for note in source.notes)
    assert any("'_orig_mod' in names" in note and "torch.compile" in note for note in source.notes)
    report = bridge.inspect(GOLDEN / "nanogpt_nobias" / "ckpt.pt")
    assert (report.format, report.arch, report.problems) == ("nanogpt", "wikigpt", [])
    assert report.readable
    assert not report.optimizer


@pytest.mark.slow
@pytest.mark.parametrize("name", GOLDENS)
@pytest.mark.parametrize("by", ["safetensors", "gpt2", "orbax", "nanogpt"])
def test_there_and_back_is_bit_exact(tmp_path, name, by):
    bridge.convert(GOLDEN / name, tmp_path / "between", to=by, verify="roundtrip")
    report = bridge.convert(tmp_path / "between", tmp_path / "back", to="nanogpt")
    assert report.files == ["ckpt.pt", "manifest.json"]
    old, new = checkpoint(name), torch.load(tmp_path / "back" / "ckpt.pt", weights_only=True)
    assert list(new) == list(old)
    assert list(new["model"]) == list(old["model"])
    for key, tensor in old["model"].items():
        assert new["model"][key].dtype == tensor.dtype
        assert torch.equal(new["model"][key], tensor), key
    assert new["model_args"] == old["model_args"]
    assert list(new["model_args"]) == list(old["model_args"])
    assert (new["iter_num"], new["best_val_loss"]) == (1234, old["best_val_loss"])
    head, embedding = new["model"]["lm_head.weight"], new["model"]["transformer.wte.weight"]
    assert head.data_ptr() == embedding.data_ptr()
    if by != "gpt2":  # which has no room for nanoGPT's own settings but its manifest
        assert new["config"] == old["config"]
    assert bridge.diff(GOLDEN / name, tmp_path / "back").same
    assert bridge.verify(tmp_path / "back", against=GOLDEN / name).ok


def test_by_the_command(tmp_path, capsys):
    source, target = GOLDEN / "nanogpt_bias" / "ckpt.pt", tmp_path / "out"
    words = [str(source), str(target), "--to", "nanogpt", "--verify", "logits", "--json"]
    assert main(["convert", *words]) == DONE
    report = json.loads(capsys.readouterr().out)
    assert report["source_format"] == report["format"] == "nanogpt"
    assert report["max_abs_logit_diff"] < 1e-5
    assert {path.name for path in target.iterdir()} == {"ckpt.pt", "manifest.json"}


@pytest.mark.parametrize("name", GOLDENS)
def test_the_model_directory_opens_in_transformers(tmp_path, name):
    from transformers import GPT2LMHeadModel

    golden = np.load(GOLDEN / name / "io.npz")
    for to in ("safetensors", "gpt2"):
        report = bridge.convert(GOLDEN / name, tmp_path / to, to=to)
        assert any("of zeros added" in note for note in report.notes) == ("nobias" in name)
        model, loading = GPT2LMHeadModel.from_pretrained(tmp_path / to, output_loading_info=True)
        assert not any(loading.values()), loading
        with torch.no_grad():
            logits = model(torch.from_numpy(golden["ids"]).long()).logits.numpy()
        assert np.abs(logits - golden["logits"]).max() <= 2e-5
        assert bridge.open_checkpoint(tmp_path / to).config.bias == ("nobias" not in name)


def test_a_run_becomes_nanogpt_and_a_bare_state_dict_is_told_by_its_shapes(tmp_path):
    params = random_params("wikigpt:tiny")
    tree = save_tree(tmp_path / "own", params)
    options = {"to": "nanogpt", "config": {"heads": 2, "gelu": "tanh"}}
    told = refused(MISMATCH, bridge.convert, tree, tmp_path / "x", **options)
    assert "gelu" in told
    assert "hidden is 64" in told
    dry = refused(MISMATCH, bridge.convert, tree, tmp_path / "x", **options, dry_run=True)
    assert dry == told
    assert told.splitlines()[1] == str(tree)
    bare = tmp_path / "bare.bin"
    for name in GOLDENS:
        torch.save(checkpoint(name)["model"], bare)
        source = bridge.open_checkpoint(bare, config={"gelu": "exact", "heads": 2})
        assert (source.format, source.arch) == ("torch", "wikigpt")
        assert {pair.op for pair in source.pairs} == {"same", "transpose"}
    bridge.convert(tree, tmp_path / "gpt2", config={"heads": 2})
    torch.save(bridge.torch.load(tmp_path / "gpt2").state_dict(), bare)
    source = bridge.open_checkpoint(bare, config={"heads": 2})
    assert {pair.op for pair in source.pairs} == {"same"}
    for path, tensor in source.tensors.items():
        np.testing.assert_array_equal(tensor.read(), params[path])


@pytest.mark.parametrize("size", [97, 90])
def test_the_vocabulary_lies_beside_it(tmp_path, size):
    file = tmp_path / "vocabulary.json"
    file.write_text(json.dumps(vocabulary(size)))
    options = {"vocab": file, "config": {"tokens": size}, "to": "nanogpt"}
    report = bridge.convert(GOLDEN / "nanogpt_bias", tmp_path / "out", **options)
    assert report.vocab_present
    assert report.files == ["characters.json", "ckpt.pt", "manifest.json", "meta.pkl"]
    source = bridge.open_checkpoint(tmp_path / "out")
    assert (source.tokenizer.vocab_size, source.config.tokens) == (size, size)
    plan = bridge.convert(GOLDEN / "nanogpt_bias", tmp_path / "x", dry_run=True, **options)
    assert plan.files == ["ckpt.pt"]


@pytest.mark.parametrize("name", GOLDENS)
def test_the_numbers_agree(tmp_path, name):
    there = bridge.inspect(GOLDEN / name)
    assert there.dtypes == {"float32": there.tensors}
    report = bridge.convert(GOLDEN / name, tmp_path / "out")
    assert report.bytes == 4 * report.parameters
    for key in ("tensors", "parameters", "bytes"):
        assert report[key] == there[key] == bridge.inspect(tmp_path / "out")[key]


def test_padding_is_kept_and_told(tmp_path):
    report = bridge.convert(GOLDEN / "nanogpt_bias", tmp_path / "out", config={"tokens": 90})
    assert any("rows 90 to 96 of the embedding are padding" in note for note in report.notes)
    said = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert said["suppress_tokens"] == list(range(90, 97))
    assert "Rows 90 to 96" in (tmp_path / "out" / "README.md").read_text()
    assert bridge.diff(tmp_path / "out", GOLDEN / "nanogpt_bias").tensors["embed/embedding"][
        "status"
    ] == ("equal")
    report = bridge.convert(tmp_path / "out", tmp_path / "back", to="nanogpt", verify="roundtrip")
    assert "nanogpt cannot store tokens = 90" in report.notes


def test_a_head_of_its_own_is_refused(tmp_path):
    value = checkpoint()
    value["model"]["lm_head.weight"] = value["model"]["lm_head.weight"] + 1
    told = refused(MISMATCH, bridge.load, saved(tmp_path, value))
    assert "lm_head.weight is not the same as transformer.wte.weight" in told


def test_without_the_head_and_with_old_buffers(tmp_path):
    value = checkpoint()
    del value["model"]["lm_head.weight"]
    value["model"]["transformer.h.0.attn.bias"] = torch.ones(1, 1, 16, 16).tril()
    source = bridge.open_checkpoint(saved(tmp_path, value))
    assert "dropped: transformer.h.0.attn.bias, no parameter" in source.notes


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({"n_layer": 3}, "the config says layers = 3, the tensors 2"),
        ({"block_size": 32}, "the config says context = 32, the tensors 16"),
        ({"vocab_size": 50304}, "the config says vocab = 50304, the tensors 97"),
    ],
)
def test_arguments_that_contradict_the_tensors(tmp_path, args, said):
    value = checkpoint()
    value["model_args"] |= args
    assert said in refused(MISMATCH, bridge.load, saved(tmp_path, value))


def test_arguments_that_make_no_model(tmp_path):
    value = checkpoint()
    value["model_args"]["n_head"] = 3
    told = refused(CORRUPT, bridge.load, saved(tmp_path, value))
    assert "multiple of heads" in told
    assert "--set NAME=VALUE" in told  # and no flag of `train`
    assert "--model." not in told
    value["model_args"]["n_head"] = "two"
    assert "'heads' cannot be 'two'" in refused(CORRUPT, bridge.load, saved(tmp_path, value))


def test_a_missing_tensor(tmp_path):
    value = checkpoint()
    del value["model"]["transformer.h.1.mlp.c_fc.weight"]
    told = refused(MISMATCH, bridge.load, saved(tmp_path, value))
    assert "transformer.h.1.mlp.c_fc.weight  (128, 32)" in told


def test_the_wrong_architecture_and_target(tmp_path):
    told = refused(MISMATCH, bridge.load, GOLDEN / "nanogpt_bias", arch="charlm")
    assert "not those of charlm" in told
    assert "give wikigpt instead of charlm" in told
    told = refused(USAGE, bridge.convert, SEED, tmp_path / "x", to="nanogpt")
    assert "is for wikigpt, and this is charlm" in told


def test_force_spares_what_nanogpt_wrote(tmp_path):
    theirs = tmp_path / "out-wiki"
    theirs.mkdir()
    saved(theirs, checkpoint("nanogpt_nobias"))
    source = GOLDEN / "nanogpt_bias"
    told = refused(EXISTS, bridge.convert, source, theirs, to="nanogpt", force=True)
    assert "that `convert` did not write" in told
    assert not bridge.open_checkpoint(theirs).config.bias
    for _ in range(2):
        bridge.convert(source, tmp_path / "ours", to="nanogpt", force=True)


class Evil:
    def __reduce__(self):
        return os.system, ("touch HERE",)


def test_a_file_that_runs_code_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with zipfile.ZipFile("ckpt.pt", "w") as archive:
        archive.writestr("ckpt/data.pkl", pickle.dumps({"model": {}, "model_args": Evil()}))
    for verb in (["convert", "ckpt.pt", "out"], ["inspect", "ckpt.pt", "--json"]):
        assert main(verb) == UNSAFE
        out = capsys.readouterr()
        assert "system" in out.err + out.out
    assert [path.name for path in tmp_path.iterdir()] == ["ckpt.pt"]


def test_a_flipped_bit(tmp_path):
    path = saved(tmp_path, checkpoint())
    flip(path, at=0.5)
    refused(CORRUPT, bridge.load, path)


@pytest.mark.parametrize("value", [[1, 2], {"model": "x", "model_args": {}}, {}, {"a": 1}])
def test_torch_files_without_a_model(tmp_path, value):
    assert "no named tensors" in refused(CORRUPT, bridge.load, saved(tmp_path, value))


@pytest.mark.slow
def test_settings_changed_inside_with_fitting_checksums_are_seen(tmp_path):
    """The manifest beside it is asked too (input 3658 of the fuzzer)."""
    bridge.convert(GOLDEN / "nanogpt_bias", tmp_path / "out", to="nanogpt")
    path = tmp_path / "out" / "ckpt.pt"
    with zipfile.ZipFile(path) as file:
        members = {name: file.read(name) for name in file.namelist()}
    pickled = next(name for name in members if name.endswith("data.pkl"))
    dropout, other = (b"G" + struct.pack(">d", value) for value in (0.1, 0.0))
    assert dropout in members[pickled]
    members[pickled] = members[pickled].replace(dropout, other)
    with zipfile.ZipFile(path, "w") as file:
        for name, data in members.items():
            file.writestr(name, data)
    assert "ckpt.pt is damaged" in refused(CORRUPT, bridge.open_checkpoint, tmp_path / "out")
