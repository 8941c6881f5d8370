"""The episodic memory: slots that are read by cosine and overwritten in turn.

Source: seed 004 (its GPM shares only names with Larimar's). All tokens read the same draw of the
memory, mean plus noise, from the five most similar slots each. In training, the tokens with the
longest queries then overwrite the slots that were written least often.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxmodels.bitgen_stage1.config import Config
from jaxmodels.bitgen_stage1.parts import apply, linear, no_gradient, norm, unit
from jaxmodels.bitgen_stage1.state import Buffer
from jaxmodels.layers.precision import to_float32

READ = 5  # slots that a token reads
SHARE = 0.5  # weight of the value read when it is added to the query
KEPT = 0.9  # share of a slot's old value when it is written


class Recall(NamedTuple):
    """The result of a read, for each token."""

    queries: Float[Array, "b t d"]
    slots: Int[Array, "b t k"]
    """The most similar slots, the most similar first."""
    scores: Float[Array, "b t k"]
    """Cosine times the slot's quality."""
    weights: Float[Array, "b t k"]
    """Softmax of the scores."""


class MemoryWrite(NamedTuple):
    """What `commit` writes after a training pass."""

    slots: Int[Array, "n"]
    queries: Float[Array, "n d"]
    """The value for each of the slots."""
    hits: Float[Array, "m"]
    """1 for a slot that any token read."""


class Memory(nnx.Module):
    """Reads the memory for every token and adds the result to it."""

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        self.query = linear(cfg.dim, cfg.dim, rngs=rngs)
        init = nnx.initializers.xavier_uniform()
        self.mean = nnx.Param(init(rngs.params(), (cfg.slots, cfg.dim)))
        self.logvar = nnx.Param(jnp.zeros(1))
        self.out = linear(cfg.dim, cfg.dim, rngs=rngs)
        self.norm = norm(cfg.dim, rngs=rngs)
        self.read_count = Buffer(jnp.zeros(cfg.slots))
        self.write_count = Buffer(jnp.zeros(cfg.slots))
        self.quality = Buffer(jnp.ones(cfg.slots))
        self.age = Buffer(jnp.zeros(cfg.slots))  # the seed never changes it

    def __call__(
        self, x: Float[Array, "b t d"], noise: Float[Array, "m d"] | None
    ) -> tuple[Float[Array, "b t d"], Recall]:
        """x with the value read added, from the mean or mean + exp(logvar / 2) · noise."""
        queries = to_float32(apply(self.query, x))
        memory = self.drawn(noise)
        recall = self.read(queries, memory)
        picked = jax.nn.one_hot(recall.slots, memory.shape[0], dtype=recall.weights.dtype)
        weights = jnp.sum(picked * recall.weights[..., None], axis=-2)
        dtype = self.mean[...].dtype
        found = jnp.einsum("btm,md->btd", weights.astype(dtype), memory.astype(dtype))
        return self.norm(x + apply(self.out, queries + SHARE * found)), recall

    def drawn(self, noise: Float[Array, "m d"] | None) -> Float[Array, "m d"]:
        """The memory to read: its mean, or a draw if there is noise."""
        mean = to_float32(self.mean[...])
        return mean if noise is None else mean + jnp.exp(to_float32(self.logvar[...]) / 2) * noise

    def read(self, queries: Float[Array, "b t d"], memory: Float[Array, "m d"]) -> Recall:
        """The slots most similar to each query."""
        dtype = self.mean[...].dtype
        near = jnp.einsum(
            "btd,md->btm",
            unit(queries, 1e-12).astype(dtype),
            unit(memory, 1e-12).astype(dtype),
            preferred_element_type=queries.dtype,
        )
        scores, slots = jax.lax.top_k(near * self.quality[...], min(READ, memory.shape[0]))
        return Recall(queries, slots, scores, jax.nn.softmax(scores, axis=-1))

    def to_write(self, recall: Recall) -> MemoryWrite:
        """Which tokens to write where: the longest queries, to the slots written least often."""
        slots = self.mean.shape[0]
        queries = no_gradient(rearrange(recall.queries, "b t d -> (b t) d"))
        count = min(len(queries), slots)
        longest = jax.lax.top_k(jnp.linalg.norm(queries, axis=-1), count)[1]
        least = jnp.argsort(self.write_count[...], stable=True)[:count]
        hits = jnp.zeros(slots).at[recall.slots.reshape(-1)].set(1)
        return MemoryWrite(least, queries[longest], hits)

    def after(self, written: MemoryWrite) -> Float[Array, "m d"]:
        """The mean after the write."""
        mean = to_float32(self.mean[...])
        new = KEPT * mean[written.slots] + (1 - KEPT) * written.queries
        return mean.at[written.slots].set(new)

    def divergence(self, mean: Float[Array, "m d"]) -> Float[Array, ""]:
        """½ (exp(logvar) + mean(μ²) − 1 − logvar): the seed's, with a scalar variance."""
        logvar = to_float32(self.logvar[...])[0]
        return 0.5 * (jnp.exp(logvar) + jnp.mean(mean * mean) - 1 - logvar)
