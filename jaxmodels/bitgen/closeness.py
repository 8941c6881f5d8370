"""Whether a query is about an item of the memory, or about nothing that was written.

A query is compared with the keys of all items, texts with texts and images with images (or with
the text of an item without an image), and is answered if the nearest is similar enough. How similar
unrelated things are depends on the model and on the number of items, so the threshold is measured
on held-out pairs: each is once the query of something that was not written, against as many other
pairs as the memory has items, and one in a hundred may pass. Without such pairs (`estimate`), the
items themselves and the last features of training are used.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float32

from jaxmodels.bitgen.record import Closeness, Item, Record, Threshold

ERRING = 0.01
"""False positive rate at which a threshold is set, on the pairs that it is measured on."""
SAME = 0.999
"""The threshold without anything to measure on: only the same text or image passes."""
LARGEST = 1 - 1e-5
"""More than rounding changes the similarity of a thing to itself."""
_ENOUGH = 8  # features; from fewer no threshold is measured

Features = Float32[np.ndarray, "n d"]


@dataclass(frozen=True)
class Found:
    """The item nearest to a query."""

    item: Item
    similarity: float
    least: float
    """The similarity from which the query is about the item."""

    @property
    def close(self) -> bool:
        """Whether the query is about the item."""
        return self.similarity >= self.least


def nearest(
    record: Record, closeness: Closeness, feature: Float32[np.ndarray, "d"], image: bool
) -> Found | None:
    """The item nearest to a query, relative to its threshold; None if there are no items.

    Args:
        record: the items.
        closeness: the thresholds.
        feature: unit feature of the query.
        image: whether the query is an image.
    """
    found = []
    for item in record.items:
        pictured = image and item.kind != "text"
        kind = closeness.image if pictured else closeness.cross if image else closeness.text
        similarity = float(feature @ (item.key if pictured else item.text_key))
        found.append(Found(item, similarity, kind.least))
    # Thresholds differ, so distances are relative to them.
    return min(found, key=lambda f: (1 - f.similarity) / (1 - f.least), default=None)


def measure(
    texts: Features, images: Features, again: Features, same: Bool[np.ndarray, "n n"],
    slots: int, data: str,
) -> Closeness:  # fmt: skip
    """Thresholds measured on held-out pairs.

    Args:
        texts: unit features of their texts.
        images: of their images.
        again: of the same images, recompressed as JPEG.
        same: bool: pairs with the same image or text, which are not different things.
        slots: number of items that the memory can hold.
        data: spec of the data that the pairs are from.
    """
    others = _others(same, slots)
    return Closeness(
        _threshold(texts @ texts.T, np.ones(len(texts)), others),
        _threshold(images @ images.T, (images * again).sum(axis=1), others),
        _threshold(images @ texts.T, (images * texts).sum(axis=1), others),
        len(texts),
        data,
    )


def estimate(record: Record, texts: Features, images: Features) -> Closeness:
    """Thresholds without held-out pairs, by the items and the features of the last training pairs.

    Args:
        record: the items.
        texts: features of the texts of the last training steps; may be empty.
        images: features of their images.
    """
    pictured = [item.key for item in record.items if item.kind != "text"]
    all_texts = np.concatenate([texts, *(item.text_key[None] for item in record.items)])
    all_images = np.concatenate([images, *(key[None] for key in pictured)])
    cross = images @ texts.T
    return Closeness(
        _among(all_texts @ all_texts.T),
        _among(all_images @ all_images.T),
        _among(cross, np.diagonal(cross)),
        len(texts) + len(record.items),
        "",
    )


def _among(
    similar: Float[np.ndarray, "n n"], own: Float[np.ndarray, "n"] | None = None
) -> Threshold:
    """The threshold by how similar different things are to each other."""
    if len(similar) < _ENOUGH:
        return Threshold(SAME, 0.0, 0.0)
    # Things that are as similar as one thing to itself are duplicates.
    same = similar > LARGEST
    np.fill_diagonal(same, True)
    if same.all():
        return Threshold(SAME, 0.0, 0.0)
    return _threshold(similar, np.ones(len(similar)) if own is None else own, ~same)


def _others(same: Bool[np.ndarray, "n n"], slots: int) -> Bool[np.ndarray, "n n"]:
    """For each pair, the `slots` others that are in the memory while it is not."""
    drawn = np.random.default_rng(0).random(same.shape)
    drawn[same] = np.inf
    places = drawn.argsort(axis=1).argsort(axis=1)
    return (places < slots) & ~same


def _threshold(
    similar: Float[np.ndarray, "n n"],
    own: Float[np.ndarray, "n"],
    others: Bool[np.ndarray, "n n"],
) -> Threshold:
    """The threshold that one in a hundred queries about nothing written passes.

    Args:
        similar: of each query with each thing.
        own: of each query with its own thing.
        others: the things in the memory while the query's own is not.
    """
    beside = np.where(others, similar, -1).max(axis=1)
    least = float(np.quantile(beside, 1 - ERRING, method="higher"))
    least = min(np.nextafter(least, 2), LARGEST)
    return Threshold(
        float(least),
        answered=float((beside >= least).mean()),
        refused=float((np.maximum(own, beside) < least).mean()),
    )
