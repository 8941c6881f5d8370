"""`train` on a mixture of texts: resumed bit for bit, refused if it would be a different run."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from data_pipelines.mixture_validation import MixtureValidation, Part
from jaxmodels.__main__ import main
from jaxmodels.commands.run_data import open_data
from jaxmodels.commands.train_options import Train
from jaxmodels.errors import DONE, MISMATCH, USAGE
from jaxmodels.recipe import Recipe
from jaxmodels.runtime.evaluate import Loss, evaluate
from jaxmodels.runtime.metrics import read
from jaxmodels.runtime.reporting.page import page
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
    records = [one for one in read(whole / "metrics.jsonl") if "valid_loss" in one]
    sources = (f"text:{root}/a,b.txt", "tfds:tiny_texts")
    assert len(records) > 1
    for one in records:
        losses_of = [one[f"valid_loss/{source}"] for source in sources]
        assert one["valid_loss"] == pytest.approx(np.dot([0.75, 0.25], losses_of), abs=1e-6)
        assert losses_of[0] != losses_of[1]
    summary = json.loads((whole / "summary.json").read_text())
    assert summary["valid_loss_by_source"].keys() == set(sources)
    report = page(whole)
    assert all(f"validation loss, {source}" in report for source in sources)
    assert main(["eval", str(cut), "--max-batches", "2", "--json"]) == DONE
    found = json.loads(capsys.readouterr().out)
    by_source = [found["sources"][source] for source in sources]
    assert [one["share"] for one in by_source] == [0.75, 0.25]
    assert found["loss"] == pytest.approx(np.dot([0.75, 0.25], [x["loss"] for x in by_source]))
    assert main(["eval", str(cut), "--data", sources[0], "--max-batches", "2", "--json"]) == DONE
    alone = json.loads(capsys.readouterr().out)
    assert by_source[0]["loss"] == pytest.approx(alone["loss"], abs=1e-6)
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


def test_a_mixtures_mean_is_by_the_shares():
    """Whatever the number of rows of each; a metric of one source alone is that source's."""

    def measure(params, model_state, batch):
        tokens = batch["tokens"]
        extra = {"image_loss": tokens.mean()} if tokens[0, 0] > 1 else {}
        return {"loss": tokens.mean(), "perplexity": np.exp(tokens.mean())} | extra, {}

    one, two = ([{"tokens": np.full((n, 1), float(n))}] for n in (1, 3))
    loss = Loss(measure, lambda batch: False)
    found = evaluate(loss, {}, {}, MixtureValidation([Part("a", 0.25, one), Part("b", 0.75, two)]))
    expected = {"loss": 2.5, "image_loss": 3, "loss/a": 1, "loss/b": 3}
    assert found == pytest.approx(expected | {"perplexity": np.exp(2.5)})
    assert evaluate(loss, {}, {}, MixtureValidation([Part("a", 1.0, two)])).keys() == {
        "loss",
        "perplexity",
        "image_loss",
    }
    assert evaluate(loss, {}, {}, one, stop=lambda: True) is None
