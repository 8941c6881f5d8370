"""`--find-lr` starts where the run will, and says so if it finds nothing."""

import math
from types import SimpleNamespace

import pytest

import jaxmodels
from jaxmodels.errors import STOPPED, UNVERIFIED, Problem
from jaxmodels.recipe import Recipe
from jaxmodels.runtime.training import find_lr as module
from tests.jaxmodels.helpers import train

charlm = jaxmodels.arch("charlm")


@pytest.fixture
def curve(monkeypatch):
    """The loss of each step, instead of a model."""

    def set_to(*losses):
        told = iter(losses)

        def step(state, batch):
            assert state == "begun"
            return state, SimpleNamespace(read=lambda: {"loss": next(told)})

        made = (None, lambda: "fresh", None, step)
        monkeypatch.setattr(module, "training", lambda *_: made)
        monkeypatch.setattr(module, "make_mesh", lambda *_: None)
        monkeypatch.setattr(module, "put_batch", lambda batch, mesh: batch)

    return set_to


def found(steps):
    begin = {"fresh": "begun"}.__getitem__
    return module.find_lr(charlm, None, Recipe(), iter(range(99)), steps=steps, begin=begin)


def test_it_begins_with_what_the_run_begins_with(curve):
    curve(3.0, 3.0, 2.0, 1.9, 1.9)
    assert found(5)["suggestion"] == pytest.approx(1e-7 * 10 ** (2 * 2), rel=1e-6)


@pytest.mark.parametrize("losses", [(math.nan,), (3.0, math.inf), (1.0, 1.0, 9.0)])
def test_too_few_losses_are_an_error_in_words(curve, losses):
    curve(*losses)
    with pytest.raises(Problem, match="cannot be compared") as caught:
        found(5)
    assert caught.value.exit_code == UNVERIFIED


def test_one_that_is_stopped_is_no_end_of_a_run(tmp_path, capsys):
    for _ in range(2):
        assert train(tmp_path / "run", "--find-lr", "--max-hours", "0") == STOPPED
    assert "time is up: not all learning rates were tried" in capsys.readouterr().err
    assert not (tmp_path / "run" / "summary.json").exists()
