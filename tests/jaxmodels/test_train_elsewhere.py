"""Resuming with other data or on other devices: what may change, and what is refused."""

import json
import shutil

import numpy as np
import pytest

from jaxmodels.__main__ import main
from jaxmodels.errors import CORRUPT, DONE, MISMATCH, USAGE
from tests.children import simulated
from tests.jaxmodels.helpers import command, losses, params, same, train


@pytest.mark.slow
def test_another_token_file_does_not_continue_a_run(tmp_path, capsys):
    tokens, run = tmp_path / "tokens.bin", tmp_path / "run"
    tokens.write_bytes((np.arange(5000) % 50).astype(np.uint16).tobytes())
    assert train(run, "--data", f"bin:{tokens}") == DONE
    tokens.write_bytes((np.arange(5000) % 49).astype(np.uint16).tobytes())
    assert main(["train", "--out", str(run), "--steps", "40"]) == MISMATCH
    assert "the data is not what this run was started with" in capsys.readouterr().err


@pytest.mark.slow
def test_without_a_checkpoint_other_data_is_prepared_anew(tmp_path, capsys):
    """A start that did no step leaves data/ and characters.json; both follow the next start."""
    run, text, tokens = tmp_path / "run", tmp_path / "a.txt", tmp_path / "tokens.bin"
    assert main(["data", "prepare", "pydoc", str(run / "data")]) == DONE
    text.write_text("The value of an object may change. " * 400)
    assert train(run, "--data", f"text:{text}", "--steps", "2") == DONE
    assert "prepared again" in capsys.readouterr().err
    assert json.loads((run / "data" / "manifest.json").read_text())["spec"] == f"text:{text}"
    assert train(run, "--data", "pydoc", "--steps", "3") == MISMATCH  # there is a checkpoint now
    shutil.rmtree(run / "checkpoints")
    tokens.write_bytes((np.arange(5000) % 50).astype(np.uint16).tobytes())
    assert train(run, "--data", f"bin:{tokens}", "--steps", "2") == DONE
    assert not (run / "characters.json").exists()


def test_a_folder_named_data_that_is_not_ours_is_left_alone(tmp_path):
    (tmp_path / "run" / "data").mkdir(parents=True)
    (tmp_path / "run" / "data" / "thesis.txt").write_text("mine")
    assert train(tmp_path / "run") == CORRUPT
    assert (tmp_path / "run" / "data" / "thesis.txt").read_text() == "mine"


@pytest.mark.slow
def test_resuming_is_exact_on_a_mesh_with_accumulation_and_bfloat16(tmp_path):
    """Four simulated devices; dropout draws random bits. Killed after 10 of 20 steps."""
    flags = ["--mesh", "data=2,model=2", "--accum", "2", "--dtype", "bfloat16"]
    flags += ["--model.dropout", "0.1", "--save-every", "10", "--steps", "20"]
    flags += ["--sample-every", "0", "--eval-every", "20"]
    env = simulated(4)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    first = command("train", "charlm:tiny", "--out", str(whole), *flags, env=env)
    assert first.wait() == DONE, first.stderr.read()
    shutil.copytree(whole, broken)
    shutil.rmtree(broken / "checkpoints" / "20")
    second = command("train", "--out", str(broken), env=env)
    assert second.wait() == DONE
    said = second.stderr.read()
    assert "resumed from checkpoint 10" in said
    assert "4 × cpu  bfloat16" in said
    assert losses(broken) == losses(whole)
    assert same(params(broken, 20), params(whole, 20))
    assert not same(params(broken, 20), params(broken, 10))


@pytest.mark.slow
def test_a_batch_that_the_devices_cannot_share_is_refused(tmp_path):
    env = simulated(4)
    words = ["train", "charlm:tiny", "--out", str(tmp_path / "run"), "--batch", "6"]
    process = command(*words, env=env)
    _, said = process.communicate()
    assert process.returncode == USAGE
    assert "6 sequences cannot be split over 4 devices" in said


@pytest.mark.slow
def test_another_machine_may_compute_differently(tmp_path, capsys):
    """Remat, slices, mesh and the place of the text may change; what is learned stays."""
    text, moved, run = tmp_path / "a.txt", tmp_path / "b.txt", tmp_path / "run"
    text.write_text("The value of an object may change. " * 400)
    first = ["--data", f"text:{text}", "--remat", "--min-freq", "1", "--sample-every", "15"]
    assert train(run, *first) == DONE
    text.rename(moved)
    words = ["--steps", "40", "--no-remat", "--slices", "2", "--mesh", "data=1"]
    assert main(["train", "--out", str(run), "--data", f"text:{moved}", *words]) == DONE
    assert "--remat full → none" in capsys.readouterr().err
    moved.write_text("something else entirely. " * 400)
    assert main(["train", "--out", str(run), "--steps", "50"]) == MISMATCH
