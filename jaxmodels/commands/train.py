"""`jaxmodels train`: opens the data, trains, says how to go on."""

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import jaxmodels
from jaxmodels.cli import emit, refuse_repeated, say
from jaxmodels.commands import multihost, resume
from jaxmodels.commands.initial import refuse_own_characters, starter
from jaxmodels.commands.run_data import (
    asked_for,
    describe,
    fitting,
    open_data,
    refuse_other_kind,
    sampler,
)
from jaxmodels.commands.summary import conclude, nothing_to_do
from jaxmodels.commands.train_options import Train, repeated, resolve
from jaxmodels.errors import DONE, INTERRUPTED, MISMATCH, STOPPED, USAGE, Problem
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
from jaxmodels.runtime.runs.outcome import not_begun
from jaxmodels.runtime.runs.rundir import VOCABULARIES, steps
from jaxmodels.runtime.runs.seal import damage_to_keep, unseal
from jaxmodels.runtime.stop import Stop, Stopped


def main(argv: list[str]) -> int:
    """Runs the verb; 0 done, 75 stopped but resumable, 130 interrupted (also resumable)."""
    with Stop() as stop:
        refuse_repeated(argv, "--data", "mix the texts, each with its weight: --data mix:3*A,1*B")
        arch, preset, options, source = resolve(argv)
        resolved = {
            "arch": arch,
            "preset": preset,
            "model": asdict(options.model),
            "recipe": asdict(options.recipe),
            "init": {"path": str(options.init), "optimizer": options.init_optimizer}
            if source
            else None,
        }
        if options.print_config:
            print(json.dumps(resolved, indent=2))
            return DONE
        if options.out is None:
            raise Problem("--out is missing", fix="give a folder for the run", exit_code=USAGE)
        if options.max_hours is not None:
            stop.deadline = stop.began + 3600 * options.max_hours
        try:
            multihost.join(options, resolved, stop, source)
        except Stopped:
            say(f"{stop.reason} before the other processes came")
            return INTERRUPTED if stop.reason == "interrupted" else STOPPED
        with together(), multihost.held(options.out), lost_is_resumable():
            return _run(options.out, options, resolved, argv, stop, source)


def _run(
    run: Path,
    options: Train[Any],
    resolved: dict[str, Any],
    argv: list[str],
    stop: Stop,
    source: Any,
) -> int:
    """Trains, or tries learning rates. A stop before the first step loses nothing."""
    try:
        try:
            data, options = _prepare(run, options, resolved, stop, source)
        except resume.NothingToDo as problem:
            begun()
            return finish(nothing_to_do(run, problem.done, options) if is_primary() else DONE)
        begin = None
        if source is not None:
            begin = starter(source, options.model, options.init_optimizer)
        if options.find_lr:
            return _find_lr(run, options, resolved, data, argv, stop, begin)
        resumed = resume.teller(run, options.recipe, resolved.get("history", []))
        if is_primary():
            _write_config(run, resolved, data)
        job = _job(run, options, resolved, data, stop)
        job.resumed = resumed
        job.begin = begin or job.begin
        from jaxmodels.runtime.reporting.plots import draw
        from jaxmodels.runtime.training.train import train

        stop.check()
        all_gather()
        begun()
        try:
            outcome = train(job)
            # What is not measured apart is nearly all before the first step: reading the data,
            # building the model, restoring the checkpoint.
            rest = time.monotonic() - stop.began - sum(outcome.seconds.values())
            outcome.seconds["start"] += max(rest, 0.0)
        finally:
            if is_primary():
                draw(run)
    except Stopped:
        tell_stop(stop.reason or "")
        if options.find_lr:  # of a run that is there, the summary stays
            say(f"{stop.reason}: not all learning rates were tried, so none is suggested")
            return INTERRUPTED if stop.reason == "interrupted" else STOPPED
        outcome = not_begun(
            run / "checkpoints",
            options.recipe.steps,
            stop.reason or "",
            time.monotonic() - stop.began,
        )
    begun()
    took = time.monotonic() - stop.began
    asked = asked_for(jaxmodels.arch(resolved["arch"]), options.model)
    code = conclude(run, outcome, argv, options, took, asked) if is_primary() else DONE
    return finish(code)


def _prepare(
    run: Path, options: Train[Any], resolved: dict[str, Any], stop: Stop, source: Any
) -> tuple[Any, Train[Any]]:
    """The data, and the options with its vocabulary; refuses what does not go together."""
    from jaxmodels.runtime import platform
    from jaxmodels.sizes import parameters, vocab_used

    stop.check()
    platform.prepare()
    platform.choose_thread(parameters(resolved["arch"], options.model))
    multihost.refuse_apart(run)
    has_checkpoint = resume.check_resume(run, options.resume)
    # Before the data, which may take long to prepare.
    _check_devices(jaxmodels.arch(resolved["arch"]), options)
    refuse_other_kind(options.recipe.data, options.model, resolved["arch"])
    history = resume.compare_settings(run, resolved, has_checkpoint)
    if has_checkpoint and not options.find_lr:
        resume.refuse_fewer_steps(run, options.recipe.steps)
    resolved |= {"history": history} if history else {}
    if source is not None and not vocab_used(source.config):
        source = None  # a tower alone knows no words: they are the data's
    tokenizer = resume.own_tokenizer(run, has_checkpoint) or (source and source.tokenizer)
    if source is not None and tokenizer is None:
        refuse_own_characters(options.recipe, source)
    data = multihost.in_turn(lambda: open_data(run, options, tokenizer, has_checkpoint, stop))
    multihost.refuse_other_data(data)
    if source is not None and source.tokenizer is not None:
        resolved["recipe"]["tokenizer"] = str(run / source.tokenizer.FILE)
    sizes = resume.own_sizes(run, has_checkpoint)
    if not sizes and source is None and data.vocab_size:
        sizes = fitting(options.model, resolved, data.vocab_size)
    resolved["model"] |= sizes
    options = replace(options, model=replace(options.model, **sizes))
    if data.vocab_needed > options.model.vocab:
        raise Problem(
            f"token {data.vocab_needed - 1} does not fit a vocabulary of {options.model.vocab}",
            where=data.spec,
            fix=f"give --model.vocab {data.vocab_needed} or more"
            if source is None and not has_checkpoint
            else "give data made with the checkpoint's tokeniser: --tokenizer PATH names it, or "
            "--data bin:PATH what it made",
            exit_code=MISMATCH,
        )
    resume.compare_data(run, data, has_checkpoint)
    describe(resolved, data, options)
    return data, options


def _check_devices(package: ModuleType, options: Train[Any]) -> None:
    import jax

    from jaxmodels.runtime.multihost import processes
    from jaxmodels.runtime.sharding import check_heads, check_rows, make_mesh

    if jax.process_count() != processes.count():
        raise Problem(
            f"JAX sees {jax.process_count()} processes, and {processes.count()} met",
            fix="give --coordinator, --processes and --process",
            exit_code=USAGE,
        )
    recipe = options.recipe
    if recipe.slices > 1 and getattr(package, "CROSS_ROW_LOSS", False):
        raise Problem(
            f"a micro-batch cannot be computed in {recipe.slices} slices",
            why="the loss compares its rows with each other",
            fix="leave --slices out; --accum cuts the batch into micro-batches that are compared "
            "in themselves",
            exit_code=USAGE,
        )
    mesh = make_mesh(recipe.mesh)
    check_heads(options.model, mesh.shape["model"])
    check_rows(recipe.batch * recipe.accum, mesh.shape["data"])


def _job(run: Path, options: Train[Any], resolved: dict[str, Any], data: Any, stop: Stop) -> Any:
    from jaxmodels.runtime.sharding import make_mesh, own_rows
    from jaxmodels.runtime.training.profiler import window
    from jaxmodels.runtime.training.train import Job

    recipe, traces = options.recipe, run / "profile"
    if several():  # JAX takes a folder with the traces of two processes for damaged
        traces /= f"process{index()}"
    return Job(
        jaxmodels.arch(resolved["arch"]),
        options.model,
        recipe,
        data.train(own_rows(make_mesh(recipe.mesh), recipe.batch * recipe.accum)),
        data.valid(recipe.eval_batches),
        run,
        stop,
        sampler(jaxmodels.arch(resolved["arch"]), options.model, recipe, data),
        profile=window(options.profile, traces, recipe.steps) if options.profile else None,
    )


def _write_config(run: Path, resolved: dict[str, Any], data: Any) -> None:
    from jaxmodels.files import write_json
    from jaxmodels.runtime import platform
    from jaxmodels.runtime.settings import read_file

    damaged = damage_to_keep(run) if steps(run / "checkpoints") else []
    for line in damaged:
        say(f"warning: {line}")
    unseal(run, damaged)
    settings = resolved | {
        "data": data.identity,
        "version": jaxmodels.__version__,
        "environment": platform.environment(),
    }
    if steps(run / "checkpoints") and (run / "config.json").is_file():
        stored = read_file(run / "config.json")
        settings["init"] = stored.get("init")
        if settings["init"]:
            settings["recipe"]["tokenizer"] = stored["recipe"]["tokenizer"]
    write_json(run / "config.json", settings)
    own = {data.tokenizer.FILE} if data.tokenizer else set()
    if getattr(data.tokenizer, "settings", ""):
        own.add("tokenizer_config.json")
    for name in {*VOCABULARIES, "tokenizer_config.json"} - own:  # of a start with other data
        (run / name).unlink(missing_ok=True)
    if data.tokenizer:
        data.tokenizer.save(run)


def _find_lr(
    run: Path,
    options: Train[Any],
    resolved: dict[str, Any],
    data: Any,
    argv: list[str],
    stop: Stop,
    begin: Any,
) -> int:
    from jaxmodels.files import write_bytes, write_json
    from jaxmodels.runtime.reporting.pictures import picture
    from jaxmodels.runtime.training.find_lr import find_lr, plot

    def batches() -> Iterator[dict[str, Any]]:
        for batch in data.train():
            stop.check()
            yield batch

    package = jaxmodels.arch(resolved["arch"])
    where = {"begin": begin} if begin else {}
    result = find_lr(package, options.model, options.recipe, batches(), **where)
    write_json(run / "find_lr.json", result)
    if png := picture("the learning rates", lambda: plot(result), dpi=120):
        write_bytes(run / "find_lr.png", png)
        say(f"plot: {run / 'find_lr.png'}")
    rate = f"{result['suggestion']:.1e}"
    say(
        f"the loss falls fastest at a learning rate of {rate}",
        f"train:     {repeated(argv, '--optim.peak-lr', rate, without=('--find-lr', '--json'))}",
    )
    if options.json:
        emit(result)
    return DONE
