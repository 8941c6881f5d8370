"""The arithmetic for lm-evaluation-harness, against the model's own logits, without the harness."""

from dataclasses import replace
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

import jaxmodels
from benchmarks import lm_eval
from data_pipelines.characters import CharTokenizer
from jaxmodels.errors import USAGE, Problem
from jaxmodels.runtime.likelihood import ScoredWindow, Scorer, windows

ALPHABET = "\n abcdefghijklmnopqrstuvwxyz.,"


@pytest.fixture(scope="module")
def scorer():
    tokenizer = CharTokenizer.build([ALPHABET])
    config = replace(jaxmodels.preset("charlm:tiny")[2], vocab=tokenizer.vocab_size)
    return Scorer(jaxmodels.arch("charlm").Model(config, rngs=nnx.Rngs(0)), tokenizer, batch=4)


@nnx.jit
def forward(model, tokens):
    return model(tokens)[0]


def by_logits(scorer, tokens):
    """Log-probability of each token but the first, and whether it is the likeliest."""
    tokens = np.asarray(tokens, np.int32)
    padded = np.zeros((1, scorer.model.config.context), np.int32)  # behind what is looked at
    padded[0, : len(tokens) - 1] = tokens[:-1]
    logits = np.asarray(forward(scorer.model, jnp.asarray(padded)), np.float64)[0]
    logits = logits[: len(tokens) - 1]
    every = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    logits[:, list(scorer.tokenizer.special_ids)] = -np.inf  # no generation draws these
    return every[np.arange(len(tokens) - 1), tokens[1:]], logits.argmax(-1) == tokens[1:]


def by_hand(scorer, tokens, start):
    """Sum of log-probabilities of the tokens from start on, and whether all are the likeliest."""
    chosen, likeliest = by_logits(scorer, tokens)
    return chosen[start - 1 :].sum(), likeliest[start - 1 :].all()


@pytest.mark.slow
def test_loglikelihood_is_that_of_the_models_logits(scorer):
    pairs = [("the cat ", "sat."), ("a", " b"), ("", "dog"), ("on and", "")]
    found = scorer.loglikelihood(pairs)
    encode = scorer.tokenizer.encode
    prefix = [*encode("\n\n")]
    wanted = [
        by_hand(scorer, [*encode("the cat sat.")], 7),  # the space belongs to what follows
        by_hand(scorer, [*encode("a b")], 1),
        by_hand(scorer, [*prefix, *encode("dog")], 2),
        (0.0, True),
    ]
    for (total, greedy), (total_by_hand, greedy_by_hand) in zip(found, wanted, strict=True):
        assert total == pytest.approx(total_by_hand, abs=1e-4)
        assert greedy == greedy_by_hand


def test_what_greedy_decoding_writes_is_greedy(scorer):
    text = scorer.generate("the", (), 6, None)
    other = "z" if text[-1] != "z" else "y"
    found = scorer.loglikelihood([("the", text), ("the", text[:-1] + other)])
    assert [greedy for _, greedy in found] == [True, False]
    assert found[0][0] > found[1][0]


def test_generation_ends_before_the_first_stop(scorer):
    whole = scorer.generate("the ", (), 40, None)
    stop = whole[5:7]
    assert scorer.generate("the ", ("@", stop), 40, None) == whole[: whole.index(stop)]
    assert len(scorer.generate("", (), 3, 0.8)) == 3


@given(st.integers(1, 60), st.integers(1, 20), st.integers(1, 9))
def test_windows_score_every_token_once_behind_as_many_as_fit(length, start, context):
    found = list(windows(length, start, context))
    scored = [at for window in found for at in range(window.first, window.end)]
    assert scored == list(range(start, length))
    for window in found:
        assert 1 <= window.end - window.begin <= context + 1
        assert window.begin < window.first
        assert window.begin == 0 or window.end - window.begin == context + 1


def test_windows_of_a_text_as_the_harness_describes_them():
    """Ten tokens behind a first one, four at a time: its own documentation's example."""
    assert list(windows(11, 1, 4)) == [
        ScoredWindow(0, 1, 5),
        ScoredWindow(4, 5, 9),
        ScoredWindow(6, 9, 11),
    ]


def test_a_text_longer_than_the_context_is_scored_in_windows(scorer):
    text = "a long text, longer than the context of tiny. " * 2
    (total,) = scorer.rolling([text])
    tokens = np.asarray([*scorer.tokenizer.encode("\n\n"), *scorer.tokenizer.encode(text)])
    by_windows = 0.0
    for window in windows(len(tokens), 2, scorer.model.config.context):
        part = tokens[window.begin : window.end]
        by_windows += by_logits(scorer, part)[0][-(window.end - window.first) :].sum()
    assert total == pytest.approx(by_windows, abs=1e-3)


def test_models_that_cannot_score_a_text_are_refused(scorer):
    images = SimpleNamespace(config=jaxmodels.preset("bitgen:tiny")[2])
    for model, tokenizer in ((images, scorer.tokenizer), (scorer.model, None)):
        with pytest.raises(Problem) as caught:
            Scorer(model, tokenizer)
        assert caught.value.exit_code == USAGE


def test_what_a_task_asks_for_reaches_generation():
    asked = []
    scorer = SimpleNamespace(generate=lambda *args: asked.append(args) or "text")
    for words in ({"until": "."}, {"until": ["a"], "max_gen_toks": 5, "do_sample": True,
                                   "temperature": 0.5}, {"temperature": 0.5}):  # fmt: skip
        assert lm_eval._generated(scorer, "context", words) == "text"
    assert asked == [
        ("context", ["."], lm_eval._MAX_TOKENS, None),
        ("context", ["a"], 5, 0.5),
        ("context", [], lm_eval._MAX_TOKENS, None),
    ]
