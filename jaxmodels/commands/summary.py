"""How a training run ended: summary.json, a few lines, the exit code."""

import math
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jaxmodels.cli import emit, say
from jaxmodels.commands.train_options import Train, repeated
from jaxmodels.errors import DONE, INTERRUPTED, STOPPED, USAGE
from jaxmodels.runtime.files import read_json, write_json
from jaxmodels.runtime.reporting.progress import duration
from jaxmodels.runtime.runs.outcome import STOPPED_EARLY, Outcome
from jaxmodels.runtime.runs.seal import seal


def conclude(
    run: Path, outcome: Outcome, argv: list[str], options: Train[Any], seconds: float, asked: str
) -> int:
    """Writes and prints the summary.

    Args:
        run: the run directory.
        outcome: how it ended.
        argv: the command, to be repeated if there is no checkpoint.
        options: the command, parsed.
        seconds: since the process began.
        asked: what `generate` may be asked for, as flags; empty if the model writes nothing.

    Returns:
        0 done, 75 stopped, 130 interrupted; 2 if the granted hours were too few for a step
        and were so the last time, because calling again would change nothing.
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
    _print(run, outcome, again, asked)
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
    """Says that more steps are done than asked for; with --json, what the last call left."""
    here = shlex.quote(str(run))
    say(
        f"{done} steps are done, more than --steps {options.recipe.steps}: the run stays as it is",
        f"longer:    jaxmodels train --out {here}{options.place} --steps {2 * done}",
    )
    if options.json:
        emit(_last(run / "summary.json") or {"reason": "done", "step": done, "run": str(run)})
    return DONE


def _last(path: Path) -> dict[str, Any]:
    """The summary of the call before this one; empty when it cannot be read."""
    try:
        return read_json(path)
    except (OSError, ValueError):
        return {}


def _idle(reason: str, idle: bool) -> bool:
    return idle and reason == "time is up"


def _was_idle(path: Path) -> bool:
    """Whether the call before this one had too few hours for a step, too."""
    last = _last(path)
    return bool(_idle(str(last.get("reason")), bool(last.get("idle"))))


def _print(run: Path, outcome: Outcome, again: str, asked: str) -> None:
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
            f"generate:  jaxmodels generate {here} {asked}"
            if asked
            else f"measure:   jaxmodels eval {here}",
            f"convert:   jaxmodels convert {here} {shlex.quote(f'{run}-pytorch')}",
        )


def _print_too_few_hours(given: float, reserve: float, seconds: float, hopeless: bool) -> None:
    """Tells how many hours a step needs: the start (twice, as the step is yet to be compiled)
    and the reserve, rounded up to hundredths."""
    needed = math.ceil((2 * seconds + reserve) / 36) / 100
    say(
        f"--max-hours {given:g} leaves no time for a step: the start took {seconds:.0f} s, and "
        f"{reserve:.0f} s are kept for the save at the end",
        f"give --max-hours {needed} or more"
        + ("; this happened twice in a row, so calling again would not help" if hopeless else ""),
    )
