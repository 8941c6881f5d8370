"""The causal decoder of bitgen and its cache.

Position 0 is a learned start; token i of a text is at position i + 1 and predicts token i + 1.
"""

from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from jaxmodels.bitgen.blocks import Block, Heads, through
from jaxmodels.bitgen.config import Config
from jaxmodels.layers.attention import causal_mask
from jaxmodels.layers.cache import KVCache
from jaxmodels.layers.norm import layer_norm
from jaxmodels.layers.precision import to_float32


class Cache(NamedTuple):
    """Keys and values of the text so far, with its start, and of the sequence it attends to."""

    own: KVCache
    seen: list[Heads]
    sees: Bool[Array, "b s"]

    def grown(self, size: int) -> "Cache":
        """The same with room for `size` tokens."""
        return self._replace(own=self.own.grown(size + 1))


class Decoder(nnx.Module):
    """Blocks with causal self-attention, and cross-attention without a gate."""

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        self.config = cfg
        self.start = nnx.Param(nnx.initializers.normal(0.02)(rngs.params(), (cfg.dim,)))
        self.blocks = nnx.List(
            [Block(cfg, cross=True, gated=False, rngs=rngs) for _ in range(cfg.decoder_layers)]
        )
        self.norm = nnx.RMSNorm(cfg.dim, rngs=rngs)

    def first(self, batch: int) -> Float[Array, "b 1 d"]:
        """The embedding at position 0, float32."""
        start = to_float32(self.start[...])
        return jnp.broadcast_to(start, (batch, 1, len(start)))

    def seen(self, others: Float[Array, "b s d"]) -> list[Heads]:
        """Keys and values of the sequence that is attended to, for each layer."""
        return [block.cross.seen(others) for block in self.blocks]

    def hidden(
        self,
        x: Float[Array, "b t d"],
        seen: list[Heads],
        sees: Bool[Array, "b s"],
        rngs: nnx.Rngs | None = None,
        policy: str = "none",
    ) -> Float[Array, "b t d"]:
        """The head's inputs for a whole text, in the parameters' dtype; `policy` is as
        `Recipe.remat`."""
        mask = causal_mask(x.shape[1])[None]
        for block, heads in zip(self.blocks, seen, strict=True):
            x = through(block, policy, x, mask, heads, sees, rngs)
        return layer_norm(self.norm, x)

    def empty(
        self,
        batch: int,
        size: int,
        dtype: jnp.dtype,
        seen: list[Heads],
        sees: Bool[Array, "b s"],
    ) -> Cache:
        """A cache for `size` tokens after the start."""
        cfg = self.config
        heads = (cfg.heads,) * cfg.decoder_layers
        return Cache(KVCache.empty(heads, cfg.dim, batch, size + 1, dtype), seen, sees)

    def step(self, x: Float[Array, "b t d"], cache: Cache) -> tuple[Float[Array, "b t d"], Cache]:
        """The head's inputs for the next tokens of a text, and the cache with these added."""
        t, kept = x.shape[1], []
        mask = jnp.ones((1, 1, 1), bool)  # not used with a cache
        pairs = zip(self.blocks, cache.seen, strict=True)
        for layer, (block, heads) in enumerate(pairs):
            x, kv = block(x, mask, heads, cache.sees, None, cache.own, layer)
            kept.append(kv)
        keys, values = zip(*kept, strict=True)
        own = KVCache(keys, values, cache.own.length + t)
        return layer_norm(self.norm, x), cache._replace(own=own)
