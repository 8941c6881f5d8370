"""Normalisation in float32, whatever the precision of the products around it."""

from flax import nnx
from jaxtyping import Array, Float


def layer_norm(norm: nnx.LayerNorm | nnx.RMSNorm, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
    """`norm(x)` in the dtype of its parameters, which is that of the products that follow.

    Args:
        norm: flax's module; it computes in float32, and gives what x and its parameters promote to.
        x: the residual stream, which is always float32.
    """
    assert norm.scale is not None
    return norm(x).astype(norm.scale[...].dtype)
