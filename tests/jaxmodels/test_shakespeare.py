"""nanoGPT's published trainings as presets, and widths that follow others."""

import json

import pytest

import jaxmodels
from benchmarks import quality
from jaxmodels.commands import plan
from jaxmodels.commands.train_options import resolve
from jaxmodels.errors import CORRUPT, Problem
from jaxmodels.runtime.optim import schedule
from jaxmodels.sizes import parameters
from jaxmodels.wikigpt import Config

CPU = "wikigpt:shakespeare-cpu"


def test_sizes_are_nanogpts():
    """Its own count leaves out the table of positions: 10.65M and 0.80M parameters."""
    for name, wanted in (("shakespeare", 10_646_784), ("shakespeare-cpu", 804_096)):
        _, _, config = jaxmodels.preset(f"wikigpt:{name}")
        positions = config.context * config.dim
        assert parameters("wikigpt", config) - positions == pytest.approx(wanted, rel=0.02)
        assert (config.vocab, config.hidden) == (65, 4 * config.dim)


def test_the_recipe_is_nanogpts():
    recipe = jaxmodels.arch("wikigpt").RECIPES["shakespeare-cpu"]
    rate = schedule(recipe.optim, recipe.horizon)
    assert [float(rate(step)) for step in (0, 100, 2000)] == pytest.approx([0, 1e-3, 1e-4])
    assert (recipe.batch, recipe.steps, recipe.tokenizer) == (12, 2000, "bare-chars")


def sizes(*words: str):
    return resolve([*words, "--out", "none"]).config


def test_hidden_follows_dim_unless_it_is_given(tmp_path):
    assert Config(dim=96, heads=6).hidden == 384
    assert sizes("wikigpt:base", "--model.dim", "96").hidden == 384
    assert sizes("wikigpt:base", "--n-embd", "96").hidden == 384
    assert sizes("wikigpt:base", "--model.dim", "96", "--model.hidden", "1536").hidden == 1536
    assert sizes("wikigpt:tiny", "--model.dim", "48").hidden == 64  # it does not follow there
    file = tmp_path / "c.json"
    file.write_text(json.dumps({"model": {"dim": 96}}))
    assert sizes("wikigpt:base", "--config", str(file)).hidden == 384
    file.write_text(json.dumps({"model": {"dim": 96, "hidden": 100}}))
    assert sizes("wikigpt:base", "--config", str(file)).hidden == 100


@pytest.mark.slow
def test_bench_quality_takes_a_text(tmp_path):
    text = tmp_path / "input.txt"
    text.write_text("ROMEO:\nBut soft, what light?\n\n" * 100)
    words = ["--text", str(text), "--steps", "2", "--out", str(tmp_path)]
    (record,) = quality.main(words)
    assert record["case"] == f"{CPU}, input.txt"
    assert record["settings"]["batch"] == 12
    with pytest.raises(Problem) as caught:
        quality.main(["--text", str(tmp_path / "none.txt")])
    assert caught.value.exit_code == CORRUPT


def test_plan_follows_too():
    words = ["wikigpt:base", "--topology", "v5e:1x1", "--model.dim", "96"]
    assert plan.resolve(words)[1].model.hidden == 384
