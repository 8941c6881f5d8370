"""Tokenisers of other kinds than GPT-2's: WordPiece, Unigram, words; all verbs that take text."""

import json

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import bridge
from data_pipelines.errors import DataProblem
from data_pipelines.subword import SubwordTokenizer
from jaxmodels.errors import DONE, MISMATCH
from tests.bridge.helpers import command
from tests.bridge.tokenizer_folders import END, save_model, trained

TEXTS = ["hello world, this is a test", "the quick brown fox jumps 123", "Äöü ß don't"] * 2


def wordpiece() -> tuple[Tokenizer, dict[str, str]]:
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    names = ["[PAD]", "[UNK]", "[SEP]"]
    trainer = trainers.WordPieceTrainer(vocab_size=90, special_tokens=names, show_progress=False)
    made.train_from_iterator(TEXTS, trainer)
    return made, {"unk_token": "[UNK]", "pad_token": "[PAD]", "sep_token": "[SEP]"}


def unigram() -> tuple[Tokenizer, dict[str, str]]:
    made = Tokenizer(models.Unigram())
    made.normalizer = normalizers.NFKC()
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=60, special_tokens=["<unk>", "</s>"], unk_token="<unk>", show_progress=False
    )
    made.train_from_iterator(TEXTS, trainer)
    return made, {"unk_token": "<unk>", "eos_token": "</s>"}


def words() -> tuple[Tokenizer, dict[str, str]]:
    made = Tokenizer(models.WordLevel(unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(special_tokens=["<unk>", "<eos>"], show_progress=False)
    made.train_from_iterator(TEXTS, trainer)
    return made, {"unk_token": "<unk>", "eos_token": "<eos>"}


def folder(kind, path):
    """A GPT-2 with such a tokeniser, as transformers saves both."""
    made, roles = kind()
    save_model(path, made.get_vocab_size())
    PreTrainedTokenizerFast(tokenizer_object=made, **roles).save_pretrained(path)
    return path


@pytest.mark.parametrize("kind", [wordpiece, unigram, words])
@pytest.mark.parametrize("to", ["safetensors", "gpt2", "nanogpt", "gguf", "orbax"])
def test_every_target_keeps_it(kind, to, tmp_path):
    source = folder(kind, tmp_path / "in")
    bridge.convert(source, tmp_path / "out", to=to, verify="roundtrip")
    theirs = AutoTokenizer.from_pretrained(source)
    ours = bridge.open_checkpoint(tmp_path / "out").tokenizer
    texts = ["hello test, the fox", "Hello  World 999 漢", "don't"]
    for text in texts:
        ids = theirs(text, add_special_tokens=False)["input_ids"]
        assert ours.encode(text).tolist() == ids
        assert ours.decode(ids) == theirs.decode(ids, clean_up_tokenization_spaces=False)
    if to in ("safetensors", "gpt2"):
        again = AutoTokenizer.from_pretrained(tmp_path / "out")
        assert again(texts)["input_ids"] == theirs(texts)["input_ids"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", [wordpiece, unigram])
def test_every_verb_that_reads_text_takes_it(kind, tmp_path, capsys):
    source = folder(kind, tmp_path / "in")
    text = tmp_path / "text.txt"
    text.write_text("\n".join(TEXTS * 20))
    for prompt in ("hello fox", ""):
        words = ("generate", source, "--prompt", prompt, "--max-new-tokens", "3", "--json")
        code, said, err = command(capsys, *words)
        assert code == DONE, err
        assert said["samples"]
    code, said, err = command(capsys, "eval", source, "--data", f"text:{text}", "--json")
    assert code == DONE, err
    assert 0 < said["loss"] < 10
    flags = ("--steps", "1", "--batch", "2", "--data", f"text:{text}", "--out", tmp_path / "run")
    code, _, err = command(capsys, "train", "wikigpt:tiny", "--init", source, *flags)
    assert code == DONE, err
    run = bridge.open_checkpoint(tmp_path / "run").tokenizer
    assert (
        run.encode(TEXTS[0]).tolist()
        == bridge.open_checkpoint(source).tokenizer.encode(TEXTS[0]).tolist()
    )


def test_a_text_that_it_cannot_write_is_an_error(tmp_path, capsys):
    data = json.loads(words()[0].to_str())
    data["model"]["unk_token"] = "lost"  # in no vocabulary
    tokenizer = SubwordTokenizer.from_json(data)
    assert len(tokenizer.encode("hello world")) == 2
    with pytest.raises(DataProblem, match="cannot encode this text") as caught:
        tokenizer.encode("hello moon")
    assert caught.value.exit_code == MISMATCH
    for ask in (tokenizer.encode, tokenizer.unknown):
        with pytest.raises(DataProblem):
            ask("hello moon")


def test_a_panic_of_tokenizers_is_an_error(monkeypatch):
    class PanicException(BaseException):
        """pyo3's, which is no Exception."""

    class Panics:
        def encode(self, *_, **__):
            raise PanicException("index out of bounds")

        def get_vocab(self, **_):
            return {}

    tokenizer = SubwordTokenizer.from_json(json.loads(words()[0].to_str()))
    monkeypatch.setitem(tokenizer.__dict__, "_tokenizer", Panics())
    with pytest.raises(DataProblem, match="index out of bounds"):
        tokenizer.encode("hello")


DIGITS = {"type": "Digits", "individual_digits": True}


@pytest.mark.parametrize(
    ("kind", "changes", "differs"),
    [
        ("GPT2Tokenizer", {}, False),
        ("GPT2TokenizerFast", {"pre_tokenizer": DIGITS}, True),
        ("RobertaTokenizer", {}, False),
        ("GPTNeoXTokenizerFast", {"normalizer": {"type": "NFC"}}, False),
        ("GPTNeoXTokenizer", {}, True),
        ("PreTrainedTokenizerFast", {"pre_tokenizer": DIGITS}, False),
    ],
)
def test_what_transformers_5_makes_anew_is_noted(tmp_path, kind, changes, differs):
    source = save_model(tmp_path / "in", 280)
    data = json.loads(trained())
    if "pre_tokenizer" in changes:
        cuts = [DIGITS, data["pre_tokenizer"]]
        changes = {"pre_tokenizer": {"type": "Sequence", "pretokenizers": cuts}}
    (source / "tokenizer.json").write_text(json.dumps(data | changes))
    said = {"tokenizer_class": kind, "unk_token": END, "bos_token": END, "eos_token": END}
    (source / "tokenizer_config.json").write_text(json.dumps(said))
    opened = bridge.open_checkpoint(source)
    noted = any("transformers 5 builds a" in note for note in opened.notes)
    theirs = AutoTokenizer.from_pretrained(source)
    texts = ("hello 123 45", "u\u0308ber")
    same = all(
        opened.tokenizer.encode(text).tolist() == theirs.encode(text, add_special_tokens=False)
        for text in texts
    )
    assert (noted, same) == (differs, not differs)
    assert opened.tokenizer.to_json()["pre_tokenizer"]["type"] == (
        "Sequence" if "pre_tokenizer" in changes else "ByteLevel"
    )


def test_characters_need_no_settings_of_transformers(tmp_path):
    source = save_model(tmp_path / "in", 3)
    (source / "characters.json").write_text(json.dumps(["a", "b", "c"]))
    (source / "tokenizer.json").write_text(trained())
    (source / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tok')
    assert bridge.open_checkpoint(source).tokenizer.vocab_size == 3
