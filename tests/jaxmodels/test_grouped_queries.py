"""Grouped queries, rotary halves, and an untied head in the loss."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmodels.errors import Problem
from jaxmodels.layers.attention import attention, causal_mask, self_attention
from jaxmodels.layers.cache import KVCache
from jaxmodels.layers.kernels import splash
from jaxmodels.layers.losses import chunked_cross_entropy, chunked_scores
from jaxmodels.layers.remat import remat
from jaxmodels.layers.rotary import HalfRotation, partners, rotate, rotation, turned
from jaxmodels.runtime.sharding import check_heads, head_counts

H, G, K = 4, 2, 8


def drawn(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def reference(q, k, v, mask):
    """By numpy, head by head: query head i reads key head i // (H / G)."""
    out = np.zeros(q.shape)
    for b in range(len(q)):
        for i in range(q.shape[2]):
            j = i // (q.shape[2] // k.shape[2])
            scores = q[b, :, i] @ k[b, :, j].T / np.sqrt(q.shape[-1])
            weights = np.exp(np.where(mask, scores, -np.inf))
            out[b, :, i] = weights / weights.sum(-1, keepdims=True) @ v[b, :, j]
    return out


def qkv(t, seed=0):
    return drawn(2, t, H, K, seed=seed), *(drawn(2, t, G, K, seed=seed + n) for n in (1, 2))


def test_self_attention_of_grouped_queries():
    q, k, v = qkv(9)
    expected = reference(*map(np.asarray, (q, k, v)), np.tril(np.ones((9, 9), bool)))
    np.testing.assert_allclose(self_attention(q, k, v), expected, atol=1e-5)
    padding = jnp.ones((2, 9), jnp.int32)
    np.testing.assert_allclose(self_attention(q, k, v, padding_mask=padding), expected, atol=1e-5)
    key = jax.random.key(0)  # with dropout the weights are whole: another path
    kept = self_attention(q, k, v, rate=1e-9, key=key)
    np.testing.assert_allclose(kept, expected, atol=1e-5)


def test_grouped_queries_beside_padding_and_documents():
    q, k, v = qkv(9)
    wide = [jnp.repeat(x, H // G, axis=2) for x in (k, v)]
    padding = jnp.asarray([[1] * 9, [1] * 5 + [0] * 4])
    segments = jnp.asarray([[0] * 4 + [1] * 5, [0] * 9])
    for kind in ({"padding_mask": padding}, {"segments": segments}, {"causal": False}):
        found, expected = self_attention(q, k, v, **kind), self_attention(q, *wide, **kind)
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_gradients_of_grouped_queries_are_sums_over_the_group():
    q, k, v = qkv(6)
    wide = [jnp.repeat(x, H // G, axis=2) for x in (k, v)]

    def loss(q, k, v):
        return jnp.square(self_attention(q, k, v)).sum()

    of_k, of_v = jax.grad(loss, (1, 2))(q, k, v)
    wide_k, wide_v = jax.grad(loss, (1, 2))(q, *wide)

    def fold(x):
        return x.reshape(2, 6, G, H // G, K).sum(3)

    np.testing.assert_allclose(of_k, fold(wide_k), atol=1e-5)
    np.testing.assert_allclose(of_v, fold(wide_v), atol=1e-5)


def test_a_cache_of_fewer_heads_gives_what_attention_gives():
    q, k, v = qkv(7)
    expected = reference(*map(np.asarray, (q, k, v)), np.asarray(causal_mask(7)))
    cache = KVCache.empty((G,), G * K, 2, 8, jnp.dtype(jnp.float32))
    assert cache.keys[0].shape == (2, G, K, 8)
    found = []
    for part in (slice(0, 4), slice(4, 5), slice(5, 6), slice(6, 7)):
        out, kept = cache.attend(0, q[:, part], k[:, part], v[:, part])
        cache = KVCache((kept[0],), (kept[1],), cache.length + out.shape[1])
        found.append(out)
    np.testing.assert_allclose(jnp.concatenate(found, axis=1), expected, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["causal", "full", "segments"])
def test_the_tpus_kernel_takes_shared_heads_as_rows_where_it_pads(kind):
    """150 positions are padded to 256, two heads' to 384 and not to 512."""
    t, causal = 150, kind != "full"
    q, k, v = (jnp.repeat(x[:1], 16, axis=-1) for x in qkv(t))
    w = jnp.cos(jnp.arange(q.size)).reshape(q.shape)
    segments = (jnp.arange(t) // 60)[None] if kind == "segments" else None

    def results(form):
        return jax.jit(jax.value_and_grad(lambda *a: (form(*a) * w).sum(), (0, 1, 2)))(q, k, v)

    def kernel(q, k, v):
        return splash(q, k, v, segments, causal=causal, interpret=True)

    def plain(q, k, v):
        mask = causal_mask(t, segments) if causal else jnp.ones((t, t), bool)
        return attention(q, k, v, mask)

    for found, expected in zip(
        *(jax.tree.leaves(results(form)) for form in (kernel, plain)), strict=True
    ):
        np.testing.assert_allclose(found, expected, atol=2e-3)


@pytest.mark.slow
def test_the_tpus_kernel_takes_fewer_heads():
    q, k, v = (jnp.repeat(x[:1], 16, axis=-1) for x in qkv(128))
    out = splash(q, k, v, None, causal=True, interpret=True)
    expected = reference(*map(np.asarray, (q, k, v)), np.asarray(causal_mask(128)))
    np.testing.assert_allclose(out, expected, atol=2e-3)


def test_halves_are_turned_as_transformers_turns_them():
    """x · cos + rotate_half(x) · sin, as in modeling_llama.py."""
    x, by = np.asarray(drawn(2, 5, 3, K)), HalfRotation(*rotation(jnp.arange(5), K, 500_000.0))
    cos, sin = (np.tile(np.asarray(angle), 2)[:, None] for angle in by)
    other = np.concatenate([-x[..., K // 2 :], x[..., : K // 2]], axis=-1)
    np.testing.assert_allclose(rotate(jnp.asarray(x), by), x * cos + other * sin, atol=1e-6)


@pytest.mark.parametrize("kind", [lambda by: by, lambda by: HalfRotation(*by)])
def test_partners_are_the_other_number_of_each_pair(kind):
    """The form of a TPU: a product with the partners' columns, and no change of places."""
    x, kernel, by = drawn(1, 5, 6), drawn(6, 3, K), kind(rotation(jnp.arange(5), K))

    def heads(kernel):
        return jnp.einsum("btd,dhk->bthk", x, kernel)

    found = turned(heads(kernel), heads(partners(kernel, by)), by)
    np.testing.assert_allclose(found, rotate(heads(kernel), by), atol=1e-5)


def test_a_head_of_its_own_has_the_loss_and_gradients_of_its_transpose(monkeypatch):
    monkeypatch.setattr("jaxmodels.layers.losses.LOGITS_BYTES", 4 * 2 * 11 * 2)  # several chunks
    x, kernel = drawn(2, 5, 6), drawn(6, 11)
    targets = jnp.asarray(np.random.default_rng(0).integers(0, 11, (2, 5)))
    mask = (targets > 2).astype(jnp.int32)

    def tied(x, w):
        return chunked_cross_entropy(x, w.T, targets, mask)

    def own(x, w):
        return chunked_cross_entropy(x, w, targets, mask, tied=False)

    for a, b in zip(
        jax.tree.leaves(jax.value_and_grad(tied, (0, 1))(x, kernel)),
        jax.tree.leaves(jax.value_and_grad(own, (0, 1))(x, kernel)),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, atol=1e-6)
    hits = chunked_scores(x, kernel, targets, mask, tied=False)[1]
    assert hits == chunked_scores(x, kernel.T, targets, mask)[1]


def test_a_mesh_must_divide_the_heads_of_keys_too():
    from dataclasses import dataclass

    @dataclass
    class Config:
        heads: int = 8
        kv_heads: int = 2

    assert head_counts(Config()) == (8, 2)
    check_heads(Config(), 2)
    with pytest.raises(Problem, match="2 and 8 attention heads cannot be split over 4"):
        check_heads(Config(), 4)


def test_static_parameters_of_a_block_are_named():
    def block(x, scale, layer):
        assert isinstance(layer, int)
        return x * scale * (layer + 1)

    run = remat(block, "full", static=("layer",))
    assert jax.jit(partial(run, layer=1), static_argnums=())(2.0, 3.0) == 12
    gradient = jax.grad(lambda x: run(x, 3.0, 1))(2.0)
    assert gradient == 6
