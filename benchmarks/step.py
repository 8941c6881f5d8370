"""The train step against the PyTorch twin: `jaxmodels bench step`.

Ours is the step of `jaxmodels train`. The twin is trained as a PyTorch user would: a fused
optimiser, clipping by global norm, gradients set to None, eager and compiled; and also in the
slices that ours takes on a CPU, to separate the gain of slicing from that of XLA. For bwetaf, the
seed's own package takes part if its folder is given. All start from the same weights, take the same
batches with dropout on, and read the loss of every step. The rate of a step is compared with that
of its largest matrix product, measured in the same run (on a CPU in float32, on an accelerator in
the precision of the step).
"""

from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

import jaxmodels
from benchmarks import flops
from benchmarks.batches import BATCHES, shapes, units_per_step
from benchmarks.harness import RESULTS, Contestant, Run, Timing, positive, race, save, table
from benchmarks.peers import check_seed, torch_device
from benchmarks.trainers import jax_step, seed_step, torch_step
from data_pipelines.cores import cores
from jaxmodels import registry
from jaxmodels.cli import parse, say
from jaxmodels.errors import USAGE, Problem
from jaxmodels.recipe import Recipe
from jaxmodels.runtime.gradient import auto_slices
from jaxmodels.runtime.planning.chips import peak_flops
from jaxmodels.runtime.planning.flops import Product, products
from jaxmodels.runtime.planning.plan import Workload, useful_flops
from jaxmodels.runtime.platform import choose_thread
from jaxmodels.runtime.sharding import make_mesh
from jaxmodels.runtime.step import training
from jaxmodels.sizes import parameters

OURS = "jaxmodels"

# Options of each run of `jaxmodels bench`: a preset of each architecture, as large as two cores
# can time in minutes; with --quick its smallest.
RUNS = (
    ("--preset", "charlm:notebook"),
    ("--preset", "wikigpt:base", "--batch", "8", "--dtype", "float32", "--rounds", "10"),
    ("--preset", "wikigpt:base", "--batch", "8", "--rounds", "10"),  # bfloat16, its recipe's own
    ("--preset", "bwetaf:53m", "--batch", "1", "--dtype", "float32", "--rounds", "6"),
    ("--preset", "wigip:125m", "--batch", "2", "--dtype", "float32", "--rounds", "6"),
    *(
        ("--preset", f"{arch}:card", "--batch", "4", "--dtype", "float32", "--rounds", "6")
        for arch in ("bitgen", "bitgen_stage1")
    ),
    *(("--preset", f"{arch}:tiny", "--rounds", "20") for arch in ("bitgen", "bitgen_stage1")),
)
QUICK = tuple(
    ("--preset", f"{arch}:tiny", "--batch", "8", "--rounds", "3", "--no-compile")
    for arch in registry.OURS
    if arch != "dinov2"  # it has no loss: suite `forward`
)


@dataclass(frozen=True)
class Step:
    """Time the train step of a preset with its own recipe against the PyTorch twin.

    A step takes one micro-batch: accumulation would only repeat it.
    """

    preset: str = "charlm:notebook"
    """ARCH:PRESET."""
    batch: int | None = None
    """Sequences in a batch; by default the recipe's."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Precision of the computation; by default the recipe's."""
    seed_package: Path | None = None
    """Folder that holds the package BwETAF, to time it too; for bwetaf."""
    rounds: int = 20
    """Timed steps of each contestant, after two that are not."""
    objective: Literal["next_char", "dense"] | None = None
    """What a wigip predicts; by default the preset's."""
    eager: bool = True
    """Also time the twin as it is."""
    compile: bool = True
    """Also time the twin under torch.compile."""
    isolated: bool = False
    """Run each contestant in its own process; also measures its peak memory."""
    out: Path = RESULTS
    """Folder whose step.jsonl the results are added to."""

    def __post_init__(self) -> None:
        positive(self, "batch", "rounds")
        if self.objective and not self.preset.startswith("wigip:"):
            raise Problem(
                "--objective is for wigip",
                where=self.preset,
                fix="leave it out, or use --preset wigip:125m",
                exit_code=USAGE,
            )
        if self.seed_package is not None:
            check_seed(self.preset, self.seed_package)


def main(argv: list[str]) -> list[dict[str, Any]]:
    """Runs the suite, adds its records to the results and prints them as a table."""
    options = parse(Step, argv, "bench step")
    arch, name, config = jaxmodels.preset(options.preset)
    if options.objective:
        config = replace(config, objective=options.objective)
    choose_thread(parameters(arch, config))
    recipe = jaxmodels.learner(arch).RECIPES[name]
    recipe = replace(
        recipe, batch=options.batch or recipe.batch, accum=1, dtype=options.dtype or recipe.dtype
    )
    arrays = shapes(arch, config, recipe)
    slices = _slices(arch, recipe, arrays)
    run = Run("step", _settings(options, recipe, slices))
    forward = _forward(arch, config, recipe, arrays)
    biggest = max((p for p in forward if p.batch == 1), key=lambda product: product.flops)
    say(f"matrix products of {biggest.rows} × {biggest.inner} × {biggest.columns}")
    precision = "float32" if jax.default_backend() == "cpu" else recipe.dtype
    rate = flops.rate(biggest, options.rounds, precision, options.isolated)
    contestants = _contestants(options, arch, config, recipe, slices)
    units = units_per_step(arrays)
    say(f"steps of {_sizes(arrays)}: {', '.join(one.name for one in contestants)}")
    timings = race(contestants, options.rounds, isolated=options.isolated)
    work = 3 * sum(product.flops for product in forward)  # the backward pass does each twice
    job = Workload(jaxmodels.arch(arch), config, recipe)
    peak = peak_flops(jax.devices()[0].device_kind)
    useful = useful_flops(job) if peak else 0

    def extra(timing: Timing) -> dict[str, Any]:
        seconds = float(np.median(timing.seconds))
        devices = jax.device_count() if timing.name == OURS else 1
        return {
            "first_loss": timing.value,
            **{f"{unit}_per_second": count / seconds for unit, count in units.items()},
            "gflop_per_step": work / 1e9,
            "gflop_per_second": work / 1e9 / seconds,
            "matmul_gflop_per_second": rate / 1e9,
            "share_of_matmul_rate": work / seconds / rate,
            "mfu": useful / (seconds * devices * peak) if peak else None,
        }

    case = ", ".join(filter(None, (options.preset, options.objective)))
    records = run.records(case, timings, extra)
    say(f"added to {save(records, options.out)}")
    _show(options, records, work, rate)
    return records


def _contestants(
    options: Step, arch: str, config: Any, recipe: Recipe, slices: int
) -> list[Contestant]:
    found = [Contestant(OURS, partial(jax_step, arch, config, recipe))]
    device = torch_device() if options.eager or options.compile else None
    for compiled, wanted in ((False, options.eager), (True, options.compile)):
        if device is None or not wanted:
            continue
        for count in (1, slices)[: 1 + (slices > 1)]:
            name = f"PyTorch {'compiled' if compiled else 'eager'}"
            name += f", {count} slices" if count > 1 else ""
            make = partial(torch_step, arch, config, recipe, count, compiled, device)
            found.append(Contestant(name, make))
    if options.seed_package is not None:
        make = partial(seed_step, options.seed_package, config, recipe)
        found.append(Contestant("BwETAF 0.5.1", make))
    return found


def _slices(arch: str, recipe: Recipe, arrays: dict[str, Any]) -> int:
    """The number of slices in which our step takes a batch."""
    if jaxmodels.arch(arch).CROSS_ROW_LOSS:
        return 1
    zeros = {name: np.zeros(leaf.shape, leaf.dtype) for name, leaf in arrays.items()}
    return recipe.slices or auto_slices(zeros, make_mesh(recipe.mesh))


def _sizes(arrays: dict[str, Any]) -> str:
    return ", ".join(f"{name} {' × '.join(map(str, leaf.shape))}" for name, leaf in arrays.items())


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
        "torch_optimiser": {"muon": "Muon, and fused AdamW"}.get(
            recipe.optim.name, f"{recipe.optim.name}, fused"
        ),
    }


def _show(options: Step, records: list[dict[str, Any]], work: float, rate: float) -> None:
    print(
        f"\n### Train step of {options.preset}, {'isolated' if options.isolated else 'one'} process"
    )
    columns = {
        "compile_ms": "compile ms",
        "tokens_per_second": "tokens/s",
        "gflop_per_second": "GFLOP/s",
        "share_of_matmul_rate": "of the products' rate",
        "mfu": "MFU",
        "peak_bytes": "peak bytes",
    }
    print(table(records, columns))
    print(f"\n{work / 1e9:.1f} GFLOP in matrix products a step; the largest of them alone runs at")
    print(f"{rate / 1e9:.0f} GFLOP/s; {cores()} threads each; load before: ", end="")
    print(records[0]["machine"]["load_before"], flush=True)


def _forward(arch: str, config: Any, recipe: Recipe, batch: dict[str, Any]) -> list[Product]:
    """The matrix products of the loss of a batch, counted from its trace."""
    package = jaxmodels.arch(arch)
    graphdef, _, abstract, _ = training(package, config, recipe, make_mesh(recipe.mesh))

    def loss(params: Any, rest: Any, batch: Any) -> jax.Array:
        return package.loss(graphdef.merge(params, rest), batch, None)[0]

    return products(loss, abstract.params, abstract.model_state, batch)
