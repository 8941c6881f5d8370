"""Which weights of a run: those that it trains, or their running average (EMA), if it keeps one."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from bridge.formats.raw import RawCheckpoint
from jaxmodels.errors import USAGE, Problem

CHOICE = "run.weights"
"""What `--set` calls the choice; `--weights` stands for it."""
EMA, RAW = "ema", "raw"
Weights = Literal["ema", "raw"]


def chosen(config: Mapping[str, Any] | None, weights: str | None) -> dict[str, Any]:
    """Settings, including the choice of weights if one was made."""
    return {**(config or {}), **({CHOICE: weights} if weights else {})}


def as_in(
    other: Mapping[str, Any], contents: RawCheckpoint, config: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Settings for comparing a checkpoint with another one: by default the weights that the other
    one was made from, if it has both kinds.

    Args:
        other: the origin of the other one, as `convert` wrote it down.
        contents: the checkpoint.
        config: settings as they were given.
    """
    made_from = other.get("weights") if contents.averaged else None
    return {**({CHOICE: made_from} if made_from else {}), **(config or {})}


def weighted(contents: RawCheckpoint, config: Mapping[str, Any]) -> RawCheckpoint:
    """The contents with the chosen weights; by default the averaged ones, if there are any, since
    validation chose the best checkpoint by them.

    Raises:
        Problem: (usage) the choice is neither "ema" nor "raw", or no average is kept.
    """
    choice = config.get(CHOICE)
    if choice not in (None, EMA, RAW):
        raise Problem(
            f"weights cannot be {str(choice)[:80]!r}",
            where=str(contents.path),
            fix=f"give {EMA}, the running average, or {RAW}, the trained weights",
            exit_code=USAGE,
        )
    if choice == EMA and not contents.averaged:
        raise Problem(
            "no average of the weights is kept here",
            where=str(contents.path),
            why="only a run that was trained with --ema-decay keeps one",
            fix=f"leave --weights out, or give --weights {RAW}",
            exit_code=USAGE,
        )
    if not contents.averaged:
        return contents
    if choice == RAW:
        note = "using the trained weights, not their running average"
        origin = {**contents.origin, "weights": RAW}
        return replace(contents, origin=origin, notes=[*contents.notes, note])
    note = f"using the averaged weights (EMA); --weights {RAW} uses the trained ones"
    return replace(
        contents,
        tensors=contents.averaged,
        origin={**contents.origin, "weights": EMA},
        notes=[*contents.notes, note],
    )
