"""What a step costs the host, apart from the device's work: `jaxmodels bench host`.

With a model so small that its computation is negligible, in three ways: dispatching the compiled
step (recorded as `told`: the call returned, the device may still be working); dispatching it and
reading its loss (`read`); and the loop of `jaxmodels train` with data, log and progress in a run
directory (`loop`). The remaining computation is timed too: the same steps as one program that the
host calls once (`computed`). The time of the loop beyond that is its `overhead`. Each is the mean
over the steps of a round.
"""

import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import partial
from operator import attrgetter
from pathlib import Path
from statistics import median
from typing import Any

import jax
import numpy as np

import jaxmodels
from benchmarks.batches import BATCHES, Batch, shapes, values
from benchmarks.harness import RESULTS, Run, Timing, positive, save, table
from data_pipelines.cores import cores
from jaxmodels.cli import parse, say
from jaxmodels.recipe import Recipe
from jaxmodels.runtime.sharding import make_mesh, put_batch
from jaxmodels.runtime.step import State, training
from jaxmodels.runtime.training.train import Job, train

RUNS = tuple(
    ("--preset", f"{arch}:tiny") for arch in jaxmodels.ARCHS if arch != "dinov2"
)  # it has no loss
QUICK = (("--preset", "charlm:tiny", "--steps", "20", "--rounds", "2"),)

# Sizes that make a model trivial, if it or its tower has them; divisibility is kept. An image is
# one token: a square of `merge` patches.
SMALL: dict[str, int] = {
    "layers": 1, "image_layers": 1, "decoder_layers": 1, "fused": 1, "merge": 1, "hidden": 32,
    "vocab": 32, "tokens": 32, "context": 8, "queue": 8, "slots": 8,
}  # fmt: skip


@dataclass(frozen=True)
class Host:
    """Time what a step costs besides its computation."""

    preset: str = "charlm:tiny"
    """ARCH:PRESET; reduced to one layer, one row, a short context."""
    steps: int = 100
    """Steps of a round."""
    rounds: int = 7
    """Timed rounds, after one that is not."""
    out: Path = RESULTS
    """Folder whose host.jsonl the results are added to."""

    def __post_init__(self) -> None:
        positive(self, "steps", "rounds")


def main(argv: list[str]) -> list[dict[str, Any]]:
    """Runs the suite, adds its records to the results and prints them as a table."""
    options = parse(Host, argv, "bench host")
    arch, name, config = jaxmodels.preset(options.preset)
    recipe = replace(jaxmodels.learner(arch).RECIPES[name], batch=1, accum=1, dtype="float32")
    config = trivial(config)
    run = Run("host", {"batch": 1, "steps": options.steps, "threads": cores()})
    say(f"{options.preset}, made trivial: {options.steps} steps a round")
    timings = [*_steps(arch, config, recipe, options), _loop(arch, config, recipe, options)]
    computed = median(timings[0].seconds)

    def overhead(timing: Timing) -> dict[str, float | None]:
        excess = 1e3 * (median(timing.seconds) - computed)
        return {"overhead_ms": excess if timing.name == "loop" else None}

    records = run.records(options.preset, timings, overhead)
    say(f"added to {save(records, options.out)}")
    print(f"\n### What a step of a trivial {options.preset} costs the host")
    print(table(records, {"first": "first ms", "overhead_ms": "beyond computed, ms"}), flush=True)
    return records


def trivial(config: Any) -> Any:
    """The same architecture with the least computation that it allows."""
    names = {field.name for field in fields(config)}
    sizes: dict[str, Any] = {name: size for name, size in SMALL.items() if name in names}
    if "dinov2" in names:
        patch = config.dinov2.patch
        tower = replace(trivial(config.dinov2), image_size=patch)
        sizes |= {"dinov2": tower, "image_size": patch}
    return replace(config, **sizes)


def _steps(arch: str, config: Any, recipe: Recipe, options: Host) -> list[Timing]:
    """The steps as one program; the compiled step until it is dispatched, and until it is read."""
    mesh = make_mesh(recipe.mesh)
    _, fresh, abstract, step = training(jaxmodels.arch(arch), config, recipe, mesh)
    state, inputs = fresh(), values(shapes(arch, config, recipe), config)
    computed, dispatched, read = (Timing(name, 0.0) for name in ("computed", "told", "read"))

    @partial(
        jax.jit, donate_argnums=0, out_shardings=jax.tree.map(attrgetter("sharding"), abstract)
    )
    def program(state: State, batches: Batch) -> State:
        def one(number: jax.Array, state: State) -> State:
            return step(state, {name: array[number % BATCHES] for name, array in batches.items()})[
                0
            ]

        return jax.lax.fori_loop(0, options.steps, one, state)

    batches = {name: np.stack([batch[name] for batch in inputs]) for name in inputs[0]}
    for index in range(1 + options.rounds):
        start = time.perf_counter()
        state = jax.block_until_ready(program(state, batches))
        seconds = time.perf_counter() - start
        if index:
            computed.seconds.append(seconds / options.steps)
        else:
            computed.first = seconds
        returned = finished = 0.0
        for number in range(options.steps):
            start = time.perf_counter()
            state, numbers = step(state, put_batch(inputs[number % BATCHES], mesh))
            middle = time.perf_counter()
            numbers.read()
            if index == number == 0:
                dispatched.first, read.first = middle - start, time.perf_counter() - start
            returned += middle - start
            finished += time.perf_counter() - start
        if index:
            dispatched.seconds.append(returned / options.steps)
            read.seconds.append(finished / options.steps)
    return [computed, dispatched, read]


def _loop(arch: str, config: Any, recipe: Recipe, options: Host) -> Timing:
    """The loop of `train` from the second step on, one run split into rounds."""
    never, rounds = 1 << 30, 1 + options.rounds
    steps = options.steps * rounds + 1
    recipe = replace(recipe, steps=steps, eval_every=never, save_every=never, sample_every=0)
    batches = _Endless(values(shapes(arch, config, recipe), config))
    with tempfile.TemporaryDirectory(prefix="jaxmodels-bench-") as folder:
        train(Job(jaxmodels.arch(arch), config, recipe, batches, (), Path(folder)))
    seconds = np.diff(batches.asked)
    means = seconds.reshape(rounds, options.steps).mean(axis=1)
    return Timing("loop", float(seconds[0]), means[1:].tolist())


class _Endless(Iterator[Any]):
    """Batches in turn, as a pipeline gives them; records when each was requested."""

    def __init__(self, inputs: list[Any]):
        self.inputs = inputs
        self.asked: list[float] = []

    def __next__(self) -> Any:
        self.asked.append(time.perf_counter())
        return self.inputs[len(self.asked) % len(self.inputs)]

    def get_state(self) -> dict[str, int]:
        """Nothing is resumed."""
        return {}
