"""Train steps compiled for TPU slices, without a TPU: `jaxmodels bench plan`.

The results of `jaxmodels plan` for a preset with its own recipe: whether it fits, a lower bound of
the step's time, an upper bound of MFU, and the compile time. Needs libtpu, which compiles for
devices that need not exist.
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
from jaxmodels.runtime.planning import tpu
from jaxmodels.runtime.planning.chips import GIB, topology
from jaxmodels.runtime.planning.plan import TooLarge, Workload, report, too_large_report
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
    ("--preset", "wigip:1.7b", "--topology", "v5e:4x4", "--batch", "64"),
    ("--preset", "bitgen:card", "--topology", "v5e:2x2", "--batch", "128"),
)
QUICK = (("--preset", "charlm:tiny", "--topology", "v5e:2x2", "--batch", "16"),)


@dataclass(frozen=True)
class PlanCase:
    """Compile the train step of a preset for a TPU slice; record its memory, bounds and the time
    that the compiler expects."""

    preset: str = "wikigpt:gpt2-124m"
    """ARCH:PRESET."""
    topology: str = "v5e:2x2"
    """The slice, such as v5e:4x4."""
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
        Absent: libtpu is not installed.
    """
    options = parse(PlanCase, argv, "bench plan")
    if find_spec("libtpu") is None:
        raise Absent("libtpu is not installed", "pip install 'jaxmodels[tpu]'")
    arch, name, config = jaxmodels.preset(options.preset)
    package, slice_ = jaxmodels.learner(arch), topology(options.topology)
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
        "libtpu": version("libtpu"),
    }
    run = Run("plan", settings)
    say(f"compiling {options.preset} for {slice_.name}")
    try:
        with mock.patch.dict(os.environ, tpu.ENVIRONMENT):
            compiled = tpu.compile_isolated(package.module, config, recipe, slice_.name)
        found = report(job, compiled, slice_)
    except TooLarge as error:
        found = too_large_report(job, error, slice_)
    ways = [recipe.mesh, f"LoRA {recipe.lora}" if recipe.lora else ""]
    case = ", ".join([f"{options.preset} on {slice_.name}", *filter(None, ways)])
    seconds = found["roofline_step_seconds"]
    record = run.record(case, "jaxmodels", "ms at least", 1e3 * seconds, **found)
    say(f"added to {save([record], options.out)}")
    print(summary_line(record), flush=True)
    return [record]


def summary_line(record: dict[str, Any]) -> str:
    """A record as a line of text."""
    needed, limit = (record[f"hbm_{name}_bytes"] / GIB for name in ("per_device", "limit"))
    if not record["fits"]:
        return f"{record['case']}: {needed:.1f} GiB do not fit into {limit:.1f}"
    likely = ""
    if seconds := record.get("expected_step_seconds"):
        likely = (
            f"{1e3 * seconds:.1f} ms a step and {record['expected_mfu']:.0%} of the peak expected; "
        )
    return (
        f"{record['case']}, batch {record['settings']['batch']}: {needed:.1f} of {limit:.1f} GiB; "
        f"{likely}{record['median']:.1f} ms at least ({record['bound']}), "
        f"{record['mfu_bound']:.0%} at most; compiled in {record['compile_seconds']:.0f} s"
    )
