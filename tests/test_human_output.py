"""What verbs print for people: sentences and tables, no Python reprs."""

import re

import pytest

import bridge
from jaxmodels.__main__ import VERBS, main
from jaxmodels.errors import DONE, NETWORK, USAGE
from tests.jaxmodels.helpers import train

CALLS = [
    (["list", "wigip:tiny"], r"^total +40 +122,752 +491,008$"),
    (["doctor"], r"^ready$"),
    (["train", "charlm:tiny", "--out", "OUT/lr", "--find-lr", "--batch", "2"], r"^train:  .*lr"),
    (["train", "--out", "RUN"], r"^done: step 2 of 2, best validation loss \d\.\d{4} \(step 2\)$"),
    (["eval", "RUN", "--max-batches", "1"], r"^loss \d\.\d{4} nats per token, perplexity"),
    (["generate", "RUN", "--max-new-tokens", "2", "--num-samples", "2"], r"^--- 2$"),
    (["inspect", "RUN", "--tensors"], r"^  head.kernel  \(32, 103\)  float32$"),
    (["inspect", "RUN"], r"^dtypes:      27 float32$"),
    (["diff", "RUN", "RUN"], r"^27 of 27 tensors are equal$"),
    (
        ["convert", "RUN", "OUT/model", "--dry-run"],
        r"^27 tensors, 27,879 parameters; needs [\d.]+ MB of disk",
    ),
    (["convert", "RUN", "OUT/model", "--dtype", "bfloat16"], r"^largest rounding error: \d"),
    (["inspect", "OUT/model"], r"^format:      model directory$|^format:      safetensors$"),
    (["verify", "OUT/model"], r"^digests: right$"),
    (["data", "list"], r"^pydoc +English prose"),
    (["data", "prepare", "text:TEXT", "OUT/data"], r"^[\d,]+ tokens of 1 document, \d+ in the"),
    (["data", "inspect", "OUT/data"], r"^dtype +uint16$"),
    (["data", "bench", "OUT/data"], r"^numpy +[\d.]+ Mtok/s$"),
    (["report", "RUN"], r"^report: .*report\.html$"),
]
ERRORS = [
    (["eval", "OUT/bare"], USAGE, "give --data"),
    (["generate", "RUN", "--image", "x.png"], USAGE, "it takes no images"),
    (["push", "OUT/none", "hf://a/b"], None, "where: "),
    (["push", "OUT/bare", "a/b"], None, "hf://"),
    (["pull", "hf://a/b", "OUT/pulled"], NETWORK, "fix: "),
    (["bench", "steq"], USAGE, "did you mean step"),
    (["plan", "charlm:tiny", "--topology", "v9"], USAGE, "v9"),
    (["diff", "RUN", "OUT/none"], None, "no such file or folder"),
]
ELSEWHERE = {"bench", "plan", "push", "pull", "memory", "completion"}
"""Verbs that need minutes, a compiler for TPUs, a hub or a bitgen, or print a script: tests of
their own read them."""
PYTHON = re.compile(r"Traceback|\b(None|True|False|nan)\b|\{'|\['|PosixPath|<class|array\(")


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    out = tmp_path_factory.mktemp("people")
    (out / "text.txt").write_text("It was the best of times.\n" * 300)
    assert train(out / "run", "--steps", "2", "--eval-every", "2") == DONE
    bridge.convert(out / "run", out / "bare")
    return {"RUN": str(out / "run"), "OUT": str(out), "TEXT": str(out / "text.txt")}


def call(words, places, capsys):
    capsys.readouterr()
    code = main([re.sub("RUN|OUT|TEXT", lambda found: places[found[0]], word) for word in words])
    printed = capsys.readouterr()
    return code, printed.out + printed.err


@pytest.mark.slow
@pytest.mark.parametrize(("words", "shows"), CALLS, ids=[" ".join(words) for words, _ in CALLS])
def test_a_verb_speaks_to_people(places, capsys, words, shows):
    code, said = call(words, places, capsys)
    assert code == DONE, said
    assert re.search(shows, said, re.MULTILINE), said
    if "--num-samples" not in words:
        said = re.sub(r"^  \w+ = None$", "", said, flags=re.MULTILINE)  # a field of a Config
        assert not PYTHON.search(said), said


@pytest.mark.parametrize(
    ("words", "code", "shows"), ERRORS, ids=[" ".join(words) for words, _, _ in ERRORS]
)
def test_an_error_is_one_block(places, capsys, monkeypatch, words, code, shows):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    found, said = call(words, places, capsys)
    assert found == code or (code is None and found not in (DONE, 1)), said
    assert said.count("error:") == 1
    assert shows in said
    assert not PYTHON.search(said), said
    assert "defect" not in said


def test_no_verb_is_left_out():
    assert {words[0] for words, _ in CALLS} | ELSEWHERE == set(VERBS)
