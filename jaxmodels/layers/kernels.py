"""Fused attention of a sequence to itself, where a platform has a kernel for it.

The kernel is chosen by the platform that a program is lowered for, not by the machine that
traces it: a step compiled for a TPU on a CPU holds the TPU's. All platforms' forms are traced;
only one is lowered. On a mesh each device takes its own sequences and heads.

cuDNN's flash attention on NVIDIA (16-bit numbers, no segments), splash attention on TPUs (from 128
positions on), `blocks` elsewhere; dropout and padding have no kernel.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxmodels.layers.sharding import dividing
from jaxmodels.layers.target import compute_capability

Plain = Callable[[Array, Array, Array, Array | None], Array]

# Splash attention computes in tiles of so many positions; shorter sequences gain nothing by it.
LANES = 128
# The largest tile: larger ones use a TPU's matrix unit better, and must fit its memory.
TILE = 512


def fused(
    q: Float[Array, "b t h k"],
    k: Float[Array, "b t g k"],
    v: Float[Array, "b t g k"],
    segments: Int[Array, "b t"] | None,
    causal: bool,
    plain: Plain,
    scale: float | None = None,
) -> Float[Array, "b t h k"]:
    """Attention by the platform's kernel, or `plain(q, k, v, segments)` where it has none.

    NVIDIA: cuDNN's flash attention, for 16-bit numbers and no segments. TPU: splash attention,
    from `LANES` positions on. Both take keys and values of fewer heads. The scale is 1/√k by
    default.
    """
    kernels = {}
    if segments is None and (cudnn := _cudnn(q, k, v, causal, scale)):
        kernels["cuda"] = cudnn
    if q.shape[1] >= LANES:
        kernels["tpu"] = _on_mesh(partial(splash, causal=causal, scale=scale), k.shape)
    if not kernels:
        return plain(q, k, v, segments)
    return jax.lax.platform_dependent(q, k, v, segments, default=plain, **kernels)


def _on_mesh(kernel: Plain, shape: tuple[int, ...]) -> Plain:
    """The kernel run by each device on its own sequences and heads: XLA cannot split it.

    The shape is that of the keys, whose heads go with those of the queries that read them.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return kernel
    heads = dividing(shape, ("data", None, "model", None))
    places = (heads, heads, heads, jax.sharding.PartitionSpec(heads[0]))
    return jax.shard_map(kernel, in_specs=places, out_specs=heads, check_vma=False)


def _cudnn(q: Array, k: Array, v: Array, causal: bool, scale: float | None = None) -> Plain | None:
    """cuDNN's flash attention for such arrays; None where there is none.

    It takes heads whose width is a multiple of 8, and even lengths: others are padded with zeros,
    which change no product, and with positions that no other one sees. How wide heads may be
    depends on the GPU. JAX knows, so a trial trace finds out.
    """
    if (compute_capability() or 8) < 8 or q.dtype.itemsize != 2:
        return None  # JAX would let GPUs older than Ampere through
    t, width = q.shape[1], q.shape[3]
    scale = width**-0.5 if scale is None else scale
    more = [(0, 0), (0, t % 2), (0, 0), (0, -width % 8)]

    def kernel(q: Array, k: Array, v: Array, segments: Array | None) -> Array:
        lengths = jnp.full(len(q), t, jnp.int32) if t % 2 and not causal else None
        out = jax.nn.dot_product_attention(
            *(jnp.pad(x, more) for x in (q, k, v)),
            scale=scale,
            is_causal=causal,
            query_seq_lengths=lengths,
            key_value_seq_lengths=lengths,
            implementation="cudnn",
        )
        return out[:, :t, :, :width]

    def trial(q: Array, k: Array, v: Array) -> Array:
        return kernel(q, k, v, None).sum()

    try:
        jax.eval_shape(jax.grad(trial, (0, 1, 2)), q, k, v)
    except RuntimeError:  # there is no cuDNN, or it does not take this width
        return None
    return _on_mesh(kernel, k.shape)


def splash(
    q: Float[Array, "b t h k"],
    k: Float[Array, "b t g k"],
    v: Float[Array, "b t g k"],
    segments: Int[Array, "b t"] | None,
    *,
    causal: bool,
    scale: float | None = None,
    interpret: bool = False,
) -> Float[Array, "b t h k"]:
    """JAX's splash attention for TPUs; lengths are padded to whole tiles.

    Padding after the end is invisible to a causal mask; without one it becomes a segment of its
    own. `interpret` runs the kernel on any platform, slowly: for tests.
    """
    from jax.experimental.pallas.ops.tpu import splash_attention as library

    t, heads, width = q.shape[1:]
    scale = width**-0.5 if scale is None else scale
    tile = min(TILE, -(-t // LANES) * LANES)
    more = -t % tile
    size = t + more
    if more and not causal and segments is None:
        segments = jnp.zeros(q.shape[:2], jnp.int32)

    def laid(x: Array) -> Array:
        return jnp.pad(x, [(0, 0), (0, more), (0, 0), (0, 0)]).swapaxes(1, 2)

    mask = (library.CausalMask if causal else library.FullMask)((size, size))
    # Narrow heads would leave lanes empty; positions fill them.
    layout = library.QKVLayout.SEQ_MINOR if width < LANES else library.QKVLayout.HEAD_DIM_MINOR
    sizes = library.BlockSizes(  # of queries and of keys, forward and in both backward passes
        *(tile, tile, tile, tile, tile, tile, tile, tile),
        q_layout=layout,
        k_layout=layout,
        v_layout=layout,
    )
    kernel = library.make_splash_mha(
        library.MultiHeadMask([mask] * heads),
        block_sizes=sizes,
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )
    ids = None
    if segments is not None:
        padded = jnp.pad(segments, [(0, 0), (0, more)], constant_values=-1)
        ids = library.SegmentIds(padded, padded)
    out = jax.vmap(kernel)(laid(q * scale), laid(k), laid(v), ids)
    return out.swapaxes(1, 2)[:, :t]
