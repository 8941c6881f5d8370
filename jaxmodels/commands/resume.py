"""Checks before a run is resumed, which must stay the same run.

Settings that decide what is learned may not change; steps, cadence, prompt, and how it is computed
(mesh, remat, slices) may. A lower peak rate and closer clipping may be given, up to the largest
value that the run has had; `history` in config.json records what changed from which step on. The
data may have moved: its sha256 and vocabulary are compared. A resumed run keeps its tokeniser, read
from the run, and its vocabulary sizes: a repeated command without `--model.vocab` would otherwise
make another model, and a run started by `--init` would lose the checkpoint's vocabulary.
"""

import math
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxmodels.cli import say
from jaxmodels.commands.run_config import history_of, read_settings
from jaxmodels.errors import CORRUPT, EXISTS, MISMATCH, Problem
from jaxmodels.files import write_json
from jaxmodels.recipe import Recipe
from jaxmodels.runtime import settings
from jaxmodels.runtime.multihost.processes import broadcast, is_primary
from jaxmodels.runtime.runs import rundir
from jaxmodels.runtime.runs.sound import newest_sound

# Recipe fields that may differ when a run is resumed; all others decide what is learned.
_FREE = {"data", "steps", "keep", "prompt", "mesh", "remat", "slices", "xla", "report_to"} | {
    "eval_every",
    "eval_batches",
    "save_every",
    "save_minutes",
    "on_divergence",
    "sample_every",
    "stats_every",
    "jump",
    "patience",
    "optim.schedule_steps",
    "optim.end_lr",
    "optim.min_lr",
}
# May be lowered for a run that diverged, and raised again up to the largest value that it has had.
_PEAK, _CLIP = "recipe.optim.peak_lr", "recipe.optim.clip"
_LIMITED = {_PEAK: " (it may be lowered)", _CLIP: " (it may be lowered; 0 is no clipping)"}


def check_resume(run: Path, resume: str) -> bool:
    """Whether there is a checkpoint to resume from; refuses what `--resume` forbids."""
    checkpoints = run / "checkpoints"
    found = bool(rundir.steps(checkpoints))
    if found and resume == "never":
        raise Problem(
            "the folder already holds a run",
            where=str(run),
            fix="give another --out, or --resume auto to continue this one",
            exit_code=EXISTS,
        )
    if not found and resume == "must":
        raise Problem(
            "there is no checkpoint to resume from",
            where=str(checkpoints),
            fix="check --out, or start a new run with --resume auto",
            exit_code=CORRUPT,
        )
    return found


def compare_settings(run: Path, wanted: dict[str, Any]) -> list[dict[str, Any]]:
    """Refuses to resume a run with settings that would make it another run.

    Args:
        run: the run directory.
        wanted: the settings of this call, by `Request.settings`.

    Returns:
        the history of the run's settings: for each call that changed any, {"step", "changed"}: from
        which step on, and name → [old, new]. This call's entry, if any, is the last; its step is
        that of the newest checkpoint until `resumed` is called with the actual one.
    """
    if not (run / "config.json").exists():
        raise Problem(
            "the run has lost its config.json",
            where=str(run),
            why="without it, settings and data cannot be compared with those of the run",
            fix="restore it from a copy of the run, or give another --out",
            exit_code=CORRUPT,
        )
    stored = read_settings(run / "config.json")
    history = history_of(stored)
    changed = settings.differences(
        {name: stored.get(name) for name in ("arch", "model", "recipe")},
        {name: wanted[name] for name in ("arch", "model", "recipe")},
    )
    for name in ("model.vocab", "model.tokens"):  # derived from the data, which is compared itself
        changed.pop(name, None)
    if stored.get("init"):  # so is the tokeniser of a run started from a checkpoint
        changed.pop("recipe.tokenizer", None)
    fixed = [
        f"{_change(name, old, new)}{_LIMITED.get(name, '')}"
        for name, (old, new) in changed.items()
        if not _may_change(name, new, [*history, {"changed": changed}])
    ]
    if fixed:
        raise Problem(
            "the run was started with other settings",
            where=str(run / "config.json"),
            why="\n".join(fixed),
            fix="give another --out, or continue with the run's settings:\n"
            f"jaxmodels train --out {shlex.quote(str(run))}",
            exit_code=MISMATCH,
        )
    for name in sorted(changed):
        old, new = changed[name]
        say(f"changed since the last call: {_change(name, old, new)}")
    if changed:
        step = rundir.steps(run / "checkpoints")[-1]
        history.append({"step": step, "changed": {k: list(v) for k, v in changed.items()}})
    return history


def _change(name: str, old: Any, new: Any) -> str:
    """A changed setting by the option that gives it: --optim.peak-lr 0.01 → 0.001."""
    option = "--" + name.removeprefix("recipe.").replace("_", "-")
    before, after = ("not given" if value in ("", None) else value for value in (old, new))
    return f"{option} {before} → {after}"


def _may_change(name: str, new: Any, history: list[dict[str, Any]]) -> bool:
    """Whether a setting may have a new value.

    Args:
        name: such as recipe.optim.peak_lr.
        new: its new value.
        history: of the run's settings, this change included.
    """
    if name not in _LIMITED:
        return name.removeprefix("recipe.") in _FREE
    had = [entry["changed"][name][0] for entry in history if name in entry["changed"]]
    return any(_loose(name, new) <= _loose(name, old) for old in had)


def _loose(name: str, value: float) -> float:
    """The value as a limit: a clip of 0 means no clipping, the loosest."""
    return value or math.inf if name == _CLIP else value


class NothingToDo(Exception):
    """More steps are done than requested."""

    def __init__(self, done: int):
        super().__init__(f"{done} steps are done")
        self.done = done


def refuse_fewer_steps(run: Path, steps: int) -> None:
    """Raises NothingToDo if the newest sound checkpoint is later than the last step requested; all
    processes raise it, or none."""
    done, folder = 0, run / "checkpoints"
    later = is_primary() and max(rundir.steps(folder), default=0) > steps
    if later and (found := newest_sound(folder, {})):
        found.release()
        done = int(found.folder.name)
    if (done := broadcast(done)) > steps:
        raise NothingToDo(done)


def on_resume(run: Path, recipe: Recipe, history: list[dict[str, Any]]) -> Callable[[int], None]:
    """A function to call with the step that a run resumes from: it writes the step into the history
    and prints how the learning rate changes. To be made before config.json is written.

    Args:
        run: the run directory.
        recipe: the recipe of this call.
        history: by `compare_settings`.
    """
    if not is_primary() or not history:
        return lambda step: None
    stored = read_settings(run / "config.json")
    if history == history_of(stored):
        return lambda step: None
    before = settings.merge(Recipe(), stored["recipe"], str(run / "config.json"))

    def resumed(step: int) -> None:
        config = settings.read_file(run / "config.json")
        if config["history"][-1]["step"] != step:
            config["history"][-1]["step"] = step
            write_json(run / "config.json", config)
        _print_rate(before, recipe, step)

    return resumed


def _print_rate(before: Recipe, after: Recipe, step: int) -> None:
    """Prints how the learning rate continues, if that changed."""
    from jaxmodels.runtime.optim import schedule

    if (before.horizon, before.optim) == (after.horizon, after.optim):
        return
    was, will = (schedule(recipe.optim, recipe.horizon) for recipe in (before, after))
    old, new, end = float(was(step)), float(will(step)), float(will(after.steps))
    if abs(new - old) > 1e-6 * max(new, old):
        why = ""
        if before.horizon != after.horizon:
            why = f": its schedule now runs over {after.horizon} steps, not {before.horizon}"
        say(f"the learning rate goes from {old:.3g} to {new:.3g} at step {step}{why}")
    if new > old and after.horizon > before.horizon:
        say(
            f"to keep the decay as it was, add --optim.schedule-steps {before.horizon}: the "
            f"learning rate then stays at {float(was(after.steps)):.3g} from there on, or at "
            "--optim.end-lr"
        )
    if max(new, end) == 0:
        say("the learning rate is 0, so nothing is learned; --optim.end-lr changes that")


def run_tokenizer(run: Path) -> Any:
    """The tokeniser of a run with checkpoints; None if it has none."""
    from data_pipelines.tokenizers import load_tokenizer

    there = any((run / name).is_file() for name in rundir.VOCABULARIES)
    return load_tokenizer(run) if there else None


def run_vocabulary_sizes(run: Path) -> dict[str, int]:
    """The vocabulary sizes of a run with checkpoints, as fields of its Config."""
    if not (run / "config.json").exists():
        return {}
    model = settings.read_file(run / "config.json").get("model", {})
    return {name: model[name] for name in ("vocab", "tokens") if name in model}


def compare_data(run: Path, data: Any) -> None:
    """Refuses data whose vocabulary or tokens differ from those of the run."""
    ours, theirs = run_tokenizer(run), data.tokenizer
    if (ours and ours.digest) != (theirs and theirs.digest):
        sizes = [one.vocab_size if one else "no" for one in (ours, theirs)]
        raise Problem(
            "the vocabulary of the data is not the one that this run was trained with",
            where=str(run),
            why=f"the run has {sizes[0]} tokens, the data {sizes[1]}",
            fix="resume with the data that the run was started with, or give another --out",
            exit_code=MISMATCH,
        )
    stored = settings.read_file(run / "config.json").get("data", {})
    now = data.identity_as(stored)
    if changed := settings.differences(stored, now):
        raise Problem(
            "the data is not what this run was started with",
            where=data.spec,
            why="\n".join(f"{name}: {old!r} → {new!r}" for name, (old, new) in changed.items()),
            fix="resume with the same data, or give another --out",
            exit_code=MISMATCH,
        )
