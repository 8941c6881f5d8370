"""Kernels with adapters: what layers compute is what the summed kernels give, and takes less."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxmodels
from jaxmodels.bitgen.bitlinear import BitLinear
from jaxmodels.layers import heads
from jaxmodels.layers.linear import Linear, LinearGeneral
from jaxmodels.layers.low_rank import LowRank, with_adapters, without_adapters
from jaxmodels.layers.rotary import rotation
from jaxmodels.recipe import Recipe
from jaxmodels.runtime.sharding import make_mesh
from jaxmodels.runtime.step import training
from tests.contract import smallest
from tests.jaxmodels.test_forms import as_on, double, drawn, filled

__all__ = ["double"]


def rope():
    return rotation(jnp.arange(5), 4)


LAYERS = {
    "linear": (lambda r: Linear(8, 24, rngs=r), lambda layer, x: layer(x)),
    "to heads": (lambda r: LinearGeneral(8, (2, 4), rngs=r), lambda layer, x: layer(x)),
    "from heads": (
        lambda r: LinearGeneral((2, 4), 8, axis=(-2, -1), rngs=r),
        lambda layer, x: layer(x.reshape(3, 5, 2, 4)),
    ),
    "parts": (lambda r: Linear(8, 24, rngs=r), lambda layer, x: heads.fused_linear(layer, x, 2)),
    "turned": (
        lambda r: Linear(8, 8, rngs=r),
        lambda layer, x: heads.heads_of(layer, x, 2, rope()),
    ),
    "three": (
        lambda r: Linear(8, 24, use_bias=False, rngs=r),
        lambda layer, x: heads.qkv_heads(layer, x, 2, rope()),
    ),
    "joined": (
        lambda r: Linear(8, 6, rngs=r),
        lambda layer, x: heads.join_heads(layer, x.reshape(3, 5, 2, 4)),
    ),
    "ternary": (lambda r: BitLinear(8, 6, rngs=r), lambda layer, x: layer(x)),
}


# Layers that have another form on TPUs, and there one for narrow heads and one for wide.
FORMS = [
    *((name, "cpu", False) for name in LAYERS),
    *(("parts turned three joined".split()[i // 2], "tpu", bool(i % 2)) for i in range(1, 8)),
]


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(("name", "kind", "wide"), FORMS)
def test_a_layer_computes_as_with_the_sum_of_kernel_and_adapter(name, kind, wide, monkeypatch):
    """And so do the gradients of the rows and of both sides of the adapter."""
    monkeypatch.setattr(heads, "NARROW", 1 if wide else 64)
    made, call = LAYERS[name]
    layer = made(nnx.Rngs(0))
    graph, state = filled(layer)
    a, b = drawn(8, 2, seed=1), drawn(2, layer.kernel[...].size // 8, seed=2)

    def apart(a, b, x):
        return call(with_adapters(nnx.merge(graph, state), {"kernel": (a, b)}), x)

    def summed(a, b, x):
        layer = nnx.merge(graph, state)
        kernel = layer.kernel[...]
        layer.kernel = nnx.Param(kernel + (a @ b).reshape(kernel.shape))
        return call(layer, x)

    def results(function):
        out, back = jax.vjp(function, a, b, drawn(3, 5, 8))
        return out, back(jax.tree.map(lambda y: jnp.cos(jnp.arange(y.size)).reshape(y.shape), out))

    found = partial(results, apart)
    found = jax.jit(found if kind == "cpu" else as_on(kind, found))()
    near = 1e-5 if name in ("turned", "three") else 1e-9  # turned in float32
    wanted = jax.jit(partial(results, summed))()
    for one, two in zip(*map(jax.tree.leaves, (found, wanted)), strict=True):
        np.testing.assert_allclose(one, two, rtol=near, atol=near * np.abs(two).max())


@pytest.mark.slow
def test_a_step_makes_no_gradient_as_large_as_the_frozen_kernels():
    """Of stacked blocks; four times as wide, so that kernels are larger than all else."""
    config, temporary = replace(smallest("wigip"), dim=256), {}
    for lora in ("rank=2", ""):
        recipe = Recipe(batch=1, accum=1, dtype="float32", lora=lora, slices=1)
        made = training(jaxmodels.arch("wigip"), config, recipe, make_mesh(""))
        batch = {"tokens": jax.ShapeDtypeStruct((1, config.context + 1), "int32")}
        compiled = made.step.lower(made.abstract, batch).compile()
        temporary[lora] = compiled.memory_analysis().temp_size_in_bytes
    kernels = [x for path, x in made.abstract.params.items() if path.endswith("kernel")]
    assert temporary[""] - temporary["rank=2"] > 0.75 * sum(4 * x.size for x in kernels)


def test_the_backward_pass_of_a_layer_takes_less_memory_than_its_kernel():
    def loss(a, b, kernel, x):
        layer = nnx.merge(graph, nnx.State({"kernel": nnx.Param(kernel)}))
        return (with_adapters(layer, {"kernel": (a, b)})(x) ** 2).sum()

    graph, _ = nnx.split(Linear(256, 256, use_bias=False, rngs=nnx.Rngs(0)))
    shapes = [(256, 2), (2, 256), (256, 256), (1, 256)]
    given = [jax.ShapeDtypeStruct(shape, "float32") for shape in shapes]
    compiled = jax.jit(jax.grad(loss, (0, 1))).lower(*given).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 256 * 256


def test_the_sum_in_the_place_of_adapters():
    """What a slow copy of the model is made from."""
    layer = Linear(4, 4, rngs=nnx.Rngs(0))
    kernel = layer.kernel[...]
    with_adapters(layer, {"kernel": (jnp.ones((4, 1)), jnp.ones((1, 4)))})
    assert layer.kernel.shape == kernel.shape
    assert not isinstance(without_adapters(layer).kernel, LowRank)
    np.testing.assert_array_equal(without_adapters(layer).kernel[...], kernel + 1)
    np.testing.assert_array_equal(layer.kernel[1], kernel[1] + 1)
