"""A run's damaged config.json gives an error message, whatever was damaged."""

import json
import shutil

import pytest

from jaxmodels.__main__ import main
from jaxmodels.errors import CORRUPT, USAGE
from tests.conftest import GOLDEN

SOUND = GOLDEN / "previous" / "run"


def changed(key: str, value: object) -> bytes:
    config = json.loads((SOUND / "config.json").read_bytes())
    return json.dumps(config | {key: value}).encode()


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b'{"arch": "charlm\xba"}', USAGE),
        (b"[" * 100_000, USAGE),
        ((SOUND / "config.json").read_bytes().replace(b'"arch"', b'"`rch"'), CORRUPT),
        ((SOUND / "config.json").read_bytes().replace(b'"preset"', b'"qreset"'), CORRUPT),
        *((changed(key, value), CORRUPT) for key in ("arch", "preset") for value in (None, 1)),
        *((changed(key, value), CORRUPT) for key in ("model", "recipe") for value in (None, [])),
        (changed("recipe", {"optim": 1}), CORRUPT),
    ],
)
def test_it_is_refused(tmp_path, capsys, content, code):
    run = shutil.copytree(SOUND, tmp_path / "run")
    (run / "config.json").write_bytes(content)
    assert main(["train", "--out", str(run)]) == code
    error = capsys.readouterr().err
    assert str(run / "config.json") in error
    assert "defect" not in error
