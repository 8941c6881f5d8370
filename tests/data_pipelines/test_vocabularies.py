"""Vocabularies learned from a text: `data tokenizer`, and --tokenizer bpe:4096."""

import json

import numpy as np
import pytest

from data_pipelines.errors import EXISTS, MISMATCH, USAGE, DataProblem
from data_pipelines.pipelines import open_data
from data_pipelines.split_text import SplitText
from data_pipelines.tokenizers import load_tokenizer
from data_pipelines.vocabularies import Wanted, learn, wanted
from jaxmodels.__main__ import main

TEXT = "".join(f"the {n}th word of the wordy text, naïve and long;\n" for n in range(400))
HARD = "Hello wörld 漢字 🎉 <|endoftext|>\n\n\t  x = 3;\r\n\x00"


@pytest.fixture
def text(tmp_path):
    (tmp_path / "t.txt").write_text(TEXT)
    return f"text:{tmp_path / 't.txt'}"


def made(kind: str, size: int = 400, pieces: int = 7):
    return learn([TEXT[i : i + pieces] for i in range(0, len(TEXT), pieces)], Wanted(kind, size))


@pytest.mark.parametrize("kind", ["bpe", "unigram", "bytes"])
def test_any_text_comes_back_and_is_text(kind):
    tokenizer = made(kind)
    ids = tokenizer.encode(HARD)
    assert tokenizer.decode(ids) == HARD
    assert tokenizer.end_of_text == 0
    assert 0 not in ids
    assert tokenizer.vocab_size <= 400
    if kind != "bytes":
        assert len(tokenizer.encode(TEXT)) < 0.8 * len(TEXT)


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_the_same_text_gives_the_same_file(kind):
    """However it comes in pieces: words are not cut where these end."""
    assert made(kind).content == made(kind).content == made(kind, pieces=1000).content


def test_the_most_frequent_characters():
    tokenizer = learn(["aaa bbb c"], Wanted("chars", 5))
    assert tokenizer.chars == (" ", "a", "b")
    assert tokenizer.vocab_size == 5


def test_names():
    assert wanted("bpe:4096") == ("bpe", 4096)
    assert wanted("bytes") == ("bytes", 257)
    assert wanted("chars") is None
    assert wanted("gpt2") is None
    for name in ("bpe", "bpe:100", "unigram:256", "chars:2"):
        with pytest.raises(DataProblem) as caught:
            wanted(name)
        assert caught.value.exit_code == USAGE


def test_what_is_held_out_is_not_learned_from(text):
    split = SplitText((text,), 0.25, 10_000)
    first, rest = "".join(split.learned()), "".join(split.measured())
    assert (first + rest).encode() == TEXT.encode()[:10_000]
    assert len(rest.encode()) == 2500


@pytest.mark.parametrize("kind", ["bpe", "unigram", "chars", "bytes"])
def test_the_command(text, tmp_path, capsys, kind):
    out = tmp_path / "v" / "tokenizer.json"
    words = [
        "data",
        "tokenizer",
        "--data",
        text,
        "--kind",
        kind,
        "--vocab",
        "300",
        "--out",
        str(out),
    ]
    assert main([*words, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    tokenizer = load_tokenizer(out)
    assert report["digest"] == tokenizer.digest
    assert report["vocab_size"] == tokenizer.vocab_size <= 300
    # Measured on the last twentieth, as its tokens are.
    held = TEXT.encode()[-(len(TEXT.encode()) // 20) :].decode(errors="ignore")
    assert report["held_out_bytes"] == len(held.encode())
    rate = len(held.encode()) / len(tokenizer.encode(held))
    assert report["bytes_per_token"] == pytest.approx(rate, rel=0.02)
    assert report["gpt2_bytes_per_token"] > 2
    assert main(words) == EXISTS
    assert "--force" in capsys.readouterr().err
    assert main([*words, "--force"]) == 0
    assert "bytes a token" in capsys.readouterr().out


def test_special_tokens(text, tmp_path, capsys):
    out = tmp_path / "t.json"
    words = ["data", "tokenizer", "--data", text, "--vocab", "300", "--out", str(out)]
    assert main([*words, "--special", "<|user|>", "<|model|>"]) == 0
    tokenizer = load_tokenizer(out)
    assert [tokenizer.decode([i]) for i in range(3)] == ["<|endoftext|>", "<|user|>", "<|model|>"]
    assert tokenizer.special_ids == (1, 2)
    assert min(tokenizer.encode("<|user|>")) > 2
    assert main([*words, "--force", "--kind", "chars", "--special", "x"]) == USAGE


def test_what_no_vocabulary_is_learned_from(text, tmp_path, capsys):
    out = tmp_path / "t.json"
    words = ["data", "tokenizer", "--vocab", "300", "--out", str(out), "--data"]
    specs = ("shapes", "questions:shapes", f"images:{tmp_path}", f"bin:{tmp_path}")
    for spec in (*specs, f"mix:1*{text},1*shapes"):
        assert main([*words, spec]) == USAGE
        assert "text is needed here" in capsys.readouterr().err
    assert main([*words, text, "--data", "pydoc"]) == USAGE
    assert "--data is given 2 times" in capsys.readouterr().err
    assert main([*words, text, "--special", "<a>", "--special=<b>"]) == USAGE
    assert "--special A B" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("kind", ["bpe", "unigram", "bytes"])
@pytest.mark.parametrize("token", ["a", "\u0120", "\udc80", "x" * 1001, "", "<|endoftext|>"])
def test_what_cannot_be_a_special_token(kind, token):
    """Signs of bytes, what is not text, what no tokenizer.json may hold; none twice."""
    with pytest.raises(DataProblem) as caught:
        learn(iter(["a text"]), Wanted(kind, 300), ("<|endoftext|>", token))
    assert caught.value.exit_code == USAGE


@pytest.mark.parametrize("size", [10**6 + 1, 2**40, 10**30])
def test_a_vocabulary_larger_than_any_that_is_read(size):
    """The library ends the process where its tables do not fit into memory."""
    for kind in ("bpe", "unigram", "chars"):
        with pytest.raises(DataProblem, match="too large"):
            learn(iter(["a text"]), Wanted(kind, size))
    with pytest.raises(DataProblem, match="too large"):
        wanted(f"bpe:{size}" + 5000 * "0")


def test_training_data_makes_its_own(text, tmp_path):
    options = {"context": 8, "batch": 2, "valid_fraction": 0.1}
    data = open_data(text, folder=tmp_path / "data", tokenizer="bpe:300", **options)
    split = SplitText((text,), 0.1, 10**9)
    assert data.tokenizer.digest == learn(split.learned(), Wanted("bpe", 300)).digest
    again = open_data(text, folder=tmp_path / "data", tokenizer="bpe:300", **options)
    assert (np.asarray(again.tokens) == np.asarray(data.tokens)).all()
    mixed = open_data(
        f"mix:2*{text},1*pydoc", folder=tmp_path / "mix", tokenizer="bytes", **options
    )
    assert mixed.tokenizer.vocab_size == 257
    with pytest.raises(DataProblem, match="no bpe vocabulary"):
        open_data(f"bin:{tmp_path / 'data'}", folder=tmp_path, tokenizer="bpe:300", **options)


def test_captions_make_theirs(tmp_path):
    options = {"context": 8, "batch": 2, "valid_fraction": 0.1, "side": 14}
    data = open_data("shapes:14", folder=tmp_path / "data", tokenizer="bpe:300", **options)
    assert data.tokenizer.vocab_size == 300
    assert len(data.tokenizer.encode("a red circle")) < 6


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_autotokenizer_gives_the_same_ids(tmp_path, kind):
    from transformers import AutoTokenizer

    from bridge.formats.tokenizer import write_tokenizer

    tokenizer = made(kind)
    tokenizer.save(tmp_path)
    write_tokenizer(tmp_path, tokenizer, 10_000)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for text in (HARD, TEXT[:2000]):
        assert theirs(text)["input_ids"] == tokenizer.encode(text).tolist()
    assert theirs.decode(theirs(HARD)["input_ids"]) == HARD


def test_a_vocabulary_that_does_not_fit_the_dtype(text, tmp_path, capsys):
    chars = [chr(0x10000 + i) for i in range(70_000)]
    (tmp_path / "c.json").write_text(json.dumps(chars))
    words = ["data", "prepare", text, str(tmp_path / "out"), "--dtype", "uint16"]
    assert main([*words, "--tokenizer", str(tmp_path / "c.json")]) == MISMATCH
    assert "does not fit uint16" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_run_keeps_the_one_that_it_made(text, tmp_path):
    run = tmp_path / "run"
    small = ["--steps", "2", "--sample-every", "0", "--eval-every", "2", "--data", text]
    assert main(["train", "charlm:tiny", "--out", str(run), "--tokenizer", "bpe:300", *small]) == 0
    tokenizer = load_tokenizer(run)
    assert tokenizer.vocab_size == 300
    assert main(["train", "--out", str(run), "--steps", "3"]) == 0
    assert load_tokenizer(run).digest == tokenizer.digest
    assert main(["convert", str(run), str(tmp_path / "model")]) == 0
    assert load_tokenizer(tmp_path / "model").digest == tokenizer.digest
