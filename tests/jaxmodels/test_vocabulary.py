"""Rows of the embedding, tokens of the data, and which of them a run gets."""

import json
from pathlib import Path

import pytest

from jaxmodels.__main__ import main
from jaxmodels.errors import DONE

SMALL = ["--steps", "1", "--eval-every", "9", "--sample-every", "0", "--batch", "2"]
LETTERS = "abcdefghijklmnopqrstuvwxyz .☃"  # with the two special ones 31 tokens


@pytest.fixture
def text(tmp_path) -> str:
    (tmp_path / "t.txt").write_text(LETTERS * 100)
    return f"text:{tmp_path / 't.txt'}"


def sizes(run: Path) -> tuple[int, int | None]:
    model = json.loads((run / "config.json").read_text())["model"]
    return model["vocab"], model.get("tokens")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spec", "vocab", "expected", "words"),
    [
        ("wikigpt:tiny", "320", (320, 31), "model.vocab stays 320"),
        ("wikigpt:tiny", None, (64, 31), "model.tokens is set to 31"),
        ("charlm:tiny", "320", (31, None), "model.vocab is set to 31 by the data, not 320"),
        ("charlm:tiny", None, (31, None), ""),
    ],
)
def test_a_vocabulary_that_was_given_stays(text, tmp_path, capsys, spec, vocab, expected, words):
    run = tmp_path / "run"
    given = ["--model.vocab", vocab] if vocab else []
    start = ["train", spec, "--out", str(run), "--data", text, *SMALL]
    assert main([*start, "--min-freq", "1", *given]) == DONE
    assert sizes(run) == expected
    assert words in capsys.readouterr().err
    if expected == (320, 31):  # it is the run's, whether it is said again or not
        assert main([*start, "--min-freq", "1", "--steps", "2"]) == DONE
        assert sizes(run) == expected
