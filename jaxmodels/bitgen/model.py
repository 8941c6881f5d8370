"""The bitgen model: what the card of seed 004 describes, built after the papers.

An image passes DINOv2's tower and then layers of our own; a text passes an encoder. The last layers
of both have gated cross-attention to each other (FIBER), which is used to judge a pair, and skipped
for retrieval features, unit vectors of one side alone. A causal decoder writes texts; it attends to
the image's tokens and to one token with what the memory (Larimar) holds at the image's feature. All
linear layers of encoders and decoder are BitNet's (`bitlinear`); embeddings, the tower and the
small heads are not. The decoder's head is the embedding. The residual stream is always float32.

The tower keeps its published architecture: the fused image layers come after it. The decoder sees
image and memory, not the fused text, which contains the answer. `merge` joins squares of patches
into one token, since matching takes three pairs for each row.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from jaxmodels.bitgen.blocks import Block, Heads
from jaxmodels.bitgen.config import Config
from jaxmodels.bitgen.decoder import Cache, Decoder
from jaxmodels.bitgen.encoders import (
    Pooler,
    everything,
    lower_image,
    lower_text,
    mean,
    together,
    upper_image,
    upper_text,
)
from jaxmodels.bitgen.fiber import Queued
from jaxmodels.bitgen.memory import Memory
from jaxmodels.bitgen.momentum import Slow, encoders
from jaxmodels.dinov2.model import Model as Tower
from jaxmodels.errors import USAGE, Problem
from jaxmodels.layers.contrast import Queue
from jaxmodels.layers.head import tied_logits
from jaxmodels.layers.linear import Linear
from jaxmodels.layers.norm import dtype_behind
from jaxmodels.layers.precision import to_float32


class Output(NamedTuple):
    """The outputs of a call."""

    embeddings: Float[Array, "b t d"]
    """Of each token, with cross-attention to the image if there is one."""
    text_features: Float[Array, "b d"]
    """Unit vectors, from the text alone."""
    image_features: Float[Array, "b d"] | None
    """Unit vectors, from the image alone; None without images."""
    decoder_logits: Float[Array, "b t v"] | None
    """float32; those at t predict the target at t from the targets before. None without targets."""


class Model(nnx.Module):
    """bitgen. Deterministic unless `rngs` is passed to the call."""

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        self.config = cfg
        self.remat = "none"
        small = nnx.initializers.normal(0.02)
        self.embed = nnx.Embed(cfg.vocab, cfg.dim, embedding_init=small, rngs=rngs)
        self.pos = nnx.Embed(cfg.context, cfg.dim, embedding_init=small, rngs=rngs)
        self.vision = Tower(cfg.dinov2, rngs=rngs)
        self.project = Linear(cfg.merge**2 * cfg.dinov2.dim, cfg.dim, rngs=rngs)

        def blocks(count: int) -> nnx.List:
            lower = count - cfg.fused
            return nnx.List([Block(cfg, cross=i >= lower, rngs=rngs) for i in range(count)])

        self.text, self.image = blocks(cfg.layers), blocks(cfg.image_layers)
        self.text_norm = nnx.RMSNorm(cfg.dim, rngs=rngs)
        self.image_norm = nnx.RMSNorm(cfg.dim, rngs=rngs)
        self.text_pool, self.image_pool = Pooler(cfg, rngs=rngs), Pooler(cfg, rngs=rngs)
        self.temperature = nnx.Param(jnp.full((), cfg.temperature, jnp.float32))
        self.match = Linear(2 * cfg.dim, 2, rngs=rngs)
        self.memory = Memory(cfg, rngs=rngs)
        self.decoder = Decoder(cfg, rngs=rngs)
        self.queue = Queue(cfg.queue, cfg.dim)
        if cfg.queue_inputs:
            self.queued = Queued(cfg)
        if cfg.momentum:
            self.slow = Slow(cfg, encoders(self))

    def __call__(
        self,
        tokens: Int[Array, "b t"],
        images: Float[Array, "n h w 3"] | None = None,
        targets: Int[Array, "b t2"] | None = None,
        noise: Float[Array, "b m"] | None = None,
        mask: Int[Array, "b t"] | None = None,
    ) -> Output:
        """Features of texts and images, and the decoder's logits of the targets.

        Args:
            tokens: token ids, at most as many as the context.
            images: float32 in [0, 1], of any size.
            targets: texts for the decoder to predict, given the image, or without one given
                what the memory has at the text's feature.
            noise: standard normal numbers to draw the memory's addresses with; None reads at
                their mean.
            mask: 1 for tokens, 0 for padding; None: all are tokens.

        Raises:
            Problem: (usage) more tokens than the context, none at all, or different numbers of
                images and texts.
        """
        mask = self.padding_mask(tokens, mask)
        x = lower_text(self, tokens, mask)
        alone = upper_text(self, x, mask)
        text_features = self.text_pool(mean(alone, mask))
        image_features, embeddings, seen = None, alone, None
        if images is not None:
            if len(images) != len(tokens):
                raise Problem(
                    f"{len(images)} images cannot be paired with {len(tokens)} texts",
                    fix="give one image for each text",
                    exit_code=USAGE,
                )
            y = lower_image(self, images)
            seen = upper_image(self, y)
            image_features = self.image_pool(seen.mean(axis=1))
            embeddings = together(self, x, mask, y)[0]
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
        """float32 unit vectors of texts."""
        mask = self.padding_mask(tokens, mask)
        return self.text_pool(mean(upper_text(self, lower_text(self, tokens, mask), mask), mask))

    def image_features(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b d"]:
        """float32 unit vectors of images in [0, 1]."""
        return self.image_pool(upper_image(self, lower_image(self, images)).mean(axis=1))

    # For the losses, which need intermediate results.

    def padding_mask(
        self, tokens: Int[Array, "b t"], mask: Int[Array, "b t"] | None
    ) -> Bool[Array, "b t"]:
        """True for tokens, False for padding; the first token of a text is always True."""
        self.check(tokens.shape[1])
        mask = jnp.ones(tokens.shape, bool) if mask is None else mask == 1
        return mask.at[:, 0].set(True)

    def check(self, t: int) -> None:
        """Raises a Problem (usage) for texts without a token or longer than the context."""
        if not 0 < t <= self.config.context:
            raise Problem(
                f"{t} tokens do not fit a context of {self.config.context}",
                why="positions are learned, so the context cannot be exceeded",
                fix="give at least one token and at most as many as the context",
                exit_code=USAGE,
            )

    def context(
        self, seen: Float[Array, "b p d"] | None, codes: Float[Array, "b d"]
    ) -> tuple[list[Heads], Bool[Array, "b s"]]:
        """The sequence that the decoder attends to, of images and codes, and the mask for it."""
        token = self.memory.token(codes)
        both = token if seen is None else jnp.concatenate([seen, token], axis=1)
        return self.decoder.seen(both), everything(both)

    def placed(
        self, tokens: Int[Array, "b t"], start: Int[Array, ""] | int = 0
    ) -> Float[Array, "b t d"]:
        """Token plus position embeddings, float32."""
        positions = start + jnp.arange(tokens.shape[1])
        of_token, of_place = self.embed.embedding[...][tokens], self.pos.embedding[...][positions]
        return to_float32(of_token) + to_float32(of_place)

    def inputs(self, targets: Int[Array, "b t"]) -> Float[Array, "b t d"]:
        """The decoder's inputs to predict targets: the start, then all targets but the last."""
        return jnp.concatenate(
            [self.decoder.first(len(targets)), self.placed(targets[:, :-1])], axis=1
        )

    # Called by `generate`.

    def prefill(
        self,
        tokens: Int[Array, "b t"],
        length: Int[Array, ""] | int,
        size: int,
        images: Float[Array, "b h w 3"] | None = None,
    ) -> tuple[Float[Array, "b v"], Cache]:
        """float32 logits [b, v] of the token after a prompt, and the cache to decode from.

        Args:
            tokens: the beginning of the text, padded at the end; may be empty ([b, 0]).
            length: number of tokens without padding.
            size: tokens that the cache has room for.
            images: float32 in [0, 1]; None: the decoder sees only the text.
        """
        if images is None:
            seen, codes = None, jnp.zeros((len(tokens), self.config.dim))
        else:
            seen = upper_image(self, lower_image(self, images))
            codes = self.memory.read(self.image_pool(seen.mean(axis=1)))
        return self.begin(tokens, length, size, *self.context(seen, codes))

    def recollect(
        self,
        images: Float[Array, "b h w 3"] | None = None,
        size: int = 64,
        features: Float[Array, "b d"] | None = None,
    ) -> tuple[Float[Array, "b v"], Cache]:
        """As `prefill`, from what the memory has for images; the decoder does not see these.

        Args:
            images: float32 in [0, 1]; or instead
            features: unit features of images or texts.
            size: tokens that the cache has room for.
        """
        if features is None:
            assert images is not None, "give images or features"
            features = self.image_features(images)
        nothing = jnp.zeros((len(features), 0), jnp.int32)
        return self.begin(nothing, 0, size, *self.context(None, self.memory.read(features)))

    def begin(
        self,
        tokens: Int[Array, "b t"],
        length: Int[Array, ""] | int,
        size: int,
        seen: list[Heads],
        sees: Bool[Array, "b s"],
    ) -> tuple[Float[Array, "b v"], Cache]:
        """As `prefill`, given the sequence that the decoder attends to (see `context`)."""
        x = jnp.concatenate([self.decoder.first(len(tokens)), self.placed(tokens)], axis=1)
        dtype = dtype_behind(self.decoder.norm, self.embed.embedding[...])
        x, cache = self.decoder.step(x, self.decoder.empty(len(tokens), size, dtype, seen, sees))
        last = jax.lax.dynamic_slice_in_dim(x, length, 1, axis=1)
        own = cache.own._replace(length=jnp.asarray(length, jnp.int32) + 1)
        return tied_logits(last, self.embed.embedding[...])[:, 0], cache._replace(own=own)

    def decode(
        self, tokens: Int[Array, "b t"], cache: Cache
    ) -> tuple[Float[Array, "b t v"], Cache]:
        """float32 logits [b, t, v] after each of these tokens, and the cache with them added."""
        x, cache = self.decoder.step(self.placed(tokens, cache.own.length - 1), cache)
        return tied_logits(x, self.embed.embedding[...]), cache
