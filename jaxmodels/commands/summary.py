"""How a training run ended: summary.json, a few lines, the exit code."""

import math
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jaxmodels.cli import emit, say
from jaxmodels.commands.train_options import Train, repeated
from jaxmodels.errors import DONE, INTERRUPTED, STOPPED, USAGE
from jaxmodels.files import write_json
from jaxmodels.reading import read_json
from jaxmodels.runtime.reporting.progress import duration
from jaxmodels.runtime.runs.outcome import STOPPED_EARLY, Outcome
from jaxmodels.runtime.runs.seal import seal


def conclude(
    run: Path,
    outcome: Outcome,
    argv: list[str],
    options: Train[Any],
    seconds: float,
    generate_flags: str,
) -> int:
    """Writes and prints the summary.

    Args:
        run: the run directory.
        outcome: how it ended.
        argv: the command, to be repeated if there is no checkpoint.
        options: the command, parsed.
        seconds: since the process started.
        generate_flags: flags of `generate`; empty if the model cannot generate.

    Returns:
        0 done, 75 stopped, 130 interrupted; 2 if two calls in a row had too few hours for a step: a
        scheduler that calls again on 75 would do so for ever. (The first may have prepared the data
        or filled the compilation cache.)
    """
    here = shlex.quote(str(run))
    again = f"jaxmodels train --out {here}{options.place}"
    again = again if outcome.checkpoint else repeated(argv)
    hopeless = _idle(outcome.reason, outcome.idle) and _was_idle(run / "summary.json")
    summary = asdict(outcome) | {
        "idle": outcome.idle,
        "goodput": outcome.goodput,
        "run": str(run),
        "command": again,
    }
    write_json(run / "summary.json", summary)
    seal(run)
    _print(run, outcome, again, generate_flags)
    if outcome.reason == STOPPED_EARLY:
        say(f"the validation loss was not lower in {options.recipe.patience} evaluations in a row")
    if _idle(outcome.reason, outcome.idle):
        _print_too_few_hours(options.max_hours or 0.0, outcome.reserve, seconds, hopeless)
    if options.json:
        emit(summary)
    if outcome.reason == "interrupted":
        return INTERRUPTED
    if hopeless:
        return USAGE
    return DONE if outcome.done else STOPPED


def nothing_to_do(run: Path, done: int, options: Train[Any]) -> int:
    """Prints that more steps are done than requested; with --json, the summary of the last call."""
    here = shlex.quote(str(run))
    say(
        f"{done} steps are done, more than --steps {options.recipe.steps}: nothing to do",
        f"longer:    jaxmodels train --out {here}{options.place} --steps {2 * done}",
    )
    if options.json:
        emit(_last(run / "summary.json") or {"reason": "done", "step": done, "run": str(run)})
    return DONE


def _last(path: Path) -> dict[str, Any]:
    """The summary of the previous call; empty if it cannot be read."""
    try:
        return read_json(path)
    except (OSError, ValueError):
        return {}


def _idle(reason: str, idle: bool) -> bool:
    return idle and reason == "time is up"


def _was_idle(path: Path) -> bool:
    """Whether the previous call had too few hours for a step, too."""
    last = _last(path)
    return bool(_idle(str(last.get("reason")), bool(last.get("idle"))))


def _print(run: Path, outcome: Outcome, again: str, generate_flags: str) -> None:
    here, best = shlex.quote(str(run)), outcome.best_valid_loss
    spent = ", ".join(
        f"{part} {duration(time)}" for part, time in outcome.seconds.items() if time >= 1
    )
    known = {"goodput": outcome.goodput, "MFU": outcome.mfu}
    rates = ", ".join(f"{name} {share:.0%}" for name, share in known.items() if share)
    say(
        f"{outcome.reason}: step {outcome.step} of {outcome.steps}"
        + (f", best validation loss {best:.4f} (step {outcome.best_step})" if best else ""),
        f"time: {spent or 'under a second'}" + (f"; {rates}" if rates else ""),
    )
    if outcome.idle and not outcome.done:
        say("no step was done" + ("" if outcome.checkpoint else ", so there is no checkpoint"))
    if outcome.checkpoint:
        say(f"checkpoint: {run / 'checkpoints' / str(outcome.checkpoint)}")
    if not outcome.done:
        say(f"continue:  {again}")
    else:
        further = (
            "--patience 0" if outcome.reason == STOPPED_EARLY else f"--steps {2 * outcome.steps}"
        )
        say(
            f"longer:    {again} {further}",
            f"generate:  jaxmodels generate {here} {generate_flags}"
            if generate_flags
            else f"measure:   jaxmodels eval {here}",
            f"convert:   jaxmodels convert {here} {shlex.quote(f'{run}-pytorch')}",
        )


def _print_too_few_hours(given: float, reserve: float, seconds: float, hopeless: bool) -> None:
    """Prints the hours that a step needs: the start (twice, as the step is yet to be compiled) and
    the reserve, rounded up to hundredths."""
    needed = math.ceil((2 * seconds + reserve) / 36) / 100
    say(
        f"--max-hours {given:g} leaves no time for a step: the start took {seconds:.0f} s, and "
        f"{reserve:.0f} s are reserved for the last save",
        f"give --max-hours {needed} or more"
        + ("; this happened twice in a row, so calling again would not help" if hopeless else ""),
    )
