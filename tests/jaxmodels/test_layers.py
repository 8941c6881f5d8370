import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxmodels.layers.cache import KVCache
from jaxmodels.layers.dropout import dropout, hash_bits
from jaxmodels.layers.losses import cross_entropy
from jaxmodels.layers.rotary import rotate_interleaved, rotation
from jaxmodels.layers.sampling import Sampling, nucleus, sample, top

NONE = jnp.zeros(8, bool)
# Vocabularies about the groups of 128 that sampling works on; each size is a program to compile.
VOCABULARIES = st.sampled_from([1, 2, 5, 100, 127, 128, 129, 255, 256, 257, 400, 3000])


def draws(logits, sampling, banned=NONE, n=2000):
    uniform = jax.random.uniform(jax.random.key(0), (n,))
    rows = jnp.broadcast_to(jnp.asarray(logits, jnp.float32), (n, len(logits)))
    return np.bincount(sample(rows, uniform, sampling, banned), minlength=len(logits)) / n


LOGITS = np.log([0.4, 0.3, 0.15, 0.08, 0.04, 0.02, 0.007, 0.003])


def test_temperature_one_draws_the_softmax():
    np.testing.assert_allclose(draws(LOGITS, Sampling(1.0)), np.exp(LOGITS), atol=0.04)


def test_temperature_sharpens():
    expected = np.exp(LOGITS / 0.5) / np.exp(LOGITS / 0.5).sum()
    np.testing.assert_allclose(draws(LOGITS, Sampling(0.5)), expected, atol=0.04)


@pytest.mark.parametrize(
    ("sampling", "kept"),
    [
        (Sampling(1.0, top_k=3), 3),
        (Sampling(1.0, top_k=100), 8),
        (Sampling(1.0, top_p=0.69), 2),
        (Sampling(1.0, top_p=0.71), 3),
        (Sampling(1.0, top_p=1e-6), 1),
        (Sampling(1.0, min_p=0.19), 4),
        (Sampling(1.0, top_k=4, top_p=0.5), 2),
        (Sampling(None), 1),
    ],
)
def test_filters_keep_the_likeliest(sampling, kept):
    shares = draws(LOGITS, sampling)
    assert (shares[:kept] > 0).all() or kept == 8
    assert (shares[kept:] == 0).all()


@pytest.mark.slow
@given(
    n=VOCABULARIES,
    k=st.integers(1, 4),
    levels=st.sampled_from([3, 50, 10**6]),
    seed=st.integers(0, 99),
)
def test_top_is_top_k_ties_included(n, k, levels, seed):
    values = np.random.default_rng(seed).integers(0, levels, (2, n)).astype(np.float32)
    k = min(k, n)
    for ours, plain in zip(top(jnp.asarray(values), k), jax.lax.top_k(values, k), strict=True):
        np.testing.assert_array_equal(ours, plain)


@pytest.mark.slow
@given(n=VOCABULARIES, levels=st.sampled_from([2, 10**6]), seed=st.integers(0, 99))
def test_greedy_takes_the_first_of_the_likeliest(n, levels, seed):
    logits = np.random.default_rng(seed).integers(0, levels, (2, n)).astype(np.float32)
    drawn = sample(jnp.asarray(logits), jnp.zeros(2), Sampling(None), jnp.zeros(n, bool))
    np.testing.assert_array_equal(drawn, logits.argmax(axis=1))


@pytest.mark.slow
@given(p=st.floats(1e-6, 1.0), n=VOCABULARIES, seed=st.integers(0, 99))
def test_a_nucleus_is_the_shortest_beginning_of_the_sorted_tokens(p, n, seed):
    logits = np.random.default_rng(seed).normal(size=(1, n)) * 3
    probability = jax.nn.softmax(jnp.asarray(logits, jnp.float32))
    kept = np.asarray(jax.jit(nucleus)(probability, p))[0] > 0
    share = np.sort(np.asarray(probability[0], np.float64))[::-1]
    assert kept[np.argmax(logits)]
    assert share[: kept.sum()].sum() >= p - 1e-5  # it reaches p …
    assert share[: kept.sum() - 1].sum() <= p + 1e-5  # … and not without its last token
    assert np.asarray(probability)[0][kept].min() >= share[kept.sum() - 1] - 1e-9


@pytest.mark.parametrize(
    "sampling", [Sampling(1.0), Sampling(1.0, top_k=2), Sampling(1.0, min_p=0.5)]
)
def test_a_large_vocabulary_is_drawn_as_its_softmax(sampling):
    """Three tokens far apart among 5,000 that have next to no probability."""
    logits = np.full(5000, -40.0)
    logits[[7, 2500, 4999]] = np.log([0.5, 0.3, 0.2])
    shares = draws(logits, sampling, jnp.zeros(5000, bool))
    kept = np.array([0.5, 0.3, 0.2]) * ([1, 1, 1] if sampling.top_k is None else [1, 1, 0])
    kept *= [1, 1, 0] if sampling.min_p else [1, 1, 1]
    np.testing.assert_allclose(shares[[7, 2500, 4999]], kept / kept.sum(), atol=0.04)


@pytest.mark.parametrize("n", [5, 300, 5000])
def test_the_ends_of_the_random_range_draw_tokens_with_weight(n):
    logits = jnp.full((2, n), -jnp.inf).at[:, [1, n - 2]].set(0.0)
    uniform = jnp.asarray([0.0, np.nextafter(np.float32(1), np.float32(0))])
    drawn = sample(logits, uniform, Sampling(1.0), jnp.zeros(n, bool))
    np.testing.assert_array_equal(drawn, [1, n - 2])


def test_banned_tokens_are_never_drawn():
    banned = NONE.at[0].set(True)
    assert draws(LOGITS, Sampling(1.0, top_k=2), banned)[0] == 0
    assert draws(LOGITS, Sampling(None), banned)[1] == 1


@pytest.mark.slow
@given(rate=st.sampled_from([0.0, 0.1, 0.5, 0.9]), seed=st.integers(0, 2**31 - 1))
def test_dropout_keeps_the_mean_and_the_rate(rate, seed):
    x = jnp.ones((64, 64, 8))
    y = dropout(x, jnp.asarray(rate, jnp.float32), jax.random.key(seed))
    n = x.size
    assert abs(float((y == 0).mean()) - rate) <= 6 * np.sqrt(rate * (1 - rate) / n) + 1e-9
    assert float(y.max()) == pytest.approx(1 / (1 - rate), rel=1e-6)


def test_dropout_masks_are_independent():
    """Between keys, between neighbours and along every axis."""
    masks = [
        np.asarray(hash_bits(jax.random.key(seed), (256, 256)) >> 31, float) for seed in (0, 1)
    ]
    pairs = [
        (masks[0], masks[1]),
        (masks[0][1:], masks[0][:-1]),
        (masks[0][:, 1:], masks[0][:, :-1]),
        (masks[0], masks[0].T),
    ]
    for one, two in pairs:
        assert abs(np.corrcoef(one.ravel(), two.ravel())[0, 1]) < 5 / 256


def test_every_bit_of_the_hash_is_fair():
    bits = np.asarray(hash_bits(jax.random.key(3), (512, 512)))
    for bit in range(32):
        assert abs(((bits >> bit) & 1).mean() - 0.5) < 5 * 0.5 / 512


@pytest.mark.slow
def test_rotation_depends_on_distance_only():
    q, k = (jax.random.normal(jax.random.key(i), (1, 1, 2, 8)) for i in (0, 1))

    def at(x, p):
        return rotate_interleaved(x, rotation(jnp.asarray([p]), 8))

    one = (at(q, 7) * at(k, 3)).sum(-1)
    two = (at(q, 107) * at(k, 103)).sum(-1)
    np.testing.assert_allclose(one, two, atol=1e-4)
    np.testing.assert_allclose(jnp.linalg.norm(at(q, 50)), jnp.linalg.norm(q), rtol=1e-6)
    np.testing.assert_array_equal(at(q, 0), q)


def test_rotation_turns_neighbouring_pairs():
    x = jnp.zeros((1, 1, 1, 4)).at[..., 0].set(1.0)
    turned = rotate_interleaved(x, rotation(jnp.asarray([1]), 4))[0, 0, 0]
    np.testing.assert_allclose(turned, [np.cos(1), np.sin(1), 0, 0], atol=1e-6)


def test_cosines_are_computed_once_for_all_rows_and_heads():
    """What XLA compiles for a CPU has them in a computation of their own."""
    turned = jax.jit(lambda x, start: rotate_interleaved(x, rotation(start + jnp.arange(1), 8)))
    compiled = turned.lower(jnp.zeros((3, 1, 2, 8)), 5).compile().as_text()
    parts = [part for part in compiled.split("\n\n") if " cosine(" in part]
    assert parts
    assert not any("[3,1,2" in part for part in parts)


def test_cross_entropy_is_torchs():
    import torch

    logits = np.random.default_rng(0).normal(size=(4, 5, 7)).astype(np.float32) * 5
    targets = np.random.default_rng(1).integers(0, 7, (4, 5))
    theirs = torch.nn.functional.cross_entropy(
        torch.from_numpy(logits).flatten(0, 1), torch.from_numpy(targets).flatten()
    )
    assert float(cross_entropy(jnp.asarray(logits), jnp.asarray(targets))) == pytest.approx(
        float(theirs), rel=1e-6
    )


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 3])
def test_a_decoded_token_is_written_in_place(batch):
    """No step of a loop of decoding copies a cache, as XLA does when a write has two readers."""
    heads, width, size = 2, 4, 40
    q, k, v = jnp.ones((3, batch, 1, heads, width))

    def one(_, carry):
        x, cache = carry
        out, (keys, values) = cache.attend(0, q * x, k * x, v * x)
        return out.mean(), KVCache((keys,), (values,), cache.length + 1)

    def decode(cache):
        return jax.lax.fori_loop(0, 8, one, (1.0, cache))

    empty = KVCache.empty((heads,), heads * width, batch, size, jnp.dtype("float32"))
    program = jax.jit(decode, donate_argnums=0).lower(empty).compile().as_text()
    whole = f"f32[{batch},{heads},{width},{size}]"
    copies = [line for line in program.splitlines() if whole in line and " copy(" in line]
    assert "dynamic-update-slice" in program
    assert not copies
