"""Questions about images, from fine-tuning to the table of results, as a user runs them."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import bridge
import jaxmodels
from jaxmodels.__main__ import main
from jaxmodels.commands.run_samples import sampler
from jaxmodels.errors import CORRUPT, DONE, EXISTS, MISMATCH, USAGE
from jaxmodels.runtime.answers import answer
from jaxmodels.runtime.metrics import read
from tests.jaxmodels import scenes
from tests.jaxmodels.helpers import losses, params, same, train
from tests.questions_on_disk import ANSWERS, QUESTIONS, change, vqa

KINDS = {"colour", "shape", "count", "relation"}


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    return vqa(tmp_path_factory.mktemp("vqa") / "vqa")


@pytest.fixture(scope="module")
def captioner(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("captioner")
    data = scenes.folder(folder / "scenes")
    assert scenes.train("bitgen", data, folder / "run") == DONE
    return folder / "run"


@pytest.fixture(scope="module")
def run(captioner, file) -> Path:
    """The captioner, fine-tuned on questions, whose words are new to it."""
    out = captioner.parent / "asked"
    words = ["train", "--init", str(captioner), "--new-words", "--out", str(out)]
    words += ["--data", f"questions:{file.parent}", "--sample-every", "2", *scenes.FLAGS]
    assert main(words) == DONE
    return out


def shown(capsys, *words: str, code: int = DONE) -> str:
    """What a command prints: its results, or its error."""
    capsys.readouterr()
    assert main([*words]) == code
    found = capsys.readouterr()
    return found.out if code == DONE else found.err


@pytest.mark.slow
def test_fine_tuning_begins_with_the_captioner(captioner, run):
    begun, ended = params(captioner, 4), params(run, 4)
    rows, more = (held["embed/embedding"].shape[0] for held in (begun, ended))
    assert rows < more == bridge.load(run).config.vocab
    records = read(run / "metrics.jsonl")
    assert all(record.keys() >= {"text_loss", "token_accuracy"} for record in records)
    assert "contrastive_loss" not in records[0]
    sample = (run / "samples" / "4.txt").read_text().splitlines()
    assert all("question: " in line and " answer:" in line for line in sample)


@pytest.mark.slow
def test_new_rows_follow_the_known_ones(captioner, tmp_path, file):
    """At a learning rate of 0 what is taken over is the captioner, bit for bit."""
    out = tmp_path / "run"
    words = ["train", "--init", str(captioner), "--new-words", "--out", str(out), "--steps", "1"]
    words += ["--data", f"questions:{file.parent}", *scenes.FLAGS[:2], *scenes.FLAGS[6:]]
    frozen = ["--optim.peak-lr", "0", "--optim.end-lr", "0", "--sample-every", "0"]
    assert main([*words, *frozen]) == DONE
    best = json.loads((captioner / "summary.json").read_text())["best_step"]
    begun, ended = params(captioner, best), params(out, 1)
    embedding = begun.pop("embed/embedding")
    grown = ended.pop("embed/embedding")
    np.testing.assert_array_equal(grown[: len(embedding)], embedding)
    assert np.abs(grown[len(embedding) :]).max() > 0
    assert same({k: ended[k] for k in begun}, begun)
    assert main([*words[:4], "--out", str(tmp_path / "b"), *words[6:], "--init-optimizer"]) != DONE


@pytest.mark.slow
def test_resuming_is_exact(run, tmp_path):
    again = shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(again / "checkpoints" / "4")
    assert main(["train", "--out", str(again)]) == DONE
    assert losses(again) == losses(run)


@pytest.mark.slow
def test_eval_asks_and_compares(run, file, capsys, tmp_path):
    words = ["eval", str(run), "--questions", str(file)]
    table, written = tmp_path / "table.md", tmp_path / "results.json"
    more = ["--table", str(table), "--predictions", str(written)]
    found = json.loads(shown(capsys, *words, *more, "--json"))
    assert (found["questions"], found["images"]) == (180, 20)
    assert found["by_type"].keys() == KINDS
    assert found["by_answer_type"].keys() == {"other"}
    for each in (found, *found["by_type"].values()):
        assert 0 <= each["accuracy"] <= 1
        assert 0 < each["chance"] <= 1
    assert sum(each["questions"] for each in found["by_type"].values()) == 180
    rows = json.loads(written.read_text())
    assert [row.keys() for row in rows] == [{"question_id", "answer"}] * 180
    assert {row["question_id"] for row in rows} == set(range(180))
    assert "| colour |" in table.read_text()
    text = shown(capsys, *words, "--batch", "7", "--max-images", "20")
    assert "180 questions about 20 images" in text
    assert f"{found['accuracy']:.1%}" in text
    assert main([*words, *more]) == EXISTS


@pytest.mark.slow
def test_eval_of_the_run_asks_what_it_held_out(run, capsys):
    found = json.loads(shown(capsys, "eval", str(run), "--json"))
    assert (found["questions"], found["images"]) == (54, 6)
    best = json.loads((run / "summary.json").read_text())["best_valid_loss"]
    assert found["loss"] == pytest.approx(best, rel=1e-4)


@pytest.mark.slow
def test_without_answers_there_are_predictions(run, file, capsys, tmp_path):
    alone = shutil.copytree(file.parent, tmp_path / "vqa") / QUESTIONS
    (alone.parent / ANSWERS).unlink()
    words = ["eval", str(run), "--questions", str(alone)]
    found = json.loads(shown(capsys, *words, "--json"))
    assert found.keys() == {"questions", "images", "answers"}
    text = shown(capsys, *words)
    assert "their answers are unknown" in text
    assert len(text.splitlines()) == 181
    assert shown(capsys, *words, "--predictions", str(tmp_path / "r.json")).count("\n") == 1
    assert json.loads((tmp_path / "r.json").read_text()) == found["answers"]
    assert "answers of people are unknown" in shown(
        capsys, *words, "--table", str(tmp_path / "t.md"), code=USAGE
    )
    named = ["--annotations", str(file.parent / ANSWERS), "--image-folder", str(file.parent)]
    alone.rename(tmp_path / "asked.json")
    words[3] = str(tmp_path / "asked.json")
    assert json.loads(shown(capsys, *words, *named, "--json"))["accuracy"] >= 0
    assert "images that are not there" in shown(capsys, *words, code=CORRUPT)


@pytest.mark.slow
def test_an_answer_depends_on_neither_batch_nor_neighbours(run, file):
    model, tokenizer = bridge.load(run), bridge.open_checkpoint(run).tokenizer
    pixels = np.random.default_rng(0).integers(0, 256, (5, 28, 28, 3), np.uint8)
    prompts = [f"question: {'what ' * n}? answer:" for n in (1, 3, 1, 40, 2)]
    found = answer(model, tokenizer, prompts, lambda rows: pixels[rows], batch=4)
    assert found[3] is None  # it does not fit the context
    for i in (0, 1, 2, 4):
        (alone,) = answer(model, tokenizer, [prompts[i]], lambda rows, i=i: pixels[rows * 0 + i], 1)
        assert alone == found[i]


@pytest.mark.slow
def test_what_cannot_be_asked_is_refused(run, captioner, file, capsys, tmp_path):
    words = ["eval", str(run), "--questions", str(file)]
    for more, why in (
        (["--data", "shapes"], "--data and --questions do not go together"),
        (["--caption-metrics"], "--caption-metrics and --questions do not go together"),
        (["--questions", "shapes"], "one file at a time"),
    ):
        assert why in shown(capsys, *words, *more, code=USAGE)
    for more in (["--predictions", "x.json"], ["--annotations", "x"], ["--image-folder", "x"]):
        assert "--questions is missing" in shown(capsys, *words[:2], *more, code=USAGE)
    shapes = [*words[:3], "shapes", "--annotations", "x.json"]
    assert "bring their images" in shown(capsys, *shapes, code=USAGE)
    change(
        shutil.copytree(file.parent, tmp_path / "other") / ANSWERS, "annotations", lambda x: x[1:]
    )
    other = [*words[:3], str(tmp_path / "other" / QUESTIONS)]
    assert "1 questions have no annotation" in shown(capsys, *other, code=MISMATCH)
    language = tmp_path / "language"
    assert train(language, "--steps", "1") == DONE
    assert "it takes no images" in shown(capsys, "eval", str(language), *words[2:], code=USAGE)


def test_only_what_writes_about_images_is_trained_on_questions(file, capsys, tmp_path):
    data = ["--data", f"questions:{file.parent}", "--out", str(tmp_path / "run")]
    for preset, why in (
        ("bitgen_stage1:tiny", "it does not write texts about images"),
        ("wigip:tiny-images", "it does not write texts about images"),
        ("charlm:tiny", "charlm learns from text"),
    ):
        assert why in shown(capsys, "train", preset, *data, code=USAGE)
    new = ["train", "bitgen:tiny", *data, "--new-words"]
    assert "--new-words needs --init" in shown(capsys, *new, code=USAGE)
    assert not (tmp_path / "run").exists()


def test_where_nothing_is_held_out_there_are_no_samples(capsys):
    """Of captions as of questions; the run trains all the same."""
    package = jaxmodels.arch("bitgen")
    data = SimpleNamespace(tokenizer=object(), valid_images=0, retrieval=None, asked=None)
    config, recipe = package.PRESETS["tiny"], package.RECIPES["tiny"]
    assert sampler(package, config, recipe, data) is None
    assert "no image is held out" in capsys.readouterr().err


@pytest.mark.slow
def test_one_image_with_captions_in_other_scripts(captioner, capsys, tmp_path):
    """Fewer images than a batch, than ranks of recall and than the loss compares."""
    scenes.folder(tmp_path / "one", 1)
    (tmp_path / "one" / "captions.json").unlink()
    row = {"image": "0.png", "caption": ["红色 圆圈", "e\u0301\u2028ü 🙂", "|a|b|", "a circle"]}
    (tmp_path / "one" / "captions.jsonl").write_text(json.dumps(row), encoding="utf-8")
    words = ["eval", str(captioner), "--data", f"images:{tmp_path / 'one'}"]
    words += ["--valid-fraction", "1", "--max-images", "5", "--caption-metrics"]
    found = json.loads(shown(capsys, *words, "--table", str(tmp_path / "t.md"), "--json"))
    assert (found["images"], found["captions"]) == (1, 4)
    assert found["t2i_recall_at_1"] == found["i2t_recall_at_1"] == 1.0
    assert all(np.isfinite(value) for value in found.values())
    assert found["cider"] == 0.0  # weights of words need more than one image
    assert "1 images, 4 captions" in (tmp_path / "t.md").read_text()
