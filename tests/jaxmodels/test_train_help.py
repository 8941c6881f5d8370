"""The page of `train --help`, and flags that people know from other trainers."""

import shlex

import pytest

import jaxmodels
from jaxmodels.__main__ import main
from jaxmodels.commands import train_help
from jaxmodels.commands.flag_names import ELSEWHERE, SYNONYMS, with_our_names
from jaxmodels.commands.train_options import Train, resolve
from jaxmodels.errors import Problem
from jaxmodels.option_help import flags, group_of


def page(capsys, *words):
    with pytest.raises(SystemExit) as end:
        main(["train", *words, "--help"])
    assert end.value.code == 0
    return capsys.readouterr().out


def presets():
    archs = [arch for arch in jaxmodels.ARCHS if hasattr(jaxmodels.arch(arch), "RECIPES")]
    return [(arch, next(iter(jaxmodels.arch(arch).RECIPES))) for arch in archs]


def options(arch, preset):
    package = jaxmodels.learner(arch)
    return Train(recipe=package.RECIPES[preset], model=package.PRESETS[preset])


def shown(given):
    return list(flags(type(given), given))


def test_begins_with_what_is_needed(capsys):
    lines = [line for line in page(capsys).splitlines() if line.startswith("  --")]
    first = [line.split()[0] for line in lines[:6]]
    assert first == ["--out", "--data", "--tokenizer", "--batch", "--steps", "--lr"]


def test_shows_presets_where_none_is_given(capsys):
    text = page(capsys)
    assert "charlm         tiny, notebook, base" in text
    assert "(default:" not in text
    assert "--model." not in text
    text = page(capsys, "charlm:base")
    assert "--model.dim N" in text
    assert "(default:" in text


@pytest.mark.parametrize(("arch", "preset"), presets())
def test_every_flag_has_a_group_and_a_text(arch, preset):
    for flag in shown(options(arch, preset)):
        assert group_of(flag, train_help.GROUPS) not in ("options", "arguments"), flag.name
        assert flag.help, flag.name


@pytest.mark.parametrize(("arch", "preset"), presets())
def test_defaults_are_what_they_would_be_if_typed(arch, preset):
    """Each default, typed, changes nothing; each flag is one that the parser knows."""
    flags = shown(options(arch, preset))
    words = [f"{flag.name} {flag.default}" for flag in flags if flag.default]
    request = resolve([f"{arch}:{preset}", *shlex.split(" ".join(words))])
    assert request.options == options(arch, preset)


def test_a_flag_that_turns_off_says_so():
    flags = {flag.name: flag for flag in shown(options("wikigpt", "tiny"))}
    assert flags["--model.no-bias"].help.startswith("Turn off: ")


@pytest.mark.parametrize("flag", ["--model.bias", "--model.no-bias", "--segments", "--no-segments"])
def test_a_switch_has_both_forms_whatever_its_default(flag):
    assert resolve(["wikigpt:tiny", flag]).config.bias != (flag == "--model.no-bias")


def test_page_fits_a_narrow_terminal(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert max(map(len, page(capsys, "charlm:tiny").splitlines())) <= 80


def test_synonyms_are_flags_of_a_model_or_recipe():
    known = {flag.name for preset in presets() for flag in shown(options(*preset))}
    assert set(SYNONYMS.values()) <= known


def test_nanogpts_flags_are_understood():
    argv = ["wikigpt:tiny", "--batch_size=3", "--max_iters=7", "--n_layer=1", "--learning_rate=0.1"]
    request = resolve(argv)
    assert (request.recipe.batch, request.recipe.steps) == (3, 7)
    assert request.recipe.optim.peak_lr == 0.1
    assert request.config.layers == 1


@pytest.mark.parametrize("flag", ELSEWHERE)
def test_what_is_done_otherwise_is_explained(flag):
    with pytest.raises(Problem, match=flag) as caught:
        with_our_names(["charlm:tiny", f"{flag}=1"])
    assert caught.value.exit_code == 2
    assert caught.value.fix
