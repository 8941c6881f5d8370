"""What lies in a run directory's `checkpoints` folder, without starting JAX."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxmodels.errors import CORRUPT, Problem
from jaxmodels.runtime.files import (
    MANIFEST,
    damage,
    differing,
    digest,
    digests,
    read_json,
    read_sealed,
    write_sealed,
)
from jaxmodels.runtime.settings import differences

CONFIG, DIGESTS = "config.json", "digests.json"
CHECKPOINTS, DATA = "checkpoints/", "data/"
VOCABULARIES = ("characters.json", "tokenizer.json")

Say = Callable[[str], None]


def steps(folder: Path) -> list[int]:
    """Steps of the complete checkpoints in a `checkpoints` folder, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal())


def valid_loss(checkpoint: Path) -> float | None:
    """The validation loss that was stored with a checkpoint; None when there is none."""
    loss = metrics(checkpoint).get("valid_loss")
    return loss if isinstance(loss, float) and math.isfinite(loss) else None


def identity(run: Path) -> dict[str, Any]:
    """What gives a run's parameters their meaning; every checkpoint's manifest carries it.

    `arch` and `model` as config.json says them (all else there may change when a run goes on),
    and `files`: the sha256 of the run's vocabulary.
    """
    config = _read(run / CONFIG)
    present = [name for name in VOCABULARIES if (run / name).is_file()]
    return {
        "arch": config.get("arch"),
        "model": config.get("model"),
        "files": {name: digest(run / name) for name in present},
    }


def changed_since(checkpoint: Path) -> list[str]:
    """What the run says otherwise than when this checkpoint was saved: one sentence each.

    Empty if nothing changed, if the checkpoint lies in no run, or if it is older than this
    record. Fields that the model's Config got since do not count.
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
    """Raises a Problem (corrupt) if the run is not what it was for this checkpoint."""
    if changed := changed_since(checkpoint):
        raise Problem(
            "the run's files are not those of its checkpoint",
            where=str(checkpoint),
            why="\n".join(changed),
            fix="restore them from a copy of the run",
            exit_code=CORRUPT,
        )


def seal(run: Path) -> None:
    """Writes digests.json, when a call of `train` ends: the digest of every file of the run.

    Not of those in `checkpoints` and `data`, which have manifests of their own.
    """
    write_sealed(run / DIGESTS, {"files": _loose(run)})


def unseal(run: Path) -> None:
    """Removes digests.json: from now on files change."""
    (run / DIGESTS).unlink(missing_ok=True)


def loose_damage(run: Path) -> list[str] | None:
    """What is wrong with a run outside of `checkpoints`: one sentence a file; empty if sound.

    None where no call of `train` came to its end, or one is running: then nobody can say.
    """
    if not (run / DIGESTS).is_file():
        return None
    try:
        promised = read_sealed(run / DIGESTS)["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return [f"{DIGESTS} is damaged ({error})"]
    problems = differing(promised, _loose(run))
    if problems or not (run / DATA / MANIFEST).is_file():
        return problems
    tokens = _read(run / DATA / MANIFEST).get("sha256")
    found = {name: entry["sha256"] for name, entry in digests(run / DATA).items()}
    return [DATA + line for line in differing(tokens if isinstance(tokens, dict) else {}, found)]


def _loose(run: Path) -> dict[str, dict[str, Any]]:
    """The digests of a run's files that `seal` speaks of."""
    apart = (CHECKPOINTS, DATA)

    def wanted(name: str) -> bool:
        ours = not name.startswith((*apart, ".")) or name == DATA + MANIFEST
        return ours and name != DIGESTS

    return digests(run, wanted)


def metrics(checkpoint: Path) -> dict[str, float]:
    """The metrics that were stored with a checkpoint; empty when they cannot be read."""
    try:
        return dict(_read(checkpoint / MANIFEST)["metrics"])
    except (KeyError, ValueError, TypeError):
        return {}


def best(folder: Path) -> int | None:
    """The step with the lowest validation loss, None when no checkpoint has one."""
    losses = {step: valid_loss(folder / str(step)) for step in steps(folder)}
    known = {step: loss for step, loss in losses.items() if loss is not None}
    return min(known, key=lambda step: known[step]) if known else None


def around_jumps(folder: Path, most: int = 2) -> list[int]:
    """The newest checkpoints that were saved because the loss jumped, each with the one before."""
    found = steps(folder)
    jumps = [at for at, step in enumerate(found) if "jump" in metrics(folder / str(step))]
    return [step for at in jumps[-most:] for step in found[max(at - 1, 0) : at + 1]]


def newest_sound(folder: Path, say: Say) -> Path | None:
    """The newest checkpoint whose digests are right: the one to go on from."""
    return _first_sound(folder, steps(folder)[::-1], say)


def best_sound(folder: Path, say: Say) -> Path | None:
    """The best checkpoint by validation loss, or else the newest, whose digests are right.

    This is the one to sample from, to measure and to convert.
    """

    def rank(step: int) -> tuple[float, int]:
        loss = valid_loss(folder / str(step))
        return (math.inf if loss is None else loss, -step)

    return _first_sound(folder, sorted(steps(folder), key=rank), say)


def _first_sound(folder: Path, wanted: list[int], say: Say) -> Path | None:
    """The first of these checkpoints that is sound; None when there are none.

    Raises:
        Problem: (corrupt) all of them are damaged.
    """
    told: list[str] = []
    for step in wanted:
        wrong = damage(folder / str(step))
        if not wrong:
            for line in told:
                say(line)
            return folder / str(step)
        told.append(f"checkpoint {step} is damaged and is passed over: {'; '.join(wrong[:3])}")
    if wanted:
        raise Problem(
            "every checkpoint is damaged",
            where=str(folder),
            why="\n".join(told[:10]),
            fix="restore the folder from a copy, or start anew in another folder",
            exit_code=CORRUPT,
        )
    return None


def _read(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty when it cannot be read."""
    try:
        return read_json(path)
    except (OSError, ValueError):
        return {}


def _only(value: Any, like: Any) -> Any:
    """A dict cut down to the keys of another."""
    if isinstance(value, dict) and isinstance(like, dict):
        return {name: value.get(name) for name in like}
    return value
