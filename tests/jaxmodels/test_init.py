"""`train --init`: a run that starts from a checkpoint."""

import json
from pathlib import Path

import numpy as np
import pytest

import bridge
from bridge.checkpoint.loading import load_moments
from jaxmodels.__main__ import main
from jaxmodels.commands.initial import refuse_other_tokenizer
from jaxmodels.commands.train_options import resolve
from jaxmodels.errors import DONE, MISMATCH, USAGE
from tests.jaxmodels.helpers import params, same

SMALL = ["--steps", "8", "--eval-every", "4", "--save-every", "4", "--sample-every", "0"]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A model directory of a short run, with AdamW's moments."""
    folder = tmp_path_factory.mktemp("init")
    assert main(["train", "charlm:tiny", "--out", str(folder / "run"), *SMALL]) == DONE
    bridge.convert(folder / "run", folder / "model", optimizer=True)
    return folder / "model"


def frozen(model: Path, out: Path, *flags: str) -> int:
    """One step at a learning rate of nearly nothing: what comes out is what went in."""
    rates = ["--optim.peak-lr", "1e-30", "--optim.init-lr", "1e-30", "--optim.end-lr", "0"]
    words = ["--init", str(model), "--out", str(out), *SMALL, *rates, *flags]
    return main(["train", "charlm:tiny", *words, "--steps", "1"])


@pytest.mark.slow
def test_the_run_begins_with_the_checkpoint(model, tmp_path):
    assert frozen(model, tmp_path / "run") == DONE
    begun = {path: tensor.read() for path, tensor in bridge.open_checkpoint(model).tensors.items()}
    assert same(params(tmp_path / "run", 1), begun)
    assert load_moments(tmp_path / "run").count == 1


@pytest.mark.slow
def test_the_moments_go_on(model, tmp_path):
    assert frozen(model, tmp_path / "run", "--init-optimizer") == DONE
    init = json.loads((tmp_path / "run" / "config.json").read_text())["init"]
    assert init == {"path": str(model), "optimizer": True}
    before, after = load_moments(model), load_moments(tmp_path / "run")
    assert (before.count, after.count) == (8, 9)
    path = "blocks/0/mlp/out/kernel"
    # One gradient, clipped to a norm of 1, is a thousandth of the new mean of squares.
    old, new = before.nu[path].read(), after.nu[path].read()
    assert np.abs(new - 0.999 * old).max() <= 1e-3
    assert (new >= 0.999 * old * (1 - 1e-6)).all()
    assert old.max() > 0


@pytest.mark.slow
def test_another_text_keeps_the_vocabulary_of_the_checkpoint(model, tmp_path):
    (tmp_path / "t.txt").write_text("zebra ☃ " * 300)
    words = ["--init", str(model), "--data", f"text:{tmp_path / 't.txt'}", "--out"]
    run = tmp_path / "run"
    assert main(["train", "charlm:tiny", *words, str(run), *SMALL]) == DONE
    ours = (model / "characters.json").read_text()
    assert json.loads((run / "characters.json").read_text()) == json.loads(ours)
    # Resumed without saying it again: the vocabulary is the run's, not one made from the text.
    for again in (["--out", str(run)], ["charlm:tiny", *words, str(run), *SMALL]):
        config = json.loads((run / "config.json").read_text())
        assert config["init"] == {"path": str(model), "optimizer": False}
        assert config["recipe"]["tokenizer"] == str(run / "characters.json")
        steps = str(config["recipe"]["steps"] + 2)
        assert main(["train", *again, "--steps", steps]) == DONE


def test_what_does_not_go_together(model, tmp_path, capsys):
    out = ["--out", str(tmp_path / "run"), "--init", str(model)]
    assert main(["train", "charlm:tiny", *out, "--model.layers", "3"]) == MISMATCH
    assert "layers: 2 → 3" in capsys.readouterr().err
    assert main(["train", "wikigpt:tiny", *out]) == MISMATCH
    assert "charlm" in capsys.readouterr().err
    assert main(["train", "charlm:tiny", *out[:2], "--init-optimizer"]) == USAGE
    bare = tmp_path / "bare"
    bridge.convert(model, bare)
    assert frozen(bare, tmp_path / "other", "--init-optimizer") == MISMATCH
    assert "no optimiser state" in capsys.readouterr().err


def test_another_tokenizer_than_the_checkpoint_s(model, tmp_path, capsys):
    """It is refused, not ignored; the checkpoint's own may be named, by its kind or file."""
    start, run = ["train", "--init", str(model)], tmp_path / "run"
    for other in ("bpe:300", "bytes", "gpt2", "words", "bare-chars", "chars:50"):
        assert main([*start, "--out", str(run), "--tokenizer", other]) == MISMATCH
        assert f"--tokenizer {other} is not the tokeniser" in capsys.readouterr().err
    assert not run.exists()
    source = bridge.open_checkpoint(model)
    for same_ in ("", "chars", str(model / "characters.json")):
        refuse_other_tokenizer(same_, source)


def test_a_run_of_another_model_is_not_resumed(model, capsys):
    """With --init as without: its own name may be repeated."""
    run = model.parent / "run"
    for other in ("wikigpt:tiny", "charlm:notebook"):
        words = ["train", other, "--init", str(model), "--out", str(run)]
        assert main(words) == MISMATCH
        assert f"the run is of charlm:tiny, not {other}" in capsys.readouterr().err
    resolved = resolve(["charlm:tiny", "--init", str(model), "--out", str(run)])
    assert (resolved.arch, resolved.preset) == ("charlm", "tiny")


def test_lora_given_twice(model, tmp_path, capsys):
    words = ["--out", str(tmp_path / "run"), "--lora", "rank=2", "--lora", "rank=4"]
    assert main(["train", "--init", str(model), *words]) == USAGE
    assert "targets=A|B" in capsys.readouterr().err


def test_text_that_a_checkpoint_without_tokeniser_cannot_read(golden, tmp_path, capsys):
    out, ckpt = tmp_path / "run", golden / "nanogpt_bias" / "ckpt.pt"
    assert main(["train", "wikigpt:tiny", "--init", str(ckpt), "--out", str(out)]) == MISMATCH
    said = capsys.readouterr().err
    assert "--tokenizer PATH" in said
    assert "--data bin:PATH" in said
    assert "--model.vocab" not in said


@pytest.mark.slow
def test_characters_of_a_checkpoint_without_vocabulary_are_not_made_up(model, tmp_path, capsys):
    """As many ids would fit; they would mean something else."""
    bare, run = tmp_path / "bare", tmp_path / "run"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        (bare / name).write_bytes((model / name).read_bytes())
    (tmp_path / "t.txt").write_text("zebra " * 300)
    data = ["--data", f"text:{tmp_path / 't.txt'}"]
    assert frozen(bare, run, *data) == MISMATCH
    said = capsys.readouterr().err
    assert "has no vocabulary" in said
    assert "--tokenizer PATH" in said
    chars = json.loads((model / "characters.json").read_text())["chars"]
    (tmp_path / "list.json").write_text(json.dumps(["☀", "☁", *chars]))  # for <PAD> and <UNK>
    assert frozen(bare, run, *data, "--tokenizer", str(tmp_path / "list.json")) == DONE
    found = json.loads((run / "characters.json").read_text())
    assert (found["special_tokens"], found["chars"][:2]) == ({}, ["☀", "☁"])


def test_a_start_that_failed_leaves_no_name(model, tmp_path, capsys):
    """What it made for the lock is gone, so that the name is free; what was there stays."""
    out, there = tmp_path / "run", tmp_path / "there"
    there.mkdir()
    for folder in (out, there):
        assert main(["train", "charlm:tiny", "--out", str(folder), "--data", "text:no"]) != DONE
    assert not out.exists()
    assert there.is_dir()
    assert main(["convert", str(model), str(out)]) == DONE
