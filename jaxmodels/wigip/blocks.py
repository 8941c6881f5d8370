"""The blocks of wigip: one module whose arrays hold all of them.

Trace, compile time and the number of leaves so do not grow with depth. Heads are an axis, as in the
seed, so that a mesh shards heads and never splits one. A run saves blocks of 1 MB or more one by
one, and the bridge reads them so.
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
# (queries, keys, values) → what the heads found, and what to remember of the block.
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
        """What the block adds, and what to remember."""
        out, kept = attend(self.q(x), self.k(x), self.v(x))
        return self.proj(out), kept


class Mlp(nnx.Module):
    """Two layers with a GELU between them."""

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        self.up = Linear(cfg.dim, 4 * cfg.dim, rngs=rngs)
        self.out = Linear(4 * cfg.dim, cfg.dim, rngs=rngs)

    def __call__(self, x: Hidden) -> Hidden:
        """What the block adds."""
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
        """The float32 residual stream, and what to remember."""
        out, kept = self.attn(layer_norm(self.norm1, x), attend)
        x = constrain(x + out, "data", ...)
        return constrain(x + self.mlp(layer_norm(self.norm2, x)), "data", ...), kept


def stacked(cfg: Config, rngs: nnx.Rngs) -> Block:
    """All blocks as one, each parameter with a leading axis [layers]; every layer drawn anew."""
    graph, _ = nnx.split(nnx.eval_shape(lambda: Block(cfg, rngs=keys(default=0))))

    def one(key: Array) -> Any:
        return nnx.split(Block(cfg, rngs=keys(default=key)))[1]

    return nnx.merge(graph, jax.vmap(one)(jax.random.split(rngs.params(), cfg.layers)))
