"""A run directory: its checkpoints, and the identity of its model. Does not import JAX.

Every checkpoint's manifest carries the run's identity (architecture, model sizes, sha256 of the
vocabulary), since two letters swapped in `characters.json` fit every shape. Sizes are stored as
values, not as a digest, so that a field of a later version is no damage. The rest of config.json
may change when a run is resumed.
"""

import math
from pathlib import Path
from typing import Any

from jaxmodels.errors import CORRUPT, Problem
from jaxmodels.reading import digest, read_json
from jaxmodels.runtime.manifest import MANIFEST
from jaxmodels.runtime.settings import differences

CONFIG = "config.json"
BASE = "base"
"""With `--lora`: the model directory of the frozen model."""
VOCABULARIES = ("characters.json", "tokenizer.json")


def steps(folder: Path) -> list[int]:
    """Steps of the checkpoints in a `checkpoints` folder, oldest first.

    A checkpoint is a folder whose name is a number and that has some part of one.
    """
    if not folder.is_dir():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if _is_checkpoint(path))


def strays(folder: Path) -> list[str]:
    """Sorted names of everything else in a `checkpoints` folder, except hidden files."""
    if not folder.is_dir():
        return []
    names = (path.name for path in folder.iterdir() if not _is_checkpoint(path))
    return sorted(name for name in names if not name.startswith("."))


def _is_checkpoint(path: Path) -> bool:
    name = path.name
    number = name.isascii() and name.isdecimal() and str(int(name)) == name
    return number and any((path / part).exists() for part in (MANIFEST, "params", "train"))


def manifest_value(checkpoint: Path, name: str) -> Any:
    """An entry of a checkpoint's manifest; None if it is missing."""
    return _read(checkpoint / MANIFEST).get(name)


def valid_loss(checkpoint: Path) -> float | None:
    """The validation loss stored with a checkpoint; None if there is none."""
    loss = metrics(checkpoint).get("valid_loss")
    return loss if isinstance(loss, float) and math.isfinite(loss) else None


def identity(run: Path) -> dict[str, Any]:
    """What gives a run's parameters their meaning, for the manifests of its checkpoints.

    `arch`, `model` and `lora` of config.json, and `files`: the sha256 of the run's vocabulary and, with
    `--lora`, of the base model's manifest.
    """
    config = _read(run / CONFIG)
    base = f"{BASE}/{MANIFEST}"  # whose digests are those of the base model
    present = [name for name in (*VOCABULARIES, base) if (run / name).is_file()]
    recipe = config.get("recipe")
    lora = recipe.get("lora") if isinstance(recipe, dict) else None
    return {
        "arch": config.get("arch"),
        "model": config.get("model"),
        **({"lora": lora} if lora else {}),  # its alpha is in no shape
        "files": {name: digest(run / name) for name in present},
    }


def changed_since(checkpoint: Path) -> list[str]:
    """How the run's identity differs from when this checkpoint was saved: one sentence each.

    Empty if nothing changed, if the checkpoint is not in a run, or if it predates this record.
    Fields that the model's Config got since do not count.
    """
    run = checkpoint.absolute().parent.parent
    then, now = _read(checkpoint / MANIFEST).get("run"), identity(run)
    if not isinstance(then, dict) or not (run / CONFIG).is_file():
        return []
    known = {name: _only(now.get(name), value) for name, value in then.items()}
    return [
        f"{name.removeprefix('files.')} is not the one that the checkpoint was saved with"
        if name.startswith("files.")
        else f"{CONFIG} says {name} = {new!r}; it was {old!r} when the checkpoint was saved"
        for name, (old, new) in differences(then, known).items()
    ]


def refuse_changed(checkpoint: Path) -> None:
    """Raises a Problem (corrupt) if the run's identity is not that of the checkpoint."""
    if changed := changed_since(checkpoint):
        raise Problem(
            "the run's files are not those of its checkpoint",
            where=str(checkpoint),
            why="\n".join(changed),
            fix="restore them from a copy of the run",
            exit_code=CORRUPT,
        )


def metrics(checkpoint: Path) -> dict[str, float]:
    """The metrics stored with a checkpoint; empty if they cannot be read."""
    try:
        return dict(_read(checkpoint / MANIFEST)["metrics"])
    except (KeyError, ValueError, TypeError):
        return {}


def best(folder: Path) -> int | None:
    """The step with the lowest validation loss; None if no checkpoint has one."""
    losses = {step: valid_loss(folder / str(step)) for step in steps(folder)}
    known = {step: loss for step, loss in losses.items() if loss is not None}
    return min(known, key=lambda step: known[step]) if known else None


def jump_checkpoints(folder: Path, most: int = 2) -> list[int]:
    """The newest checkpoints saved because the loss jumped, each with the one before it."""
    found = steps(folder)
    jumps = [at for at, step in enumerate(found) if "jump" in metrics(folder / str(step))]
    return [step for at in jumps[-most:] for step in found[max(at - 1, 0) : at + 1]]


def _read(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty if it cannot be read."""
    try:
        return read_json(path)
    except (OSError, ValueError):
        return {}


def _only(value: Any, like: Any) -> Any:
    """A dict restricted to the keys of another."""
    if isinstance(value, dict) and isinstance(like, dict):
        return {name: value.get(name) for name in like}
    return value
