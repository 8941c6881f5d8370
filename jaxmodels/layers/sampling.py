"""Choosing the next token from logits."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key


class Sampling(NamedTuple):
    """How tokens are drawn; None turns a filter off. Filters apply in the order given."""

    temperature: float | None = 1.0
    """Divides the logits; None or 0 takes the likeliest token (greedy)."""
    top_k: int | None = None
    """Keep the k likeliest tokens."""
    top_p: float | None = None
    """Keep the likeliest tokens until their probabilities reach p (Holtzman et al. 2020)."""
    min_p: float | None = None
    """Keep tokens at least min_p times as likely as the likeliest (Nguyen et al. 2024)."""


def sample(
    logits: Float[Array, "b v"],
    keys: Key[Array, "b"],
    sampling: Sampling,
    banned: Bool[Array, "v"],
) -> Int[Array, "b"]:
    """Draws one token for each row.

    Args:
        logits: float32.
        keys: a PRNG key for each row.
        sampling: values may be traced; whether they are None is fixed at compile time.
        banned: True for tokens that are never drawn (padding, special ids).
    """
    logits = jnp.where(banned, -jnp.inf, logits)
    if sampling.temperature is None:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    logits = _filter(logits / sampling.temperature, sampling)
    return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)


def _filter(logits: Float[Array, "b v"], sampling: Sampling) -> Float[Array, "b v"]:
    """Logits of the tokens that the filters drop become −inf; the likeliest always stays."""
    if sampling.top_k is not None or sampling.top_p is not None:
        ordered = jnp.sort(logits, axis=-1, descending=True)
        if sampling.top_k is not None:
            last = jnp.minimum(sampling.top_k, logits.shape[-1]) - 1
            smallest = ordered[:, last][:, None]
            logits = jnp.where(logits < smallest, -jnp.inf, logits)
            ordered = jnp.where(ordered < smallest, -jnp.inf, ordered)
        if sampling.top_p is not None:
            probability = jax.nn.softmax(ordered, axis=-1)
            before = jnp.cumsum(probability, axis=-1) - probability
            kept = jnp.where(before < sampling.top_p, ordered, jnp.inf)
            logits = jnp.where(logits < kept.min(axis=-1, keepdims=True), -jnp.inf, logits)
    if sampling.min_p is not None:
        floor = logits.max(axis=-1, keepdims=True) + jnp.log(sampling.min_p)
        logits = jnp.where(logits < floor, -jnp.inf, logits)
    return logits
