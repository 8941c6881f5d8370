"""Loss, metrics and gradients averaged over the parts of a batch (micro-batches, slices).

Most losses are means over rows. Where one is a mean over tokens, and parts differ in their number,
its package exports `counted(batch)`, the number of tokens, and `aux["by_tokens"]` holds the means
over tokens: under "loss" that part of the loss, under a metric's name the metric. The average over
parts then equals that of one large batch.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange

from jaxmodels.architecture import Architecture

Metrics = dict[str, jax.Array]


def split_aux(aux: dict[str, Any]) -> tuple[Metrics, dict[str, jax.Array], dict[str, Any]]:
    """A loss's `aux` split into its metrics (name → float32 scalar), those of them that are means
    over tokens, and the input of `commit`."""
    metrics = {name: jnp.asarray(x, jnp.float32) for name, x in aux.get("metrics", {}).items()}
    stored = {name: x for name, x in aux.items() if name not in ("metrics", "by_tokens")}
    return metrics, aux.get("by_tokens", {}), stored


def token_weights(package: Architecture, parts: dict[str, jax.Array]) -> jax.Array | None:
    """The weight of each part in a mean over tokens, 1 on average; None: all weigh the same.

    Args:
        package: the architecture.
        parts: a batch as [parts, rows, …].
    """
    if package.counted is None:
        return None
    counts = jax.vmap(package.counted)(parts)
    return counts / jnp.maximum(counts.mean(), 1e-6)


def weighted(
    loss: jax.Array, metrics: Metrics, by_tokens: dict[str, jax.Array], share: jax.Array | None
) -> tuple[jax.Array, Metrics]:
    """Loss and metrics scaled so that their plain mean over all parts is that of the batch."""
    if share is None or not by_tokens:
        return loss, metrics

    def one(name: str, value: jax.Array) -> jax.Array:
        if name not in by_tokens:
            return value
        return value**share if name == "perplexity" else value * share

    scaled = loss + (share - 1) * by_tokens["loss"]
    return scaled, {name: one(name, value).astype(value.dtype) for name, value in metrics.items()}


def log_perplexity(metrics: Metrics) -> Metrics:
    """Metrics in a form that can be averaged: of a perplexity the logarithm, a mean loss."""
    return {name: jnp.log(x) if name == "perplexity" else x for name, x in metrics.items()}


def exp_perplexity(metrics: Metrics) -> Metrics:
    """The inverse of `log_perplexity`."""
    return {name: jnp.exp(x) if name == "perplexity" else x for name, x in metrics.items()}


def merge_aux(aux: dict[str, Any]) -> dict[str, Any]:
    """The input of `commit` of all parts, [parts, …], as of one batch: rows are concatenated,
    scalars, which are counts, added up."""

    def merge(x: jax.Array) -> jax.Array:
        return rearrange(x, "a b ... -> (a b) ...") if x.ndim > 1 else x.sum(axis=0)

    return jax.tree.map(merge, aux)


def split_batch(
    package: Architecture,
    count: int,
    batch: dict[str, jax.Array],
    key: jax.Array,
    share: jax.Array | None = None,
) -> Any:
    """The batch split along its rows into `count` parts, a key for each, and their token weights;
    the leading axis is the parts."""
    rows = jax.tree.map(lambda x: rearrange(x, "(a b) ... -> a b ...", a=count), batch)
    weights = token_weights(package, rows)
    if share is not None and weights is not None:
        weights = share * weights
    return rows, jax.random.split(key, count), weights


def mean_over(step: Callable[[Any], Any], parts: Any) -> tuple[Any, Any]:
    """`step(part) -> (result, aux)` over independent parts: the mean result and the merged aux."""

    def one(_: Any, part: Any) -> Any:
        result, aux = step(part)
        return result, {}, aux

    result, _, aux = scan_mean(one, {}, parts)
    return result, merge_aux(aux)


def scan_mean(step: Callable[..., Any], carry: Any, parts: Any) -> tuple[Any, Any, Any]:
    """Scans `step(carry, part) -> ((loss, metrics, gradients), carry, aux)` over parts: the mean
    result, the last carry, and each part's aux."""
    count = parts[1].shape[0]

    def one(state: Any, part: Any) -> tuple[Any, Any]:
        total, carry = state
        (loss, metrics, grads), carry, aux = step(carry, part)
        result = loss, log_perplexity(metrics), grads
        return (jax.tree.map(lambda a, b: a + b / count, total, result), carry), aux

    first = jax.tree.map(lambda x: x[0], parts)
    shapes = jax.eval_shape(step, carry, first)[0]
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    ((loss, metrics, grads), carry), aux = jax.lax.scan(one, (zeros, carry), parts)
    return (loss, exp_perplexity(metrics), grads), carry, aux
