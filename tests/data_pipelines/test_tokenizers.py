import json

import pytest
import tokenizers
from tokenizers import AddedToken, models, pre_tokenizers

from data_pipelines.characters import CharTokenizer
from data_pipelines.errors import DataProblem
from data_pipelines.gpt2 import GPT2Tokenizer
from data_pipelines.prepare import prepare
from data_pipelines.token_files import open_bin
from data_pipelines.tokenizers import load_tokenizer, open_tokenizer

CHARS = CharTokenizer.build(["hello world"])
WORDS = {"[UNK]": 0, "hello": 1, "world": 2, "!": 3}


def word_tokenizer(*special):
    made = tokenizers.Tokenizer(models.WordLevel(WORDS, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.add_special_tokens([AddedToken(name, special=True) for name in special])
    made.enable_truncation(2)
    made.enable_padding(length=9)
    return made


@pytest.fixture
def words(tmp_path):
    made = word_tokenizer("[PAD]", "</s>")
    made.save(str(tmp_path / "tokenizer.json"))
    return load_tokenizer(tmp_path)


def test_a_users_tokenizer(words):
    assert words.encode("hello world hello !").tolist() == [1, 2, 1, 3]  # neither cut nor padded
    assert words.decode([1, 2]) == "hello world"
    assert (words.vocab_size, words.end_of_text, words.special_ids) == (6, 5, (0, 4))
    assert words.unknown("hello big big bad world") == ["big", "bad"]


def test_special_tokens_in_a_text_are_text(words):
    assert 5 not in words.encode("hello </s> world").tolist()
    assert 4 not in words.encode("hello [PAD]").tolist()


def test_lone_surrogates_do_no_harm(words):
    assert words.encode("hello \udcff").tolist() == [1, 0]
    assert words.unknown("hello \udcff") == ["\ufffd"]


def test_no_end_of_text_in_the_file(tmp_path):
    word_tokenizer("[PAD]").save(str(tmp_path / "tokenizer.json"))
    made = load_tokenizer(tmp_path)
    assert (made.end_of_text, made.special_ids) == (None, (0, 4))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["chars", "gpt2", "words"])
def test_saved_and_loaded(tmp_path, words, kind):
    tokenizer = {"chars": CHARS, "gpt2": GPT2Tokenizer(), "words": words}[kind]
    folder = tmp_path / "saved"
    folder.mkdir()
    tokenizer.save(folder)
    assert [path.name for path in folder.iterdir()] == [tokenizer.FILE]
    tokenizer.save(tmp_path / "other.json")
    for path in (folder, folder / tokenizer.FILE, tmp_path / "other.json"):
        for made in (load_tokenizer(path), open_tokenizer(str(path))):
            assert made == tokenizer
            assert made.digest == tokenizer.digest
            assert made.to_json() == tokenizer.to_json()


def test_digests_tell_mappings_apart(tmp_path, words):
    data = words.to_json()
    data["model"]["vocab"] |= {"hello": 2, "world": 1}
    (tmp_path / "other.json").write_text(json.dumps(data))
    other = load_tokenizer(tmp_path / "other.json")
    digests = {made.digest for made in (words, other, CHARS, GPT2Tokenizer())}
    assert len(digests) == 4
    assert CharTokenizer.build(["hello world"] * 2, 2).digest == CHARS.digest  # the same ids


def test_characters_are_preferred_in_a_model_directory(tmp_path, words):
    words.save(tmp_path)
    CHARS.save(tmp_path)
    assert load_tokenizer(tmp_path) == CHARS


def test_the_word_gpt2():
    assert open_tokenizer("gpt2") == GPT2Tokenizer()


@pytest.mark.parametrize("name", ["", "gpt3", "/no/such/file"])
def test_an_unknown_name(name):
    with pytest.raises(DataProblem, match="unknown tokeniser") as caught:
        open_tokenizer(name)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "not a tokeniser"),
        ("3", "not a tokeniser"),
        ("[]", "not a character vocabulary"),
        ('{"model": 3}', "not a tokeniser"),
        ('{"model": {"type": "BPE"}}', "tokenizer.json cannot be read"),
        ('{"model": {"type": "No"}, "version": "1.0"}', "tokenizer.json cannot be read"),
        ('{"chars": []}', "not a character vocabulary"),
    ],
)
def test_a_file_that_is_no_tokenizer(tmp_path, content, says):
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(DataProblem, match=says) as caught:
        load_tokenizer(tmp_path)
    assert (caught.value.exit_code, caught.value.where) == (3, str(path))


@pytest.mark.parametrize("shard", [1 << 24, 8])
def test_what_is_unknown_is_counted(tmp_path, monkeypatch, shard):
    """In one piece and in parts; a first character that is meant is not unknown."""
    monkeypatch.setattr("data_pipelines.prepare.SHARD", shard)
    lines = ("a\tb", "xyz\t", "b\n")
    for i, line in enumerate(lines):
        (tmp_path / f"{i}.txt").write_text(line)
    for specials, name in (((), "'\\t'"), (("<PAD>", "<UNK>"), "<UNK>")):
        made = CharTokenizer(("\t", "a", "b"), specials=specials)
        manifest = prepare(f"text:{tmp_path}", tmp_path / f"out{len(specials)}", tokenizer=made)
        assert manifest["unknown"] == len("xyz\n\n\n\n\n")
        notes = open_bin(f"bin:{tmp_path / f'out{len(specials)}'}").notes
        assert notes == (f"8 characters (61.54%) are {name}: not in the vocabulary",)


def test_an_empty_folder(tmp_path):
    with pytest.raises(DataProblem, match="not a tokeniser") as caught:
        load_tokenizer(tmp_path)
    assert caught.value.exit_code == 3
