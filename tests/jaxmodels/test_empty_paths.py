"""An empty path is refused: it would mean the current folder."""

import pytest

from jaxmodels.__main__ import main
from jaxmodels.errors import USAGE


@pytest.mark.parametrize(
    "words",
    [
        ["train", "charlm:tiny", "--out", ""],
        ["train", "charlm:tiny", "--out="],
        ["train", "charlm:tiny", "--out", "run", "--config", ""],
        ["train", "charlm:tiny", "--out", "run", "--init", ""],
        ["convert", "run", "", "--force"],
        ["convert", "", "model"],
        ["report", "run", "-o", ""],
        ["data", "prepare", "pydoc", "", "--force"],
        ["verify", "run", "--against", ""],
        ["generate", ""],
        ["bench", "host", "--out", ""],
        ["pull", "hf://a/b", "", "--force"],
    ],
    ids=" ".join,
)
def test_an_empty_path_is_refused(tmp_path, monkeypatch, capsys, words):
    monkeypatch.chdir(tmp_path)
    assert main(words) == USAGE
    said = capsys.readouterr().err
    assert "a path is empty" in said
    assert not list(tmp_path.iterdir())


def test_an_empty_text_is_a_text(tmp_path, capsys):
    assert main(["generate", str(tmp_path / "none"), "--prompt", ""]) != USAGE
