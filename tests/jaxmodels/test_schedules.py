"""Learning rates by step, held against the functions of optax and of transformers."""

import numpy as np
import optax
import pytest
import torch

from jaxmodels.errors import USAGE, Problem
from jaxmodels.recipe import Optim
from jaxmodels.runtime.optim import schedule

STEPS = 200


def rates(steps: int = STEPS, **optim) -> np.ndarray:
    rate = schedule(Optim(peak_lr=0.5, **optim), steps)
    return np.asarray([float(rate(step)) for step in range(steps + 1)])


def of_transformers(name: str, **settings) -> np.ndarray:
    import transformers

    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.5)
    made = getattr(transformers, name)(optimizer, num_training_steps=STEPS, **settings)
    (factor,) = made.lr_lambdas
    return 0.5 * np.asarray([factor(step) for step in range(STEPS + 1)])


@pytest.mark.parametrize("warmup", [0.0, 0.1, 20.0])
def test_linear_is_that_of_transformers(warmup):
    steps = int(warmup * STEPS) if warmup < 1 else int(warmup)
    expected = of_transformers("get_linear_schedule_with_warmup", num_warmup_steps=steps)
    np.testing.assert_allclose(rates(schedule="linear", warmup=warmup), expected, atol=1e-7)


@pytest.mark.parametrize("decay", [0.25, 50.0])
def test_wsd_is_that_of_transformers(decay):
    expected = of_transformers(
        "get_wsd_schedule", num_warmup_steps=20, num_decay_steps=50, decay_type="linear"
    )
    found = rates(schedule="wsd", warmup=0.1, decay=decay)
    np.testing.assert_allclose(found, expected, atol=1e-7)
    assert set(found[20:151]) == {0.5}


def test_cosine_is_that_of_optax():
    rate = optax.warmup_cosine_decay_schedule(0.1, 0.5, 20, STEPS, 0.01)
    expected = [float(rate(step)) for step in range(STEPS + 1)]
    np.testing.assert_array_equal(rates(warmup=0.1, init_lr=0.1, end_lr=0.01), expected)


@pytest.mark.parametrize("name", ["linear", "wsd"])
def test_a_schedule_begins_and_ends_where_it_is_told(name):
    found = rates(schedule=name, warmup=0.1, init_lr=0.1, end_lr=0.05)
    assert found[[0, 20, STEPS]] == pytest.approx([0.1, 0.5, 0.05])
    assert rates(schedule=name, min_lr=0.2)[-40:].min() == pytest.approx(0.2)


@pytest.mark.parametrize("name", ["cosine", "linear", "wsd"])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_run_of_few_steps_has_rates_too(name, steps):
    found = rates(steps, schedule=name, warmup=1.0, decay=5.0)
    assert np.isfinite(found).all()
    assert found.max() <= 0.5
    assert found[-1] == pytest.approx(0, abs=1e-7)


def test_a_decay_below_nothing_is_refused():
    with pytest.raises(Problem, match=r"optim\.decay") as caught:
        Optim(schedule="wsd", decay=-0.1)
    assert caught.value.exit_code == USAGE
