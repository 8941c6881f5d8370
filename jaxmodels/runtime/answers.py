"""Answers to questions about images, written greedily after the question.

Generated, not chosen: a decoder is trained to write the answer after the question, so it needs no
list of answers and costs the same whatever there is to answer. Ranking the 3,129 answers that are
usual for VQAv2 would read every question as often.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from jaxmodels.architecture import ModelView
from jaxmodels.layers.sampling import Sampling
from jaxmodels.runtime.generate import generate, truncate_at

LONGEST = 32
"""Tokens of an answer, at most."""

_CHUNK = 8  # tokens decoded before it is asked whether all answers have ended


def answer(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    images: Callable[[np.ndarray], UInt8[np.ndarray, "b h w 3"]],
    batch: int = 32,
) -> list[str | None]:
    """The likeliest answer to each question, token by token; None to one that fills the context.

    Args:
        model: one that `can_caption`.
        tokenizer: the model's.
        prompts: what precedes each answer.
        images: indices of prompts → the images that they ask about.
        batch: questions answered at once.
    """
    tokens = [np.asarray(tokenizer.encode(prompt), np.int32) for prompt in prompts]
    found: list[str | None] = [None] * len(prompts)
    lengths = np.asarray([len(ids) for ids in tokens], np.int64)
    end, banned = end_token(tokenizer), tuple(tokenizer.special_ids)
    for length in np.unique(lengths[lengths < model.config.context]).tolist():
        same = np.flatnonzero(lengths == length)
        for start in range(0, len(same), batch):
            asked = same[start : start + batch]
            rows = np.resize(asked, batch)  # always as many: fewer would be compiled anew
            pieces = generate(
                model,
                np.stack([tokens[i] for i in rows]),
                min(LONGEST, model.config.context - length),
                Sampling(None),
                banned=banned,
                chunk=_CHUNK,
                end=end,
                images=images(rows).astype(np.float32) / 255,
            )
            written = np.concatenate(list(pieces), axis=1)
            for i, row in zip(asked.tolist(), written, strict=False):
                found[i] = tokenizer.decode(truncate_at(end, row)).strip()
    return found


def can_caption(model: Any) -> bool:
    """Whether a model can caption an image."""
    prefill = ModelView(model).prefill
    return prefill is not None and "images" in inspect.signature(prefill).parameters


def end_token(tokenizer: Any) -> int:
    """The token that ends a caption: the end of text, or a newline if there is no such token."""
    end = tokenizer.end_of_text
    return int(tokenizer.encode("\n")[0]) if end is None else end
