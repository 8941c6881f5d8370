import re

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from data_pipelines.captions.shapes import (
    COLOURS,
    HELD_OUT,
    PLACES,
    SHAPES,
    SIZES,
    TRAIN,
    ShapeKind,
    captions,
    combinations,
    draw,
    scene,
)

NUMBERS = st.integers(0, TRAIN - 1)
THING = rf"({'|'.join(SIZES)}) ({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})"


def parsed(caption):
    """(relation, first thing, second thing) of a caption, by rules of its own.

    A thing is (size, colour, shape); the first is left of the second, or above it.
    """
    things = re.findall(THING, caption)
    assert len(things) == 2, caption
    one, two = things
    words = re.sub(THING, "X", caption)
    rules = {
        "a X is left of a X": ("left", one, two),
        "a X is above a X": ("above", one, two),
        "a X is right of a X": ("left", two, one),
        "a X is below a X": ("above", two, one),
        "there is a X on the left and a X on the right": ("left", one, two),
        "there is a X at the top and a X at the bottom": ("above", one, two),
        "right of a X you see a X": ("left", one, two),
        "below a X you see a X": ("above", one, two),
        "a X with a X right of it": ("left", one, two),
        "a X with a X below it": ("above", one, two),
    }
    return rules[words]


def seen(image):
    """What an image shows, told from its pixels: for each colour the places that have it."""
    found = {}
    pixels = image.astype(int)
    for name, rgb in COLOURS.items():
        near = np.abs(pixels - rgb).max(axis=-1) <= 20
        if near.sum() >= 4:  # a small diamond is mostly edge, whose pixels are blended
            found[name] = np.argwhere(near)
    return found


@given(number=NUMBERS)
def test_every_caption_tells_the_scene(number):
    made = scene(number)
    first, second = made.first, made.second
    expected = (made.relation, (first.size, *first.kind), (second.size, *second.kind))
    sentences = captions(made)
    assert len(set(sentences)) == 5
    for caption in sentences:
        assert parsed(caption) == expected
        assert caption == " ".join(caption.lower().split())


@example(number=252, held_out=True, side=28)
@given(number=NUMBERS, held_out=st.booleans(), side=st.sampled_from([28, 56, 84]))
def test_the_image_shows_what_its_captions_say(number, held_out, side):
    """Colours, relation and sizes, measured on the pixels."""
    made = scene(number % HELD_OUT if held_out else number, held_out)
    image = draw(made, side)
    assert (image.shape, image.dtype) == ((side, side, 3), np.uint8)
    relation, first, second = parsed(captions(made)[0])
    found = seen(image)
    if first[1] == second[1]:
        assert list(found) == [first[1]]
        return
    assert set(found) == {first[1], second[1]}
    before, after = found[first[1]], found[second[1]]
    axis = 1 if relation == "left" else 0
    assert before[:, axis].max() < after[:, axis].min()  # nothing of it is beyond
    apart = after.mean(0) - before.mean(0)
    assert apart[axis] > 1.5 * abs(apart[1 - axis])  # and so the other relation is untrue
    for places, (size, _, _) in ((before, first), (after, second)):
        spread = np.ptp(places, axis=0).max() + 1
        # Between small (22% of the side, crosses and antialiased borders less) and large (38%).
        assert (spread > 0.27 * side) == (size == "large")


@given(number=NUMBERS, side=st.sampled_from([56, 84]))
def test_the_shapes_are_those_that_are_named(number, side):
    """The share of its bounding box that a shape fills: each has its own."""
    made = scene(number)
    if made.first.kind.colour == made.second.kind.colour:
        return
    fills = {"circle": 0.785, "square": 1, "triangle": 0.5, "diamond": 0.5, "cross": 0.51}
    found = seen(draw(made, side))
    for thing in (made.first, made.second):
        places = found[thing.kind.colour]
        height, width = np.ptp(places, axis=0) + 1
        fill = len(places) / (height * width)
        assert fill == pytest.approx(fills[thing.kind.shape], abs=0.13)
        if thing.kind.shape == "diamond":
            assert height > 1.15 * width - 0.5  # whole pixels
        if thing.kind.shape == "triangle":  # its lower half is the wider
            middle = (places[:, 0].min() + places[:, 0].max()) / 2
            assert (places[:, 0] > middle).mean() > 0.6
        if thing.kind.shape == "cross":
            assert abs(height - width) <= 1


def test_held_out_combinations_are_never_trained_on():
    seen_ones, kept = combinations()
    assert len(kept) == HELD_OUT == len(set(kept))
    assert not set(seen_ones) & set(kept)
    kinds = len(COLOURS) * len(SHAPES)
    assert len(seen_ones) + len(kept) == kinds * (kinds - 1) * len(PLACES)
    trained = {scene(i).combination for i in range(TRAIN)}
    assert not trained & set(kept)
    assert len(trained) > 0.99 * len(seen_ones)
    # What is held out is how things go together: each of them, in each place, is trained on.
    parts = {(c.first, c.relation) for c in trained} | {(c.relation, c.second) for c in trained}
    for each in kept:
        assert {(each.first, each.relation), (each.relation, each.second)} <= parts


def test_a_held_out_caption_fits_one_image_only():
    scenes = [scene(i, held_out=True) for i in range(HELD_OUT)]
    assert tuple(s.combination for s in scenes) == combinations()[1]
    meanings = [{parsed(caption) for caption in captions(s)} for s in scenes]
    assert all(len(each) == 1 for each in meanings)
    # Not even without the sizes, and not either with the things in the other order.
    without = {(r, a[1:], b[1:]) for each in meanings for r, a, b in each}
    assert len(without) == HELD_OUT
    sentences = [caption for s in scenes for caption in captions(s)]
    assert len(set(sentences)) == len(sentences) == 5 * HELD_OUT


def test_a_scene_is_its_number_and_nothing_else():
    assert scene(17) == scene(17)
    assert scene(17) != scene(18)
    assert scene(17, seed=1) != scene(17)
    assert scene(17, held_out=True) != scene(17)
    assert np.array_equal(draw(scene(17), 56), draw(scene(17), 56))
    first = scene(0)
    assert (first.relation, first.first.kind) == ("left", ShapeKind("green", "circle"))
    assert captions(first)[0] == "a large green circle is left of a large purple circle"
