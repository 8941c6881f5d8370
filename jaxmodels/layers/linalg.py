"""Equations and determinants of a batch of matrices, without hanging on a CPU.

jaxlib's LAPACK kernels (0.10) divide a batch among the threads of XLA's pool and wait for them. A
kernel that itself runs in such a thread then waits for a thread: with one in each, as on several
simulated devices, the program never ends. A single matrix is computed where the kernel runs, so a
CPU gets one after another.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxmodels.layers.target import platform


def solve(
    matrices: Float[Array, "*g m m"], right: Float[Array, "*g m n"]
) -> Float[Array, "*g m n"]:
    """x of matrix · x = right."""
    return _each(jnp.linalg.solve, matrices, right)


def log_determinant(matrices: Float[Array, "*g m m"]) -> Float[Array, "*g"]:
    """The logarithm of the determinant's absolute value."""
    return _each(lambda one: jnp.linalg.slogdet(one)[1], matrices)


def _each(function: Callable[..., Array], *batches: Array) -> Array:
    """The function of each matrix of batches whose leading axes are alike."""
    lead = batches[0].shape[:-2]
    if not lead or platform() != "cpu":
        return function(*batches)
    flat = [batch.reshape(-1, *batch.shape[-2:]) for batch in batches]
    found = jax.lax.map(lambda matrices: function(*matrices), flat)
    return found.reshape(*lead, *found.shape[1:])
