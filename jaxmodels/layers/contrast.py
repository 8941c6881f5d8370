"""Contrast of images and texts with a queue, as FIBER does it (Dou et al. 2022,
arXiv:2206.07643).

Captions of one image are not negatives of each other: rows of the same image, or of the same
words, are all positives of each other, each with an equal share of the target, also against
the queue, which keeps the number of each image. The queue is filled after the loss, and only the
rows that it has been filled with count.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from jaxmodels.layers.blocks import HIDDEN
from jaxmodels.layers.precision import accum_dtype

# FIBER keeps the temperature between these.
COLDEST, WARMEST = 0.001, 1.0


class QueueState(nnx.Variable):
    """State of the queue, which is not trained."""


class Queue(nnx.Module):
    """The features of the last n rows, a ring."""

    def __init__(self, rows: int, dim: int):
        self.text = QueueState(jnp.zeros((rows, dim)))
        self.image = QueueState(jnp.zeros((rows, dim)))
        self.ids = QueueState(jnp.zeros(rows, jnp.int32))
        self.total = QueueState(jnp.zeros((), jnp.int32))

    def filled(self) -> Bool[Array, "n"]:
        """Which places hold a row."""
        return jnp.arange(len(self.ids)) < self.total[...]

    def places(self, rows: int) -> Int[Array, "r"]:
        """Where the next rows go: the places of the oldest, of more rows than there are places the
        last ones only."""
        n = len(self.ids)
        return (self.total[...] + jnp.arange(min(rows, n))) % n

    def push(
        self, text: Float[Array, "b d"], image: Float[Array, "b d"], ids: Int[Array, "b"]
    ) -> None:
        """Puts rows in their `places`."""
        n = len(self.ids)
        text, image, ids = text[-n:], image[-n:], ids[-n:]
        places = self.places(len(ids))
        self.text.set_value(self.text[...].at[places].set(text.astype(jnp.float32)))
        self.image.set_value(self.image[...].at[places].set(image.astype(jnp.float32)))
        self.ids.set_value(self.ids[...].at[places].set(ids))
        # Counted up to 2n only, so that it never overflows: what matters is the place and whether
        # all are filled.
        total = self.total[...] + len(ids)
        self.total.set_value(jnp.where(total >= 2 * n, n + total % n, total))


class Contrast(NamedTuple):
    """What comes of comparing every text with every image."""

    loss: Float[Array, ""]
    acc_t2i: Float[Array, ""]
    acc_i2t: Float[Array, ""]
    t2i: Float[Array, "b n"]
    """Similarities over temperature with the batch and then the queue, texts in rows."""
    i2t: Float[Array, "b n"]
    same: Bool[Array, "b n"]
    """Which are no negatives: of the same image or words, or an empty place of the queue."""


def clamped(temperature: Float[Array, ""]) -> Float[Array, ""]:
    """The temperature within its bounds; the gradient passes, so that it can come back."""
    inside = jax.lax.stop_gradient(jnp.clip(temperature, COLDEST, WARMEST))
    return inside + (temperature - jax.lax.stop_gradient(temperature))


def alike(ids: Int[Array, "b"], tokens: Int[Array, "b t"]) -> Bool[Array, "b b"]:
    """Which rows are of the same image or of the same words."""
    words = (tokens[:, None] == tokens[None]).all(axis=-1)
    return (ids[:, None] == ids[None]) | words


def contrast(
    queries: tuple[Float[Array, "b d"], Float[Array, "b d"]],
    keys: tuple[Float[Array, "b d"], Float[Array, "b d"]],
    queue: Queue | None,
    ids: Int[Array, "b"],
    same: Bool[Array, "b b"],
    temperature: Float[Array, ""],
) -> Contrast:
    """Cross-entropy of each text over all images and of each image over all texts.

    Args:
        queries: unit features of texts and of images; gradients go through them alone.
        keys: the same features, or those of a momentum encoder.
        queue: rows of earlier batches; None: only those of the batch are compared.
        ids: the number of each row's image.
        same: which rows of the batch belong together (`alike`).
        temperature: divides the cosines.
    """
    allowed = jnp.ones(len(ids), bool)
    positive = same
    if queue is not None:
        filled = queue.filled()
        allowed = jnp.concatenate([allowed, filled])
        earlier = (ids[:, None] == queue.ids[...]) & filled
        positive = jnp.concatenate([same, earlier], axis=1)
    target = positive / positive.sum(axis=1, keepdims=True)
    b = len(ids)
    losses, accuracies, compared = [], [], []
    held = (None, None) if queue is None else (queue.image[...], queue.text[...])
    for query, key, old in zip(queries, keys[::-1], held, strict=True):
        everything = key if old is None else jnp.concatenate([key, old.astype(key.dtype)])
        product = jnp.einsum(
            "bd,nd->bn",
            query,
            jax.lax.stop_gradient(everything),
            preferred_element_type=accum_dtype(query.dtype),
        )
        sims = product / temperature
        scores = jax.nn.log_softmax(jnp.where(allowed, sims, HIDDEN), axis=1)
        losses.append(-(target * scores).sum(axis=1).mean())
        best = sims[:, :b].argmax(axis=1)
        accuracies.append(same[jnp.arange(b), best].mean(dtype=jnp.float32))
        compared.append(jax.lax.stop_gradient(sims))
    (acc_t2i, acc_i2t), (t2i, i2t) = accuracies, compared
    loss = (losses[0] + losses[1]) / 2
    return Contrast(loss, acc_t2i, acc_i2t, t2i, i2t, positive | ~allowed)
