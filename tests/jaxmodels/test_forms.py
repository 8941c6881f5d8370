"""The forms that layers take on TPUs and GPUs, run on a CPU: other layouts, the same numbers."""

import importlib
from dataclasses import replace
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

import jaxmodels
from jaxmodels.layers import heads, target
from jaxmodels.layers.attention import self_attention
from jaxmodels.layers.keys import keys
from jaxmodels.layers.linear import Linear
from jaxmodels.layers.losses import chunked_scores
from jaxmodels.layers.norm import layer_norm, normalised
from jaxmodels.layers.rotary import rotation
from jaxmodels.runtime.paths import split
from tests.contract import our_writers

DEVICES = {
    "tpu": AbstractDevice(device_kind="TPU v5 lite", num_cores=1, platform="tpu"),
    "gpu": AbstractDevice(device_kind="NVIDIA H100 80GB HBM3", num_cores=132, platform="gpu"),
}


def as_on(kind, function):
    mesh = AbstractMesh(
        (1, 1), ("data", "model"), (AxisType.Auto,) * 2, abstract_device=DEVICES[kind]
    )

    def traced(*args):
        with jax.sharding.use_abstract_mesh(mesh):
            assert target.platform() == kind
            return function(*args)

    return traced


def same(function, *args, kind="tpu", **near):
    """The function's values and gradients in both forms; gives back how a CPU has them."""

    def results(*args):
        out, back = jax.vjp(function, *args)
        ones = jax.tree.map(lambda x: jnp.cos(jnp.arange(x.size, dtype=x.dtype)), out)
        return out, back(jax.tree.map(lambda x, y: y.reshape(x.shape), out, ones))

    expected, found = jax.jit(results)(*args), jax.jit(as_on(kind, results))(*args)
    for one, two in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        assert one.dtype == two.dtype
        np.testing.assert_allclose(one, two, **(near or {"rtol": 1e-10, "atol": 1e-10}))
    return expected


@pytest.fixture
def double():
    with jax.enable_x64(True):
        yield


def drawn(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def filled(module, seed=0):
    rng = np.random.default_rng(seed)
    nnx.update(
        module, jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape)), nnx.state(module))
    )
    return nnx.split(module)


def test_without_a_mesh_it_is_the_default_device():
    assert target.platform() == jax.default_backend()


@pytest.mark.slow
@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("bias", [False, True])
def test_linear_in_heads_in_parts_and_back(bias):
    graph, state = filled(Linear(8, 24, use_bias=bias, rngs=nnx.Rngs(0)))
    back, out = filled(Linear(8, 8, use_bias=bias, rngs=nnx.Rngs(0)), seed=1)
    turn = rotation(jnp.arange(5), 4)

    def all_of_it(state, out, x):
        linear, proj = nnx.merge(graph, state), nnx.merge(back, out)
        q, k, v = heads.qkv_heads(linear, x, 2, turn)
        again = heads.heads_of(proj, x, 2, turn)
        a, b = heads.fused_linear(linear, x, 2)
        return heads.join_heads(proj, jnp.tanh(q) * k + v * again), linear(x), a * b

    same(all_of_it, state, out, drawn(3, 5, 8), rtol=1e-5, atol=1e-5)  # turned in float32


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("kind", ["layer", "differences", "rms", "bare"])
def test_norms(kind):
    x = drawn(2, 5, 6) + 3
    if kind == "bare":
        same(lambda x: normalised(x, 1e-8), x)
        return
    made = {
        "layer": lambda rngs: nnx.LayerNorm(6, rngs=rngs),
        "differences": lambda rngs: nnx.LayerNorm(6, use_fast_variance=False, rngs=rngs),
        "rms": lambda rngs: nnx.RMSNorm(6, rngs=rngs),
    }
    graph, state = filled(made[kind](nnx.Rngs(0)))
    same(lambda state, x: layer_norm(nnx.merge(graph, state), x), state, x)


# Logits of the target that lie so far below the largest that e to their distance overflows.
FAR = {"near": 1.0, "far": 2000.0}


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(("kind", "tied"), [("tpu", True), ("gpu", True), ("gpu", False)])
@pytest.mark.parametrize("scale", FAR.values(), ids=FAR)
def test_the_chunked_loss_and_its_hits(scale, kind, tied):
    x, head = drawn(2, 7, 4), scale * drawn(11, 4, seed=1)
    head = head if tied else head.T
    targets = jnp.asarray(np.random.default_rng(2).integers(0, 11, (2, 7)))
    mask = jnp.asarray([[1] * 7, [1, 1, 0, 1, 0, 0, 1]])

    def scores(x, head):
        return chunked_scores(x, head, targets, mask, tied)

    loss, _ = same(scores, x, head, kind=kind)[0]
    assert np.isfinite(loss)
    assert (loss > 710) == (scale > 1)  # e to the 710 is beyond float64


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("kind", ["tpu", "gpu"])
def test_the_chunked_loss_with_a_bias_and_smoothed_targets(kind):
    x, head, bias = drawn(2, 7, 4), drawn(4, 11, seed=1), drawn(11, seed=2)
    targets = jnp.asarray(np.random.default_rng(3).integers(0, 11, (2, 7)))

    def scores(x, head, bias):
        return chunked_scores(x, head, targets, tied=False, bias=bias, smoothing=0.1)

    same(scores, x, head, bias, kind=kind)


def test_a_loss_that_is_no_number_stays_none():
    bad = jnp.full((1, 2, 4), jnp.nan)
    loss = as_on("tpu", lambda x: chunked_scores(x, jnp.ones((5, 4)), jnp.ones((1, 2), int))[0])
    assert jnp.isnan(jax.jit(loss)(bad))


@pytest.mark.slow
@our_writers
def test_a_models_loss(arch):
    package = jaxmodels.arch(arch)
    model = jaxmodels.create(f"{arch}:tiny", seed=0)
    graphdef, params, rest = split(model)
    tokens = np.random.default_rng(0).integers(0, 64, (2, model.config.context + 1))
    batch = {"tokens": jnp.asarray(tokens, jnp.int32)}

    def loss(params):
        return package.loss(graphdef.merge(params, rest), batch, None)[0]

    same(loss, params, rtol=2e-3, atol=2e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("arch", ["dinov2", "wigip"])
def test_rows_that_fill_tiles_change_nothing(arch):
    """26 tokens of an image, and 25 patches of a text, are computed as 32."""
    package = jaxmodels.arch(arch)
    config = package.PRESETS["tiny"]
    if arch == "wigip":
        config = replace(config, side=20)
    graphdef, params, state = split(package.Model(config, rngs=keys(default=0)))
    params = {path: value.astype(jnp.float64) for path, value in params.items()}
    inputs = drawn(2, 70, 70, 3) if arch == "dinov2" else jnp.arange(800).reshape(2, 400) % 64
    lengths = []

    def seen(*args, **kwargs):
        lengths.append(args[0].shape[1])
        return self_attention(*args, **kwargs)

    def features(params):
        return jnp.asarray(graphdef.merge(params, state)(inputs)[0])

    module = importlib.import_module(f"jaxmodels.{arch}.model")
    with mock.patch.object(module, "self_attention", seen):
        same(features, params, rtol=1e-9, atol=1e-9)
    assert set(lengths) == ({26, 32} if arch == "dinov2" else {25, 32})
