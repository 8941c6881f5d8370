"""Sequences padded to whole tiles of a TPU's registers.

A register holds 16 rows of bfloat16. Where the length is no multiple of that (2,025 patches, 257 of
an image), the rows of different sequences cannot be joined for a product, and the compiler expects
it to take 1.7 times as long. A few rows of padding for the whole trunk mend that.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxmodels.layers.target import platform

ROWS, LANES = 16, 128


def tiled(t: int) -> int:
    """The length that t rows are padded to: a multiple of `LANES` where that adds less than a
    fiftieth (attention's kernel then pads nothing), else of `ROWS`; on other platforms t."""
    if platform() != "tpu" or t <= ROWS:
        return t
    lanes = -(-t // LANES) * LANES
    return lanes if 50 * (lanes - t) < t else -(-t // ROWS) * ROWS


def pad_to_tiles(
    x: Float[Array, "b t d"],
) -> tuple[Float[Array, "b s d"], Int[Array, "b s"] | None]:
    """The sequences with rows of zeros behind them, and segments that keep these out of attention.

    Returns:
        x and None where there is nothing to pad. Cut the result back with `[:, :t]`.
    """
    t = x.shape[1]
    if (size := tiled(t)) == t:
        return x, None
    segments = jnp.broadcast_to(jnp.arange(size) >= t, (len(x), size)).astype(jnp.int32)
    return jnp.pad(x, ((0, 0), (0, size - t), (0, 0))), segments
