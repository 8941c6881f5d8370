"""FIBER's matching of images and texts with hard negatives (Dou et al. 2022, arXiv:2206.07643).

Its contrastive loss is in `layers/contrast`, its gated cross-attention in `blocks`.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from jaxmodels.layers.precision import to_float32


def negatives(
    sims: Float[Array, "b b"], same: Bool[Array, "b b"], rngs: nnx.Rngs | None
) -> tuple[Int[Array, "b"], Bool[Array, "b"]]:
    """The index of a hard negative for each row, and whether there is any.

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
