"""Questions about drawn scenes, and their answers, by rules of the test's own."""

import re
from collections import Counter

import numpy as np
import pytest

from data_pipelines.captions.drawn_questions import KINDS, questions
from data_pipelines.captions.shapes import HELD_OUT, scene

PLURAL = {"circles": "circle", "squares": "square", "triangles": "triangle"}
PLURAL |= {"diamonds": "diamond", "crosses": "cross"}


def true_answer(shown, text):
    """The answer that a scene's objects and their places give, whatever else the code says."""
    things = [
        {"words": {t.size, t.kind.colour, t.kind.shape}, "kind": t.kind, "x": t.x, "y": t.y}
        for t in (shown.first, shown.second)
    ]
    if found := re.fullmatch(r"how many (\w+)( things)? are there", text):
        word = PLURAL.get(found[1], found[1])
        return str(sum(word in thing["words"] for thing in things))
    if found := re.fullmatch(r"where is the (\w+) (\w+) from the (\w+) (\w+)", text):
        here, there = (
            next(t for t in things if set(words) <= t["words"])
            for words in (found.groups()[:2], found.groups()[2:])
        )
        across, down = here["x"] - there["x"], here["y"] - there["y"]
        if abs(across) > abs(down):
            return "left" if across < 0 else "right"
        return "above" if down < 0 else "below"
    found = re.fullmatch(r"what (colour|shape) is the (\w+)( thing)?(.*)", text)
    order = {
        " on the left": lambda t: t["x"],
        " on the right": lambda t: -t["x"],
        " at the top": lambda t: t["y"],
        " at the bottom": lambda t: -t["y"],
    }
    fit = [t for t in things if found[2] in t["words"]]
    assert len(fit) == (2 if found[4] else 1), text
    return getattr(min(fit, key=order.get(found[4], id))["kind"], found[1])


@pytest.mark.parametrize("held_out", [False, True])
def test_every_answer_is_true_and_the_only_one(held_out):
    ids = set()
    for i in range(HELD_OUT):
        for question in questions(i, held_out):
            assert question.answers == (true_answer(scene(i, held_out), question.text),), question
            ids.add(question.id)
    assert len(ids) == 9 * HELD_OUT


def test_no_kind_can_be_answered_without_looking():
    """The most frequent answer of each kind is right for fewer than half of the questions."""
    answers = {kind: Counter() for kind in KINDS}
    for i in range(HELD_OUT):
        for question in questions(i, held_out=True):
            answers[question.kind][question.answers[0]] += 1
    for kind, limit in (("colour", 0.25), ("shape", 0.3), ("count", 0.5), ("relation", 0.35)):
        assert max(answers[kind].values()) / answers[kind].total() <= limit, kind


def test_questions_are_the_same_each_time():
    assert questions(3) == questions(3)
    assert [q.text for q in questions(3)] != [q.text for q in questions(3, held_out=True)]
    assert np.unique([len(questions(i)) for i in range(20)]).tolist() == [9]
