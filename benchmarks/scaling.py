"""The step on 1, 2, 4 and 8 devices: what they send, how it scales: `jaxmodels bench scaling`.

No such devices are needed: XLA compiles the step for as many parts of this CPU, in a process for
each number. The program tells operations, memory and collectives; the time is the bound that
`jaxmodels plan` states, of a chip of the given kind in a slice of that many. So this measures the
program and a model of the machine, and no clock: real devices are slower, and the compiler of a
TPU merges collectives otherwise (suite `plan` asks it).

Strong scaling: the same batch on all devices. Weak: as many times the batch as devices. Efficiency
is the share of what one device does that each of them does.
"""

import os
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import jaxmodels
from benchmarks.harness import RESULTS, Run, counts, save
from jaxmodels.architecture import Architecture
from jaxmodels.cli import parse, say
from jaxmodels.errors import USAGE, Problem
from jaxmodels.recipe import Recipe
from jaxmodels.runtime.planning import hlo
from jaxmodels.runtime.planning.chips import CHIPS, Topology
from jaxmodels.runtime.planning.isolated import run_isolated
from jaxmodels.runtime.planning.plan import Compiled, roofline
from jaxmodels.runtime.sharding import check_rows

RUNS = (
    ("--preset", "wikigpt:base", "--batch", "16"),
    ("--preset", "bwetaf:53m", "--batch", "8"),
)
QUICK = (("--preset", "charlm:tiny", "--batch", "16", "--devices", "1", "2"),)

# The slices of so many chips, as square as they can be.
SHAPES = {1: (1, 1), 2: (1, 2), 4: (2, 2), 8: (2, 4)}


@dataclass(frozen=True)
class Scaling:
    """Compile the step for several numbers of devices, and tell how it scales."""

    preset: str = "wikigpt:base"
    """ARCH:PRESET."""
    batch: int = 16
    """Sequences in a step: of all devices (strong), and of each (weak)."""
    devices: tuple[Literal[1, 2, 4, 8], ...] = (1, 2, 4, 8)
    """Numbers of devices, 1 first: the others are told as shares of it."""
    chip: Literal["v4", "v5e", "v5p", "v6e"] = "v5e"
    """The chip whose peak rate, memory and links bound the time."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Precision of the computation."""
    out: Path = RESULTS
    """Folder whose scaling.jsonl the results are added to."""

    def __post_init__(self) -> None:
        counts(self, "batch")
        if self.devices[:1] != (1,):
            raise Problem("--devices must begin with 1", exit_code=USAGE)
        for count in self.devices:
            check_rows(self.batch, count)


def main(argv: list[str]) -> list[dict[str, Any]]:
    """Runs the suite, adds its records to the results and prints them as a table."""
    options = parse(Scaling, argv, "bench scaling")
    arch, name, config = jaxmodels.preset(options.preset)
    package = jaxmodels.learner(arch)
    # One part: a CPU's slices would make of one device another program than of several.
    recipe = replace(package.RECIPES[name], accum=1, slices=1, mesh="", dtype=options.dtype)
    settings = {"batch": options.batch, "dtype": recipe.dtype, "chip": options.chip}
    run, records = Run("scaling", settings), []
    for kind in ("strong", "weak"):
        for count in options.devices:
            if count == 1 and kind == "weak":
                continue  # the same as strong
            batch = options.batch * (count if kind == "weak" else 1)
            say(f"{options.preset}, {kind}: {batch} sequences on {count} devices")
            found = _compiled(package.module, config, replace(recipe, batch=batch), count)
            records.append(_record(run, options, kind, count, batch, found))
        first = records[0]["median"]
        for record in records:
            if record["scaling"] == kind:
                times = record["devices"] if kind == "strong" else 1
                record["efficiency"] = first / (times * record["median"])
    say(f"added to {save(records, options.out)}")
    print(
        f"\n### {options.preset} on {options.chip}, by the roofline\n{shown(records)}", flush=True
    )
    return records


def _compiled(package: str, config: Any, recipe: Recipe, count: int) -> Compiled:
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count}"
    # The pass aborts at sums of bfloat16 across devices (jaxlib 0.10.2). It makes them of float32
    # for a CPU to run them, and nothing is run here.
    flags += " --xla_disable_hlo_passes=all-reduce-promotion"
    with mock.patch.dict(os.environ, {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}):
        return run_isolated(compiled_here, package, config, recipe)


def compiled_here(package: str, config: Any, recipe: Recipe) -> Compiled:
    """The step compiled for all devices of this process."""
    from jaxmodels.runtime.planning.plan import Job, compile_step
    from jaxmodels.runtime.sharding import make_mesh

    return compile_step(
        Job(Architecture.of(import_module(package)), config, recipe), make_mesh(recipe.mesh)
    )


def _record(
    run: Run, options: Scaling, kind: str, count: int, batch: int, found: Compiled
) -> dict[str, Any]:
    slice_ = Topology(f"{options.chip} × {count}", CHIPS[options.chip], SHAPES[count])
    times = roofline(found, slice_)
    bound = max(times, key=lambda name: times[name])
    return run.record(
        f"{options.preset}, {kind}, {count} devices",
        "jaxmodels",
        "ms at least",
        1e3 * times[bound],
        scaling=kind,
        devices=count,
        sequences=batch,
        bound=bound,
        roofline=times,
        bytes_per_device=found.bytes,
        flops_per_step=found.flops,
        sent_bytes=sum(one.count * one.sent for one in found.collectives),
        collectives=hlo.summary(found.collectives),
        compile_seconds=round(found.compile_seconds, 3),
    )


def shown(records: list[dict[str, Any]]) -> str:
    """The records as a Markdown table."""
    head = (
        "| scaling | devices | sequences | ms at least | bound | efficiency | sent | collectives |"
    )
    lines = [head, "| --- | ---: | ---: | ---: | --- | ---: | ---: | --- |"]
    for record in records:
        kinds = ", ".join(f"{name} × {one['count']}" for name, one in record["collectives"].items())
        cells = (
            record["scaling"],
            str(record["devices"]),
            str(record["sequences"]),
            f"{record['median']:,.3f}",
            record["bound"],
            f"{record['efficiency']:.0%}",
            f"{record['sent_bytes'] / 1e6:,.1f} MB",
            kinds,
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
