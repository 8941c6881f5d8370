"""Training that diverges: no bad state is saved, the advice works, rolling back is exact."""

import math
import shutil
from dataclasses import replace

import jax
import numpy as np
import pytest

import jaxmodels
from jaxmodels.errors import UNVERIFIED, Problem
from jaxmodels.recipe import Optim
from jaxmodels.runtime.finite import NotFinite
from jaxmodels.runtime.metrics import read
from jaxmodels.runtime.runs import rundir
from jaxmodels.runtime.training import train as loop
from jaxmodels.runtime.training.patience import Patience
from jaxmodels.runtime.training.train import Job, train
from tests.jaxmodels.helpers import losses, params, same

charlm = jaxmodels.arch("charlm")

RECIPE = replace(
    charlm.RECIPES["tiny"],
    batch=8,
    steps=20,
    save_every=5,
    keep=9,
    optim=Optim(peak_lr=0.02, warmup=0.0),
)
BAD = 60  # a token: the data that a step comes to NaN with


class Batches:
    """Batch n is token n over and over; those named `bad` are BAD."""

    def __init__(self, *bad: int):
        self.bad, self.index, self.seen = bad, 0, []

    def __next__(self):
        self.index += 1
        self.seen.append(self.index)
        token = BAD if self.index in self.bad else self.index
        return {"tokens": np.full((8, 33), token, np.int32)}

    def get_state(self):
        return self.index

    def set_state(self, state):
        self.index = state
        self.seen.append(-state)


class Without(Batches):
    """Batches 6 to 8 are left out."""

    def __next__(self):
        self.index = 8 if self.index == 5 else self.index
        return super().__next__()


@pytest.fixture(autouse=True)
def poison(monkeypatch):
    """A step on BAD leaves NaN parameters; its own loss is finite still."""
    real = loop.training

    def training(*args):
        made = real(*args)

        def step(state, batch, stop):
            state, told = made.step(state, batch, stop)
            if int(batch["tokens"][0, 0]) == BAD:
                state = state._replace(params=jax.tree.map(lambda x: x * math.nan, state.params))
            return state, told

        return made._replace(step=step)

    monkeypatch.setattr(loop, "training", training)


def job(run, *bad, recipe=RECIPE, valid=()):
    return Job(charlm, charlm.PRESETS["tiny"], recipe, Batches(*bad), list(valid), run)


@pytest.mark.slow
@pytest.mark.parametrize(("bad", "kept"), [(7, [5]), (10, [5]), (20, [5, 10, 15])])
def test_what_is_not_finite_is_not_saved(tmp_path, bad, kept):
    """Seen by the loss of the next step, or, where a save comes first, by the save."""
    with pytest.raises(NotFinite) as caught:
        train(job(tmp_path / "run", bad))
    problem = caught.value
    assert problem.exit_code == UNVERIFIED
    assert problem.step == (8 if bad == 7 else bad)
    again = f"jaxmodels train --out {tmp_path / 'run'}"
    for flags in ("--optim.peak-lr 0.0067", "--optim.clip 0.25", "--on-divergence rollback"):
        assert f"{again} {flags}\n" in problem.fix + "\n"
    assert f"continue from checkpoint {kept[-1]}" in problem.fix
    assert rundir.steps(tmp_path / "run" / "checkpoints") == kept
    assert all(math.isfinite(loss) for _, loss in losses(tmp_path / "run"))


@pytest.mark.slow
def test_rolling_back_leaves_the_data_out_and_is_exact(tmp_path, capsys):
    """The run is that of data without batches 6 to 8, to the bit, also when it is killed."""
    recipe = replace(RECIPE, on_divergence="rollback")
    run, broken, clean = (tmp_path / name for name in ("run", "broken", "clean"))
    whole = job(run, 7, recipe=recipe)
    assert train(whole).step == 20
    at = whole.batches.seen.index(-5)
    assert whole.batches.seen[at + 1 :] == list(range(6, 24))
    assert [step for step, _ in losses(run)] == list(range(1, 21))
    back = "the loss of step 8 is not finite: back to step 5, skipping the data of 3"
    assert back in capsys.readouterr().err

    skipping = job(clean)
    skipping.batches = Without()
    train(skipping)
    assert losses(clean) == losses(run)
    assert same(params(clean, 20), params(run, 20))

    for gone in (["20", "15"], ["20", "15", "10"]):  # killed after the rollback, and before it
        shutil.copytree(run, broken)
        for step in gone:
            shutil.rmtree(broken / "checkpoints" / step)
        train(job(broken, 7, recipe=recipe))
        assert losses(broken) == losses(run)
        assert same(params(broken, 20), params(run, 20))
        shutil.rmtree(broken)


@pytest.mark.slow
@pytest.mark.parametrize("bad", [(7,), ()])
def test_a_sample_that_cannot_be_drawn_is_no_end(tmp_path, capsys, bad):
    """Of a state that is not finite it is divergence, and of a sound one no more than no sample."""

    def sampler(model):
        raise Problem("nothing can be drawn")

    made = job(tmp_path / "run", *bad, recipe=replace(RECIPE, steps=8, sample_every=7))
    made.sampler = sampler
    if bad:
        with pytest.raises(NotFinite, match=r"after step 7 params.+ are not finite"):
            train(made)
    else:
        assert train(made).step == 8
        assert "no sample at step 7: nothing can be drawn" in capsys.readouterr().err


@pytest.mark.slow
def test_rolling_back_to_the_very_beginning(tmp_path):
    run = tmp_path / "run"
    assert train(job(run, 2, recipe=replace(RECIPE, on_divergence="rollback"))).step == 20
    assert [step for step, _ in losses(run)] == list(range(1, 21))


@pytest.mark.slow
def test_rolling_back_does_not_go_on_for_ever(tmp_path):
    recipe = replace(RECIPE, on_divergence="rollback")
    with pytest.raises(NotFinite) as caught:
        train(job(tmp_path / "run", *range(7, 40), recipe=recipe))
    assert caught.value.why == "training diverged again after 2 rollbacks to step 5"
    assert "rollback" not in caught.value.fix
    assert rundir.steps(tmp_path / "run" / "checkpoints") == [5]


@pytest.mark.slow
def test_a_validation_loss_that_is_not_finite_is_never_the_best(tmp_path, monkeypatch, capsys):
    curve = iter([3.0, math.nan, math.inf, 2.5])
    monkeypatch.setattr(loop, "evaluate", lambda *_: {"loss": next(curve)})
    run = tmp_path / "run"
    outcome = train(job(run, recipe=replace(RECIPE, eval_every=5, keep=1), valid=[{}]))
    assert (outcome.best_step, outcome.best_valid_loss, outcome.valid_loss) == (20, 2.5, 2.5)
    assert "validation loss nan, which is not finite and never counts as the best" in (
        capsys.readouterr().err
    )
    found = [r["valid_loss"] for r in read(run / "metrics.jsonl") if "valid_loss" in r]
    assert found == [3.0, None, None, 2.5]
    assert "NaN" not in (run / "metrics.jsonl").read_text()
    replayed = Patience(3).replay(found)
    assert (replayed.best, replayed.since) == (2.5, 0)
    first = Patience(2).replay([None, math.nan])
    assert (first.best, first.over) == (None, True)
    first.see(9.0)
    assert first.best == 9.0


@pytest.mark.slow
def test_saves_by_the_clock_change_nothing_else(tmp_path):
    run, timed = tmp_path / "run", tmp_path / "timed"
    train(job(run, recipe=replace(RECIPE, steps=6)))
    train(job(timed, recipe=replace(RECIPE, steps=6, save_minutes=1e-9)))
    assert rundir.steps(run / "checkpoints") == [5, 6]
    assert rundir.steps(timed / "checkpoints") == [1, 2, 3, 4, 5, 6]
    assert losses(timed) == losses(run)
    assert same(params(timed, 6), params(run, 6))


@pytest.mark.slow
def test_saves_wait_for_their_time(tmp_path, monkeypatch):
    recipe = replace(RECIPE, steps=12, save_every=1000, save_minutes=0.5)
    slow = job(tmp_path / "run", recipe=recipe)
    clock = [0.0]
    monkeypatch.setattr(loop.time, "monotonic", lambda: clock[0])

    class Slow(Batches):
        def __next__(self):
            clock[0] += 10.0
            return super().__next__()

    slow.batches = Slow()
    train(slow)
    assert rundir.steps(tmp_path / "run" / "checkpoints") == [3, 6, 9, 12]
