"""Sharding on a mesh: parameters, optimiser, and the traffic of a step."""

import json
from math import prod

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P

import jaxmodels
from jaxmodels.errors import USAGE, Problem
from jaxmodels.layers.sharding import constrain
from jaxmodels.runtime.optim import optimiser, schedule
from jaxmodels.runtime.sharding import AXES, check_heads, param_shardings
from jaxmodels.runtime.step import init
from tests.children import printed, simulated
from tests.contract import learner, our_writers, ours


def described(data: int, model: int) -> AbstractMesh:
    """A mesh of devices that need not exist."""
    return AbstractMesh((data, model), AXES, axis_types=(AxisType.Auto,) * 2)


def largest(package) -> str:
    return max(package.PRESETS, key=lambda name: package.PRESETS[name].layers)


def held(leaf) -> int:
    """Elements on one device."""
    return prod(leaf.sharding.shard_shape(leaf.shape))


@pytest.mark.slow
@ours
@pytest.mark.parametrize(("data", "model"), [(8, 1), (4, 2)])
def test_a_device_holds_its_share_of_the_largest_preset(arch, data, model):
    package = learner(arch)
    preset = largest(package)
    recipe = package.RECIPES.get(preset, package.RECIPES["tiny"])  # a tower has that one only
    tx = optimiser(recipe.optim, schedule(recipe.optim, recipe.steps))
    _, _, state = init(package, package.PRESETS[preset], recipe, tx, described(data, model))
    leaves = jax.tree.leaves((state.params, state.opt))
    whole = sum(leaf.dtype.itemsize * leaf.size for leaf in leaves)
    own = sum(leaf.dtype.itemsize * held(leaf) for leaf in leaves)
    assert own == pytest.approx(whole / 8, rel=0.05)
    for path, leaf in state.params.items():
        if leaf.size > 1e7:  # nothing big is on several devices
            assert held(leaf) * 8 == leaf.size, path


@pytest.mark.parametrize(
    ("shape", "spec"),
    [
        ((64, 32), P("model", "data")),
        ((63, 32), P(None, ("data", "model"))),  # the axis goes where it divides
        ((64, 3), P(("model", "data"), None)),
        ((63, 4), P(None, "data")),  # or nowhere
        ((63, 3), P(None, None)),
    ],
)
def test_an_axis_that_does_not_divide(shape, spec):
    leaf = jax.ShapeDtypeStruct(shape, np.float32)
    placed = param_shardings(described(4, 2), (("x", P("model", "data")),), {"x": leaf})
    assert placed["x"].spec == spec


@pytest.mark.parametrize("size", [1, 2, 3, 6])
def test_a_model_axis_that_divides_the_heads(size):
    check_heads(jaxmodels.arch("wikigpt").PRESETS["base"], size)


def test_a_model_axis_that_does_not_divide_the_heads_is_refused():
    with pytest.raises(Problem) as caught:
        check_heads(jaxmodels.arch("wikigpt").PRESETS["base"], 4)
    assert caught.value.exit_code == USAGE
    assert "1, 2, 3, 6" in str(caught.value.fix)


def test_without_a_mesh_nothing_is_spread():
    x = jnp.ones((2, 3))
    assert constrain(x, "data", ...) is x


# The step of a small model, compiled for eight simulated devices: what is gathered, and whether
# the new state lies where the old one does. Its activations are larger than its weights.
COMPILED = """
import io, json, re, sys
import numpy as np
import jax, jaxmodels
from contextlib import redirect_stderr
from dataclasses import replace
from jax.sharding import NamedSharding, PartitionSpec as P
from jaxmodels.__main__ import main
from jaxmodels.runtime.optim import optimiser, schedule
from jaxmodels.runtime.sharding import make_mesh
from jaxmodels.runtime.step import init, train_step

arch, result = sys.argv[1], {}
package = jaxmodels.arch(arch)
config = replace(package.PRESETS["tiny"], heads=4)
for spec in sys.argv[2:]:
    recipe = replace(package.RECIPES["tiny"], accum=1)
    rate = schedule(recipe.optim, recipe.steps)
    tx, mesh = optimiser(recipe.optim, rate), make_mesh(spec)
    skeleton, _, state = init(package, config, recipe, tx, mesh)
    length = config.context if arch == "wigip" else 32
    rows = NamedSharding(mesh, P("data"))
    batch = {"tokens": jax.ShapeDtypeStruct((1024, length + 1), np.int32, sharding=rows)}
    step = train_step(package, skeleton, tx, rate, recipe, state)
    compiled = step.lower(state, batch).compile()
    # All but the lookup of the embedding, once in a step: its rows come as they may.
    lines = [line for line in compiled.as_text().splitlines() if "/gather" not in line]
    sends = [found[1] for line in lines if (found := re.search(
        r"= \\(?f32\\[([\\d,]*)\\].* (all-gather|all-to-all|collective-permute)\\(", line))]
    result[spec] = {
        "sent": max(int(np.prod([int(n) for n in shape.split(",")])) for shape in sends),
        "largest": max(leaf.size for leaf in state.params.values()),
        "stays": jax.tree.all(jax.tree.map(
            lambda leaf, at: at.is_equivalent_to(leaf.sharding, leaf.ndim),
            state, compiled.output_shardings[0])),
    }
with redirect_stderr(io.StringIO()) as said:
    code = main(["train", f"{arch}:tiny", "--mesh", "model=8", "--out", "nowhere"])
result["refused"] = [code, said.getvalue()]
print(json.dumps(result))
"""


@pytest.mark.slow
@our_writers
def test_weights_are_fetched_and_activations_stay(arch):
    specs = ("data=8", "data=4,model=2")
    result = json.loads(printed(COMPILED, arch, *specs, env=simulated(8)))
    code, said = result.pop("refused")
    assert code == USAGE
    assert "heads cannot be split over 8 devices" in said
    for spec in specs:
        assert result[spec]["sent"] <= result[spec]["largest"], spec
        assert result[spec]["stays"], spec
