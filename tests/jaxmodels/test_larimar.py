"""Larimar's memory: writing, reading and forgetting as in the paper, in float64."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxmodels.bitgen import larimar
from jaxmodels.bitgen.larimar import Prior, SufficientStats
from tests.contract import equations

SLOTS, WIDTH, NOISE = 6, 5, 0.1
seeds = st.integers(0, 2**32 - 1)


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def drawn(seed: int, count: int):
    """A prior, and `count` addresses and codes, some of them alike."""
    rng = np.random.default_rng(seed)
    prior = Prior(jnp.asarray(rng.normal(size=(SLOTS, WIDTH))), jnp.asarray(rng.normal(size=SLOTS)))
    w = rng.normal(size=(count, SLOTS)) * rng.uniform(0.1, 2, (count, 1))
    w[count // 2 :] = w[: count - count // 2] + 1e-3 * w[count // 2 :]
    return prior, jnp.asarray(w), jnp.asarray(rng.normal(size=(count, WIDTH)))


def empty() -> SufficientStats:
    return SufficientStats.nothing(SLOTS, WIDTH, jnp.float64)


def least_squares(prior: Prior, w, codes):
    """The slots that fit codes and prior best, by QR: another way than the one under test."""
    root = np.exp(-np.asarray(prior.log_variance) / 2)[:, None]
    rows = np.concatenate([np.asarray(w) / NOISE, root * np.eye(SLOTS)])
    goals = np.concatenate([np.asarray(codes) / NOISE, root * np.asarray(prior.mean)])
    return np.linalg.lstsq(rows, goals, rcond=None)[0]


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(seeds, st.sampled_from((1, 5, 9)), st.sampled_from((0, 4)))  # shapes are compiled
def test_writing_in_parts_equals_batch_least_squares(seed, count, first):
    prior, w, codes = drawn(seed, count)
    first = min(first, count)
    best = least_squares(prior, w, codes)
    stats = larimar.write(empty(), w[:first], codes[:first])
    stats = larimar.write(stats, w[first:], codes[first:])
    assert int(stats.number) == count
    believed = larimar.posterior(prior, stats, NOISE)
    np.testing.assert_allclose(believed.mean, best, atol=1e-8)
    one_by_one = larimar.kalman(larimar.posterior(prior, empty(), NOISE), w, codes, NOISE)
    np.testing.assert_allclose(one_by_one.mean, best, atol=1e-8)
    np.testing.assert_allclose(one_by_one.covariance, believed.covariance, atol=1e-8)


@settings(max_examples=10, deadline=None)
@given(seeds, st.sampled_from((3, 9)), st.sampled_from((1, 5)))
def test_forgetting_restores_the_memory(seed, count, kept):
    prior, w, codes = drawn(seed, count)
    kept = min(kept, count - 1)
    before = larimar.write(empty(), w[:kept], codes[:kept])
    after = larimar.forget(
        larimar.write(before, w[kept:], codes[kept:]), w[kept:][::-1], codes[kept:][::-1]
    )
    assert int(after.number) == kept
    expected = larimar.posterior(prior, before, NOISE)
    for one, other in zip(larimar.posterior(prior, after, NOISE), expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-8)


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(seeds, st.sampled_from((1, 4, SLOTS)))
def test_what_fits_is_read_as_it_was_written(seed, count):
    """As many codes as there are slots, at independent addresses, are nearly all kept."""
    rng = np.random.default_rng(seed)
    prior = Prior(jnp.zeros((SLOTS, WIDTH)), jnp.zeros(SLOTS))
    w = jnp.asarray(np.linalg.qr(rng.normal(size=(SLOTS, SLOTS)))[0][:count])
    codes = jnp.asarray(rng.normal(size=(count, WIDTH)))
    believed = larimar.posterior(prior, larimar.write(empty(), w, codes), NOISE)
    found = larimar.read(believed.mean, w)
    np.testing.assert_allclose(found, codes / (1 + NOISE**2), atol=1e-10)
    used = count / SLOTS / (1 + NOISE**2)
    assert float(larimar.utilization(prior, believed)) == pytest.approx(used)


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(seeds, st.sampled_from((1, 5)), st.sampled_from((3, 8)))
def test_the_iteration_is_the_pseudo_inverse(seed, rows, columns):
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(rows, columns))
    a = a / np.linalg.svd(a)[1].min()  # no singular value near zero, which would need more steps
    np.testing.assert_allclose(
        larimar.pseudo_inverse(jnp.asarray(a), 60), np.linalg.pinv(a), atol=1e-8
    )


def test_both_ways_to_address_agree_without_noise():
    rng = np.random.default_rng(0)
    slots, keys = jnp.asarray(rng.normal(size=(4, 7))), jnp.asarray(rng.normal(size=(2, 3, 7)))
    exact = larimar.address(keys, slots, 0.0)
    np.testing.assert_allclose(exact, keys @ np.linalg.pinv(slots), atol=1e-10)
    np.testing.assert_allclose(larimar.address(keys, slots, 0.0, "iteration"), exact, atol=1e-6)
    ridge = keys @ np.linalg.inv(slots.T @ slots + 0.25 * np.eye(7)) @ slots.T
    np.testing.assert_allclose(larimar.address(keys, slots, 0.5), ridge, atol=1e-10)


@pytest.mark.slow
def test_divergences_are_those_of_the_gaussians():
    torch = pytest.importorskip("torch")
    prior, w, codes = drawn(3, 4)
    believed = larimar.posterior(prior, larimar.write(empty(), w, codes), NOISE)
    normal = torch.distributions.MultivariateNormal
    expected = 0.0
    for column in range(WIDTH):
        q = normal(
            torch.tensor(np.asarray(believed.mean[:, column])),
            torch.tensor(np.asarray((believed.covariance + believed.covariance.T) / 2)),
        )
        p = normal(
            torch.tensor(np.asarray(prior.mean[:, column])),
            torch.diag(torch.tensor(np.exp(np.asarray(prior.log_variance)))),
        )
        expected += torch.distributions.kl_divergence(q, p).item()
    found = float(larimar.divergence(prior, believed)) * SLOTS * WIDTH
    assert found == pytest.approx(expected, rel=1e-9)
    q = torch.distributions.Normal(torch.tensor(0.7), torch.tensor(0.3).exp().sqrt())
    p = torch.distributions.Normal(torch.tensor(0.0), torch.tensor(1.0))
    expected = torch.distributions.kl_divergence(q, p).item()
    assert float(
        larimar.address_divergence(jnp.full((1, 3), 0.7), jnp.full(3, 0.3))[0]
    ) == pytest.approx(expected, rel=1e-5)


def test_matrices_are_factorised_one_at_a_time_on_a_cpu():
    """LAPACK's batched kernels wait for threads of the pool that they themselves run in."""
    prior, w, codes = drawn(0, 6)

    def divergence(w):
        stats = larimar.write(empty(), w.reshape(3, 2, SLOTS), codes.reshape(3, 2, WIDTH))
        return larimar.divergence(prior, larimar.posterior(prior, stats, NOISE)).sum()

    program = jax.make_jaxpr(jax.grad(divergence))(w).jaxpr
    found = [x.invars[0].aval.ndim for x in equations(program, {"lu", "triangular_solve"})]
    assert len(found) > 4
    assert set(found) == {2}


def test_no_other_module_calls_lapack():
    package = Path(larimar.__file__).parents[1]
    found = [
        file.name
        for file in package.rglob("*.py")
        if re.search(r"(jnp|jax|scipy)\.linalg\.(?!norm\b)", file.read_text())
    ]
    assert found == ["linalg.py"]
