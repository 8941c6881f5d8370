"""The model and its loss. Source: Touvron et al. 2023, and transformers' LlamaForCausalLM.

Notable: no biases; rotary pairs lie half a head apart; several queries share a head of keys; the
head is not the embedding. The residual stream is always float32.
"""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxmodels.layers.attention import self_attention
from jaxmodels.layers.cache import KeysValues, KVCache
from jaxmodels.layers.heads import heads_of, join_heads
from jaxmodels.layers.linear import Linear
from jaxmodels.layers.losses import chunked_cross_entropy
from jaxmodels.layers.no_recompute import no_recompute
from jaxmodels.layers.norm import dtype_behind, layer_norm
from jaxmodels.layers.remat import remat
from jaxmodels.layers.rotary import HalfRotation, rotation
from jaxmodels.layers.sharding import constrain
from llama.config import Config

_INIT = nnx.initializers.normal(0.02)
Hidden = Float[Array, "b t d"]
Segments = Int[Array, "b t"] | None


def _linear(inputs: int, outputs: int, rngs: nnx.Rngs, **options: Any) -> Linear:
    return Linear(inputs, outputs, use_bias=False, kernel_init=_INIT, rngs=rngs, **options)


class Attention(nnx.Module):
    """Causal self-attention with rotary positions and grouped queries."""

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        self.heads, self.kv_heads = cfg.heads, cfg.kv_heads
        of_keys = cfg.dim // cfg.heads * cfg.kv_heads
        self.q = _linear(cfg.dim, cfg.dim, rngs)
        self.k, self.v = (_linear(cfg.dim, of_keys, rngs) for _ in range(2))
        self.proj = _linear(cfg.dim, cfg.dim, rngs)

    def __call__(
        self, x: Hidden, rope: HalfRotation, segments: Segments, cache: KVCache | None, layer: int
    ) -> tuple[Hidden, KeysValues | None]:
        """What the block adds, and the keys and values to remember (None without a cache)."""
        q, k = heads_of(self.q, x, self.heads, rope), heads_of(self.k, x, self.kv_heads, rope)
        v = heads_of(self.v, x, self.kv_heads)
        if cache is None:
            return join_heads(self.proj, self_attention(q, k, v, segments=segments)), None
        out, kept = cache.attend(layer, q, k, v)
        return join_heads(self.proj, out), kept


class Mlp(nnx.Module):
    """SwiGLU: silu(gate(x)) · up(x)."""

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        self.gate, self.up = (_linear(cfg.dim, cfg.hidden, rngs) for _ in range(2))
        self.down = _linear(cfg.hidden, cfg.dim, rngs)

    def __call__(self, x: Hidden) -> Hidden:
        """What the block adds."""
        hidden = nnx.silu(self.gate(x)) * self.up(x)
        return self.down(constrain(hidden, "data", ..., "model"))


class Block(nnx.Module):
    """Pre-norm attention and feed-forward."""

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        self.norm1 = nnx.RMSNorm(cfg.dim, epsilon=cfg.eps, rngs=rngs)
        self.attn = Attention(cfg, rngs=rngs)
        self.norm2 = nnx.RMSNorm(cfg.dim, epsilon=cfg.eps, rngs=rngs)
        self.mlp = Mlp(cfg, rngs=rngs)

    def __call__(
        self, x: Hidden, rope: HalfRotation, segments: Segments, cache: KVCache | None, layer: int
    ) -> tuple[Hidden, KeysValues | None]:
        """The float32 residual stream, and the keys and values to remember."""
        out, kept = self.attn(layer_norm(self.norm1, x), rope, segments, cache, layer)
        x = no_recompute(constrain(x + out, "data", ...))
        x = x + self.mlp(layer_norm(self.norm2, x))
        return no_recompute(constrain(x, "data", ...)), kept


class Model(nnx.Module):
    """llama. Nothing in it is random, so every call is deterministic."""

    # Rotary positions: only distances matter, so a full cache may overwrite its oldest token.
    relative = True

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        self.config = cfg
        self.remat = "none"
        self.embed = nnx.Embed(cfg.vocab, cfg.dim, embedding_init=_INIT, rngs=rngs)
        self.blocks = nnx.List([Block(cfg, rngs=rngs) for _ in range(cfg.layers)])
        self.norm = nnx.RMSNorm(cfg.dim, epsilon=cfg.eps, rngs=rngs)
        self.head = _linear(cfg.dim, cfg.vocab, rngs, preferred_element_type=jnp.float32)

    def __call__(
        self, tokens: Int[Array, "b t"], cache: KVCache | None = None
    ) -> tuple[Float[Array, "b t v"], KVCache | None]:
        """float32 logits of the token after each token, and the cache with the tokens added;
        without a cache (`init_cache`), nothing comes before the tokens."""
        x, cache = self.hidden(tokens, cache)
        return self.logits(x), cache

    def logits(self, x: Hidden) -> Float[Array, "b t v"]:
        """The head, in float32, on what `hidden` returns."""
        return self.head(x)

    def hidden(
        self,
        tokens: Int[Array, "b t"],
        cache: KVCache | None = None,
        segments: Segments = None,
    ) -> tuple[Hidden, KVCache | None]:
        """What the head multiplies; with `segments`, a token sees its own document only."""
        cfg, t = self.config, tokens.shape[1]
        positions = jnp.arange(t) if cache is None else cache.positions(t)
        rope = HalfRotation(*rotation(positions, cfg.dim // cfg.heads, cfg.rope_base))
        policy = self.remat if cache is None else "none"  # decoding has no backward pass
        block = remat(Block.__call__, policy, static=("layer",))
        x, kept = self.embed.embedding[...][tokens].astype(jnp.float32), []
        x = constrain(x, "data", ...)
        for i, layer in enumerate(self.blocks):
            x, kv = block(layer, x, rope, segments, cache, i)
            kept.append(kv)
        if cache is not None:
            keys, values = zip(*kept, strict=True)
            cache = KVCache(keys, values, cache.length + t)
        return layer_norm(self.norm, x), cache

    def init_cache(self, batch: int, size: int | None = None) -> KVCache:
        """An empty cache of `batch` sequences for `size` tokens, at most the context (None)."""
        cfg = self.config
        size = min(size or cfg.context, cfg.context)
        dtype = dtype_behind(self.norm, self.embed.embedding[...])
        numbers = cfg.dim // cfg.heads * cfg.kv_heads
        return KVCache.empty((cfg.kv_heads,) * cfg.layers, numbers, batch, size, dtype)


def loss(
    model: Model, batch: dict[str, Any], rngs: nnx.Rngs | None
) -> tuple[Float[Array, ""], dict[str, Any]]:
    """Mean next-token cross-entropy in nats of `tokens` int32 [b, t+1], and an empty `aux`.

    `segments` int32 [b, t+1], if in the batch, is the document of each token.
    """
    tokens, segments = batch["tokens"], batch.get("segments")
    own = None if segments is None else segments[:, :-1]
    x, _ = model.hidden(tokens[:, :-1], segments=own)
    return chunked_cross_entropy(x, model.head.kernel[...], tokens[:, 1:], tied=False), {}
