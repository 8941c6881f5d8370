"""From a spec to images with captions; the entry of `open_data` for them."""

from collections.abc import Callable
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.captions import pixels
from data_pipelines.captions.captioned import Captioned, Images
from data_pipelines.captions.examples import is_captioned, open_examples, side_of
from data_pipelines.captions.gallery import (
    IMAGES,
    Row,
    images_of,
    is_gallery,
    notes_of,
    read_gallery,
    read_rows,
)
from data_pipelines.captions.prepare import prepare_images
from data_pipelines.captions.source import ImageTextSource
from data_pipelines.captions.tokens import Captions
from data_pipelines.characters import CharTokenizer
from data_pipelines.cores import cores
from data_pipelines.errors import MISMATCH, USAGE, DataProblem
from data_pipelines.finding import path_of
from data_pipelines.reading import Progress
from data_pipelines.sources import MIX
from data_pipelines.tokenizers import WORDS, Tokenizer
from data_pipelines.words import build_words
from jaxmodels.files import Exists


def captioned(spec: str) -> bool:
    """Whether a spec names images with captions; raises as `is_captioned`."""
    if spec.startswith(f"{MIX}:"):
        return False
    kind, _, rest = spec.partition(":")
    return is_gallery(path_of(rest)) if kind == "bin" else is_captioned(spec)


def open_captioned(
    spec: str,
    folder: Path,
    *,
    side: int | None,
    min_freq: int,
    tokenizer: Tokenizer | str | None,
    progress: Progress | None,
    **sizes: Any,
) -> Captioned:
    """Images with captions; prepared into `folder` unless they are there. See `open_data`.

    Args:
        spec: what to read; `bin:FOLDER` opens what is prepared.
        folder: where it is prepared.
        side: width and height of the images in pixels; a multiple of 14, DINOv2's patch. None
            takes what `side_of` says.
        min_freq: a character or word must occur this often to enter the vocabulary.
        tokenizer: "chars" (or None) and "words" are built from the captions.
        progress: called as (stage, bytes done, bytes in all).
        sizes: context, batch, seed and valid_fraction.

    Raises:
        DataProblem: as `open_data`.
    """
    if spec.startswith("bin:"):
        folder = path_of(spec.removeprefix("bin:"))
        side = side or read_gallery(folder)["side"]
    side = side_of(spec, side)
    if not spec.startswith("bin:"):
        _prepared(spec, folder, side, progress)
    manifest = read_gallery(folder)
    collection, notes = _source(spec, folder, manifest, side)
    rows = read_rows(folder, manifest)
    texts = tuple(row.captions for row in rows)
    if not isinstance(tokenizer, Tokenizer):
        tokenizer = _built(tokenizer, texts, min_freq)
    data = Captioned(
        spec=spec,
        texts=texts,
        pixels=_pixels(images_of(folder, manifest), rows, collection, side, folder),
        captions=Captions.of(texts, tokenizer),
        tokenizer=tokenizer,
        side=side,
        own=manifest["images"]["valid"],
        what={**manifest["source"], **{f"{k}_sha256": v for k, v in manifest["sha256"].items()}},
        told=(*notes, *notes_of(manifest)),
        threads=2 if IMAGES in manifest["sha256"] else min(16, cores()),
        **sizes,
    )
    _refuse_few(data)
    return data


def _prepared(spec: str, folder: Path, side: int, progress: Progress | None) -> None:
    """Prepares the folder, unless that is done."""
    if not folder.exists():
        with suppress(Exists):  # another process of the same run was quicker; its work is checked
            prepare_images(spec, folder, side, progress)


def _source(
    spec: str, folder: Path, manifest: dict[str, Any], side: int
) -> tuple[ImageTextSource | None, list[str]]:
    """The examples that the folder was prepared from, and notes; None if they are not needed.

    Raises:
        DataProblem: (mismatch) the folder was prepared from something else, or for another side.
    """
    ready, prepared = IMAGES in manifest["sha256"], spec.startswith("bin:")
    if ready and manifest["side"] != side:
        why = f"they are {manifest['side']} pixels wide, and {side} are wanted"
        raise _another("the prepared images have another size", folder, why)
    if ready and prepared:
        return None, []
    try:
        collection = open_examples(manifest["spec"] if prepared else spec, folder)
    except DataProblem as problem:
        if problem.exit_code == USAGE or manifest["spec"] != spec or not ready:
            raise
        return None, [f"{spec} is gone; going on with what was prepared from it in {folder}"]
    now, then = collection.records, manifest["source"]
    if now != then:
        names = [name for name in {**now, **then} if now.get(name) != then.get(name)]
        why = "\n".join(f"{name}: {then.get(name)!r} → {now.get(name)!r}" for name in names)
        raise _another("the images are not those that were prepared", folder, why)
    return collection, []


def _built(name: str | None, texts: tuple[tuple[str, ...], ...], min_freq: int) -> Tokenizer:
    """The words, or the characters, of the captions."""
    captions = chain.from_iterable(texts)
    if name == WORDS:
        return build_words(captions, min_freq)
    ends = ["\n"] * min_freq  # a blank line ends a caption
    return CharTokenizer.build(chain(ends, captions), min_freq)


def _pixels(
    ready: np.ndarray | None,
    rows: list[Row],
    collection: ImageTextSource | None,
    side: int,
    folder: Path,
) -> Callable[[np.ndarray], Images]:
    """What gives the images of places: the prepared ones, or the source's, decoded as they come."""
    if ready is not None:
        return lambda places: ready[places]
    assert collection is not None
    splits = {"train": collection.train, "valid": collection.valid}

    def read(place: int) -> np.ndarray:
        row = rows[place]
        if row.index >= len(splits[row.split]):
            raise _another("the images are not those that were prepared", folder, "some are gone")
        example = splits[row.split][row.index]
        return pixels.squared(pixels.decoded(example.image, row.name), side)

    return lambda places: np.stack([read(place) for place in places.tolist()])


def _refuse_few(data: Captioned) -> None:
    """Raises where nothing is left to train on, or nothing held out though it should be."""
    few = not data.train_images and data.valid_fraction < 1
    if few or (data.valid_fraction > 0 and not data.valid_images):
        raise DataProblem(
            f"there are too few images ({len(data.texts)}) to hold some of them out",
            where=data.spec,
            why=f"{data.train_images} are left to train on, {data.valid_images} held out",
            fix="use another --valid-fraction, 0 for none, or more images",
        )


def _another(what: str, folder: Path, why: str) -> DataProblem:
    return DataProblem(
        what,
        where=str(folder),
        why=why,
        fix=f"use them as they are with --data bin:{folder}, or start anew elsewhere",
        exit_code=MISMATCH,
    )
