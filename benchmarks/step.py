"""The train step against the PyTorch twin: `python -m benchmarks.step`.

Ours is the very step of `jaxmodels train`. The twin is trained as a PyTorch user would: fused
AdamW, clipping by global norm, gradients set to None, eager and compiled, and also taking the
batch in the slices that ours takes on a CPU, to tell what slicing gains from what XLA gains.
For bwetaf, the seed's own package joins when its folder is given.
All start from the same weights, take the same batches with dropout on, and read the loss of
every step.
"""

import sys
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

import jaxmodels
from benchmarks import flops
from benchmarks.harness import RESULTS, Call, Contestant, Run, Timing, cores, race, save, table
from benchmarks.peers import seed_bwetaf, twin_with
from jaxmodels.cli import parse, say
from jaxmodels.recipe import Recipe
from jaxmodels.runtime.flops import Product, products
from jaxmodels.runtime.optim import optimiser, schedule
from jaxmodels.runtime.sharding import make_mesh, put_batch
from jaxmodels.runtime.step import State, fitting_slices, init, train_step

OURS = "jaxmodels"
BATCHES = 8  # different ones, taken in turn


@dataclass(frozen=True)
class Step:
    """Time the train step of a preset with its own recipe against the PyTorch twin.

    A step is of one micro-batch: accumulation would only repeat it.
    """

    preset: str = "charlm:notebook"
    """ARCH:PRESET."""
    batch: int | None = None
    """Sequences in a batch; the recipe's own, if not given."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Precision of the computation; the recipe's own, if not given."""
    seed_package: Path | None = None
    """Folder that holds the package BwETAF (seed 003), to time it too; for bwetaf."""
    rounds: int = 20
    """Steps of each contestant that count, after two that do not."""
    compile: bool = True
    """Also time the twin under torch.compile."""
    isolated: bool = False
    """Give each contestant a process of its own; also tells its peak memory."""
    out: Path = RESULTS
    """Folder whose step.jsonl the results are added to."""


def main(argv: list[str]) -> list[dict[str, Any]]:
    """Runs the suite, adds its records to the results and prints them as a table."""
    options = parse(Step, argv, "bench step")
    arch, _, config = jaxmodels.preset(options.preset)
    recipe = jaxmodels.learner(arch).RECIPES[options.preset.partition(":")[2]]
    recipe = replace(
        recipe, batch=options.batch or recipe.batch, accum=1, dtype=options.dtype or recipe.dtype
    )
    size = (recipe.batch, config.context + 1)
    slices = fitting_slices({"tokens": np.zeros(size, np.int32)}, make_mesh(recipe.mesh))
    run = Run("step", _settings(options, recipe, slices))
    forward = _forward(arch, config, recipe, size)
    biggest = max((p for p in forward if p.batch == 1), key=lambda product: product.flops)
    say(f"matrix products of {biggest.rows} × {biggest.inner} × {biggest.columns}")
    reference = race(flops.matmul(biggest), options.rounds, isolated=options.isolated)
    rate = max(biggest.flops / biggest.times / min(t.seconds) for t in reference)

    contestants = [Contestant(OURS, partial(jax_step, arch, config, recipe))]
    for compiled in (False, True)[: 1 + options.compile]:
        for count in (1, slices)[: 1 + (slices > 1)]:
            name = f"PyTorch {'compiled' if compiled else 'eager'}"
            name += f", {count} slices" if count > 1 else ""
            make = partial(torch_step, arch, config, recipe, count, compiled)
            contestants.append(Contestant(name, make))
    if options.seed_package is not None:
        make = partial(seed_step, options.seed_package, config, recipe)
        contestants.append(Contestant("BwETAF 0.5.1", make))
    say(f"steps of {size[0]} × {size[1] - 1} tokens: {', '.join(c.name for c in contestants)}")
    timings = race(contestants, options.rounds, isolated=options.isolated)

    work = 3 * sum(product.flops for product in forward)  # backward does each product twice

    def extra(timing: Timing) -> dict[str, Any]:
        seconds = float(np.median(timing.seconds))
        return {
            "first_loss": timing.value,
            "tokens_per_second": size[0] * (size[1] - 1) / seconds,
            "gflop_per_step": work / 1e9,
            "gflop_per_second": work / 1e9 / seconds,
            "matmul_gflop_per_second": rate / 1e9,
            "share_of_matmul_rate": work / seconds / rate,
        }

    records = run.records(options.preset, timings, extra)
    say(f"added to {save(records, options.out)}")
    _show(options, records, work, rate)
    return records


def _settings(options: Step, recipe: Recipe, slices: int) -> dict[str, Any]:
    return {
        "batch": recipe.batch,
        "dtype": recipe.dtype,
        "optim": asdict(recipe.optim),
        "our_slices": slices,
        "threads": cores(),
        "isolated": options.isolated,
        "warmup": 2,
        "inputs": BATCHES,
        "torch_optimiser": "AdamW(fused=True)",
    }


def _show(options: Step, records: list[dict[str, Any]], work: float, rate: float) -> None:
    print(
        f"\n### Train step of {options.preset}, {'isolated' if options.isolated else 'one'} process"
    )
    columns = {
        "first": "first ms",
        "tokens_per_second": "tokens/s",
        "gflop_per_second": "GFLOP/s",
        "peak_bytes": "peak bytes",
    }
    print(table(records, columns))
    print(f"\n{work / 1e9:.1f} GFLOP in matrix products a step; the largest of them alone runs at")
    print(f"{rate / 1e9:.0f} GFLOP/s; {cores()} threads each; load before: ", end="")
    print(records[0]["machine"]["load_before"])


def _forward(arch: str, config: Any, recipe: Recipe, size: tuple[int, int]) -> list[Product]:
    """The matrix products of the loss of one batch, counted without computing it."""
    skeleton, _, abstract = _init(arch, config, recipe)
    batch = {"tokens": jax.ShapeDtypeStruct(size, np.int32)}

    def loss(params: Any, rest: Any, batch: Any) -> jax.Array:
        return jaxmodels.arch(arch).loss(skeleton.merge(params, rest), batch, None)[0]

    return products(loss, abstract.params, abstract.rest, batch)


def _init(arch: str, config: Any, recipe: Recipe) -> tuple[Any, Any, State]:
    tx = optimiser(recipe.optim, schedule(recipe.optim, recipe.steps))
    return init(jaxmodels.arch(arch), config, recipe, tx, make_mesh(recipe.mesh))


def batches(config: Any, recipe: Recipe) -> list[np.ndarray]:
    """Random tokens, int32 [batch, context + 1], the same for every contestant."""
    size = (BATCHES, recipe.batch, config.context + 1)
    return list(np.random.default_rng(0).integers(0, config.vocab, size, np.int32))


def jax_step(arch: str, config: Any, recipe: Recipe) -> Call:
    """Our step, as the training loop calls it; returns the loss of the step."""
    rate, mesh = schedule(recipe.optim, recipe.steps), make_mesh(recipe.mesh)
    skeleton, fresh, abstract = _init(arch, config, recipe)
    tx = optimiser(recipe.optim, rate)
    step = train_step(jaxmodels.arch(arch), skeleton, tx, rate, recipe, abstract)
    state, inputs = fresh(), batches(config, recipe)

    def call(index: int) -> float:
        nonlocal state
        batch = put_batch({"tokens": inputs[index % BATCHES]}, mesh)
        state, metrics = step(state, batch)
        return float(metrics["loss"])

    return call


def seed_step(package: Path, config: Any, recipe: Recipe) -> Call:
    """The step of bwetaf's own package; returns the loss, of one position less in each row."""
    params = _init("bwetaf", config, recipe)[1]().params
    return seed_bwetaf(package, config, recipe, params, batches(config, recipe))


def torch_step(arch: str, config: Any, recipe: Recipe, slices: int, compiled: bool) -> Call:
    """The twin's step, under autocast where the recipe computes in bfloat16; returns the loss.

    With slices, gradients add up over that many parts of the batch, one after the other.
    """
    import torch
    from torch.nn.functional import cross_entropy

    optim = recipe.optim
    module = twin_with(arch, config, _init(arch, config, recipe)[1]().params).train()
    parameters = list(module.parameters())
    adamw = torch.optim.AdamW(
        parameters,
        optim.peak_lr,
        (optim.b1, optim.b2),
        optim.eps,
        optim.weight_decay,
        fused=True,
    )
    rates = np.asarray(jax.vmap(schedule(optim, recipe.steps))(np.arange(recipe.steps)))
    inputs = [torch.from_numpy(tokens).long() for tokens in batches(config, recipe)]

    def loss_of(tokens: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=recipe.dtype == "bfloat16"):
            logits = module(tokens[:, :-1]).logits
        return cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())

    loss_function = torch.compile(loss_of, dynamic=False) if compiled else loss_of

    def call(index: int) -> float:
        adamw.zero_grad(set_to_none=True)
        total = torch.zeros(())
        for part in inputs[index % BATCHES].chunk(slices):
            loss = loss_function(part) / slices
            loss.backward()
            total += loss.detach()
        if optim.clip:
            torch.nn.utils.clip_grad_norm_(parameters, optim.clip)
        adamw.param_groups[0]["lr"] = float(rates[min(index, len(rates) - 1)])
        adamw.step()
        return total.item()

    return call


if __name__ == "__main__":
    main(sys.argv[1:])
