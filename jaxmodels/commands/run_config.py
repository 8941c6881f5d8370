"""config.json of a run: its settings, read as any version wrote them, and written."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import jaxmodels
from jaxmodels.cli import say
from jaxmodels.errors import CORRUPT, Problem
from jaxmodels.recipe import Optim, Recipe
from jaxmodels.runtime.files import write_json
from jaxmodels.runtime.runs.rundir import CONFIG, VOCABULARIES, steps
from jaxmodels.runtime.runs.seal import damage_to_keep, unseal
from jaxmodels.runtime.settings import read_file


def read_settings(path: Path) -> dict[str, Any]:
    """A run's config.json. A field that an earlier version did not write has its default, which
    for a new field is what was done before there was one; a preset may say otherwise.

    Raises:
        Problem: (usage) it cannot be read; (corrupt) it is not the config of a run.
    """
    stored = read_file(path)
    arch, model, recipe = stored.get("arch"), stored.get("model"), stored.get("recipe")
    optim = recipe.get("optim", {}) if isinstance(recipe, dict) else None
    names = isinstance(arch, str) and isinstance(stored.get("preset"), str)
    if not names or not isinstance(model, dict) or not isinstance(optim, dict):
        raise Problem(
            "this is not the config.json of a run",
            where=str(path),
            why="it lacks arch, preset, model or recipe: the file was damaged or edited",
            fix="restore it from a copy of the run",
            exit_code=CORRUPT,
        )
    if isinstance(arch, str) and arch in jaxmodels.ARCHS:
        stored["model"] = asdict(jaxmodels.arch(arch).Config()) | model
    stored["recipe"] = {**asdict(Recipe()), **(recipe or {}), "optim": asdict(Optim()) | optim}
    return stored


def history_of(stored: dict[str, Any]) -> list[dict[str, Any]]:
    """The changes of a run's settings that its config.json lists; see `resume.compare_settings`."""
    found = stored.get("history", [])
    return [dict(entry) for entry in found] if isinstance(found, list) else []


def write_config(
    run: Path, settings: dict[str, Any], history: list[dict[str, Any]], data: Any
) -> None:
    """Writes config.json and the tokeniser of a run that is about to train; removes its seal.

    Args:
        run: the run directory.
        settings: of `Request.settings`.
        history: of the settings, by `resume.compare_settings`.
        data: the run's.
    """
    from jaxmodels.runtime import platform

    begun = bool(steps(run / "checkpoints"))
    damaged = damage_to_keep(run) if begun else []
    for line in damaged:
        say(f"warning: {line}")
    unseal(run, damaged)
    written = settings | {
        **({"history": history} if history else {}),
        "data": data.identity,
        "version": jaxmodels.__version__,
        "environment": platform.environment(),
    }
    if begun and (run / CONFIG).is_file():
        stored = read_file(run / CONFIG)
        written["init"] = stored.get("init")
        if written["init"]:
            written["recipe"]["tokenizer"] = stored["recipe"]["tokenizer"]
    write_json(run / CONFIG, written)
    _write_tokenizer(run, data.tokenizer)


def _write_tokenizer(run: Path, tokenizer: Any) -> None:
    own = {tokenizer.FILE} if tokenizer else set()
    if getattr(tokenizer, "settings", ""):
        own.add("tokenizer_config.json")
    for name in {*VOCABULARIES, "tokenizer_config.json"} - own:  # of a start with other data
        (run / name).unlink(missing_ok=True)
    if tokenizer:
        tokenizer.save(run)
