"""Images and texts compared: features of each alone, ranks, recall."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxmodels
from jaxmodels.runtime.retrieval import Encoder, recalls, similarity
from tests.contract import exact

ARCHS = ("bitgen", "bitgen_stage1")


def unit(rng, *shape):
    x = rng.normal(size=shape).astype(np.float32)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_recall_is_that_of_the_definition():
    """Sorted one by one, with five captions an image."""
    rng = np.random.default_rng(0)
    images, image_of_text = unit(rng, 30, 8), np.repeat(np.arange(30), 5)
    texts = unit(rng, 150, 8) + 0.7 * images[image_of_text]
    near = texts @ images.T
    found = recalls(images, texts, image_of_text)
    for k in (1, 5, 10):
        t2i = np.mean([image_of_text[i] in np.argsort(-near[i])[:k] for i in range(150)])
        i2t = np.mean([j in image_of_text[np.argsort(-near[:, j])[:k]] for j in range(30)])
        assert found[f"t2i_recall_at_{k}"] == pytest.approx(t2i)
        assert found[f"i2t_recall_at_{k}"] == pytest.approx(i2t)
    assert 0 < found["t2i_recall_at_1"] < found["i2t_recall_at_1"] < 1


def test_many_queries_are_ranked_in_parts():
    rng = np.random.default_rng(1)
    images = unit(rng, 600, 16)
    found = recalls(images, images, np.arange(600))
    assert set(found.values()) == {1.0}


def test_a_model_that_sees_no_differences_finds_nothing():
    same = np.ones((20, 4), np.float32) / 2
    assert set(recalls(same, same, np.arange(20)).values()) == {0.0}


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHS)
@jax.enable_x64(True)
def test_features_alone_are_those_of_a_call_with_both(arch):
    model = exact(jaxmodels.create(f"{arch}:tiny"))
    rng, side = np.random.default_rng(0), model.config.image_size
    images = rng.integers(0, 256, (3, side, side, 3)).astype(np.uint8)
    tokens = rng.integers(0, model.config.vocab, (3, 12)).astype(np.int32)
    mask = np.ones_like(tokens)
    both = nnx.jit(type(model).__call__)
    out = both(model, jnp.asarray(tokens), images=jnp.asarray(images, jnp.float32) / 255)
    encoder = Encoder(model)
    texts = encoder.texts([{"tokens": tokens, "mask": mask}])
    np.testing.assert_allclose(texts, out.text_features, atol=1e-5)
    np.testing.assert_allclose(
        encoder.images([images[:2], images[2:]]), out.image_features, atol=1e-5
    )
    expected = np.asarray(out.image_features) @ np.asarray(out.text_features).T
    np.testing.assert_allclose(similarity(model, images, tokens), expected, atol=1e-5)


@pytest.mark.slow
def test_padding_tells_nothing_where_there_is_a_mask():
    model = jaxmodels.create("bitgen:tiny")
    tokens = np.arange(10, dtype=np.int32)[None]
    padded = np.pad(tokens, ((0, 0), (0, 6)))
    mask = (np.arange(16) < 10).astype(np.int32)[None]
    encoder = Encoder(model)
    alone = encoder.texts([{"tokens": tokens, "mask": np.ones_like(tokens)}])
    np.testing.assert_allclose(encoder.texts([{"tokens": padded, "mask": mask}]), alone, atol=1e-5)
