"""Scaled dot-product attention: one function, so that kernels are chosen in one place."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from jaxmodels.layers.dropout import dropout


def causal_mask(t: int) -> Bool[Array, "t t"]:
    """True where the key is not later than the query."""
    return jnp.tril(jnp.ones((t, t), bool))


def attention(
    q: Float[Array, "b t h k"],
    k: Float[Array, "b s h k"],
    v: Float[Array, "b s h k"],
    mask: Bool[Array, "*b t s"],
    rate: float = 0.0,
    key: Key[Array, ""] | None = None,
) -> Float[Array, "b t h k"]:
    """Softmax attention at scale 1/sqrt(k); scores and softmax are computed in float32.

    Args:
        q: queries.
        k: keys.
        v: values.
        mask: True where a query may see a key; every query must see at least one.
        rate: share of the softmax weights that is dropped, when there is a key.
        key: draws what is dropped.
    """
    scores = jnp.einsum("bthk,bshk->bhts", q, k, preferred_element_type=jnp.float32)
    scores = scores * q.shape[-1] ** -0.5
    allowed = mask if mask.ndim == 2 else mask[:, None]
    weights = jax.nn.softmax(jnp.where(allowed, scores, -jnp.inf), axis=-1).astype(q.dtype)
    if key is not None:
        weights = dropout(weights, rate, key)
    return jnp.einsum("bhts,bshk->bthk", weights, v)
