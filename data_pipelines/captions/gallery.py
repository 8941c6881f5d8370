"""A folder that `data prepare` wrote of images with captions, checked when it is opened."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.errors import DataProblem
from data_pipelines.files import digest

CAPTIONS, IMAGES, MANIFEST = "captions.jsonl", "images.bin", "manifest.json"

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
    """An image that can be read and has captions: a line of captions.jsonl."""

    split: str
    """train or valid: as the source has it."""
    index: int
    """Its place in that split of the source."""
    name: str
    size: tuple[int, int]
    """Width and height in its file, in pixels."""
    captions: tuple[str, ...]


def is_gallery(folder: Path) -> bool:
    """Whether images with captions were prepared into a folder."""
    return (folder / CAPTIONS).is_file()


def read_gallery(folder: Path) -> dict[str, Any]:
    """The manifest of a folder that `prepare_images` wrote.

    Raises:
        DataProblem: (corrupt) it is missing, unreadable or not ours.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        for name, kind in _FIELDS.items():
            if not isinstance(manifest[name], kind):
                raise TypeError(f"{name} is {manifest[name]!r}")
        _ = manifest["images"]["train"], manifest["images"]["valid"], manifest["sha256"][CAPTIONS]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise damaged(folder, f"{type(error).__name__}: {error}") from None
    return manifest


def read_rows(folder: Path, manifest: dict[str, Any]) -> list[Row]:
    """The lines of captions.jsonl; all files are read through once, for their digests."""
    for name, expected in manifest["sha256"].items():
        try:
            found = digest(folder / name)
        except OSError as error:
            raise damaged(folder, str(error)) from None
        if found != expected:
            raise damaged(folder, f"{name} is not the one that the manifest tells")
    lines = (folder / CAPTIONS).read_text(encoding="utf-8").split("\n")[:-1]
    each = map(json.loads, lines)
    return [
        Row(r["split"], r["index"], r["name"], tuple(r["size"]), tuple(r["captions"])) for r in each
    ]


def images_of(folder: Path, manifest: dict[str, Any]) -> np.ndarray | None:
    """The prepared images, uint8 [images, side, side, 3], memory-mapped; None without."""
    if IMAGES not in manifest["sha256"]:
        return None
    side = manifest["side"]
    # np.memmap runs Python code on every slice; the plain view of the same memory does not.
    return np.asarray(np.memmap(folder / IMAGES, np.uint8, "r")).reshape(-1, side, side, 3)


def notes_of(manifest: dict[str, Any]) -> Iterator[str]:
    """What was left out, a sentence each."""
    for what, left in manifest["left_out"].items():
        more = ", …" if left["count"] > len(left["first"]) else ""
        yield f"{left['count']:,} {what} are left out: {', '.join(left['first'])}{more}"


def damaged(folder: Path, why: str) -> DataProblem:
    """The error that a prepared folder is not what was written."""
    return DataProblem(
        "this is no intact folder of prepared images",
        where=str(folder),
        why=why,
        fix="write it anew with `jaxmodels data prepare SPEC FOLDER`",
    )
