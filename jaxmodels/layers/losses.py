"""Losses that several models share.

Logits of a large vocabulary are never whole in training: 32 × 2,048 × 50,260 of them are 13 GB. The
loss takes positions in chunks and computes the gradient while a chunk's logits exist, in a rule of
its own; recomputing them in the backward pass, as `jax.checkpoint` would, costs a third more of the
largest product of bwetaf:53m. On a TPU chunks are few and large, and sums of exponentials start
from the target's logit, so that XLA fuses them with the product.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

from jaxmodels.layers.precision import accum_dtype, to_float32
from jaxmodels.layers.products import einsum, product_over_rows
from jaxmodels.layers.sharding import axis_size, constrain
from jaxmodels.layers.target import platform

# Most bytes of float32 logits that `chunked_cross_entropy` holds at once.
LOGITS_BYTES = 1 << 26
# The same off the CPU, where each chunk reads and writes the head's gradient; less for narrow
# heads, whose gradients are small beside the logits.
LARGE_LOGITS_BYTES = 1 << 30
WIDE = 512


def cross_entropy(logits: Float[Array, "*b v"], targets: Int[Array, "*b"]) -> Float[Array, ""]:
    """Mean of −log softmax(logits)[target] in nats, computed in float32."""
    logits = to_float32(logits)
    picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return jnp.mean(jax.nn.logsumexp(logits, axis=-1) - picked)


def chunked_cross_entropy(
    x: Float[Array, "b t d"],
    head: Float[Array, "v d"] | Float[Array, "d v"],
    targets: Int[Array, "b t"],
    mask: Int[Array, "b t"] | None = None,
    tied: bool = True,
) -> Float[Array, ""]:
    """Mean cross-entropy of the logits `x · headᵀ`, which are never all in memory at once.

    Positions are taken in chunks along t. When a gradient is asked for, it is computed in the
    same pass, while a chunk's logits are at hand: nothing is kept or computed again, and the
    matrix products are those of the plain form. Source of the idea: Hsu et al. 2024 (Liger
    kernels, arXiv:2410.10989).

    Args:
        x: hidden states, in the precision of the products; sums are in float32.
        head: an embedding, [v, d]; or, if not `tied`, the kernel of a linear layer, [d, v].
        targets: the token after each position.
        mask: 1 where a position counts; all do, if None.
        tied: whether the head is an embedding.

    Returns:
        float32 mean of −log softmax(logits)[target] in nats, over positions that count.
    """
    return chunked_scores(x, head, targets, mask, tied)[0]


def chunked_scores(
    x: Float[Array, "b t d"],
    head: Float[Array, "v d"] | Float[Array, "d v"],
    targets: Int[Array, "b t"],
    mask: Int[Array, "b t"] | Bool[Array, "b t"] | None = None,
    tied: bool = True,
    bias: Float[Array, "v"] | None = None,
    smoothing: float = 0.0,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """As `chunked_cross_entropy`, and the share of targets that were the likeliest token.

    Args:
        x, head, targets, mask, tied: as there.
        bias: added to the logits.
        smoothing: the share of each target that is spread evenly over all tokens.
    """
    weight = jnp.ones(targets.shape) if mask is None else mask
    weight = weight.astype(accum_dtype(x.dtype))
    weight = weight / jnp.maximum(weight.sum(), 1)
    if axis_size("data") == 1 or len(x) % axis_size("data"):
        return _mean(tied, smoothing, x, head, bias, targets, weight)
    # Each device adds up its own rows' part of the head's gradient. Left to XLA, all devices
    # would fetch the head, and send around a gradient of its size, for every chunk.
    return jax.shard_map(
        lambda *rows: jax.lax.psum(_mean(tied, smoothing, *rows), "data"),
        in_specs=(P("data"), P(), P(), P("data"), P("data")),
        out_specs=(P(), P()),
        axis_names={"data"},
        check_vma=False,
    )(x, constrain(head, *(("model", None) if tied else (None, "model"))), bias, targets, weight)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _mean(
    tied: bool,
    smoothing: float,
    x: Array,
    head: Array,
    bias: Array | None,
    targets: Array,
    weight: Array,
) -> tuple[Array, Array]:
    """Sums of weight · cross-entropy, and of weight where the target was the likeliest."""

    vocab = _vocab(tied, head)
    scores = _scores_of(tied, smoothing, head, bias)

    def add(totals: tuple[Array, Array], chunk: tuple[Array, ...]) -> tuple[Any, None]:
        part, hits, _ = scores(*chunk)
        return (totals[0] + part, totals[1] + hits), None

    zeros = jnp.zeros((), weight.dtype), jnp.zeros((), weight.dtype)
    return jax.lax.scan(add, zeros, _chunks(vocab, x, targets, weight))[0]


def _mean_and_gradients(
    tied: bool,
    smoothing: float,
    x: Array,
    head: Array,
    bias: Array | None,
    targets: Array,
    weight: Array,
) -> tuple[tuple[Array, Array], tuple[Array, Array, Array | None]]:
    vocab, aligned = _vocab(tied, head), _aligned(tied, head)
    scores = _scores_of(tied, smoothing, head, bias)

    def add(totals: tuple[Any, ...], chunk: tuple[Array, ...]) -> tuple[tuple, Array]:
        part, hits, of_logits = scores(*chunk)
        pair = (of_logits, chunk[0]) if tied else (chunk[0], of_logits)
        of_head = totals[2] + product_over_rows(*pair)
        of_bias = None if bias is None else totals[3] + of_logits.sum(axis=0, dtype=weight.dtype)
        of_x = einsum("nv,vd->nd" if tied else "nv,dv->nd", of_logits, aligned).astype(x.dtype)
        return (totals[0] + part, totals[1] + hits, of_head, of_bias), of_x

    zero, *zeros = (jnp.zeros(n, weight.dtype) for n in ((), aligned.shape, _vocab(tied, aligned)))
    start = zero, zero, zeros[0], None if bias is None else zeros[1]
    (total, hits, of_head, of_bias), of_x = jax.lax.scan(
        add, start, _chunks(vocab, x, targets, weight)
    )
    of_head = of_head[: head.shape[0], : head.shape[1]].astype(head.dtype)
    if bias is not None and of_bias is not None:
        of_bias = of_bias[:vocab].astype(bias.dtype)
    of_x = rearrange(of_x, "c (b t) d -> b (c t) d", b=len(x))[:, : x.shape[1]]
    return (total, hits), (of_x, of_head, of_bias)


def _backward(
    tied: bool, smoothing: float, kept: tuple[Array | None, ...], bys: tuple[Array, Array]
) -> tuple[Array | None, ...]:
    by = bys[0]  # a share of hits has no slope
    return (*(None if of is None else of * by.astype(of.dtype) for of in kept), None, None)


_mean.defvjp(_mean_and_gradients, _backward)


def _vocab(tied: bool, head: Array) -> int:
    return head.shape[0 if tied else 1]


def _aligned(tied: bool, head: Array) -> Array:
    """On a GPU, the head with zeros for tokens that are none, to a multiple of 8.

    cuBLAS needs it. XLA would pad and cut the logits instead, in every chunk.
    """
    more = -_vocab(tied, head) % 8
    if platform() != "gpu" or not more:
        return head
    return jnp.pad(head, ((0, more), (0, 0)) if tied else ((0, 0), (0, more)))


def _chunks(vocab: int, x: Array, *others: Array) -> tuple[Array, ...]:
    """Every array [b, t, …] cut into c chunks along t, zeros added at its end: [c, b · t/c, …].

    Rows and positions are one axis: XLA multiplies matrices faster on a CPU
    than it multiplies over two axes.
    """
    batch, t = x.shape[:2]
    large = LARGE_LOGITS_BYTES * min(x.shape[-1], WIDE) // WIDE
    largest = LOGITS_BYTES if platform() == "cpu" else large
    most = max(largest // (4 * batch * vocab), 1)
    count = -(-t // most)
    size = -(-t // count)

    def cut(array: Array) -> Array:
        padding = [(0, 0), (0, count * size - t)] + [(0, 0)] * (array.ndim - 2)
        return rearrange(jnp.pad(array, padding), "b (c t) ... -> c (b t) ...", c=count)

    return tuple(cut(array) for array in (x, *others))


def _scores_of(tied: bool, smoothing: float, head: Array, bias: Array | None) -> Any:
    """What computes, of the states [n, d], targets and weights of a chunk, its parts of the means
    and the gradient of the loss with respect to its logits."""
    vocab, aligned = _vocab(tied, head), _aligned(tied, head)
    wide = None if bias is None else to_float32(bias)
    if wide is not None:
        wide = jnp.pad(wide, (0, _vocab(tied, aligned) - vocab))
    # The mean of all logits of a position is its product with the mean of the head.
    mean = to_float32(head).mean(axis=0 if tied else 1) if smoothing else None

    def scores(x: Array, targets: Array, weight: Array) -> tuple[Array, Array, Array]:
        logits = einsum("nd,vd->nv" if tied else "nd,dv->nv", x, aligned)
        # Of the target once more, so that the logits need not be kept beside their powers on a
        # CPU, and is known before them elsewhere.
        rows = to_float32(x)
        picked = jnp.sum(rows * (aligned[targets] if tied else aligned[:, targets].T), axis=-1)
        if wide is not None:
            logits, picked = logits + wide, picked + wide[targets]
        hot = targets[..., None] == jnp.arange(logits.shape[-1])
        form = _from_the_top if platform() == "cpu" else partial(_from_the_target, vocab)
        each, hits, of_logits = form(logits, picked, targets, weight, hot)
        if mean is not None:
            level = jnp.sum(rows * mean, axis=-1) + (0 if wide is None else wide.sum() / vocab)
            each = each + smoothing * (picked - level)
            of_logits = of_logits + smoothing * weight[..., None] * (hot - 1 / vocab)
        return jnp.sum(weight * each), jnp.sum(weight * hits), of_logits.astype(x.dtype)

    return scores


def _from_the_top(
    logits: Array, picked: Array, targets: Array, weight: Array, hot: Array
) -> tuple[Array, Array, Array]:
    """Cross-entropies, whether the target was the likeliest, and the gradient.

    There is one exponential for the sum and the gradient: XLA's sum of exponentials is slow on a
    CPU.
    """
    top = logits.max(axis=-1)
    powers = jnp.exp(logits - top[..., None])
    total = powers.sum(axis=-1)
    of_logits = powers * (weight / total)[..., None] - weight[..., None] * hot
    # The likeliest is the one whose power is e to 0.
    hits = jnp.take_along_axis(powers, targets[..., None], axis=-1)[..., 0] == 1
    return jnp.log(total) + top - picked, hits, of_logits


def _from_the_target(
    vocab: int, logits: Array, picked: Array, targets: Array, weight: Array, hot: Array
) -> tuple[Array, Array, Array]:
    """The same with powers of what a logit is above the target's, of the first `vocab` logits.

    The sum then need not wait for the largest logit, so XLA takes it where the product gives the
    logits, instead of reading all of them again. Where it overflows, which is beyond 80 nats, it is
    taken from the largest after all.
    """

    def known(array: Array, other: float) -> Array:
        # Of each result and not once of the logits, which XLA would then write a second time.
        size = array.shape[-1]
        return array if size == vocab else jnp.where(jnp.arange(size) < vocab, array, other)

    def powers(start: Array) -> Array:
        return known(jnp.exp(logits - start[..., None]), 0.0)

    top = known(logits, -jnp.inf).max(axis=-1)
    total = powers(picked).sum(axis=-1)
    beyond = ~jnp.isfinite(total)
    start = jnp.where(beyond, top, picked)
    total = jax.lax.cond(_anywhere(beyond), lambda: powers(start).sum(axis=-1), lambda: total)
    level = start + jnp.log(total)
    of_logits = weight[..., None] * (powers(level) - hot)
    hits = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0] == top
    return level - picked, hits, of_logits


def _anywhere(flags: Array) -> Array:
    """Whether one is set, on any device: all of them must go the same way."""
    axes = jax.sharding.get_abstract_mesh().manual_axes
    found = flags.any()
    return jax.lax.pmax(found.astype(jnp.int32), axes) > 0 if axes else found
