"""Ways to lay out one parameter, each as an invertible pair.

A row of a weight table names one of these. A new one is one entry in `OPS`: the bridge
derives shapes, both directions and the round-trip check from the pair.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

Change = Callable[[np.ndarray], np.ndarray]


class Op(NamedTuple):
    """An invertible change of layout: values are moved, never computed."""

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


def _weightless(shape: tuple[int, ...]) -> np.ndarray:
    """An array of any shape that takes one byte."""
    return np.broadcast_to(np.int8(0), shape)


OPS = {
    "same": Op(lambda x: x, lambda x: x),
    # A linear kernel: ours [in, out], PyTorch's [out, in].
    "transpose": Op(lambda x: x.T, lambda x: x.T),
    # A bias that is kept ready to be added to [b, t, d]: ours [d], theirs [1, 1, d]. Any other
    # shape of theirs stays as it is, for the check of shapes to report.
    "row": Op(lambda x: x[None, None], lambda x: x[0, 0] if x.shape[:2] == (1, 1) else x),
}
