"""Rematerialisation: activations that are computed again in the backward pass instead of kept."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

# Recipe.remat → what of a block is kept: nothing, or the products of its linear layers (those
# without a batch dimension), so that attention and what is element by element is done again.
POLICIES = {"full": None, "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable}


def remat(
    block: Callable[..., Any], policy: str, static: tuple[str, ...] = (), **options: Any
) -> Callable[..., Any]:
    """A block's function whose activations are computed again, as the policy says.

    Args:
        block: takes arrays or modules, in the order of its parameters.
        policy: "none" keeps all activations and gives `block` itself; else a name in `POLICIES`.
        static: its parameters that are plain Python values, as a block's number.
        options: as `jax.checkpoint` takes them (prevent_cse).
    """
    if policy == "none":
        return block
    names = list(inspect.signature(block).parameters)
    positions = tuple(names.index(name) for name in static)
    return nnx.remat(block, policy=POLICIES[policy], static_argnums=positions, **options)
