"""`train` on characters of a streamed dataset: killed, resumed, measured."""

import json

import pytest

from jaxmodels.__main__ import main
from jaxmodels.errors import DONE, MISMATCH
from jaxmodels.runtime.runs import rundir
from tests.data_pipelines import tfds_on_disk
from tests.jaxmodels.helpers import command, losses, params, same, train

DATA = ["--data", "tfds:tiny_texts", "--vocab-documents", "20", "--batch", "4"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    tfds_on_disk.write(folder, [f"This is document {i}; {chr(0xE0 + i)}. " for i in range(100)])
    return folder


@pytest.fixture(autouse=True)
def here(root, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(root))


@pytest.mark.slow
def test_a_killed_run_goes_on_with_its_vocabulary_and_its_place(tmp_path, monkeypatch, capsys):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert train(whole, *DATA) == DONE
    flags = ["--steps", "30", "--eval-every", "10", "--save-every", "10", "--sample-every", "0"]
    process = command("train", "charlm:tiny", "--out", str(cut), *flags, *DATA)
    for line in process.stderr:
        if line.startswith("step 20/"):
            break
    process.kill()
    process.wait()
    assert rundir.steps(cut / "checkpoints")
    found = json.loads((cut / "characters.json").read_text())
    assert 20 <= len(found["chars"]) < 60  # those of twenty documents, not of a hundred

    def count(*args):
        raise AssertionError("the documents were counted again")

    monkeypatch.setattr("data_pipelines.streamed_dataset.characters_of", count)
    assert main(["train", "--out", str(cut)]) == DONE
    assert losses(cut) == losses(whole)
    assert same(params(cut, 30), params(whole, 30))
    capsys.readouterr()
    assert main(["eval", str(cut), "--json"]) == DONE
    report = json.loads(capsys.readouterr().out)  # what is <UNK> was one character too
    assert 0 < report["bits_per_character"] == report["bits_per_token"]
    assert train(cut, *DATA, "--vocab-documents", "30") == MISMATCH
    assert "--vocab-documents 20 → 30" in capsys.readouterr().err
