"""What training refuses: texts, flags and settings files that cannot be used."""

import json
from pathlib import Path

import numpy as np
import pytest

from jaxmodels.__main__ import main
from jaxmodels.commands.train_options import Train, resolve
from jaxmodels.errors import CORRUPT, DONE, MISMATCH, USAGE, Problem
from jaxmodels.recipe import Optim, Recipe
from tests.jaxmodels.helpers import train


def _text(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    return f"text:{path}"


@pytest.mark.parametrize(
    ("content", "code", "words"),
    [
        (b"", CORRUPT, "empty"),
        (b"abc" * 40, CORRUPT, "context"),
        (b"abc\x00\x01\x02" * 1000, CORRUPT, "binary"),
        (b"abc " * 1000 + b"\xff", CORRUPT, "4000"),
    ],
    ids=["empty", "short", "binary", "not UTF-8"],
)
def test_unusable_text(tmp_path, capsys, content, code, words):
    spec = _text(tmp_path / "text.txt", content)
    assert train(tmp_path / "run", "--data", spec, "--min-freq", "1") == code
    said = capsys.readouterr().err
    assert words in said
    assert "Traceback" not in said
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_token_file_with_too_large_tokens_is_refused(tmp_path, capsys):
    (tmp_path / "tokens.bin").write_bytes(np.arange(5000, dtype=np.uint16).tobytes())
    assert train(tmp_path / "run", "--data", f"bin:{tmp_path / 'tokens.bin'}") == MISMATCH
    assert "4999" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["train", "charlm:tinny"], "tiny"),
        (["train", "charm:tiny"], "charlm"),
        (["train", "wikigpt"], "the preset of wikigpt is missing"),
        (["train", "wikigpt"], "tiny, base, shakespeare, shakespeare-cpu, gpt2-124m"),
        (["train", "charlm:tiny"], "--out"),
        (["train"], "ARCH:PRESET"),
        (["tran"], "train"),
        (["train", "charlm:tiny", "--mesh", "data=3", "--out", "x"], "mesh"),
        (["train", "charlm:tiny", "--data", "pydok", "--out", "x"], "pydoc"),
    ],
)
def test_wrong_usage_suggests_what_was_meant(words, hint, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(words) == USAGE
    said = capsys.readouterr().err
    assert hint in said
    assert "Traceback" not in said


def test_an_unknown_flag_suggests_the_near_one(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["train", "charlm:tiny", "--model.dimm", "3"])
    assert caught.value.code == USAGE
    assert "--model.dim" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"model": {"dimm": 3}}', "did you mean dim"),
        ('{"recipe": {"batch": "many"}}', "batch"),
        ('{"recipe": {"optim": {"peek_lr": 1}}}', "peak_lr"),
        ("{", "cannot be read"),
    ],
)
def test_a_wrong_settings_file(tmp_path, capsys, content, words):
    (tmp_path / "c.json").write_text(content)
    assert train(tmp_path / "run", "--config", str(tmp_path / "c.json")) == USAGE
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--eval-every", "0"),
        ("--eval-every", "-1"),
        ("--save-every", "0"),
        ("--batch", "0"),
        ("--accum", "0"),
        ("--keep", "-1"),
        ("--stats-every", "-1"),
        ("--jump", "-0.5"),
        ("--jump", "nan"),
        ("--steps", "0"),
        ("--slices", "3"),
        ("--seed", "99999999999"),
        ("--valid-fraction", "2"),
        ("--valid-fraction", "nan"),
        ("--model.heads", "0"),
        ("--model.layers", "0"),
        ("--model.dim", "0"),
        ("--model.context", "0"),
        ("--model.mlp-ratio", "0.01"),
        ("--model.mlp-ratio", "nan"),
        ("--model.dropout", "nan"),
        ("--optim.b1", "2"),
        ("--optim.b2", "1"),
        ("--optim.warmup", "-1"),
        ("--optim.clip", "-1"),
        ("--optim.peak-lr", "-0.1"),
        ("--optim.init-lr", "-0.1"),
        ("--optim.end-lr", "nan"),
        ("--optim.weight-decay", "inf"),
    ],
)
def test_impossible_settings_are_refused(tmp_path, capsys, flag, value):
    """As a flag and in a file: one block that names the setting, and nothing is written."""
    assert main(["train", "charlm:tiny", "--out", str(tmp_path / "run"), flag, value]) == USAGE
    said = capsys.readouterr().err
    name = flag.removeprefix("--").replace("-", "_")
    assert said.startswith("error: ")
    assert name in said
    table, _, field = name.rpartition(".")
    table = {"": "recipe", "optim": "recipe.optim"}.get(table, table)
    (tmp_path / "c.toml").write_text(f"[{table}]\n{field} = {value}\n")
    assert train(tmp_path / "run", "--config", str(tmp_path / "c.toml")) == USAGE
    assert name in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arch", "name", "value"),
    [
        *((arch, name, -5) for arch in ("wikigpt", "bwetaf") for name in ("hidden", "context")),
        *((arch, name, 0) for arch in ("wikigpt", "bwetaf") for name in ("layers", "heads", "dim")),
        *((arch, name, -1) for arch in ("wikigpt", "bwetaf") for name in ("vocab", "tokens")),
        *((arch, "dropout", value) for arch in ("wikigpt", "bwetaf") for value in ("nan", 1.0)),
        ("wikigpt", "context", 1),
        ("bwetaf", "init-range", "inf"),
        ("bwetaf", "init-range", -0.1),
        ("bwetaf", "embed-scale", "nan"),
        ("bwetaf", "residual-scale", "inf"),
    ],
)
def test_impossible_sizes_are_refused(tmp_path, capsys, arch, name, value):
    out = tmp_path / "run"
    words = ["train", f"{arch}:tiny", "--out", str(out), f"--model.{name}", str(value)]
    assert main(words) == USAGE
    assert f"error: model.{name.replace('-', '_')} must be" in capsys.readouterr().err
    assert not out.exists()


def test_settings_rise_from_preset_to_file_to_flag(tmp_path, capsys):
    file = tmp_path / "c.toml"
    file.write_text("[model]\ndim = 48\nlayers = 3\n[recipe.optim]\npeak_lr = 1\n")
    words = ["--config", str(file), "--model.layers", "4", "--print-config"]
    assert main(["train", "charlm:tiny", *words]) == DONE
    printed = json.loads(capsys.readouterr().out)
    assert (printed["model"]["dim"], printed["model"]["layers"]) == (48, 4)
    assert printed["recipe"]["optim"]["peak_lr"] == 1.0
    assert printed["model"]["heads"] == 2


@pytest.mark.parametrize(
    ("words", "policy"),
    [
        ([], "none"),
        (["--remat"], "full"),
        (["--remat", "--json"], "full"),
        (["--remat", "dots"], "dots"),
        (["--no-remat"], "none"),
    ],
)
def test_remat_is_a_choice_and_the_old_flags_still_mean_something(words, policy):
    assert resolve(["charlm:tiny", *words]).recipe.remat == policy


@pytest.mark.parametrize(("old", "policy"), [(True, "full"), (False, "none"), ("dots", "dots")])
def test_remat_of_an_older_settings_file(tmp_path, old, policy):
    file = tmp_path / "settings.json"
    file.write_text(json.dumps({"recipe": {"remat": old}}))
    assert resolve(["charlm:tiny", "--config", str(file)]).recipe.remat == policy


def test_moments_are_for_adamw_only(tmp_path):
    with pytest.raises(Problem, match="does not work with sgd"):
        Train(recipe=Recipe(optim=Optim("sgd")), model=None, init=tmp_path, init_optimizer=True)
