"""Whether rounded numbers are as near to the exact ones as their kind of numbers allows.

What rounds is not asked: a mistake there would be on both sides of every other comparison.
"""

import ml_dtypes
import numpy as np

from bridge.core.packing import INT8, Packed
from bridge.storage.gguf_reader import BLOCK

_SLACK = 1 + 1e-3  # the bounds themselves are computed in float32
# Of a block's largest number, a step of Q8_0; its scale is a float16, which every one of up to 127
# steps is wrong by.
_STEP, _SCALE, _LEAST = 1 / 127, 2.0**-11, 127 * 2.0**-25


def misrounded(exact: np.ndarray, kept: np.ndarray, blocks: bool = False) -> bool:
    """Whether a number is further from the exact one than rounding to nearest moves it.

    Args:
        exact: floating-point numbers.
        kept: what became of them, same shape; its dtype is the one that was rounded to.
        blocks: they were rounded to Q8_0, in blocks along the last axis, and are float32 again.
    """
    wide = np.promote_types(exact.dtype, np.float32)
    values, there = exact.astype(wide, copy=False), kept.astype(wide)
    if blocks:
        rows = np.abs(values).reshape(-1, BLOCK)
        largest = np.broadcast_to(rows.max(axis=1, keepdims=True), rows.shape)
        allowed = (largest * (_STEP / 2 + _SCALE) + _LEAST).reshape(values.shape)
    else:
        info = ml_dtypes.finfo(kept.dtype)
        half = np.ldexp(wide.type(float(info.eps) / 2), np.frexp(values)[1] - 1)
        allowed = np.maximum(half, wide.type(float(info.smallest_subnormal) / 2))
    with np.errstate(invalid="ignore"):
        distance = np.abs(values - there)
    same = (values == there) | (np.isnan(values) & np.isnan(there))
    return not bool((same | (distance <= allowed * _SLACK)).all())


def packed_wrong(packed: Packed, exact: np.ndarray) -> bool:
    """Whether a number of a matrix in few bits is further from the exact one than it must be.

    Args:
        packed: what the file holds.
        exact: the matrix before, in PyTorch's layout.
    """
    scale, kept = packed.scale.read(), packed.unpacked().read()
    exact = exact.astype(np.float32)
    if packed.kind == INT8:
        rows = (np.abs(exact - kept).reshape(len(scale), -1), scale[:, None] / 2)
        return not bool((rows[0] <= rows[1] * _SLACK + _LEAST).all())
    gamma, sizes = 1 / scale[0], np.abs(exact)
    small = np.where(kept == 0, sizes, 0)
    large = np.where(kept == 0, gamma, np.where(np.sign(exact) == np.sign(kept), sizes, 0))
    apart = gamma * (_SLACK - 1)
    right = (small <= gamma / 2 + apart).all() and (large >= gamma / 2 - apart).all()
    mean = [sizes.mean(), sizes.max()]  # of weights that were rounded before, the largest
    return not (right and np.abs(np.subtract(mean, gamma)).min() <= gamma * 1e-4)
