"""charlm against the seed's own code (tests/golden/charlm) and its formulas."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxmodels
from jaxmodels import charlm
from jaxmodels.charlm.model import commit
from jaxmodels.errors import USAGE, Problem
from jaxmodels.runtime.paths import pattern, split


@pytest.fixture(scope="module")
def seed(golden):
    """The golden inputs and outputs, and a model with the seed's weights."""
    io = np.load(golden / "charlm" / "io.npz")
    weights = np.load(golden / "charlm" / "params.npz")
    vocab, dim, layers, heads, ratio, context = io["cfg"]
    config = charlm.Config(
        int(vocab), int(dim), int(layers), int(heads), float(ratio), int(context), dropout=0.0
    )
    graphdef, params, rest = split(charlm.Model(config, rngs=nnx.Rngs(0)))
    for path in params:
        for ours, theirs, _ in charlm.UPSTREAM:
            if found := pattern(ours).fullmatch(path):
                params[path] = jnp.asarray(weights[theirs.format(**found.groupdict())])
    return io, graphdef, params, rest


@pytest.mark.slow
def test_logits(seed):
    io, graphdef, params, rest = seed
    logits, _ = graphdef.merge(params, rest)(jnp.asarray(io["ids"]))
    assert np.abs(logits - io["logits"]).max() <= 2e-5


@pytest.mark.slow
def test_cached_logits(seed):
    io, graphdef, params, rest = seed
    model, ids = graphdef.merge(params, rest), jnp.asarray(io["ids"])
    cache, pieces = model.init_cache(2), []
    for t in range(ids.shape[1]):
        logits, cache = model(ids[:, t : t + 1], cache)
        pieces.append(logits)
    assert np.abs(jnp.concatenate(pieces, axis=1) - io["inc"]).max() <= 2e-5


@pytest.mark.slow
def test_loss_and_gradient_norm(seed):
    io, graphdef, params, rest = seed
    batch = {"tokens": jnp.asarray(io["ids"])}
    loss, grads = jax.value_and_grad(
        lambda p: charlm.loss(graphdef.merge(p, rest), batch, None)[0]
    )(params)
    assert abs(loss - io["loss"]) <= 1e-5
    assert float(optax.tree.norm(grads)) == pytest.approx(float(io["gradnorm"]), rel=1e-4)


@pytest.mark.slow
def test_the_cache_is_a_sliding_window():
    """Past its size, a cache of n slots equals attention to the n newest tokens."""
    config = replace(charlm.PRESETS["tiny"], layers=1)  # one layer: no memory beyond the window
    model = charlm.Model(config, rngs=nnx.Rngs(1))
    tokens = jnp.asarray(np.random.default_rng(1).integers(0, config.vocab, (2, 20)))
    cache, call = model.init_cache(2, size=8), nnx.jit(charlm.Model.__call__)
    for t in range(20):
        logits, cache = call(model, tokens[:, t : t + 1], cache)
        window, _ = call(model, tokens[:, max(0, t - 7) : t + 1])
        np.testing.assert_allclose(logits[:, 0], window[:, -1], atol=1e-5)


def test_dropout_decays_with_the_steps():
    config = replace(charlm.PRESETS["tiny"], dropout=0.9, dropout_end=0.1, dropout_scale=1000)
    model = charlm.Model(config, rngs=nnx.Rngs(0))
    for steps, rate in ((0, 0.9), (1000, 0.5), (3000, 0.3)):
        model.steps[...] = steps
        assert float(model.dropout_rate()) == pytest.approx(rate)
    commit(model, {})
    assert int(model.steps[...]) == 3001


@pytest.mark.slow
def test_dropout_is_off_without_rngs_and_on_with():
    config = replace(charlm.PRESETS["tiny"], dropout=0.5)
    model = charlm.Model(config, rngs=nnx.Rngs(0))
    tokens = jnp.ones((1, 4), jnp.int32)
    plain, again = model(tokens)[0], model(tokens)[0]
    noisy = model(tokens, rngs=nnx.Rngs(dropout=0))[0]
    assert (plain == again).all()
    assert not jnp.allclose(plain, noisy)


def test_initialisation_is_the_seeds():
    model = jaxmodels.create("charlm:notebook")
    _, params, _ = split(model)
    d = model.config.dim
    for path, limit in (
        ("head/kernel", 1e-3),
        ("blocks/0/attn/proj/kernel", np.sqrt(3 * 1e-3 / d)),
        ("blocks/0/attn/qkv/kernel", np.sqrt(3 * 1e-3 / (2 * d))),
    ):
        assert 0.9 * limit < np.abs(params[path]).max() <= limit
    assert (params["head/kernel"] >= 0).all()  # the seed draws it from [0, 1e-3)
    assert not params["head/bias"].any()


@pytest.mark.slow
@pytest.mark.parametrize("change", [{"heads": 3}, {"dim": 24, "heads": 8}, {"dropout": 1.0}])
def test_impossible_sizes_are_refused(change):
    with pytest.raises(Problem) as caught:
        replace(charlm.PRESETS["tiny"], **change)
    assert caught.value.exit_code == USAGE
