"""What every architecture promises when it is trained: gradients, remat, meshes, precision."""

import json
from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxmodels
from jaxmodels.runtime.paths import split
from jaxmodels.runtime.step import init
from tests.children import printed, simulated
from tests.contract import (
    DEAD,
    EXACT,
    archs,
    batch_for,
    exact,
    learner,
    products,
    small,
    smallest,
)


@cache
def _gradients(arch: str, policy: str = "none"):
    """The loss and its gradients as trained, by the remat policy.

    In float64: in float32 another order of sums flips 8-bit roundings of a bitgen's activations.
    """
    package, config = learner(arch), smallest(arch)
    with jax.enable_x64(True):
        model = package.Model(config, rngs=nnx.Rngs(0))
        model.remat = policy
        skeleton, params, rest = split(exact(model))
        batch = batch_for(arch, batch=8, length=30)

        @jax.jit
        @jax.value_and_grad
        def gradients(params):
            return package.loss(skeleton.merge(params, rest), batch, nnx.Rngs(dropout=1))[0]

        return jax.tree.map(np.asarray, gradients(params))


@pytest.mark.slow
@archs
def test_every_parameter_gets_a_gradient(arch):
    _, grads = _gradients(arch)
    dead = {path for path, grad in grads.items() if not np.abs(grad).max() > 0}
    assert dead == DEAD.get(arch, set())


@pytest.mark.slow
@archs
@pytest.mark.parametrize("policy", ["full", "dots"])
def test_remat_changes_nothing(arch, policy):
    (loss, grads), (loss_again, grads_again) = _gradients(arch), _gradients(arch, policy)
    np.testing.assert_allclose(loss, loss_again, rtol=1e-6)
    for path, grad in grads.items():
        most = max(1.0, np.abs(grad).max())
        np.testing.assert_allclose(grad / most, grads_again[path] / most, atol=1e-6)


@pytest.mark.slow
@archs
def test_a_state_is_born_sharded_as_the_layout_says(arch):
    import optax

    from jaxmodels.runtime.sharding import make_mesh

    package = learner(arch)
    recipe = package.RECIPES["tiny"]
    _, fresh, abstract = init(package, smallest(arch), recipe, optax.adamw(1e-3), make_mesh())
    state = fresh()
    same = jax.tree.map(
        lambda a, b: a.sharding == b.sharding and a.dtype == b.dtype, state, abstract
    )
    assert all(jax.tree.leaves(same))


# Some steps on meshes of simulated devices, printed as JSON.
STEPS = """
import json, sys
import numpy as np
import jax
from dataclasses import replace
from jaxmodels.runtime.optim import optimiser, schedule
from jaxmodels.runtime.sharding import make_mesh, put_batch
from jaxmodels.runtime.step import init, train_step
from tests.contract import PAIRS, batch_for, in_float64, learner, smallest

(arch, _, objective), losses, begun = sys.argv[1].partition(" "), {}, None
package = learner(arch)
config = smallest(arch)
if objective:
    config = replace(config, objective=objective)
if hasattr(config, "dropout"):
    config = replace(config, dropout=0.1)
for mesh_spec in sys.argv[2:]:
    recipe = replace(package.RECIPES["tiny"], mesh=mesh_spec, accum=2, batch=16)
    rate = schedule(recipe.optim, recipe.steps)
    tx = optimiser(recipe.optim, rate)
    mesh = make_mesh(mesh_spec)
    skeleton, fresh, abstract = init(package, config, recipe, tx, mesh)
    begun = begun or jax.tree.map(np.asarray, fresh())
    state = jax.tree.map(lambda x, a: jax.device_put(x.copy(), a.sharding), begun, abstract)
    if jax.config.jax_enable_x64:
        recipe, state, abstract = in_float64(recipe, state)
    step = train_step(package, skeleton, tx, rate, recipe, abstract)
    losses[mesh_spec] = []
    for number in range(3 if arch in PAIRS else 10):
        batch = jax.tree.map(np.asarray, batch_for(arch, 16, 33, seed=number))
        state, told = step(state, put_batch(batch, mesh))
        losses[mesh_spec].append(told.read()["loss"])
    assert step._cache_size() == 1, "a state of another type or place than a fresh one's"
    split = sum(len(set(map(str, p.sharding.devices_indices_map(p.shape).values()))) > 1
                for p in state.params.values())
    losses[mesh_spec + " split"] = split
print(json.dumps(losses))
"""


@cache
def _steps(case: str, devices: int, *meshes: str, **env: str) -> dict[str, list[float]]:
    """Mesh → losses, of an architecture or, as "wigip dense", of it with another objective."""
    return json.loads(printed(STEPS, case, *meshes, env=simulated(devices, **env)))


# Both tests of an architecture run in one worker, which keeps what one device gave.
def _by_worker(*cases: str):
    return [pytest.param(case, marks=pytest.mark.xdist_group(f"steps {case}")) for case in cases]


@pytest.mark.slow
@pytest.mark.parametrize("case", _by_worker(*jaxmodels.ARCHS, "wigip dense"))
def test_sharded_training_equals_one_device(case):
    # Another order of sums flips 8-bit roundings of a bitgen's activations in float32.
    env = {"JAX_ENABLE_X64": "1", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"} if case == "bitgen" else {}
    one = _steps(case, 1, "data=1", **env)["data=1"]
    meshes = [f"data={data},model={8 // data}" for data in (8, 4, 2, 1)]
    eight = _steps(case, 8, *meshes, **env)
    for mesh in meshes:
        assert eight[mesh + " split"] > 0
        np.testing.assert_allclose(eight[mesh], one, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("arch", _by_worker(*jaxmodels.ARCHS))
def test_tree_mode_of_nnx_equals_graph_mode(arch):
    graph = _steps(arch, 1, "data=1")["data=1"]
    tree = _steps(arch, 1, "data=1", NNX_GRAPH_MODE="false")["data=1"]
    np.testing.assert_array_equal(tree, graph)


@archs
def test_every_product_of_a_bfloat16_step_is_in_bfloat16(arch):
    package = learner(arch)
    skeleton, params, rest = split(small(arch))
    cast = {path: leaf.astype(jnp.bfloat16) for path, leaf in params.items()}
    batch = batch_for(arch)

    def loss(params):
        return package.loss(skeleton.merge(params, rest), batch, nnx.Rngs(dropout=0))[0]

    assert jax.eval_shape(loss, cast).dtype == jnp.float32
    found = products(jax.make_jaxpr(loss)(cast).jaxpr)
    forward = [{str(operand.aval.dtype) for operand in one.invars} for one in found]
    assert len(forward) > 4 * smallest(arch).layers
    assert sum(dtypes != {"bfloat16"} for dtypes in forward) == EXACT.get(arch, 0)


@pytest.mark.slow
@archs
def test_bfloat16_stays_near_float32(arch):
    from jaxmodels.runtime.optim import optimiser, schedule
    from jaxmodels.runtime.sharding import make_mesh
    from jaxmodels.runtime.step import train_step

    package, config = learner(arch), smallest(arch)
    recipe = package.RECIPES["tiny"]
    recipe = replace(recipe, optim=replace(recipe.optim, name="adamw"))
    rate = schedule(recipe.optim, recipe.steps)
    tx = optimiser(recipe.optim, rate)
    skeleton, fresh, abstract = init(package, config, recipe, tx, make_mesh())
    begun = jax.tree.map(np.asarray, fresh())
    batch = batch_for(arch, batch=16, length=33)
    losses, norms = [], []
    for dtype in ("float32", "bfloat16"):
        step = train_step(package, skeleton, tx, rate, replace(recipe, dtype=dtype), abstract)
        state = jax.device_put(jax.tree.map(np.copy, begun))
        for _ in range(5):
            state, told = step(state, batch)
        assert all(leaf.dtype == jnp.float32 for leaf in state.params.values())
        losses.append(told.read()["loss"])
        norms.append(told.read()["grad_norm"])
    assert losses[0] == pytest.approx(losses[1], rel=5e-3)
    # Logits of a fresh bwetaf are so small that its loss may be the same to the bit.
    assert norms[0] == pytest.approx(norms[1], rel=5e-2)
    assert norms[0] != norms[1]
