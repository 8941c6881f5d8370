"""`jaxmodels train`, from the command line to the last checkpoint."""

import json
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from jaxmodels.cli import refuse_repeated, say
from jaxmodels.commands import base, multihost, resume
from jaxmodels.commands.initial import state_initializer
from jaxmodels.commands.run_config import write_config
from jaxmodels.commands.run_data import (
    describe,
    fit_to_data,
    open_data,
    refuse_other_kind,
    tokenizer_of,
)
from jaxmodels.commands.run_samples import generate_flags, sampler
from jaxmodels.commands.summary import conclude, nothing_to_do
from jaxmodels.commands.train_options import Request, resolve
from jaxmodels.errors import DONE, INTERRUPTED, STOPPED, USAGE, Problem
from jaxmodels.extras import EXTRAS, require
from jaxmodels.runtime.multihost.processes import (
    all_gather,
    begun,
    finish,
    index,
    is_primary,
    lost_is_resumable,
    several,
    tell_stop,
    together,
)
from jaxmodels.runtime.runs.outcome import Outcome, stopped_before_training
from jaxmodels.runtime.stop import Stop, Stopped


class Setup(NamedTuple):
    """A prepared training."""

    request: Request
    """With the model's vocabulary sizes set from the data."""
    data: Any
    history: list[dict[str, Any]]
    """Changes of the run's settings, by `resume.compare_settings`."""
    begin: Callable[[Any], Any] | None
    """Puts the checkpoint of --init into a fresh state."""


def main(argv: list[str]) -> int:
    """Runs the command; 0 done, 75 stopped but resumable, 130 interrupted (also resumable)."""
    with Stop() as stop:
        refuse_repeated(argv, "--data", "mix the texts, each with its weight: --data mix:3*A,1*B")
        refuse_repeated(argv, "--lora", "adapt all targets alike: --lora rank=8,targets=A|B")
        request = resolve(argv)
        options = request.options
        if options.print_config:
            print(json.dumps(request.settings, indent=2))
            return DONE
        run = request.run
        if options.max_hours is not None:
            stop.deadline = stop.began + 3600 * options.max_hours
        try:
            multihost.join(request, stop)
        except Stopped:
            say(f"{stop.reason} before the other processes joined")
            return _stopped(stop)
        with together(), multihost.run_lock(run), lost_is_resumable():
            return _run(request, stop)


def _run(request: Request, stop: Stop) -> int:
    """Trains, or tries learning rates, and reports. A stop before the first step loses nothing."""
    run, options = request.run, request.options
    try:
        setup = _prepare(request, stop)
        if options.find_lr:
            from jaxmodels.commands.find_lr import try_rates

            return try_rates(setup.request, setup.data, stop, setup.begin)
        outcome = _train(setup, stop)
    except resume.NothingToDo as problem:
        begun()
        return finish(nothing_to_do(run, problem.done, options) if is_primary() else DONE)
    except Stopped:
        tell_stop(stop.reason or "")
        if options.find_lr:  # do not overwrite the summary of an existing run
            say(f"{stop.reason}: not all learning rates were tried, so none is suggested")
            return _stopped(stop)
        seconds = time.monotonic() - stop.began
        outcome = stopped_before_training(
            run / "checkpoints", request.recipe.steps, stop.reason or "", seconds
        )
    begun()
    if not is_primary():
        return finish(DONE)
    took = time.monotonic() - stop.began
    next_flags = generate_flags(request.package, request.config)
    return finish(conclude(run, outcome, request.argv, options, took, next_flags))


def _stopped(stop: Stop) -> int:
    return INTERRUPTED if stop.reason == "interrupted" else STOPPED


def _prepare(request: Request, stop: Stop) -> Setup:
    """Checks the request, cheapest checks first; opens the data; fits the model to it."""
    from jaxmodels.runtime import platform
    from jaxmodels.sizes import parameters

    run, options = request.run, request.options
    stop.check()
    platform.prepare()
    platform.choose_thread(parameters(request.arch, request.config))
    multihost.refuse_unshared_folder(run)
    resuming = resume.check_resume(run, options.resume)
    _check_devices(request)
    for name in set(request.recipe.trackers) & set(EXTRAS):
        require(name, f"--report-to {name}")
    base.check(request, resuming)
    refuse_other_kind(request.recipe.data, request.config, request.arch)
    history = resume.compare_settings(run, request.settings) if resuming else []
    if resuming and not options.find_lr:
        resume.refuse_fewer_steps(run, request.recipe.steps)
    tokenizer = tokenizer_of(request, resuming)
    data = multihost.primary_first(lambda: open_data(run, options, tokenizer, resuming, stop))
    multihost.refuse_other_data(data)
    request = fit_to_data(request, data, resuming)
    if resuming:
        resume.compare_data(run, data)
    describe(request, data)
    begin = None
    if request.source is not None:
        begin = state_initializer(request.source, request.config, options.init_optimizer)
    return Setup(request, data, history, begin)


def _check_devices(request: Request) -> None:
    import jax

    from jaxmodels.runtime.batches import takes_images
    from jaxmodels.runtime.compiler import check_options
    from jaxmodels.runtime.multihost import processes
    from jaxmodels.runtime.sharding import check_heads, check_rows, make_mesh

    if jax.process_count() != processes.count():
        raise Problem(
            f"JAX sees {jax.process_count()} processes, but {processes.count()} joined",
            fix="give --coordinator, --processes and --process",
            exit_code=USAGE,
        )
    recipe = request.recipe
    if recipe.slices > 1 and (request.package.CROSS_ROW_LOSS or takes_images(request.config)):
        raise Problem(
            f"a micro-batch cannot be computed in {recipe.slices} slices",
            why="the loss compares its rows with each other",
            fix="leave out --slices; --accum splits the batch into micro-batches whose rows are "
            "compared only among themselves",
            exit_code=USAGE,
        )
    mesh = make_mesh(recipe.mesh)
    check_options(recipe, mesh)
    check_heads(request.config, mesh.shape["model"])
    check_rows(recipe.batch * recipe.accum, mesh.shape["data"])


def _train(setup: Setup, stop: Stop) -> Outcome:
    """Writes config.json, and trains."""
    from jaxmodels.runtime.reporting.plots import draw
    from jaxmodels.runtime.training.train import train

    request = setup.request
    on_resume = resume.on_resume(request.run, request.recipe, setup.history)
    if is_primary():
        write_config(request.run, request.settings, setup.history, setup.data)
        if request.recipe.lora and request.source is not None:
            base.keep(request.run, request.source)
    job = _job(setup, stop, on_resume)
    stop.check()
    all_gather()
    begun()
    try:
        outcome = train(job)
        # Almost all time that is not measured is spent before the first step: reading the data,
        # building the model, restoring the checkpoint.
        rest = time.monotonic() - stop.began - sum(outcome.seconds.values())
        outcome.seconds["start"] += max(rest, 0.0)
        return outcome
    finally:
        if is_primary():
            draw(request.run)


def _job(setup: Setup, stop: Stop, on_resume: Callable[[int], None]) -> Any:
    from jaxmodels.runtime.sharding import local_rows, make_mesh
    from jaxmodels.runtime.training.profiler import parse_window
    from jaxmodels.runtime.training.train import Job

    request, data = setup.request, setup.data
    recipe, profile = request.recipe, request.options.profile
    traces = request.run / "profile"
    if several():  # JAX rejects a folder with the traces of two processes
        traces /= f"process{index()}"
    begin, frozen = setup.begin, None
    if recipe.lora:
        begin = base.initializer(request.run, request.config)
        frozen = base.reader(request.run, request.config)
    return Job(
        request.package,
        request.config,
        recipe,
        data.train(local_rows(make_mesh(recipe.mesh), recipe.batch * recipe.accum)),
        data.valid(recipe.eval_batches),
        request.run,
        stop,
        sampler(request.package, request.config, recipe, data),
        resumed=on_resume,
        profile=parse_window(profile, traces, recipe.steps) if profile else None,
        frozen=frozen,
        **({"begin": begin} if begin else {}),
    )
