"""Ways to lay out one parameter, each as an invertible pair.

A row of a weight table names one of these. A new one is one entry in `OPS`: the bridge
derives shapes, both directions and the round-trip check from the pair.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

Change = Callable[[np.ndarray], np.ndarray]


class Op(NamedTuple):
    """An invertible change of layout: values are moved, never rounded."""

    forward: Change
    """Our array → theirs."""
    inverse: Change
    """Their array → ours."""

    def their_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape on their side of a parameter that has this shape on ours."""
        return self.forward(_weightless(shape)).shape

    def our_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape on our side of a tensor that has this shape on theirs."""
        return self.inverse(_weightless(shape)).shape

    def their_dtype(self, shape: tuple[int, ...], dtype: np.dtype) -> np.dtype:
        """dtype on their side of a parameter that has this shape and dtype on ours."""
        return self.forward(_weightless(shape, dtype)).dtype

    def our_dtype(self, shape: tuple[int, ...], dtype: np.dtype) -> np.dtype:
        """dtype on our side of a tensor that has this shape and dtype on theirs."""
        return self.inverse(_weightless(shape, dtype)).dtype


def _weightless(shape: tuple[int, ...], dtype: np.dtype | None = None) -> np.ndarray:
    """An array of any shape that takes the bytes of one number."""
    return np.broadcast_to(np.zeros((), dtype or np.int8), shape)


OPS = {
    "same": Op(lambda x: x, lambda x: x),
    # A linear kernel: ours [in, out], PyTorch's [out, in].
    "transpose": Op(lambda x: x.T, lambda x: x.T),
    # A bias that is kept ready to be added to [b, t, d]: ours [d], theirs [1, 1, d]. Any other
    # shape of theirs stays as it is, for the check of shapes to report.
    "row": Op(lambda x: x[None, None], lambda x: x[0, 0] if x.shape[:2] == (1, 1) else x),
    # Positions that are kept ready to be added to [b, n, d]: ours [n, d], theirs [1, n, d].
    "one": Op(lambda x: x[None], lambda x: x[0] if x.shape[:1] == (1,) else x),
    # A convolution's kernel: ours HWIO, PyTorch's OIHW.
    "convolution": Op(
        lambda x: np.transpose(x, (3, 2, 0, 1)), lambda x: np.transpose(x, (2, 3, 1, 0))
    ),
    # Multi-head kernels: ours [d, h, k] and [h, k, d], PyTorch's [out, in]. The shape on their
    # side does not tell the heads: the inverse is flat, and whoever knows our shape restores it.
    "to_heads": Op(lambda x: x.reshape(len(x), -1).T, lambda x: x.T),
    "from_heads": Op(lambda x: x.reshape(-1, x.shape[-1]).T, lambda x: x.T),
    # A whole number: ours int32 [], PyTorch's int64 [1].
    "counter": Op(
        lambda x: x.astype(np.int64)[None],
        lambda x: x.astype(np.int32)[0] if x.shape == (1,) else x,
    ),
    # A bias of all heads: ours [h, k], PyTorch's [h · k].
    "flat": Op(lambda x: x.reshape(-1), lambda x: x),
}
