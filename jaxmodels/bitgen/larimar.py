"""Larimar's episodic memory (Das et al. 2024, arXiv:2403.11901): slots that are written by
solving, not by training.

A memory has m slots. An item has a key, by which it is found, and a code, which is what is
remembered. The address of a key is w = key · A⁺, where A [m, d] are the learned keys of the slots.
Codes are modelled as Z = W · M + noise of standard deviation ξ, with a Gaussian prior of the
slots M of mean M₀ [m, c] and variance e^ℓ for each slot. Two sums are then sufficient statistics,
    gram = Σ wᵀw [m, m]      total = Σ wᵀz [m, c],

and the posterior of the slots is that of Bayesian regression,

    U = (e^−ℓ + gram / ξ²)⁻¹      M = U · (e^−ℓ M₀ + total / ξ²).

So the order of writing does not matter, writing in parts equals writing at once, and to forget
is to subtract. `kalman` is the paper's recursion over one code after the other, which gives the
same posterior; run backwards, to forget, it missed the earlier memory by 5e-8 in float64, which
a subtraction does not. Everything is computed in the precision of what it is given; the model
gives float32.

Where this differs from Larimar (github.com/IBM/larimar), and why:

- Addresses. Larimar addresses a code by the memory itself, w = z · M₀⁺ to write and z · M⁺ to
  read, M being what the slots hold by then. Here the key is another vector than the code and the
  slots have keys of their own, which writing leaves alone. An image can so find what a caption
  wrote, and a key has the same address before and after any writing, without which the two sums
  would not be all there is to know. A⁺ is solved with noise ξ instead of iterated 3 to 15 times
  (`pseudo_inverse` is the iteration, run until it converges).
- Noise of addresses is a learned variance of each slot; Larimar's training computes it from M.
- Ordering. Larimar can pass the codes of an episode through an LSTM before it writes them, so
  that their order is in the codes (off by default). Here an order would contradict forgetting by
  subtraction; when each item was written is in the model's record (`record`).
- Scope. Whether a query is about anything in the memory, Larimar asks a detector outside of the
  model, the distance of sentence embeddings to the nearest text stored. `closeness` asks the same
  of the model's own features, by a threshold that is measured.
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxmodels.layers import linalg

Addressing = Literal["ridge", "iteration"]


class SufficientStats(NamedTuple):
    """The sufficient statistics of what was written into a memory."""

    gram: Float[Array, "*g m m"]
    """Sum of wᵀw."""
    total: Float[Array, "*g m c"]
    """Sum of wᵀz."""
    number: Int[Array, "*g"]
    """Number of codes, forgotten ones excluded."""

    @classmethod
    def nothing(cls, slots: int, width: int, dtype: Any = jnp.float32) -> "SufficientStats":
        """An empty memory."""
        gram, total = jnp.zeros((slots, slots), dtype), jnp.zeros((slots, width), dtype)
        return cls(gram, total, jnp.zeros((), jnp.int32))


class Prior(NamedTuple):
    """The distribution of the slots before anything is written."""

    mean: Float[Array, "m c"]
    log_variance: Float[Array, "m"]


class Posterior(NamedTuple):
    """The distribution of the slots: a Gaussian whose columns share one covariance."""

    mean: Float[Array, "*g m c"]
    covariance: Float[Array, "*g m m"]


def pseudo_inverse(a: Float[Array, "*g m d"], steps: int = 30) -> Float[Array, "*g d m"]:
    """A⁺ by the iteration of Ben-Israel and Cohen: A⁺ ← 2A⁺ − A⁺AA⁺, from Aᵀ / (|A|₁ |A|∞).

    From this start it converges for every A, the smallest singular values last. (Larimar starts
    from 5e-4 · Aᵀ.)
    """
    sums = jnp.abs(a).sum(axis=-2).max(axis=-1), jnp.abs(a).sum(axis=-1).max(axis=-1)
    start = jnp.swapaxes(a, -1, -2) / (sums[0] * sums[1])[..., None, None]

    def step(_: Array, x: Array) -> Array:
        return 2 * x - x @ (a @ x)

    # Unrolled by scan, so that it can be differentiated backwards.
    return jax.lax.scan(lambda x, i: (step(i, x), None), start, jnp.arange(steps))[0]


def address(
    keys: Float[Array, "*b d"],
    slots: Float[Array, "m d"],
    noise: float,
    addressing: Addressing = "ridge",
) -> Float[Array, "*b m"]:
    """The addresses of keys: w = key · A⁺.

    Args:
        keys: of the items to write or read.
        slots: the keys of the slots, A.
        noise: ξ; used by "ridge".
        addressing: "ridge" solves w = key · Aᵀ(AAᵀ + ξ²)⁻¹ exactly, "iteration" is
            `pseudo_inverse`.
    """
    if addressing == "iteration":
        return keys @ pseudo_inverse(slots)
    gram = slots @ slots.T + noise**2 * jnp.eye(len(slots), dtype=slots.dtype)
    return keys @ linalg.solve(gram, slots).T


def write(
    stats: SufficientStats, w: Float[Array, "*g n m"], codes: Float[Array, "*g n c"], sign: int = 1
) -> SufficientStats:
    """The statistics with n more codes at their addresses."""
    turned = jnp.swapaxes(w, -1, -2)
    return SufficientStats(
        stats.gram + sign * turned @ w,
        stats.total + sign * turned @ codes,
        stats.number + sign * w.shape[-2],
    )


def forget(
    stats: SufficientStats, w: Float[Array, "*g n m"], codes: Float[Array, "*g n c"]
) -> SufficientStats:
    """The statistics without n codes that were written, as if they never had been."""
    return write(stats, w, codes, sign=-1)


def posterior(prior: Prior, stats: SufficientStats, noise: float) -> Posterior:
    """The posterior of the slots; see the module."""
    before = jnp.exp(-prior.log_variance)
    # Both sides times ξ², so that small noise does not make large numbers.
    precision = noise**2 * jnp.diag(before) + stats.gram
    mean = noise**2 * before[:, None] * prior.mean + stats.total
    eye = jnp.broadcast_to(jnp.eye(len(before), dtype=precision.dtype), precision.shape)
    both = linalg.solve(precision, jnp.concatenate([mean, noise**2 * eye], axis=-1))
    return Posterior(both[..., : mean.shape[-1]], both[..., mean.shape[-1] :])


def kalman(
    believed: Posterior,
    w: Float[Array, "n m"],
    codes: Float[Array, "n c"],
    noise: float,
) -> Posterior:
    """The posterior after n more codes, one at a time by their Kalman gain.

    Δ = z − wM, g = Uwᵀ / (wUwᵀ + ξ²), M ← M + gΔ, U ← U − g(wU). Run backwards with −ξ², it
    forgets, but loses digits, since it divides by what is left of ξ².
    """

    def one(state: Posterior, row: tuple[Array, Array]) -> tuple[Posterior, None]:
        at, code = row
        reach = state.covariance @ at
        gain = reach / (at @ reach + noise**2)
        mean = state.mean + jnp.outer(gain, code - at @ state.mean)
        return Posterior(mean, state.covariance - jnp.outer(gain, reach)), None

    return jax.lax.scan(one, believed, (w, codes))[0]


def read(mean: Float[Array, "*g m c"], w: Float[Array, "*g n m"]) -> Float[Array, "*g n c"]:
    """The codes at these addresses."""
    return w @ mean


def divergence(prior: Prior, believed: Posterior) -> Float[Array, "*g"]:
    """KL(posterior ‖ prior) of the slots in nats, divided by their m · c numbers."""
    m, c = believed.mean.shape[-2:]
    before = jnp.exp(-prior.log_variance)
    spread = (before * jnp.diagonal(believed.covariance, axis1=-2, axis2=-1)).sum(axis=-1)
    volume = prior.log_variance.sum() - linalg.log_determinant(believed.covariance)
    moved = (before[:, None] * (believed.mean - prior.mean) ** 2).sum(axis=(-2, -1))
    return (c * (spread - m + volume) + moved) / (2 * m * c)


def address_divergence(
    w: Float[Array, "*b m"], log_variance: Float[Array, "m"]
) -> Float[Array, "*b"]:
    """KL of addresses drawn around w to a standard normal, in nats, divided by the slots."""
    return 0.5 * (jnp.exp(log_variance) + w**2 - 1 - log_variance).mean(axis=-1)


def utilization(prior: Prior, believed: Posterior) -> Float[Array, "*g"]:
    """How full the memory is, 0 to 1: the share of the prior's variance that writing removed."""
    left = jnp.diagonal(believed.covariance, axis1=-2, axis2=-1) * jnp.exp(-prior.log_variance)
    return 1 - left.mean(axis=-1)
