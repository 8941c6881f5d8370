"""Train steps compiled for TPUs and GPUs, without any: `jaxmodels bench plan`.

The results of `jaxmodels plan` for a preset with its own recipe: whether it fits, a lower bound of
the step's time, an upper bound of MFU, what the compiler expects, and the compile time. Needs
libtpu or JAX's CUDA plugin, which compile for devices that need not exist.
"""

import os
from dataclasses import dataclass, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import jaxmodels
from benchmarks.harness import RESULTS, Absent, Run, positive, save
from jaxmodels.cli import parse, say
from jaxmodels.runtime.planning import gpu, tpu
from jaxmodels.runtime.planning.chips import GIB, GpuHosts, topology
from jaxmodels.runtime.planning.isolated import run_isolated
from jaxmodels.runtime.planning.plan import TooLarge, Workload
from jaxmodels.runtime.planning.report import report, too_large_report
from jaxmodels.runtime.sharding import check_heads, check_rows, mesh_sizes

RUNS = (
    ("--preset", "wikigpt:gpt2-124m", "--topology", "v5e:1x1", "--batch", "16"),
    (
        "--preset",
        "wikigpt:gpt2-124m",
        "--topology",
        "v5e:1x1",
        "--batch",
        "16",
        "--lora",
        "rank=8,alpha=16",
    ),
    ("--preset", "bwetaf:53m", "--topology", "v5e:1x1", "--batch", "8"),
    ("--preset", "charlm:base", "--topology", "v5e:1x1", "--batch", "64"),
    ("--preset", "dinov2:base", "--topology", "v5e:1x1", "--batch", "32"),
    ("--preset", "wigip:1.7b", "--topology", "v5e:4x4", "--batch", "64"),
    ("--preset", "bitgen:card", "--topology", "v5e:2x2", "--batch", "128"),
    ("--preset", "wikigpt:gpt2-124m", "--topology", "h100:1", "--batch", "32"),
    ("--preset", "bwetaf:53m", "--topology", "h100:1", "--batch", "32"),
    ("--preset", "wigip:1.7b", "--topology", "h100:8", "--batch", "64"),
)
QUICK = (("--preset", "charlm:tiny", "--topology", "v5e:2x2", "--batch", "16"),)


@dataclass(frozen=True)
class PlanCase:
    """Compile the train step of a preset for TPUs or GPUs; record its memory, bounds and the time
    that the compiler expects."""

    preset: str = "wikigpt:gpt2-124m"
    """ARCH:PRESET."""
    topology: str = "v5e:2x2"
    """A TPU slice, such as v5e:4x4, or GPUs, such as h100:8."""
    mesh: str = ""
    """Devices by axis, such as data=4,model=4; by default all on the data axis."""
    batch: int = 64
    """Sequences in a step, over all devices."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Precision of the computation."""
    lora: str = ""
    """Train adapters only, as rank=8,alpha=16."""
    out: Path = RESULTS
    """Folder whose plan.jsonl the results are added to."""

    def __post_init__(self) -> None:
        positive(self, "batch")


def main(argv: list[str]) -> list[dict[str, Any]]:
    """Runs the suite, adds its record to the results and prints it.

    Raises:
        Absent: the compiler for these devices is not installed.
    """
    options = parse(PlanCase, argv, "bench plan")
    slice_ = topology(options.topology)
    compiler: Any = gpu if isinstance(slice_, GpuHosts) else tpu
    distribution = compiler.COMPILER.distribution
    if find_spec(distribution.replace("-", "_")) is None:
        extra = "plan-gpu" if compiler is gpu else "tpu"
        raise Absent(f"{distribution} is not installed", f"pip install 'jaxmodels[{extra}]'")
    if options.preset.startswith("dinov2:"):
        return features(options)
    arch, name, config = jaxmodels.preset(options.preset)
    package = jaxmodels.learner(arch)
    recipe = replace(
        package.RECIPES[name],
        mesh=options.mesh,
        batch=options.batch,
        accum=1,
        dtype=options.dtype,
        lora=options.lora,
    )
    sizes = mesh_sizes(recipe.mesh, slice_.devices, slice_.name)
    check_heads(config, sizes["model"])
    check_rows(recipe.batch, sizes["data"])
    job = Workload(package, config, recipe)
    settings = {
        "topology": slice_.name,
        "mesh": recipe.mesh,
        "batch": recipe.batch,
        "dtype": recipe.dtype,
        "remat": recipe.remat,
        **({"lora": recipe.lora} if recipe.lora else {}),
        distribution: version(distribution),
    }
    run = Run("plan", settings)
    say(f"compiling {options.preset} for {slice_.name}")
    try:
        with mock.patch.dict(os.environ, compiler.ENVIRONMENT):
            compiled = compiler.compile_isolated(package.module, config, recipe, slice_.name)
        found = report(job, compiled, slice_)
    except TooLarge as error:
        found = too_large_report(job, error, slice_)
    if found["fits"] and (plain := plain_cycles(arch, config, options)):
        ours = sum(row.cycles for row in compiled.operations)
        found |= {"cycles": ours, "plain_cycles": plain, "to_plain": plain / ours}
    ways = [recipe.mesh, f"LoRA {recipe.lora}" if recipe.lora else ""]
    case = ", ".join([f"{options.preset} on {slice_.name}", *filter(None, ways)])
    seconds = found["roofline_step_seconds"]
    record = run.record(case, "jaxmodels", "ms at least", 1e3 * seconds, **found)
    say(f"added to {save([record], options.out)}")
    print(summary_line(record), flush=True)
    return [record]


def plain_cycles(arch: str, config: Any, options: PlanCase) -> int | None:
    """Cycles of the model in plain JAX (`benchmarks/plain.py`), by the same compiler.

    None where it has no such form: for several devices, GPUs, adapters, other precisions.
    """
    from benchmarks import plain

    one = tuple(options.topology.partition(":")[2].split("x")) == ("1", "1")
    if not one or options.lora or options.dtype != "bfloat16" or arch not in plain.ARCHS:
        return None
    say(f"compiling the plain form of {options.preset}")
    with mock.patch.dict(os.environ, tpu.ENVIRONMENT):
        found: int = run_isolated(plain.cycles, arch, config, options.batch, options.topology)
    return found


def features(options: PlanCase) -> list[dict[str, Any]]:
    """The features of a tower, ours and in plain JAX: cycles, and the share of the peak."""
    from benchmarks import plain
    from jaxmodels.runtime.planning.chips import CHIPS

    arch, _, config = jaxmodels.preset(options.preset)
    say(f"compiling {options.preset} and its plain form for {options.topology}")
    settings = {"topology": options.topology, "batch": options.batch, "dtype": options.dtype}
    run = Run("plan", {**settings, "libtpu": version("libtpu")})
    with mock.patch.dict(os.environ, tpu.ENVIRONMENT):
        theirs, ours = (
            run_isolated(plain.cycles, arch, config, options.batch, options.topology, own)
            for own in (False, True)
        )
    chip = CHIPS[options.topology.partition(":")[0]]
    flops = plain.feature_flops(config, options.batch)
    record = run.record(
        f"features of {options.preset} on {options.topology}",
        "jaxmodels",
        "ms expected",
        1e3 * ours / chip.clock,
        cycles=ours,
        plain_cycles=theirs,
        to_plain=theirs / ours,
        share_of_peak=flops / chip.flops / (ours / chip.clock),
    )
    say(f"added to {save([record], options.out)}")
    print(summary_line(record), flush=True)
    return [record]


def summary_line(record: dict[str, Any]) -> str:
    """A record as a line of text."""
    plain = f"; {record['to_plain']:.2f} × plain JAX" if "to_plain" in record else ""
    if "share_of_peak" in record:
        return (
            f"{record['case']}, batch {record['settings']['batch']}: {record['median']:.1f} ms and "
            f"{record['share_of_peak']:.0%} of the peak expected{plain}"
        )
    needed, limit = (record[f"hbm_{name}_bytes"] / GIB for name in ("per_device", "limit"))
    if not record["fits"]:
        return f"{record['case']}: {needed:.1f} GiB do not fit into {limit:.1f}"
    likely = ""
    if seconds := record.get("expected_step_seconds"):
        likely = (
            f"{1e3 * seconds:.1f} ms a step and {record['expected_mfu']:.0%} of the peak "
            f"expected{plain}; "
        )
    return (
        f"{record['case']}, batch {record['settings']['batch']}: {needed:.1f} of {limit:.1f} GiB; "
        f"{likely}{record['median']:.1f} ms at least ({record['bound']}), "
        f"{record['mfu_bound']:.0%} at most; compiled in {record['compile_seconds']:.0f} s"
    )
