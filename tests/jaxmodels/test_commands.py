"""generate, eval, list and doctor, as a user runs them."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from tokenizers import AddedToken, models

import jaxmodels
from data_pipelines.tokenizers import load_tokenizer
from jaxmodels.__main__ import main
from jaxmodels.commands.generate import _encode
from jaxmodels.errors import CORRUPT, DONE, MISMATCH, NO_SPACE, USAGE


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A charlm that has seen a little text."""
    out = tmp_path_factory.mktemp("run") / "run"
    flags = ["--steps", "60", "--sample-every", "0", "--eval-every", "60"]
    assert main(["train", "charlm:tiny", "--out", str(out), *flags]) == DONE
    return out


def generated(capsys, *words: str) -> dict:
    capsys.readouterr()
    assert main(["generate", *words, "--json"]) == DONE
    return json.loads(capsys.readouterr().out)


@pytest.mark.slow
def test_generate_prints_the_prompt_and_what_follows(run, capsys):
    capsys.readouterr()
    assert main(["generate", str(run), "--prompt", "The ", "--max-new-tokens", "40"]) == DONE
    captured = capsys.readouterr()
    assert captured.out.startswith("The ")
    assert len(captured.out) == len("The ") + 40 + 1
    assert "tokens/s" in captured.err


@pytest.mark.slow
def test_a_speed_is_measured_without_compilation_or_not_at_all(run, capsys):
    words = (str(run), "--max-new-tokens")
    assert generated(capsys, *words, "32")["tokens_per_second"] is None
    assert generated(capsys, *words, "64")["tokens_per_second"] > 0
    assert main(["generate", *words, "32"]) == DONE
    assert "tokens/s" not in capsys.readouterr().err


def test_the_end_of_text_may_be_token_0(tmp_path, capsys):
    end = AddedToken("<|endoftext|>", special=True)
    vocab = {end.content: 0, **{c: i for i, c in enumerate("abcd<|enoftx>", 1)}}
    made = tokenizers.Tokenizer(models.BPE(vocab, []))
    made.add_special_tokens([end])
    made.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.end_of_text == 0
    model = jaxmodels.create("wikigpt:tiny")
    assert 0 not in _encode("ab<|endoftext|>", tokenizer, model)
    assert "read as plain text, not as special tokens: <|endoftext|>" in capsys.readouterr().err


@pytest.mark.slow
def test_generate_json_and_seeds(run, capsys):
    words = (str(run), "--prompt", "The ", "--max-new-tokens", "50", "--num-samples", "3")
    one, again = generated(capsys, *words), generated(capsys, *words)
    other = generated(capsys, *words, "--seed", "1")
    assert [s["text"] for s in one["samples"]] == [s["text"] for s in again["samples"]]
    assert one["samples"][0] != other["samples"][0]
    assert len({s["text"] for s in one["samples"]}) == 3
    assert all(len(s["tokens"]) == len(s["text"]) == 50 for s in one["samples"])
    alone = generated(capsys, *words[:-1], "1")
    assert alone["samples"][0] == one["samples"][0]


def test_generate_never_draws_special_tokens(run, capsys):
    text = generated(capsys, str(run), "--temperature", "50", "--max-new-tokens", "500")
    assert min(text["samples"][0]["tokens"]) > 1


def test_generate_says_what_it_cannot_read(run, capsys):
    assert main(["generate", str(run), "--prompt", "☃" * 3 + "a" * 40, "--json"]) == DONE
    said = capsys.readouterr().err
    assert "'☃'" in said
    assert "43 tokens" in said
    assert "last 32" in said


def test_the_end_of_a_long_prompt_decides(run, capsys):
    long = generated(capsys, str(run), "--prompt", "x" * 50 + "The value of this, or of that is")
    short = generated(capsys, str(run), "--prompt", "The value of this, or of that is")
    assert long["samples"][0]["text"] == short["samples"][0]["text"]


@pytest.mark.slow
def test_greedy(run, capsys):
    words = (str(run), "--prompt", "The ", "--temperature", "0")
    one = generated(capsys, *words, "--seed", "1")["samples"]
    assert one == generated(capsys, *words, "--seed", "2")["samples"]
    assert one == generated(capsys, *words, "--top-k", "5", "--top-p", "0.9")["samples"]
    assert one == generated(capsys, str(run), "--prompt", "The ", "--top-k", "1")["samples"]


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--temperature", "-1"),
        ("--top-k", "0"),
        ("--top-p", "1.5"),
        ("--min-p", "-0.1"),
        ("--num-samples", "0"),
        ("--max-new-tokens", "0"),
        ("--seed", "99999999999"),
        ("--temperature", "nan"),
    ],
)
def test_impossible_sampling_is_refused(run, flag, value):
    assert main(["generate", str(run), flag, value]) == USAGE


def test_a_checkpoint_without_vocabulary_asks_for_one(run, tmp_path, capsys):
    bare = tmp_path / "bare"
    shutil.copytree(run / "checkpoints" / "60" / "params", bare)
    words = ["generate", str(bare), "--set", "heads=2", "--set", "context=32", "--prompt", "The "]
    assert main(words) == MISMATCH
    assert "--vocab" in capsys.readouterr().err
    vocabulary = ["--vocab", str(run / "characters.json")]
    assert main([*words, *vocabulary, "--temperature", "0"]) == DONE
    with_file = capsys.readouterr().out
    assert main(["generate", str(run), "--prompt", "The ", "--temperature", "0"]) == DONE
    assert capsys.readouterr().out == with_file


def test_a_vocabulary_of_another_size_is_refused(run, tmp_path, capsys):
    from data_pipelines.characters import CharTokenizer

    CharTokenizer.build(["abc"]).save(tmp_path / "v.json")
    assert main(["generate", str(run), "--vocab", str(tmp_path / "v.json")]) == MISMATCH
    assert "5 entries" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["generate", "eval", "inspect", "verify"])
def test_nothing_there(verb, tmp_path, capsys):
    code = main([verb, str(tmp_path / "missing")])
    said = capsys.readouterr()
    assert code == CORRUPT
    assert "missing" in said.err + said.out


def test_eval_repeats_the_validation_loss_of_training(run, capsys):
    capsys.readouterr()
    summary = json.loads((run / "summary.json").read_text())
    assert main(["eval", str(run), "--batch", "16", "--max-batches", "20", "--json"]) == DONE
    report = json.loads(capsys.readouterr().out)
    assert report["loss"] == pytest.approx(summary["valid_loss"], abs=1e-5)
    assert report["perplexity"] == pytest.approx(np.exp(report["loss"]))
    assert report["bits_per_token"] == pytest.approx(report["loss"] / np.log(2))
    assert report["tokens"] == 20 * 16 * 32


@pytest.mark.slow
def test_training_measures_all_of_a_short_text_as_eval_does(tmp_path, capsys):
    (tmp_path / "t.txt").write_text("The value of an object may change. " * 330)
    run, data = tmp_path / "run", f"text:{tmp_path / 't.txt'}"
    flags = ["--data", data, "--steps", "2", "--sample-every", "0", "--valid-fraction", "0.1"]
    assert main(["train", "charlm:tiny", "--out", str(run), *flags]) == DONE
    best = json.loads((run / "summary.json").read_text())["best_valid_loss"]
    capsys.readouterr()
    assert main(["eval", str(run), "--batch", "16", "--json"]) == DONE
    report = json.loads(capsys.readouterr().out)
    assert report["tokens"] == 1154 // 32 * 32  # two batches of 16 windows, and a few
    assert report["tokens"] % (16 * 32)
    assert report["loss"] == pytest.approx(best, abs=1e-5)


def test_eval_on_another_text(run, tmp_path, capsys):
    (tmp_path / "t.txt").write_text("The value of an object. " * 200)
    words = ["eval", str(run), "--data", f"text:{tmp_path / 't.txt'}", "--valid-fraction", "1"]
    capsys.readouterr()
    assert main([*words, "--json"]) == DONE
    assert json.loads(capsys.readouterr().out)["tokens"] > 4000


@pytest.mark.slow
def test_eval_of_a_checkpoint_measures_its_run_and_a_model_alone_asks(run, tmp_path, capsys):
    import bridge

    words = ["eval", str(run), "--batch", "16", "--json"]
    capsys.readouterr()
    assert main(words) == DONE
    expected = json.loads(capsys.readouterr().out)
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "t.txt").write_text("The value of an object may change. " * 900)
    config = json.loads((run / "config.json").read_text())
    config["recipe"] |= {"data": f"text:{tmp_path / 't.txt'}", "valid_fraction": 0.2}
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    checkpoint = str(tmp_path / "run" / "checkpoints" / "60")
    assert main(["eval", checkpoint, "--json"]) == DONE
    found = json.loads(capsys.readouterr().out)
    assert found["tokens"] == (int(0.2 * 900 * 35) - 1) // 32 * 32  # every window, none dropped
    assert found["loss"] != expected["loss"]
    bridge.convert(run, tmp_path / "model")
    for alone in (tmp_path / "model", run / "checkpoints" / "60" / "params"):
        sizes = ["--set", "heads=2", "context=32", "--vocab", str(run / "characters.json")]
        extra = sizes if alone.name == "params" else []
        assert main(["eval", str(alone), *extra]) == USAGE
        assert "--data" in capsys.readouterr().err
    assert main(["eval", str(tmp_path / "model"), "--data", "pydoc", *words[2:]]) == DONE
    assert json.loads(capsys.readouterr().out)["loss"] == pytest.approx(expected["loss"])


def test_a_share_of_nothing_is_not_the_default(run, capsys):
    assert main(["eval", str(run), "--valid-fraction", "0"]) == USAGE
    assert "nothing is held out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flag", "value"),
    [("--batch", "0"), ("--max-batches", "0"), ("--valid-fraction", "2")],
)
def test_impossible_measuring_is_refused(run, flag, value, capsys):
    assert main(["eval", str(run), flag, value]) == USAGE
    assert flag in capsys.readouterr().err


def test_a_vocabulary_that_is_no_json_is_refused(run, tmp_path, capsys):
    (tmp_path / "v.json").write_text("not JSON")
    assert main(["generate", str(run), "--vocab", str(tmp_path / "v.json")]) == CORRUPT
    said = capsys.readouterr().err
    assert "v.json" in said
    assert "this is not a tokeniser" in said


@pytest.mark.slow
def test_eval_with_nothing_held_out(tmp_path, capsys):
    flags = ["--steps", "2", "--valid-fraction", "0", "--sample-every", "0"]
    assert main(["train", "charlm:tiny", "--out", str(tmp_path / "run"), *flags]) == DONE
    assert main(["eval", str(tmp_path / "run")]) == USAGE
    assert "--valid-fraction" in capsys.readouterr().err


@pytest.mark.slow
def test_list(capsys):
    assert main(["list", "--json"]) == DONE
    rows = json.loads(capsys.readouterr().out)
    assert {"name", "arch", "preset", "parameters"} <= set(rows[0])
    assert {"charlm:tiny", "charlm:notebook", "charlm:base"} <= {row["name"] for row in rows}
    assert main(["list"]) == DONE
    assert "355,682" in capsys.readouterr().out


def test_doctor(capsys):
    assert main(["doctor", "--json"]) == DONE
    found = json.loads(capsys.readouterr().out)
    assert found["problems"] == []
    assert found["packages"]["jax"]


def test_help_and_unknown_verbs(capsys):
    assert main(["--help"]) == DONE
    assert "convert" in capsys.readouterr().out
    assert main([]) == USAGE
    assert main(["generat"]) == USAGE
    assert "did you mean generate" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    "words", [["list", "charlm:tiny"], ["list", "charlm:tiny", "--json"], ["--help"]]
)
def test_output_that_cannot_be_written(words, unbuffered):
    with open("/dev/full", "w") as full:
        ran = subprocess.run(
            [sys.executable, "-m", "jaxmodels", *words],
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert ran.returncode == NO_SPACE
    assert ran.stderr.startswith("error: there is no space for the output")
    assert "untouched" not in ran.stderr
    assert "Traceback" not in ran.stderr
    assert "Exception ignored" not in ran.stderr
