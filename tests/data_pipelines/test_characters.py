import json
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.characters import CharTokenizer
from data_pipelines.errors import DataProblem

# As the seed's own `save` writes it, for the text "abba c" and min_freq 1.
SEED_FILE = {
    "special_tokens": {"<PAD>": 0, "<UNK>": 1},
    "min_freq": 1,
    "chars": [" ", "a", "b", "c"],
    "vocab_size": 6,
    "char_to_int": {" ": 2, "a": 3, "b": 4, "c": 5},
    "int_to_char": {"0": "<PAD>", "1": "<UNK>", "2": " ", "3": "a", "4": "b", "5": "c"},
}
# Any character, lone surrogates included: a command line can hold them.
TEXT = st.text(st.characters(codec=None, exclude_categories=()))


@given(st.lists(TEXT))
def test_text_comes_back(texts):
    tokenizer = CharTokenizer.build(texts)
    for text in texts:
        ids = tokenizer.encode(text)
        assert ids.dtype == np.int32
        assert ids.shape == (len(text),)
        assert tokenizer.decode(ids) == text
        assert tokenizer.unknown(text) == []


@given(TEXT, st.integers(1, 3))
def test_json_both_ways(text, min_freq):
    tokenizer = CharTokenizer.build([text], min_freq)
    assert CharTokenizer.from_json(json.loads(json.dumps(tokenizer.to_json()))) == tokenizer


@given(TEXT, TEXT)
def test_other_characters_are_unknown(text, other):
    tokenizer = CharTokenizer.build([text])
    ids = tokenizer.encode(other)
    outside = [char for char in other if char not in text]
    assert (ids == tokenizer.unk_id).sum() == len(outside)
    assert tokenizer.unknown(other) == list(dict.fromkeys(outside))


@given(st.lists(st.text("abcd"), max_size=5), st.integers(1, 4))
def test_counts_run_over_all_texts(texts, min_freq):
    joined = "".join(texts)
    kept = sorted(char for char in set(joined) if joined.count(char) >= min_freq)
    assert CharTokenizer.build(iter(texts), min_freq).chars == tuple(kept)


def test_the_seed_file_is_read_and_written(tmp_path):
    (tmp_path / "seed.json").write_text(json.dumps(SEED_FILE))
    tokenizer = CharTokenizer.load(tmp_path / "seed.json")
    assert tokenizer == CharTokenizer.build(["abba c"])
    assert (tokenizer.pad_id, tokenizer.unk_id, tokenizer.special_ids) == (0, 1, (0, 1))
    assert tokenizer.encode("cab!").tolist() == [5, 3, 4, 1]
    assert tokenizer.decode([1, 3]) == "<UNK>a"
    tokenizer.save(tmp_path / "ours.json")
    assert json.loads((tmp_path / "ours.json").read_text()) == SEED_FILE


def test_a_seed_vocabulary_without_padding():
    data = CharTokenizer(("a",), specials=("<UNK>",)).to_json()
    tokenizer = CharTokenizer.from_json(data)
    assert (tokenizer.pad_id, tokenizer.unk_id, tokenizer.vocab_size) == (None, 0, 2)


def test_a_list_of_characters_is_a_vocabulary_without_special_tokens(tmp_path):
    (tmp_path / "list.json").write_text(json.dumps(["\t", " ", "é", "a"]))
    tokenizer = CharTokenizer.load(tmp_path / "list.json")
    assert tokenizer.encode("a é\tx").tolist() == [3, 1, 2, 0, 0]  # unknown is 0, as in the seed
    assert tokenizer.decode([3, 0]) == "a\t"
    assert tokenizer.unknown("xa\t") == ["x"]
    found = (tokenizer.vocab_size, tokenizer.special_ids, tokenizer.pad_id, tokenizer.unk_id)
    assert found == (4, (), None, 0)
    tokenizer.save(tmp_path)  # in our form, which says that there are no special tokens
    assert CharTokenizer.load(tmp_path / "characters.json") == tokenizer


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ([], "the list is empty"),
        (["a", "bc"], "'bc', which is not one character"),
        (["<PAD>", "<UNK>", "a"], "'<PAD>', which is not one character"),
        (["a", 1], "1, which is not one character"),
        (["a", "b", "a"], "'a' occurs twice"),
        ({"a": 0, "b": 1}, "a list of characters or a mapping with the keys"),
    ],
)
def test_a_list_that_is_no_vocabulary(content, says):
    with pytest.raises(DataProblem, match=says) as caught:
        CharTokenizer.from_json(content, "list.json")
    assert (caught.value.exit_code, caught.value.where) == (3, "list.json")
    assert "a JSON list of the characters in the order of their ids" in caught.value.fix


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"vocab_size": 7}, "vocab_size does not follow"),
        ({"min_freq": "1"}, "min_freq is not a number"),
        ({"chars": ["a", "bc"]}, "'bc', which is not one character"),
        ({"chars": [" ", "a", "a", "c"]}, "occurs twice"),
        ({"char_to_int": SEED_FILE["char_to_int"] | {"c": 4}}, "'c' is 4, not 5"),
        ({"char_to_int": SEED_FILE["char_to_int"] | {"d": 6}}, "'d' is unexpected"),
        ({"int_to_char": SEED_FILE["int_to_char"] | {"3": "b"}}, "'3' is 'b', not 'a'"),
        ({"special_tokens": {"<PAD>": 0, "<UNK>": 9}}, "special_tokens does not follow"),
        ({"special_tokens": {"<PAD>": 0}}, "no <UNK>"),
        ({"special_tokens": [1, 2]}, "does not map tokens to ids"),
        ({"special_tokens": {"<PAD>": 0, "<UNK>": "1"}}, "does not map tokens to ids"),
        ({"chars": [["a"]]}, "which is not one character"),
        ({"chars": 5}, "chars is not a list"),
        ({"special_tokens": {}, "chars": []}, "it is empty"),
        ({"special_tokens": {"<UNK>": 0, "a": 1}}, "'a' occurs twice: in special_tokens and chars"),
        ({"extra": 1}, "with the keys"),
        ({"char_to_int": None}, "char_to_int does not follow"),
    ],
)
def test_a_broken_vocabulary_is_refused(tmp_path, change, says):
    path = tmp_path / "characters.json"
    path.write_text(json.dumps(SEED_FILE | change))
    with pytest.raises(DataProblem, match=says) as caught:
        CharTokenizer.load(path)
    assert caught.value.exit_code == 3
    assert caught.value.where == str(path)


@pytest.mark.parametrize("key", SEED_FILE)
def test_every_key_is_needed(key):
    with pytest.raises(DataProblem, match="with the keys"):
        CharTokenizer.from_json({k: v for k, v in SEED_FILE.items() if k != key})


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'"text"'])
def test_a_file_that_is_no_vocabulary(tmp_path, content):
    path = tmp_path / "characters.json"
    path.write_bytes(content)
    with pytest.raises(DataProblem, match="not a character vocabulary"):
        CharTokenizer.load(path)


@pytest.mark.parametrize("i", [-1, 6])
def test_ids_outside_the_vocabulary_are_refused(i):
    with pytest.raises(DataProblem, match=rf"token id {i} "):
        CharTokenizer.from_json(SEED_FILE).decode([2, i])


def test_encoding_is_fast():
    text = "The quick brown fox jumps over the lazy dog — ünïcödé. " * 40_000
    tokenizer = CharTokenizer.build([text])
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        tokenizer.encode(text)
        seconds.append(time.perf_counter() - start)
    assert len(text) / min(seconds) > 20e6
