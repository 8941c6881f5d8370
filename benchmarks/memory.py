"""The memory that chunking saves in a train step, and that packed weights save at rest:
`jaxmodels bench memory`.

The same step three ways: as it is, with logits not chunked, and with attention's scores not
chunked either. Two numbers each: XLA's temporary memory for the step at the recipe's full batch
(compiled from shapes, never run), and the peak of a process that runs it at a size for small
machines.

With `--packed` it is the resident memory of an opened model instead (`benchmarks.resident`).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np

import jaxmodels
from benchmarks import resident
from benchmarks.harness import RESULTS, Call, Contestant, Run, Timing, positive, race, save, table
from benchmarks.trainers import jax_step
from data_pipelines.cores import cores
from jaxmodels.cli import parse, say
from jaxmodels.layers import blocks, losses
from jaxmodels.recipe import Recipe
from jaxmodels.runtime.sharding import make_mesh
from jaxmodels.runtime.step import training

_ALL = 1 << 62  # no limit
RUNS = (
    ("--preset", "bwetaf:53m"),
    *(("--preset", f"bitgen:{preset}", "--packed") for preset in ("mini", "edge", "card")),
)
QUICK = (("--preset", "bwetaf:tiny"), ("--preset", "bitgen:tiny", "--packed"))

# Name → (bytes of logits at once, queries at once); None keeps the limit.
FORMS: dict[str, tuple[int | None, int | None]] = {
    "jaxmodels": (None, None),
    "whole logits": (_ALL, None),
    "whole logits and scores": (_ALL, _ALL),
}


@dataclass(frozen=True)
class Memory:
    """Measure the memory of a train step with and without chunking, or of a packed model."""

    preset: str = "bwetaf:53m"
    """ARCH:PRESET of an architecture whose loss and attention are chunked, or that packs."""
    packed: bool = False
    """Measure what an opened model of random weights takes, packed and in float32."""
    batch: int = 1
    """Sequences in the batch that is run; the recipe's batch is only compiled."""
    rounds: int = 1
    """Timed steps, after one that is not."""
    out: Path = RESULTS
    """Folder whose memory.jsonl the results are added to."""

    def __post_init__(self) -> None:
        positive(self, "batch", "rounds")


def main(argv: list[str]) -> list[dict[str, Any]]:
    """Runs the suite, adds its records to the results and prints them as a table."""
    options = parse(Memory, argv, "bench memory")
    if options.packed:
        return resident.main(options.preset, options.out)
    arch, _, config = jaxmodels.preset(options.preset)
    full = jaxmodels.learner(arch).RECIPES[options.preset.partition(":")[2]]
    full = replace(full, dtype="float32", slices=1)
    small = replace(full, batch=options.batch)
    settings = {
        "context": config.context,
        "batch_compiled": full.batch,
        "batch_run": small.batch,
        "dtype": "float32",
        "threads": cores(),
    }
    run = Run("memory", settings)
    say(f"compiling {options.preset} for {full.batch} × {config.context} tokens")
    compiled = {name: compiled_bytes(arch, config, full, name) for name in FORMS}
    say(f"running it with {small.batch} × {config.context} tokens")
    contestants = [Contestant(n, partial(step_in_form, arch, config, small, n)) for n in FORMS]
    timings = race(contestants, options.rounds, warmup=1, isolated=True)

    def extra(timing: Timing) -> dict[str, Any]:
        return {"first_loss": timing.value, "compiled_bytes": compiled[timing.name]}

    records = run.records(options.preset, timings, extra)
    say(f"added to {save(records, options.out)}")
    print(f"\n### Memory of a train step of {options.preset}")
    columns = {
        "compiled_bytes": f"temporary bytes, batch {full.batch}",
        "peak_bytes": f"peak bytes of the process, batch {small.batch}",
    }
    print(table(records, columns), flush=True)
    return records


@contextmanager
def form(name: str) -> Iterator[None]:
    """Programs traced in this context have the limits of this form."""
    logits, queries = FORMS[name]
    with (
        mock.patch.object(losses, "LOGITS_BYTES", logits or losses.LOGITS_BYTES),
        mock.patch.object(blocks, "QUERIES", queries or blocks.QUERIES),
    ):
        yield


def compiled_bytes(arch: str, config: Any, recipe: Recipe, name: str) -> int:
    """Bytes of temporary memory of the compiled step, on one device."""
    planned: Any = training(jaxmodels.arch(arch), config, recipe, make_mesh(recipe.mesh))
    batch = {"tokens": jax.ShapeDtypeStruct((recipe.batch, config.context + 1), np.int32)}
    with form(name):
        lowered = planned.step.lower(planned.abstract, batch)
    return int(lowered.compile().memory_analysis().temp_size_in_bytes)


def step_in_form(arch: str, config: Any, recipe: Recipe, name: str) -> Call:
    """The step of `benchmarks.step` in this form; returns the loss of the step."""
    step = jax_step(arch, config, recipe)

    def call(index: int) -> float:
        with form(name):  # the first call traces
            return step(index)

    return call
