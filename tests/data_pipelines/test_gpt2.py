import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tokenizers
from hypothesis import example, given
from hypothesis import strategies as st

from bridge.formats.tokenizer import write_tokenizer
from data_pipelines import gpt2
from data_pipelines.errors import DataProblem
from data_pipelines.gpt2 import GPT2Tokenizer, vocabulary
from data_pipelines.gpt2.huggingface import tokenizer_json
from data_pipelines.tokenizers import decode_stream, load_tokenizer

GPT2 = GPT2Tokenizer()

# Ids that others published: transformers' documentation of GPT2Tokenizer and GPT2LMHeadModel,
# tiktoken's docstrings and its tests (gpt2).
KNOWN = {
    "Hello world": [15496, 995],
    " Hello world": [18435, 995],
    "Hello, my dog is cute": [15496, 11, 616, 3290, 318, 13779],
    "hello world": [31373, 995],
    "<|endoftext|>": [27, 91, 437, 1659, 5239, 91, 29],
    "0": [15],
    "00": [405],
    "000": [830],
    "0000": [2388],
    "00000": [20483],
    "000000": [10535],
    "0000000": [24598],
    "00000000": [8269],
    "000000000": [10535, 830],
    "The quick brown fox jumps over the lazy dog": [
        *(464, 2068, 7586, 21831, 18045, 625, 262, 16931, 3290),
    ],
}

EDGES = [
    "",
    " ",
    "\n",
    "\x00\x01\x1b[0m\x7f\x85\x1c\x1d",
    "emoji 😀 👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 🇩🇪",
    "e\u0301 a\u0308\u0323 \u0301 zalgo z\u0351\u036b",
    "   " * 50 + "x" + " " * 99,
    "\n" * 40 + "a" + "\n\n \n\t\n",
    "\t\t\tif x:\r\n\t\treturn\r\n\r\n",
    "I'll they've don't we're I'm he's she'd DON'T I’ll 'tis ''s",
    "日本語のテキスト 中文文本 한국어 עברית العربية हिन्दी ไทย ελληνικά русский",
    "0 12 123 1234567890 ½ ² ٣ Ⅷ 1,234.56e-7",
    "\u00a0nbsp\u00a0\u00a0\u2003em\u2028line\u2029para\u3000ideographic \u200bzero\ufeffbom",
    "<|endoftext|> text <|endoftext|><|endoftext|>",
    "a" * 5000 + "é" * 3000,
    "\U0010ffff\ufffd\ufffe",
]
HARD = st.text(st.one_of(st.characters(codec="utf-8"), st.sampled_from(" \n\t'sé\u200d😀<|>")))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpt2")
    GPT2.save(folder)
    write_tokenizer(folder, GPT2, 1024)
    return folder


@pytest.fixture(scope="module")
def theirs(written):
    made = tokenizers.Tokenizer.from_file(str(written / "tokenizer.json"))
    made.encode_special_tokens = True
    return made


@pytest.mark.parametrize("text", KNOWN)
def test_published_ids(text):
    ids = GPT2.encode(text)
    assert ids.dtype == np.int32
    assert ids.tolist() == KNOWN[text]
    assert GPT2.decode(ids) == text


@pytest.mark.parametrize("text", EDGES)
def test_the_written_file_gives_the_same_ids(theirs, text):
    ids = GPT2.encode(text).tolist()
    assert theirs.encode(text).ids == ids
    assert theirs.decode(ids, skip_special_tokens=False) == text == GPT2.decode(ids)


@given(HARD)
def test_any_text_comes_back_and_both_agree(theirs, text):
    ids = GPT2.encode(text)
    assert GPT2.decode(ids) == text
    assert theirs.encode(text).ids == ids.tolist()
    assert GPT2.end_of_text not in ids
    assert GPT2.unknown(text) == []


@given(st.lists(st.integers(0, GPT2.vocab_size - 1), max_size=20))
def test_any_ids_give_text_and_both_agree(theirs, ids):
    assert GPT2.decode(ids) == theirs.decode(ids, skip_special_tokens=False)


@pytest.mark.slow
def test_transformers_opens_the_folder(written):
    # In a process of its own: transformers takes seconds to import.
    code = (
        "import json, sys\nfrom transformers import AutoTokenizer\n"
        "made = AutoTokenizer.from_pretrained(sys.argv[1])\n"
        "texts = json.load(sys.stdin)\n"
        "ids = [made(text)['input_ids'] for text in texts]\n"
        "back = [made.decode(row) for row in ids]\n"
        "print(json.dumps([ids, back, made.eos_token_id, len(made), made.model_max_length]))"
    )
    texts = [*KNOWN, *EDGES]
    for config in (None, {"model_type": "gpt2"}):  # alone, and beside a model's weights
        if config:
            (written / "config.json").write_text(json.dumps(config))
        done = subprocess.run(
            [sys.executable, "-c", code, str(written)],
            input=json.dumps(texts),
            capture_output=True,
            text=True,
            check=True,
        )
        ids, back, end, size, context = json.loads(done.stdout)
        assert ids == [GPT2.encode(text).tolist() for text in texts]
        assert back == texts
        assert (end, size, context) == (50256, 50257, 1024)


@pytest.mark.slow
@pytest.mark.parametrize("change", ["as written", "old merges", "indented", "bare"])
def test_the_file_is_recognised(tmp_path, change):
    data = tokenizer_json()
    if change == "old merges":
        data["model"] = data["model"] | {"merges": [" ".join(p) for p in data["model"]["merges"]]}
    if change == "bare":
        data["model"] = {key: data["model"][key] for key in ("type", "vocab", "merges")}
    indent = 2 if change == "indented" else None
    (tmp_path / "tokenizer.json").write_text(json.dumps(data, indent=indent))
    assert load_tokenizer(tmp_path) == GPT2


@pytest.mark.slow
@pytest.mark.parametrize("change", ["prefix", "merge", "added", "lower"])
def test_a_file_that_maps_otherwise_is_not_taken_for_gpt2(tmp_path, change):
    data = json.loads(json.dumps(tokenizer_json()))
    if change == "prefix":
        data["pre_tokenizer"]["add_prefix_space"] = True
    if change == "merge":
        merges = data["model"]["merges"]
        merges[0], merges[1] = merges[1], merges[0]
    if change == "added":
        data["added_tokens"].append(data["added_tokens"][0] | {"id": 50257, "content": "<pad>"})
    if change == "lower":
        data["normalizer"] = {"type": "Lowercase"}
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(data))
    made = load_tokenizer(path)
    assert made != GPT2
    assert made.end_of_text == 50256
    assert made.vocab_size == (50258 if change == "added" else 50257)
    assert made.special_ids == ((50257,) if change == "added" else ())
    assert made.digest != GPT2.digest


def test_surrogates():
    assert GPT2.decode(GPT2.encode("a\udcffb")) == "a\ufffdb"
    assert GPT2.decode(GPT2.encode("\ud83d\ude00")) == "😀"  # a pair, as JSON writes it
    assert GPT2.unknown("\udcff") == []


def test_bytes_that_are_no_text():
    half = GPT2.encode("😀")[:1]
    assert GPT2.decode(half) == "\ufffd"
    assert GPT2.decode([GPT2.end_of_text]) == "<|endoftext|>"


@pytest.mark.parametrize("bad", [-1, 50257])
def test_ids_outside_the_vocabulary_are_refused(bad):
    with pytest.raises(DataProblem, match=rf"token id {bad} ") as caught:
        GPT2.decode([0, bad])
    assert caught.value.exit_code == 5


@given(st.lists(HARD))
@example(["a b", "  c", "d\n\n", "e"])
def test_cuts_are_safe(parts):
    text = " ".join(parts)
    cut = GPT2.safe_cut(text)
    ids = [*GPT2.encode(text[:cut]), *GPT2.encode(text[cut:])]
    assert ids == GPT2.encode(text).tolist()


@given(st.text(st.sampled_from("aé😀 \ufffd日")), st.integers(1, 3))
def test_pieces_of_ids_give_whole_characters(text, size):
    ids = GPT2.encode(text)
    pieces = [ids[i : i + size] for i in range(0, len(ids), size)]
    emitted = list(decode_stream(GPT2, pieces))
    assert "".join(emitted) == text
    if "\ufffd" not in text:
        assert not any("\ufffd" in part for part in emitted)


def test_damaged_ranks_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "gpt2.tiktoken"
    path.write_bytes(vocabulary.RANKS.read_bytes().replace(b" 9\n", b" 8\n", 1))
    monkeypatch.setattr(vocabulary, "RANKS", path)
    vocabulary.ranks.cache_clear()
    with pytest.raises(DataProblem, match="damaged") as caught:
        vocabulary.ranks()
    assert caught.value.where == str(path)
    assert caught.value.exit_code == 3
    path.unlink()
    with pytest.raises(DataProblem, match="damaged"):
        vocabulary.ranks()


def test_threads_share_nothing_and_agree():
    """Each has its own object of tiktoken's: one that another thread began is slower."""
    text = "the quick brown fox, ünï 123\n" * 50
    with ThreadPoolExecutor(1) as pool:
        own = pool.submit(gpt2._encoding).result()
        assert own is pool.submit(gpt2._encoding).result()
        assert own is not gpt2._encoding()
        assert np.array_equal(pool.submit(GPT2.encode, text).result(), GPT2.encode(text))
