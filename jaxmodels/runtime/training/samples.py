"""What a model writes now, shown as it trains: continued prompts, or captions of images."""

import inspect
from collections.abc import Callable
from textwrap import fill
from typing import Any, NamedTuple

import numpy as np

from jaxmodels.architecture import ModelView
from jaxmodels.layers.sampling import Sampling
from jaxmodels.runtime.generate import before, generate
from jaxmodels.runtime.reporting.pictures import picture, title

GREEDY = Sampling(None)


class Sample(NamedTuple):
    """What is printed, and kept in `samples/`."""

    text: str
    png: bytes | None = None
    """A picture of it, where there is something to see."""


def caption(
    model: Any,
    tokenizer: Any,
    images: np.ndarray,
    prompt: str = "",
    sampling: Sampling = GREEDY,
    seed: int = 0,
    most: int | None = None,
) -> list[np.ndarray]:
    """The tokens that a model writes of each image after a prompt, without what ends them.

    Args:
        model: one that can (`captions`).
        tokenizer: has `encode`, `special_ids` and `end_of_text`.
        images: uint8 [b, h, w, 3].
        prompt: how each begins.
        sampling: by default the likeliest token each time.
        seed: of the draws.
        most: tokens to add, at most; None and more than fit the context: as many as fit.
    """
    ids = np.asarray(tokenizer.encode(prompt), np.int32)
    fit = model.config.context - len(ids)
    count, end = min(most or fit, fit), last_token(tokenizer)
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
    return [before(end, row) for row in np.concatenate(list(pieces), axis=1)]


def captions(model: Any) -> bool:
    """Whether a model can write a text about an image."""
    prefill = ModelView(model).prefill
    return prefill is not None and "images" in inspect.signature(prefill).parameters


def last_token(tokenizer: Any) -> int:
    """What ends a caption: the end of text, or a line's, where there is no such token."""
    end = tokenizer.end_of_text
    return int(tokenizer.encode("\n")[0]) if end is None else end


def text_sampler(
    tokenizer: Any, prompt: str, seed: int, length: int = 200
) -> Callable[[Any], Sample]:
    """A sampler that continues `prompt` by at most `length` tokens at temperature 0.8."""
    ids = np.asarray([tokenizer.encode(prompt)], np.int32)
    banned, end = tuple(tokenizer.special_ids), tokenizer.end_of_text

    def sampler(model: Any) -> Sample:
        pieces = generate(model, ids, length, Sampling(0.8), seed, banned, chunk=length, end=end)
        tokens = np.concatenate([piece[0] for piece in pieces])
        return Sample(prompt + tokenizer.decode(before(end, tokens)))

    return sampler


def caption_sampler(tokenizer: Any, images: np.ndarray, said: list[str]) -> Callable[[Any], Sample]:
    """A sampler that writes the likeliest caption of each image, beside what was said of it.

    Args:
        tokenizer: the model's.
        images: uint8 [b, h, w, 3].
        said: a caption of each.
    """

    def sampler(model: Any) -> Sample:
        written = [tokenizer.decode(row) for row in caption(model, tokenizer, images)]
        return sheet(images, written, said)

    return sampler


def sheet(images: np.ndarray, written: list[str], said: list[str]) -> Sample:
    """Images with what a model wrote of them and what was said of them, as text and picture."""
    pairs = zip(written, said, strict=True)
    text = "\n".join(f"{i}: {ours}   ({theirs})" for i, (ours, theirs) in enumerate(pairs, 1))
    return Sample(text, picture("the samples", lambda: _sheet(images, written, said), dpi=80))


def _sheet(images: np.ndarray, written: list[str], said: list[str]) -> Any:
    from matplotlib.figure import Figure

    columns = min(len(images), 4)
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(3 * columns, 3.6 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, image, ours, theirs in zip(grid.flat, images, written, said, strict=False):
        axes.imshow(image)
        above = "\n".join(fill(title(text), 34) for text in (ours, f"({theirs})"))
        axes.set_title(above, fontsize=9)
    return figure
