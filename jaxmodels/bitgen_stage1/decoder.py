"""The text decoder; all its linear layers are ternary in evaluation. Source: seed 004."""

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float

from jaxmodels.bitgen_stage1.bitlinear import BitLinear
from jaxmodels.bitgen_stage1.config import Config
from jaxmodels.bitgen_stage1.parts import drop, norm
from jaxmodels.layers.attention import self_attention
from jaxmodels.layers.no_recompute import no_recompute
from jaxmodels.layers.precision import to_float32
from jaxmodels.layers.remat import remat

Hidden = Float[Array, "b t d"]


class Attention(nnx.Module):
    """Causal self-attention, without dropout."""

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        self.heads = cfg.heads
        self.q = BitLinear(cfg.dim, cfg.dim, rngs=rngs)
        self.k = BitLinear(cfg.dim, cfg.dim, rngs=rngs)
        self.v = BitLinear(cfg.dim, cfg.dim, rngs=rngs)
        self.proj = BitLinear(cfg.dim, cfg.dim, rngs=rngs)

    def __call__(self, x: Hidden, quantised: bool) -> Hidden:
        """The layer's output, to be added to x."""
        q, k, v = (
            rearrange(part(x, quantised=quantised), "b t (h k) -> b t h k", h=self.heads)
            for part in (self.q, self.k, self.v)
        )
        return self.proj(
            rearrange(self_attention(q, k, v), "b t h k -> b t (h k)"), quantised=quantised
        )


class Mlp(nnx.Module):
    """Two ternary layers with the exact GELU between."""

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        self.rate = cfg.dropout
        self.up = BitLinear(cfg.dim, cfg.hidden, rngs=rngs)
        self.out = BitLinear(cfg.hidden, cfg.dim, rngs=rngs)

    def __call__(self, x: Hidden, rngs: nnx.Rngs | None) -> Hidden:
        """The layer's output, to be added to x."""
        quantised = rngs is None
        x = jax.nn.gelu(self.up(x, quantised=quantised), approximate=False)
        return self.out(drop(x, self.rate, rngs), quantised=quantised)


class Block(nnx.Module):
    """Pre-norm: self-attention, the encoder's mean added to every token, feed-forward."""

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        self.rate = cfg.dropout
        self.norm1 = norm(cfg.dim, rngs=rngs)
        self.attn = Attention(cfg, rngs=rngs)
        # The seed computes this norm and discards the result.
        self.norm2 = norm(cfg.dim, rngs=rngs)
        self.context = BitLinear(cfg.dim, cfg.dim, rngs=rngs)
        self.norm3 = norm(cfg.dim, rngs=rngs)
        self.mlp = Mlp(cfg, rngs=rngs)

    def __call__(self, y: Hidden, source: Float[Array, "b d"], rngs: nnx.Rngs | None) -> Hidden:
        """The residual stream; `source` is the mean of the encoder's output."""
        quantised = rngs is None
        y = no_recompute(y + drop(self.attn(self.norm1(y), quantised), self.rate, rngs))
        context = self.context(source, quantised=quantised)[:, None]
        y = y + drop(jnp.broadcast_to(context, y.shape), self.rate, rngs)
        return no_recompute(y + drop(self.mlp(self.norm3(y), rngs), self.rate, rngs))


class Decoder(nnx.Module):
    """Predicts a text from itself and the mean of the encoder's output."""

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        self.blocks = nnx.List([Block(cfg, rngs=rngs) for _ in range(cfg.decoder_layers)])
        self.norm = norm(cfg.dim, rngs=rngs)
        self.head = BitLinear(cfg.dim, cfg.vocab, rngs=rngs)

    def __call__(
        self,
        y: Float[Array, "b u d"],
        embeddings: Float[Array, "b t d"],
        rngs: nnx.Rngs | None,
        policy: str,
    ) -> Float[Array, "b u d"]:
        """The head's inputs for the embedded targets y; `policy` is one of `layers/remat.py`."""
        source = embeddings.mean(axis=1)
        block = remat(Block.__call__, policy)
        for layer in self.blocks:
            y = block(layer, y, source, rngs)
        return self.norm(y)

    def logits(self, x: Float[Array, "*b d"], *, quantised: bool) -> Float[Array, "*b v"]:
        """float32 logits, from the output of a call."""
        return to_float32(self.head(x, quantised=quantised))
