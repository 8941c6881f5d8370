"""Whether all numbers of a training state are finite; a state that is not is never saved.

It is checked by one compiled reduction before each save, not in each step.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmodels.errors import UNVERIFIED, Problem
from jaxmodels.runtime.sharding import fetch


class NotFinite(Problem):
    """Training diverged: the loss or the state of a step holds infinities or NaN.

    Args:
        what: what went wrong, in one sentence.
        step: the optimiser step in which it was detected.
    """

    everywhere = True
    """Every process raises it: they all check the same numbers."""

    def __init__(self, what: str, step: int):
        super().__init__(what, why="training diverged", exit_code=UNVERIFIED)
        self.step = step


def not_finite(tree: Any) -> list[str]:
    """Names of the arrays of a pytree that hold infinities or NaN, such as
    `params.blocks/0/attn/qkv/kernel`.

    One compiled reduction over all arrays; all processes call it together.
    """
    leaves = [
        (path, leaf)
        for path, leaf in jax.tree.leaves_with_path(tree)
        if jnp.issubdtype(leaf.dtype, jnp.inexact) and leaf.size
    ]
    if not leaves:
        return []
    finite = fetch(_finite([leaf for _, leaf in leaves]))
    bad = (leaves[index][0] for index in np.flatnonzero(~finite))
    return [jax.tree_util.keystr(path, simple=True, separator=".") for path in bad]


def not_finite_message(names: list[str]) -> str:
    """A message that names the arrays found by `not_finite`."""
    shown, more = ", ".join(names[:3]), len(names) - 3
    others = f" and {more} more" if more > 0 else ""
    return f"{shown}{others} {'is' if len(names) == 1 else 'are'} not finite"


@jax.jit
def _finite(leaves: list[jax.Array]) -> jax.Array:
    """bool [n]: whether each array is finite throughout."""
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves])
