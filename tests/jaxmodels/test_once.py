"""`no_recompute` changes nothing but what XLA recomputes."""

import json
import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmodels
from jaxmodels.layers import no_recompute as module
from jaxmodels.layers.keys import keys
from jaxmodels.runtime.paths import split
from tests.children import printed, simulated

PACKAGE = jaxmodels.arch("dinov2")
IMAGES = np.random.default_rng(0).normal(size=(64, 56, 56, 3)).astype(np.float32)


def compiled():
    """The gradient of a tower of four blocks, and its parameters."""
    config = replace(PACKAGE.PRESETS["tiny"], layers=4)
    graphdef, params, rest = split(PACKAGE.Model(config, rngs=keys(default=0)))

    def loss(params, images):
        return jnp.square(graphdef.merge(params, rest)(images)).mean()

    return jax.jit(jax.value_and_grad(loss)).lower(params, IMAGES).compile(), params


def largest(program):
    """The most operands of a loop that XLA made of several."""
    found = re.findall(r" fusion\((.*?)\), kind=kLoop", program.as_text())
    return max(operands.count("%") for operands in found)


@pytest.mark.slow
def test_gradients_are_computed_once_and_the_same(monkeypatch):
    ours, params = compiled()
    monkeypatch.setattr(module, "_FEW", 2**30)
    plain, _ = compiled()
    # What it is for: else the first block's gradient is computed from those of all behind.
    assert largest(plain) > 40 > 15 > largest(ours)
    pairs = zip(*map(jax.tree.leaves, (f(params, IMAGES) for f in (ours, plain))), strict=True)
    for one, other in pairs:
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


MESH = """
import json, sys
import jax, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec as P
from jaxmodels.layers.no_recompute import no_recompute
from jaxmodels.layers.sharding import constrain
from jaxmodels.runtime.sharding import with_mesh, make_mesh
mesh = make_mesh(sys.argv[1])
kernel = jax.random.normal(jax.random.key(1), (64, 64)) / 8
def loss(x):
    for _ in range(3):
        x = no_recompute(constrain(x + jnp.tanh(x @ kernel), "data", ..., "model"))
    return jnp.square(x).mean()
x = jax.random.normal(jax.random.key(0), (8, 64, 64))
spec = P("data", None, "model")
step = jax.jit(with_mesh(mesh, jax.value_and_grad(loss)))
value, grad = step(jax.device_put(x, NamedSharding(mesh, spec)))
alone = jax.value_and_grad(loss)(x)
print(json.dumps([
    float(abs(value - alone[0])), float(abs(grad - alone[1]).max()),
    grad.sharding.is_equivalent_to(NamedSharding(mesh, spec), 3),
    step.lower(x).as_text().count("inlineable"),
]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("spec", ["data=4", "data=2,model=2"])
def test_on_a_mesh_it_stays_where_it_lies(spec):
    value, grad, stays, calls = json.loads(printed(MESH, spec, env=simulated(4)))
    assert value <= 1e-6
    assert grad <= 1e-7
    assert stays
    assert calls >= 6
