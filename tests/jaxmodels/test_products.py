"""Products of 16-bit numbers on a CPU: in the form that its instructions take, the same numbers."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.extend.core import jaxprs_in_params

from jaxmodels.layers.attention import attention, self_attention
from jaxmodels.layers.linear import Linear
from jaxmodels.layers.losses import chunked_cross_entropy
from jaxmodels.layers.products import einsum, product_over_rows


def drawn(*shape, seed=0, dtype=jnp.bfloat16):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def dots(jaxpr):
    """The products of a program, those of its inner programs too."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from dots(inner)


def check_forms(function, *args):
    """Every product of 16-bit numbers has a float32 result, and contracts the last axis of the
    first operand or is one that XLA rewrites: several axes, or batch axes that do not lead. None
    has a float32 operand."""
    found = list(dots(jax.make_jaxpr(jax.grad(function, tuple(range(len(args)))))(*args).jaxpr))
    narrow = [dot for dot in found if any(x.aval.dtype == jnp.bfloat16 for x in dot.invars)]
    assert narrow
    for dot in narrow:
        a, b = (x.aval for x in dot.invars)
        assert a.dtype == b.dtype
        assert dot.outvars[0].aval.dtype == jnp.float32
        (axes, _), (batch, _) = dot.params["dimension_numbers"]
        rewritten = len(axes) > 1 or batch != tuple(range(len(batch)))
        assert rewritten or axes == (a.ndim - 1,)


@pytest.mark.parametrize(("inward", "outward"), [(6, 10), (10, 6)])
def test_a_linear_layer(inward, outward):
    linear = Linear(inward, outward, rngs=nnx.Rngs(0))
    graph, state = nnx.split(linear)
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), state)
    check_forms(lambda s, x: nnx.merge(graph, s)(x).sum(), half, drawn(2, 3, inward))


@pytest.mark.parametrize("form", [attention, self_attention])
def test_attention(form):
    args = {"mask": jnp.ones((4, 4), bool)} if form is attention else {}
    q, k, v = (drawn(2, 4, 3, 8, seed=n) for n in range(3))
    check_forms(lambda *a: form(*a, **args).astype(jnp.float32).sum(), q, k, v)


@pytest.mark.parametrize("tied", [True, False])
def test_the_loss(tied):
    head, targets = drawn(*((11, 8) if tied else (8, 11)), seed=1), jnp.zeros((2, 4), int)
    check_forms(partial(chunked_cross_entropy, targets=targets, tied=tied), drawn(2, 4, 8), head)


@pytest.mark.parametrize("n", [1, 6, 7])
def test_the_numbers_are_those_of_numpy(n):
    a, b = drawn(3, n, 5), drawn(3, n, 4, seed=1)
    wide = [np.asarray(x, np.float64) for x in (a, b)]
    found = jax.jit(product_over_rows)(a, b)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, np.einsum("bni,bno->io", *wide), atol=1e-5)
    found, back = jax.vjp(partial(einsum, "bni,bno->bio"), a, b)
    np.testing.assert_allclose(found, np.einsum("bni,bno->bio", *wide), atol=1e-5)
    g = drawn(3, 5, 4, seed=2)
    exact = np.asarray(g, np.float64)
    expected = np.einsum("bio,bno->bni", exact, wide[1]), np.einsum("bio,bni->bno", exact, wide[0])
    for of_one, expected_of_one in zip(back(g.astype(jnp.float32)), expected, strict=True):
        assert of_one.dtype == jnp.bfloat16
        wider = of_one.astype(jnp.float32)
        np.testing.assert_allclose(wider, expected_of_one, rtol=1e-2, atol=0.05)
