"""What is computed again in the backward pass instead of being kept."""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

# Recipe.remat → what of a block is kept: nothing, or the products of its linear layers (those
# without a batch dimension), so that attention and what is element by element is done again.
POLICIES = {"full": None, "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable}


def remat(block: Callable[..., Any], policy: str, **options: Any) -> Callable[..., Any]:
    """A block's function so that its activations are computed again, as the policy says.

    Args:
        block: takes arrays or modules.
        policy: "none" keeps all activations and gives `block` itself; else a name in `POLICIES`.
        options: as `jax.checkpoint` takes them (static_argnums, prevent_cse).
    """
    return block if policy == "none" else nnx.remat(block, policy=POLICIES[policy], **options)
