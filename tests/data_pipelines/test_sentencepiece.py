"""sentencepiece's models, against ids that its own library (0.2.3) gave for them."""

import json
import shutil
from pathlib import Path

import pytest

from data_pipelines.errors import DataProblem
from data_pipelines.tokenizers import load_tokenizer, open_tokenizer
from data_pipelines.transformers_files import UnknownTokenizer

MODELS = Path(__file__).parent / "sentencepiece"
IDS = json.loads((MODELS / "ids.json").read_text())


@pytest.mark.parametrize("name", IDS)
def test_ids_are_those_of_the_library(name):
    tokenizer = open_tokenizer(str(MODELS / f"{name}.model"))
    for case in IDS[name]:
        assert tokenizer.encode(case["text"]).tolist() == case["ids"], case["text"]
        if tokenizer.unk_id not in case["ids"]:  # it shows unknown text as " ⁇ "
            assert tokenizer.decode(case["ids"]) == case["decoded"]
    assert tokenizer.decode([tokenizer.end_of_text]) == "</s>"
    assert tokenizer.special_ids[:2] == (0, 1)


@pytest.mark.parametrize("name", ["bpe", "unigram"])
def test_symbols_of_the_users_keep_the_white_space_around_them(tmp_path, name):
    """As in the library: spaces are joined and added in the whole text, not between symbols."""
    pieces = b"".join(
        b"\x0a" + bytes([len(text) + 9, 0x0A, len(text)]) + text + b"\x15\0\0\0\0\x18\x04"
        for text in (b"<u>", b"(.")
    )
    (tmp_path / "m.model").write_bytes((MODELS / f"{name}.model").read_bytes() + pieces)
    tokenizer = open_tokenizer(str(tmp_path / "m.model"))
    symbol, space = map(tokenizer._tokenizer.token_to_id, ("<u>", "\u2581"))
    for text in ("the <u> the", "the<u>the", "<u>the <u>", "<u>", "<u><u> the (. the"):
        ids = tokenizer.encode(text).tolist()
        assert ids.count(symbol) == text.count("<u>")
        assert tokenizer.decode(ids) == text
    assert tokenizer.encode("<u>the").tolist()[:2] == [space, symbol]


def test_a_folder_and_its_classes(tmp_path):
    shutil.copy(MODELS / "bpe.model", tmp_path / "tokenizer.model")
    file = tmp_path / "tokenizer_config.json"
    digest = load_tokenizer(tmp_path).digest
    file.write_text(json.dumps({"tokenizer_class": "LlamaTokenizer"}))
    assert load_tokenizer(tmp_path).digest == digest
    file.write_text(json.dumps({"tokenizer_class": "XLMRobertaTokenizer"}))  # it shifts the ids
    with pytest.raises(UnknownTokenizer):
        load_tokenizer(tmp_path)


def test_autotokenizer_gives_the_same_ids(tmp_path):
    from transformers import AutoTokenizer

    from bridge.formats.tokenizer import write_tokenizer

    tokenizer = load_tokenizer(MODELS / "unigram.model")
    tokenizer.save(tmp_path)
    write_tokenizer(tmp_path, tokenizer, 1000)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for case in IDS["unigram"]:
        assert theirs(case["text"], add_special_tokens=False)["input_ids"] == case["ids"]
    assert theirs.eos_token_id == tokenizer.end_of_text


@pytest.mark.parametrize(
    "damage",
    ["text", "cut", "empty", "json", "endless", "huge", "id", "spaces", "charsmap", "kind"],
)
def test_a_file_that_is_none(tmp_path, damage):
    whole = (MODELS / "bpe.model").read_bytes()
    content = {
        "text": b"hello",
        "cut": whole[: len(whole) // 2],
        "empty": b"",
        "json": b'{"a": 1}',
        "endless": b"\x0a" + b"\xff" * 20,
        "huge": b"\x0a\xff\xff\xff\xff\x7f",
        # A text in the place of a number, or the other way round.
        "id": whole + b"\x12\x03\xc2\x02\x00",
        "spaces": whole + b"\x1a\x02\x1a\x00",
        "charsmap": whole + b"\x1a\x02\x10\x05",
        "kind": whole + b"\x0a\x05\x0a\x01Q\x1a\x00",
    }[damage]
    (tmp_path / "m.model").write_bytes(content)
    with pytest.raises(DataProblem, match="not a sentencepiece model") as caught:
        open_tokenizer(str(tmp_path / "m.model"))
    assert caught.value.exit_code == 3
