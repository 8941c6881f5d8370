"""The charlm model and its loss. Source: seed 002 (Beiglar/Transformer_mini, MIT).

Notable: rotary pairs are interleaved; SwiGLU takes the value first and the gate second;
the head is untied and has a bias; attention projections start near zero. The residual stream is
always float32.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxmodels.charlm.config import Config
from jaxmodels.layers.attention import self_attention
from jaxmodels.layers.cache import KeysValues, KVCache
from jaxmodels.layers.dropout import dropout
from jaxmodels.layers.heads import fused_linear, join_heads, qkv_heads
from jaxmodels.layers.linear import Linear
from jaxmodels.layers.losses import cross_entropy
from jaxmodels.layers.no_recompute import no_recompute
from jaxmodels.layers.norm import dtype_behind, layer_norm
from jaxmodels.layers.remat import remat
from jaxmodels.layers.rotary import Rotation, rotation
from jaxmodels.layers.sharding import constrain

Hidden = Float[Array, "b t d"]
Segments = Int[Array, "b t"] | None
"""The document of each token, where a row has several."""


class Steps(nnx.Variable):
    """Training passes so far; a decaying dropout rate depends on it."""


class Attention(nnx.Module):
    """Causal self-attention with rotary positions."""

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        init = nnx.initializers.variance_scaling(1e-3, "fan_avg", "uniform")
        self.heads = cfg.heads
        self.qkv = Linear(cfg.dim, 3 * cfg.dim, use_bias=False, kernel_init=init, rngs=rngs)
        self.proj = Linear(cfg.dim, cfg.dim, kernel_init=init, rngs=rngs)

    def __call__(
        self, x: Hidden, rope: Rotation, segments: Segments, cache: KVCache | None, layer: int
    ) -> tuple[Hidden, KeysValues | None]:
        """What the block adds, and the keys and values to remember (None without a cache)."""
        q, k, v = qkv_heads(self.qkv, x, self.heads, rope)
        if cache is None:
            out, kept = self_attention(q, k, v, segments=segments), None
        else:
            out, kept = cache.attend(layer, q, k, v)
        return join_heads(self.proj, out), kept


class Mlp(nnx.Module):
    """SwiGLU, value first: w · silu(v) with (w | v) = wv(x)."""

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        self.wv = Linear(cfg.dim, 2 * cfg.hidden, rngs=rngs)
        self.out = Linear(cfg.hidden, cfg.dim, rngs=rngs)

    def __call__(self, x: Hidden, rate: Float[Array, ""] | float, rngs: nnx.Rngs | None) -> Hidden:
        """What the block adds; with rngs, dropout at `rate`."""
        w, v = fused_linear(self.wv, x, 2)
        hidden = constrain(w * nnx.silu(v), "data", ..., "model")
        if rngs is not None:
            hidden = dropout(hidden, rate, rngs.dropout())
        return self.out(hidden)


class Block(nnx.Module):
    """Pre-norm attention and feed-forward."""

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        self.norm1 = nnx.LayerNorm(cfg.dim, rngs=rngs)
        self.attn = Attention(cfg, rngs=rngs)
        self.norm2 = nnx.LayerNorm(cfg.dim, rngs=rngs)
        self.mlp = Mlp(cfg, rngs=rngs)

    def __call__(
        self,
        x: Hidden,
        rope: Rotation,
        segments: Segments,
        cache: KVCache | None,
        layer: int,
        rate: Float[Array, ""] | float,
        rngs: nnx.Rngs | None,
    ) -> tuple[Hidden, KeysValues | None]:
        """The float32 residual stream, and the keys and values to remember."""
        out, kv = self.attn(layer_norm(self.norm1, x), rope, segments, cache, layer)
        x = no_recompute(constrain(x + out, "data", ...))
        x = x + self.mlp(layer_norm(self.norm2, x), rate, rngs)
        return no_recompute(constrain(x, "data", ...)), kv


class Model(nnx.Module):
    """charlm. Deterministic unless `rngs` is passed to the call."""

    # Rotary positions: only distances matter, so a full cache may turn round (see `generate`).
    relative = True

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        self.config = cfg
        self.remat = "none"
        self.embed = nnx.Embed(cfg.vocab, cfg.dim, rngs=rngs)
        self.blocks = nnx.List([Block(cfg, rngs=rngs) for _ in range(cfg.layers)])
        self.norm = nnx.LayerNorm(cfg.dim, rngs=rngs)
        self.head = Linear(
            cfg.dim,
            cfg.vocab,
            kernel_init=nnx.initializers.uniform(1e-3),
            preferred_element_type=jnp.float32,
            rngs=rngs,
        )
        self.steps = Steps(jnp.zeros((), jnp.int32))

    def __call__(
        self,
        tokens: Int[Array, "b t"],
        cache: KVCache | None = None,
        rngs: nnx.Rngs | None = None,
        segments: Int[Array, "b t"] | None = None,
    ) -> tuple[Float[Array, "b t v"], KVCache | None]:
        """Logits of the character after each token.

        Args:
            tokens: token ids.
            cache: what came before the tokens (`init_cache`); None when nothing did.
            rngs: has the stream `dropout`; passing it turns dropout on.
            segments: the document of each token, which sees no other; a cache remembers none.

        Returns:
            float32 logits, and the cache with the tokens added (None if None was given).
        """
        x, cache = self.hidden(tokens, cache, rngs, segments)
        return self.logits(x), cache

    def logits(self, x: Float[Array, "b t d"]) -> Float[Array, "b t v"]:
        """The head, in float32, on what `hidden` returns."""
        return self.head(x)

    def hidden(
        self,
        tokens: Int[Array, "b t"],
        cache: KVCache | None = None,
        rngs: nnx.Rngs | None = None,
        segments: Int[Array, "b t"] | None = None,
    ) -> tuple[Float[Array, "b t d"], KVCache | None]:
        """What the head multiplies; otherwise as the call."""
        t = tokens.shape[1]
        positions = jnp.arange(t) if cache is None else cache.positions(t)
        rope = rotation(positions, self.config.dim // self.config.heads)
        rate = self.dropout_rate()
        policy = self.remat if cache is None else "none"  # decoding has no backward pass
        block = remat(Block.__call__, policy, static=("layer",))
        x, kept = self.embed.embedding[...][tokens].astype(jnp.float32), []
        x = constrain(x, "data", ...)
        for i, layer in enumerate(self.blocks):
            x, kv = block(layer, x, rope, segments, cache, i, rate, rngs)
            kept.append(kv)
        if cache is not None:
            keys, values = zip(*kept, strict=True)
            cache = KVCache(keys, values, cache.length + t)
        return layer_norm(self.norm, x), cache

    def dropout_rate(self) -> jax.Array | float:
        """The rate now: constant, or (start − end)/(steps/scale + 1) + end."""
        cfg = self.config
        if cfg.dropout_end is None:
            return cfg.dropout
        decay = self.steps[...] / cfg.dropout_scale + 1
        return (cfg.dropout - cfg.dropout_end) / decay + cfg.dropout_end

    def init_cache(self, batch: int, size: int | None = None) -> KVCache:
        """An empty cache of `batch` sequences for `size` tokens, at most the context (None)."""
        cfg = self.config
        size = min(size or cfg.context, cfg.context)
        dtype = dtype_behind(self.norm, self.embed.embedding[...])
        return KVCache.empty((cfg.heads,) * cfg.layers, cfg.dim, batch, size, dtype)


def loss(
    model: Model, batch: dict[str, Any], rngs: nnx.Rngs | None
) -> tuple[Float[Array, ""], dict[str, Any]]:
    """Mean next-character cross-entropy in nats.

    Args:
        model: the model; it is read, never changed.
        batch: `tokens` int32 [b, t+1]; the first t are inputs, the last t are targets.
            `segments` int32 [b, t+1], if there, is the document of each token: no token sees
            another one's. Targets across a border count: the end of a text is one, and what
            begins after it.
        rngs: passed on to the model; None means no dropout.

    Returns:
        the loss, and `aux`, which is empty: nothing but the step count is stored.
    """
    tokens, segments = batch["tokens"], batch.get("segments")
    own = None if segments is None else segments[:, :-1]
    logits, _ = model(tokens[:, :-1], rngs=rngs, segments=own)
    return cross_entropy(logits, tokens[:, 1:]), {}


def commit(model: Model, aux: dict[str, Any]) -> None:
    """Counts one training pass; called between gradient and optimiser."""
    model.steps.set_value(model.steps[...] + 1)
