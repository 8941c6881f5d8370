"""A source of images with captions, or with questions."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from data_pipelines.errors import USAGE, DataProblem

COCO = "coco_captions"
"""Short for `tfds:coco_captions`."""

SHAPES, SIDE = "shapes", 56
"""The drawn scenes, and their width in pixels unless the spec gives it."""


QUESTIONS = "questions"
"""Kind of a spec of images with questions."""


class Question(NamedTuple):
    """A question about an image."""

    id: int | str
    text: str
    answers: tuple[str, ...] = ()
    """What people answered, one each; empty where that is not known."""
    kind: str = ""
    """`question_type` of VQA's annotations."""
    answer_kind: str = ""
    """`answer_type` of VQA's annotations."""


class Example(NamedTuple):
    """An encoded image with its captions or questions."""

    name: str
    captions: tuple[str, ...]
    image: Path | bytes
    """A file, or its content."""
    questions: tuple[Question, ...] = ()


@dataclass(frozen=True)
class ImageTextSource:
    """Examples whose images are read on access."""

    spec: str
    train: Sequence[Example]
    """All examples, where the source has no validation split."""
    valid: Sequence[Example] = ()
    """The validation split of the source."""
    records: dict[str, Any] = field(default_factory=dict)
    """Identity of the examples, JSON-able."""
    left_out: dict[str, list[str]] = field(default_factory=dict)
    """What the source lists but lacks → names."""


def is_drawn(spec: str) -> bool:
    """Whether a spec names the drawn scenes, with captions or with questions."""
    return spec.removeprefix(f"{QUESTIONS}:").partition(":")[0] == SHAPES


def shapes_side(spec: str) -> int:
    """The width that `shapes[:SIDE]` or `questions:shapes[:SIDE]` asks for, in pixels.

    Raises:
        DataProblem: (usage) it is not a width.
    """
    _, colon, rest = spec.removeprefix(f"{QUESTIONS}:").partition(":")
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
