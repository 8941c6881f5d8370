"""Linear layers and norms against flax's own: values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxmodels.layers.linear import Linear, product
from jaxmodels.layers.norm import layer_norm


def filled(module, dtype=np.float64):
    """The module with random parameters."""
    rng = np.random.default_rng(0)
    state = nnx.state(module)
    nnx.update(module, jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape), dtype), state))
    return module


def results(module, call, *inputs):
    """Values, and gradients of a weighted sum of them by parameters and inputs."""
    graph, state = nnx.split(module)

    def outputs(state, *inputs):
        return call(nnx.merge(graph, state), *inputs)

    out, back = jax.vjp(outputs, state, *inputs)
    weights = np.random.default_rng(1).normal(size=out.shape).astype(out.dtype)
    return jax.tree.leaves((out, back(jnp.asarray(weights))))


@pytest.fixture
def double():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("sizes", [(3, 5), (5, 3), (4, 4)])
@pytest.mark.parametrize("rows", [(7,), (2, 3), (1,)])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.usefixtures("double")
def test_linear_is_flaxs(sizes, rows, bias):
    x = jnp.asarray(np.random.default_rng(2).normal(size=(*rows, sizes[0])))
    mine, flaxs = (
        filled(kind(*sizes, use_bias=bias, rngs=nnx.Rngs(0))) for kind in (Linear, nnx.Linear)
    )
    found, expected = (results(m, lambda m, x: m(x), x) for m in (mine, flaxs))
    for one, two in zip(found, expected, strict=True):
        assert one.dtype == two.dtype == np.float64
        np.testing.assert_allclose(one, two, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("preferred", [None, jnp.float32])
def test_half_precision_keeps_its_dtypes(preferred):
    x = jnp.ones((3, 4), jnp.bfloat16)
    mine, flaxs = (
        filled(kind(4, 6, preferred_element_type=preferred, rngs=nnx.Rngs(0)), jnp.bfloat16)
        for kind in (Linear, nnx.Linear)
    )
    found, expected = (results(m, lambda m, x: m(x), x) for m in (mine, flaxs))
    assert [a.dtype for a in found] == [a.dtype for a in expected]
    for one, two in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.astype(np.float32), two.astype(np.float32), rtol=2e-2)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    [
        lambda: nnx.LayerNorm(6, rngs=nnx.Rngs(0)),
        lambda: nnx.LayerNorm(6, use_bias=False, rngs=nnx.Rngs(0)),
        lambda: nnx.LayerNorm(6, epsilon=1e-5, use_fast_variance=False, rngs=nnx.Rngs(0)),
        lambda: nnx.RMSNorm(6, rngs=nnx.Rngs(0)),
    ],
)
@pytest.mark.usefixtures("double")
def test_layer_norm_is_flaxs(kind):
    x = jnp.asarray(np.random.default_rng(2).normal(size=(2, 5, 6)) + 3)
    module = filled(kind())
    found, expected = (results(module, f, x) for f in (layer_norm, lambda m, x: m(x)))
    for one, two in zip(found, expected, strict=True):
        assert one.dtype == two.dtype == np.float64
        np.testing.assert_allclose(one, two, rtol=1e-10, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(64, 256), (256, 64)])
def test_nothing_as_large_as_the_larger_side_is_turned_round(sizes):
    """XLA would write a transposed copy of what the kernel's gradient is computed from."""
    x, g = (jax.ShapeDtypeStruct((2, 256, size), np.float32) for size in sizes)
    kernel = jax.ShapeDtypeStruct(sizes, np.float32)

    def gradient(x, kernel, g):
        return jax.vjp(product, x, kernel)[1](g)[1]

    compiled = jax.jit(gradient).lower(x, kernel, g).compile().as_text()
    assert "f32[256,512]" not in compiled
