"""Who trains in `benchmarks.step`: our step, the PyTorch twin's, a seed's own."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

import jaxmodels
from benchmarks.batches import BATCHES, shapes, targets, values
from benchmarks.harness import Call
from benchmarks.peers import seed_bwetaf, twin_with
from jaxmodels import sizes
from jaxmodels.errors import USAGE, Problem
from jaxmodels.recipe import Optim, Recipe
from jaxmodels.runtime.optim import schedule
from jaxmodels.runtime.paths import Arrays
from jaxmodels.runtime.platform import choose_thread
from jaxmodels.runtime.sharding import make_mesh, put_batch
from jaxmodels.runtime.step import training


def jax_step(arch: str, config: Any, recipe: Recipe) -> Call:
    """Our step, as the training loop calls it; returns the loss of the step."""
    choose_thread(sizes.parameters(arch, config))  # which counts in a process of its own
    mesh = make_mesh(recipe.mesh)
    _, fresh, _, step = training(jaxmodels.arch(arch), config, recipe, mesh)
    state, inputs = fresh(), values(shapes(arch, config, recipe), config)

    def call(index: int) -> float:
        nonlocal state
        state, told = step(state, put_batch(inputs[index % BATCHES], mesh))
        return told.read()["loss"]

    return call


def fresh_parameters(arch: str, config: Any, recipe: Recipe) -> Arrays:
    """Those that our step begins with: path → array."""
    return training(jaxmodels.arch(arch), config, recipe, make_mesh(recipe.mesh)).fresh().params


def seed_step(package: Path, config: Any, recipe: Recipe) -> Call:
    """The step of bwetaf's own package; returns the loss, of one position less in each row."""
    params = fresh_parameters("bwetaf", config, recipe)
    inputs = values(shapes("bwetaf", config, recipe), config)
    return seed_bwetaf(package, config, recipe, params, [batch["tokens"] for batch in inputs])


def torch_step(
    arch: str, config: Any, recipe: Recipe, slices: int, compiled: bool, device: str
) -> Call:
    """The twin's step, under autocast where the recipe computes in bfloat16; returns the loss.

    With slices, gradients add up over that many parts of the batch, one after the other.
    """
    import torch
    from torch.nn.functional import cross_entropy

    optim = recipe.optim
    module = twin_with(arch, config, fresh_parameters(arch, config, recipe), device).train()
    parameters = list(module.parameters())
    updater = _torch_optimiser(optim, parameters)
    rates = np.asarray(jax.vmap(schedule(optim, recipe.steps))(np.arange(recipe.steps)))
    made = values(shapes(arch, config, recipe), config)
    inputs = [torch.from_numpy(batch["tokens"]).long().to(device) for batch in made]

    def loss_of(tokens: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=recipe.dtype == "bfloat16"):
            logits = module(tokens[:, :-1]).logits
        return cross_entropy(logits.flatten(0, -2).float(), tokens[:, wanted].flatten())

    # Their places in a row, looked up once: the compiled loss is PyTorch's alone.
    wanted = targets(arch, config, np.arange(made[0]["tokens"].shape[1])[None])[0].tolist()
    wanted = slice(wanted[0], wanted[-1] + 1)
    loss_function = torch.compile(loss_of, dynamic=False) if compiled else loss_of

    def call(index: int) -> float:
        updater.zero_grad(set_to_none=True)
        total = torch.zeros((), device=device)
        for part in inputs[index % BATCHES].chunk(slices):
            loss = loss_function(part) / slices
            loss.backward()
            total += loss.detach()
        if optim.clip:
            torch.nn.utils.clip_grad_norm_(parameters, optim.clip)
        updater.param_groups[0]["lr"] = float(rates[min(index, len(rates) - 1)])
        updater.step()
        return total.item()

    return call


def _torch_optimiser(optim: Optim, parameters: list[Any]) -> Any:
    """The same rule in PyTorch, in its fastest form.

    Raises:
        Problem: (usage) PyTorch's rule of this name is another one.
    """
    import torch

    if optim.name == "adamw":
        betas = (optim.b1, optim.b2)
        return torch.optim.AdamW(
            parameters, optim.peak_lr, betas, optim.eps, optim.weight_decay, fused=True
        )
    if optim.name == "sgd" and not optim.weight_decay:
        return torch.optim.SGD(parameters, optim.peak_lr, optim.momentum, fused=True)
    raise Problem(
        f"PyTorch has no optimiser that does what {optim.name} does here",
        fix="measure a preset that trains with adamw, or with sgd without weight decay",
        exit_code=USAGE,
    )
