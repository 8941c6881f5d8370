"""Similarity of images and texts, and retrieval recall."""

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
"""The k of recall@k."""

Features = Float[np.ndarray, "n d"]
Texts = Float[np.ndarray, "c d"]


class Encoder:
    """A model's unit-norm features of images alone and of texts alone.

    Args:
        model: has `text_features(tokens, mask)` and `image_features(images)`; one whose
            `text_features` has no `mask` treats padding like tokens.
    """

    def __init__(self, model: Any):
        graphdef, self.params, self.model_state = split(model)
        masked = "mask" in inspect.signature(type(model).text_features).parameters

        def of_texts(params: Arrays, model_state: Arrays, tokens: Any, mask: Any) -> jax.Array:
            more = {"mask": mask} if masked else {}
            found: jax.Array = graphdef.merge(params, model_state).text_features(tokens, **more)
            return found

        def of_images(params: Arrays, model_state: Arrays, images: Any) -> jax.Array:
            pixels = images.astype(jnp.float32) / 255
            found: jax.Array = graphdef.merge(params, model_state).image_features(pixels)
            return found

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
    """Cosine similarity of images and texts by a model's features, in [-1, 1].

    Args:
        model: a vision-language model, as `bridge.load` returns it.
        images: uint8, of a size that the model takes.
        tokens: each text from the start of its row.
        mask: 1 for tokens, 0 for padding; None: no padding.
    """
    encoder = Encoder(model)
    mask = np.ones_like(tokens) if mask is None else mask
    return encoder.images([images]) @ encoder.texts([{"tokens": tokens, "mask": mask}]).T


def duplicate_ids(rows: Iterable[np.ndarray]) -> Int[np.ndarray, "n"]:
    """An id for each row; equal rows have equal ids."""
    numbers: dict[bytes, int] = {}
    found = [numbers.setdefault(sha256(row.tobytes()).digest(), len(numbers)) for row in rows]
    return np.asarray(found, np.int64)


def recalls(
    images: Features,
    texts: Texts,
    image_of_text: Int[np.ndarray, "c"],
    ranks: Sequence[int] = RANKS,
    *,
    image_ids: Int[np.ndarray, "n"] | None = None,
    text_ids: Int[np.ndarray, "c"] | None = None,
) -> dict[str, float]:
    """Recall@k: how often a correct match is among the k most similar of all candidates.

    t2i: texts whose image is; i2t: images of which at least one text is (the usual protocol with
    five captions an image). Identical images are equally correct, and so are images with identical
    captions, as in training; the usual COCO protocol accepts an image's own captions only. Ties
    count against the model, so one that sees no differences scores 0.

    Args:
        images: features of each image.
        texts: features of each text.
        image_of_text: index of the image of each text.
        ranks: the k.
        image_ids: an id for each image, the same for identical ones (`duplicate_ids`); None: all
            differ.
        text_ids: the same for texts.

    Returns:
        `t2i_recall_at_1` and so on, in [0, 1].
    """
    looks = np.arange(len(images)) if image_ids is None else image_ids
    words = np.arange(len(texts)) if text_ids is None else text_ids
    correct = np.zeros((words.max(initial=0) + 1, looks.max(initial=0) + 1), bool)
    correct[words, looks[image_of_text]] = True
    of_texts = _ranks(texts, images, lambda part: correct[words[part]][:, looks])
    of_images = _ranks(images, texts, lambda part: correct[:, looks[part]].T[:, words])
    return {
        f"{name}_recall_at_{k}": float((before < k).mean())
        for name, before in (("t2i", of_texts), ("i2t", of_images))
        for k in ranks
    }


def _ranks(
    queries: np.ndarray,
    candidates: np.ndarray,
    correct: Callable[[slice], np.ndarray],
    chunk: int = 256,
) -> Int[np.ndarray, "q"]:
    """For each query, the number of wrong candidates at least as similar as the best correct one.

    `correct` takes a slice of the queries and returns bool [queries, candidates].
    """
    found = []
    for start in range(0, len(queries), chunk):
        part = slice(start, start + chunk)
        scores, match = queries[part] @ candidates.T, correct(part)
        best = np.where(match, scores, -np.inf).max(axis=1, keepdims=True)
        found.append(((scores >= best) & ~match).sum(axis=1))
    return np.concatenate(found)
