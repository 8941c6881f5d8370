import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.captions.shapes import captions, scene
from data_pipelines.errors import DataProblem
from data_pipelines.subword import SubwordTokenizer
from data_pipelines.tokenizers import load_tokenizer, open_tokenizer
from data_pipelines.words import END, UNKNOWN, build_words

# Captions: words of any script in lower case, with punctuation, one space between them.
WORDS = st.text(
    st.characters(categories=("Ll", "Lo", "Nd", "Po", "Pd", "Sc")), min_size=1, max_size=8
).map(str.lower)
CAPTIONS = st.lists(WORDS, max_size=8).map(" ".join)


@pytest.mark.slow
@given(sentences=st.lists(CAPTIONS, min_size=1, max_size=5))
def test_decoding_undoes_encoding(sentences):
    tokenizer = build_words(sentences)
    for caption in sentences:
        assert tokenizer.decode(tokenizer.encode(caption)) == caption
        assert tokenizer.unknown(caption) == []
    assert build_words(reversed(sentences)).digest == tokenizer.digest


@pytest.mark.slow
@given(numbers=st.lists(st.integers(0, 9999), min_size=1, max_size=20))
def test_captions_of_shapes_come_back(numbers):
    sentences = [caption for i in numbers for caption in captions(scene(i))]
    tokenizer = build_words(sentences)
    for caption in sentences:
        ids = tokenizer.encode(caption)
        assert tokenizer.decode(ids) == caption
        assert len(ids) == len(caption.split())  # a token for each word


@given(text=st.text(max_size=30))
def test_any_text_is_written_with_the_words_there_are(text):
    tokenizer = build_words(["a red circle"])
    ids = tokenizer.encode(text)
    assert set(ids.tolist()) <= set(range(1, tokenizer.vocab_size))
    tokenizer.decode(ids)
    assert (tokenizer.unk_id in ids.tolist()) == bool(tokenizer.unknown(text))


def test_ids():
    tokenizer = build_words(["a red circle, a blue one", "A  red\ttriangle!"])
    vocabulary = tokenizer.to_json()["model"]["vocab"]
    assert list(vocabulary) == [
        END, UNKNOWN, "!", ",", *(f"\u2581{w}" for w in "a blue circle one red triangle".split())
    ]  # fmt: skip
    assert list(vocabulary.values()) == list(range(10))
    assert (tokenizer.end_of_text, tokenizer.unk_id, tokenizer.special_ids) == (0, 1, (1,))
    assert tokenizer.vocab_size == 10
    ids = tokenizer.encode(f"A RED dog {END}")
    assert ids.tolist()[:3] == [4, 8, 1]
    assert 0 not in ids  # an end that is written in a caption is text
    assert tokenizer.unknown("a red dog") == [" dog"]
    assert tokenizer.decode([4, 8, 0]) == f"a red{END}"


def test_rare_words_are_unknown():
    tokenizer = build_words(["a red a blue", "a red"], min_freq=2)
    assert tokenizer.unknown("a red blue") == [" blue"]
    assert tokenizer.vocab_size == 4


def test_it_is_saved_as_any_tokenizer_json(tmp_path):
    made = build_words(["a red circle"])
    made.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert isinstance(again, SubwordTokenizer)
    assert again.digest == made.digest
    assert json.loads((tmp_path / "tokenizer.json").read_text())["model"]["type"] == "WordLevel"


def test_a_text_has_no_such_tokeniser():
    with pytest.raises(DataProblem, match="for captions only") as caught:
        open_tokenizer("words")
    assert caught.value.exit_code == 2
