"""What the bitgens are trained for, in PyTorch, is what they are trained for here: `bench step`
races two sides that do the same."""

from dataclasses import replace
from importlib import import_module

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import jaxmodels
from benchmarks import trainers
from benchmarks.batches import shapes, values
from benchmarks.peers import twin_with
from benchmarks.trainers import fresh_arrays
from bridge.core import table
from bridge.core.ops import OPS
from jaxmodels.recipe import Recipe
from jaxmodels.runtime.optim import optimiser
from jaxmodels.runtime.paths import split
from jaxmodels.sizes import outline
from tests.bridge.helpers import random_params
from tests.contract import DEAD, smallest

ROWS = 12  # some of each kind that the decoder is shown


def batches(arch, config):
    """Batches with padding, two rows of one image and two of the same words: more rows than the
    queues hold twice."""
    count = -(-2 * config.queue // ROWS) + 1
    made = values(shapes(arch, config, Recipe(batch=ROWS)), config, count)
    for batch in made:
        white = np.where(batch["images"] < 128, 0, 255)  # exact in any precision
        batch["images"] = white.astype(np.uint8)
        batch["mask"][3, 5:] = 0
        batch["image_id"][2] = batch["image_id"][1]
        batch["tokens"][5] = batch["tokens"][4]
    return made


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["bitgen", "bitgen_stage1"])
def test_losses_gradients_and_what_is_stored_agree(arch):
    """In float64, where no number lies between two that it could be rounded to."""
    package = jaxmodels.arch(arch)
    config = replace(smallest(arch), queue=2 * ROWS)
    graphdef, _, rest = split(outline(package, config))
    params = random_params(f"{arch}:smallest", 3)
    state = fresh_arrays(arch, config, package.RECIPES["tiny"])
    module = twin_with(arch, config, state | params).double().train()
    theirs = import_module(f"benchmarks.torch_{arch}")
    names = {pair.theirs: pair for pair in table.pairs(package.WEIGHTS, [*params])}
    with jax.enable_x64(True):
        params = {path: jnp.asarray(leaf, jnp.float64) for path, leaf in params.items()}
        rest = {
            path: jnp.asarray(state[path], jnp.float64 if leaf.dtype.kind == "f" else leaf.dtype)
            for path, leaf in rest.items()
        }

        @jax.jit
        def ours(params, rest, batch):
            def loss(params):
                # With dropout's stream stage 1 is trained; bitgen would draw negatives from it.
                rngs = nnx.Rngs(dropout=0) if arch == "bitgen_stage1" else None
                return package.loss(graphdef.merge(params, rest), batch, rngs)

            (value, aux), grads = jax.value_and_grad(loss, has_aux=True)(params)
            model = graphdef.merge(params, rest)
            package.commit(model, aux)
            return value, grads, split(model)[1:]

        for batch in batches(arch, config):
            given = {name: torch.from_numpy(array) for name, array in batch.items()}
            given["tokens"] = given["tokens"].long()
            module.zero_grad()
            loss, kept = theirs.loss(module, given, draws=False)
            loss.backward()
            theirs.commit(module, kept)
            if arch == "bitgen_stage1":
                batch["noise"] = np.zeros((config.slots, config.dim))
            value, grads, (params, rest) = ours(params, rest, batch)
            assert loss.item() == pytest.approx(float(value), rel=1e-7)
            silent = DEAD.get(arch, set())
            for name, parameter in module.named_parameters():
                pair = names[name]
                mine = grads[pair.ours]
                if parameter.grad is None:
                    assert pair.ours in silent, name
                    assert not mine.any()
                    continue
                found = OPS[pair.op].inverse(parameter.grad.numpy()).reshape(mine.shape)
                most = max(1.0, float(np.abs(mine).max()))
                assert np.abs(found - mine).max() / most <= 1e-6, name
            held = dict(module.named_buffers()) | dict(module.named_parameters())
            for pair in table.pairs(package.WEIGHTS, [*params, *rest]):
                mine = (params | rest)[pair.ours]
                found = OPS[pair.op].inverse(held[pair.theirs].detach().numpy())
                found = found.reshape(mine.shape)
                np.testing.assert_allclose(found, mine, atol=1e-6, err_msg=pair.ours)


@pytest.mark.slow
def test_muon_moves_the_same_kernels_as_far():
    """PyTorch's Muon orthogonalises in bfloat16, and moves no convolution; all else is Adam's."""
    package = jaxmodels.arch("bitgen")
    config, recipe = package.PRESETS["tiny"], package.RECIPES["tiny"]
    optim = replace(recipe.optim, clip=0.0, lr_scale=(), weight_decay=0.0)
    params = random_params("bitgen:tiny", 0)
    grads = random_params("bitgen:tiny", 1)
    module = twin_with("bitgen", config, fresh_arrays("bitgen", config, recipe) | params)
    pairs = {pair.theirs: pair for pair in table.pairs(package.WEIGHTS, params)}
    before = {}
    for name, parameter in module.named_parameters():
        exported = np.asarray(OPS[pairs[name].op].forward(np.asarray(grads[pairs[name].ours])))
        parameter.grad = torch.from_numpy(exported.reshape(parameter.shape).copy())
        before[name] = parameter.detach().clone()
    for updater in trainers._torch_optimisers("bitgen", config, optim, module):
        for group in updater.param_groups:
            group["lr"] = group["scale"] * 1e-2
        updater.step()
    tx = optimiser(optim, 1e-2)
    updates, _ = tx.update(grads, tx.init(params), params)
    orthogonal = set(trainers._kernels("bitgen", config, optim))
    assert len(orthogonal) > 40
    assert "match.weight" not in orthogonal
    for name, parameter in module.named_parameters():
        pair = pairs[name]
        moved = OPS[pair.op].inverse((parameter.detach() - before[name]).numpy())
        mine = np.asarray(updates[pair.ours])
        if name == "vision.patch.weight":
            continue
        error = np.linalg.norm(moved.reshape(mine.shape) - mine) / np.linalg.norm(mine)
        assert error <= (0.03 if name in orthogonal else 1e-3), name
