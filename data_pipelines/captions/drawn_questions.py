"""Questions about the drawn scenes, each with its one true answer.

Every scene is asked the same number of questions of each kind. The held-out scenes show
combinations of objects that training never does, so their answers cannot be remembered.
"""

import numpy as np

from data_pipelines.captions.shapes import COLOURS, PLACES, SHAPES, SIZES, Scene, Thing, scene
from data_pipelines.captions.source import Question

KINDS = ("colour", "shape", "count", "relation")
_SEED = 1  # of the draws, besides that of the scene


def questions(index: int, held_out: bool = False) -> tuple[Question, ...]:
    """The questions of scene `index` of the training or the held-out scenes.

    Two each about the colour, the shape and the place of an object, and three about how many
    there are.

    >>> [q.text for q in questions(0)][:2]
    ['what colour is the circle on the left', 'what colour is the circle on the right']
    """
    shown = scene(index, held_out)
    rng = np.random.default_rng([_SEED, int(held_out), index])
    asked = [*_colours(shown), *_shapes(shown), *_counts(shown, rng), *_relations(shown)]
    first = index * len(asked)
    return tuple(
        Question(first + i, text, (answer,), kind) for i, (kind, text, answer) in enumerate(asked)
    )


def _colours(shown: Scene) -> list[tuple[str, str, str]]:
    one, two = shown.first.kind, shown.second.kind
    places = _places(shown) if one.shape == two.shape else ("", "")
    return [
        ("colour", f"what colour is the {kind.shape}{place}", kind.colour)
        for kind, place in zip((one, two), places, strict=True)
    ]


def _shapes(shown: Scene) -> list[tuple[str, str, str]]:
    one, two = shown.first.kind, shown.second.kind
    places = _places(shown) if one.colour == two.colour else ("", "")
    return [
        ("shape", f"what shape is the {kind.colour} thing{place}", kind.shape)
        for kind, place in zip((one, two), places, strict=True)
    ]


def _counts(shown: Scene, rng: np.random.Generator) -> list[tuple[str, str, str]]:
    """One each of a colour, a shape and a size; two alike are rare, so they are asked for more."""
    one, two = shown.first, shown.second
    found = []
    for values, every, plural in (
        ((one.kind.colour, two.kind.colour), COLOURS, "{} things"),
        ((one.kind.shape, two.kind.shape), SHAPES, "{}s"),
        ((one.size, two.size), SIZES, "{} things"),
    ):
        absent = [name for name in every if name not in values]
        alike = values[0] == values[1]
        seen = not absent or rng.random() < (0.7 if alike else 0.5)
        name = str(rng.choice(values if seen else absent))
        text = f"how many {plural.format(name)} are there".replace("crosss", "crosses")
        found.append(("count", text, str(values.count(name))))
    return found


def _relations(shown: Scene) -> list[tuple[str, str, str]]:
    one, two = (_named(thing) for thing in (shown.first, shown.second))
    here, there = ("left", "right") if shown.relation == "left" else ("above", "below")
    return [
        ("relation", f"where is the {one} from the {two}", here),
        ("relation", f"where is the {two} from the {one}", there),
    ]


def _named(thing: Thing) -> str:
    return f"{thing.kind.colour} {thing.kind.shape}"


def _places(shown: Scene) -> tuple[str, str]:
    """What tells the objects apart, with a space before it."""
    _, _, here, there = PLACES[shown.relation]
    return f" {here}", f" {there}"
