"""From a data spec to training and validation batches."""

from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from data_pipelines.captions.caption_dataset import CaptionDataset
from data_pipelines.captions.examples import PATCH
from data_pipelines.captions.opening import has_captions, open_captioned
from data_pipelines.characters import CharTokenizer
from data_pipelines.dataset import Dataset
from data_pipelines.documents import characters_of
from data_pipelines.errors import USAGE, DataProblem
from data_pipelines.mixture import MixtureDataset
from data_pipelines.mixture_spec import image_source, parse_mixture, shared_tokenizer
from data_pipelines.reading import Progress, Reading
from data_pipelines.sources import MIX, open_text
from data_pipelines.streamed_dataset import VOCAB_DOCUMENTS, StreamedDataset, open_streamed
from data_pipelines.text_and_images import TextAndImages
from data_pipelines.tfds import NAMES
from data_pipelines.token_dataset import TokenDataset
from data_pipelines.token_files import open_bin, open_prepared
from data_pipelines.tokenizers import BARE_CHARS, CHARS, WORDS, Tokenizer, open_tokenizer
from data_pipelines.vocabularies import learn_from, wanted

AnyDataset = TypeVar("AnyDataset", TokenDataset, StreamedDataset)


def open_data(
    spec: str,
    *,
    folder: Path | str,
    context: int,
    batch: int,
    seed: int = 0,
    valid_fraction: float = 0.05,
    min_freq: int = 1,
    progress: Progress | None = None,
    tokenizer: str | Tokenizer | None = CHARS,
    segments: bool = False,
    vocab_documents: int = VOCAB_DOCUMENTS,
    side: int | None = None,
    patch: int = PATCH,
    caption: int | None = None,
    new_words: bool = False,
) -> Dataset:
    """Opens the dataset that a spec names; files are prepared into `folder` the first time.

    TFDS datasets (also as `wikipedia`, `c4`) are tokenised during training; nothing is written.
    Their "chars" are those of the first documents, which are counted at every opening: a caller
    that resumes passes the tokeniser that it kept. Images with captions are decoded into `folder`,
    unless they are too many; captions are tokenised when they are opened.

    Args:
        spec: any form of `sources.SPECS`.
        folder: the prepared data; written if missing, else checked against the source.
        context: inputs in a window; tokens of a caption.
        batch: windows, or images, in a batch, over all processes.
        seed: draws the order.
        valid_fraction: share of the tokens (of a TFDS dataset: of the documents), from the end,
            that is held out; 1 leaves none to train on. Of images with captions a share drawn
            with a fixed seed, unless the source has a validation split.
        min_freq: a character must occur this often to enter the vocabulary.
        progress: called as (stage, bytes done, bytes in all).
        tokenizer: "chars" (or None) takes the characters of the text, or the tokeniser of a
            prepared folder; "bare-chars" the characters without <PAD> and <UNK>; "words" the
            words of captions; "bpe:4096" and the like a vocabulary made from the text that is
            trained on (`vocabularies`); "gpt2", a path or an open tokeniser is required of the
            tokens.
        segments: batches number the documents in each window.
        vocab_documents: documents of a TFDS dataset that "chars" counts, from the first on.
        side: width and height of images in pixels, a multiple of `patch`; by default the width
            that shapes are drawn with, and 224 for others.
        patch: width of the model's patches in pixels.
        caption: tokens of a caption, for a model that reads text and images; one source of a
            mixture may then be images with captions, whose batches take turns with those of the
            text. None: `context`.
        new_words: an open tokeniser whose tokens are words gets those of the captions or questions
            that it lacks.

    A mixture (`mix:3*SPEC,1*SPEC`) has one tokeniser for all sources: the given one, else that of
    a prepared folder among them, else the characters of all texts.

    Raises:
        DataProblem: (usage) unknown spec or tokeniser, invalid sizes or weights, segments
            without an end of text; (corrupt) unreadable, or fewer tokens than a window needs;
            (mismatch) the text or the vocabulary has changed.
        OSError: the operating system refuses.
    """
    if min(context, batch, vocab_documents) < 1 or seed < 0 or not 0 <= valid_fraction <= 1:
        raise DataProblem(
            "context, batch and vocab_documents must be positive, seed non-negative, "
            "valid_fraction in [0, 1]",
            why=f"context {context}, batch {batch}, vocab_documents {vocab_documents}, "
            f"seed {seed}, valid_fraction {valid_fraction}",
            exit_code=USAGE,
        )
    if has_captions(spec):
        return _open_images(
            spec,
            folder,
            tokenizer,
            segments,
            side=side,
            patch=patch,
            min_freq=min_freq,
            progress=progress,
            new_words=new_words,
            context=caption or context,
            batch=batch,
            seed=seed,
            valid_fraction=valid_fraction,
        )
    if new_words:
        raise DataProblem(
            "new words can be added for images with captions or questions only",
            where=spec,
            fix="leave out --new-words",
            exit_code=USAGE,
        )
    kind = spec.partition(":")[0]
    sizes: dict[str, Any] = {
        "context": context,
        "batch": batch,
        "seed": seed,
        "valid_fraction": valid_fraction,
        "segments": segments,
    }
    counting: dict[str, Any] = {"vocab_documents": vocab_documents, "min_freq": min_freq}
    if kind == MIX:
        images = {"side": side, "patch": patch, "caption": caption}
        return _open_mixture(
            spec, Path(folder), tokenizer, sizes, images, **counting, progress=progress
        )
    if isinstance(tokenizer, str):
        if want := wanted(tokenizer):
            tokenizer = learn_from((spec,), want, valid_fraction, min_freq, progress)
        elif tokenizer == BARE_CHARS and kind != "bin":
            tokenizer = _bare_characters(spec, min_freq, vocab_documents, progress)
        else:
            tokenizer = None if tokenizer in (CHARS, BARE_CHARS) else open_tokenizer(tokenizer)
    if kind in ("tfds", *NAMES):
        source = open_text(spec)
        return _checked_segments(
            open_streamed(source, tokenizer, **sizes, **counting, progress=progress)
        )
    if kind == "bin":
        stream = open_bin(spec, tokenizer, progress)
    else:
        stream = open_prepared(spec, Path(folder), min_freq, tokenizer, progress)
    data = TokenDataset(spec=spec, tokenizer=stream.tokenizer, stream=stream, **sizes)
    _refuse_short(data)
    return _checked_segments(data)


def _open_mixture(
    spec: str,
    folder: Path,
    tokenizer: str | Tokenizer | None,
    sizes: dict[str, Any],
    images: dict[str, Any],
    *,
    vocab_documents: int,
    min_freq: int,
    progress: Progress | None,
) -> MixtureDataset | TextAndImages:
    """The sources of a mixture, files prepared into FOLDER/1, FOLDER/2, …; see `open_data`."""
    specs, shares = parse_mixture(spec)
    pictured = image_source(spec, specs, images["caption"] is not None)
    texts = [i for i in range(len(specs)) if i != pictured]
    if not isinstance(tokenizer, Tokenizer):
        tokenizer = shared_tokenizer(
            tuple(specs[i] for i in texts),
            tokenizer or CHARS,
            vocab_documents,
            min_freq,
            progress,
            sizes["valid_fraction"],
        )
    seed = sizes["seed"]

    def opened(i: int, **others: Any) -> Any:
        return open_data(
            specs[i],
            folder=folder / str(i + 1),
            min_freq=min_freq,
            vocab_documents=vocab_documents,
            progress=progress,
            **{**sizes, "tokenizer": tokenizer, "seed": _source_seed(seed, i + 1), **others},
        )

    text_share = 1.0 if pictured is None else sum(shares[i] for i in texts)
    text = MixtureDataset(
        spec=spec,
        tokenizer=tokenizer,
        sources=tuple(opened(i, batch=1) for i in texts),
        shares=tuple(shares[i] / text_share for i in texts),
        **sizes,
    )
    if pictured is None:
        return text
    captioned = opened(pictured, **images, tokenizer=_required(tokenizer, spec))
    return TextAndImages(
        spec=spec,
        tokenizer=tokenizer,
        text=text,
        captioned=captioned,
        text_share=text_share,
        **sizes,
    )


def _required(tokenizer: Tokenizer | None, spec: str) -> Tokenizer:
    if tokenizer is None:
        raise DataProblem(
            "the captions of a mixture cannot be tokenised",
            where=spec,
            why="its texts are raw token files, whose vocabulary is unknown",
            fix="give the tokeniser that they were made with: --tokenizer gpt2, or a PATH",
            exit_code=USAGE,
        )
    return tokenizer


def _source_seed(seed: int, number: int) -> int:
    """A seed for each source: with one seed, sources of equal length would have the same order."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])


def _bare_characters(
    spec: str, min_freq: int, vocab_documents: int, progress: Progress | None
) -> CharTokenizer:
    """The characters of a text, or of a dataset's first documents, with no special tokens."""
    source = open_text(spec)
    if "dataset" in source.records:
        counted = min(vocab_documents, source.records["examples"])
        found = characters_of(source, counted, min_freq, progress)
    else:
        found = CharTokenizer.build(Reading(source, "counting characters", progress), min_freq)
    if not found.chars:
        raise DataProblem("the text gives no vocabulary", where=spec, fix="give another text")
    return replace(found, specials=())


def _open_images(
    spec: str,
    folder: Path | str,
    tokenizer: str | Tokenizer | None,
    segments: bool,
    **options: Any,
) -> CaptionDataset:
    if segments:
        raise DataProblem(
            "captions have no segments: each is one document",
            where=spec,
            fix="train without --segments",
            exit_code=USAGE,
        )
    made = (CHARS, WORDS)
    if isinstance(tokenizer, str) and tokenizer not in made and not wanted(tokenizer):
        tokenizer = open_tokenizer(tokenizer)
    return open_captioned(spec, Path(folder), tokenizer=tokenizer, **options)


def _checked_segments(data: AnyDataset) -> AnyDataset:
    """The dataset, unless segments are wanted and nothing marks the ends of documents."""
    if data.segments and (data.tokenizer is None or data.tokenizer.end_of_text is None):
        raise DataProblem(
            "segments need a token that marks where a document ends",
            where=data.spec,
            fix="use a tokeniser with an end of text, such as gpt2",
            exit_code=USAGE,
        )
    return data


def _refuse_short(data: TokenDataset) -> None:
    splits = {}
    if data.valid_fraction < 1:
        splits["to train on"] = data.train_tokens
    if data.valid_fraction:
        splits["held out"] = data.valid_tokens
    if min(splits.values()) <= data.context:
        have = " and ".join(f"{count:,} {what}" for what, count in splits.items())
        raise DataProblem(
            f"the text is too short for a context of {data.context:,}",
            where=data.spec,
            why=f"it has {len(data.tokens):,} tokens, {have}; each part needs {data.context + 1:,}",
            fix="use a smaller --model.context, or more text",
        )
