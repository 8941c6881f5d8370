"""FIBER's matching of images and texts with hard negatives (Dou et al. 2022, arXiv:2206.07643).

Its contrastive loss is in `layers/contrast`, its gated cross-attention in `blocks`. FIBER's
published code draws negatives from the queue's rows as well, whose images and texts it keeps for
that purpose: `Config.queue_inputs`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, UInt8

from jaxmodels.bitgen.config import Config
from jaxmodels.dinov2.pixels import resized
from jaxmodels.layers.contrast import Queue, QueueState
from jaxmodels.layers.precision import to_float32


class Rows(NamedTuple):
    """Texts and images, padded to the model's context and resized to its images."""

    tokens: Int[Array, "b t"]
    mask: Bool[Array, "b t"]
    images: UInt8[Array, "b s s 3"]


class Queued(nnx.Module):
    """The texts and images of the queue's rows, in the same places as their features."""

    def __init__(self, cfg: Config):
        n, side = cfg.queue, cfg.image_size
        self.tokens = QueueState(jnp.zeros((n, cfg.context), jnp.int32))
        self.mask = QueueState(jnp.zeros((n, cfg.context), bool))
        self.images = QueueState(jnp.zeros((n, side, side, 3), jnp.uint8))

    def push(self, queue: Queue, rows: Rows) -> None:
        """Puts rows where the queue is about to put their features; call it first."""
        places = queue.places(len(rows.tokens))
        for name, new in rows._asdict().items():
            state = getattr(self, name)
            state.set_value(state[...].at[places].set(new[-len(places) :]))

    def alike(self, rows: Rows) -> Bool[Array, "b n"]:
        """Which texts of the queue are no negatives: of the same words, or not there. A model
        that came from a file has the features of its queue without the inputs."""
        ours, theirs = (jnp.where(x.mask, x.tokens, -1) for x in (rows, self.rows))
        return (ours[:, None] == theirs[None]).all(axis=-1) | ~self.mask[...].any(axis=-1)

    @property
    def rows(self) -> Rows:
        """What is in the queue, and zeros where nothing is yet."""
        return Rows(self.tokens[...], self.mask[...], self.images[...])

    def drawn(self, rows: Rows, texts: Int[Array, "m"], images: Int[Array, "m"]) -> Rows:
        """Texts and images by their numbers among the batch's rows and then the queue's."""
        all_rows = [jnp.concatenate(pair) for pair in zip(rows, self.rows, strict=True)]
        tokens, mask, pixels = all_rows
        return Rows(tokens[texts], mask[texts], pixels[images])


def rows_of(cfg: Config, batch: dict[str, Array], mask: Bool[Array, "b t"]) -> Rows:
    """The texts and images of a batch in the sizes of the queue."""
    images, side = batch["images"], cfg.image_size
    if images.shape[1:3] != (side, side):
        images = jnp.round(resized(images.astype(jnp.float32), side)).astype(jnp.uint8)
    beyond = ((0, 0), (0, cfg.context - mask.shape[1]))
    return Rows(jnp.pad(batch["tokens"], beyond), jnp.pad(mask, beyond), images)


def negatives(
    sims: Float[Array, "b n"], same: Bool[Array, "b n"], rngs: nnx.Rngs | None
) -> tuple[Int[Array, "b"], Bool[Array, "b"]]:
    """The column of a hard negative for each row, and whether there is any.

    Args:
        sims: similarities divided by the temperature; negatives are drawn from their softmax.
        same: True for pairs that are not negatives.
        rngs: for the draw; None takes the most similar negative.
    """
    scores = jnp.where(same, -jnp.inf, sims)
    if rngs is not None:
        # The largest of scores with Gumbel noise is a draw from their softmax.
        scores = scores + jax.random.gumbel(rngs.dropout(), sims.shape)
    return scores.argmax(axis=1), ~same.all(axis=1)


def matching(
    logits: Float[Array, "n 2"], labels: Int[Array, "n"], counts: Bool[Array, "n"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Cross-entropy and accuracy of "does the text match the image", over the pairs that count."""
    logits = to_float32(logits)
    scores = jax.nn.log_softmax(logits, axis=1)
    weight = counts / counts.sum()
    loss = -(weight * jnp.take_along_axis(scores, labels[:, None], axis=1)[:, 0]).sum()
    return loss, (weight * (logits.argmax(axis=1) == labels)).sum()
