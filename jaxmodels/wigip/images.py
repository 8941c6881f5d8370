"""Images for wigip: the second phase, which seed 000 announces but does not implement. Ours.

An image of S × S pixels is read like a page of S × S characters: each pixel is embedded as P²
numbers, as a character is; convolution, positions and blocks are shared with text.

There are two objectives. Each patch is predicted from those before it, in raster order, under a
causal mask. And a contrastive loss (`layers/contrast`) matches images and captions of a batch by
unit features: the mean over patches, without a mask, through a linear layer. A caption is read as
the first row of patches of a page.

Both were chosen by trial on drawn scenes of 32 pixels (`benchmarks/LOG.md`). A convolution for
pixels, separate from that for characters, learned no faster; predicting a hidden half of the
patches from the other half was far behind after the same number of steps.
"""

from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxmodels.errors import USAGE, Problem
from jaxmodels.layers.contrast import alike, clamped, contrast
from jaxmodels.layers.linear import Linear
from jaxmodels.layers.precision import to_float32
from jaxmodels.wigip.config import Config

# A pixel's colours in [0, 1] minus the first, divided by the second.
MEAN, STD = 0.5, 0.25
# The temperature of contrast begins here (CLIP).
TEMPERATURE = 0.07


class Images(nnx.Module):
    """The parameters that only images and captions need."""

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        self.colour = Linear(3, cfg.area, rngs=rngs)
        self.head = Linear(cfg.dim, 3 * cfg.area, rngs=rngs)
        self.text_pool = Linear(cfg.dim, cfg.dim, rngs=rngs)
        self.image_pool = Linear(cfg.dim, cfg.dim, rngs=rngs)
        # Learned as a logarithm, as in CLIP: a step changes it in proportion to its size.
        self.log_temperature = nnx.Param(jnp.log(jnp.full((), TEMPERATURE)))


def patches(model: Any, images: Float[Array, "b h w 3"]) -> Float[Array, "b n p 3"]:
    """The normalised pixels of each patch.

    Args:
        model: the model, whose config says the size.
        images: in [0, 1].

    Raises:
        Problem: (usage) images of another size, or a model without images.
    """
    cfg = model.config
    _check(cfg)
    if images.shape[1:] != (cfg.side, cfg.side, 3):
        raise Problem(
            f"wigip: images of {' × '.join(map(str, images.shape[1:]))} numbers, where the grid "
            f"takes {cfg.side} × {cfg.side} × 3",
            fix="crop and resize them",
            exit_code=USAGE,
        )
    pixels = rearrange(images, "b (r p) (c q) k -> b (r c) (p q) k", p=cfg.patch, q=cfg.patch)
    return (pixels - MEAN) / STD


def _check(cfg: Config) -> None:
    """Refuses a model of text alone."""
    if not cfg.images:
        raise Problem(
            "this wigip reads no images",
            why="it is a model of text, without `images`",
            fix="train a wigip:tiny-images, or add --model.images; --init PATH keeps this "
            "model's parameters",
            exit_code=USAGE,
        )


def read(
    model: Any, pixels: Float[Array, "b n p 3"], causal: bool = False
) -> Float[Array, "b n d"]:
    """Every patch of images (`patches`) after the trunk; `causal`: it sees only those before it."""
    own: Images = model.images
    x = model.convolved(own.colour(pixels.astype(own.colour.kernel[...].dtype)))
    return model.read(model.placed(x, jnp.arange(x.shape[1])), causal)


def image_features(model: Any, images: Float[Array, "b h w 3"]) -> Float[Array, "b d"]:
    """float32 unit vectors of images in [0, 1]."""
    pixels = patches(model, images)
    return _unit(model.images.image_pool, read(model, pixels))


def text_features(
    model: Any, tokens: Int[Array, "b t"], mask: Int[Array, "b t"] | None = None
) -> Float[Array, "b d"]:
    """float32 unit vectors of captions.

    Args:
        model: the model.
        tokens: characters of captions.
        mask: 1 for characters, 0 for padding, which is read as id 0, like the rest of the page.

    Raises:
        Problem: (usage) more tokens than a caption has, or a model that reads no images.
    """
    cfg = model.config
    _check(cfg)
    t = tokens.shape[1]
    if t > cfg.caption:
        raise Problem(
            f"wigip: {t} tokens, where a caption has at most {cfg.caption}",
            why="a caption fills the first row of patches of a page; a batch of text has no images",
            fix="cut the captions, or leave the images out",
            exit_code=USAGE,
        )
    ids = tokens if mask is None else jnp.where(mask == 1, tokens, 0)
    ids = model.laid_out(jnp.pad(ids, ((0, 0), (0, cfg.caption - t))))
    x = model.placed(model.convolved(model.embedded(ids)), jnp.arange(ids.shape[1]))
    return _unit(model.images.text_pool, model.read(x))


def _unit(pool: Linear, x: Float[Array, "b n d"]) -> Float[Array, "b d"]:
    x = to_float32(pool(to_float32(x).mean(axis=1).astype(x.dtype)))
    return x * jax.lax.rsqrt(jnp.maximum((x * x).sum(axis=-1, keepdims=True), 1e-12))


def predicted(model: Any, pixels: Float[Array, "b n p 3"]) -> Float[Array, "b n-1 p 3"]:
    """float32 normalised pixels of every patch but the first, each from those before it."""
    x = read(model, pixels, causal=True)[:, :-1]
    return rearrange(to_float32(model.images.head(x)), "b n (p k) -> b n p k", k=3)


def image_loss(model: Any, pixels: Float[Array, "b n p 3"]) -> Float[Array, ""]:
    """Mean square of the errors of `predicted`, in normalised colours."""
    return jnp.square(predicted(model, pixels) - pixels[:, 1:]).mean()


def drawn(model: Any, images: Float[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
    """Images in [0, 1], each patch predicted from the true ones before it; the first is the true
    one."""
    cfg, pixels = model.config, patches(model, images)
    guessed = jnp.concatenate([pixels[:, :1], predicted(model, pixels)], axis=1)
    sizes = {"r": cfg.side // cfg.patch, "p": cfg.patch}
    picture = rearrange(guessed, "b (r c) (p q) k -> b (r p) (c q) k", **sizes)
    return jnp.clip(picture * STD + MEAN, 0, 1)


def loss(
    model: Any, batch: dict[str, Any], rngs: nnx.Rngs | None
) -> tuple[Float[Array, ""], dict[str, Any]]:
    """The sum of contrast and `image_loss` of images with captions, times `image_weight`.

    Args:
        model: the model; it is read, never changed.
        batch: `images` uint8 [b, side, side, 3], `tokens` and `mask` int32 [b, t] of captions,
            `image_id` int32 [b].
        rngs: ignored; nothing is random.

    Raises:
        Problem: (usage) as `patches` and `text_features`.
    """
    pixels = patches(model, batch["images"].astype(jnp.float32) / 255)
    text = text_features(model, batch["tokens"], batch.get("mask"))
    image = _unit(model.images.image_pool, read(model, pixels))
    same = alike(batch["image_id"], batch["tokens"])
    tau = clamped(jnp.exp(to_float32(model.images.log_temperature[...])))
    both = (text, image)
    found = contrast(both, both, None, batch["image_id"], same, tau)
    next_patch = image_loss(model, pixels)
    metrics = {
        "contrastive_loss": found.loss,
        "acc_t2i": found.acc_t2i,
        "acc_i2t": found.acc_i2t,
        "image_loss": next_patch,
        "temperature": tau,
    }
    value = model.config.image_weight * (found.loss + next_patch)
    return value, {"metrics": jax.lax.stop_gradient(metrics)}
