"""Where images with captions come from: examples that can be read in any order."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from data_pipelines.errors import USAGE, DataProblem
from data_pipelines.sources import unknown_spec

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
class Collection:
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


def is_captioned(spec: str) -> bool:
    """Whether a spec names images with captions, not text.

    Raises:
        DataProblem: (corrupt) it names a TFDS dataset that is not there.
    """
    kind, _, rest = spec.partition(":")
    if kind == "tfds" and rest and "#" not in rest:  # which names a field of text
        from data_pipelines.captions.dataset import has_captions

        return has_captions(rest)
    return kind in (SHAPES, COCO, "images")


def open_examples(spec: str, folder: Path) -> Collection:
    """What a spec names.

    Args:
        spec: what to read.
        folder: where shapes were drawn.

    Raises:
        DataProblem: (usage) the spec has no known form; (corrupt) nothing is found there.
    """
    kind, _, rest = spec.partition(":")
    if kind == SHAPES:
        from data_pipelines.captions.dataset import open_shapes

        return open_shapes(spec, folder)
    if kind == COCO:
        kind, rest = "tfds", COCO + (f":{rest}" if rest else "")
    if kind == "tfds" and rest:
        from data_pipelines.captions.dataset import open_dataset

        return open_dataset(spec, rest)
    if kind == "images" and rest.partition("#")[0]:
        from data_pipelines.captions.folder import open_folder

        return open_folder(spec, rest)
    raise unknown_spec(spec)


def side_of(spec: str, side: int | None) -> int:
    """The side to resize images to, in pixels: as asked, else as shapes are drawn, else 224.

    Raises:
        DataProblem: (usage) it is not a positive multiple of 14, the width of DINOv2's patches.
    """
    if side is None:
        side = shapes_side(spec) if spec.partition(":")[0] == SHAPES else 224
    if side < 14 or side % 14:
        raise DataProblem(
            f"the images cannot be {side} pixels wide",
            where=spec,
            why="a width is a multiple of 14, that of a patch",
            fix=f"give {max(14, side // 14 * 14)}, for example",
            exit_code=USAGE,
        )
    return side


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
