"""When a query is about something that was written into a memory, and when about nothing.

A query is compared with the keys of all items, texts with texts and images with images (with the
text of an item that has no image), and is answered if the nearest is near enough. How near two
different things are depends on the model and on how many were written, so that the threshold is
measured: of pairs that were not written, most must stay below it.

Each pair stands once for a query that was not written, beside as many others as the memory holds;
the threshold is the nearness that one in a hundred of them reaches. Without pairs (`estimate`), the
items themselves and the last features of training stand for them.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float32

from jaxmodels.bitgen.record import Closeness, Item, Record, Threshold

ERRING = 0.01
"""Share of queries about nothing written that a threshold lets pass where it was measured."""
SAME = 0.999
"""Without anything to measure on, only the same text or image counts."""
LARGEST = 1 - 1e-5
"""Rounding moves the feature of the same thing by less."""
_ENOUGH = 8  # features; fewer say nothing about how near different things are

Features = Float32[np.ndarray, "n d"]


@dataclass(frozen=True)
class Found:
    """The item that a query is nearest to."""

    item: Item
    similarity: float
    least: float
    """The least similarity that counts."""

    @property
    def close(self) -> bool:
        """Whether the query is about it."""
        return self.similarity >= self.least


def nearest(
    record: Record, closeness: Closeness, feature: Float32[np.ndarray, "d"], image: bool
) -> Found | None:
    """The item that a query is nearest to by its threshold; None where there is none.

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
    # Distances as a share of the largest that counts: thresholds differ.
    return min(found, key=lambda f: (1 - f.similarity) / (1 - f.least), default=None)


def measure(
    texts: Features, images: Features, again: Features, same: Bool[np.ndarray, "n n"],
    slots: int, data: str,
) -> Closeness:  # fmt: skip
    """Thresholds measured on held-out pairs.

    Args:
        texts: unit features of their texts.
        images: of their images.
        again: of the same images after they were saved as JPEG.
        same: which pairs have the same image or text, and so are no different things.
        slots: how many things the memory holds.
        data: names the pairs.
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
    """Thresholds by what is at hand: the items, and features of the last pairs of training.

    Args:
        record: the items.
        texts: features of texts that the model was trained on last; may be empty.
        images: of their images.
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
    """The threshold by how near the different ones of some things are to each other."""
    if len(similar) < _ENOUGH:
        return Threshold(SAME, 0.0, 0.0)
    # What is as near as the same is the same, written twice or drawn twice.
    same = similar > LARGEST
    np.fill_diagonal(same, True)
    if same.all():
        return Threshold(SAME, 0.0, 0.0)
    return _threshold(similar, np.ones(len(similar)) if own is None else own, ~same)


def _others(same: Bool[np.ndarray, "n n"], slots: int) -> Bool[np.ndarray, "n n"]:
    """For each pair the others that are written when it is not: as many as there are slots."""
    drawn = np.random.default_rng(0).random(same.shape)
    drawn[same] = np.inf
    places = drawn.argsort(axis=1).argsort(axis=1)
    return (places < slots) & ~same


def _threshold(
    similar: Float[np.ndarray, "n n"],
    own: Float[np.ndarray, "n"],
    others: Bool[np.ndarray, "n n"],
) -> Threshold:
    """The threshold that one in a hundred queries about nothing written reaches.

    Args:
        similar: of each query with each thing.
        own: of each query with the thing that it is about.
        others: the things that are written while the query's own is not.
    """
    beside = np.where(others, similar, -1).max(axis=1)
    least = float(np.quantile(beside, 1 - ERRING, method="higher"))
    least = min(np.nextafter(least, 2), LARGEST)
    return Threshold(
        float(least),
        answered=float((beside >= least).mean()),
        refused=float((np.maximum(own, beside) < least).mean()),
    )
