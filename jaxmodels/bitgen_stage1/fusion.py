"""The fusion of image and text, and the features of the contrastive loss.

Source: seed 004, which names it after FIBER, although it has neither cross-attention nor a gate.
The image is one vector, the mean of its patches. The seed projects every patch and averages then;
here the average is projected, which is the same for a linear layer.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxmodels.bitgen_stage1.config import Config
from jaxmodels.bitgen_stage1.parts import apply, drop, linear, no_gradient, unit
from jaxmodels.bitgen_stage1.state import Buffer
from jaxmodels.layers.precision import to_float32


class Mlp(nnx.Module):
    """Two linear layers with ReLU between."""

    def __init__(self, fan_in: int, hidden: int, fan_out: int, *, rngs: nnx.Rngs):
        self.up = linear(fan_in, hidden, rngs=rngs)
        self.out = linear(hidden, fan_out, rngs=rngs)

    def __call__(
        self, x: Float[Array, "*b i"], rate: float, rngs: nnx.Rngs | None
    ) -> Float[Array, "*b o"]:
        """With rngs, dropout at `rate` between the layers."""
        return apply(self.out, drop(nnx.relu(apply(self.up, x)), rate, rngs))


class Fusion(nnx.Module):
    """Fuses the image into every token; holds the queues of features that serve as negatives."""

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        self.rate = cfg.dropout
        d = cfg.dim
        self.project = linear(cfg.dinov2.dim, d, rngs=rngs)
        self.text = linear(d, d, rngs=rngs)
        self.image = linear(d, d, rngs=rngs)
        self.text_itc = linear(d, d, rngs=rngs)
        self.image_itc = linear(d, d, rngs=rngs)
        # The seed creates these two poolers, but neither trains nor uses them.
        self.text_pooler = linear(d, d, rngs=rngs)
        self.image_pooler = linear(d, d, rngs=rngs)
        self.text_pooler_itc = linear(d, d, rngs=rngs)
        self.image_pooler_itc = linear(d, d, rngs=rngs)
        self.mlp = Mlp(2 * d, 2 * d, d, rngs=rngs)
        self.temperature = nnx.Param(jnp.full((), 0.07, jnp.float32))
        self.image_queue = Buffer(_columns(rngs, (d, cfg.queue)))
        self.text_queue = Buffer(_columns(rngs, (d, cfg.queue)))
        self.queue_ptr = Buffer(jnp.zeros((), jnp.int32))

    def __call__(
        self, text: Float[Array, "b t d"], image: Float[Array, "b d"], rngs: nnx.Rngs | None
    ) -> Float[Array, "b t d"]:
        """Tokens fused with the image; the text is not added to the result (a quirk)."""
        words = apply(self.text, text)
        seen = jnp.broadcast_to(apply(self.image, image)[:, None], words.shape)
        return to_float32(self.mlp(jnp.concatenate([words, seen], axis=-1), self.rate, rngs))

    def text_features(self, text: Float[Array, "b t d"]) -> Float[Array, "b d"]:
        """Unit features of texts: of their first token, before fusion (a quirk)."""
        pooled = apply(self.text_pooler_itc, apply(self.text_itc, text[:, 0]))
        return unit(jnp.tanh(to_float32(pooled)), 1e-8)

    def image_features(self, image: Float[Array, "b d"]) -> Float[Array, "b d"]:
        """Unit features of images."""
        pooled = apply(self.image_pooler_itc, apply(self.image_itc, image))
        return unit(jnp.tanh(to_float32(pooled)), 1e-8)

    def queued(
        self, text: Float[Array, "b d"], image: Float[Array, "b d"]
    ) -> tuple[Float[Array, "d n"], Float[Array, "d n"], Int[Array, ""]]:
        """The queues of texts and images with these features in place of the oldest, and the
        position of the next write."""
        rows, size = len(text), self.image_queue.shape[1]
        at = (self.queue_ptr[...] + jnp.arange(rows)) % size

        def filled(queue: Buffer, features: Array) -> Array:
            columns = no_gradient(features).T.astype(queue[...].dtype)
            return queue[...].at[:, at].set(columns)

        after = (self.queue_ptr[...] + rows) % size
        return filled(self.text_queue, text), filled(self.image_queue, image), after


def _columns(rngs: nnx.Rngs, shape: tuple[int, int]) -> jax.Array:
    """Normal draws, each column normalised to length 1."""
    drawn = jax.random.normal(rngs.params(), shape)
    return drawn / jnp.linalg.norm(drawn, axis=0)
