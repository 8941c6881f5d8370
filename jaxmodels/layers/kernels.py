"""Fused attention of a sequence to itself, where a platform has a kernel for it.

The kernel is chosen by the platform that a program is lowered for, not by the machine that
traces it: a step compiled for a TPU on a CPU holds the TPU's. All platforms' forms are traced;
only one is lowered. On a mesh each device takes its own sequences and heads.

cuDNN's flash attention on NVIDIA (16-bit numbers, no segments), splash attention on TPUs (from 128
positions on), `blocks` elsewhere; dropout and padding have no kernel.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float, Int

from jaxmodels.layers.sharding import dividing
from jaxmodels.layers.target import compute_capability

Plain = Callable[[Array, Array, Array, Array | None], Array]

# Splash attention computes in tiles of so many positions; shorter sequences gain nothing by it.
LANES = 128
# The largest tile: larger ones use a TPU's matrix unit better, and must fit its memory.
TILE = 512
# Query heads that share keys as rows: all positions of the first, then those of the second.
_ROWS, _BACK = "b t (h r) k -> b (r t) h k", "b (r t) h k -> b t (h r) k"


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
    """JAX's splash attention for TPUs; lengths are padded to multiples of a tile.

    Padding after the end is invisible to a causal mask; without one it becomes a segment of its
    own. `interpret` runs the kernel on any platform, slowly: for tests.
    """
    from jax.experimental.pallas.ops.tpu import splash_attention as library

    t, heads, width = q.shape[1:]
    tile = min(TILE, -(-t // LANES) * LANES)
    size = -(-t // tile) * tile
    # Where lengths are padded, query heads that share keys are rows of one, padded once.
    shared = heads // k.shape[2] if size > t else 1
    rows = shared * t
    row_tile = tile
    if shared > 1:
        fits = (n for n in range(2 * TILE, 2 * LANES, -LANES) if rows % n == 0)
        row_tile = next(fits, tile)
    if size > t and shared == 1 and not causal and segments is None:
        segments = jnp.zeros(q.shape[:2], jnp.int32)

    def padded(x: Array, tile: int, value: int = 0) -> Array:
        more = [(0, -n % tile if axis == 1 else 0) for axis, n in enumerate(x.shape)]
        return jnp.pad(x, more, constant_values=value)

    def keys(x: Array) -> Array:
        return padded(x, tile).swapaxes(1, 2)

    queries = rearrange(q * (width**-0.5 if scale is None else scale), _ROWS, r=shared)
    if shared > 1:
        mask: Any = _shared_mask(t, (-(-rows // row_tile) * row_tile, size), causal)
    else:
        mask = (library.CausalMask if causal else library.FullMask)((size, size))
    kernel = _splash_kernel([mask] * (heads // shared), width, row_tile, tile, interpret)
    ids = None
    if segments is not None:
        of_rows = padded(jnp.tile(segments, (1, shared)), row_tile, -1)
        ids = library.SegmentIds(of_rows, padded(segments, tile, -1))
    out = jax.vmap(kernel)(padded(queries, row_tile).swapaxes(1, 2), keys(k), keys(v), ids)
    return rearrange(out.swapaxes(1, 2)[:, :rows], _BACK, r=shared)


def _splash_kernel(
    masks: list[Any], width: int, row_tile: int, tile: int, interpret: bool
) -> Callable[..., Array]:
    """Splash attention of heads with these masks, in tiles of so many queries and keys."""
    from jax.experimental.pallas.ops.tpu import splash_attention as library

    # Narrow heads would leave lanes empty; positions fill them.
    layout = library.QKVLayout.SEQ_MINOR if width < LANES else library.QKVLayout.HEAD_DIM_MINOR
    sizes = library.BlockSizes(  # of queries and of keys, forward and in both backward passes
        *(row_tile, tile, tile, row_tile, tile, tile, row_tile, tile),
        q_layout=layout,
        k_layout=layout,
        v_layout=layout,
    )
    kernel: Callable[..., Array] = library.make_splash_mha(
        library.MultiHeadMask(masks),
        block_sizes=sizes,
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )
    return kernel


def _shared_mask(t: int, shape: tuple[int, int], causal: bool) -> Any:
    """Splash attention's mask of several heads' queries in a row, each of t positions."""
    from jax.experimental.pallas.ops.tpu import splash_attention as library

    class SharedMask(library.Mask):
        """Computed where it is read: whole it would be as large as all scores."""

        @property
        def shape(self) -> tuple[int, int]:
            return shape

        def __getitem__(self, index: tuple[slice, slice]) -> np.ndarray:
            rows, keys = (np.arange(n)[part] for n, part in zip(shape, index, strict=True))
            last = rows % t if causal else np.full(len(rows), t - 1)
            return np.asarray(last[:, None] >= keys)

    return SharedMask()
