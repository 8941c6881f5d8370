"""JAX against PyTorch: outputs on random inputs and on a text, and gradients."""

import pytest

import bridge
import jaxmodels
from bridge.checks.parity import compare_outputs
from bridge.core import table
from bridge.core.twins import twin
from jaxmodels.errors import DONE, UNVERIFIED, USAGE, Problem
from tests.bridge.helpers import HEADS, SEED, command, write_run

TEXT = "The quick brown fox, again and again!"


@pytest.fixture(scope="module", params=["charlm", "wikigpt", "bwetaf", "wigip"])
def trained(request, tmp_path_factory):
    """A run with a vocabulary, of random parameters."""
    folder = tmp_path_factory.mktemp(request.param)
    return write_run(folder / "run", {1: 2.0}, spec=f"{request.param}:tiny")


@pytest.mark.slow
def test_both_sides_agree_on_everything(trained, tmp_path):
    report = bridge.convert(trained, tmp_path / "out", verify="logits", text=TEXT, gradients=True)
    assert 0 < report.max_abs_logit_diff <= 1e-4
    assert 0 < report.max_abs_logit_diff_on_text <= 1e-4
    assert 0 < report.max_gradient_diff <= 1e-4
    assert report.argmax_agreement == 1


@pytest.mark.slow
def test_a_wrong_number_shows_in_outputs_and_gradients(trained, monkeypatch):
    source = bridge.open_checkpoint(trained)
    side = twin(source.arch)
    path = next(path for path in source.tensors if path.endswith("norm1/scale"))
    name = table.pairs(jaxmodels.arch(source.arch).WEIGHTS, [path])[0].theirs

    def changed(*args):
        module = build(*args)
        load = module.load_state_dict

        def load_wrong(state, **options):
            return load({**state, name: state[name] * 1.5}, **options)

        module.load_state_dict = load_wrong
        return module

    build = side.build
    monkeypatch.setattr(side, "build", changed)
    found = compare_outputs(source, text=TEXT, gradients=True)
    assert min(found.random, found.text, found.gradient) > 1e-3
    assert len(found.complaints("them", 1e-4)) == 3


@pytest.mark.slow
def test_the_verify_verb_tells_all_of_it(model_directory, run, capsys):
    words = ["verify", model_directory, "--against", run, "--text", TEXT, "--gradients"]
    code, report, _ = command(capsys, *words, "--json")
    assert (code, report["ok"], report["argmax_agreement"]) == (DONE, True, 1)
    assert report["argmax_agreement_with_source"] == 1
    assert 0 < report["max_gradient_diff"] <= 1e-4
    code, text, _ = command(capsys, *words)
    assert "on the text: " in text
    assert "the largest logit is the same at 100.00% of positions" in text
    assert "largest relative difference of gradients: " in text
    words = ["verify", model_directory, "--text", TEXT, "--atol", "0", "--json"]
    code, report, _ = command(capsys, *words)
    assert code == UNVERIFIED
    assert any("on the text differ by" in problem for problem in report["problems"])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"verify": "logits", "text": "x"}, "there is no vocabulary"),
        ({"text": "x"}, "add --verify logits"),
        ({"gradients": True}, "add --verify logits"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_is_written(tmp_path, options, says):
    with pytest.raises(Problem) as caught:
        bridge.convert(SEED, tmp_path / "out", config=HEADS, **options)
    assert caught.value.exit_code == USAGE
    assert says in caught.value.why + caught.value.fix
    assert not list(tmp_path.iterdir())


def test_an_empty_text_is_none(model_directory):
    with pytest.raises(Problem, match="empty"):
        bridge.verify(model_directory, text="")


@pytest.mark.slow
def test_two_checkpoints_are_compared_in_jax(run):
    source, other = (bridge.open_checkpoint(run / "checkpoints" / step) for step in ("100", "300"))
    assert compare_outputs(source, source).random == 0
    found = compare_outputs(source, other)
    assert found.random > 0.1
    assert found.argmax < 0.5
