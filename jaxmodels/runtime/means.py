"""What a loss tells of several batches: means by rows, or by tokens where rows differ in these.

A loss whose batches differ in what they count says so twice. Its package exports `counted(batch)`,
how many tokens count; and `aux["by_tokens"]` holds what is a mean over them: under "loss" that part
of the loss, under a metric's name the metric. A mean over batches is then that of one large batch.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange

from jaxmodels.architecture import Architecture

Metrics = dict[str, jax.Array]


def parted(aux: dict[str, Any]) -> tuple[Metrics, dict[str, jax.Array], dict[str, Any]]:
    """A loss's `aux`: its metrics, float32 scalars by name; what of them is a mean over tokens;
    and what is for `commit`."""
    told = {name: jnp.asarray(x, jnp.float32) for name, x in aux.get("metrics", {}).items()}
    stored = {name: x for name, x in aux.items() if name not in ("metrics", "by_tokens")}
    return told, aux.get("by_tokens", {}), stored


def shares(package: Architecture, pieces: dict[str, jax.Array]) -> jax.Array | None:
    """How much each piece counts in a mean over tokens, 1 on average; None: all count alike.

    Args:
        package: of the model.
        pieces: of a batch, [pieces, rows, …].
    """
    if package.counted is None:
        return None
    counts = jax.vmap(package.counted)(pieces)
    return counts / jnp.maximum(counts.mean(), 1e-6)


def weighed(
    loss: jax.Array, told: Metrics, by_tokens: dict[str, jax.Array], share: jax.Array | None
) -> tuple[jax.Array, Metrics]:
    """Loss and metrics such that their plain mean over all pieces is that of the whole batch."""
    if share is None or not by_tokens:
        return loss, told

    def one(name: str, value: jax.Array) -> jax.Array:
        if name not in by_tokens:
            return value
        return value**share if name == "perplexity" else value * share

    whole = loss + (share - 1) * by_tokens["loss"]
    return whole, {name: one(name, value).astype(value.dtype) for name, value in told.items()}


def averaged(told: Metrics) -> Metrics:
    """Metrics as what may be averaged: a perplexity, e to a mean loss, by its logarithm."""
    return {name: jnp.log(x) if name == "perplexity" else x for name, x in told.items()}


def restored(told: Metrics) -> Metrics:
    """The inverse of `averaged`."""
    return {name: jnp.exp(x) if name == "perplexity" else x for name, x in told.items()}


def gathered(aux: dict[str, Any]) -> dict[str, Any]:
    """What pieces told for `commit`, [pieces, …], as one batch would: rows one after the other,
    and scalars, which are counts, added up."""

    def joined(x: jax.Array) -> jax.Array:
        return rearrange(x, "a b ... -> (a b) ...") if x.ndim > 1 else x.sum(axis=0)

    return jax.tree.map(joined, aux)


def pieces(
    package: Architecture,
    count: int,
    batch: dict[str, jax.Array],
    key: jax.Array,
    share: jax.Array | None = None,
) -> Any:
    """The batch cut along its rows, a key for each piece, and how much its tokens count; leading
    axis: the pieces."""
    cut = jax.tree.map(lambda x: rearrange(x, "(a b) ... -> a b ...", a=count), batch)
    own = shares(package, cut)
    return cut, jax.random.split(key, count), own if share is None or own is None else share * own


def of_pieces(step: Callable[[Any], Any], parts: Any) -> tuple[Any, Any]:
    """`step(piece) -> (result, aux)` of pieces that know nothing of each other: the results' mean,
    and the `aux` of a batch."""

    def one(_: Any, piece: Any) -> Any:
        result, aux = step(piece)
        return result, {}, aux

    result, _, aux = scanned(one, {}, parts)
    return result, gathered(aux)


def scanned(step: Callable[..., Any], carry: Any, parts: Any) -> tuple[Any, Any, Any]:
    """Scans `step(carry, piece) -> ((loss, metrics, gradients), carry, aux)` over pieces; the
    results' mean, the carry, and each piece's aux."""
    count = parts[1].shape[0]

    def one(state: Any, piece: Any) -> tuple[Any, Any]:
        total, carry = state
        (loss, told, grads), carry, aux = step(carry, piece)
        result = loss, averaged(told), grads
        return (jax.tree.map(lambda a, b: a + b / count, total, result), carry), aux

    first = jax.tree.map(lambda x: x[0], parts)
    shapes = jax.eval_shape(step, carry, first)[0]
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    ((loss, told, grads), carry), aux = jax.lax.scan(one, (zeros, carry), parts)
    return (loss, restored(told), grads), carry, aux
