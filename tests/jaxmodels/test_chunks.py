"""Computing in chunks changes memory, not numbers."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmodels.layers import blocks as blocks_file
from jaxmodels.layers import losses
from jaxmodels.layers.attention import attention, causal_mask
from jaxmodels.layers.blocks import blocked_attention
from jaxmodels.layers.losses import chunked_cross_entropy, cross_entropy


def plain_loss(x, head, targets, mask=None):
    logits = jnp.einsum("btd,vd->btv", x, head)
    if mask is None:
        return cross_entropy(logits, targets)
    each = jax.vmap(jax.vmap(cross_entropy))(logits, targets)
    return (each * mask).sum() / mask.sum()


def loss_inputs(batch=2, t=11, d=8, v=23):
    rng = np.random.default_rng(0)
    x, head = (rng.standard_normal(s, np.float32) for s in ((batch, t, d), (v, d)))
    targets, mask = (rng.integers(0, n, (batch, t), np.int32) for n in (v, 2))
    return tuple(map(jnp.asarray, (x, head, targets, mask)))


@pytest.mark.slow
@pytest.mark.parametrize("positions", [1, 2, 3, 4, 11, 100])
@pytest.mark.parametrize("masked", [False, True])
def test_chunked_cross_entropy_is_the_plain_one(monkeypatch, positions, masked):
    x, head, targets, mask = loss_inputs()
    monkeypatch.setattr(losses, "LOGITS_BYTES", 4 * 2 * 23 * positions)
    mask = mask if masked else None
    results = [
        jax.value_and_grad(lambda x, head, f=f: 3 * f(x, head, targets, mask), (0, 1))(x, head)
        for f in (plain_loss, chunked_cross_entropy)
    ]
    for one, two in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6)
    value = chunked_cross_entropy(x, head, targets, mask)
    assert float(value) == pytest.approx(float(plain_loss(x, head, targets, mask)), rel=1e-6)


@pytest.mark.parametrize("tied", [True, False])
def test_a_bias_and_smoothed_targets(monkeypatch, tied):
    """Against optax, in chunks of four positions."""
    monkeypatch.setattr(losses, "LOGITS_BYTES", 4 * 2 * 23 * 4)
    x, head, targets, mask = loss_inputs()
    bias = jnp.linspace(-1, 1, 23)
    labels = optax.smooth_labels(jax.nn.one_hot(targets, 23), 0.1)

    def plain(x, head, bias):
        each = optax.softmax_cross_entropy(x @ head.T + bias, labels)
        return (each * mask).sum() / mask.sum()

    def ours(x, head, bias):
        head = head if tied else head.T
        return losses.chunked_scores(x, head, targets, mask, tied, bias, 0.1)[0]

    results = [jax.jit(jax.value_and_grad(f, (0, 1, 2)))(x, head, bias) for f in (plain, ours)]
    for one, two in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6)


def test_no_position_counts_in_an_empty_mask():
    x, head, targets, mask = loss_inputs()
    value, grad = jax.value_and_grad(chunked_cross_entropy)(x, head, targets, mask * 0)
    assert float(value) == 0
    assert not grad.any()


@pytest.mark.slow
def test_chunked_cross_entropy_in_bfloat16_sums_in_float32():
    x, head, targets, _ = loss_inputs(t=64, d=32)
    half = [a.astype(jnp.bfloat16) for a in (x, head)]
    value, grads = jax.value_and_grad(chunked_cross_entropy, (0, 1))(*half, targets)
    assert value.dtype == jnp.float32
    exact, exact_grads = jax.value_and_grad(plain_loss, (0, 1))(
        *(a.astype(jnp.float32) for a in half), targets
    )
    assert float(value) == pytest.approx(float(exact), rel=1e-6)
    for grad, other in zip(grads, exact_grads, strict=True):
        assert grad.dtype == jnp.bfloat16
        np.testing.assert_allclose(grad.astype(jnp.float32), other, atol=2e-2 * np.abs(other).max())


def temporary_bytes(function, *args):
    compiled = jax.jit(jax.grad(function, argnums=(0, 1))).lower(*args).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_logits_are_never_whole_in_memory(monkeypatch):
    x, head, targets, _ = loss_inputs(batch=4, t=256, d=8, v=1000)
    monkeypatch.setattr(losses, "LOGITS_BYTES", 1 << 17)
    whole = 4 * 4 * 256 * 1000
    assert temporary_bytes(plain_loss, x, head, targets) >= whole
    assert temporary_bytes(chunked_cross_entropy, x, head, targets) <= whole / 4


def attention_inputs(t=12, heads=2, width=4, batch=2):
    rng = np.random.default_rng(0)
    return tuple(
        jnp.asarray(rng.standard_normal((batch, t, heads, width), np.float32)) for _ in "qkv"
    )


def plain_attention(q, k, v, real=None):
    """The seed's form: padding is masked on both sides, a row without keys is uniform."""
    mask = causal_mask(q.shape[1])
    if real is not None:
        seen = real == 1
        mask = mask & seen[:, None] & seen[..., None]
    return attention(q, k, v, mask)


PAIR = (plain_attention, blocked_attention)


@pytest.mark.slow
@pytest.mark.parametrize("queries", [1, 2, 3, 5, 12])
@pytest.mark.parametrize("padded", [False, True])
def test_blocked_attention_in_blocks_is_the_plain_one(monkeypatch, queries, padded):
    monkeypatch.setattr(blocks_file, "QUERIES", queries)
    inputs, real = attention_inputs(), None
    if padded:
        real = jnp.ones((2, 12), jnp.int32).at[0, :4].set(0).at[1, 7:].set(0)
    weight = jnp.asarray(np.random.default_rng(1).standard_normal((2, 12, 2, 4), np.float32))

    def results(f):
        def weighted(*a):
            return (f(*a, real) * weight).sum()

        return f(*inputs, real), jax.grad(weighted, (0, 1, 2))(*inputs)

    plain, blocks = (jax.tree.leaves(jax.jit(results, static_argnums=0)(f)) for f in PAIR)
    for one, two in zip(plain, blocks, strict=True):
        np.testing.assert_allclose(one, two, atol=1e-5)


def test_blocks_of_queries_take_less_memory(monkeypatch):
    monkeypatch.setattr(blocks_file, "QUERIES", 32)
    inputs = attention_inputs(t=512, batch=1)
    sums = [partial(lambda f, *a: f(*a).sum(), f) for f in PAIR]
    plain, blocks = (temporary_bytes(f, *inputs) for f in sums)
    assert plain >= 4 * 2 * 512 * 512
    assert blocks <= plain / 4
