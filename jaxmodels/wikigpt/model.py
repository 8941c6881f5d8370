"""The wikigpt model and its loss. Source: seed 001, which follows karpathy/nanoGPT (MIT).

Notable: learned positions, so the context cannot be exceeded; LayerNorm eps is 1e-5; the head
is the token embedding itself, without a bias; residual projections start smaller with depth.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxmodels.errors import USAGE, Problem
from jaxmodels.layers.attention import self_attention
from jaxmodels.layers.cache import KeysValues, KVCache
from jaxmodels.layers.dropout import dropout
from jaxmodels.layers.head import tied_logits
from jaxmodels.layers.heads import join_heads, qkv_heads
from jaxmodels.layers.linear import Linear
from jaxmodels.layers.losses import chunked_cross_entropy
from jaxmodels.layers.no_recompute import no_recompute
from jaxmodels.layers.norm import dtype_behind, layer_norm
from jaxmodels.layers.remat import remat
from jaxmodels.layers.sharding import constrain
from jaxmodels.wikigpt.config import Config

Hidden = Float[Array, "b t d"]
Segments = Int[Array, "b t"] | None
"""The document of each token, where a row has several."""


def _linear(cfg: Config, inward: int, outward: int, rngs: nnx.Rngs, residual: bool) -> Linear:
    """nanoGPT's initialisation: 0.02, over sqrt(2 · layers) where it adds to the residual."""
    std = 0.02 * ((2 * cfg.layers) ** -0.5 if residual else 1)
    init = nnx.initializers.normal(std)
    return Linear(inward, outward, use_bias=cfg.bias, kernel_init=init, rngs=rngs)


def _embed(cfg: Config, rows: int, rngs: nnx.Rngs) -> nnx.Embed:
    return nnx.Embed(rows, cfg.dim, embedding_init=nnx.initializers.normal(0.02), rngs=rngs)


def _norm(cfg: Config, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """GPT-2's residual stream has a few very large numbers: E[x²] − E[x]² would lose digits."""
    return nnx.LayerNorm(
        cfg.dim, epsilon=1e-5, use_bias=cfg.bias, use_fast_variance=False, rngs=rngs
    )


def _drop(x: Float[Array, "b t d"], cfg: Config, rngs: nnx.Rngs | None) -> Float[Array, "b t d"]:
    return x if rngs is None else dropout(x, cfg.dropout, rngs.dropout())


class Attention(nnx.Module):
    """Causal self-attention; queries, keys and values from one product."""

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        self.config = cfg
        self.qkv = _linear(cfg, cfg.dim, 3 * cfg.dim, rngs, residual=False)
        self.proj = _linear(cfg, cfg.dim, cfg.dim, rngs, residual=True)

    def __call__(
        self,
        x: Hidden,
        segments: Segments,
        cache: KVCache | None,
        layer: int,
        rngs: nnx.Rngs | None,
    ) -> tuple[Hidden, KeysValues | None]:
        """What the block adds, and the keys and values to remember (None without a cache)."""
        cfg = self.config
        q, k, v = qkv_heads(self.qkv, x, cfg.heads)
        if cache is None:
            key = None if rngs is None else rngs.dropout()
            out = self_attention(q, k, v, segments=segments, rate=cfg.dropout, key=key)
            kept = None
        else:
            out, kept = cache.attend(layer, q, k, v)
        return _drop(join_heads(self.proj, out), cfg, rngs), kept


class Mlp(nnx.Module):
    """Two layers with a GELU between them."""

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        self.config = cfg
        self.up = _linear(cfg, cfg.dim, cfg.hidden, rngs, residual=False)
        self.out = _linear(cfg, cfg.hidden, cfg.dim, rngs, residual=True)

    def __call__(self, x: Hidden, rngs: nnx.Rngs | None) -> Hidden:
        """What the block adds."""
        hidden = nnx.gelu(self.up(x), approximate=self.config.gelu == "tanh")
        hidden = constrain(hidden, "data", ..., "model")
        return _drop(self.out(hidden), self.config, rngs)


class Block(nnx.Module):
    """Pre-norm attention and feed-forward."""

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        self.norm1 = _norm(cfg, rngs)
        self.attn = Attention(cfg, rngs=rngs)
        self.norm2 = _norm(cfg, rngs)
        self.mlp = Mlp(cfg, rngs=rngs)

    def __call__(
        self,
        x: Hidden,
        segments: Segments,
        cache: KVCache | None,
        layer: int,
        rngs: nnx.Rngs | None,
    ) -> tuple[Hidden, KeysValues | None]:
        """The float32 residual stream, and the keys and values to remember."""
        out, kv = self.attn(layer_norm(self.norm1, x), segments, cache, layer, rngs)
        x = no_recompute(constrain(x + out, "data", ...))
        x = x + self.mlp(layer_norm(self.norm2, x), rngs)
        return no_recompute(constrain(x, "data", ...)), kv


class Model(nnx.Module):
    """wikigpt. Deterministic unless `rngs` is passed to the call."""

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        self.config = cfg
        self.remat = "none"
        self.embed = _embed(cfg, cfg.vocab, rngs)
        self.pos = _embed(cfg, cfg.context, rngs)
        self.blocks = nnx.List([Block(cfg, rngs=rngs) for _ in range(cfg.layers)])
        self.norm = _norm(cfg, rngs)

    def __call__(
        self,
        tokens: Int[Array, "b t"],
        cache: KVCache | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> tuple[Float[Array, "b t v"], KVCache | None]:
        """Logits of the token after each token.

        Args:
            tokens: token ids; with those in the cache, at most as many as the context.
            cache: what came before the tokens (`init_cache`); None when nothing did.
            rngs: has the stream `dropout`; passing it turns dropout on.

        Returns:
            float32 logits, and the cache with the tokens added (None if None was given).

        Raises:
            Problem: (usage) more tokens than the context has positions.
        """
        x, cache = self.hidden(tokens, cache, rngs)
        return self.logits(x), cache

    def logits(self, x: Float[Array, "b t d"]) -> Float[Array, "b t v"]:
        """The head, in float32, on what `hidden` returns."""
        return tied_logits(x, self.embed.embedding[...])

    def hidden(
        self,
        tokens: Int[Array, "b t"],
        cache: KVCache | None = None,
        rngs: nnx.Rngs | None = None,
        segments: Int[Array, "b t"] | None = None,
    ) -> tuple[Float[Array, "b t d"], KVCache | None]:
        """What the head multiplies, in the parameters' dtype; otherwise as the call.

        With `segments`, the document of each token, a token sees its own document only; a cache
        remembers none.
        """
        t = tokens.shape[1]
        self._check(t)
        positions = jnp.arange(t) if cache is None else cache.positions(t)
        policy = self.remat if cache is None else "none"  # decoding has no backward pass
        block = remat(Block.__call__, policy, static=("layer",))
        of_token, of_place = self.embed.embedding[...][tokens], self.pos.embedding[...][positions]
        x = of_token.astype(jnp.float32) + of_place.astype(jnp.float32)
        x, kept = constrain(_drop(x, self.config, rngs), "data", ...), []
        for i, layer in enumerate(self.blocks):
            x, kv = block(layer, x, segments, cache, i, rngs)
            kept.append(kv)
        if cache is not None:
            keys, values = zip(*kept, strict=True)
            cache = KVCache(keys, values, cache.length + t)
        return layer_norm(self.norm, x), cache

    def _check(self, t: int) -> None:
        if t > self.config.context:
            raise Problem(
                f"{t} tokens do not fit a context of {self.config.context}",
                why="positions are learned: there is none beyond the context",
                fix="give fewer tokens; `generate` reads the last ones of a long prompt",
                exit_code=USAGE,
            )

    def init_cache(self, batch: int, size: int | None = None) -> KVCache:
        """An empty cache of `batch` sequences for `size` tokens, at most the context (None)."""
        cfg = self.config
        size = min(size or cfg.context, cfg.context)
        dtype = dtype_behind(self.norm, self.embed.embedding[...])
        return KVCache.empty((cfg.heads,) * cfg.layers, cfg.dim, batch, size, dtype)


def loss(
    model: Model, batch: dict[str, Any], rngs: nnx.Rngs | None
) -> tuple[Float[jax.Array, ""], dict[str, Any]]:
    """Mean next-token cross-entropy in nats; the logits are never all in memory at once.

    Args:
        model: the model; it is read, never changed.
        batch: `tokens` int32 [b, t+1]; the first t are inputs, the last t are targets.
            `segments` int32 [b, t+1], if there, is the document of each token: no token sees
            another one's. Targets across a border count: the end of a text is one, and what
            begins after it.
        rngs: passed on to the model; None means no dropout.

    Returns:
        the loss, and `aux`, which is empty: nothing is stored.
    """
    tokens, segments = batch["tokens"], batch.get("segments")
    own = None if segments is None else segments[:, :-1]
    x, _ = model.hidden(tokens[:, :-1], rngs=rngs, segments=own)
    return chunked_cross_entropy(x, model.embed.embedding[...], tokens[:, 1:]), {}
