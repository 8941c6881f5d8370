"""Choosing the next token from logits.

Nothing of the vocabulary's size is sorted, summed or searched one by one: everything works on
groups of 128 tokens, so greedy, top-k and plain draws take the same time.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int

GROUP = 128
"""A large vocabulary is searched in groups of so many tokens."""
COLDEST = 1e-6
"""A temperature below this is greedy: float32 logits that differ do so by about as much."""
NOTHING = -1
"""What stands for a token where no token could be drawn."""


class Sampling(NamedTuple):
    """How tokens are drawn; None turns a filter off. Filters apply in the order given."""

    temperature: float | None = 1.0
    """Divides the logits; None, and less than `COLDEST`, take the likeliest token (greedy)."""
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
    noise for every logit that `jax.random.categorical` draws. Nothing of the vocabulary's size
    is sorted or summed up cumulatively: with GPT-2's, either takes longer than a small model.

    Args:
        logits: float32. One that is not a number is never drawn.
        uniform: random numbers in [0, 1).
        sampling: `top_k`, and which values are None, must be fixed at compile time.
        banned: True for tokens that are never drawn (padding, special ids).

    Returns:
        int32 ids; `NOTHING` for a row in which every token is banned, −inf or not a number.
    """
    logits = jnp.where(banned | jnp.isnan(logits), -jnp.inf, logits)
    highest = logits.max(axis=-1, keepdims=True)
    ids = (
        _likeliest(logits)
        if sampling.temperature is None
        else _drawn(logits, highest, uniform, sampling)
    )
    return jnp.where(highest[:, 0] > -jnp.inf, ids, NOTHING)


def _drawn(
    logits: Float[Array, "b v"],
    highest: Float[Array, "b 1"],
    uniform: Float[Array, "b"],
    sampling: Sampling,
) -> Int[Array, "b"]:
    """A token for each row, by temperature and filters.

    The likeliest logit is made 0 before it is divided: nothing overflows at a small temperature
    but what then has no weight. XLA divides by multiplying, and −inf · 0 is no number.
    """
    assert sampling.temperature is not None
    limits = jnp.finfo(logits.dtype)
    cold = jnp.asarray(sampling.temperature, logits.dtype) < COLDEST
    temperature = jnp.where(cold, limits.tiny, sampling.temperature)
    uniform = jnp.where(cold, 0, uniform)  # the first of those that are equally likely
    scaled = jnp.maximum(logits - highest, limits.min) / temperature
    scaled = jnp.where(logits > -jnp.inf, scaled, -jnp.inf)
    logits = jnp.where(logits == highest, 0, scaled)
    ids = None
    if sampling.top_k is not None and sampling.top_k < logits.shape[-1]:
        logits, ids = top(logits, sampling.top_k)
    probability = jax.nn.softmax(logits, axis=-1)
    if sampling.top_p is not None:
        probability = nucleus(probability, sampling.top_p)
    if sampling.min_p is not None:
        floor = sampling.min_p * probability.max(axis=-1, keepdims=True)
        probability = jnp.where(probability < floor, 0, probability)
    index = _invert(probability, uniform)
    return index if ids is None else jnp.take_along_axis(ids, index[:, None], axis=1)[:, 0]


def top(values: Float[Array, "b n"], k: int) -> tuple[Float[Array, "b k"], Int[Array, "b k"]]:
    """The k largest values and their indices, as `jax.lax.top_k`, ties included.

    They lie in the k groups with the largest maxima, so only these are searched.
    """
    n = values.shape[-1]
    if n <= 2 * k * GROUP:
        largest, indices = jax.lax.top_k(values, k)
        return largest, indices
    groups = _grouped(values, -jnp.inf)
    chosen = jnp.sort(jax.lax.top_k(groups.max(axis=-1), k)[1], axis=-1)
    found = jnp.take_along_axis(groups, chosen[..., None], axis=1)
    indices = chosen[..., None] * GROUP + jnp.arange(GROUP)
    largest, at = jax.lax.top_k(rearrange(found, "b k g -> b (k g)"), k)
    return largest, jnp.take_along_axis(rearrange(indices, "b k g -> b (k g)"), at, axis=1)


def nucleus(probability: Float[Array, "b n"], p: Float[Array, ""] | float) -> Float[Array, "b n"]:
    """Zero for all but the likeliest tokens that together reach p; equally likely ones all stay,
    and the likeliest always.

    The least probability that stays is found by halving the range of floats, whose bits, taken
    as whole numbers, are in the same order.
    """
    bits = jax.lax.bitcast_convert_type(probability, jnp.int32)

    def halve(_: Array, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = low + (high - low) // 2
        enough = jnp.where(bits >= middle[:, None], probability, 0).sum(axis=-1) >= p
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    least = jnp.zeros(len(bits), jnp.int32)
    above_one = jnp.full(len(bits), 0x3F800001, jnp.int32)
    least, _ = jax.lax.fori_loop(0, 31, halve, (least, above_one))
    least = jnp.minimum(least, bits.max(axis=-1))
    return jnp.where(bits >= least[:, None], probability, 0)


def _likeliest(logits: Float[Array, "b n"]) -> Int[Array, "b"]:
    """`jnp.argmax` on two levels: XLA searches for an index one number at a time on a CPU."""
    groups = _grouped(logits, -jnp.inf)
    group = jnp.argmax(groups.max(axis=-1), axis=-1)
    inside = jnp.take_along_axis(groups, group[:, None, None], axis=1)[:, 0]
    return (group * GROUP + jnp.argmax(inside, axis=-1)).astype(jnp.int32)


def _invert(weights: Float[Array, "b n"], uniform: Float[Array, "b"]) -> Int[Array, "b"]:
    """Where the running sum of the weights passes the share `uniform` of their total."""
    if weights.shape[-1] <= 2 * GROUP:
        return _passed(weights, uniform * weights.sum(axis=-1))[0]
    groups = _grouped(weights, 0.0)
    sums = groups.sum(axis=-1)
    group, rest = _passed(sums, uniform * sums.sum(axis=-1))
    inside = jnp.take_along_axis(groups, group[:, None, None], axis=1)[:, 0]
    return group * GROUP + _passed(inside, rest)[0]


def _passed(
    weights: Float[Array, "b n"], goal: Float[Array, "b"]
) -> tuple[Int[Array, "b"], Float[Array, "b"]]:
    """The first index at which the running sum exceeds the goal, and what is left of it there.

    Strictly exceeds, so that nothing without weight is found; where rounding puts the goal
    beyond the total, it is the last index with some.
    """
    total = jnp.cumsum(weights, axis=-1)
    index = (total <= goal[:, None]).sum(axis=-1)
    last = (total < total[:, -1:]).sum(axis=-1)
    index = jnp.minimum(index, last).astype(jnp.int32)
    at = index[:, None]
    before = jnp.take_along_axis(total, at, axis=1) - jnp.take_along_axis(weights, at, axis=1)
    return index, goal - before[:, 0]


def _grouped(values: Float[Array, "b n"], filling: float) -> Float[Array, "b groups g"]:
    more = -values.shape[-1] % GROUP
    padded = jnp.pad(values, ((0, 0), (0, more)), constant_values=filling)
    return rearrange(padded, "b (n g) -> b n g", g=GROUP)
