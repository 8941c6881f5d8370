"""A step computed in parts equals the step on the full batch."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmodels
from jaxmodels.runtime.evaluate import evaluate, loss_function
from jaxmodels.runtime.optim import optimiser
from jaxmodels.runtime.sharding import make_mesh, put_batch
from jaxmodels.runtime.step import init, train_step
from tests.contract import in_float64, smallest
from tests.jaxmodels import toy

CUTS = [{"accum": 2}, {"accum": 4}, {"accum": 8}, {"slices": 4}, {"accum": 2, "slices": 2}]


def stepped(recipe, package=None):
    """The state and the metrics after two steps of the toy, in float64, at a rate of 1."""
    package, mesh = package or toy.package(), make_mesh()
    tx = optimiser(recipe.optim, 1.0)
    graphdef, fresh, _ = init(package, toy.CONFIG, recipe, tx, mesh)
    recipe, state, abstract = in_float64(recipe, fresh())
    step = train_step(package, graphdef, tx, lambda _: 1.0, recipe, abstract)
    told = []
    for _ in range(2):
        state, one = step(state, put_batch(toy.batch(), mesh))
        told.append(one.read())
    return state, told


@pytest.fixture(scope="module")
def whole():
    with jax.enable_x64(True):
        return stepped(toy.RECIPE)


@pytest.mark.slow
@pytest.mark.parametrize("cut", CUTS)
def test_loss_gradients_and_metrics_are_those_of_the_whole_batch(cut, whole):
    with jax.enable_x64(True):
        state, told = stepped(replace(toy.RECIPE, **cut))
    for ours, theirs in zip(told, whole[1], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-6)
    for path, param in whole[0].params.items():
        np.testing.assert_allclose(state.params[path], param, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("cut", CUTS)
def test_what_is_stored_is_stored_once_from_all_rows(cut, whole):
    with jax.enable_x64(True):
        state, _ = stepped(replace(toy.RECIPE, **cut))
    assert int(state.model_state["steps"]) == 2
    for name in ("seen", "queue"):
        np.testing.assert_array_equal(state.model_state[name], whole[0].model_state[name])
    np.testing.assert_array_equal(state.model_state["queue"], [*range(1, 9)] * 2)


def test_a_package_may_store_after_every_pass():
    made = toy.package(EVERY_PASS=True)
    with jax.enable_x64(True):
        state, _ = stepped(replace(toy.RECIPE, accum=4), made)
    assert int(state.model_state["steps"]) == 8
    np.testing.assert_array_equal(state.model_state["queue"], [*range(1, 9)] * 2)


@pytest.mark.parametrize("sizes", [(8,), (1,) * 8, (3, 3, 2), (7, 1)])
def test_an_evaluation_is_that_of_all_tokens(sizes):
    package = toy.package()
    tx = optimiser(toy.RECIPE.optim, 1.0)
    graphdef, fresh, _ = init(package, toy.CONFIG, toy.RECIPE, tx, make_mesh())
    state, rows = fresh(), toy.batch()
    ends = np.cumsum(sizes)
    batches = [{k: v[b - n : b] for k, v in rows.items()} for n, b in zip(sizes, ends, strict=True)]
    found = evaluate(loss_function(package, graphdef), state.params, state.model_state, batches)
    loss, aux = toy.loss(graphdef.merge(state.params, state.model_state), rows, None)
    expected = {name: float(x) for name, x in {"loss": loss, **aux["metrics"]}.items()}
    assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.slow
@jax.enable_x64(True)
def test_bitgens_writing_is_a_mean_over_tokens():
    """Its count and its part of the loss are those of what it says."""
    package, config = jaxmodels.arch("bitgen"), smallest("bitgen")
    model = package.Model(replace(config, weights=(0.0, 0.0, 2.0, 0.0)), rngs=toy.nnx.Rngs(0))
    rng = np.random.default_rng(0)
    lengths = np.asarray([12, 12, 11, 10, 1, 2, 1, 0])
    rows = {
        "tokens": rng.integers(0, config.vocab, (8, 12)).astype(np.int32),
        "mask": (np.arange(12) < lengths[:, None]).astype(np.int32),
    }
    told = toy.nnx.jit(lambda model, batch: package.loss(model, batch, None))
    halves = [{k: jnp.asarray(v[i : i + 4]) for k, v in rows.items()} for i in (0, 4)]
    counts = [int(package.counted(half)) for half in halves]
    assert counts == [45, 5]  # the first token of a text always counts
    whole, parts = told(model, rows), [told(model, half) for half in halves]
    for name in ("text_loss", "token_accuracy"):
        mean = sum(n * aux["metrics"][name] for n, (_, aux) in zip(counts, parts, strict=True)) / 50
        assert float(whole[1]["metrics"][name]) == pytest.approx(float(mean), rel=1e-5)
    assert float(whole[1]["by_tokens"]["loss"]) == pytest.approx(float(whole[0]), rel=1e-6)
