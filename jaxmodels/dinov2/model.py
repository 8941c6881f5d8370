"""The DINOv2 image tower. Source: Oquab et al. 2023 (arXiv:2304.07193) and its published code.

Notable: the class token has a position, registers have none; each branch is scaled by a learned
vector (LayerScale) before it is added; GELU is exact, LayerNorm's eps 1e-6. Images of any size
that patches fill are read: positions are interpolated. `mask`, which stands for hidden patches
while the published models learn, is kept so that checkpoints are complete; nothing here reads it.
The residual stream is always float32.

Weights begin at 1/√inputs, not at 0.02 as published, and branches at a third of that: a tower of 64
numbers that began at 0.02 saw all images alike, and bitgen:tiny's contrast stayed at chance for a
thousand steps (benchmarks/LOG.md).
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxmodels.dinov2.config import Config
from jaxmodels.errors import USAGE, Problem
from jaxmodels.layers.attention import self_attention
from jaxmodels.layers.heads import heads_of, join_heads
from jaxmodels.layers.linear import Linear
from jaxmodels.layers.no_recompute import no_recompute
from jaxmodels.layers.norm import layer_norm
from jaxmodels.layers.precision import accum_dtype, to_float32
from jaxmodels.layers.remat import remat
from jaxmodels.layers.resize import bicubic
from jaxmodels.layers.sharding import constrain
from jaxmodels.layers.tiles import pad_to_tiles

_SMALL = nnx.initializers.truncated_normal(0.02)
_TINY = nnx.initializers.normal(1e-6)
_UNIT = nnx.initializers.lecun_normal()
# What is added to the residual stream starts smaller.
_ADDED = nnx.initializers.variance_scaling(0.1, "fan_in", "truncated_normal")
Hidden = Float[Array, "b t d"]
Segments = Int[Array, "b t"] | None  # of rows that fill tiles, see `layers/tiles.py`


def _linear(inputs: int, outputs: int, rngs: nnx.Rngs, added: bool = False) -> Linear:
    """Initialised by fan-in, not at 0.02 as published: a tower of width 64 that starts so small
    distinguishes images only after a thousand steps, and the contrastive loss collapses."""
    return Linear(inputs, outputs, kernel_init=_ADDED if added else _UNIT, rngs=rngs)


class Attention(nnx.Module):
    """Every token sees every token."""

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        self.heads = cfg.heads
        self.q = _linear(cfg.dim, cfg.dim, rngs)
        self.k = _linear(cfg.dim, cfg.dim, rngs)
        self.v = _linear(cfg.dim, cfg.dim, rngs)
        self.proj = _linear(cfg.dim, cfg.dim, rngs, added=True)

    def __call__(self, x: Hidden, segments: Segments) -> Hidden:
        """What the block adds, not yet scaled."""
        q, k, v = (heads_of(part, x, self.heads) for part in (self.q, self.k, self.v))
        return join_heads(self.proj, self_attention(q, k, v, causal=False, segments=segments))


class Mlp(nnx.Module):
    """Two layers with an exact GELU between them."""

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        self.fc1 = _linear(cfg.dim, cfg.hidden, rngs)
        self.fc2 = _linear(cfg.hidden, cfg.dim, rngs, added=True)

    def __call__(self, x: Hidden) -> Hidden:
        """What the block adds, not yet scaled."""
        # Only the GELU's input is kept for the backward pass: JAX would keep four arrays.
        hidden = jax.checkpoint(partial(nnx.gelu, approximate=False))(self.fc1(x))
        return self.fc2(constrain(hidden, "data", ..., "model"))


class SwiGlu(nnx.Module):
    """silu(gate(x)) · up(x), and back to the width of the stream."""

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        self.gate = _linear(cfg.dim, cfg.hidden, rngs)
        self.up = _linear(cfg.dim, cfg.hidden, rngs)
        self.down = _linear(cfg.hidden, cfg.dim, rngs, added=True)

    def __call__(self, x: Hidden) -> Hidden:
        """What the block adds, not yet scaled."""
        hidden = nnx.silu(self.gate(x)) * self.up(x)
        return self.down(constrain(hidden, "data", ..., "model"))


class Block(nnx.Module):
    """Pre-norm attention and feed-forward, each scaled by a learned vector."""

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        self.norm1 = nnx.LayerNorm(cfg.dim, rngs=rngs)
        self.attn = Attention(cfg, rngs=rngs)
        self.ls1 = nnx.Param(jnp.ones(cfg.dim))
        self.norm2 = nnx.LayerNorm(cfg.dim, rngs=rngs)
        self.mlp = (Mlp if cfg.mlp == "gelu" else SwiGlu)(cfg, rngs=rngs)
        self.ls2 = nnx.Param(jnp.ones(cfg.dim))

    def __call__(self, x: Hidden, segments: Segments) -> Hidden:
        """The float32 residual stream."""
        x = x + self.ls1[...] * self.attn(layer_norm(self.norm1, x), segments)
        x = no_recompute(constrain(x, "data", ...))
        x = x + self.ls2[...] * self.mlp(layer_norm(self.norm2, x))
        return no_recompute(constrain(x, "data", ...))


class Model(nnx.Module):
    """DINOv2. Nothing in it is random, so every call is deterministic."""

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        self.config = cfg
        self.remat = "none"
        size = (cfg.patch, cfg.patch)
        key = rngs.params
        self.patch = nnx.Conv(3, cfg.dim, size, size, padding="VALID", kernel_init=_UNIT, rngs=rngs)
        self.cls = nnx.Param(_TINY(key(), (cfg.dim,)))
        self.mask = nnx.Param(jnp.zeros(cfg.dim))
        self.pos = nnx.Param(_SMALL(key(), (1 + cfg.side**2, cfg.dim)))
        if cfg.registers:
            self.registers = nnx.Param(_TINY(key(), (cfg.registers, cfg.dim)))
        self.blocks = nnx.List([Block(cfg, rngs=rngs) for _ in range(cfg.layers)])
        self.norm = nnx.LayerNorm(cfg.dim, rngs=rngs)

    def __call__(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b t d"]:
        """What the tower sees in images.

        Args:
            images: float32, normalised as the published models have it (0 is the mean colour of
                ImageNet, 1 a standard deviation above it); height and width are multiples of
                the patch, and need not be those that the positions were learned on.

        Returns:
            float32 features after the final norm, t = 1 + registers + patches: of the class
            token, the registers, and the patches line by line.

        Raises:
            Problem: (usage) patches do not fill the images.
        """
        grid = self._grid(images.shape[1], images.shape[2])
        x = self._patches(images) + self.positions(*grid)
        cls = self.cls[...].astype(x.dtype) + self.pos[0]
        first = [cls[None]]
        if self.config.registers:
            first.append(self.registers[...])
        first = [jnp.broadcast_to(token, (len(x), *token.shape)) for token in first]
        x = constrain(jnp.concatenate([*first, x], axis=1), "data", ...)
        t = x.shape[1]
        x, segments = pad_to_tiles(x)
        block = remat(Block.__call__, self.remat)
        for layer in self.blocks:
            x = block(layer, x, segments)
        return self.norm(x[:, :t])

    def positions(self, rows: int, columns: int) -> Float[Array, "n d"]:
        """float32 positions of a grid of patches, line by line; interpolated unless it is the
        one that they were learned on."""
        side, grid = self.config.side, to_float32(self.pos[1:])
        if rows == columns == side:
            return grid
        matrices = (bicubic(side, n, self.config.interpolation) for n in (rows, columns))
        down, across = (jnp.asarray(matrix, grid.dtype) for matrix in matrices)
        square = rearrange(grid, "(r c) d -> r c d", r=side)
        # Full float32 on a TPU too, whose products otherwise round to bfloat16.
        resized = jnp.einsum("nr,mc,rcd->nmd", down, across, square, precision="highest")
        return rearrange(resized, "n m d -> (n m) d")

    def _patches(self, images: Array) -> Array:
        """The convolution, as one product for all patches: float32 [b, n, d]."""
        assert self.patch.bias is not None
        kernel, side = self.patch.kernel[...], self.config.patch
        pieces = rearrange(images, "b (r p) (c q) k -> b (r c) (p q k)", p=side, q=side)
        product: Any = jnp.einsum(
            "bne,ed->bnd",
            pieces.astype(kernel.dtype),
            rearrange(kernel, "p q k d -> (p q k) d"),
            preferred_element_type=accum_dtype(kernel.dtype),
        )
        return product + self.patch.bias[...]

    def _grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patches in an image of this size."""
        side = self.config.patch
        if height % side or width % side or not height * width:
            raise Problem(
                f"dinov2: patches of {side} pixels do not fill an image of {height} × {width}",
                why="height and width must be multiples of the patch",
                fix=f"resize or crop it, for example to {max(height // side, 1) * side} × "
                f"{max(width // side, 1) * side}",
                exit_code=USAGE,
            )
        return height // side, width // side
