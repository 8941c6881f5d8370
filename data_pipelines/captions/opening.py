"""Opens images with captions or questions as a dataset, for `open_data`."""

from collections.abc import Callable
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.captions import pixels
from data_pipelines.captions.caption_dataset import CaptionDataset, Images
from data_pipelines.captions.examples import PATCH, is_caption_source, open_examples, side_of
from data_pipelines.captions.prepare import prepare_images
from data_pipelines.captions.prepared import (
    IMAGES,
    Row,
    images_of,
    is_prepared,
    notes_of,
    read_captions_manifest,
    read_rows,
)
from data_pipelines.captions.question_dataset import QuestionDataset, answered
from data_pipelines.captions.source import QUESTIONS, ImageTextSource
from data_pipelines.captions.tokens import Captions
from data_pipelines.characters import CharTokenizer
from data_pipelines.cores import cores
from data_pipelines.errors import MISMATCH, USAGE, DataProblem
from data_pipelines.file_search import path_of
from data_pipelines.reading import Progress
from data_pipelines.sources import MIX
from data_pipelines.tokenizers import WORDS, Tokenizer
from data_pipelines.vocabularies import learn, wanted
from data_pipelines.words import build_words, with_new_words
from jaxmodels.files import Exists


def has_captions(spec: str) -> bool:
    """Whether a spec of any form names images with texts; raises as `is_caption_source`."""
    if spec.startswith(f"{MIX}:"):
        return False
    kind, _, rest = spec.partition(":")
    return is_prepared(path_of(rest)) if kind == "bin" else is_caption_source(spec)


def has_questions(spec: str) -> bool:
    """Whether the texts of a spec that `has_captions` are questions.

    Raises:
        DataProblem: (corrupt) it names a prepared folder that is damaged.
    """
    kind, _, rest = spec.partition(":")
    if kind == "bin":
        return "questions" in read_captions_manifest(path_of(rest))
    return kind == QUESTIONS


def open_captioned(
    spec: str,
    folder: Path,
    *,
    side: int | None,
    patch: int = PATCH,
    min_freq: int,
    tokenizer: Tokenizer | str | None,
    progress: Progress | None,
    new_words: bool = False,
    **sizes: Any,
) -> CaptionDataset:
    """Images with captions or questions, prepared into `folder` if they are not there yet. See
    `open_data`.

    Args:
        spec: what to read; `bin:FOLDER` opens what is prepared.
        folder: of the prepared images.
        side: width and height of the images in pixels, a multiple of `patch`. None takes that of
            prepared images, else the default of `side_of`.
        patch: width of the model's patches in pixels.
        min_freq: a character or word must occur this often to enter the vocabulary.
        tokenizer: "chars" (or None), "words", "bpe:4096" and the like are made from the captions.
        progress: called as (stage, bytes done, bytes in all).
        new_words: an open tokeniser gets the words of the texts that it lacks.
        sizes: context, batch, seed and valid_fraction.

    Raises:
        DataProblem: as `open_data`.
    """
    if spec.startswith("bin:"):
        folder = path_of(spec.removeprefix("bin:"))
        side = side or read_captions_manifest(folder)["side"]
    side = side_of(spec, side, patch)
    if not spec.startswith("bin:"):
        _prepare(spec, folder, side, patch, progress)
    manifest = read_captions_manifest(folder)
    source, notes = _source(spec, folder, manifest, side)
    rows = read_rows(folder, manifest)
    questions = tuple(row.questions for row in rows)
    asks = any(questions)
    texts = tuple(tuple(map(answered, row.questions)) if asks else row.captions for row in rows)
    if not isinstance(tokenizer, Tokenizer):
        tokenizer = _build_tokenizer(tokenizer, texts, min_freq)
    elif new_words:
        tokenizer = with_new_words(tokenizer, chain.from_iterable(texts), min_freq)
    kind: type[CaptionDataset] = QuestionDataset if asks else CaptionDataset
    more: dict[str, Any] = {"questions": questions} if asks else {}
    data = kind(
        spec=spec,
        texts=texts,
        pixels=_pixels(images_of(folder, manifest), rows, source, side, folder),
        captions=Captions.of(texts, tokenizer),
        tokenizer=tokenizer,
        side=side,
        source_valid=manifest["images"]["valid"],
        prepared_identity={
            **manifest["source"],
            **{f"{name}_sha256": sha256 for name, sha256 in manifest["sha256"].items()},
        },
        image_notes=(*notes, *notes_of(manifest)),
        threads=2 if IMAGES in manifest["sha256"] else min(16, cores()),
        **more,
        **sizes,
    )
    _refuse_few(data)
    if isinstance(data, QuestionDataset):
        _refuse_unanswered(data)
    return data


def _prepare(spec: str, folder: Path, side: int, patch: int, progress: Progress | None) -> None:
    """Prepares the folder unless it exists."""
    if not folder.exists():
        with suppress(Exists):  # another process of the same run was quicker; its work is checked
            prepare_images(spec, folder, side, progress, patch=patch)


def _source(
    spec: str, folder: Path, manifest: dict[str, Any], side: int
) -> tuple[ImageTextSource | None, list[str]]:
    """The source that the folder was prepared from, None if it is not needed; and notes.

    Raises:
        DataProblem: (mismatch) the folder was prepared from something else, or for another side.
    """
    ready, prepared = IMAGES in manifest["sha256"], spec.startswith("bin:")
    if ready and manifest["side"] != side:
        why = f"they are {manifest['side']} pixels wide, but {side} were asked for"
        raise _mismatch("the prepared images have another size", folder, why)
    if ready and prepared:
        return None, []
    try:
        source = open_examples(manifest["spec"] if prepared else spec, folder)
    except DataProblem as problem:
        if problem.exit_code == USAGE or manifest["spec"] != spec or not ready:
            raise
        return None, [f"{spec} is gone; using what was prepared from it in {folder}"]
    now, then = source.records, manifest["source"]
    if now != then:
        names = [name for name in {**now, **then} if now.get(name) != then.get(name)]
        why = "\n".join(f"{name}: {then.get(name)!r} → {now.get(name)!r}" for name in names)
        raise _mismatch("the images are not those that were prepared", folder, why)
    return source, []


def _build_tokenizer(
    name: str | None, texts: tuple[tuple[str, ...], ...], min_freq: int
) -> Tokenizer:
    """A tokeniser of the captions' words or characters, or one that is learned from them."""
    captions = chain.from_iterable(texts)
    if want := wanted(name or ""):
        return learn((f"{caption}\n" for caption in captions), want, min_freq=min_freq)
    if name == WORDS:
        return build_words(captions, min_freq)
    ends = ["\n"] * min_freq  # a blank line ends a caption
    return CharTokenizer.build(chain(ends, captions), min_freq)


def _pixels(
    ready: np.ndarray | None,
    rows: list[Row],
    source: ImageTextSource | None,
    side: int,
    folder: Path,
) -> Callable[[np.ndarray], Images]:
    """Reads images by their indices: prepared ones, or the source's, decoded on access."""
    if ready is not None:
        return lambda indices: ready[indices]
    assert source is not None
    splits = {"train": source.train, "valid": source.valid}

    def read(index: int) -> np.ndarray:
        row = rows[index]
        if row.index >= len(splits[row.split]):
            raise _mismatch("the images are not those that were prepared", folder, "some are gone")
        example = splits[row.split][row.index]
        return pixels.square(pixels.pixels_of(example.image, row.name), side)

    return lambda indices: np.stack([read(index) for index in indices.tolist()])


def _refuse_few(data: CaptionDataset) -> None:
    """Raises where nothing is left to train on, or nothing is held out that should be."""
    few = not data.train_images and data.valid_fraction < 1
    if few or (data.valid_fraction > 0 and not data.valid_images):
        raise DataProblem(
            f"there are too few images ({len(data.texts)}) to hold some of them out",
            where=data.spec,
            why=f"{data.train_images} are left to train on, {data.valid_images} held out",
            fix="use another --valid-fraction, 0 for none, or more images",
        )


def _refuse_unanswered(data: QuestionDataset) -> None:
    """Raises where a question to train on has no answer."""
    if data.unanswered and data.train_images:
        raise DataProblem(
            "questions without answers cannot be learned from",
            where=data.spec,
            why=f"{data.unanswered:,} questions have no answers, and no file of annotations is "
            "beside them",
            fix="name it: questions:FOLDER#FILE#ANSWERS",
        )


def _mismatch(what: str, folder: Path, why: str) -> DataProblem:
    return DataProblem(
        what,
        where=str(folder),
        why=why,
        fix=f"use the prepared images with --data bin:{folder}, or start again in another folder",
        exit_code=MISMATCH,
    )
