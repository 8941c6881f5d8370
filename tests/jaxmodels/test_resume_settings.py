"""Settings that may change on resume, the messages about it, and the history in config.json."""

import json
import shutil
from pathlib import Path

import pytest

import bridge
from jaxmodels.__main__ import main
from jaxmodels.errors import CORRUPT, DONE, MISMATCH, USAGE
from jaxmodels.files import files_below
from jaxmodels.runtime.runs import rundir
from tests.jaxmodels.helpers import train

FEW = ["--steps", "4", "--batch", "2", "--model.layers", "1"]


@pytest.fixture(scope="module")
def begun(tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("begun") / "run"
    assert train(run, *FEW) == DONE
    return run


@pytest.fixture
def run(begun, tmp_path) -> Path:
    return shutil.copytree(begun, tmp_path / "run")


def on(run: Path, *flags: str) -> int:
    return main(["train", "--out", str(run), *flags])


def history(run: Path) -> list:
    return json.loads((run / "config.json").read_text())["history"]


@pytest.mark.slow
def test_a_lost_config_is_named(run, capsys):
    (run / "config.json").unlink()
    assert on(run) == USAGE
    assert f"{run} holds no run to continue: it has no config.json" in capsys.readouterr().err
    assert train(run, *FEW) == CORRUPT
    assert "the run has lost its config.json" in capsys.readouterr().err


def test_fewer_steps_than_are_done_change_nothing(run, capsys):
    before = {path: path.read_bytes() for path in files_below(run)}
    assert on(run, "--steps", "3", "--json") == DONE
    out, err = capsys.readouterr()
    assert "4 steps are done, more than --steps 3: nothing to do" in err
    assert json.loads(out)["step"] == 4
    assert {path: path.read_bytes() for path in files_below(run)} == before


@pytest.mark.slow
def test_more_steps_say_what_becomes_of_the_learning_rate(run, capsys):
    assert on(run, "--steps", "8") == DONE
    said = capsys.readouterr().err
    assert "the learning rate goes from 1e-05 to 0.005" in said
    assert "its schedule now runs over 8 steps, not 4" in said
    assert "add --optim.schedule-steps 4: the learning rate then stays at 1e-05" in said
    assert history(run) == [{"step": 4, "changed": {"recipe.steps": [4, 8]}}]
    assert bridge.verify(run).digests_ok


def test_the_decay_that_was_done_is_kept_if_wanted(run, capsys):
    assert on(run, "--steps", "6", "--optim.schedule-steps", "4") == DONE
    assert "the learning rate goes" not in capsys.readouterr().err
    lines = (run / "metrics.jsonl").read_text().splitlines()
    assert [round(json.loads(line)["lr"], 9) for line in lines[4:]] == [1e-5, 1e-5]


@pytest.mark.slow
def test_a_lower_rate_and_clipping_are_allowed_and_recorded(run, capsys):
    assert on(run, "--optim.peak-lr", "0.02") == MISMATCH
    assert on(run, "--optim.clip", "0") == MISMATCH
    assert "0 is no clipping" in capsys.readouterr().err
    assert "history" not in json.loads((run / "config.json").read_text())
    assert on(run, "--optim.peak-lr", "0.001", "--optim.clip", "0.5", "--steps", "5") == DONE
    said = capsys.readouterr().err
    assert "changed since the last call: --optim.peak-lr 0.01 → 0.001" in said
    lowered = {"recipe.optim.peak_lr": [0.01, 0.001], "recipe.optim.clip": [1.0, 0.5]}
    assert history(run) == [{"step": 4, "changed": {"recipe.steps": [4, 5], **lowered}}]
    assert on(run, "--optim.peak-lr", "0.01") == DONE  # back to what it had
    assert history(run)[1] == {"step": 5, "changed": {"recipe.optim.peak_lr": [0.001, 0.01]}}
    assert on(run) == DONE
    assert len(history(run)) == 2


@pytest.mark.slow
def test_the_history_tells_the_step_that_was_gone_on_from(tmp_path):
    run = tmp_path / "run"
    assert train(run, *FEW, "--save-every", "2") == DONE
    (run / "checkpoints" / "4" / "data.json").write_text("{}")
    assert on(run, "--steps", "5") == DONE
    assert history(run)[0]["step"] == 2
    assert rundir.strays(run / "checkpoints") == ["4.damaged"]


@pytest.mark.slow
def test_clipping_may_be_turned_on(tmp_path):
    """Optax's state then lies elsewhere in its nested tuples."""
    run = tmp_path / "run"
    assert train(run, *FEW, "--optim.clip", "0") == DONE
    assert on(run, "--optim.clip", "1", "--steps", "5") == DONE


@pytest.mark.slow
def test_damage_in_metrics_is_said_and_does_not_stop(run, capsys):
    path = run / "metrics.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"step": 2', b'"step": \xff'))
    assert on(run, "--steps", "5") == DONE
    said = capsys.readouterr().err
    assert "warning: metrics.jsonl is damaged" in said
    assert "metrics.jsonl: line 2 cannot be read and is left out" in said
    assert on(run, "--steps", "6") == DONE
    assert bridge.verify(run).problems[0].startswith("metrics.jsonl is damaged")
