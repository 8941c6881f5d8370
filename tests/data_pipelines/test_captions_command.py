import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import data_pipelines
from data_pipelines.captions import reports, shapes_dataset
from data_pipelines.command import main
from data_pipelines.errors import DataProblem
from data_pipelines.pipelines import open_data
from jaxmodels.files import Exists
from tests.data_pipelines.captioned_on_disk import picture

ROOT = Path(data_pipelines.__file__).parents[1]


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(shapes_dataset, "TRAIN", 30)
    monkeypatch.setattr(shapes_dataset, "HELD_OUT", 10)
    monkeypatch.setattr(reports, "_BATCHES", 10)
    monkeypatch.setattr(reports, "_DECODED", 5)


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    lines = ["file,caption"]
    for i, size in enumerate([(20, 30), (40, 10), (60, 50)]):
        (folder / f"{i}.png").write_bytes(picture(i, size))
        lines += [f"{i}.png,picture {i}"] * (i + 1)
    (folder / "bad.png").write_bytes(b"no image")
    (folder / "captions.csv").write_text("\n".join([*lines, "bad.png,bad", ""]))
    return f"images:{folder}"


def answer(capsys, *argv):
    """The exit code of a command, and the JSON object that it printed."""
    code = main([*map(str, argv), "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_prepare_inspect_train(tmp_path, capsys):
    out = tmp_path / "deep" / "out"
    code, made = answer(capsys, "prepare", "shapes:28", out)
    assert (code, made["images"], made["captions"]) == (0, {"train": 30, "valid": 10}, 200)
    assert (made["side"], made["left_out"], made["folder"]) == (28, {}, str(out))
    code, found = answer(capsys, "inspect", out, "--tokenizer", "words")
    assert (found["images"], found["train_images"], found["valid_images"]) == (40, 30, 10)
    assert (found["captions"], found["captions_per_image"]["median"]) == (200, 5)
    assert (found["width"], found["height"]) == ({"min": 28, "median": 28, "max": 28},) * 2
    assert (found["unknown"], found["source"]["dataset"]) == (0, "shapes/1.0.0")
    assert found["tokens_per_caption"]["max"] <= 18
    data = open_data(f"bin:{out}", folder="", context=18, batch=4, tokenizer="words")
    assert (data.side, data.vocab_size, data.notes) == (28, found["vocab_size"], [])
    for argv in (["prepare", "shapes:28", out], ["prepare", "shapes", out, "--tokenizer", "gpt2"]):
        with pytest.raises((DataProblem, Exists)) as caught:
            main(list(map(str, argv)))
        assert caught.value.exit_code == (6 if len(argv) == 3 else 2)
    code, made = answer(capsys, "prepare", "shapes:14", out, "--side", "56", "--force")
    assert (code, made["side"], made["source"]["drawn_side"]) == (0, 56, 14)


def test_prepare_says_what_it_wrote_and_left_out(images, tmp_path, capsys):
    assert main(["prepare", images, str(tmp_path / "out"), "--side", "28"]) == 0
    out = capsys.readouterr().out
    assert "1 images that cannot be read are left out: bad.png" in out
    assert "3 images, and 0 held out, with 6 captions" in out
    assert f"--data bin:{tmp_path / 'out'}" in out


def test_inspect_of_a_folder_and_of_a_spec(images, tmp_path, capsys):
    code, found = answer(capsys, "inspect", images, "--valid-fraction", "0.34")
    assert (code, found["images"], found["valid_images"], found["captions"]) == (0, 3, 1, 6)
    assert found["width"] == {"min": 20, "median": 40, "max": 60}
    assert found["height"] == {"min": 10, "median": 30, "max": 50}
    assert found["captions_per_image"] == {"min": 1, "median": 2, "max": 3}
    assert found["left_out"] == {"images that cannot be read": 1}
    assert found["excerpt"] == ["picture 0"]
    assert list(tmp_path.iterdir()) == [tmp_path / "images"]  # nothing stays
    assert main(["inspect", images, "--valid-fraction", "0"]) == 0
    out = capsys.readouterr().out
    assert "images that cannot be read 1" in out
    assert "min 20, median 40.0, max 60" in out


@pytest.mark.parametrize("prepared", [False, True])
def test_bench(images, prepared, tmp_path, capsys):
    what = images
    if prepared:
        what = tmp_path / "out"
        assert main(["prepare", images, str(what), "--side", "28"]) == 0
        capsys.readouterr()
    code, found = answer(capsys, "bench", what, "--batch", "2", "--context", "8")
    assert (code, found["batch"], found["context"]) == (0, 2, 8)
    assert found["images_per_second"].keys() == {"loader", "loader_unthreaded", "decoding"}
    assert min(found["images_per_second"].values()) > 0
    assert main(["bench", str(what), "--batch", "2"]) == 0
    assert "images/s" in capsys.readouterr().out


@pytest.mark.slow
def test_drawing_prints_nothing_and_needs_no_tensorflow(tmp_path):
    code = (
        "import sys\n"
        "from data_pipelines.captions import shapes_dataset\n"
        "shapes_dataset.TRAIN, shapes_dataset.HELD_OUT = 20, 5\n"
        "from data_pipelines.command import main\n"
        "code = main(['prepare', 'shapes:14', sys.argv[1], '--json'])\n"
        "assert code == 0 and not {'tensorflow', 'torch'} & set(sys.modules)\n"
    )
    argv = [sys.executable, "-c", code, str(tmp_path / "out")]
    done = subprocess.run(argv, cwd=ROOT, env=os.environ, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["images"] == {"train": 20, "valid": 5}
