"""The encoders of bitgen: an image through the tower and layers of our own, a text, or both.

The last `fused` layers of both sides run either separately (`upper_…`), for features of a text or
an image alone, or with cross-attention to each other (`together`). The layers below them are the
same in both cases and run once (`lower_…`).
"""

from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from jaxmodels.bitgen.blocks import through
from jaxmodels.bitgen.config import Config
from jaxmodels.dinov2.pixels import normalised
from jaxmodels.layers.dropout import dropout
from jaxmodels.layers.linear import Linear
from jaxmodels.layers.precision import to_float32


class Pooler(nnx.Module):
    """A linear layer and tanh after the mean over tokens, normalised to a unit vector."""

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        self.dense = Linear(cfg.dim, cfg.dim, rngs=rngs)
        self.proj = Linear(cfg.dim, cfg.dim, rngs=rngs)

    def __call__(self, pooled: Float[Array, "b d"]) -> Float[Array, "b d"]:
        """float32 [b, d], of length 1."""
        dtype = self.dense.kernel[...].dtype
        x = to_float32(self.proj(nnx.tanh(self.dense(pooled.astype(dtype)))))
        return x * jax.lax.rsqrt(jnp.maximum((x * x).sum(axis=-1, keepdims=True), 1e-12))


def lower_text(
    model: Any,
    tokens: Int[Array, "b t"],
    mask: Bool[Array, "b t"],
    rngs: nnx.Rngs | None = None,
) -> Float[Array, "b t d"]:
    """A text's embeddings after the layers without cross-attention."""
    x = model.placed(tokens)
    if rngs is not None:
        x = dropout(x, model.config.dropout, rngs.dropout())
    for block in model.text[: model.config.layers - model.config.fused]:
        x = through(block, model.remat, x, mask[:, None], rngs=rngs)
    return x


def upper_text(
    model: Any,
    x: Float[Array, "b t d"],
    mask: Bool[Array, "b t"],
    rngs: nnx.Rngs | None = None,
) -> Float[Array, "b t d"]:
    """`lower_text` after the upper layers, without an image."""
    for block in model.text[model.config.layers - model.config.fused :]:
        x = through(block, model.remat, x, mask[:, None], rngs=rngs)
    return model.text_norm(x)


def lower_image(
    model: Any, images: Float[Array, "b h w 3"], rngs: nnx.Rngs | None = None
) -> Float[Array, "b p d"]:
    """Tokens of images in [0, 1], class token first, after the layers without cross-attention.

    Images of another size are resized first.
    """
    side = model.config.image_size
    seen = model.vision(normalised(images, side))
    x = _merged(model, seen, side // model.config.dinov2.patch)
    y = to_float32(model.project(x.astype(model.project.kernel[...].dtype)))
    for block in model.image[: model.config.image_layers - model.config.fused]:
        y = through(block, model.remat, y, everything(y)[:, None], rngs=rngs)
    return y


def upper_image(
    model: Any, y: Float[Array, "b p d"], rngs: nnx.Rngs | None = None
) -> Float[Array, "b p d"]:
    """`lower_image` after the upper layers, without a text."""
    for block in model.image[model.config.image_layers - model.config.fused :]:
        y = through(block, model.remat, y, everything(y)[:, None], rngs=rngs)
    return model.image_norm(y)


def together(
    model: Any,
    x: Float[Array, "b t d"],
    mask: Bool[Array, "b t"],
    y: Float[Array, "b p d"],
    rngs: nnx.Rngs | None = None,
) -> tuple[Float[Array, "b t d"], Float[Array, "b p d"]]:
    """Both after the upper layers; a layer attends to the other side's inputs of that layer."""
    cfg = model.config
    pairs = zip(
        model.text[cfg.layers - cfg.fused :],
        model.image[cfg.image_layers - cfg.fused :],
        strict=True,
    )
    all_patches = everything(y)
    for text, image in pairs:
        of_image, of_text = text.cross.seen(y), image.cross.seen(x)
        x = through(text, model.remat, x, mask[:, None], of_image, all_patches, rngs)
        y = through(image, model.remat, y, all_patches[:, None], of_text, mask, rngs)
    return model.text_norm(x), model.image_norm(y)


def mean(x: Float[Array, "b t d"], mask: Bool[Array, "b t"]) -> Float[Array, "b d"]:
    """The mean over tokens, float32."""
    weight = mask / mask.sum(axis=1, keepdims=True)
    return (to_float32(x) * weight[..., None]).sum(axis=1)


def everything(x: Float[Array, "b t d"]) -> Bool[Array, "b t"]:
    """A mask that is True everywhere."""
    return jnp.ones(x.shape[:2], bool)


def _merged(model: Any, x: Float[Array, "b n d"], rows: int) -> Float[Array, "b p d2"]:
    """The class token, and one token for each square of patches; registers are dropped."""
    side, first = model.config.merge, 1 + model.config.dinov2.registers
    patches = rearrange(
        x[:, first:], "b (r p c q) d -> b (r c) (p q d)", p=side, q=side, r=rows // side
    )
    cls = jnp.tile(x[:, :1], (1, 1, side**2))
    return jnp.concatenate([cls, patches], axis=1)
