"""Documents in one window that do not attend to each other."""

import jax.numpy as jnp
import numpy as np
import pytest

import jaxmodels
from jaxmodels.__main__ import main
from jaxmodels.errors import USAGE
from jaxmodels.layers import blocks as blocks_file
from jaxmodels.layers.attention import attention, causal_mask
from jaxmodels.layers.blocks import blocked_attention
from jaxmodels.runtime.paths import split
from tests.contract import PAIRS, TOWERS

SEGMENTS = jnp.asarray([[0] * 9 + [1] * 12, [0] * 4 + [1] * 10 + [2] * 7], jnp.int32)

# A patch of wigip may hold pieces of two documents: it refuses segments. Towers read no text, and
# a caption is a document of its own.
segmented = pytest.mark.parametrize("arch", sorted({*jaxmodels.ARCHS} - {"wigip"} - TOWERS - PAIRS))


def randomised(arch):
    """A model whose attention weighs something: that of a fresh charlm is nearly nothing."""
    rng = np.random.default_rng(4)
    graphdef, params, rest = split(jaxmodels.create(f"{arch}:tiny"))
    params = {
        path: jnp.asarray(rng.normal(0, 0.3, leaf.shape), jnp.float32)
        for path, leaf in params.items()
    }
    return graphdef.merge(params, rest)


def logits(model, tokens, segments):
    """Without segments and with; wikigpt and bwetaf take them where the head begins."""
    if not hasattr(model, "hidden"):
        return np.asarray(model(tokens, segments=segments)[0])
    return np.asarray(model.hidden(tokens, segments=segments)[0])


@pytest.mark.slow
@pytest.mark.parametrize("blocks", [False, True])
@segmented
def test_a_document_sees_nothing_of_the_others(arch, blocks, monkeypatch):
    if blocks:
        monkeypatch.setattr(blocks_file, "QUERIES", 2)
    model = randomised(arch)
    rng = np.random.default_rng(0)
    one, two = (jnp.asarray(rng.integers(0, 64, (2, 21), np.int32)) for _ in range(2))
    last = SEGMENTS.max(axis=1, keepdims=True) == SEGMENTS
    two = jnp.where(last, one, two)  # the last documents are the same, what precedes is not
    with_segments = [logits(model, tokens, SEGMENTS)[last] for tokens in (one, two)]
    np.testing.assert_allclose(*with_segments, rtol=1e-5, atol=1e-5)
    without = [logits(model, tokens, None)[last] for tokens in (one, two)]
    assert np.abs(without[0] - without[1]).max() > 1e-2
    # One document is no restriction.
    alone = logits(model, one, jnp.zeros_like(one))
    np.testing.assert_allclose(alone, logits(model, one, None), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@segmented
def test_the_loss_heeds_segments(arch):
    package, model = jaxmodels.arch(arch), randomised(arch)
    tokens = jnp.asarray(np.random.default_rng(1).integers(0, 64, (2, 21), np.int32))

    def loss(**more):
        return float(package.loss(model, {"tokens": tokens, **more}, None)[0])

    assert loss(segments=SEGMENTS) != loss()
    assert loss(segments=SEGMENTS * 0) == pytest.approx(loss(), rel=1e-6)
    # The last target's own segment is not looked at: no query stands there.
    assert loss(segments=SEGMENTS.at[:, -1].add(1)) == loss(segments=SEGMENTS)


@pytest.mark.slow
@pytest.mark.parametrize("queries", [2, 3, 8, 64])
def test_blocks_of_attention_within_segments(monkeypatch, queries):
    monkeypatch.setattr(blocks_file, "QUERIES", queries)
    rng = np.random.default_rng(2)
    q, k, v = (jnp.asarray(rng.standard_normal((2, 21, 2, 4), np.float32)) for _ in range(3))
    expected = attention(q, k, v, causal_mask(21, SEGMENTS))
    found = blocked_attention(q, k, v, segments=SEGMENTS)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_the_padding_of_bwetaf_stays_apart():
    model = randomised("bwetaf")
    rng = np.random.default_rng(3)
    one = jnp.asarray(rng.integers(0, 64, (2, 21), np.int32))
    real = jnp.ones_like(one).at[:, -3:].set(0)
    two = jnp.where(real == 1, one, 63 - one)
    outputs = [model.hidden(t, mask=real, segments=SEGMENTS)[0][:, :-3] for t in (one, two)]
    np.testing.assert_allclose(*outputs, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_characters_tell_no_documents(tmp_path, capsys):
    out = tmp_path / "run"
    assert main(["train", "charlm:tiny", "--out", str(out), "--segments"]) == USAGE
    said = capsys.readouterr().err
    assert "marks where a document ends" in said
    assert "such as gpt2" in said
