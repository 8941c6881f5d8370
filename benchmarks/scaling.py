"""The step on 1, 2, 4, 8 and 16 devices: traffic and scaling: `jaxmodels bench scaling`.

The devices need not exist. For TPUs XLA compiles the step for simulated devices of this CPU, in a
process for each number; the time is the bound of `jaxmodels plan`. For GPUs it compiles for the
GPUs themselves, if JAX's CUDA plugin is installed, and for those of which it has measurements the
time is what it expects. So this evaluates the program on a model of the machine and measures no
time: real devices are slower, and a TPU's compiler merges collectives differently (see suite
`plan`).

Strong scaling: the same batch on all devices. Weak: the batch times the number of devices.
Efficiency is the throughput of each device relative to that of a single one.
"""

import os
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import jaxmodels
from benchmarks.harness import RESULTS, Absent, Run, positive, save
from jaxmodels.architecture import Architecture
from jaxmodels.cli import parse, say
from jaxmodels.errors import USAGE, Problem
from jaxmodels.recipe import Recipe
from jaxmodels.runtime.planning import gpu, hlo
from jaxmodels.runtime.planning.chips import CHIPS, Topology, topology
from jaxmodels.runtime.planning.gpus import GPUS
from jaxmodels.runtime.planning.isolated import run_isolated
from jaxmodels.runtime.planning.plan import Compiled
from jaxmodels.runtime.planning.report import expected, roofline
from jaxmodels.runtime.sharding import check_rows

RUNS = (
    ("--preset", "wikigpt:base", "--batch", "16"),
    ("--preset", "bwetaf:53m", "--batch", "8"),
)
QUICK = (("--preset", "charlm:tiny", "--batch", "16", "--devices", "1", "2"),)

# Number of chips → the most nearly square slice.
SHAPES = {1: (1, 1), 2: (1, 2), 4: (2, 2), 8: (2, 4), 16: (4, 4)}


@dataclass(frozen=True)
class Scaling:
    """Compile the step for several numbers of devices, and estimate how it scales."""

    preset: str = "wikigpt:base"
    """ARCH:PRESET."""
    batch: int = 16
    """Sequences in a step: on all devices (strong), or on each (weak)."""
    devices: tuple[Literal[1, 2, 4, 8, 16], ...] = (1, 2, 4, 8)
    """Numbers of devices; the first, 1, is the reference. 16 GPUs are those of two hosts."""
    chip: Literal["v4", "v5e", "v5p", "v6e", "a100-40g", "a100-80g", "h100", "h200", "b200"] = "v5e"
    """Chip whose peak rate, memory and links bound the time."""
    scaling: Literal["both", "strong", "weak"] = "both"
    """Which kind."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Precision of the computation."""
    out: Path = RESULTS
    """Folder whose scaling.jsonl the results are added to."""

    def __post_init__(self) -> None:
        positive(self, "batch")
        if self.devices[:1] != (1,):
            raise Problem("--devices must begin with 1", exit_code=USAGE)
        for count in self.devices if self.scaling != "weak" else ():
            check_rows(self.batch, count)


def main(argv: list[str]) -> list[dict[str, Any]]:
    """Runs the suite, adds its records to the results and prints them as a table.

    Raises:
        Absent: the compiler for GPUs is not installed.
    """
    options = parse(Scaling, argv, "bench scaling")
    if options.chip in GPUS and not any(map(find_spec, gpu.PLUGINS)):
        raise Absent("JAX's CUDA plugin is not installed", "pip install 'jaxmodels[plan-gpu]'")
    arch, name, config = jaxmodels.preset(options.preset)
    package = jaxmodels.learner(arch)
    # One slice: a CPU's slices would make the programs of one and several devices differ.
    recipe = replace(package.RECIPES[name], accum=1, slices=1, mesh="", dtype=options.dtype)
    settings = {"batch": options.batch, "dtype": recipe.dtype, "chip": options.chip}
    run, records = Run("scaling", settings), []
    kinds = ("strong", "weak") if options.scaling == "both" else (options.scaling,)
    for kind in kinds:
        for count in options.devices:
            if count == 1 and kind != kinds[0]:
                continue  # the same as strong
            batch = options.batch * (count if kind == "weak" else 1)
            say(f"{options.preset}, {kind}: {batch} sequences on {count} devices")
            sized = replace(recipe, batch=batch)
            if options.chip in GPUS:
                found = _for_gpus(package.module, config, sized, _slice(options, count).name)
            else:
                found = _compiled(package.module, config, sized, count)
            records.append(_record(run, options, kind, count, batch, found))
        first = records[0]["median"]
        for record in records:
            if record["scaling"] == kind:
                times = record["devices"] if kind == "strong" else 1
                record["efficiency"] = first / (times * record["median"])
    say(f"added to {save(records, options.out)}")
    print(f"\n### {options.preset} on {options.chip}\n{markdown_table(records)}", flush=True)
    return records


def _slice(options: Scaling, count: int) -> Topology:
    if options.chip in GPUS:
        return topology(f"{options.chip}:{count if count <= 8 else f'{count // 8}x8'}")
    return Topology(f"{options.chip} × {count}", CHIPS[options.chip], SHAPES[count])


def _for_gpus(package: str, config: Any, recipe: Recipe, name: str) -> Compiled:
    with mock.patch.dict(os.environ, gpu.ENVIRONMENT):
        compiled: Compiled = gpu.compile_isolated(package, config, recipe, name)
    return compiled


def _compiled(package: str, config: Any, recipe: Recipe, count: int) -> Compiled:
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count}"
    # The pass aborts on bfloat16 all-reduces (jaxlib 0.10.2). It makes them float32 so that a CPU
    # can run them; nothing is run here.
    flags += " --xla_disable_hlo_passes=all-reduce-promotion"
    with mock.patch.dict(os.environ, {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}):
        return run_isolated(compiled_here, package, config, recipe)


def compiled_here(package: str, config: Any, recipe: Recipe) -> Compiled:
    """The step compiled for all devices of this process."""
    from jaxmodels.runtime.planning.plan import Workload, compile_step
    from jaxmodels.runtime.sharding import make_mesh

    return compile_step(
        Workload(Architecture.of(import_module(package)), config, recipe), make_mesh(recipe.mesh)
    )


def _record(
    run: Run, options: Scaling, kind: str, count: int, batch: int, found: Compiled
) -> dict[str, Any]:
    slice_ = _slice(options, count)
    times, likely = roofline(found, slice_), expected(found, slice_)
    bound = max(times, key=lambda name: times[name])
    seconds = max(sum(likely.values()), times[bound])
    return run.record(
        f"{options.preset}, {kind}, {count} devices",
        "jaxmodels",
        "ms expected" if likely else "ms at least",
        1e3 * seconds,
        expected=likely,
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


def markdown_table(records: list[dict[str, Any]]) -> str:
    """The records as a Markdown table."""
    unit = records[0]["unit"]
    head = f"| scaling | devices | sequences | {unit} | bound | efficiency | sent | exposed |"
    lines = [
        f"{head} collectives |",
        "| --- | ---: | ---: | ---: | --- | ---: | ---: | ---: | --- |",
    ]
    for record in records:
        kinds = ", ".join(f"{name} × {one['count']}" for name, one in record["collectives"].items())
        waits = record["expected"]
        cells = (
            record["scaling"],
            str(record["devices"]),
            str(record["sequences"]),
            f"{record['median']:,.3f}",
            record["bound"],
            f"{record['efficiency']:.0%}",
            f"{record['sent_bytes'] / 1e6:,.1f} MB",
            f"{1e3 * wait:,.2f} ms"
            if (wait := waits.get("exposed_collectives")) is not None
            else "?",
            kinds,
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
