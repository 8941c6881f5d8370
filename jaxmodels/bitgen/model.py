"""The bitgen model: what the card of seed 004 promises, built as the papers say.

An image passes DINOv2's tower and layers of our own; a text passes an encoder. The last layers of
both look at each other through gated cross-attention (FIBER) when a pair is judged, and not when
features for retrieval are made, which are unit vectors that can be compared without the other
side. A causal decoder writes texts; it sees the image's tokens and one token of what the memory
(Larimar) has at the image's feature. All linears of encoders and decoder are BitNet's
(`bitlinear`); embeddings, the tower, and the small heads are not. The decoder's head is the
embedding. The residual stream is always float32.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from jaxmodels.bitgen.blocks import Block, Heads
from jaxmodels.bitgen.config import Config
from jaxmodels.bitgen.decoder import Cache, Decoder
from jaxmodels.bitgen.fiber import Queue
from jaxmodels.bitgen.memory import Memory
from jaxmodels.bitgen.momentum import Slow, encoders
from jaxmodels.dinov2.model import Model as Tower
from jaxmodels.errors import USAGE, Problem
from jaxmodels.layers.dropout import dropout
from jaxmodels.layers.head import tied_logits
from jaxmodels.layers.remat import remat

# Mean and standard deviation of ImageNet's colours, as DINOv2 wants its images normalised.
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Output(NamedTuple):
    """What a call gives."""

    embeddings: Float[Array, "b t d"]
    """Of each token, in sight of the image if there is one."""
    text_features: Float[Array, "b d"]
    """Unit vectors, of the text alone."""
    image_features: Float[Array, "b d"] | None
    """Unit vectors, of the image alone; None without images."""
    decoder_logits: Float[Array, "b t v"] | None
    """float32; at t, of the target at t, after the targets before it. None without targets."""


class Pooler(nnx.Module):
    """The mean over tokens, through a layer and tanh, to a unit vector."""

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        self.dense = nnx.Linear(cfg.dim, cfg.dim, rngs=rngs)
        self.proj = nnx.Linear(cfg.dim, cfg.dim, rngs=rngs)

    def __call__(self, pooled: Float[Array, "b d"]) -> Float[Array, "b d"]:
        """float32 [b, d], of length 1."""
        dtype = self.dense.kernel[...].dtype
        x = self.proj(nnx.tanh(self.dense(pooled.astype(dtype)))).astype(jnp.float32)
        return x * jax.lax.rsqrt(jnp.maximum((x * x).sum(axis=-1, keepdims=True), 1e-12))


class Model(nnx.Module):
    """bitgen. Deterministic unless `rngs` is passed to the call."""

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        self.config = cfg
        self.remat = "none"
        small = nnx.initializers.normal(0.02)
        self.embed = nnx.Embed(cfg.vocab, cfg.dim, embedding_init=small, rngs=rngs)
        self.pos = nnx.Embed(cfg.context, cfg.dim, embedding_init=small, rngs=rngs)
        self.vision = Tower(cfg.dinov2, rngs=rngs)
        self.project = nnx.Linear(cfg.merge**2 * cfg.dinov2.dim, cfg.dim, rngs=rngs)

        def blocks(count: int) -> nnx.List:
            lower = count - cfg.fused
            return nnx.List([Block(cfg, cross=i >= lower, rngs=rngs) for i in range(count)])

        self.text, self.image = blocks(cfg.layers), blocks(cfg.image_layers)
        self.text_norm = nnx.RMSNorm(cfg.dim, rngs=rngs)
        self.image_norm = nnx.RMSNorm(cfg.dim, rngs=rngs)
        self.text_pool, self.image_pool = Pooler(cfg, rngs=rngs), Pooler(cfg, rngs=rngs)
        self.temperature = nnx.Param(jnp.full((), cfg.temperature))
        self.match = nnx.Linear(2 * cfg.dim, 2, rngs=rngs)
        self.memory = Memory(cfg, rngs=rngs)
        self.decoder = Decoder(cfg, rngs=rngs)
        self.queue = Queue(cfg)
        if cfg.momentum:
            self.slow = Slow(cfg, encoders(self))

    def __call__(
        self,
        tokens: Int[Array, "b t"],
        images: Float[Array, "b h w 3"] | None = None,
        targets: Int[Array, "b t2"] | None = None,
        noise: Float[Array, "b m"] | None = None,
        mask: Int[Array, "b t"] | None = None,
    ) -> Output:
        """Features of texts and images, and what the decoder makes of targets.

        Args:
            tokens: token ids, at most as many as the context.
            images: float32 in [0, 1]; height and width are multiples of the tower's patch.
            targets: texts that the decoder is asked for, given the image, or else given what the
                memory has at the text's feature.
            noise: standard normal numbers, with which the memory's addresses are drawn; None
                reads at their mean.
            mask: 1 for tokens, 0 for padding; all are tokens, if None.

        Raises:
            Problem: (usage) more tokens than the context, no token at all, another number of
                images than of texts, or patches do not fill the images.
        """
        real = self.real(tokens, mask)
        x = self.lower_text(tokens, real)
        alone = self.upper_text(x, real)
        text_features = self.text_pool(mean(alone, real))
        image_features, embeddings, seen = None, alone, None
        if images is not None:
            if len(images) != len(tokens):
                raise Problem(
                    f"{len(images)} images do not go with {len(tokens)} texts",
                    fix="give one image for each text",
                    exit_code=USAGE,
                )
            y = self.lower_image(images)
            seen = self.upper_image(y)
            image_features = self.image_pool(seen.mean(axis=1))
            embeddings = self.together(x, real, y)[0]
        logits = None
        if targets is not None:
            self.check(targets.shape[1])
            features = text_features if image_features is None else image_features
            context, sees = self.context(seen, self.memory.read(features, noise=noise))
            hidden = self.decoder.hidden(self.inputs(targets), context, sees)
            logits = tied_logits(hidden, self.embed.embedding[...])
        return Output(embeddings, text_features, image_features, logits)

    def text_features(
        self, tokens: Int[Array, "b t"], mask: Int[Array, "b t"] | None = None
    ) -> Float[Array, "b d"]:
        """Unit vectors of texts alone."""
        real = self.real(tokens, mask)
        return self.text_pool(mean(self.upper_text(self.lower_text(tokens, real), real), real))

    def image_features(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b d"]:
        """Unit vectors of images in [0, 1] alone."""
        return self.image_pool(self.upper_image(self.lower_image(images)).mean(axis=1))

    # What the objectives take one by one.

    def real(self, tokens: Int[Array, "b t"], mask: Int[Array, "b t"] | None) -> Bool[Array, "b t"]:
        """True for tokens, False for padding; the first of a text always counts."""
        self.check(tokens.shape[1])
        real = jnp.ones(tokens.shape, bool) if mask is None else mask == 1
        return real.at[:, 0].set(True)

    def check(self, t: int) -> None:
        """Refuses texts that have no token or do not fit."""
        if not 0 < t <= self.config.context:
            raise Problem(
                f"{t} tokens do not fit a context of {self.config.context}",
                why="positions are learned: there is none beyond the context",
                fix="give at least one token and at most as many as the context",
                exit_code=USAGE,
            )

    def lower_text(
        self, tokens: Int[Array, "b t"], real: Bool[Array, "b t"], rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b t d"]:
        """Embeddings after the layers that see no image."""
        x = self.placed(tokens)
        if rngs is not None:
            x = dropout(x, self.config.dropout, rngs.dropout())
        for block in self.text[: self.config.layers - self.config.fused]:
            x, _ = self._run(block, x, real[:, None], rngs=rngs)
        return x

    def upper_text(self, x, real, rngs: nnx.Rngs | None = None) -> Float[Array, "b t d"]:
        """What becomes of `lower_text` alone."""
        for block in self.text[self.config.layers - self.config.fused :]:
            x, _ = self._run(block, x, real[:, None], rngs=rngs)
        return self.text_norm(x)

    def lower_image(
        self, images: Float[Array, "b h w 3"], rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b p d"]:
        """Tokens of images in [0, 1]: the class token and the patches, before any text is seen."""
        normal = (images - jnp.asarray(MEAN)) / jnp.asarray(DEVIATION)
        rows = images.shape[1] // self.config.dinov2.patch
        x = self._merged(self.vision(normal), rows)
        y = self.project(x.astype(self.project.kernel[...].dtype)).astype(jnp.float32)
        for block in self.image[: self.config.image_layers - self.config.fused]:
            y, _ = self._run(block, y, _everything(y)[:, None], rngs=rngs)
        return y

    def upper_image(self, y, rngs: nnx.Rngs | None = None) -> Float[Array, "b p d"]:
        """What becomes of `lower_image` alone."""
        for block in self.image[self.config.image_layers - self.config.fused :]:
            y, _ = self._run(block, y, _everything(y)[:, None], rngs=rngs)
        return self.image_norm(y)

    def together(
        self, x, real, y, rngs: nnx.Rngs | None = None
    ) -> tuple[Float[Array, "b t d"], Float[Array, "b p d"]]:
        """What becomes of both in sight of each other: each layer sees the other side's state
        before it."""
        cfg = self.config
        pairs = zip(
            self.text[cfg.layers - cfg.fused :],
            self.image[cfg.image_layers - cfg.fused :],
            strict=True,
        )
        whole = _everything(y)
        for text, image in pairs:
            of_image, of_text = text.cross.seen(y), image.cross.seen(x)
            x, _ = self._run(text, x, real[:, None], of_image, whole, rngs)
            y, _ = self._run(image, y, whole[:, None], of_text, real, rngs)
        return self.text_norm(x), self.image_norm(y)

    def context(
        self, seen: Float[Array, "b p d"] | None, codes: Float[Array, "b d"]
    ) -> tuple[list[Heads], Bool[Array, "b s"]]:
        """What the decoder sees of images and of codes that were read, and where it may look."""
        token = self.memory.token(codes)
        both = token if seen is None else jnp.concatenate([seen, token], axis=1)
        return self.decoder.seen(both), _everything(both)

    def placed(self, tokens: Int[Array, "b t"], start: Int[Array, ""] | int = 0):
        """Embeddings of tokens with their positions, float32."""
        positions = start + jnp.arange(tokens.shape[1])
        of_token, of_place = self.embed.embedding[...][tokens], self.pos.embedding[...][positions]
        return of_token.astype(jnp.float32) + of_place.astype(jnp.float32)

    def inputs(self, targets: Int[Array, "b t"]) -> Float[Array, "b t d"]:
        """What the decoder reads when it is asked for the targets: start, then all but the last."""
        return jnp.concatenate(
            [self.decoder.first(len(targets)), self.placed(targets[:, :-1])], axis=1
        )

    # Writing: what `generate` calls.

    def prefill(
        self,
        tokens: Int[Array, "b t"],
        length: Int[Array, ""] | int,
        size: int,
        images: Float[Array, "b h w 3"] | None = None,
    ) -> tuple[Float[Array, "b v"], Cache]:
        """Logits of the token after a text that goes on an image, and the cache to decode from.

        Args:
            tokens: how the text begins, at least nothing ([b, 0]); padded.
            length: how many tokens of them count.
            size: tokens that the cache has room for.
            images: float32 in [0, 1]; without, nothing but the text is seen.
        """
        if images is None:
            seen, codes = None, jnp.zeros((len(tokens), self.config.dim))
        else:
            seen = self.upper_image(self.lower_image(images))
            codes = self.memory.read(self.image_pool(seen.mean(axis=1)))
        return self.begin(tokens, length, size, *self.context(seen, codes))

    def recollect(
        self,
        images: Float[Array, "b h w 3"] | None = None,
        size: int = 64,
        features: Float[Array, "b d"] | None = None,
    ) -> tuple[Float[Array, "b v"], Cache]:
        """As `prefill`, of what the memory has for images, which the decoder does not see.

        Args:
            images: float32 in [0, 1]; or give
            features: the unit features of images or texts.
            size: tokens that the cache has room for.
        """
        if features is None:
            assert images is not None, "give images or features"
            features = self.image_features(images)
        nothing = jnp.zeros((len(features), 0), jnp.int32)
        return self.begin(nothing, 0, size, *self.context(None, self.memory.read(features)))

    def begin(
        self, tokens, length: Int[Array, ""] | int, size: int, seen: list[Heads], sees
    ) -> tuple[Float[Array, "b v"], Cache]:
        """As `prefill`, of what the decoder is to see (`context`)."""
        x = jnp.concatenate([self.decoder.first(len(tokens)), self.placed(tokens)], axis=1)
        dtype = self.embed.embedding[...].dtype
        x, cache = self.decoder.step(x, self.decoder.empty(len(tokens), size, dtype, seen, sees))
        last = jax.lax.dynamic_slice_in_dim(x, length, 1, axis=1)
        own = cache.own._replace(length=jnp.asarray(length, jnp.int32) + 1)
        return tied_logits(last, self.embed.embedding[...])[:, 0], cache._replace(own=own)

    def decode(
        self, tokens: Int[Array, "b t"], cache: Cache
    ) -> tuple[Float[Array, "b t v"], Cache]:
        """float32 logits of the token after each of the next tokens, and the cache with them."""
        x, cache = self.decoder.step(self.placed(tokens, cache.own.length - 1), cache)
        return tied_logits(x, self.embed.embedding[...]), cache

    def _merged(self, x: Float[Array, "b n d"], rows: int) -> Float[Array, "b p d2"]:
        """The class token, and squares of patches as one token each; registers are left out."""
        side, first = self.config.merge, 1 + self.config.dinov2.registers
        columns = (x.shape[1] - first) // rows
        if rows % side or columns % side:
            raise Problem(
                f"bitgen: {rows} × {columns} patches are not squares of {side} × {side}",
                fix=f"give images of a multiple of {side * self.config.dinov2.patch} pixels",
                exit_code=USAGE,
            )
        patches = rearrange(
            x[:, first:], "b (r p c q) d -> b (r c) (p q d)", p=side, q=side, c=columns // side
        )
        cls = jnp.tile(x[:, :1], (1, 1, side**2))
        return jnp.concatenate([cls, patches], axis=1)

    def _run(self, block, x, mask, seen=None, seen_mask=None, rngs=None):
        return remat(Block.__call__, self.remat)(block, x, mask, seen, seen_mask, rngs)


def mean(x: Float[Array, "b t d"], real: Bool[Array, "b t"]) -> Float[Array, "b d"]:
    """The mean over tokens, float32."""
    weight = real / real.sum(axis=1, keepdims=True)
    return (x.astype(jnp.float32) * weight[..., None]).sum(axis=1)


def _everything(x: Array) -> Array:
    return jnp.ones(x.shape[:2], bool)
