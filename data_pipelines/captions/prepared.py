"""A prepared folder of images with captions, checked when it is opened."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.captions.source import Question
from data_pipelines.errors import DataProblem
from data_pipelines.ids import without_surrogates
from data_pipelines.limits import MAX_MANIFEST, MAX_PREPARED, max_document, too_long
from data_pipelines.prepare import MANIFEST
from jaxmodels.files import naming
from jaxmodels.reading import digest, read_limited

CAPTIONS, IMAGES = "captions.jsonl", "images.bin"

MAX_SIDE = 1 << 13
"""Widest prepared image in pixels: `images.MAX_PIXELS` as a square."""

_NAME = 200  # characters shown of a name

_FIELDS: dict[str, Any] = {
    "spec": str,
    "source": dict,
    "side": int,
    "images": dict,
    "captions": int,
    "left_out": dict,
    "sha256": dict,
}


@dataclass(frozen=True)
class Row:
    """A line of captions.jsonl: a readable image that has captions or questions."""

    split: str
    """train or valid, as in the source."""
    index: int
    """Its index in that split of the source."""
    name: str
    size: tuple[int, int]
    """Width and height in its file, in pixels."""
    captions: tuple[str, ...]
    questions: tuple[Question, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """The line's values; without questions as earlier versions wrote it."""
        values = asdict(self)
        if not self.questions:
            del values["questions"]
        return values


def is_prepared(folder: Path) -> bool:
    """Whether a folder holds prepared images with captions."""
    return (folder / CAPTIONS).is_file()


def read_captions_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder written by `prepare_images`.

    Raises:
        DataProblem: (corrupt) it is missing, unreadable or invalid.
    """
    try:
        manifest = json.loads(read_limited(folder / MANIFEST, MAX_MANIFEST))
        for name, kind in _FIELDS.items():
            if not isinstance(manifest[name], kind):
                raise TypeError(f"{name} is {manifest[name]!r}")
        if not 1 <= manifest["side"] <= MAX_SIDE:
            raise ValueError(f"side is {manifest['side']}")
        counts = manifest["images"]["train"], manifest["images"]["valid"]
        if not all(isinstance(count, int) and count >= 0 for count in counts):
            raise TypeError(f"images is {manifest['images']!r}")
        if odd := set(manifest["sha256"]) - {CAPTIONS, IMAGES}:
            raise ValueError(f"it has the sha256 of {min(odd)[:80]!r}")
        _ = manifest["sha256"][CAPTIONS]
        for left in manifest["left_out"].values():
            _ = left["count"] + 0, ", ".join(left["first"])
        if IMAGES in manifest["sha256"]:
            wanted = sum(counts) * manifest["side"] ** 2 * 3
            found = (folder / IMAGES).stat().st_size
            if found != wanted:
                raise ValueError(f"{IMAGES} has {found:,} bytes; the manifest says {wanted:,}")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise damaged(folder, f"{type(error).__name__}: {str(error)[:200]}") from None
    return manifest


def read_rows(folder: Path, manifest: dict[str, Any]) -> list[Row]:
    """The lines of captions.jsonl; reads all files once, for their digests.

    Raises:
        DataProblem: (corrupt) a file is not the one in the manifest, or too large.
    """
    for name, expected in manifest["sha256"].items():
        try:
            found = digest(folder / name, MAX_PREPARED)
        except (OSError, ValueError) as error:
            raise damaged(folder, f"{name}: {error}") from None
        if found != expected:
            raise damaged(folder, f"{name} is not the one in the manifest")
    longest, path = max_document(), folder / CAPTIONS
    rows: list[Row] = []
    with naming(path), path.open("rb") as file:
        while line := file.readline(longest + 1):
            where = f"{path}, line {len(rows) + 1}"
            if len(line) > longest:
                raise too_long("line", where)
            rows.append(_row(line, folder, where))
    if len(rows) != sum(manifest["images"][split] for split in ("train", "valid")):
        raise damaged(folder, f"{CAPTIONS} has {len(rows):,} lines, not as many as in the manifest")
    return rows


def _row(line: bytes, folder: Path, where: str) -> Row:
    try:
        r = json.loads(line)
        questions = tuple(_question(*values) for values in r.get("questions", ()))
        size, captions = tuple(r["size"]), tuple(r["captions"])
        row = Row(r["split"], r["index"], r["name"], size, captions, questions)
        asked = (x for q in questions for x in (q.text, *q.answers, q.kind, q.answer_kind))
        texts = (row.name, *row.captions, *asked)
        if row.split not in ("train", "valid") or row.index < 0:
            raise ValueError(f"split {row.split!r}, index {row.index}")
        if not (captions or questions):
            raise ValueError("it has no text")
        if not all(isinstance(text, str) for text in texts):
            raise TypeError("its name, a caption, a question or an answer is not text")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise damaged(folder, f"{where}: {type(error).__name__}: {str(error)[:200]}") from None
    return replace(row, captions=tuple(map(without_surrogates, row.captions)))


def _question(number: Any, text: Any, answers: Any, kind: Any, answer_kind: Any) -> Question:
    if not isinstance(number, int | str):
        raise TypeError(f"{number!r} is not the id of a question")
    return Question(number, text, tuple(answers), kind, answer_kind)


def images_of(folder: Path, manifest: dict[str, Any]) -> np.ndarray | None:
    """The prepared images, uint8 [images, side, side, 3], memory-mapped; None if not stored."""
    if IMAGES not in manifest["sha256"]:
        return None
    side = manifest["side"]
    # np.memmap runs Python code on every slice; the plain view of the same memory does not.
    return np.asarray(np.memmap(folder / IMAGES, np.uint8, "r")).reshape(-1, side, side, 3)


def notes_of(manifest: dict[str, Any]) -> Iterator[str]:
    """What was left out, a sentence each."""
    for what, left in manifest["left_out"].items():
        more = ", …" if left["count"] > len(left["first"]) else ""
        names = ", ".join(name[:_NAME] for name in left["first"])
        yield without_surrogates(f"{left['count']:,} {what} are left out: {names}{more}")


def damaged(folder: Path, why: str) -> DataProblem:
    """The error for a prepared folder that has changed or is incomplete."""
    return DataProblem(
        "this is not an intact folder of prepared images",
        where=str(folder),
        why=why,
        fix="prepare it again with `jaxmodels data prepare SPEC FOLDER`",
    )
