"""Choosing the next token from logits."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int


class Sampling(NamedTuple):
    """How tokens are drawn; None turns a filter off. Filters apply in the order given."""

    temperature: float | None = 1.0
    """Divides the logits; None takes the likeliest token (greedy)."""
    top_k: int | None = None
    """Keep the k likeliest tokens."""
    top_p: float | None = None
    """Keep the likeliest tokens until their probabilities reach p (Holtzman et al. 2020)."""
    min_p: float | None = None
    """Keep tokens at least min_p times as likely as the likeliest (Nguyen et al. 2024)."""


def sample(
    logits: Float[Array, "b v"],
    uniform: Float[Array, "b"],
    sampling: Sampling,
    banned: Bool[Array | np.ndarray, "v"],
) -> Int[Array, "b"]:
    """Draws one token for each row, by inverting the distribution at one random number.

    One number a token, which can be drawn for many tokens at once, costs a tenth of the
    noise for every logit that `jax.random.categorical` draws.

    Args:
        logits: float32.
        uniform: random numbers in [0, 1).
        sampling: `top_k`, and which values are None, must be fixed at compile time.
        banned: True for tokens that are never drawn (padding, special ids).
    """
    logits = jnp.where(banned, -jnp.inf, logits)
    if sampling.temperature is None:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    logits = logits / sampling.temperature
    ids = None
    if sampling.top_k is not None or sampling.top_p is not None:
        size = logits.shape[-1]
        logits, ids = jax.lax.top_k(logits, min(sampling.top_k or size, size))
    probability = _filtered(jax.nn.softmax(logits, axis=-1), sampling)
    total = jnp.cumsum(probability, axis=-1)
    # Strictly below, so that a token without probability is never drawn; rounding can only
    # exceed the last token that has some.
    index = (total <= uniform[:, None] * total[:, -1:]).sum(axis=-1)
    last = (total < total[:, -1:]).sum(axis=-1)
    index = jnp.minimum(index, last)[:, None]
    return (index if ids is None else jnp.take_along_axis(ids, index, axis=1))[:, 0].astype(
        jnp.int32
    )


def _filtered(probability: Float[Array, "b n"], sampling: Sampling) -> Float[Array, "b n"]:
    """Zero for tokens that top-p and min-p drop; the likeliest always stays.

    With top-p, the tokens are sorted, the likeliest first.
    """
    if sampling.top_p is not None:
        before = jnp.cumsum(probability, axis=-1) - probability
        probability = jnp.where(before < sampling.top_p, probability, 0)
    if sampling.min_p is not None:
        floor = sampling.min_p * probability.max(axis=-1, keepdims=True)
        probability = jnp.where(probability < floor, 0, probability)
    return probability
