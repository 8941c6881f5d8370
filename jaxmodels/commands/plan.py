"""`jaxmodels plan`: does a training fit TPUs or GPUs, and how fast can it be? Without any."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

from tyro.conf import arg

import jaxmodels
from jaxmodels.cli import emit, parse, say
from jaxmodels.commands.flag_names import with_our_names
from jaxmodels.commands.plan_report import budget, description, largest, show, table
from jaxmodels.commands.train_help import print_help
from jaxmodels.commands.train_options import config_file, given_fields
from jaxmodels.errors import DONE, NO_SPACE, USAGE, Problem, within
from jaxmodels.recipe import Recipe
from jaxmodels.runtime import settings
from jaxmodels.runtime.planning import gpu, tpu
from jaxmodels.runtime.planning.chips import GIB, GpuHosts, Topology, topology

C = TypeVar("C")


@dataclass(frozen=True)
class PlanOptions(Generic[C]):
    """Compile the train step of ARCH:PRESET for TPUs or GPUs that need not be there.

    Prints whether it fits, what takes the memory, what the devices send to each other, and how long
    a step takes: at least (by the data sheets), and as the compiler expects. The settings are those
    of `train`. Exit code 7: it does not fit; settings that fit are printed.
    """

    recipe: Annotated[Recipe, arg(name="")]
    model: C
    topology: str = ""
    """A TPU slice, such as v5e:4x4 or v4:2x2x2; or GPUs: h100:8 (of one host), h100:2x8 (two hosts
    with eight each); a100-40g, a100-80g, h100, h200 and b200 are known."""
    hours: float | None = None
    """A budget: also print how many steps and tokens fit into these hours."""
    search: bool = False
    """Try meshes, batches and remat policies, and print the fastest."""
    minutes: float = 15.0
    """With --search, or when it does not fit: start no compilation after this many minutes."""
    operations: bool = False
    """List the operations that the compiler expects to take most of a step's time, each with the
    line of the model that it comes from."""
    config: Path | None = None
    """A .json or .toml file with {"model": …, "recipe": …}; flags win over it."""
    json: bool = False
    """Print one JSON object on standard output."""

    def __post_init__(self) -> None:
        within("--hours", self.hours, 0)
        within("--minutes", self.minutes, 0)


def main(argv: list[str]) -> int:
    """Runs the command; 0: it fits, 7: it does not."""
    spec, options = resolve(argv)
    slice_ = topology(options.topology)
    compiler: Any = gpu if isinstance(slice_, GpuHosts) else tpu
    compiler.prepare()  # before JAX is imported
    from jaxmodels.runtime.planning.plan import Workload
    from jaxmodels.runtime.sharding import check_heads, mesh_sizes

    arch, preset, _ = jaxmodels.preset(spec)
    package = jaxmodels.arch(arch)
    sizes = mesh_sizes(options.recipe.mesh, slice_.devices, slice_.name)
    check_heads(options.model, sizes["model"])
    recipe = fit_batch(options.recipe, package.RECIPES[preset], sizes["data"])
    job = Workload(package, options.model, recipe)

    def compiled(job: Any) -> Any:
        return compiler.compile_isolated(package.module, job.config, job.recipe, slice_.name)

    run = search if options.search else plan_one
    return run(spec, job, slice_, options, compiled)


def resolve(argv: list[str]) -> tuple[str, PlanOptions[Any]]:
    """ARCH:PRESET, and its settings with those of --config and the flags.

    Raises:
        Problem: (usage) there is no preset of this name, or a setting is wrong.
    """
    argv = with_our_names(argv)
    spec, argv = (argv[0], argv[1:]) if argv and not argv[0].startswith("-") else ("", argv)
    if not spec and not {"-h", "--help"} & set(argv):
        raise Problem(
            "ARCH:PRESET is missing",
            fix="for example: jaxmodels plan wikigpt:base --topology v5e:2x2",
            exit_code=USAGE,
        )
    arch, preset, model = jaxmodels.preset(spec or "charlm:notebook")
    recipe, file = jaxmodels.learner(arch).RECIPES[preset], config_file(argv)
    default: PlanOptions[Any] = PlanOptions(
        recipe=settings.merge(recipe, file.get("recipe", {}), "recipe"),
        model=settings.merge(model, file.get("model", {}), "model"),
    )
    if {"-h", "--help"} & set(argv):
        print_help("plan", default, f"{arch}:{preset}" if spec else "")
        raise SystemExit(0)
    options = parse(PlanOptions[type(model)], argv, f"plan {arch}:{preset}", default)  # type: ignore[misc]
    given = given_fields(argv) | file.get("model", {}).keys()
    return spec, replace(options, model=settings.follow(options.model, model, given))


def fit_batch(recipe: Recipe, default: Recipe, parts: int) -> Recipe:
    """The recipe, its batch raised to a multiple of the data axis if it is the preset's.

    Raises:
        Problem: (usage) a given batch cannot be split, so `train` would refuse it.
    """
    from jaxmodels.runtime.sharding import check_rows

    if recipe.batch % parts == 0:
        return recipe
    if recipe.batch == default.batch:
        batch = parts * ceil(recipe.batch / parts)
        accum = max(1, recipe.batch * recipe.accum // batch)
        say(
            f"the preset's batch of {recipe.batch} (--accum {recipe.accum}) cannot be split over "
            f"{parts} devices: planned with --batch {batch} --accum {accum}"
        )
        return replace(recipe, batch=batch, accum=accum)
    check_rows(recipe.batch * recipe.accum, parts)
    return recipe


def plan_one(
    spec: str, job: Any, slice_: Topology, options: PlanOptions[Any], compiled: Callable[[Any], Any]
) -> int:
    """Compiles one setting and reports it; if it does not fit, searches for one that does."""
    from jaxmodels.runtime.planning.estimate import Setting
    from jaxmodels.runtime.planning.plan import TooLarge
    from jaxmodels.runtime.planning.report import report, too_large_report
    from jaxmodels.runtime.sharding import mesh_sizes

    say(f"compiling {spec} for {slice_.name}: {job.flags}")
    try:
        found = compiled(job)
        needed, result = found.bytes, report(job, found, slice_)
        if options.operations:
            result["operations"] = largest(found.operations, slice_.chip.clock)
    except TooLarge as error:
        needed, result = error.needed, too_large_report(job, error, slice_)
    result = (
        description(spec, job, slice_) | result | budget(result, job.recipe.steps, options.hours)
    )
    if result["fits"]:
        emit(result) if options.json else show(result)
        return DONE
    most = slice_.chip.usable
    needs = (
        f"a device needs {needed / GIB:.1f} GiB and has {most / GIB:.1f}" if needed else "too large"
    )
    say(f"{needs}; searching for settings that fit")
    sizes = mesh_sizes(job.recipe.mesh, slice_.devices, slice_.name)
    failed = Setting(sizes["data"], sizes["model"], job.recipe.batch, job.recipe.remat)
    near = _search(job, slice_, options, compiled).nearest(failed, needed)
    result["nearest"] = near and description(spec, near.job, slice_) | near.report
    if options.json:
        emit(result)
    raise Problem(
        f"{spec} does not fit on {slice_.name}: {needs}",
        where=job.flags,
        fix=f"the nearest settings that fit: {near.job.flags}, with {near.needed / GIB:.1f} GiB"
        if near
        else _without_settings(job, slice_),
        exit_code=NO_SPACE,
    )


def _without_settings(job: Any, slice_: Topology) -> str:
    """What to do where no settings were found that fit."""
    from jaxmodels.runtime.planning.search import enough

    devices = enough(job, slice_)
    more = f"{devices} is enough by an estimate" if devices else "take devices with more memory"
    return f"{more}; or take a smaller preset, or search longer (--minutes)"


def search(
    spec: str, job: Any, slice_: Topology, options: PlanOptions[Any], compiled: Callable[[Any], Any]
) -> int:
    """Compiles the most promising settings and reports the fastest."""
    trials = _search(job, slice_, options, compiled).frontier()
    rows = [
        description(spec, trial.job, slice_)
        | {"fits": bool(trial.report), "hbm_per_device_bytes": trial.needed}
        | trial.report
        for trial in trials
    ]
    if not rows or not rows[0]["fits"]:
        raise Problem(
            f"no settings were found with which {spec} fits on {slice_.name}",
            why="; ".join(f"{t.job.flags} needs {t.needed / GIB:.1f} GiB" for t in trials[-1:]),
            fix=_without_settings(job, slice_),
            exit_code=NO_SPACE,
        )
    best = rows[0] | budget(rows[0], job.recipe.steps, options.hours)
    if options.operations:
        best["operations"] = largest(trials[0].compiled.operations, slice_.chip.clock)
    if options.json:
        emit(best | {"frontier": rows})
    else:
        table(rows)
        show(best)
    return DONE


def _search(
    job: Any, slice_: Topology, options: PlanOptions[Any], compiled: Callable[[Any], Any]
) -> Any:
    from jaxmodels.runtime.planning.report import report
    from jaxmodels.runtime.planning.search import Search

    def reported(job: Any, compiled: Any) -> dict[str, Any]:
        return report(job, compiled, slice_)

    return Search(job, slice_, compiled, reported, 60 * options.minutes, say)
