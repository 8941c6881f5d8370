"""The linears of BitNet: transformers' numbers, its packing, and what packing saves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.integrations import bitnet

from jaxmodels.bitgen import bitlinear


@pytest.fixture(autouse=True, scope="module")
def _plain_torch():
    """transformers compiles its functions; here they run as they are written."""
    with torch._dynamo.config.patch(disable=True):
        yield


def pair(inward: int, outward: int, seed: int = 0):
    """The same layer on both sides, with a norm that does something."""
    ours = bitlinear.BitLinear(inward, outward, rngs=nnx.Rngs(seed))
    scale = np.random.default_rng(seed).uniform(0.5, 1.5, inward).astype(np.float32)
    ours.norm.scale[...] = jnp.asarray(scale)
    theirs = bitnet.AutoBitLinear(inward, outward, False, online_quant=True, use_rms_norm=True)
    with torch.no_grad():
        theirs.weight.copy_(torch.tensor(np.asarray(ours.kernel[...]).T))
        theirs.rms_norm.weight.copy_(torch.tensor(scale))
    return ours, theirs


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(2, 5, 64), (3, 48)])
def test_forward_and_backward_are_those_of_transformers(shape):
    ours, theirs = pair(shape[-1], 40)
    x = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    by = np.random.default_rng(2).normal(size=(*shape[:-1], 40)).astype(np.float32)

    def value(module, x):
        return (module(x) * by).sum()

    of_module, of_x = nnx.grad(value, argnums=(0, 1))(ours, jnp.asarray(x))
    tensor = torch.tensor(x, requires_grad=True)
    out = theirs(tensor)
    (out * torch.tensor(by)).sum().backward()
    np.testing.assert_allclose(ours(jnp.asarray(x)), out.detach(), atol=1e-5)
    np.testing.assert_allclose(of_x, tensor.grad, atol=1e-5)
    np.testing.assert_allclose(of_module["kernel"][...].T, theirs.weight.grad, atol=1e-5)
    np.testing.assert_allclose(
        of_module["norm"]["scale"][...], theirs.rms_norm.weight.grad, atol=1e-4, rtol=1e-5
    )


def test_ties_and_nothing_at_all():
    signs, gamma = bitlinear.ternary(jnp.asarray([[1.0, -1.0], [3.0, 3.0]]))
    assert gamma == 2  # ±1 / 2 lies between 0 and ±1: to the even one
    np.testing.assert_array_equal(signs, [[0, 0], [1, 1]])
    signs, gamma = bitlinear.ternary(jnp.zeros((2, 2)))
    assert gamma == pytest.approx(1e-5)
    assert not signs.any()
    whole, step = bitlinear.levels(jnp.zeros((1, 3)))
    assert not whole.any()
    assert jnp.isfinite(step).all()


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(st.integers(1, 13), st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_packing_is_that_of_transformers(outward, inward, seed):
    signs = np.random.default_rng(seed).integers(-1, 2, (outward, inward), np.int8)
    packed = bitlinear.pack_rows(jnp.asarray(signs))
    np.testing.assert_array_equal(bitlinear.unpack_rows(packed, outward), signs)
    back = bitnet.unpack_weights(torch.tensor(np.asarray(packed)), torch.float32)
    np.testing.assert_array_equal(back[:outward], signs)
    if outward % 4 == 0:  # else transformers leaves out rows of its own packing
        theirs = bitnet.pack_weights(torch.tensor(signs))
        np.testing.assert_array_equal(packed, theirs)


class Two(nnx.Module):
    """Two layers, one of them in a list."""

    def __init__(self):
        self.first = bitlinear.BitLinear(64, 50, rngs=nnx.Rngs(0))
        self.rest = nnx.List([bitlinear.BitLinear(50, 128, rngs=nnx.Rngs(1))])

    def __call__(self, x):
        return self.rest[0](self.first(x))


@pytest.mark.slow
def test_a_packed_model_gives_the_same_and_holds_a_sixteenth():
    model = Two()
    packed = bitlinear.pack(model)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 7, 64)).astype(np.float32))
    np.testing.assert_allclose(packed(x), model(x), atol=1e-5)
    np.testing.assert_allclose(nnx.jit(lambda m, x: m(x))(packed, x), model(x), atol=1e-5)
    weights = 64 * 50 + 50 * 128
    assert bitlinear.ternary_size(model) == (4 * weights, weights)
    size, count = bitlinear.ternary_size(packed)
    assert count == weights
    assert size / count <= 0.27
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(nnx.state(packed)))
    assert held == size + 4 * (64 + 50)  # besides, the scales of the norms


@pytest.mark.slow
def test_the_export_runs_in_the_layer_of_transformers():
    model = Two()
    arrays = bitlinear.exported(model)
    layer = bitnet.BitLinear(50, 128, False, dtype=torch.float32, use_rms_norm=True)
    layer.load_state_dict(
        {
            name.removeprefix("rest.0."): torch.tensor(np.asarray(array))
            for name, array in arrays.items()
            if name.startswith("rest.0.")
        }
    )
    x = np.random.default_rng(0).normal(size=(3, 50)).astype(np.float32)
    with torch.no_grad():
        theirs = layer(torch.tensor(x))
    np.testing.assert_allclose(model.rest[0](jnp.asarray(x)), theirs, atol=1e-5)
