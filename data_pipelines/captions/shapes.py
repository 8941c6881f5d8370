"""Scenes of two coloured shapes, and true captions of them.

The held-out scenes show combinations that training never does, of parts that it does, once each:
retrieval has one right answer.
"""

from dataclasses import dataclass
from functools import cache
from itertools import permutations, product
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

TRAIN, HELD_OUT = 10_000, 256
"""Training and held-out images."""

COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 170, 70),
    "blue": (50, 90, 220),
    "yellow": (240, 210, 50),
    "purple": (150, 60, 180),
    "white": (235, 235, 235),
}
SHAPES = ("circle", "square", "triangle", "diamond", "cross")
SIZES = {"small": 0.11, "large": 0.19}
"""Half the width of an object, as a share of the image's side."""

PLACES = {
    "left": ("left of", "right of", "on the left", "on the right"),
    "above": ("above", "below", "at the top", "at the bottom"),
}
"""The relation of the first object to the second → the words for it, for its inverse, and for the
position of each."""

_SUPERSAMPLING = 4  # drawn so many times larger and averaged, for smooth edges
_MARGIN, _GAP = 0.02, 0.05  # shares of the side


class ShapeKind(NamedTuple):
    """Colour and shape of an object."""

    colour: str
    shape: str


class Combination(NamedTuple):
    """The content of a scene, sizes aside."""

    first: ShapeKind
    relation: str
    second: ShapeKind


@dataclass(frozen=True)
class Thing:
    """A shape at its position."""

    kind: ShapeKind
    size: str
    x: float
    """Its centre, as a share of the side, from the left."""
    y: float
    """The same from the top."""
    rgb: tuple[int, int, int]
    """The exact colour, near that of its name."""

    @property
    def name(self) -> str:
        """Its name in captions."""
        return f"{self.size} {self.kind.colour} {self.kind.shape}"


@dataclass(frozen=True)
class Scene:
    """Two different objects on a dark ground; the first is left of the second, or above."""

    first: Thing
    second: Thing
    relation: str
    ground: int
    """Grey level behind them."""

    @property
    def combination(self) -> Combination:
        """Its content, sizes aside."""
        return Combination(self.first.kind, self.relation, self.second.kind)


@cache
def combinations(seed: int = 0) -> tuple[tuple[Combination, ...], tuple[Combination, ...]]:
    """Training and held-out combinations: disjoint, drawn by the seed."""
    kinds = [ShapeKind(*each) for each in product(COLOURS, SHAPES)]
    every = [Combination(a, r, b) for (a, b), r in product(permutations(kinds, 2), PLACES)]
    drawn = [every[i] for i in np.random.default_rng(seed).permutation(len(every))]
    return tuple(drawn[HELD_OUT:]), tuple(drawn[:HELD_OUT])


def scene(index: int, held_out: bool = False, seed: int = 0) -> Scene:
    """Scene `index` of the training or the held-out scenes.

    Each held-out scene shows another combination, so that a caption fits one of them only.

    Args:
        index: from 0 on; below HELD_OUT where `held_out`.
        held_out: which of the two.
        seed: draws everything.
    """
    rng = np.random.default_rng([seed, int(held_out), index])
    seen, kept = combinations(seed)
    shown = kept[index] if held_out else seen[rng.integers(len(seen))]
    sizes = rng.choice(list(SIZES), 2).tolist()
    radii = [SIZES[size] for size in sizes]
    along, across = _places(rng, *radii)
    where = list(zip(along, across, strict=True))
    if shown.relation == "above":
        where = [(x, y) for y, x in where]
    first, second = (
        Thing(kind, size, *place, _near(rng, COLOURS[kind.colour]))
        for kind, size, place in zip((shown.first, shown.second), sizes, where, strict=True)
    )
    return Scene(first, second, shown.relation, int(rng.integers(0, 90)))


def captions(scene: Scene) -> tuple[str, ...]:
    """Five sentences in lower case without punctuation; each describes the full scene.

    >>> captions(scene(0))[0]
    'a large green circle is left of a large purple circle'
    """
    one, two = scene.first.name, scene.second.name
    here, there, at_here, at_there = PLACES[scene.relation]
    return (
        f"a {one} is {here} a {two}",
        f"a {two} is {there} a {one}",
        f"there is a {one} {at_here} and a {two} {at_there}",
        f"{there} a {one} you see a {two}",
        f"a {one} with a {two} {there} it",
    )


def draw(scene: Scene, side: int) -> UInt8[np.ndarray, "h w 3"]:
    """The image of a scene, `side` pixels wide and high."""
    from PIL import Image, ImageDraw

    large = side * _SUPERSAMPLING
    image = Image.new("RGB", (large, large), (scene.ground,) * 3)
    pen = ImageDraw.Draw(image)
    for thing in (scene.first, scene.second):
        x, y, r = (large * share for share in (thing.x, thing.y, SIZES[thing.size]))
        if thing.kind.shape == "circle":
            pen.ellipse((x - r, y - r, x + r, y + r), fill=thing.rgb)
        for corners in _POLYGONS.get(thing.kind.shape, ()):
            pen.polygon([(x + r * a, y + r * b) for a, b in corners], fill=thing.rgb)
    return np.asarray(image.reduce(_SUPERSAMPLING))


def _bar(a: float, b: float) -> list[tuple[float, float]]:
    return [(-a, -b), (a, -b), (a, b), (-a, b)]


_POLYGONS: dict[str, tuple[list[tuple[float, float]], ...]] = {
    "square": (_bar(0.9, 0.9),),
    "triangle": ([(0, -1), (1, 0.9), (-1, 0.9)],),
    "diamond": ([(0, -1), (0.75, 0), (0, 1), (-0.75, 0)],),
    "cross": (_bar(1.0, 0.3), _bar(0.3, 1.0)),
}


def _places(
    rng: np.random.Generator, a: float, b: float
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Positions of two objects of these radii along the axis of their relation, and across it.

    They do not touch along the axis, and are at least twice as far from each other along it as
    across, so that only one relation is true of them.
    """
    free = 1 - 2 * (_MARGIN + a + b) - _GAP
    before, after = np.sort(rng.uniform(0, free, 2))
    start, end = _MARGIN + a + before, _MARGIN + 2 * a + _GAP + b + after
    level = rng.uniform(_MARGIN + a, 1 - _MARGIN - a)
    other = level + rng.uniform(-0.5, 0.5) * (end - start)
    other = np.clip(other, _MARGIN + b, 1 - _MARGIN - b)
    return (float(start), float(end)), (float(level), float(other))


def _near(rng: np.random.Generator, rgb: tuple[int, int, int]) -> tuple[int, int, int]:
    red, green, blue = np.clip(np.array(rgb) + rng.integers(-15, 16, 3), 0, 255).tolist()
    return red, green, blue
