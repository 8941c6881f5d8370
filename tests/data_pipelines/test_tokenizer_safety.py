"""A tokenizer.json that takes forever, or all memory, is refused; published forms are not."""

import json
import time

import pytest

from data_pipelines import expressions, tokenizer_trial
from data_pipelines.errors import CORRUPT, UNSAFE, DataProblem
from data_pipelines.tokenizer_safety import check_bounded
from data_pipelines.tokenizers import load_tokenizer

# Of GPT-2, cl100k, Llama 3, o200k, DeepSeek, BLOOM, CLIP, T5 and our own characters.
PUBLISHED = [
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{M}]*[\p{Ll}\p{M}]+(?i:'s|'t)?| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}]?[\p{L}\p{M}]+|\s*[\r\n]+",
    r" ?[^(\s|[.,!?…。，、।۔،])]+",
    r"<\|startoftext\|>|'s|'t|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",
    r" {2,}",
    r"[\s\S]",
]
ENDLESS = [
    r"(a+)+$", r"(?:a*)*b", r"(?:a|ab)+c", r"(a)\1+", r"(?<x>a\g<x>?b)", "(" * 60 + ")" * 60,
    r"a*a*a*a*b", r"(?=(a+)+b)", r"(?i)(a+)+b", "(?~ab)", r"(a{2}){5000}", r"a{1,9}+", ")(",
]  # fmt: skip


def tokenizer(**parts):
    added = {"single_word": False, "lstrip": False, "rstrip": False, "special": False}
    parts["added_tokens"] = [
        {"id": 3 + i, "content": f"<{i}>", "normalized": False, **added}
        for i in range(parts.pop("added", 0))
    ]
    model = {"type": "BPE", "dropout": None, "unk_token": None, "fuse_unk": False}
    model |= {"continuing_subword_prefix": None, "end_of_word_suffix": None}
    model |= {"byte_fallback": False, "vocab": {"a": 0, "b": 1, " ": 2}, "merges": []}
    names = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
    nothing = {"version": "1.0", "truncation": None, "padding": None} | dict.fromkeys(names)
    return nothing | parts | {"model": model | parts.get("model", {})}


def split(expression):
    pattern = {"Regex": expression}
    return {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}


def replace(old, new):
    return {"type": "Replace", "pattern": {"String": old}, "content": new}


def chain(kind, names, *parts):
    return {kind: {"type": "Sequence", names: list(parts)}}


@pytest.mark.parametrize("expression", PUBLISHED)
def test_published_expressions_have_a_bounded_form(expression):
    assert expressions.fault(expression) == ""


@pytest.mark.parametrize("expression", ENDLESS)
def test_expressions_that_may_take_forever(expression):
    assert expressions.fault(expression)


BOMBS = {
    "replacements": chain("normalizer", "normalizers", *[replace("a", "aa")] * 40),
    "in the decoder": chain("decoder", "decoders", *[replace("a", "aa")] * 40),
    "everywhere": {"normalizer": replace("", "x" * 500)},
    "chains": {"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}] * 5000}},
    "long": {"normalizer": {"type": "Prepend", "prepend": "x" * 10**5}},
    "an expression": {"pre_tokenizer": split(r"(a+)+$")},
    "in a replacement": {"normalizer": {**replace("", "a"), "pattern": {"Regex": "(a+)+$"}}},
    "tokens": {"added": 30_000},
    "words": {"model": {"type": "WordPiece", "max_input_chars_per_word": 10**9}},
    "pieces": {"model": {"type": "Unigram", "vocab": [["a" * 10**5, 0.0]]}},
    "a template": {
        "post_processor": {"type": "TemplateProcessing", "single": [{"Sequence": {}}] * 1000}
    },
    "unknown": {"pre_tokenizer": {"type": "Python", "code": "import os"}},
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_at_once(name, tmp_path):
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(tokenizer(**BOMBS[name])))
    begin = time.process_time()
    with pytest.raises(DataProblem) as caught:
        load_tokenizer(file)
    assert caught.value.exit_code == UNSAFE
    assert caught.value.why
    assert time.process_time() - begin < 2


def test_what_its_form_does_not_tell_is_tried(monkeypatch):
    """Two repetitions one after the other take the square of a text, these here much more."""
    monkeypatch.setattr(tokenizer_trial, "SECONDS", 1)
    for part in (split(r"(?:a{1,30}){1,30}$"), {"type": "FixedLength", "length": 0}):
        with pytest.raises(DataProblem) as caught:
            check_bounded(tokenizer(pre_tokenizer=part))
        assert caught.value.exit_code == UNSAFE


def test_a_sound_tokeniser_is_tried_and_read(tmp_path):
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(tokenizer(pre_tokenizer=split(PUBLISHED[0]), decoder=None)))
    made = load_tokenizer(file)
    assert made.encode("ab a").tolist() == [0, 1, 2, 0]


@pytest.mark.parametrize(
    "text", ["[" * 10**5, '{"model": ' * 10**5, "9" * 10**4, "\ud800", '{"model": {}}', "{}"]
)
def test_odd_json_is_corrupt(text, tmp_path):
    file = tmp_path / "tokenizer.json"
    file.write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(DataProblem) as caught:
        load_tokenizer(file)
    assert caught.value.exit_code == CORRUPT


def test_a_file_without_end_or_of_a_gigabyte(tmp_path):
    import os

    os.mkfifo(tmp_path / "pipe")
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(3 * 10**9)
    for name in ("pipe", "sparse"):
        with pytest.raises(DataProblem) as caught:
            load_tokenizer(tmp_path / name)
        assert caught.value.exit_code == CORRUPT
