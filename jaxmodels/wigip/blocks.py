"""The blocks of wigip: one module whose arrays hold all of them.

So neither compile time nor the number of arrays grows with depth. Heads are an axis, as in the
seed, so a mesh never splits a head. Checkpoints of a run hold blocks of 1 MB or more one by one,
and the bridge reads them that way.
"""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Float

from jaxmodels.layers.keys import keys
from jaxmodels.layers.linear import Linear, LinearGeneral
from jaxmodels.layers.norm import layer_norm
from jaxmodels.layers.sharding import constrain
from jaxmodels.wigip.config import Config

Hidden = Float[Array, "*b d"]
# (queries, keys, values) → (the heads' outputs, the block's entry in the cache).
Attend = Callable[[Array, Array, Array], tuple[Array, Any]]


class Attention(nnx.Module):
    """Multi-head attention of any kind; all four projections have biases."""

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        heads = (cfg.heads, cfg.dim // cfg.heads)
        self.q = LinearGeneral(cfg.dim, heads, rngs=rngs)
        self.k = LinearGeneral(cfg.dim, heads, rngs=rngs)
        self.v = LinearGeneral(cfg.dim, heads, rngs=rngs)
        self.proj = LinearGeneral(heads, cfg.dim, axis=(-2, -1), rngs=rngs)

    def __call__(self, x: Hidden, attend: Attend) -> tuple[Hidden, Any]:
        """The layer's output, to be added to x, and its entry in the cache."""
        out, kept = attend(self.q(x), self.k(x), self.v(x))
        return self.proj(out), kept


class Mlp(nnx.Module):
    """Two layers with a GELU between them."""

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        self.up = Linear(cfg.dim, 4 * cfg.dim, rngs=rngs)
        self.out = Linear(4 * cfg.dim, cfg.dim, rngs=rngs)

    def __call__(self, x: Hidden) -> Hidden:
        """The layer's output, to be added to x."""
        hidden = nnx.gelu(self.up(x), approximate=True)
        return self.out(constrain(hidden, "data", ..., "model"))


class Block(nnx.Module):
    """Pre-norm attention and feed-forward."""

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        self.norm1 = nnx.LayerNorm(cfg.dim, rngs=rngs)
        self.attn = Attention(cfg, rngs=rngs)
        self.norm2 = nnx.LayerNorm(cfg.dim, rngs=rngs)
        self.mlp = Mlp(cfg, rngs=rngs)

    def __call__(self, x: Hidden, attend: Attend) -> tuple[Hidden, Any]:
        """The float32 residual stream, and the block's entry in the cache."""
        out, kept = self.attn(layer_norm(self.norm1, x), attend)
        x = constrain(x + out, "data", ...)
        return constrain(x + self.mlp(layer_norm(self.norm2, x)), "data", ...), kept


def stacked(cfg: Config, rngs: nnx.Rngs) -> Block:
    """All blocks as one module, whose parameters have a leading axis [layers]."""
    graph, _ = nnx.split(nnx.eval_shape(lambda: Block(cfg, rngs=keys(default=0))))

    def one(key: Array) -> Any:
        return nnx.split(Block(cfg, rngs=keys(default=key)))[1]

    return nnx.merge(graph, jax.vmap(one)(jax.random.split(rngs.params(), cfg.layers)))
