"""Samples shown during training: continued prompts, captions of images, answers to questions."""

from collections.abc import Callable
from textwrap import fill
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxmodels.layers.sampling import Sampling
from jaxmodels.runtime.answers import answer, end_token
from jaxmodels.runtime.generate import generate, truncate_at
from jaxmodels.runtime.reporting.pictures import picture, title

GREEDY = Sampling(None)


class Sample(NamedTuple):
    """A sample, to be printed and kept in `samples/`."""

    text: str
    png: bytes | None = None
    """A picture, if there are images."""


def caption(
    model: Any,
    tokenizer: Any,
    images: np.ndarray,
    prompt: str = "",
    sampling: Sampling = GREEDY,
    seed: int = 0,
    max_tokens: int | None = None,
) -> list[np.ndarray]:
    """The tokens of a caption for each image, without prompt and end token.

    Args:
        model: one that `can_caption`.
        tokenizer: has `encode`, `special_ids` and `end_of_text`.
        images: uint8 [b, h, w, 3].
        prompt: the beginning of each caption.
        sampling: greedy by default.
        seed: of the random draws.
        max_tokens: tokens to add, at most; None and more than fit the context: as many as fit.
    """
    ids = np.asarray(tokenizer.encode(prompt), np.int32)
    fit = model.config.context - len(ids)
    count, end = min(max_tokens or fit, fit), end_token(tokenizer)
    pieces = generate(
        model,
        np.repeat(ids[None], len(images), axis=0),
        count,
        sampling,
        seed,
        tuple(tokenizer.special_ids),
        end=end,
        images=images.astype(np.float32) / 255,
    )
    return [truncate_at(end, row) for row in np.concatenate(list(pieces), axis=1)]


def text_sampler(
    tokenizer: Any, prompt: str, seed: int, length: int = 200
) -> Callable[[Any], Sample]:
    """A sampler that continues `prompt` by at most `length` tokens at temperature 0.8."""
    ids = np.asarray([tokenizer.encode(prompt)], np.int32)
    banned, end = tuple(tokenizer.special_ids), tokenizer.end_of_text

    def sampler(model: Any) -> Sample:
        pieces = generate(model, ids, length, Sampling(0.8), seed, banned, chunk=length, end=end)
        tokens = np.concatenate([piece[0] for piece in pieces])
        return Sample(prompt + tokenizer.decode(truncate_at(end, tokens)))

    return sampler


def caption_sampler(
    tokenizer: Any, images: np.ndarray, captions: list[str]
) -> Callable[[Any], Sample]:
    """A sampler that captions each image greedily, and shows a reference beside it.

    Args:
        tokenizer: the model's.
        images: uint8 [b, h, w, 3].
        captions: a reference caption for each image.
    """

    def sampler(model: Any) -> Sample:
        written = [tokenizer.decode(row) for row in caption(model, tokenizer, images)]
        return sheet(images, written, captions)

    return sampler


def question_sampler(
    tokenizer: Any, images: np.ndarray, prompts: list[str], answers: list[str]
) -> Callable[[Any], Sample]:
    """A sampler that answers a question about each image, and shows a person's answer beside it.

    Args:
        tokenizer: the model's.
        images: uint8 [b, h, w, 3].
        prompts: what precedes the answer about each.
        answers: a person's answer to each.
    """

    def sampler(model: Any) -> Sample:
        found = answer(model, tokenizer, prompts, lambda rows: images[rows], len(prompts))
        pairs = zip(prompts, found, strict=True)
        return sheet(images, [f"{prompt} {text or ''}" for prompt, text in pairs], answers)

    return sampler


def image_sampler(images: np.ndarray) -> Callable[[Any], Sample]:
    """A sampler that shows images, uint8 [b, h, w, 3], above what the model predicts of them."""
    shown = images.astype(np.float32) / 255

    def sampler(model: Any) -> Sample:
        drawn = np.asarray(model.drawn(jax.numpy.asarray(shown)))
        wrong = np.sqrt(np.square(drawn - shown).mean())
        text = (
            f"{len(images)} images, each patch predicted from those before it: off by {wrong:.3f}"
        )
        rows = {"image": shown, "predicted": drawn}
        return Sample(
            f"{text} of the range of colours (root mean square)",
            picture("the samples", lambda: _rows(rows), dpi=80),
        )

    return sampler


def both_samplers(
    of_text: Callable[[Any], Sample] | None, of_images: Callable[[Any], Sample]
) -> Callable[[Any], Sample]:
    """A sampler with the text of the first and the picture of the second."""

    def sampler(model: Any) -> Sample:
        drawn = of_images(model)
        if of_text is None:
            return drawn
        return Sample(f"{of_text(model).text}\n{drawn.text}", drawn.png)

    return sampler


def _rows(rows: dict[str, np.ndarray]) -> Any:
    """A figure with a row of images for each name."""
    from matplotlib.figure import Figure

    columns = len(next(iter(rows.values())))
    figure = Figure(figsize=(1.5 * columns, 1.6 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for line, (name, images) in zip(grid, rows.items(), strict=True):
        for axes, image in zip(line, images, strict=True):
            axes.imshow(image, interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
        line[0].set_ylabel(name)
    return figure


def sheet(images: np.ndarray, written: list[str], captions: list[str]) -> Sample:
    """Images with a model's captions and the references, as text and picture."""
    pairs = zip(written, captions, strict=True)
    text = "\n".join(f"{i}: {ours}   ({theirs})" for i, (ours, theirs) in enumerate(pairs, 1))
    return Sample(text, picture("the samples", lambda: _sheet(images, written, captions), dpi=80))


def _sheet(images: np.ndarray, written: list[str], captions: list[str]) -> Any:
    from matplotlib.figure import Figure

    columns = min(len(images), 4)
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(3 * columns, 4 * rows), layout="compressed")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, image, ours, theirs in zip(grid.flat, images, written, captions, strict=False):
        axes.imshow(image)
        above = "\n".join(fill(title(text), 34) for text in (ours, f"({theirs})"))
        axes.set_title(above, fontsize=9)
    return figure
