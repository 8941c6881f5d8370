"""Attention of a long sequence to itself, in blocks of queries, with a backward pass of its own.

Four loops over blocks of at most 128 queries, each over the keys up to its end. One scan over all
blocks would do twice the products; blocks one after the other, without loops, are run side by side
by XLA on a CPU and hold the scores of all. At 2,048 tokens and 8 heads on two cores, forward and
backward: 1,205 ms and 388 MB at once, 519 ms and 61 MB so. JAX's own backward pass makes XLA
transpose the scores, a sixth of a step of bwetaf:53m.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float, Int, Shaped

from jaxmodels.layers.precision import accum_dtype
from jaxmodels.layers.products import einsum

# The score of a key that a query may not see.
HIDDEN = -1e9
# A block has at most so many queries.
QUERIES = 128
# Blocks are grouped into so many loops; those of one loop meet the same keys.
LOOPS = 4


class MaskWindow(NamedTuple):
    """Which keys the queries of a loop may see; the first two fields are by block."""

    last: Int[Array, "n t"]
    """The last key that a query may see."""
    segments: Int[Array, "n b t"] | None
    """The documents of the queries, if there are any."""
    keys: Int[Array, "b s"] | None
    """Those of the keys."""
    padding_mask: Int[Array, "b s"] | None
    """1 for keys that may be seen at all."""


class Span(NamedTuple):
    """What is fixed when a program is traced: the same for all of its arrays."""

    ends: tuple[int, ...]
    """For each loop the number of keys that its queries may see."""
    scale: float
    """Scores are products of queries and keys times this."""


def blocked_attention(
    q: Float[Array, "b t h k"],
    k: Float[Array, "b t g k"],
    v: Float[Array, "b t g k"],
    padding_mask: Int[Array, "b t"] | None = None,
    segments: Int[Array, "b t"] | None = None,
    causal: bool = True,
    scale: float | None = None,
) -> Float[Array, "b t h k"]:
    """Attention of a whole sequence to itself, in blocks of queries when it is long.

    Causal blocks are taken in a few loops, each over the keys up to its end only, which saves
    nearly half of the products. A block's scores are computed again in the backward pass, so
    that memory grows with the length instead of its square (Dao et al. 2022, arXiv:2205.14135).

    Args:
        q: queries; the h / g heads that read one head of keys are taken as further rows.
        k: keys; g divides h.
        v: values.
        padding_mask: 1 for tokens, 0 for padding. No token sees padding; padding attends to all
            positions alike, later ones too (seed 003).
        segments: the document of each token; a query sees keys of its own only.
        causal: a query sees no later key.
        scale: of the scores; 1/√k by default.
    """
    t, shared = q.shape[1], q.shape[2] // k.shape[2]
    span = _span(t, shared, causal, q.shape[3] ** -0.5 if scale is None else scale)
    rows = rearrange(q, "b t (h r) k -> b (t r) h k", r=shared)
    last = jnp.repeat(jnp.arange(t) if causal else jnp.full(t, t - 1), shared)
    documents = None if segments is None else jnp.repeat(segments, shared, axis=1)
    queries, windows, start = [], [], 0
    for end in span.ends:
        part = slice(start * shared, end * shared)
        own = None if documents is None else _cut(documents[:, part])
        keys, seen = (None if x is None else x[:, :end] for x in (segments, padding_mask))
        queries.append(rearrange(_cut(rows[:, part]), "n b t h k -> n b h t k"))
        windows.append(MaskWindow(_cut(last[None, part])[:, 0], own, keys, seen))
        start = end
    k, by_head = (_once(rearrange(x, "b s h k -> b h s k")) for x in (k, v))
    out = _attend(span, queries, k, by_head, windows)
    found = jnp.concatenate(
        [
            rearrange(x, "n b h t k -> b (n t) h k")[:, : (end - start) * shared]
            for x, start, end in zip(out, (0, *span.ends), span.ends, strict=False)
        ],
        axis=1,
    )
    found = rearrange(found, "b (t r) h k -> b t (h r) k", r=shared)
    if padding_mask is None:
        return found
    every = jnp.repeat(v.mean(axis=1, keepdims=True), shared, axis=2)
    return jnp.where(padding_mask[:, :, None, None] == 1, found, every)


def _span(t: int, shared: int, causal: bool, scale: float) -> Span:
    """The loops over t positions, each of which has `shared` rows of queries."""
    blocks = -(-t * shared // QUERIES)
    group = -(-(-(-blocks // LOOPS) * QUERIES) // shared) if causal else t
    return Span(tuple(min(start + group, t) for start in range(0, t, group)), scale)


def _cut(x: Shaped[Array, "b t *d"]) -> Shaped[Array, "n b _ *d"]:
    """As few blocks as there may be, of one size; the last is filled up."""
    t = x.shape[1]
    count = -(-t // QUERIES)
    more = [(0, 0), (0, -t % count)] + [(0, 0)] * (x.ndim - 2)
    return rearrange(jnp.pad(x, more), "b (n t) ... -> n b t ...", n=count)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(
    span: Span,
    queries: list[Float[Array, "_ b h _ k"]],
    k: Float[Array, "b h s k"],
    v: Float[Array, "b h s k"],
    windows: list[MaskWindow],
) -> list[Float[Array, "_ b h _ k"]]:
    """Attention of loops of queries, [n b h t k] each, to the keys before their ends.

    Its backward pass is written out for the sake of layouts: nothing as large as the scores is
    transposed, as XLA would for the gradients of keys and values; keys and values are, once. The
    softmax's sums are not computed again.
    """
    return _forward(span, queries, k, v, windows)[0]


def _forward(
    span: Span, queries: list[Array], k: Array, v: Array, windows: list[MaskWindow]
) -> tuple[list[Array], Any]:
    turned = _once(rearrange(k, "b h s k -> b h k s"))
    found = [
        _forward_loop(q, turned[..., :end], v[:, :, :end], window, span.scale)
        for q, end, window in zip(queries, span.ends, windows, strict=True)
    ]
    return [out for out, _, _ in found], (queries, k, v, windows, found)


def _forward_loop(
    q: Array, keys: Array, v: Array, window: MaskWindow, scale: float
) -> tuple[Array, Array, Array]:
    """The result, and the softmax's largest score and sum for each query."""

    def block(part: tuple[Array, Array, Array | None]) -> tuple[Array, Array, Array]:
        queries, last, own = part
        scores = _scores(queries, keys, _mask(keys.shape[-1], last, own, window), scale)
        top = scores.max(axis=-1, keepdims=True)
        weights = jnp.exp(scores - top)
        total = weights.sum(axis=-1, keepdims=True)
        out = einsum("bhts,bhsk->bhtk", weights.astype(q.dtype), v) / total
        return out.astype(q.dtype), top, total

    return jax.lax.map(block, (q, window.last, window.segments))


def _backward(span: Span, kept: Any, given: list[Array]) -> tuple[list[Array], Array, Array, None]:
    queries, k, v, windows, found = kept
    keys, values = (_once(rearrange(x, "b h s k -> b h k s")) for x in (k, v))
    sums = (jnp.zeros(keys.shape, accum_dtype(k.dtype)),) * 2
    of_queries, done = [], []
    # From the last loop to the first: keys that the loops before do not meet are done.
    for i in reversed(range(len(span.ends))):
        start, end = span.ends[i - 1] if i else 0, span.ends[i]
        parts = (queries[i], *found[i], given[i], windows[i].last, windows[i].segments)
        meets = keys[..., :end], values[..., :end], k[:, :, :end]
        sums, of_loop = _backward_loop(parts, *meets, windows[i], sums, span.scale)
        of_queries.append(of_loop)
        done.append([x[..., start:] for x in sums])
        sums = tuple(x[..., :start] for x in sums)
    of_keys, of_values = (
        rearrange(jnp.concatenate(parts[::-1], -1), "b h k s -> b h s k").astype(k.dtype)
        for parts in zip(*done, strict=True)
    )
    return of_queries[::-1], of_keys, of_values, None


def _backward_loop(
    parts: Any, keys: Array, values: Array, k: Array, window: MaskWindow, sums: Any, scale: float
) -> tuple[Any, Array]:
    """The sums with this loop's gradients of keys and values, and the gradient of its queries."""
    dtype = k.dtype

    def block(sums: tuple[Array, Array], part: Any) -> tuple[tuple[Array, Array], Array]:
        queries, out, top, total, given, last, own = part
        mask = _mask(keys.shape[-1], last, own, window)
        weights = jnp.exp(_scores(queries, keys, mask, scale) - top) / total
        of_weights = einsum("bhtk,bhks->bhts", given, values)
        inner = (given.astype(total.dtype) * out).sum(axis=-1, keepdims=True)
        of_scores = jnp.where(mask, weights * (of_weights - inner), 0) * scale
        of_scores, weights = of_scores.astype(dtype), weights.astype(dtype)
        sums = (
            sums[0] + einsum("bhtk,bhts->bhks", queries, of_scores),
            sums[1] + einsum("bhtk,bhts->bhks", given, weights),
        )
        return sums, einsum("bhts,bhsk->bhtk", of_scores, k).astype(dtype)

    return jax.lax.scan(block, sums, parts)


_attend.defvjp(_forward, _backward)


def _scores(q: Array, keys: Array, mask: Array, scale: float) -> Array:
    scores = einsum("bhtk,bhks->bhts", q, keys) * scale
    return jnp.where(mask, scores, HIDDEN)


def _mask(s: int, last: Array, own: Array | None, window: MaskWindow) -> Array:
    """What the queries of a block see of s keys: bool, [b or 1, 1, t, s]."""
    mask = (jnp.arange(s) <= last[:, None])[None]
    if window.padding_mask is not None:
        mask = mask & (window.padding_mask == 1)[:, None]
    if own is not None and window.keys is not None:
        mask = mask & (own[:, :, None] == window.keys[:, None])
    return mask[:, None]


def _once(x: Array) -> Array:
    """The array itself; XLA would transpose it again for each loop that takes a part of it."""
    return jax.lax.optimization_barrier(x)
