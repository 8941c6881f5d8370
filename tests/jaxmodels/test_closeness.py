"""When a query counts as being about an item of the memory, on random features."""

import numpy as np
import pytest

from jaxmodels.bitgen import closeness
from jaxmodels.bitgen.record import Item, Record


def unit(x):
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


class World:
    """Things, their texts and pictures: features of one thing are alike, and all somewhat."""

    def __init__(self, spread, noise, seed):
        self.spread, self.noise, self.rng = spread, noise, np.random.default_rng(seed)
        self.common = self.rng.standard_normal(32)

    def pairs(self, n):
        things = self.common + self.spread * self.rng.standard_normal((n, 32))
        return tuple(unit(self.again(things)) for _ in range(2))

    def again(self, things):
        return things + self.noise * self.rng.standard_normal(things.shape)


def record_of(texts, images):
    items = [
        Item(0, "caption", str(i), "", "", image, text, text)
        for i, (text, image) in enumerate(zip(texts, images, strict=True))
    ]
    return Record().with_items(items)


def share_close(record, kinds, features, image):
    found = [closeness.nearest(record, kinds, feature, image) for feature in features]
    return np.mean([f.close for f in found]), [f.item.text for f in found]


# Features that are all alike, as a poorly trained model's, and features far from each other.
@pytest.mark.parametrize("spread", [0.1, 0.5, 3.0])
@pytest.mark.parametrize("slots", [64, 500])
def test_few_of_200_unwritten_are_answered_and_few_of_200_written_refused(spread, slots):
    world = World(spread, 0.05 * spread, seed=3)
    texts, images = world.pairs(256)
    jpeg = unit(images + 0.01 * spread * world.rng.standard_normal(images.shape) / 32**0.5)
    kinds = closeness.measure(texts, images, jpeg, np.eye(256, dtype=bool), slots, "drawn")
    size = min(slots, 200)
    for image in (False, True):
        answered = refused = 0
        for _ in range(-(-200 // size)):
            words, looks = world.pairs(size)
            record = record_of(words, looks)
            other = world.pairs(size)[image]
            answered += share_close(record, kinds, other, image)[0]
            share, names = share_close(record, kinds, (words, looks)[image], image)
            assert names == [item.text for item in record.items]
            refused += 1 - share
        assert answered / -(-200 // size) <= 0.05
        assert refused == 0
    assert kinds.image.refused <= 0.05
    assert kinds.cross.refused <= 0.05  # an image finds the text of its thing


def test_what_cannot_be_told_apart_is_reported_as_refused():
    world = World(0.5, 1.0, seed=3)  # a text says little about its image
    texts, images = world.pairs(256)
    kinds = closeness.measure(texts, images, images, np.eye(256, dtype=bool), 64, "drawn")
    assert kinds.cross.refused > 0.5
    assert kinds.cross.answered <= closeness.ERRING


def test_without_pairs_the_items_themselves_say_how_near_different_things_are():
    world = World(0.5, 0.02, seed=3)
    record = record_of(*world.pairs(200))
    none = np.zeros((0, 32), np.float32)
    kinds = closeness.estimate(record, none, none)
    for image in (False, True):
        assert share_close(record, kinds, world.pairs(200)[image], image)[0] <= 0.05


def test_of_a_few_items_only_the_same_counts():
    world = World(0.5, 0.02, seed=3)
    texts, images = world.pairs(3)
    record, none = record_of(texts, images), np.zeros((0, 32), np.float32)
    kinds = closeness.estimate(record, none, none)
    assert kinds.text.least == closeness.SAME
    assert share_close(record, kinds, texts, False)[0] == 1
    assert share_close(record, kinds, world.pairs(50)[0], False)[0] == 0


def test_twins_among_the_pairs_are_no_different_things():
    world = World(0.5, 0.02, seed=3)
    texts, images = (np.concatenate([x, x]) for x in world.pairs(128))
    same = texts @ texts.T > closeness.LARGEST
    kinds = closeness.measure(texts, images, images, same, 64, "drawn")
    assert kinds.text.least < closeness.LARGEST
