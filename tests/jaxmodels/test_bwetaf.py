"""bwetaf against the seed's own code (tests/golden/bwetaf_*) and its formulas."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.serialization import msgpack_restore

import jaxmodels
from bridge.core.ops import OPS
from jaxmodels import bwetaf
from jaxmodels.bwetaf.model import rotated, sinusoid
from jaxmodels.errors import USAGE, Problem
from jaxmodels.layers.rotary import rotation
from jaxmodels.runtime.paths import flatten, pattern, split
from tests.contract import products

TINY = bwetaf.PRESETS["tiny"]


def config_of(told: dict) -> bwetaf.Config:
    return bwetaf.Config(
        vocab=told["vocab_size"],
        tokens=told["vocab_size"],
        dim=told["attention_dim"],
        layers=told["num_blocks"],
        heads=told["num_heads"],
        hidden=told["ff_dim"],
        context=told["max_len"],
        dropout=0.0,
        positions="rotate" if told["use_rope"] else "sinusoidal",
        embed_scale=told["emb_scaling_factor"],
        residual_scale=told["res_scale"],
    )


@pytest.fixture(scope="module", params=["bwetaf_rope", "bwetaf_sin"])
def seed(golden, request):
    """The golden inputs and outputs, and a model with the seed's weights."""
    folder = golden / request.param
    told = json.loads((folder / "understanding_good_stuff.json").read_text())
    tree = msgpack_restore((folder / "good_stuff.pkl").read_bytes())["params"]
    weights = flatten(tree, ".")
    graphdef, params, rest = split(bwetaf.Model(config_of(told), rngs=nnx.Rngs(0)))
    for path, leaf in params.items():
        for ours, theirs, op in bwetaf.UPSTREAM:
            if found := pattern(ours).fullmatch(path):
                array = OPS[op].inverse(weights.pop(theirs.format(**found.groupdict())))
                assert array.shape == leaf.shape
                params[path] = jnp.asarray(array)
    assert not weights
    return np.load(folder / "io.npz"), graphdef, params, rest


@pytest.mark.slow
def test_logits(seed):
    io, graphdef, params, rest = seed
    ids, mask = jnp.asarray(io["ids"]), jnp.asarray(io["mask"])
    logits, _ = graphdef.merge(params, rest)(ids, mask=mask)
    assert np.abs(logits - io["logits"])[io["mask"] == 1].max() <= 2e-5
    assert np.abs(logits - io["logits"]).max() <= 2e-5  # padding too


@pytest.mark.slow
def test_loss_and_gradient_norm(seed):
    io, graphdef, params, rest = seed
    batch = {name: jnp.asarray(io[key]) for name, key in (("tokens", "ids"), ("mask", "mask"))}
    loss, grads = jax.value_and_grad(
        lambda p: bwetaf.loss(graphdef.merge(p, rest), batch, None)[0]
    )(params)
    assert abs(loss - io["loss"]) <= 1e-5
    assert float(optax.tree.norm(grads)) == pytest.approx(float(io["gradnorm"]), rel=1e-4)


@pytest.mark.slow
def test_no_token_sees_padding():
    model = bwetaf.Model(TINY, rngs=nnx.Rngs(1))
    tokens = jnp.asarray(np.random.default_rng(1).integers(0, 64, (3, 12)))
    mask = jnp.ones((3, 12), jnp.int32).at[0, :3].set(0).at[1, 5].set(0).at[2, 9:].set(0)
    other = jnp.where(mask == 1, tokens, (tokens + 7) % 64)
    seen = np.asarray(mask) == 1
    one, two = (np.asarray(model(ids, mask=mask)[0])[seen] for ids in (tokens, other))
    np.testing.assert_array_equal(one, two)
    assert np.abs(one - np.asarray(model(tokens)[0])[seen]).max() > 1e-3
    whole = model(tokens, mask=jnp.ones_like(mask))[0]
    np.testing.assert_allclose(whole, model(tokens)[0], atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        {"heads": (4, 2)},
        {"rotate_qk": True},
        {"positions": "sinusoidal", "embed_scale": 1.5, "residual_scale": 0.9},
    ],
)
def test_decoding_equals_the_full_forward(change):
    config = replace(TINY, init_range=0.5, **change)
    model = bwetaf.Model(config, rngs=nnx.Rngs(0))
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 64, (2, 12)))
    full, _ = model(tokens)
    logits, cache = model(tokens[:, :5], model.init_cache(2))
    pieces = [logits]
    for t in range(5, 12):
        logits, cache = model(tokens[:, t : t + 1], cache)
        pieces.append(logits)
    np.testing.assert_allclose(jnp.concatenate(pieces, axis=1), full, atol=1e-5)
    assert [k.shape[1] for k in cache.keys] == list(config.heads_by_layer)
    assert np.abs(full - bwetaf.Model(TINY, rngs=nnx.Rngs(0))(tokens)[0]).max() > 1e-3


def test_head_counts_and_rotation_of_queries_matter():
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 64, (2, 12)))
    graphdef, params, rest = split(bwetaf.Model(TINY, rngs=nnx.Rngs(0)))
    large = {path: leaf * 8 for path, leaf in params.items()}
    plain = graphdef.merge(large, rest)(tokens)[0]
    for change in ({"heads": (2, 4)}, {"rotate_qk": True}):
        other = split(bwetaf.Model(replace(TINY, **change), rngs=nnx.Rngs(0)))[0]
        assert np.abs(other.merge(large, rest)(tokens)[0] - plain).max() > 1e-3
    both = split(bwetaf.Model(replace(TINY, heads=(2, 2)), rngs=nnx.Rngs(0)))[0]
    np.testing.assert_array_equal(both.merge(large, rest)(tokens)[0], plain)


def test_embeddings_are_rotated_in_the_seeds_pairing():
    """By hand at width 4: angles a0 a0 a1 a1 meet the halves (x0, x2) and (x1, x3)."""
    x, p = np.asarray([0.3, -1.2, 0.7, 2.0], np.float32), 5
    a, b = p * 1.0, p * 10_000**-0.5
    expected = [
        x[0] * np.cos(a) - x[2] * np.sin(a),
        x[1] * np.cos(a) - x[3] * np.sin(a),
        x[2] * np.cos(b) + x[0] * np.sin(b),
        x[3] * np.cos(b) + x[1] * np.sin(b),
    ]
    turn = rotation(jnp.asarray([p]), 4)
    np.testing.assert_allclose(rotated(jnp.asarray(x)[None, None], turn)[0, 0], expected, atol=1e-6)
    waves = [np.sin(a), np.cos(a), np.sin(b), np.cos(b)]
    np.testing.assert_allclose(sinusoid(turn)[0], waves, atol=1e-6)


@pytest.mark.slow
def test_dropout_is_off_without_rngs_and_on_with():
    model = bwetaf.Model(replace(TINY, dropout=0.5), rngs=nnx.Rngs(0))
    tokens = jnp.ones((1, 4), jnp.int32)
    plain, again = model(tokens)[0], model(tokens)[0]
    assert (plain == again).all()
    assert not jnp.allclose(plain, model(tokens, rngs=nnx.Rngs(dropout=0))[0], atol=1e-7)


@pytest.mark.slow
def test_the_residual_stream_stays_float32_in_bfloat16():
    graphdef, params, rest = split(jaxmodels.create("bwetaf:tiny"))
    half = graphdef.merge({path: leaf.astype(jnp.bfloat16) for path, leaf in params.items()}, rest)
    # So many rows that the head is a product.
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 64, (3, 12)))
    jaxpr = jax.make_jaxpr(lambda model, ids: model(ids)[0])(half, tokens)
    found = products(jaxpr.jaxpr)
    assert len(found) == 1 + 2 * 8
    assert all(v.aval.dtype == jnp.bfloat16 for e in found[:-1] for v in e.invars)
    assert half(tokens)[0].dtype == jnp.float32
    np.testing.assert_allclose(half(tokens)[0], graphdef.merge(params, rest)(tokens)[0], atol=2e-3)


def test_initialisation_is_the_seeds():
    _, params, _ = split(bwetaf.Model(replace(TINY, init_range=0.1, vocab=4096), rngs=nnx.Rngs(0)))
    assert float(params["embed/embedding"].std()) == pytest.approx(0.1, rel=0.02)
    assert float(params["blocks/0/mlp/wv/kernel"].std()) == pytest.approx(0.02, rel=0.05)
    assert not params["blocks/0/attn/proj/bias"].any()
    assert (params["blocks/1/norm2/scale"] == 1).all()


@pytest.mark.parametrize(
    "change",
    [{"heads": 3}, {"heads": (2, 2, 2)}, {"heads": (2, 3)}, {"tokens": 65}, {"dropout": 1.0}],
)
def test_impossible_sizes_are_refused(change):
    with pytest.raises(Problem) as caught:
        replace(TINY, **change)
    assert caught.value.exit_code == USAGE


@pytest.mark.slow
def test_a_mask_and_a_cache_are_refused():
    model = jaxmodels.create("bwetaf:tiny")
    tokens = jnp.ones((1, 4), jnp.int32)
    with pytest.raises(Problem, match="a mask and a cache"):
        model(tokens, model.init_cache(1), mask=jnp.ones_like(tokens))
