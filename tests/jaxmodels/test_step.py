"""The train step, its optimiser and its schedule."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

import jaxmodels
from jaxmodels.errors import USAGE, Problem
from jaxmodels.recipe import Optim
from jaxmodels.runtime.optim import optimiser, schedule
from jaxmodels.runtime.sharding import follow, make_mesh, placement
from jaxmodels.runtime.step import init, train_step
from tests.contract import in_float64

charlm = jaxmodels.arch("charlm")

CONFIG = charlm.PRESETS["tiny"]
RECIPE = replace(charlm.RECIPES["tiny"], slices=1)


def run(recipe, config=CONFIG, steps=4, rows=16, wide=False, same=False):
    """The last state and the losses of a few steps; in float64 if `wide`, within enable_x64.

    Each step has a batch of its own, unless they are to be the `same`.
    """
    rate = schedule(recipe.optim, recipe.steps)
    tx, mesh = optimiser(recipe.optim, rate), make_mesh()
    graphdef, fresh, abstract = init(charlm, config, recipe, tx, mesh)
    state = fresh()
    if wide:
        recipe, state, abstract = in_float64(recipe, state)
    step = train_step(charlm, graphdef, tx, rate, recipe, abstract)
    rng, losses = np.random.default_rng(0), []
    for _ in range(steps):
        rng = np.random.default_rng(0) if same else rng
        batch = {"tokens": rng.integers(0, config.vocab, (rows, 33)).astype(np.int32)}
        state, told = step(state, batch)
        losses.append(told.read()["loss"])
    return state, losses


@pytest.mark.slow
@pytest.mark.parametrize("change", [{"accum": 4}, {"slices": 4}, {"accum": 2, "slices": 2}])
def test_cutting_the_batch_changes_nothing(change):
    with jax.enable_x64(True):
        state, losses = run(RECIPE, wide=True)
        cut_state, cut_losses = run(replace(RECIPE, **change), wide=True)
        np.testing.assert_allclose(cut_losses, losses, atol=1e-6)
        # The first moment is linear in the gradients, so it compares them directly.
        for path, moment in state.opt[1][0].mu.items():
            assert moment.dtype == jnp.float64
            np.testing.assert_allclose(cut_state.opt[1][0].mu[path], moment, atol=2e-6)


@pytest.mark.slow
def test_a_pass_is_counted_once_for_each_step():
    config = replace(CONFIG, dropout=0.5, dropout_end=0.1)
    assert int(run(RECIPE, config)[0].model_state["steps"]) == 4
    assert int(run(replace(RECIPE, accum=4), config)[0].model_state["steps"]) == 4
    assert int(run(replace(RECIPE, slices=4), config)[0].model_state["steps"]) == 4


@pytest.mark.slow
def test_dropout_differs_between_steps_and_runs_are_repeatable():
    config = replace(CONFIG, dropout=0.5)
    assert run(RECIPE, config)[1] == run(RECIPE, config)[1]
    assert run(RECIPE, config)[1] != run(replace(RECIPE, seed=1), config)[1]
    still = replace(RECIPE, optim=replace(RECIPE.optim, init_lr=0.0, peak_lr=0.0, end_lr=0.0))
    assert len(set(run(still, config, same=True)[1])) == 4
    assert len(set(run(still, same=True)[1])) == 1  # nothing else tells the steps apart


def test_weight_decay_and_its_exceptions():
    optim = Optim(peak_lr=0.1, weight_decay=0.5, no_decay=("*/bias", "norm/*"), clip=0.0)
    params = {"norm/scale": jnp.ones(2), "head/bias": jnp.ones(2), "head/kernel": jnp.ones(2)}
    tx = optimiser(optim, 0.1)
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, _ = tx.update(zero, tx.init(params), params)
    moved = {path for path, update in updates.items() if update.any()}
    assert moved == {"head/kernel"}
    np.testing.assert_allclose(updates["head/kernel"], -0.05)


def test_clipping_is_by_the_global_norm():
    optim = Optim(clip=1.0)
    params = {"a": jnp.zeros(3), "b": jnp.zeros(4)}
    grads = {"a": jnp.full(3, 10.0), "b": jnp.full(4, 10.0)}
    clipped, _ = optax.clip_by_global_norm(optim.clip).update(grads, None)
    tx = optimiser(optim, 1.0)
    state = tx.update(grads, tx.init(params), params)[1]
    np.testing.assert_allclose(state[1][0].mu["a"], 0.1 * clipped["a"], rtol=1e-6)


@pytest.mark.parametrize("warmup", [0.1, 100.0])
def test_schedule(warmup):
    rate = schedule(Optim(peak_lr=1.0, init_lr=0.1, end_lr=0.01, warmup=warmup), 1000)
    assert float(rate(0)) == pytest.approx(0.1)
    assert float(rate(50)) == pytest.approx(0.55)
    assert float(rate(100)) == pytest.approx(1.0)
    assert float(rate(550)) == pytest.approx(0.505)
    assert float(rate(1000)) == pytest.approx(0.01)


@pytest.mark.parametrize("spec", ["data=3", "rows=1", "data", "data=0", "data=1,model=x"])
def test_an_impossible_mesh_is_refused(spec):
    with pytest.raises(Problem) as caught:
        make_mesh(spec)
    assert caught.value.exit_code == USAGE


def test_a_parameter_that_no_row_matches_is_an_error():
    with pytest.raises(LookupError):
        placement(make_mesh(), charlm.SHARDING[:2], {"nobody/knows": jnp.ones(2)})


OPTIMISERS = {
    "sgd": (Optim("sgd", weight_decay=0.0, clip=0.0), lambda g: -0.1 * g),
    # Two equal gradients: with momentum the second step is the first and 0.9 of it.
    "momentum": (Optim("sgd", momentum=0.9, weight_decay=0.0, clip=0.0), lambda g: -0.19 * g),
    "lion": (Optim("lion", weight_decay=0.0, clip=0.0), lambda g: -0.1 * np.sign(g)),
    "adamw": (Optim(weight_decay=0.0, clip=0.0), lambda g: -0.1 * np.sign(g)),
    "decay": (Optim("sgd", weight_decay=0.5, clip=0.0), lambda g: -0.1 * (g + 0.5)),
}


@pytest.mark.parametrize("name", OPTIMISERS)
def test_each_optimiser_takes_the_step_of_its_formula(name):
    optim, expected = OPTIMISERS[name]
    tx = optimiser(optim, 0.1)
    params, grads = {"a": jnp.ones(3)}, {"a": jnp.asarray([1.0, -2.0, 0.5])}
    updates, state = tx.update(grads, tx.init(params), params)
    updates, _ = tx.update(grads, state, params)
    np.testing.assert_allclose(updates["a"], expected(np.asarray(grads["a"])), rtol=1e-3)


@pytest.mark.slow
def test_adafactor_remembers_little():
    params = {"a": jnp.zeros((64, 128)), "b": jnp.zeros((3, 64, 128)), "c": jnp.zeros(64)}
    state = optimiser(Optim("adafactor"), 0.1).init(params)
    held = sum(leaf.size for leaf in jax.tree.leaves(state))
    assert held < 0.1 * sum(leaf.size for leaf in params.values())
    rng = np.random.default_rng(0)
    grads = {path: jnp.asarray(rng.normal(size=x.shape)) for path, x in params.items()}
    updates, _ = optimiser(Optim("adafactor", weight_decay=0.0), 0.1).update(grads, state, params)
    for path, update in updates.items():
        assert (np.sign(update) == -np.sign(grads[path])).all()
        assert float(jnp.sqrt(jnp.square(update).mean())) == pytest.approx(0.1, rel=0.05)


def test_what_an_optimiser_remembers_lies_where_its_parameter_lies():
    """adafactor's sums lack an axis of their parameter, and go along the others."""
    mesh = make_mesh()
    params = {"a": jnp.zeros((3, 64, 128)), "b": jnp.zeros((64,))}
    placed = placement(mesh, (("a", P(None, "data", "model")), ("*", P("model"))), params)
    state = jax.eval_shape(optimiser(Optim("adafactor"), 0.1).init, params)
    found = {
        (path[-2].name, path[-1].key): leaf.spec
        for path, leaf in jax.tree.leaves_with_path(follow(state, params, placed, mesh))
        if isinstance(path[-1], jax.tree_util.DictKey)
    }
    assert found["v_row", "a"] == P(None, "data")
    assert found["v_col", "a"] == P(None, "model")
    assert found["v", "a"] == P()
    assert found["v", "b"] == P("model")
    for name in ("adamw", "lion"):
        state = jax.eval_shape(optimiser(Optim(name), 0.1).init, params)
        at = follow(state, params, placed, mesh)
        specs = [at_.spec for path, at_ in jax.tree.leaves_with_path(at) if "mu" in str(path)]
        assert specs == [P(None, "data", "model"), P("model")]
