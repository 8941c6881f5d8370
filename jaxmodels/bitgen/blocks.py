"""The blocks of bitgen, whose linears are all BitNet's, each with its own RMS norm.

BitNet b1.58 normalises the same places: its blocks have a norm before attention and feed-forward
(here of `qkv` and `up`) and a sub-norm before the last product of each (of `proj` and `out`). It
rounds queries, keys and values as three matrices, where `qkv` is rounded as one with one scale.
"""

import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Bool, Float

from jaxmodels.bitgen.bitlinear import BitLinear
from jaxmodels.bitgen.config import Config
from jaxmodels.layers.attention import attention
from jaxmodels.layers.cache import KeysValues, KVCache
from jaxmodels.layers.dropout import dropout
from jaxmodels.layers.no_recompute import no_recompute
from jaxmodels.layers.remat import remat
from jaxmodels.layers.sharding import constrain

Hidden = Float[Array, "b t d"]
Mask = Bool[Array, "#b #t all"]
Heads = tuple[Float[Array, "b s h k"], Float[Array, "b s h k"]]


def _heads(x: Array, parts: int, heads: int) -> Array:
    return rearrange(x, "b t (n h k) -> n b t h k", n=parts, h=heads)


class Attention(nnx.Module):
    """Self-attention of any kind."""

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        self.heads = cfg.heads
        self.qkv = BitLinear(cfg.dim, 3 * cfg.dim, rngs=rngs)
        self.proj = BitLinear(cfg.dim, cfg.dim, rngs=rngs)

    def __call__(
        self, x: Hidden, mask: Mask, cache: KVCache | None, layer: int
    ) -> tuple[Hidden, KeysValues | None]:
        """The layer's output, to be added to x, and the updated cache (None without one).

        The mask is True where a query may see a key; with a cache it is not used.
        """
        q, k, v = _heads(self.qkv(x), 3, self.heads)
        if cache is None:
            out, kept = attention(q, k, v, jnp.broadcast_to(mask, (*q.shape[:2], k.shape[1]))), None
        else:
            out, kept = cache.attend(layer, q, k, v)
        return self.proj(rearrange(out, "b t h k -> b t (h k)")), kept


class CrossAttention(nnx.Module):
    """Attention to another sequence."""

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        self.heads = cfg.heads
        self.q = BitLinear(cfg.dim, cfg.dim, rngs=rngs)
        self.kv = BitLinear(cfg.dim, 2 * cfg.dim, rngs=rngs)
        self.proj = BitLinear(cfg.dim, cfg.dim, rngs=rngs)

    def seen(self, other: Float[Array, "b s d"]) -> Heads:
        """Keys and values of the other sequence."""
        k, v = _heads(self.kv(other), 2, self.heads)
        return k, v

    def __call__(self, x: Hidden, seen: Heads, mask: Bool[Array, "b s"]) -> Hidden:
        """The layer's output, to be added to x; queries see the keys where the mask is True."""
        q = _heads(self.q(x), 1, self.heads)[0]
        everyone = jnp.broadcast_to(mask[:, None], (*q.shape[:2], mask.shape[1]))
        return self.proj(rearrange(attention(q, *seen, everyone), "b t h k -> b t (h k)"))


class Mlp(nnx.Module):
    """Two layers with a squared ReLU between them.

    BitNet b1.58's feed-forward is gated, down(norm(relu(gate(x))² · up(x))); this one has no gate,
    and so two thirds of its weights at the same width. BitNet's norm before the last product
    (`ffn_sub_norm` in transformers) is the norm of `out`.
    """

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        self.up = BitLinear(cfg.dim, cfg.hidden, rngs=rngs)
        self.out = BitLinear(cfg.hidden, cfg.dim, rngs=rngs)

    def __call__(self, x: Hidden) -> Hidden:
        """The layer's output, to be added to x."""
        hidden = jnp.square(nnx.relu(self.up(x)))
        return self.out(constrain(hidden, "data", ..., "model"))


class Block(nnx.Module):
    """Self-attention, cross-attention if the block has `cross`, and feed-forward.

    Cross-attention is scaled by a learned gate that starts at 0 (FIBER), so a fused encoder starts
    as two separate ones. The decoder's has no gate, since the image reaches it in no other way.
    """

    def __init__(self, cfg: Config, *, cross: bool = False, gated: bool = True, rngs: nnx.Rngs):
        self.config = cfg
        self.attn = Attention(cfg, rngs=rngs)
        if cross:
            self.cross = CrossAttention(cfg, rngs=rngs)
            if gated:
                self.gate = nnx.Param(jnp.zeros(()))
        self.mlp = Mlp(cfg, rngs=rngs)

    def __call__(
        self,
        x: Hidden,
        mask: Mask,
        seen: Heads | None = None,
        seen_mask: Bool[Array, "b s"] | None = None,
        rngs: nnx.Rngs | None = None,
        cache: KVCache | None = None,
        layer: int = 0,
    ) -> tuple[Hidden, KeysValues | None]:
        """The float32 residual stream, and the updated cache.

        Args:
            x: the residual stream.
            mask: which keys a query may see; not used with a cache.
            seen: keys and values of another sequence (`cross.seen`); None: no cross-attention.
            seen_mask: True where the other sequence may be seen.
            rngs: has the stream `dropout`; None: no dropout.
            cache: of the decoder.
            layer: index of the block in the cache.
        """
        out, kept = self.attn(x, mask, cache, layer)
        x = self._add(x, out, rngs)
        if seen is not None and seen_mask is not None:
            out = self.cross(x, seen, seen_mask)
            x = self._add(x, self.gate[...] * out if hasattr(self, "gate") else out, rngs)
        return self._add(x, self.mlp(x), rngs), kept

    def _add(self, x: Array, out: Array, rngs: nnx.Rngs | None) -> Array:
        if rngs is not None:
            out = dropout(out, self.config.dropout, rngs.dropout())
        return no_recompute(constrain(x + out, "data", ...))


def through(
    block: Block,
    policy: str,
    x: Hidden,
    mask: Mask,
    seen: Heads | None = None,
    seen_mask: Bool[Array, "b s"] | None = None,
    rngs: nnx.Rngs | None = None,
) -> Hidden:
    """A block without a cache, under the policy of `Recipe.remat`."""
    return remat(_run, policy)(block, x, mask, seen, seen_mask, rngs)


def _run(
    block: Block,
    x: Hidden,
    mask: Mask,
    seen: Heads | None,
    seen_mask: Bool[Array, "b s"] | None,
    rngs: nnx.Rngs | None,
) -> Hidden:
    return block(x, mask, seen, seen_mask, rngs)[0]
