"""`train` on a mixture of texts: resumed bit for bit, refused if it would be a different run."""

import json
import shutil
from types import SimpleNamespace

import pytest

from jaxmodels.__main__ import main
from jaxmodels.commands.run_data import open_data
from jaxmodels.commands.train_options import Train
from jaxmodels.errors import DONE, MISMATCH, USAGE
from jaxmodels.recipe import Recipe
from jaxmodels.runtime.stop import Stop
from tests.data_pipelines import tfds_on_disk
from tests.jaxmodels.helpers import losses, params, same, train


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    (folder / "a,b.txt").write_text("one and two. " * 400)
    tfds_on_disk.write(folder, [f"This is document {i}. " for i in range(100)])
    return folder


@pytest.mark.slow
def test_a_run_on_a_mixture_resumes_to_the_bit(root, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TFDS_DATA_DIR", str(root))
    mixture = f"mix:3*text:{root}/a,b.txt,1*tfds:tiny_texts"
    flags = ["--batch", "4", "--keep", "3"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert train(whole, "--data", mixture, *flags) == DONE
    assert f"75.00% of rows from text:{root}/a,b.txt" in capsys.readouterr().err
    state = json.loads((whole / "checkpoints" / "20" / "data.json").read_text())
    assert state["batch"] == 20
    assert state["sources"][0] == 60
    shutil.copytree(whole, cut)
    shutil.rmtree(cut / "checkpoints" / "30")
    assert main(["train", "--out", str(cut)]) == DONE
    assert "resumed from checkpoint 20" in capsys.readouterr().err
    assert losses(cut) == losses(whole)
    assert same(params(cut, 30), params(whole, 30))
    assert main(["eval", str(cut), "--max-batches", "2", "--json"]) == DONE
    assert json.loads(capsys.readouterr().out)["loss"] > 0
    other = mixture.replace("3*", "2*")
    assert train(cut, "--data", other, *flags) == MISMATCH
    assert "shares: [0.75, 0.25] → [0.66" in capsys.readouterr().err


def test_what_another_start_prepared_is_made_anew(root, tmp_path, capsys):
    def opened(spec):
        recipe = Recipe(data=spec, batch=2, seed=1)
        options = Train(recipe=recipe, model=SimpleNamespace(context=8))
        return open_data(tmp_path, options, None, False, Stop())

    text = f"text:{root}/a,b.txt"
    for spec in (f"mix:1*{text},1*pydoc", text, f"mix:1*pydoc,3*{text}", f"mix:1*{text},1*pydoc"):
        assert opened(spec).spec == spec
    assert capsys.readouterr().err.count("prepared again") == 2


@pytest.mark.parametrize("verb", ["train", "eval"])
def test_data_given_twice_is_refused_with_the_mixture(tmp_path, capsys, verb):
    words = ["charlm:tiny", "--out", str(tmp_path)] if verb == "train" else [str(tmp_path)]
    assert main([verb, *words, "--data", "pydoc", "--data=text:a,b"]) == USAGE
    error = capsys.readouterr().err
    assert "--data is given 2 times" in error
    assert "--data mix:3*A,1*B" in error
