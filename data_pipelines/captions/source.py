"""Images with captions in any order: what every source of them is."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from data_pipelines.errors import USAGE, DataProblem

COCO = "coco_captions"
"""Short for `tfds:coco_captions`."""

SHAPES, SIDE = "shapes", 56
"""The scenes that are drawn, and their width in pixels unless the spec tells it."""


class Example(NamedTuple):
    """An image as it lies in its source, and what is said of it."""

    name: str
    captions: tuple[str, ...]
    image: Path | bytes
    """A file, or the content of one."""


@dataclass(frozen=True)
class ImageTextSource:
    """Examples, of which no image is in memory."""

    spec: str
    train: Sequence[Example]
    """All there are, where the source holds nothing out."""
    valid: Sequence[Example] = ()
    """What the source itself holds out."""
    records: dict[str, Any] = field(default_factory=dict)
    """What they are, JSON-able: equal when, and only when, the examples are."""
    left_out: dict[str, list[str]] = field(default_factory=dict)
    """What the source lists and does not have → names."""


def shapes_side(spec: str) -> int:
    """The width that `shapes[:SIDE]` asks for, in pixels.

    Raises:
        DataProblem: (usage) it is no width.
    """
    _, colon, rest = spec.partition(":")
    if not colon:
        return SIDE
    if rest.isascii() and rest.isdigit() and len(rest) < 5 and 14 <= int(rest) <= 1024:
        return int(rest)
    raise DataProblem(
        f"the shapes cannot be drawn {rest[:80]!r} pixels wide",
        where=spec,
        why="a width is a whole number from 14 to 1024",
        fix=f"shapes, or shapes:SIDE, for example shapes:{SIDE}",
        exit_code=USAGE,
    )
