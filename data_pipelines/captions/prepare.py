"""Prepares images with captions or questions in a folder, for `data prepare` and training.

One folder serves any tokeniser: it stores pixels and texts, and tokens are made when it is opened.
"""

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from data_pipelines.captions.examples import PATCH, open_examples, side_of
from data_pipelines.captions.pixels import pixels_of, size_of, square
from data_pipelines.captions.prepared import CAPTIONS, IMAGES, Row
from data_pipelines.captions.source import Example, ImageTextSource, is_drawn, shapes_side
from data_pipelines.cores import cores
from data_pipelines.errors import DataProblem
from data_pipelines.prepare import MANIFEST, refuse_foreign
from data_pipelines.reading import Progress
from jaxmodels.files import atomic_folder
from jaxmodels.reading import digest

BUDGET = 2 << 30
"""Bytes of decoded images that are kept on disk; a source with more is decoded in training."""

_CHUNK = 256  # examples in memory at a time
_NAMED = 3  # examples of what is left out

Pixels = UInt8[np.ndarray, "h w 3"]


def prepare_images(
    spec: str,
    folder: Path | str,
    side: int | None = None,
    progress: Progress | None = None,
    force: bool = False,
    *,
    patch: int = PATCH,
) -> dict[str, Any]:
    """Writes captions.jsonl, images.bin and manifest.json, all or nothing; draws shapes.

    Images that cannot be read, or have neither a question nor a caption that is not blank, are
    left out and counted.
    images.bin holds the others, decoded, uint8 [images, side, side, 3], if these are no more than
    BUDGET bytes; else they are decoded during training.

    Args:
        spec: a form that names images with captions.
        folder: where to write; must not exist.
        side: width and height of the images in pixels; None takes the default of `side_of`.
        progress: called as (stage, bytes of pixels done, bytes in all).
        force: replace an existing prepared folder.
        patch: width of the model's patches in pixels, which divides `side`.

    Returns:
        the manifest.

    Raises:
        DataProblem: (usage) unknown spec; (corrupt) nothing can be read.
        Exists: the folder exists.
        OSError: such as a full disk; nothing is left behind.
    """
    folder, side = Path(os.path.abspath(folder)), side_of(spec, side, patch)
    refuse_foreign(folder, force)
    with atomic_folder(folder, force) as new:
        if is_drawn(spec):
            from data_pipelines.captions.shapes_dataset import write_shapes

            write_shapes(new, shapes_side(spec), progress)
        source = open_examples(spec, new)
        left = {what: list(names) for what, names in source.left_out.items()}
        count = len(source.train) + len(source.valid)
        decode = count * side * side * 3 <= BUDGET
        rows = _write(source, new, side, decode, left, progress)
        if not any(row.split == "train" for row in rows):
            raise _nothing(spec, left)
        asked = sum(len(row.questions) for row in rows)
        files = [CAPTIONS, *([IMAGES] if decode else [])]
        manifest = {
            "spec": spec,
            "source": source.records,
            "side": side,
            "images": {split: _count(rows, split) for split in ("train", "valid")},
            "captions": sum(len(row.captions) for row in rows),
            **({"questions": asked} if asked else {}),
            "left_out": {
                what: {"count": len(names), "first": names[:_NAMED]} for what, names in left.items()
            },
            "sha256": {name: digest(new / name) for name in files},
        }
        (new / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    return manifest


def _write(
    source: ImageTextSource,
    new: Path,
    side: int,
    decode: bool,
    left: dict[str, list[str]],
    progress: Progress | None,
) -> list[Row]:
    rows: list[Row] = []
    total, done = len(source.train) + len(source.valid), 0
    with ExitStack() as stack:
        captions = stack.enter_context((new / CAPTIONS).open("w", encoding="utf-8"))
        images = stack.enter_context((new / IMAGES).open("wb")) if decode else None
        for example, row, pixels in _read(source, side, decode):
            done += 1
            if progress and (done % _CHUNK == 0 or done == total):
                progress("reading images", done * 3 * side**2, total * 3 * side**2)
            if empty := len(example.captions) - len(_nonblank(example)):
                left.setdefault("captions that say nothing", []).extend([example.name] * empty)
            if row is None or not (row.captions or row.questions):
                why = "have no caption" if row else "cannot be read"
                left.setdefault(f"images that {why}", []).append(example.name)
                continue
            rows.append(row)
            captions.write(json.dumps(row.as_json()) + "\n")
            if images:
                images.write(pixels.data)
    return rows


def _read(
    source: ImageTextSource, side: int, decode: bool
) -> Iterator[tuple[Example, Row | None, Pixels]]:
    """Examples in order, read by threads; no row where an image cannot be read."""

    def read(split: str, i: int) -> tuple[Example, Row | None, Pixels]:
        example, none = splits[split][i], np.zeros((0, 0, 3), np.uint8)
        try:
            if not decode:
                size = size_of(example.image, example.name)
                return example, _row(example, split, i, size), none
            pixels = pixels_of(example.image, example.name)
        except DataProblem:
            return example, None, none
        height, width = pixels.shape[:2]
        return example, _row(example, split, i, (width, height)), square(pixels, side)

    splits = {"train": source.train, "valid": source.valid}
    with ThreadPoolExecutor(cores()) as pool:
        for split, examples in splits.items():
            for start in range(0, len(examples), _CHUNK):
                indices = range(start, min(len(examples), start + _CHUNK))
                yield from pool.map(partial(read, split), indices)


def _row(example: Example, split: str, i: int, size: tuple[int, int]) -> Row:
    return Row(split, i, example.name, size, _nonblank(example), example.questions)


def _nonblank(example: Example) -> tuple[str, ...]:
    return tuple(caption for caption in example.captions if caption.strip())


def _count(rows: list[Row], split: str) -> int:
    return sum(row.split == split for row in rows)


def _nothing(spec: str, left: dict[str, list[str]]) -> DataProblem:
    return DataProblem(
        "there is no image with a caption or a question",
        where=spec,
        why="; ".join(f"{len(names):,} {what}" for what, names in left.items()),
        fix="check the images and their texts",
    )
