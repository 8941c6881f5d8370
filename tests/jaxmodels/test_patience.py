"""Early stopping: after how many evaluations, across resumes, its message and exit code."""

import json
import os
import shutil
import signal

import pytest

from jaxmodels.__main__ import main
from jaxmodels.errors import DONE, STOPPED, USAGE
from jaxmodels.runtime.metrics import read
from jaxmodels.runtime.runs import rundir
from jaxmodels.runtime.training import train as training
from jaxmodels.runtime.training.patience import Patience
from tests.jaxmodels.helpers import losses, params, same, train

# The validation loss of an evaluation, in order: lowest at the second, then it rises.
CURVE = [3.0, 2.0, 2.5, 2.0, 2.4, 1.0]


@pytest.fixture
def curve(monkeypatch):
    """Validation losses as in CURVE, by the step that is evaluated."""

    def evaluate(loss, params, rest, batches, stop):
        return {"loss": CURVE[next(counts)]}

    counts = iter(range(100))

    def begin(at: int) -> None:
        nonlocal counts
        counts = iter(range(at, 100))

    monkeypatch.setattr("jaxmodels.runtime.training.train.evaluate", evaluate)
    return begin


def test_patience_counts_since_the_lowest():
    patience = Patience(2)
    seen = []
    for loss in CURVE:
        patience.see(loss)
        seen.append((patience.best, patience.since, patience.over))
    assert seen == [
        (3.0, 0, False),
        (2.0, 0, False),
        (2.0, 1, False),
        (2.0, 2, True),  # as low is not lower
        (2.0, 3, True),
        (1.0, 0, False),
    ]
    endless = Patience(0).replay([1.0, *[2.0] * 100])
    assert (endless.since, endless.over) == (100, False)
    assert Patience(2).replay(CURVE[:4]).over


@pytest.mark.slow
def test_a_run_ends_early_and_says_so(tmp_path, capsys, curve):
    run = tmp_path / "run"
    assert train(run, "--steps", "60", "--patience", "2") == DONE
    said = capsys.readouterr().err
    assert "stopped early: step 40 of 60, best validation loss 2.0000 (step 20)" in said
    assert "not lower in 2 evaluations" in said
    assert f"longer:    jaxmodels train --out {run} --patience 0" in said
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["reason"], summary["step"], summary["best_step"]) == ("stopped early", 40, 20)
    assert rundir.steps(run / "checkpoints") == [20, 30, 40]


@pytest.mark.slow
def test_it_stays_ended_until_it_may_go_on(tmp_path, curve):
    run = tmp_path / "run"
    assert train(run, "--steps", "60", "--patience", "2") == DONE
    assert main(["train", "--out", str(run)]) == DONE
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["reason"], summary["step"]) == ("stopped early", 40)
    assert main(["train", "--out", str(run), "--patience", "0"]) == DONE
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["reason"], summary["step"], summary["best_step"]) == ("done", 60, 60)


@pytest.mark.slow
def test_a_resumed_run_ends_where_an_unbroken_one_does(tmp_path, curve):
    """Broken after the third of four evaluations: the count goes on, to the bit."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert train(whole, "--steps", "60", "--patience", "2") == DONE
    shutil.copytree(whole, broken)
    shutil.rmtree(broken / "checkpoints" / "40")
    curve(3)
    assert main(["train", "--out", str(broken)]) == DONE
    assert losses(broken) == losses(whole)
    assert [step for step, _ in losses(broken)] == list(range(1, 41))
    assert same(params(broken, 40), params(whole, 40))
    valid = [r["valid_loss"] for r in read(broken / "metrics.jsonl") if "valid_loss" in r]
    assert valid == CURVE[:4]


@pytest.mark.slow
def test_an_evaluation_that_a_stop_cut_off_is_made_up_for(tmp_path, curve, monkeypatch, capsys):
    """Of step 20, the best one: checkpoint, log and patience are those of an unbroken run."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert train(whole, "--steps", "60", "--patience", "2") == DONE
    curve(0)
    by_curve, asked = training.evaluate, iter(range(9))

    def evaluate(*args):
        if next(asked) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
            return {}
        return by_curve(*args)

    monkeypatch.setattr(training, "evaluate", evaluate)
    assert train(broken, "--steps", "60", "--patience", "2") == STOPPED
    assert rundir.steps(broken / "checkpoints")[-1] == 20
    capsys.readouterr()
    assert main(["train", "--out", str(broken)]) == DONE
    assert "step 20: validation loss 2.0000" in capsys.readouterr().err
    records = [read(run / "metrics.jsonl") for run in (whole, broken)]
    assert [r["step"] for r in records[1]] == list(range(1, 41))
    valid = [{r["step"]: r["valid_loss"] for r in rows if "valid_loss" in r} for rows in records]
    assert valid[0] == valid[1]
    assert rundir.best(broken / "checkpoints") == 20
    assert same(params(broken, 40), params(whole, 40))


def test_patience_is_no_negative_number(tmp_path):
    assert train(tmp_path / "run", "--patience", "-1") == USAGE
