"""verify, diff and convert: the functions and the verbs."""

import json
import shutil

import numpy as np
import pytest

import bridge
from jaxmodels.errors import CORRUPT, DONE, EXISTS, MISMATCH, UNVERIFIED, USAGE, Problem
from jaxmodels.runtime.runs import rundir
from tests.bridge.helpers import HEADS, SEED, command, flip, random_params, save_tree


@pytest.mark.slow
def test_verify_against_the_source(converted, capsys):
    code, report, _ = command(capsys, "verify", converted, "--against", SEED, "--json")
    assert code == DONE
    assert report["ok"] is True
    assert report["digests_ok"] is True
    assert (report["tensors_compared"], report["tensors_equal"]) == (27, 27)
    assert report["max_abs_logit_diff"] <= 1e-5
    assert report["max_abs_logit_diff_to_source"] == 0


def test_verify_finds_another_source(model_directory, run, capsys):
    other = run / "checkpoints" / "100"
    code, report, _ = command(capsys, "verify", model_directory, "--against", other, "--json")
    assert (code, report["ok"]) == (UNVERIFIED, False)
    assert report["max_abs_logit_diff"] <= 1e-4 < 0.1 < report["max_abs_logit_diff_to_source"]
    assert any("head/kernel differs by up to" in problem for problem in report["problems"])


@pytest.mark.parametrize("at", np.linspace(0.02, 0.98, 7))
def test_one_flipped_bit_is_found_and_named(converted, tmp_path, capsys, at):
    copy = shutil.copytree(converted, tmp_path / "copy")
    flip(copy / "model.safetensors", at)
    code, report, _ = command(capsys, "verify", copy, "--json")
    assert (code, report["ok"], report["digests_ok"]) == (UNVERIFIED, False, False)
    assert "model.safetensors is damaged" in report["problems"][0]


def test_verify_of_missing_and_additional_files(converted, tmp_path):
    copy = shutil.copytree(converted, tmp_path / "copy")
    (copy / "README.md").rename(copy / "NOTES.md")
    problems = bridge.verify(copy).problems
    assert problems == ["README.md is missing", "NOTES.md is not in the manifest"]


@pytest.mark.slow
def test_verify_of_a_run_names_the_checkpoint(run, tmp_path, capsys):
    copy = shutil.copytree(run, tmp_path / "run")
    assert bridge.verify(copy).digests_ok
    (copy / "checkpoints" / "300" / "data.json").write_text("[]")
    code, text, _ = command(capsys, "verify", copy)
    assert code == UNVERIFIED
    assert "300: data.json is damaged" in text


def test_verify_without_manifest_still_compares_outputs():
    report = bridge.verify(SEED)
    assert report.digests_ok is None
    assert report.ok
    assert report.max_abs_logit_diff <= 1e-5


@pytest.mark.slow
def test_verify_tells_both_differences_apart(run, tmp_path, capsys):
    narrow = tmp_path / "narrow"
    bridge.convert(run, narrow, dtype="bfloat16")
    code, text, _ = command(capsys, "verify", narrow, "--against", run)
    assert code == DONE
    lines = [line.split(": ") for line in text.splitlines() if "logit difference" in line]
    names = ["JAX against PyTorch", "to the source"]
    assert [line[0].removeprefix("largest logit difference").strip(", ") for line in lines] == names
    assert float(lines[0][1]) <= 1e-4 < float(lines[1][1])


def _swap_letters(run):
    vocabulary = json.loads((run / "characters.json").read_text())
    ids = vocabulary["char_to_int"]
    ids["a"], ids["b"] = ids["b"], ids["a"]
    (run / "characters.json").write_text(json.dumps(vocabulary))


def _change_heads(run):
    config = json.loads((run / "config.json").read_text())
    config["model"]["heads"] = 4
    (run / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_swap_letters, "characters.json is not the one"),
        (lambda run: (run / "characters.json").unlink(), "characters.json is not the one"),
        (_change_heads, "model.heads = 4; it was 2"),
    ],
)
def test_a_run_that_means_something_else_now_is_refused(run, tmp_path, capsys, change, says):
    copy = shutil.copytree(run, tmp_path / "run")
    change(copy)
    code, report, _ = command(capsys, "verify", copy, "--json")
    assert (code, report["digests_ok"]) == (UNVERIFIED, False)
    assert all(says in problem for problem in report["problems"])
    code, report, _ = command(capsys, "verify", copy / "checkpoints" / "100", "--json")
    assert (code, says in report["problems"][0]) == (UNVERIFIED, True)
    for source in (copy, copy / "checkpoints" / "100"):
        code, _, err = command(capsys, "convert", source, tmp_path / "out")
        assert (code, says in err) == (CORRUPT, True)
    assert command(capsys, "generate", copy)[0] == CORRUPT


def test_what_may_change_in_a_run_is_not_damage(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    config = json.loads((copy / "config.json").read_text())
    config["recipe"] |= {"steps": 77}
    config["model"] |= {"a_field_of_a_later_version": 1}
    (copy / "config.json").write_text(json.dumps(config))
    assert rundir.changed_since(copy / "checkpoints" / "100") == []
    _swap_letters(copy)  # a checkpoint that is older than this record opens all the same
    manifest = json.loads((copy / "checkpoints" / "100" / "manifest.json").read_text())
    del manifest["run"]
    (copy / "checkpoints" / "100" / "manifest.json").write_text(json.dumps(manifest))
    assert rundir.changed_since(copy / "checkpoints" / "100") == []


def test_diff(converted, model_directory, run, tmp_path, capsys):
    code, report, _ = command(capsys, "diff", converted, SEED, "--json")
    assert (code, report["same"]) == (DONE, True)
    code, report, _ = command(capsys, "diff", run, run / "checkpoints" / "100", "--json")
    assert (code, report["same"]) == (UNVERIFIED, False)
    row = report["tensors"]["head/kernel"]
    a, b = (random_params(seed=seed)["head/kernel"] for seed in (200, 100))
    assert row["status"] == "different"
    assert row["max_abs"] == pytest.approx(np.abs(a - b).max())
    cosine = (a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b)
    assert row["cosine"] == pytest.approx(cosine, abs=1e-6)
    code, text, _ = command(capsys, "diff", converted, model_directory)
    assert code == UNVERIFIED
    assert "config vocab: 53 | 64" in text
    assert "head/kernel: status shape" in text


def test_diff_of_two_architectures(model_directory, tmp_path, capsys):
    other = save_tree(tmp_path / "other", random_params("bwetaf:tiny"))
    assert command(capsys, "diff", model_directory, other)[0] == MISMATCH  # nothing tells its heads
    heads = ["--set", "heads=2"]
    code, report, _ = command(capsys, "diff", model_directory, other, *heads, "--json")
    assert (code, report["same"], report["arch"]) == (UNVERIFIED, False, ["charlm", "bwetaf"])
    code, text, _ = command(capsys, "diff", other, model_directory, *heads)
    assert (code, text) == (UNVERIFIED, "different architectures: bwetaf | charlm\n")


def test_the_convert_verb(tmp_path, capsys):
    target = tmp_path / "out"
    argv = ["convert", "--set", "heads=4", "--set", "context=64", SEED, target, "--json"]
    code, report, err = command(capsys, *argv)
    assert code == DONE
    assert (report["arch"], report["tensors"], report["verified"]) == ("charlm", 27, "digest")
    assert report["assumed"] == {"dropout": 0.0}
    assert "note: assumed: dropout = 0.0" in err
    assert bridge.open_checkpoint(target).config.context == 64
    code, _, err = command(capsys, *argv)
    assert code == EXISTS
    assert "the output exists already" in err
    code, text, _ = command(capsys, *argv[:-1], "--dry-run")
    assert code == DONE
    assert "head.layers.1.kernel -> head.weight  transpose  float32 (53, 32)" in text
    code, text, _ = command(capsys, *argv[:-1], "--force", "--verify", "logits")
    assert code == DONE
    assert f"next: jaxmodels verify {target} --against {SEED}" in text


def test_refusals_of_the_verbs(tmp_path, capsys):
    tree = {"embed/embedding": np.ones((4, 3), np.float32)}
    code, _, err = command(capsys, "convert", save_tree(tmp_path / "odd", tree), tmp_path / "o")
    assert code == MISMATCH
    assert err.startswith("error:")
    assert command(capsys, "convert", SEED, tmp_path / "o", "--set", "head=4")[0] == USAGE
    for verb in (["inspect"], ["verify"], ["diff", SEED], ["convert", tmp_path / "o"]):
        assert command(capsys, *verb, tmp_path / "nothing")[0] == CORRUPT or verb[0] == "convert"
    with pytest.raises(Problem):
        bridge.verify(tmp_path / "nothing")
    assert HEADS == {"heads": 4}
