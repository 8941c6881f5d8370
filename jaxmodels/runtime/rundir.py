"""What lies in a run directory's `checkpoints` folder, without starting JAX."""

import json
import math
from collections.abc import Callable
from pathlib import Path

from jaxmodels.errors import CORRUPT, Problem
from jaxmodels.runtime.files import MANIFEST, damage

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


def metrics(checkpoint: Path) -> dict[str, float]:
    """The metrics that were stored with a checkpoint; empty when they cannot be read."""
    try:
        return dict(json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))["metrics"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def best(folder: Path) -> int | None:
    """The step with the lowest validation loss, None when no checkpoint has one."""
    losses = {step: valid_loss(folder / str(step)) for step in steps(folder)}
    known = {step: loss for step, loss in losses.items() if loss is not None}
    return min(known, key=lambda step: known[step]) if known else None


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
