"""Accuracy of answers, against the numbers of VQA's published evaluation."""

import json

import pytest

from jaxmodels.runtime.vqa import accuracy, chance, normalised


@pytest.fixture(scope="module")
def published(golden):
    """What `vqaEval.py` makes of drawn answers, full of what it has rules for."""
    return json.loads((golden / "vqa.json").read_text(encoding="utf-8"))


def test_answers_are_normalised_as_published(published):
    pairs = published["normalised"]
    assert len(pairs) > 200
    assert [normalised(answer) for answer, _ in pairs] == [form for _, form in pairs]


def test_the_accuracy_is_the_published_one(published):
    rows = published["accuracy"]
    found = [accuracy(row["answer"], row["answers"]) for row in rows]
    assert found == pytest.approx([row["accuracy"] for row in rows], abs=1e-7)
    assert {0.0, 0.3, 0.6, 0.9, 1.0} == {round(value, 1) for value in found}


@pytest.mark.parametrize(
    ("answer", "answers", "expected"),
    [
        ("Red.", ["red"], 1.0),
        ("blue", ["red"], 0.0),
        ("red", ["red", "red"], 1.0),
        ("red", ["red", "blue"], 0.5),
        ("red", ["red", "red", "blue"], 2 / 3),
        ("red", ["red"] * 3 + ["blue"], (3 * 2 / 3 + 1) / 4),
    ],
)
def test_fewer_people_than_ten(answer, answers, expected):
    assert accuracy(answer, answers) == pytest.approx(expected)


def test_the_chance_level_is_that_of_the_best_constant_answer():
    asked = [["red"] * 10, ["The red!"] * 2 + ["blue"] * 8, ["green"]]
    best = [accuracy("red", answers) for answers in asked]
    assert best == [1.0, pytest.approx((2 / 3 + 8 * 2 / 3 - 2 / 3 + 2 * 1 / 3 - 0) / 10), 0.0]
    assert chance(asked) == pytest.approx(sum(best) / 3)
    assert chance([]) == 0.0
