"""Images with captions to a folder that training reads; the entry of `jaxmodels data prepare`."""

import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from data_pipelines.captions.examples import (
    SHAPES,
    Collection,
    Example,
    open_examples,
    shapes_side,
    side_of,
)
from data_pipelines.captions.gallery import CAPTIONS, IMAGES, MANIFEST, Row
from data_pipelines.captions.pixels import check, fitted
from data_pipelines.errors import DataProblem
from data_pipelines.files import digest, refuse_foreign, whole_folder
from data_pipelines.sources import Progress

BUDGET = 2 << 30
"""Bytes of decoded images that are kept on disk; of a collection that has more, none are."""

_CHUNK = 256  # examples that are in memory together
_NAMED = 3  # of what is left out

Pixels = UInt8[np.ndarray, "side side 3"]


def prepare_images(
    spec: str,
    folder: Path | str,
    side: int | None = None,
    progress: Progress | None = None,
    force: bool = False,
) -> dict[str, Any]:
    """Writes captions.jsonl, images.bin and manifest.json, all or nothing; shapes are drawn too.

    Images that cannot be read, or have no caption that says anything, are left out and counted.
    images.bin holds the others, decoded, uint8 [images, side, side, 3], if it has no more than
    BUDGET bytes; else they are decoded again whenever their turn comes.

    Args:
        spec: a form that names images with captions.
        folder: where to write; must not exist.
        side: width and height of the images, in pixels; None takes what `side_of` says.
        progress: called as (stage, bytes of pixels done, those in all).
        force: replace the prepared folder that is there.

    Returns:
        the manifest.

    Raises:
        DataProblem: (usage) unknown spec; (corrupt) nothing can be read; (exists) the folder
            exists.
        OSError: the disk is full, say; nothing is left behind.
    """
    folder, side = Path(os.path.abspath(folder)), side_of(spec, side)
    refuse_foreign(folder, MANIFEST, force)
    with whole_folder(folder, force) as new:
        if spec.partition(":")[0] == SHAPES:
            from data_pipelines.captions.shapes_dataset import write_shapes

            write_shapes(new, shapes_side(spec), progress)
        collection = open_examples(spec, new)
        left = {what: list(names) for what, names in collection.left_out.items()}
        count = len(collection.train) + len(collection.valid)
        decode = count * side * side * 3 <= BUDGET
        rows = _write(collection, new, side, decode, left, progress)
        if not any(row.split == "train" for row in rows):
            raise _nothing(spec, left)
        files = [CAPTIONS, *([IMAGES] if decode else [])]
        manifest = {
            "spec": spec,
            "source": collection.records,
            "side": side,
            "images": {split: _count(rows, split) for split in ("train", "valid")},
            "captions": sum(len(row.captions) for row in rows),
            "left_out": {
                what: {"count": len(names), "first": names[:_NAMED]} for what, names in left.items()
            },
            "sha256": {name: digest(new / name) for name in files},
        }
        (new / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    return manifest


def _write(
    collection: Collection,
    new: Path,
    side: int,
    decode: bool,
    left: dict[str, list[str]],
    progress: Progress | None,
) -> list[Row]:
    rows: list[Row] = []
    splits = (("train", collection.train), ("valid", collection.valid))
    total = sum(len(examples) for _, examples in splits)
    done, size = 0, side * side * 3
    with (
        (new / CAPTIONS).open("w", encoding="utf-8") as captions,
        (new / IMAGES).open("wb") as images,
    ):
        for split, examples in splits:
            for index, (example, pixels, fault) in enumerate(_read(examples, side, decode)):
                done += 1
                if progress and done % _CHUNK in (0, total):
                    progress("reading images", done * size, total * size)
                said = tuple(caption for caption in example.captions if caption.strip())
                if empty := len(example.captions) - len(said):
                    left.setdefault("captions that say nothing", []).extend([example.name] * empty)
                if fault or not said:
                    why = "cannot be read" if fault else "have no caption"
                    left.setdefault(f"images that {why}", []).append(example.name)
                    continue
                rows.append(Row(split, index, example.name, said))
                captions.write(json.dumps(asdict(rows[-1])) + "\n")
                if pixels is not None:
                    images.write(pixels.data)
    if not decode:
        (new / IMAGES).unlink()
    return rows


def _read(
    examples: Sequence[Example], side: int, decode: bool
) -> Iterator[tuple[Example, Pixels | None, str]]:
    """Examples in order, decoded by threads; what is wrong with an image, if anything is."""

    def read(i: int) -> tuple[Example, Pixels | None, str]:
        example = examples[i]
        try:
            if decode:
                return example, fitted(example.image, side, example.name), ""
            check(example.image, example.name)
        except DataProblem as problem:
            return example, None, str(problem)
        return example, None, ""

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(examples), _CHUNK):
            yield from pool.map(read, range(start, min(len(examples), start + _CHUNK)))


def _count(rows: list[Row], split: str) -> int:
    return sum(row.split == split for row in rows)


def _nothing(spec: str, left: dict[str, list[str]]) -> DataProblem:
    return DataProblem(
        "there is no image with a caption to train on",
        where=spec,
        why="; ".join(f"{len(names):,} {what}" for what, names in left.items()),
        fix="check the images and their captions",
    )
