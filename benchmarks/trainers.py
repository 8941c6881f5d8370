"""The contestants of `benchmarks.step`: our step, the PyTorch twin's, a seed's own."""

from importlib import import_module
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jaxmodels
from benchmarks.batches import BATCHES, shapes, targets, values
from benchmarks.harness import Call
from benchmarks.peers import seed_bwetaf, twin_with
from bridge.core import table
from bridge.core.state import state_shapes
from jaxmodels import sizes
from jaxmodels.errors import USAGE, Problem
from jaxmodels.recipe import Optim, Recipe
from jaxmodels.runtime.optim import schedule
from jaxmodels.runtime.paths import Arrays, pattern
from jaxmodels.runtime.platform import choose_thread, computes_inline
from jaxmodels.runtime.sharding import make_mesh, put_batch
from jaxmodels.runtime.step import training


def jax_step(arch: str, config: Any, recipe: Recipe) -> Call:
    """Our step, as the training loop calls it; returns its loss."""
    parameters = sizes.parameters(arch, config)
    choose_thread(parameters)  # has an effect in an isolated process
    mesh = make_mesh(recipe.mesh)
    _, fresh, _, step = training(jaxmodels.arch(arch), config, recipe, mesh)
    state, inputs = fresh(), values(shapes(arch, config, recipe), config)

    wait = computes_inline(parameters)

    def call(index: int) -> float:
        nonlocal state
        state, metrics = step(state, put_batch(inputs[index % BATCHES], mesh, wait=wait))
        return metrics.read()["loss"]

    return call


def fresh_arrays(arch: str, config: Any, recipe: Recipe) -> Arrays:
    """The initial state of our step that the twin has too: path → array."""
    state = training(jaxmodels.arch(arch), config, recipe, make_mesh(recipe.mesh)).fresh()
    return state.params | {path: state.model_state[path] for path in state_shapes(arch, config)}


def seed_step(package: Path, config: Any, recipe: Recipe) -> Call:
    """The step of bwetaf's own package; returns the loss, of one position fewer in each row."""
    params = fresh_arrays("bwetaf", config, recipe)
    inputs = values(shapes("bwetaf", config, recipe), config)
    return seed_bwetaf(package, config, recipe, params, [batch["tokens"] for batch in inputs])


def torch_step(
    arch: str, config: Any, recipe: Recipe, slices: int, compiled: bool, device: str
) -> Call:
    """The twin's step, under autocast if the recipe computes in bfloat16; returns the loss.

    With slices, gradients are accumulated over that many parts of the batch.
    """
    import torch

    optim = recipe.optim
    module = twin_with(arch, config, fresh_arrays(arch, config, recipe), device).train()
    parameters = list(module.parameters())
    updaters = _torch_optimisers(arch, config, optim, module)
    rates = np.asarray(jax.vmap(schedule(optim, recipe.steps))(np.arange(recipe.steps)))
    made = values(shapes(arch, config, recipe), config)
    inputs = [
        {name: torch.tensor(array, device=device) for name, array in batch.items()}
        | {"tokens": torch.from_numpy(batch["tokens"]).long().to(device)}
        for batch in made
    ]
    objective, commit = _torch_objective(arch, config, made[0]["tokens"].shape[1])

    def loss_of(batch: Any) -> Any:
        with torch.autocast(device, torch.bfloat16, enabled=recipe.dtype == "bfloat16"):
            return objective(module, batch)

    loss_function = torch.compile(loss_of, dynamic=False) if compiled else loss_of

    def call(index: int) -> float:
        module.zero_grad(set_to_none=True)
        total = torch.zeros((), device=device)
        batch = inputs[index % BATCHES]
        for part in zip(*(leaf.chunk(slices) for leaf in batch.values()), strict=True):
            loss, kept = loss_function(dict(zip(batch, part, strict=True)))
            (loss / slices).backward()
            total += loss.detach() / slices
            commit(module, kept)
        if optim.clip:
            torch.nn.utils.clip_grad_norm_(parameters, optim.clip)
        for updater in updaters:
            for group in updater.param_groups:
                group["lr"] = group["scale"] * float(rates[min(index, len(rates) - 1)])
            updater.step()
        return total.item()

    return call


def _torch_objective(arch: str, config: Any, length: int) -> tuple[Any, Any]:
    """PyTorch's objective: (module, batch) → the loss and the state to keep, which the second
    function stores in the module."""
    if arch.startswith("bitgen"):
        module = import_module(f"benchmarks.torch_{arch}")
        return module.loss, module.commit
    from torch.nn.functional import cross_entropy

    # Positions in a row, looked up once, so that the compiled loss is pure PyTorch.
    predicted = targets(arch, config, np.arange(length)[None])[0].tolist()
    first, end = predicted[0], predicted[-1] + 1

    def loss(module: Any, batch: Any) -> tuple[Any, None]:
        tokens = batch["tokens"]
        logits = module(tokens[:, :-1]).logits
        return cross_entropy(logits.flatten(0, -2).float(), tokens[:, first:end].flatten()), None

    return loss, lambda module, kept: None


def _torch_optimisers(arch: str, config: Any, optim: Optim, module: Any) -> list[Any]:
    """The same optimiser in PyTorch, in its fastest form; each group's `scale` multiplies its
    learning rate.

    Raises:
        Problem: (usage) PyTorch's optimiser of this name has another update rule.
    """
    import torch

    betas, parameters = (optim.b1, optim.b2), dict(module.named_parameters())
    if optim.name == "muon":
        kernels = [parameters.pop(name) for name in _kernels(arch, config, optim)]
        # PyTorch's scales to an rms of 0.2, and decays by the rate before that.
        scale = optim.muon_rms / 0.2
        group = {"params": kernels, "scale": scale, "weight_decay": optim.weight_decay / scale}
        muon = torch.optim.Muon([group], optim.peak_lr, adjust_lr_fn="match_rms_adamw")
    others = {"params": list(parameters.values()), "scale": 1.0}
    if optim.name in ("adamw", "muon"):
        adamw = torch.optim.AdamW(
            [others], optim.peak_lr, betas, optim.eps, optim.weight_decay, fused=True
        )
        return [adamw] if optim.name == "adamw" else [muon, adamw]
    if optim.name == "sgd" and not optim.weight_decay:
        return [torch.optim.SGD([others], optim.peak_lr, optim.momentum, fused=True)]
    raise Problem(
        f"PyTorch has no optimiser like {optim.name} here",
        fix="use a preset that trains with adamw or muon, or with sgd without weight decay",
        exit_code=USAGE,
    )


def _kernels(arch: str, config: Any, optim: Optim) -> list[str]:
    """The twin's names of the kernels that Muon updates here, except those that are not matrices
    there (weights of convolutions), which AdamW updates."""
    skipped = [pattern(text) for text in optim.muon_skip]
    flat = {path: leaf for path, leaf in sizes.shapes(arch, config).items() if leaf.ndim == 2}
    return [
        pair.theirs
        for pair in table.pairs(jaxmodels.arch(arch).WEIGHTS, flat)
        if pair.ours.endswith("/kernel") and not any(skip.fullmatch(pair.ours) for skip in skipped)
    ]
