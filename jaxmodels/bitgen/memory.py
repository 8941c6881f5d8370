"""The memory of a bitgen model: the learned parameters of `larimar`, and what was written."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float

from jaxmodels.bitgen import larimar
from jaxmodels.bitgen.config import Config
from jaxmodels.bitgen.larimar import Prior, SufficientStats
from jaxmodels.layers.linear import Linear
from jaxmodels.layers.precision import to_float32


class Written(nnx.Variable):
    """The memory's contents: state that is saved with the model, but not trained."""


class Episode(NamedTuple):
    """The result of writing the rows of a batch and reading them back."""

    codes: Float[Array, "b c"]
    """The codes read, with the noise of training."""
    divergence: Float[Array, ""]
    """KL of slots and addresses, in nats for each number."""
    utilization: Float[Array, ""]
    quality: Float[Array, ""]
    """Mean cosine of written and read codes, without noise."""


class Memory(nnx.Module):
    """m slots; items have features as keys, and codes of texts as values."""

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        self.config = cfg
        m, d = cfg.slots, cfg.dim
        # As orthogonal as possible, so that the slots cover all directions, and of a length at
        # which addresses of unit keys are about 1 in each slot, as under their prior.
        self.keys = nnx.Param(nnx.initializers.orthogonal(m**-0.5)(rngs.params(), (m, d)))
        self.mean = nnx.Param(nnx.initializers.normal(0.02)(rngs.params(), (m, d)))
        self.log_variance = nnx.Param(jnp.zeros(m))
        self.address_log_variance = nnx.Param(jnp.full(m, -6.0, jnp.float32))
        self.code = Linear(d, d, rngs=rngs)
        self.norm = nnx.LayerNorm(d, use_scale=False, use_bias=False, rngs=rngs)
        self.out = Linear(d, d, rngs=rngs)
        self.gram, self.total, self.count = (Written(x) for x in SufficientStats.nothing(m, d))

    @property
    def stats(self) -> SufficientStats:
        """The statistics of what was written into this memory."""
        return SufficientStats(self.gram[...], self.total[...], self.count[...])

    def set(self, stats: SufficientStats) -> None:
        """Stores new statistics, as `larimar.write` or `forget` returned them."""
        self.gram[...], self.total[...], self.count[...] = stats

    @property
    def prior(self) -> Prior:
        """The distribution of the slots of an empty memory, float32."""
        return Prior(to_float32(self.mean[...]), to_float32(self.log_variance[...]))

    def codes(self, pooled: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        """The codes of texts, float32 of mean 0 and variance 1, from the mean over their tokens."""
        return self.norm(to_float32(self.code(pooled.astype(self.code.kernel[...].dtype))))

    def address(self, features: Float[Array, "*b d"]) -> Float[Array, "*b m"]:
        """The addresses of unit features, the keys; float32."""
        cfg = self.config
        return larimar.address(
            to_float32(features), to_float32(self.keys[...]), cfg.noise, cfg.addressing
        )

    def read(
        self,
        features: Float[Array, "b d"],
        stats: SufficientStats | None = None,
        noise: Float[Array, "b m"] | None = None,
    ) -> Float[Array, "b d"]:
        """The codes at these keys, float32.

        Args:
            features: unit features of texts or images.
            stats: of the memory to read; by default this one's.
            noise: standard normal numbers to draw addresses with; None reads at their mean.
        """
        believed = larimar.posterior(self.prior, stats or self.stats, self.config.noise)
        w = self.address(features)
        if noise is not None:
            w = w + jnp.exp(0.5 * to_float32(self.address_log_variance[...])) * noise
        return larimar.read(believed.mean, w)

    def token(self, codes: Float[Array, "b d"]) -> Float[Array, "b 1 d"]:
        """A code as one token that the decoder attends to."""
        return to_float32(self.out(codes.astype(self.out.kernel[...].dtype)))[:, None]

    def episode(
        self, features: Float[Array, "b d"], codes: Float[Array, "b d"], rngs: nnx.Rngs | None
    ) -> Episode:
        """Writes the rows into empty memories, a few into each, and reads them back.

        Each memory gets at most half as many rows as it has slots. With rngs, noise is added to
        keys and codes when they are written, and to addresses when they are read.
        """
        cfg, b = self.config, len(codes)
        size = next(n for n in range(max(cfg.slots // 2, 1), 0, -1) if b % n == 0)
        keys, values = (rearrange(x, "(g n) d -> g n d", n=size) for x in (features, codes))
        at, written = self.address(keys), values
        if rngs is not None:
            at = self.address(keys + cfg.noise * _normal(keys.shape, rngs))
            written = values + cfg.noise * _normal(values.shape, rngs)
        empty = SufficientStats.nothing(cfg.slots, cfg.dim)
        stats = larimar.write(empty, at, written)
        believed = larimar.posterior(self.prior, stats, cfg.noise)
        mean = self.address(keys)
        spread = to_float32(self.address_log_variance[...])
        w = mean if rngs is None else mean + jnp.exp(0.5 * spread) * _normal(mean.shape, rngs)
        divergence = larimar.divergence(self.prior, believed).mean()
        divergence += larimar.address_divergence(mean, spread).mean()
        again = larimar.read(believed.mean, mean)
        lengths = jnp.linalg.norm(again, axis=-1) * jnp.linalg.norm(values, axis=-1)
        quality = ((again * values).sum(axis=-1) / jnp.maximum(lengths, 1e-6)).mean()
        utilization = larimar.utilization(self.prior, believed).mean()
        codes = rearrange(larimar.read(believed.mean, w), "g n d -> (g n) d")
        return Episode(codes, divergence, utilization, quality)


def _normal(shape: tuple[int, ...], rngs: Any) -> Array:
    return jax.random.normal(rngs.dropout(), shape)
