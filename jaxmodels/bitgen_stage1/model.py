"""Stage 1 of BitGen as published, with its quirks. Source: seed 004 (euhidaman/BitGen).

Notable: the fused tokens replace the text; the encoder is post-norm, attends to padding and is
never quantised, the decoder is quantised in evaluation only; the text's feature is that of its
first token. The seed draws noise for the memory in evaluation too; here calls are deterministic
unless noise or rngs are passed.
"""

from typing import NamedTuple

from flax import nnx
from jaxtyping import Array, Float, Int

from jaxmodels.bitgen_stage1.config import Config
from jaxmodels.bitgen_stage1.decoder import Decoder
from jaxmodels.bitgen_stage1.fusion import Fusion, Mlp
from jaxmodels.bitgen_stage1.memory import Memory, Recall
from jaxmodels.bitgen_stage1.parts import apply, drop, embedding, linear, norm
from jaxmodels.dinov2.model import Model as Tower
from jaxmodels.dinov2.pixels import normalised
from jaxmodels.errors import USAGE, Problem
from jaxmodels.layers.attention import self_attention
from jaxmodels.layers.heads import join_heads, qkv_heads
from jaxmodels.layers.linear import Linear
from jaxmodels.layers.no_recompute import no_recompute
from jaxmodels.layers.precision import to_float32
from jaxmodels.layers.remat import remat
from jaxmodels.layers.sharding import constrain


class Output(NamedTuple):
    """The outputs of a call."""

    embeddings: Float[Array, "b t d"]
    """The encoder's output for each token."""
    text_features: Float[Array, "b d"]
    """Unit vectors to compare with those of images."""
    image_features: Float[Array, "b d"] | None
    """Unit vectors to compare with those of texts; None without images."""
    decoder_logits: Float[Array, "b u v"] | None
    """Of the targets; None without them."""
    recall: Recall
    """The result of reading the memory."""


Hidden = Float[Array, "b t d"]


class Attention(nnx.Module):
    """Self-attention of every token to every other, padding included (a quirk)."""

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        self.heads, self.rate = cfg.heads, cfg.dropout
        init = nnx.initializers.xavier_uniform()
        self.qkv = Linear(cfg.dim, 3 * cfg.dim, kernel_init=init, rngs=rngs)
        self.proj = linear(cfg.dim, cfg.dim, rngs=rngs)

    def __call__(self, x: Hidden, rngs: nnx.Rngs | None) -> Hidden:
        """The layer's output, to be added to x; with rngs, attention weights have dropout."""
        q, k, v = qkv_heads(self.qkv, x.astype(self.qkv.kernel[...].dtype), self.heads)
        key = None if rngs is None else rngs.dropout()
        out = self_attention(q, k, v, causal=False, rate=self.rate, key=key)
        return join_heads(self.proj, out)


class Block(nnx.Module):
    """Post-norm: attention, then feed-forward."""

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        self.rate = cfg.dropout
        self.attn = Attention(cfg, rngs=rngs)
        self.norm1 = norm(cfg.dim, rngs=rngs)
        self.mlp = Mlp(cfg.dim, cfg.hidden, cfg.dim, rngs=rngs)
        self.norm2 = norm(cfg.dim, rngs=rngs)

    def __call__(self, x: Hidden, rngs: nnx.Rngs | None) -> Hidden:
        """The residual stream, normalised."""
        x = no_recompute(self.norm1(x + drop(self.attn(x, rngs), self.rate, rngs)))
        x = no_recompute(self.norm2(x + drop(self.mlp(x, self.rate, rngs), self.rate, rngs)))
        return constrain(x, "data", ...)


class Model(nnx.Module):
    """BitGen Stage 1. Deterministic unless `noise` or `rngs` are passed to the call."""

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        self.config = cfg
        self.embed = embedding(cfg.vocab, cfg.dim, rngs=rngs)
        self.pos = embedding(cfg.context, cfg.dim, rngs=rngs)
        self.vision = Tower(cfg.dinov2, rngs=rngs)
        self.fusion = Fusion(cfg, rngs=rngs)
        self.memory = Memory(cfg, rngs=rngs)
        self.blocks = nnx.List([Block(cfg, rngs=rngs) for _ in range(cfg.layers)])
        self.norm = norm(cfg.dim, rngs=rngs)
        self.decoder = Decoder(cfg, rngs=rngs)

    def __call__(
        self,
        tokens: Int[Array, "b t"] | None,
        images: Float[Array, "b y x 3"] | None = None,
        targets: Int[Array, "b u"] | None = None,
        noise: Float[Array, "m d"] | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> Output:
        """Embeddings of texts, features of texts and images, and logits of targets.

        Args:
            tokens: token ids, at most `context` in a row; None is refused.
            images: one for each text, values in [0, 1]; of any size.
            targets: token ids that the decoder predicts from those up to and including each.
            noise: standard normal, for the draw of the memory; None reads its mean.
            rngs: has the stream `dropout`; passing it means training: with dropout, and a
                decoder in full precision.

        Raises:
            Problem: (usage) there are no tokens, or more than the context.
        """
        text = self.embedded(tokens, rngs)
        x, image_features = text, None
        if images is not None:
            image = self.seen(images)
            x, image_features = self.fusion(text, image, rngs), self.fusion.image_features(image)
        x, recall = self.memory(constrain(x, "data", ...), noise)
        block = remat(Block.__call__, self.remat)
        for layer in self.blocks:
            x = block(layer, x, rngs)
        embeddings = self.norm(x)
        logits = None
        if targets is not None:
            decoded = self.decoded(targets, embeddings, rngs)
            logits = self.decoder.logits(decoded, quantised=rngs is None)
        features = self.fusion.text_features(text)
        return Output(embeddings, features, image_features, logits, recall)

    def decoded(
        self,
        targets: Int[Array, "b u"],
        embeddings: Float[Array, "b t d"],
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b u d"]:
        """The inputs of the decoder's head for targets."""
        return self.decoder(self.embedded(targets, rngs), embeddings, rngs, self.remat)

    @property
    def remat(self) -> str:
        """The policy of `layers/remat.py`, for the tower too."""
        return self.vision.remat

    @remat.setter
    def remat(self, policy: str) -> None:
        self.vision.remat = policy

    def text_features(self, tokens: Int[Array, "b t"]) -> Float[Array, "b d"]:
        """Unit features of texts; see `Output`."""
        return self.fusion.text_features(self.embedded(tokens))

    def image_features(self, images: Float[Array, "b y x 3"]) -> Float[Array, "b d"]:
        """Unit features of images, values in [0, 1]; see `Output`."""
        return self.fusion.image_features(self.seen(images))

    def embedded(
        self, tokens: Int[Array, "b t"] | None, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b t d"]:
        """Token plus position embeddings."""
        if tokens is None:
            raise Problem(
                "bitgen_stage1 reads no image without a text",
                fix="give tokens too; model.image_features(images) needs none",
                exit_code=USAGE,
            )
        if tokens.shape[1] > self.config.context:
            raise Problem(
                f"a text of {tokens.shape[1]} tokens is longer than bitgen_stage1's context of "
                f"{self.config.context}",
                fix="cut it",
                exit_code=USAGE,
            )
        rows = self.embed.embedding[...][tokens] + self.pos.embedding[...][: tokens.shape[1]]
        return drop(constrain(to_float32(rows), "data", ...), self.config.dropout, rngs)

    def seen(self, images: Float[Array, "b y x 3"]) -> Float[Array, "b d"]:
        """One vector for each image, values in [0, 1]: the mean of the tower's patches."""
        tokens = self.vision(normalised(images, self.config.image_size))
        patches = tokens[:, 1 + self.config.dinov2.registers :]
        return to_float32(apply(self.fusion.project, patches.mean(axis=1)))
