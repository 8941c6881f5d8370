"""inspect: the function and the verb."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

import bridge
from bridge.core.moments import Moments
from bridge.core.tensors import DTYPES
from bridge.formats import model_files
from bridge.storage.safetensors_reader import read_file
from bridge.storage.safetensors_writer import write_file
from jaxmodels.errors import CORRUPT, DONE
from jaxmodels.runtime.paths import params_of
from tests.bridge.helpers import (
    HEADS,
    SEED,
    assert_same_params,
    command,
    flip,
    random_params,
    save_tree,
)


def test_inspect_says_what_it_is(model_directory, capsys):
    code, report, _ = command(capsys, "inspect", model_directory, "--json")
    assert code == DONE
    assert report["format"] == "safetensors"
    assert (report["arch"], report["preset"], report["tensors"]) == ("charlm", "tiny", 27)
    assert report["parameters"] == sum(array.size for array in random_params().values())
    assert report["bytes"] == 4 * report["parameters"]
    assert report["dtypes"] == {"float32": 27}
    assert (report["vocab_present"], report["problems"]) == (True, [])
    code, text, _ = command(capsys, "inspect", model_directory, "--tensors")
    assert "blocks.1.mlp.wv.weight  (128, 32)  float32" in text


def test_inspect_of_the_seed_says_what_is_assumed(capsys):
    code, report, _ = command(capsys, "inspect", SEED, "--json")
    assert (code, report["format"], report["vocab_present"]) == (DONE, "orbax", False)
    assert report["assumed"]["heads"] == 8
    _, report, _ = command(capsys, "inspect", SEED, "--json", "--set", "heads=4")
    assert (report["config"]["heads"], "heads" in report["assumed"]) == (4, False)
    assert any("no vocabulary" in note for note in report["notes"])


def test_inspect_finds_bad_values(tmp_path):
    params = random_params()
    params["head/kernel"][2, 3] = np.nan
    params["blocks/0/mlp/out/kernel"][:] = 0
    params["blocks/0/norm1/scale"][:] = 1
    params["blocks/1/norm1/scale"] = params["blocks/0/norm2/scale"]
    report = bridge.inspect(save_tree(tmp_path / "own", params), config={"heads": 2})
    assert report.problems == [
        "blocks.0.mlp.out.kernel is all zero",
        "head.kernel has 1 values that are NaN or infinite",
    ]
    assert "blocks.0.norm1.scale is 1 throughout" in report.notes
    assert "the same values: blocks.0.norm2.scale, blocks.1.norm1.scale" in report.notes


def test_inspect_of_what_fits_no_model(tmp_path):
    params = random_params()
    del params["norm/scale"]
    params["stranger"] = np.ones(3, np.float32)
    report = bridge.inspect(save_tree(tmp_path / "own", params))
    assert report.readable
    assert report.tensors == 27
    assert "norm.scale" in report.problems[0]
    assert "stranger" in report.problems[0]


@pytest.mark.parametrize("percent", [1, 40, 99])
def test_inspect_of_a_truncated_file(converted, tmp_path, capsys, percent):
    data = (converted / "model.safetensors").read_bytes()
    path = tmp_path / "cut"
    path.write_bytes(data[: len(data) * percent // 100])
    code, report, _ = command(capsys, "inspect", path, "--json")
    assert code == CORRUPT
    assert report["format"] == "safetensors"
    assert "truncated" in report["problems"][0]
    code, text, _ = command(capsys, "inspect", path)
    assert code == CORRUPT
    assert f"expected {len(data):,} bytes" in text or "expected" in text
    whole = read_file(converted / "model.safetensors")
    kept = {row["name"]: not row["cut_off"] for row in bridge.inspect(path).listing}
    assert list(kept) == ([] if percent == 1 else sorted(kept, key=list(whole).index))
    if percent > 1:  # the header is whole
        assert kept.keys() == whole.keys()
        ends = {name: tensor.read.start + tensor.nbytes for name, tensor in whole.items()}
        assert kept == {name: end <= path.stat().st_size for name, end in ends.items()}
        lost = [name for name in kept if not kept[name]]
        assert f"cut off, {len(lost)} of {len(whole)} tensors" in report["problems"][1]
        assert lost[0] in report["problems"][1]


def test_a_broken_orbax_folder_is_told_in_one_block(tmp_path, capsys, caplog):
    folder = save_tree(tmp_path / "own", random_params())
    (folder / "manifest.ocdbt").write_bytes(b"xx")
    code, _, err = command(capsys, "convert", folder, tmp_path / "out")
    assert code == CORRUPT
    assert err.startswith("error: the Orbax checkpoint cannot be read")
    assert len(err.strip().splitlines()) == 4  # what, where, why, fix
    assert not caplog.records  # Orbax logs too, with tracebacks
    assert not (tmp_path / "out").exists()


def test_inspect_names_a_damaged_tensor(converted, tmp_path, capsys):
    copy = shutil.copytree(converted, tmp_path / "copy")
    flip(copy / "model.safetensors")
    code, report, _ = command(capsys, "inspect", copy, "--json")
    assert code == CORRUPT
    assert any("model.safetensors is damaged" in problem for problem in report["problems"])
    assert any("the tensor" in problem for problem in report["problems"])


def test_inspect_of_files_that_contradict_each_other(model_directory, tmp_path, capsys):
    copy = shutil.copytree(model_directory, tmp_path / "copy")
    tensors = model_files.tensors_in(copy)
    model_files.write_moments(copy, Moments(5, tensors, tensors))
    (copy / "manifest.json").unlink()
    code, report, _ = command(capsys, "inspect", copy, "--json")
    assert (code, report["damaged"], report["optimizer"]) == (DONE, False, True)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "layers": 9}))
    code, report, _ = command(capsys, "inspect", copy, "--json")
    assert (code, report["readable"], report["damaged"]) == (CORRUPT, True, True)
    assert "the config says layers = 9, the tensors 2" in report["problems"][0]
    assert (report["arch"], report["preset"], report["optimizer"]) == ("charlm", "tiny", True)
    assert report["config"]["layers"] == 9
    # What the caller gives is no damage.
    assert command(capsys, "inspect", model_directory, "--set", "layers=9")[0] == DONE


def test_inspect_of_a_file_that_is_not_as_promised(model_directory, tmp_path, capsys):
    copy = shutil.copytree(model_directory, tmp_path / "copy")
    (copy / "config.json").write_text((copy / "config.json").read_text() + "\n")
    code, report, _ = command(capsys, "inspect", copy, "--json")
    assert (code, report["arch"]) == (CORRUPT, "charlm")
    assert any("config.json is damaged" in problem for problem in report["problems"])


WRAPPED = ["module.", "_orig_mod.", "module._orig_mod.", "model._fsdp_wrapped_module."]


@pytest.mark.parametrize("prefix", WRAPPED)
def test_the_prefixes_of_wrappers_are_taken_off_and_told(tmp_path, converted, prefix, capsys):
    tensors = model_files.tensors_in(converted)
    state = {prefix + name: replace(t, name=prefix + name) for name, t in tensors.items()}
    write_file(tmp_path / "x", list(state.values()))
    code, report, _ = command(capsys, "inspect", tmp_path / "x", "--json", "--set", "heads=4")
    assert (code, report["arch"], report["problems"]) == (DONE, "charlm", [])
    told = [note for note in report["notes"] if "was removed" in note or "is under" in note]
    assert len(told) == prefix.count(".")
    assert all(any(f"'{word}'" in note for note in told) for word in prefix.split(".") if word)
    golden = params_of(bridge.load(SEED, config=HEADS))
    assert_same_params(bridge.load(tmp_path / "x", config=HEADS), golden)


def test_a_part_that_was_wrapped_by_itself(tmp_path, converted):
    word = "._checkpoint_wrapped_module.attn."
    tensors = model_files.tensors_in(converted)
    state = {name.replace(".attn.", word): tensor for name, tensor in tensors.items()}
    write_file(tmp_path / "x", [replace(t, name=name) for name, t in state.items()])
    source = bridge.open_checkpoint(tmp_path / "x", config=HEADS)
    assert any("activation checkpointing" in note for note in source.notes)
    assert source.tensors.keys() == bridge.open_checkpoint(converted).tensors.keys()


def test_inspect_tells_casts(tmp_path):
    params = random_params()
    params["head/kernel"] = params["head/kernel"].astype(DTYPES["BF16"]).astype(np.float32)
    params["embed/embedding"] = params["embed/embedding"].astype(np.float64)
    report = bridge.inspect(save_tree(tmp_path / "own", params), config={"heads": 2})
    told = [note for note in report.notes if "they were cast" in note]
    assert len(told) == 2
    assert any("values of bfloat16 only" in n and "head.kernel" in n for n in told)
    assert any("values of float32 only" in n and "embed.embedding" in n for n in told)
    assert report.dtypes == {"float32": 26, "float64": 1}


def test_inspect_tells_a_name_that_says_something_else(tmp_path, converted):
    shutil.copyfile(converted / "model.safetensors", tmp_path / "step_5.zip")
    report = bridge.inspect(tmp_path / "step_5.zip", config=HEADS)
    assert report.format == "safetensors"
    assert "it is called step_5.zip, and its content is safetensors: content decides" in (
        report.notes
    )


def test_inspect_of_what_fits_no_model_misses_the_vocabulary_too(tmp_path):
    path = save_tree(tmp_path / "odd", {"a": np.arange(4, dtype=np.float32)})
    report = bridge.inspect(path)
    assert any("no vocabulary" in note for note in report.notes)
    assert not report.vocab_present
