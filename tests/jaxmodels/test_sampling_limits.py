"""Sampling at its limits: temperature 0, an empty nucleus, NaN logits, nothing to draw."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxmodels
from data_pipelines.tokenizers import CharTokenizer
from jaxmodels.__main__ import main
from jaxmodels.errors import UNVERIFIED, USAGE, Problem
from jaxmodels.layers.sampling import NOTHING, Sampling, sample
from jaxmodels.runtime.generate import _valid_columns, generate
from jaxmodels.runtime.paths import split

NAN, INF = float("nan"), float("inf")
FREE = np.zeros(6, bool)
BANNED = np.arange(6) == 0
LOGITS = np.asarray([9.0, 1.0, 3.0, 2.9999998, -4.0, 0.0], np.float32)
DRAWS = [Sampling(1.0), Sampling(1.0, top_k=2), Sampling(1.0, top_p=0.9), Sampling(1.0, min_p=0.1)]
DRAWS += [Sampling(None)]


compiled = jax.jit(sample)


def drawn(logits, sampling, banned=BANNED, rows=200) -> set[int]:
    """The tokens that are drawn with random numbers from all over their range."""
    spread = jnp.linspace(0, 1, rows, endpoint=False)
    many = jnp.broadcast_to(jnp.asarray(logits, jnp.float32), (rows, len(logits)))
    return set(np.asarray(sample(many, spread, sampling, banned)).tolist())


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [1e-9, 1e-30, 1e-38, 1e-45, 0.0])
@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e4, 1e30])
def test_cold_is_greedy(temperature, scale):
    for more in ({}, {"top_k": 3}, {"top_p": 0.9}, {"min_p": 0.5}):
        assert drawn(LOGITS * scale, Sampling(temperature, **more)) == {2}
    assert drawn(scale * np.asarray([9.0, 1, 4, 4, 0, 4]), Sampling(temperature)) == {2}


@pytest.mark.parametrize("temperature", [1e9, 3e38])
def test_hot_draws_all_that_is_allowed(temperature):
    assert drawn(LOGITS, Sampling(temperature)) == {1, 2, 3, 4, 5}


@pytest.mark.parametrize("p", [0.0, 1e-45, 1e-9])
def test_a_nucleus_of_nothing_keeps_the_likeliest(p):
    assert drawn(LOGITS, Sampling(1.0, top_p=p)) == {2}
    assert drawn(np.zeros(300), Sampling(1.0, top_k=1, top_p=p), np.arange(300) == 0) == {1}


@pytest.mark.parametrize("sampling", DRAWS)
def test_what_is_no_number_is_never_drawn(sampling):
    some = np.asarray([NAN, NAN, 1.0, NAN, 1.5, -INF])
    assert drawn(some, sampling) <= {2, 4}
    assert drawn([0.0, 1.0, INF, 5.0, -INF, NAN], sampling) == {2}
    for nothing in (np.full(6, NAN), np.full(6, -INF), [9.0, NAN, -INF, NAN, NAN, NAN]):
        assert drawn(nothing, sampling) == {NOTHING}
    assert drawn(LOGITS, sampling, ~FREE) == {NOTHING}


@settings(max_examples=60)
@given(
    logits=st.lists(
        st.one_of(st.floats(width=32), st.sampled_from([NAN, INF, -INF, 0.0, 3e38, -3e38])),
        min_size=6,
        max_size=6,
    ),
    temperature=st.sampled_from([None, 0.0, 1e-45, 1e-9, 0.8, 1e9, 3e38]),
    p=st.sampled_from([0.0, 0.5, 1.0]),
    u=st.sampled_from([0.0, 0.5, 0.99999994]),
)
def test_a_banned_token_is_never_drawn_whatever_the_logits(logits, temperature, p, u):
    row = jnp.asarray([logits], jnp.float32)
    got = int(compiled(row, jnp.full(1, u), Sampling(temperature, top_p=p), BANNED)[0])
    allowed = {i for i in range(1, 6) if logits[i] > -INF}
    assert got in (allowed or {NOTHING})


def broken(arch: str = "charlm", value: float = NAN):
    """A model whose logits are all this."""
    graphdef, params, rest = split(jaxmodels.create(f"{arch}:tiny"))
    return graphdef.merge(params | {"head/bias": jnp.full_like(params["head/bias"], value)}, rest)


def tokens(model, sampling, rows=2, count=3, **more) -> np.ndarray:
    prompt = np.ones((rows, 2), np.int32)
    return np.concatenate(list(generate(model, prompt, count, sampling, **more)), axis=1)


@pytest.mark.slow
@pytest.mark.parametrize("sampling", [Sampling(None), Sampling(0.8)])
def test_a_model_without_numbers_is_an_error_and_no_token(sampling):
    with pytest.raises(Problem, match="cannot be drawn") as caught:
        tokens(broken(), sampling)
    assert caught.value.exit_code == UNVERIFIED


def test_what_was_drawn_before_is_told():
    """The numbers end where the newest token is 5, in one of two rows."""
    none = np.zeros(2, bool)
    piece = np.asarray([[4, 5, NOTHING, NOTHING], [4, 4, 4, 4]])
    assert _valid_columns(piece, none, None) == 2
    assert _valid_columns(piece, none, 5) == 4  # that row had ended
    assert _valid_columns(piece, np.asarray([True, False]), None) == 4
    assert _valid_columns(piece[:, :2], none, None) == 2


def test_all_tokens_banned_is_an_error():
    model = jaxmodels.create("charlm:tiny")
    everything = tuple(range(model.config.vocab))
    with pytest.raises(Problem, match="no token that may be drawn") as caught:
        tokens(model, Sampling(None), banned=everything)
    assert caught.value.exit_code == USAGE
    assert set(tokens(model, Sampling(1.0), banned=everything[:-1]).flat) == {everything[-1]}


@pytest.mark.slow
def test_a_cold_generation_is_the_greedy_one():
    """In a batch and alone, in pieces of any length."""
    model = jaxmodels.create("charlm:tiny")
    greedy = tokens(model, Sampling(None), count=6)
    for temperature in (0.0, 1e-45, 1e-9):
        np.testing.assert_array_equal(tokens(model, Sampling(temperature), count=6), greedy)
    np.testing.assert_array_equal(tokens(model, Sampling(0.8, top_p=0.0), count=6), greedy)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(-1.0),
        Sampling(NAN),
        Sampling(INF),
        Sampling(1.0, top_k=0),
        Sampling(1.0, top_p=-0.1),
        Sampling(1.0, top_p=NAN),
        Sampling(1.0, min_p=INF),
    ],
)
def test_impossible_options_are_refused(sampling):
    with pytest.raises(Problem, match="must be") as caught:
        tokens(jaxmodels.create("charlm:tiny"), sampling)
    assert caught.value.exit_code == USAGE


@pytest.mark.slow
def test_the_command_says_that_nothing_can_be_drawn(monkeypatch, capsys):
    """And, of a prompt that the vocabulary does not know, that nothing of it is seen."""
    model = broken()
    letters = tuple(chr(0x4E00 + i) for i in range(model.config.vocab - 2))
    opened = model, CharTokenizer(letters)
    monkeypatch.setattr("jaxmodels.commands.open.open_model", lambda *_: opened)
    words = ["generate", "model", "--prompt", "abc"]
    assert main(words) == UNVERIFIED
    said = capsys.readouterr().err
    assert "cannot be drawn" in said
    assert "nothing of the prompt is in the vocabulary" in said
    assert main([*words, "--json"]) == UNVERIFIED
    assert capsys.readouterr().out == ""


@pytest.mark.slow
@pytest.mark.parametrize("option", ["--temperature", "--top-p", "--min-p"])
@pytest.mark.parametrize("value", ["-0.5", "nan", "inf"])
def test_the_command_refuses_impossible_options(option, value, capsys):
    assert main(["generate", "nowhere", option, value]) == USAGE
    assert option in capsys.readouterr().err
