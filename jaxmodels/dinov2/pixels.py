"""Images as the tower wants them."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# Of ImageNet's colours.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def normalised(images: Float[Array, "b h w 3"], side: int) -> Float[Array, "b side side 3"]:
    """Images in [0, 1], resized to squares if need be, and normalised by ImageNet's colours."""
    return (resized(images, side) - jnp.asarray(MEAN)) / jnp.asarray(STD)


def resized(images: Float[Array, "b h w 3"], side: int) -> Float[Array, "b side side 3"]:
    """Squares of this side: linear without antialiasing, as PyTorch's `interpolate` is."""
    if images.shape[1:3] == (side, side):
        return images
    size = (len(images), side, side, 3)
    return jax.image.resize(images, size, "linear", antialias=False)
