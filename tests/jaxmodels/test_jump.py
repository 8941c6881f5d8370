"""A checkpoint when the loss jumps."""

import shutil
from dataclasses import replace

import numpy as np
import pytest

import jaxmodels
from jaxmodels.recipe import Optim
from jaxmodels.runtime.runs import checkpoint as ckpt
from jaxmodels.runtime.runs import rundir
from jaxmodels.runtime.training.train import Job, train
from tests.jaxmodels.helpers import losses

charlm = jaxmodels.arch("charlm")

RECIPE = replace(
    charlm.RECIPES["tiny"],
    batch=8,
    steps=20,
    save_every=5,
    keep=1,
    jump=1.5,
    optim=Optim(peak_lr=0.02, warmup=0.0),
)


class Batches:
    """One token over and over; in the steps named `odd`, another."""

    def __init__(self, *odd: int):
        self.odd, self.index = odd, 0

    def __next__(self):
        self.index += 1
        token = 2 if self.index in self.odd else 1
        return {"tokens": np.full((8, 33), token, np.int32)}

    def get_state(self):
        return self.index

    def set_state(self, state):
        self.index = state


def trained(run, *odd, recipe=RECIPE):
    job = Job(charlm, charlm.PRESETS["tiny"], recipe, Batches(*odd), [], run)
    train(job)
    return rundir.steps(run / "checkpoints")


@pytest.mark.slow
def test_the_state_after_a_jump_and_the_checkpoint_before_it_are_kept(tmp_path, capsys):
    run = tmp_path / "run"
    assert trained(run, 8) == [5, 9, 20]
    values = dict(losses(run))
    jump = values[8] - values[7]
    assert jump > 1.5
    metrics = rundir.metrics(run / "checkpoints" / "9")
    assert metrics == {"jump": pytest.approx(max(jump, values[9] - values[8], key=abs))}
    assert f"step 8: the loss jumped by {jump:+.4f}" in capsys.readouterr().err
    off = tmp_path / "off"
    assert trained(off, 8, recipe=replace(RECIPE, jump=0.0)) == [20]
    assert losses(off) == losses(run)


@pytest.mark.slow
def test_a_resumed_run_sees_the_jump_of_its_first_step(tmp_path):
    run = tmp_path / "run"
    assert trained(run, 6) == [5, 7, 20]
    seen = rundir.metrics(run / "checkpoints" / "7")
    for step in ("7", "20"):
        shutil.rmtree(run / "checkpoints" / step)
    assert trained(run, 6) == [5, 7, 20]
    assert rundir.metrics(run / "checkpoints" / "7") == seen


@pytest.mark.slow
def test_only_the_newest_jumps_are_kept(tmp_path):
    assert trained(tmp_path / "run", 3, 8, 12) == [5, 9, 10, 13, 20]


@pytest.mark.slow
def test_a_jump_in_a_step_that_is_saved_anyway(tmp_path):
    """The save waits for the step's loss, so the checkpoint is that of the jump up.

    The jump down, in step 11, is known when step 12 is under way.
    """
    assert trained(tmp_path / "run", 10) == [5, 10, 12, 20]
    assert "jump" in rundir.metrics(tmp_path / "run" / "checkpoints" / "10")


@pytest.mark.slow
def test_a_smaller_jump_is_none(tmp_path):
    assert trained(tmp_path / "run", 8, recipe=replace(RECIPE, jump=50.0)) == [20]


def test_pruning_around_jumps(tmp_path):
    checkpoints = ckpt.Checkpoints(tmp_path, keep=1)
    from jaxmodels.runtime.step import State

    for step, kind in ((1, {}), (2, {"valid_loss": 1.0}), (3, {}), (4, {"jump": -2.0}), (5, {})):
        state = State({"a/b": np.ones(3)}, {}, {}, np.int32(step), np.zeros(2, np.uint32))
        checkpoints.save(state, step, kind)
    checkpoints.wait()
    assert rundir.steps(tmp_path) == [2, 3, 4, 5]
    assert rundir.best(tmp_path) == 2
