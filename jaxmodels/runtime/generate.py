"""The generation loop: prefill the prompt, then decode in compiled chunks.

Chunks of 32 tokens stream, and spare the return to Python for each token; a chunk is read while the
next is decoded (`decoding` has the compiled functions).

Learned positions cannot wrap around: when the cache is full, the last half of the context becomes
the new prompt (half, since every token would otherwise cost a prefill). Where no token can be drawn
the device returns -1 (`sampling.NOTHING`), and the host ends the generation with an error.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from jaxmodels.architecture import ModelView
from jaxmodels.errors import UNVERIFIED, USAGE, Problem, within
from jaxmodels.layers.sampling import NOTHING, Sampling
from jaxmodels.runtime.decoding import (
    Static,
    banned_mask,
    cache_size,
    decoder,
    grow,
    pad,
    prefill,
)
from jaxmodels.runtime.paths import Arrays, split
from jaxmodels.runtime.sharding import fetch


def generate(
    model: Any,
    prompt: np.ndarray,
    max_new_tokens: int,
    sampling: Sampling,
    seed: int = 0,
    banned: tuple[int, ...] = (),
    chunk: int = 32,
    end: int | None = None,
    images: np.ndarray | None = None,
) -> Iterator[np.ndarray]:
    """Continues each row of the prompt, yielding int32 [b, n ≤ chunk] as soon as computed: the
    first token alone, then chunks.

    A row's tokens depend only on the seed, its index and its prompt, not on the number of rows or
    on `chunk`.

    With relative positions (`Model.relative`) the cache is a ring: the newest token replaces the
    oldest. Otherwise, when the context is full, its last half is read again as a new prompt.

    Args:
        model: a module with `config.context`, `init_cache(batch, size)`,
            `model(tokens, cache) -> (logits, cache)` and its two halves `hidden(tokens, cache) ->
            (x, cache)` and `logits(x)`; optionally `prefill(tokens, length, size) ->
            (logits, cache)` to read the prompt and `decode(tokens, cache) -> (logits, cache)` for
            each token. Ids from `config.tokens` on, if the config has it, are padding of the
            vocabulary and never drawn.
        prompt: int [b, t] with t ≥ 1. Only the end of a prompt longer than the context is read.
            With images it may be empty.
        max_new_tokens: number of tokens for each row.
        sampling: temperature and filters; greedy when the temperature is None or close to 0.
        seed: of the random draws.
        banned: token ids that are never drawn.
        chunk: tokens decoded in one compiled call.
        end: a token that ends a row: once every row has drawn it, no further chunk is yielded.
            The caller truncates each row (`truncate_at`).
        images: float32 [b, h, w, 3] in [0, 1], one for each row, for a model whose `prefill` takes
            `images`. Prompt and new tokens must fit the context: an image is read only once.

    Raises:
        Problem: (usage) an option is out of range, or every token is banned; (verification
            failed) no token that may be drawn has a finite logit.
    """
    _check(sampling)
    if banned_mask(model, banned).all():
        raise Problem(
            "there is no token that may be drawn",
            why=f"all {model.config.vocab} are banned or padding of the vocabulary",
            fix="ban fewer",
            exit_code=USAGE,
        )
    graphdef, params, model_state = split(model)
    fixed = Static(graphdef, sampling.top_k, banned, chunk, model.config.context)
    sampling = sampling._replace(top_k=None)
    stretch = partial(_continue_prompt, fixed, params, model_state, sampling, seed, images)
    text, drawn = np.asarray(prompt, np.int32), 0
    ended = np.zeros(len(text), bool)
    while drawn < max_new_tokens and not ended.all():
        text = text[:, -prompt_tokens_read(model, text.shape[1]) :]
        count = max_new_tokens - drawn
        if not _relative(model):
            count = min(count, fixed.context - text.shape[1])
        for piece in stretch(text, drawn, count):
            valid = _valid_columns(piece, ended, end)
            if end is not None:  # after the end of a row anything may follow
                piece = np.where(piece == NOTHING, end, piece)
            if valid:
                yield piece[:, :valid]
            if valid < piece.shape[1]:
                raise _cannot_draw(drawn + valid)
            drawn += piece.shape[1]
            text = np.concatenate([text, piece], axis=1)[:, -fixed.context :]
            ended |= (piece == end).any(axis=1)
            if ended.all():
                break


def _check(sampling: Sampling) -> None:
    """Refuses options that are out of range."""
    within("the temperature", sampling.temperature, 0)
    within("top_k", sampling.top_k, 1)
    within("top_p", sampling.top_p, 0, 1)
    within("min_p", sampling.min_p, 0, 1)


def _valid_columns(piece: np.ndarray, ended: np.ndarray, end: int | None) -> int:
    """The number of leading columns with a token in every row that has not ended."""
    over = ended[:, None] | (np.cumsum(piece == end, axis=1) > 0)
    missing = ((piece == NOTHING) & ~over).any(axis=0)
    return int(missing.argmax()) if missing.any() else len(missing)


def _cannot_draw(drawn: int) -> Problem:
    return Problem(
        "the model's next token cannot be drawn",
        why=f"after {drawn} tokens, the logit of every token that may follow is NaN or -inf: "
        "parameters or activations are not finite",
        fix="use an earlier checkpoint; `jaxmodels inspect PATH --tensors` shows what is not "
        "finite",
        exit_code=UNVERIFIED,
    )


def prompt_tokens_read(model: Any, length: int) -> int:
    """How many of the last tokens of a prompt of this length `generate` reads."""
    context = model.config.context
    return min(length, context) if length < context or _relative(model) else context // 2


def _relative(model: Any) -> bool:
    return ModelView(model).relative


def _continue_prompt(
    fixed: Static,
    params: Arrays,
    model_state: Arrays,
    sampling: Sampling,
    seed: int,
    images: np.ndarray | None,
    prompt: np.ndarray,
    drawn: int,
    count: int,
) -> Iterator[np.ndarray]:
    """Reads a prompt and continues it by `count` tokens, which fit the context or wrap around.

    `drawn` tokens were drawn before. A chunk is read while the next is decoded.
    """
    filled = prompt.shape[1]
    size = cache_size(filled + min(fixed.chunk, count - 1), fixed.context)
    padded = pad(prompt, size)
    draw = seed, sampling
    state = prefill(fixed, params, model_state, padded, filled, drawn, images, *draw, size=size)
    waiting, n, decode = state[0][:, None], 1, decoder(params, model_state, len(prompt))
    for left in range(count - 1, 0, -fixed.chunk):
        n = min(left, fixed.chunk)
        if filled + n > size < fixed.context:
            size = cache_size(filled + n, fixed.context)
            state = grow(state, size=size)
        state, tokens = decode(fixed, params, model_state, state, *draw, n)
        filled += n
        yield fetch(waiting)
        waiting = tokens
    yield fetch(waiting)[:, :n]  # only the last chunk may be short


def truncate_at(end: int | None, tokens: np.ndarray) -> np.ndarray:
    """The tokens [n] before the first `end`."""
    ends = (tokens == end).nonzero()[0]
    return tokens[: ends[0]] if len(ends) else tokens
