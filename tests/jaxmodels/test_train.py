"""Training as a user runs it: resume, stop, damage, disk full, wrong settings."""

import json
import os
import random
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.characters import CharTokenizer
from jaxmodels.__main__ import main
from jaxmodels.errors import (
    CORRUPT,
    DONE,
    EXISTS,
    MISMATCH,
    NO_SPACE,
    UNVERIFIED,
)
from jaxmodels.runtime import platform
from jaxmodels.runtime.manifest import damage
from jaxmodels.runtime.metrics import read
from jaxmodels.runtime.reporting.progress import Progress
from jaxmodels.runtime.runs import checkpoint as ckpt
from jaxmodels.runtime.runs import rundir
from jaxmodels.runtime.training import train as loop
from tests.jaxmodels.helpers import SMALL, command, losses, params, same, train


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> Path:
    """A run of 30 steps that nothing disturbed."""
    run = tmp_path_factory.mktemp("unbroken") / "run"
    assert train(run) == DONE
    return run


@pytest.fixture
def run(unbroken, tmp_path) -> Path:
    """A copy of the unbroken run, to be maltreated."""
    shutil.copytree(unbroken, tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.slow
def test_a_run_leaves_what_the_design_says(unbroken):
    expected = {"config.json", "characters.json", "checkpoints", "metrics.jsonl", "tensorboard"}
    assert expected | {"summary.json"} <= {path.name for path in unbroken.iterdir()}
    assert [step for step, _ in losses(unbroken)] == list(range(1, 31))
    assert losses(unbroken)[-1][1] < losses(unbroken)[0][1]
    assert rundir.steps(unbroken / "checkpoints") == [20, 30]
    for step in (20, 30):
        folder = unbroken / "checkpoints" / str(step)
        assert {p.name for p in folder.iterdir()} == {
            "params",
            "train",
            "data.json",
            "manifest.json",
        }
    summary = json.loads((unbroken / "summary.json").read_text())
    assert (summary["reason"], summary["step"], summary["best_step"]) == ("done", 30, 30)


@pytest.mark.slow
def test_a_large_models_step_is_told_before_the_next_begins(unbroken, tmp_path, monkeypatch):
    """Its caller computes it, so there is nothing to wait for; the run is the same to the bit."""
    seen = []
    monkeypatch.setattr(platform, "LARGE", 0)
    monkeypatch.setattr(Progress, "update", lambda self, step, *_: seen.append(step))
    put = loop.put_batch
    monkeypatch.setattr(
        loop, "put_batch", lambda *args, **more: seen.append("begins") or put(*args, **more)
    )
    assert train(tmp_path / "run") == DONE
    assert seen == [event for step in range(1, 31) for event in ("begins", step)]
    assert losses(tmp_path / "run") == losses(unbroken)
    assert same(params(tmp_path / "run", 30), params(unbroken, 30))


def test_the_best_checkpoint_outlives_newer_ones(tmp_path):
    checkpoints = ckpt.Checkpoints(tmp_path, keep=2)
    for step, loss in ((10, 3.0), (20, 1.0), (30, 2.0), (40, 2.5), (50, None)):
        metrics = {} if loss is None else {"valid_loss": loss}
        checkpoints.save(_state(step), {"next_index": step}, metrics)
    checkpoints.wait()
    assert rundir.steps(tmp_path) == [20, 40, 50]
    assert rundir.best(tmp_path) == 20


def _state(step: int):
    from jaxmodels.runtime.step import State

    return State({"a/b": np.ones(3)}, {}, {}, np.int32(step), np.zeros(2, np.uint32))


@pytest.mark.slow
def test_resuming_is_exact_and_logs_each_step_once(unbroken, tmp_path):
    """Stopped after 20 of 30 steps, changed nothing, went on: as if nothing had happened."""
    run = tmp_path / "run"
    shutil.copytree(unbroken, run)
    shutil.rmtree(run / "checkpoints" / "30")
    assert main(["train", "--out", str(run)]) == DONE
    assert losses(run) == losses(unbroken)
    assert same(params(run, 30), params(unbroken, 30))


@pytest.mark.slow
def test_a_flipped_byte_is_found_and_the_checkpoint_before_is_used(run, unbroken, capsys):
    blobs = (run / "checkpoints" / "30" / "params").rglob("*")
    blob = max((path for path in blobs if path.is_file()), key=lambda path: path.stat().st_size)
    data = bytearray(blob.read_bytes())
    data[len(data) // 2] ^= 1
    blob.write_bytes(data)
    assert main(["train", "--out", str(run), "--resume", "must"]) == DONE
    said = capsys.readouterr().err
    assert "checkpoint 30 is damaged" in said
    assert blob.name in said
    assert "resumed from checkpoint 20" in said
    assert same(params(run, 30), params(unbroken, 30))


def test_all_checkpoints_damaged_is_an_error(run, capsys):
    for step in (20, 30):
        (run / "checkpoints" / str(step) / "data.json").unlink()
    assert main(["train", "--out", str(run)]) == CORRUPT
    assert "data.json is missing" in capsys.readouterr().err


@pytest.mark.slow
def test_what_a_kill_left_behind_is_cleaned_up(run):
    (run / "checkpoints" / ".40.123.tmp" / "params").mkdir(parents=True)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 31, "loss": 1.0}\n{"step": 32, "lo')
    assert main(["train", "--out", str(run), "--steps", "31"]) == DONE
    assert not list((run / "checkpoints").glob(".*"))
    assert [step for step, _ in losses(run)] == list(range(1, 32))
    assert losses(run)[-1][1] != 1.0


@pytest.mark.slow
def test_kills_lose_nothing(tmp_path):
    """SIGKILL at four random moments of 150 steps: parameters and losses are bit-identical.

    `make chaos` does it a hundred times, to every architecture.
    """
    flags = ["--steps", "150", "--eval-every", "50", "--save-every", "15", "--sample-every", "0"]
    flags += ["--batch", "64", "--model.dropout", "0.1"]  # long enough to be hit, and random bits
    flags += ["--stats-every", "20", "--jump", "0.3"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert main(["train", "charlm:tiny", "--out", str(whole), *flags]) == DONE
    rng, kills, landed = random.Random(0), 0, 0
    while kills < 4:
        process = command("train", "charlm:tiny", "--out", str(broken), *flags)
        for line in process.stderr:
            if line.startswith("step "):
                break
        time.sleep(rng.uniform(0, 0.6))
        landed += process.poll() is None
        process.kill()
        process.communicate()
        kills += 1
    assert landed >= 2
    assert main(["train", "--out", str(broken)]) == DONE
    assert losses(broken) == losses(whole)
    assert same(params(broken, 150), params(whole, 150))
    assert read(broken / "stats.jsonl") == read(whole / "stats.jsonl")


@pytest.mark.slow
def test_disk_full_keeps_what_was_there(run):
    """A limit on file sizes stands in for a full disk: exit 7, checkpoints as before."""
    words = f"train --out {run} --steps 60 --save-every 45"
    limited = f"trap '' XFSZ; ulimit -f 50; exec {sys.executable} -m jaxmodels {words}"
    # The compilation cache must not be what fails.
    env = {**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "false", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        ["bash", "-c", limited], env=env, capture_output=True, text=True, check=False
    )
    said = done.stderr
    assert done.returncode == NO_SPACE, said
    assert "the disk is full" in said
    assert f"where: {run}" in said
    assert "Traceback" not in said
    assert rundir.steps(run / "checkpoints") == [20, 30]
    assert not any(damage(run / "checkpoints" / str(step)) for step in (20, 30))
    assert main(["train", "--out", str(run), "--steps", "40"]) == DONE


@pytest.mark.slow
def test_a_loss_that_is_no_number_stops_and_keeps_the_checkpoints(run, capsys):
    config = json.loads((run / "config.json").read_text())
    config["recipe"]["optim"] |= {"peak_lr": 1e30}
    (run / "config.json").write_text(json.dumps(config))
    assert main(["train", "--out", str(run), "--steps", "60"]) == UNVERIFIED
    assert "is not finite" in capsys.readouterr().err
    assert rundir.steps(run / "checkpoints") == [20, 30]


def test_resume_policies(run, tmp_path, capsys):
    assert train(run, "--resume", "never") == EXISTS
    assert train(tmp_path / "new", "--resume", "must") == CORRUPT
    assert train(run, "--resume", "must") == DONE
    assert "step 30 of 30" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "field"),
    [
        (["--model.dim", "64"], "--model.dim 32 → 64"),
        (["--batch", "8"], "--batch 16 → 8"),
        (["--seed", "1"], "--seed 0 → 1"),
        (["--optim.peak-lr", "0.5"], "--optim.peak-lr 0.01 → 0.5"),
    ],
)
def test_other_settings_do_not_continue_a_run(run, capsys, flags, field):
    assert train(run, *flags) == MISMATCH
    assert field in capsys.readouterr().err


def test_another_vocabulary_does_not_continue_a_run(run, tmp_path, capsys):
    from data_pipelines.prepare import prepare

    prepare("pydoc", tmp_path / "other", min_freq=100)
    again = ["train", "--out", str(run), "--steps", "40"]
    assert main([*again, "--data", f"bin:{tmp_path / 'other'}"]) == MISMATCH
    assert "vocabulary" in capsys.readouterr().err
    own = CharTokenizer.load(run / "characters.json")
    CharTokenizer(own.chars[::-1], own.min_freq).save(run)
    shutil.rmtree(run / "data")
    assert main(again) == MISMATCH
    assert "tokenizer: 'characters:" in capsys.readouterr().err


def test_another_model_in_the_config_does_not_continue_a_run(run, capsys):
    config = json.loads((run / "config.json").read_text())
    config["model"]["heads"] *= 2
    (run / "config.json").write_text(json.dumps(config))
    assert main(["train", "--out", str(run), "--steps", "40"]) == CORRUPT
    said = capsys.readouterr().err
    assert f"model.heads = {config['model']['heads']}; it was" in said
    assert rundir.steps(run / "checkpoints") == [20, 30]


def test_overwritten_tokens_do_not_continue_a_run(run, capsys):
    tokens = run / "data" / "tokens.bin"
    tokens.write_bytes(bytes(tokens.stat().st_size))
    assert main(["train", "--out", str(run), "--steps", "40"]) == CORRUPT
    assert "tokens.bin" in capsys.readouterr().err


def test_two_processes_never_train_in_one_folder(run, capsys):
    import fcntl

    with (run / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert main(["train", "--out", str(run)]) == EXISTS
    assert "another process" in capsys.readouterr().err


@pytest.mark.slow
def test_find_lr(tmp_path, capsys):
    """What it suggests to type is the whole command, and it works."""
    flags = ["--find_lr", "--optim.peak-lr=0.1", "--prompt", "a 'b'", "--json"]
    assert train(tmp_path / "run", *flags) == DONE
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert 1e-4 < result["suggestion"] < 1
    assert (tmp_path / "run" / "find_lr.png").read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "run" / "checkpoints").exists()
    advice = shlex.split(captured.err.split("train:     ")[1].splitlines()[0])
    rate = f"{result['suggestion']:.1e}"
    words = ["train", "charlm:tiny", "--out", str(tmp_path / "run"), *SMALL]
    assert advice == ["jaxmodels", *words, "--prompt", "a 'b'", "--optim.peak-lr", rate]
    assert main([*advice[1:], "--steps", "2"]) == DONE


@pytest.mark.slow
def test_samples_are_printed_and_kept(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a relative path is what people type
    assert train(Path("run"), "--sample-every", "15", "--prompt", "The f") == DONE
    assert "The f" in capsys.readouterr().err
    assert {p.name for p in Path("run/samples").iterdir()} == {"15.txt", "30.txt"}
