"""The bwetaf model and its loss. Source: seed 003 (BwETAF 0.5.1 on PyPI, MIT).

Notable: positions enter by rotating the embeddings, over their full width and in an unusual
pairing; SwiGLU takes the value first and the gate second; RMSNorm's eps is 1e-8; there is no
final norm; the head is the embedding; the residual stream is always float32.

Padding attends to all positions alike, as the seed's masking has it: only so are loss and gradient
norm of padded batches the seed's. No token sees padding.
"""

from typing import Any

import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxmodels.bwetaf.config import Config
from jaxmodels.errors import USAGE, Problem
from jaxmodels.layers.attention import self_attention
from jaxmodels.layers.cache import KeysValues, KVCache
from jaxmodels.layers.dropout import dropout
from jaxmodels.layers.head import tied_logits
from jaxmodels.layers.heads import fused_linear, heads_of, join_heads
from jaxmodels.layers.linear import Linear, broadcast_param
from jaxmodels.layers.losses import chunked_cross_entropy
from jaxmodels.layers.norm import dtype_behind, normalised
from jaxmodels.layers.remat import remat
from jaxmodels.layers.rotary import Rotation, rotation
from jaxmodels.layers.sharding import constrain

_INIT = nnx.initializers.normal(0.02)
Hidden = Float[Array, "b t d"]
Segments = Int[Array, "b t"] | None
"""The document of each token, where a row has several."""
PaddingMask = Int[Array, "b t"] | None
"""1 for tokens, 0 for padding."""


class Norm(nnx.Module):
    """RMSNorm: x / sqrt(mean(x²) + 1e-8) · scale."""

    def __init__(self, dim: int):
        self.scale = nnx.Param(jnp.ones(dim))

    def __call__(self, x: Hidden) -> Hidden:
        """The rows in the parameters' dtype."""
        scale = self.scale[...]
        return (normalised(x, 1e-8) * broadcast_param(scale, x.shape)).astype(scale.dtype)


class Attention(nnx.Module):
    """Causal self-attention; the output projection alone has a bias."""

    def __init__(self, cfg: Config, layer: int, *, rngs: nnx.Rngs):
        self.layer, self.heads = layer, cfg.heads_by_layer[layer]
        self.rotate = cfg.rotate_qk

        def linear(bias: bool) -> Linear:
            return Linear(cfg.dim, cfg.dim, use_bias=bias, kernel_init=_INIT, rngs=rngs)

        self.q, self.k, self.v, self.proj = (linear(bias) for bias in (False, False, False, True))

    def __call__(
        self,
        x: Hidden,
        positions: Int[Array, "t"],
        padding_mask: PaddingMask,
        segments: Segments,
        cache: KVCache | None,
    ) -> tuple[Hidden, KeysValues | None]:
        """What the block adds, and the keys and values to remember (None without a cache)."""
        rope = rotation(positions, x.shape[-1] // self.heads) if self.rotate else None
        q, k = (heads_of(part, x, self.heads, rope) for part in (self.q, self.k))
        v = heads_of(self.v, x, self.heads)
        if cache is None:
            out, kept = self_attention(q, k, v, padding_mask=padding_mask, segments=segments), None
        else:
            out, kept = cache.attend(self.layer, q, k, v)
        return join_heads(self.proj, out), kept


class Mlp(nnx.Module):
    """SwiGLU, value first: w · silu(v) with (w | v) = wv(x)."""

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        self.wv = Linear(cfg.dim, 2 * cfg.hidden, use_bias=False, kernel_init=_INIT, rngs=rngs)
        self.out = Linear(cfg.hidden, cfg.dim, kernel_init=_INIT, rngs=rngs)

    def __call__(self, x: Hidden) -> Hidden:
        """What the block adds."""
        w, v = fused_linear(self.wv, x, 2)
        return self.out(constrain(w * nnx.silu(v), "data", ..., "model"))


class Block(nnx.Module):
    """Pre-norm attention and feed-forward."""

    def __init__(self, cfg: Config, layer: int, *, rngs: nnx.Rngs):
        self.dropout, self.residual_scale = cfg.dropout, cfg.residual_scale
        self.norm1 = Norm(cfg.dim)
        self.attn = Attention(cfg, layer, rngs=rngs)
        self.norm2 = Norm(cfg.dim)
        self.mlp = Mlp(cfg, rngs=rngs)

    def __call__(
        self,
        x: Hidden,
        positions: Int[Array, "t"],
        padding_mask: PaddingMask,
        segments: Segments,
        cache: KVCache | None,
        rngs: nnx.Rngs | None,
    ) -> tuple[Hidden, KeysValues | None]:
        """The float32 residual stream, and the keys and values to remember."""
        out, kv = self.attn(self.norm1(x), positions, padding_mask, segments, cache)
        if rngs is not None:
            out = dropout(out, self.dropout, rngs.dropout())
        x = constrain(out + self.residual_scale * x, "data", ...)
        x = self.mlp(self.norm2(x)) + self.residual_scale * x
        return constrain(x, "data", ...), kv


class Model(nnx.Module):
    """bwetaf. Deterministic unless `rngs` is passed to the call."""

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        self.config = cfg
        self.remat = "none"
        init = nnx.initializers.normal(cfg.init_range)
        self.embed = nnx.Embed(cfg.vocab, cfg.dim, embedding_init=init, rngs=rngs)
        self.blocks = nnx.List([Block(cfg, i, rngs=rngs) for i in range(cfg.layers)])

    def __call__(
        self,
        tokens: Int[Array, "b t"],
        cache: KVCache | None = None,
        rngs: nnx.Rngs | None = None,
        mask: Int[Array, "b t"] | None = None,
    ) -> tuple[Float[Array, "b t v"], KVCache | None]:
        """Logits of the token after each token.

        Args:
            tokens: token ids.
            cache: what came before the tokens (`init_cache`); None when nothing did.
            rngs: has the stream `dropout`; passing it turns dropout on.
            mask: 1 for tokens, 0 for padding, which no token sees. Positions count padding.

        Returns:
            float32 logits, and the cache with the tokens added (None if None was given).

        Raises:
            Problem: (usage) both a mask and a cache, which remembers no padding.
        """
        x, cache = self.hidden(tokens, cache, rngs, mask)
        return self.logits(x), cache

    def logits(self, x: Float[Array, "b t d"]) -> Float[Array, "b t v"]:
        """The head, in float32, on what `hidden` returns."""
        return tied_logits(x, self.embed.embedding[...])

    def hidden(
        self,
        tokens: Int[Array, "b t"],
        cache: KVCache | None = None,
        rngs: nnx.Rngs | None = None,
        mask: Int[Array, "b t"] | None = None,
        segments: Int[Array, "b t"] | None = None,
    ) -> tuple[Float[Array, "b t d"], KVCache | None]:
        """What the head multiplies, in the parameters' dtype; otherwise as the call.

        With `segments`, the document of each token, a token sees its own document only; a cache
        remembers none.
        """
        if mask is not None and cache is not None:
            raise Problem(
                "bwetaf: a mask and a cache together",
                why="the cache does not remember which of its tokens are padding",
                fix="give sequences of one length, or no cache",
                exit_code=USAGE,
            )
        t = tokens.shape[1]
        positions = jnp.arange(t) if cache is None else cache.positions(t)
        table = self.embed.embedding[...]
        x = constrain(table[tokens].astype(jnp.float32), "data", ...)
        x, kept = self.placed(x, positions), []
        policy = self.remat if cache is None else "none"  # decoding has no backward pass
        block = remat(Block.__call__, policy)
        for layer in self.blocks:
            x, kv = block(layer, x, positions, mask, segments, cache, rngs)
            kept.append(kv)
        if cache is not None:
            keys, values = zip(*kept, strict=True)
            cache = KVCache(keys, values, cache.length + t)
        return x.astype(table.dtype), cache

    def placed(self, x: Float[Array, "b t d"], positions: Int[Array, "t"]) -> Float[Array, "b t d"]:
        """Scaled embeddings that know their positions."""
        x = x * self.config.embed_scale
        rope = rotation(positions, self.config.dim)
        return rotated(x, rope) if self.config.positions == "rotate" else x + sinusoid(rope)

    def init_cache(self, batch: int, size: int | None = None) -> KVCache:
        """An empty cache of `batch` sequences for `size` tokens, at most the context (None)."""
        cfg = self.config
        size = min(size or cfg.context, cfg.context)
        dtype = dtype_behind(self.blocks[0].norm1, self.embed.embedding[...])
        return KVCache.empty(cfg.heads_by_layer, cfg.dim, batch, size, dtype)


def rotated(x: Float[Array, "b t d"], by: Rotation) -> Float[Array, "b t d"]:
    """x · cos + (−second half of x | its first half) · sin, as the seed rotates embeddings.

    Each angle stands twice in a row, as if neighbours were pairs, while the halves are what is
    paired: no rotation in the strict sense, and the one that the published weights know.
    """
    first, second = jnp.split(x, 2, axis=-1)
    cos, sin = jnp.repeat(by.cos, 2, axis=-1), jnp.repeat(by.sin, 2, axis=-1)
    return x * cos + jnp.concatenate([-second, first], axis=-1) * sin


def sinusoid(rope: Rotation) -> Float[Array, "t d"]:
    """Sines on even and cosines on odd columns (Vaswani et al. 2017, arXiv:1706.03762)."""
    return rearrange(jnp.stack([rope.sin, rope.cos], axis=-1), "t pairs two -> t (pairs two)")


def loss(
    model: Model, batch: dict[str, Any], rngs: nnx.Rngs | None
) -> tuple[Float[Array, ""], dict[str, Any]]:
    """Mean next-token cross-entropy in nats; the logits are never all in memory at once.

    Args:
        model: the model; it is read, never changed.
        batch: `tokens` int32 [b, t+1]; the first t are inputs, the last t are targets. `mask`
            int32 [b, t+1], if there, is 1 for tokens and 0 for padding, which no token sees;
            as in the seed, padding counts in the mean. `segments` int32 [b, t+1], if there, is
            the document of each token: no token sees another one's. Targets across a border
            count: the end of a text is one, and what begins after it.
        rngs: passed on to the model; None means no dropout.

    Returns:
        the loss, and `aux`, which is empty: nothing is stored.
    """
    tokens, mask, segments = batch["tokens"], batch.get("mask"), batch.get("segments")
    if mask is None:
        own = None if segments is None else segments[:, :-1]
        x, _ = model.hidden(tokens[:, :-1], rngs=rngs, segments=own)
    else:  # padding attends to the last position too
        x = model.hidden(tokens, rngs=rngs, mask=mask, segments=segments)[0][:, :-1]
    return chunked_cross_entropy(x, model.embed.embedding[...], tokens[:, 1:]), {}
