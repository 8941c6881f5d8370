"""Images and texts compared: their similarity, and how well each finds the other."""

import inspect
from collections.abc import Callable, Iterable, Sequence
from hashlib import sha256
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, UInt8

from jaxmodels.runtime.paths import Arrays, split

RANKS = (1, 5, 10)
"""Recall is told at these."""

Features = Float[np.ndarray, "n d"]
Texts = Float[np.ndarray, "c d"]


class Encoder:
    """A model's unit features of images and of texts, each without the other.

    Args:
        model: `model(tokens, images=None, mask=…)` gives `text_features` and `image_features`; a
            model that has no `mask` sees padding as it sees tokens.
    """

    def __init__(self, model: Any):
        graphdef, self.params, self.model_state = split(model)
        masked = "mask" in inspect.signature(type(model).__call__).parameters

        # Only what a result needs is compiled: of an image's features nothing of the text.
        def of_texts(params: Arrays, model_state: Arrays, tokens: Any, mask: Any) -> jax.Array:
            more = {"mask": mask} if masked else {}
            features: jax.Array = graphdef.merge(params, model_state)(tokens, **more).text_features
            return features

        def of_images(params: Arrays, model_state: Arrays, images: Any) -> jax.Array:
            tokens = jnp.zeros((len(images), 1), jnp.int32)
            pixels = images.astype(jnp.float32) / 255
            features: jax.Array = graphdef.merge(params, model_state)(tokens, pixels).image_features
            return features

        self._texts, self._images = jax.jit(of_texts), jax.jit(of_images)

    def texts(self, batches: Iterable[dict[str, Any]]) -> Features:
        """Features of the rows of batches: `tokens` and `mask`, int32 [b, t]."""
        return self._all(
            lambda b: self._texts(self.params, self.model_state, b["tokens"], b["mask"]), batches
        )

    def images(self, batches: Iterable[np.ndarray]) -> Features:
        """Features of the images in batches, uint8 [b, h, w, 3]."""
        return self._all(lambda b: self._images(self.params, self.model_state, b), batches)

    def _all(self, one: Callable[[Any], jax.Array], batches: Iterable[Any]) -> Features:
        return np.concatenate([np.asarray(one(batch), np.float32) for batch in batches])


def similarity(
    model: Any,
    images: UInt8[np.ndarray, "i h w 3"],
    tokens: Int[np.ndarray, "c t"],
    mask: Int[np.ndarray, "c t"] | None = None,
) -> Float[np.ndarray, "i c"]:
    """Cosines between images and texts by a model's own features, in [-1, 1].

    Args:
        model: one that sees images, as `bridge.load` gives it.
        images: uint8, of a size that the model takes.
        tokens: of each text, from the start of its row on.
        mask: 1 for tokens, 0 for padding; None: all are tokens.
    """
    encoder = Encoder(model)
    mask = np.ones_like(tokens) if mask is None else mask
    return encoder.images([images]) @ encoder.texts([{"tokens": tokens, "mask": mask}]).T


def duplicate_ids(rows: Iterable[np.ndarray]) -> Int[np.ndarray, "n"]:
    """A number for each row, the same for rows that are equal in every value."""
    numbers: dict[bytes, int] = {}
    found = [numbers.setdefault(sha256(row.tobytes()).digest(), len(numbers)) for row in rows]
    return np.asarray(found, np.int64)


def recalls(
    images: Features,
    texts: Texts,
    owner: Int[np.ndarray, "c"],
    ranks: Sequence[int] = RANKS,
    *,
    images_alike: Int[np.ndarray, "n"] | None = None,
    texts_alike: Int[np.ndarray, "c"] | None = None,
) -> dict[str, float]:
    """How often the right one is among the k most similar, of all that there are.

    t2i: texts whose own image is; i2t: images of whose texts at least one is (the usual protocol
    of five captions an image). An image that looks the same is as right, and so is one that the
    same was said of: nobody could tell them apart. What is as similar as the right one counts as
    before it, so a model that sees no differences finds nothing.

    Args:
        images: features of each image.
        texts: features of each text.
        owner: which image each text belongs to.
        ranks: the k.
        images_alike: of each image a number that equal ones share (`kinds`); None: all differ.
        texts_alike: the same of texts.

    Returns:
        `t2i_recall_at_1` and so on, in [0, 1].
    """
    looks = np.arange(len(images)) if images_alike is None else images_alike
    words = np.arange(len(texts)) if texts_alike is None else texts_alike
    said = np.zeros((words.max(initial=0) + 1, looks.max(initial=0) + 1), bool)
    said[words, looks[owner]] = True  # these words, of an image that looks so
    of_texts = _before(texts, images, lambda part: said[words[part]][:, looks])
    of_images = _before(images, texts, lambda part: said[:, looks[part]].T[:, words])
    return {
        f"{name}_recall_at_{k}": float((before < k).mean())
        for name, before in (("t2i", of_texts), ("i2t", of_images))
        for k in ranks
    }


def _before(
    queries: np.ndarray,
    others: np.ndarray,
    right: Callable[[slice], np.ndarray],
    chunk: int = 256,
) -> Int[np.ndarray, "q"]:
    """How many wrong ones are at least as similar to each query as the most similar right one.

    `right` tells of a slice of the queries which of the others are: bool [queries, others].
    """
    found = []
    for start in range(0, len(queries), chunk):
        part = slice(start, start + chunk)
        near, own = queries[part] @ others.T, right(part)
        best = np.where(own, near, -np.inf).max(axis=1, keepdims=True)
        found.append(((near >= best) & ~own).sum(axis=1))
    return np.concatenate(found)
