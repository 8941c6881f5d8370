"""Resizing along one axis as a matrix: bicubic, in the three forms in which DINOv2 needs it.

`jax.image.resize` has none of PyTorch's plain bicubic: its kernel is another one (a = −0.5 for
−0.75), which moves position embeddings by a third of their size.

The products are in whole float32, which a TPU would round. The published DINOv2 and transformers
resize differently; the config says which, and the model card where PyTorch's class differs.
"""

from typing import Literal

import numpy as np
from jaxtyping import Float

Interpolation = Literal["scale_offset", "size", "antialias"]

# PyTorch's kernels, by whether it antialiases.
_PLAIN, _ANTIALIASED = -0.75, -0.5


def bicubic(source: int, target: int, interpolation: Interpolation) -> Float[np.ndarray, "t s"]:
    """The float64 matrix that resizes `source` samples to `target`, as PyTorch does.

    Args:
        source: samples there are.
        target: samples wanted.
        interpolation: "size", where the factor follows from both; "scale_offset", where it is
            (target + 0.1) / source, as DINOv2's code has it against rounding, so that samples lie
            a little to the left; "antialias", where the kernel widens when there are to be fewer.
    """
    if interpolation == "antialias":
        return _antialiased(source, target)
    step = source / (target + 0.1 if interpolation == "scale_offset" else target)
    place = (np.arange(target) + 0.5) * step - 0.5
    matrix = np.zeros((target, source))
    for tap in range(-1, 3):
        at = np.floor(place) + tap
        near = np.clip(at, 0, source - 1).astype(int)  # the border repeats beyond itself
        matrix[np.arange(target), near] += _cubic(place - at, _PLAIN)
    return matrix


def _antialiased(source: int, target: int) -> np.ndarray:
    step = source / target
    width = max(step, 1.0)
    centre = (np.arange(target) + 0.5) * step
    distance = (np.arange(source) + 0.5 - centre[:, None]) / width
    matrix = _cubic(distance, _ANTIALIASED)
    return matrix / matrix.sum(axis=1, keepdims=True)


def _cubic(x: np.ndarray, a: float) -> np.ndarray:
    """Keys' cubic convolution kernel (1981); zero from a distance of 2 on."""
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x**2 + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))
