"""GGUF's own list of tokens, as llama.cpp's converter writes it: it is the model's tokeniser."""

import json

import gguf
import pytest
from tokenizers import AddedToken, Tokenizer

import bridge
from bridge.formats import gguf_vocabulary
from bridge.storage.gguf_reader import read_gguf
from data_pipelines.gpt2 import GPT2Tokenizer
from data_pipelines.transformers_files import UnknownTokenizer
from jaxmodels.errors import MISMATCH, Problem
from tests.bridge.tokenizer_folders import END, save_model, trained

NORMAL, CONTROL, USER, UNUSED = 1, 3, 4, 5


def keys(**changes):
    """What convert_hf_to_gguf.py writes of a tokeniser with two added tokens and 3 rows more."""
    made = Tokenizer.from_str(trained())
    made.add_tokens([AddedToken("<a>", normalized=False), AddedToken("<b>", special=True)])
    names = {i: token for token, i in made.get_vocab(with_added_tokens=True).items()}
    size = len(names)
    tokens = [names.get(i, f"[PAD{i}]") for i in range(size + 3)]
    kinds = [NORMAL] * size + [UNUSED] * 3
    kinds[0], kinds[size - 2], kinds[size - 1] = CONTROL, USER, CONTROL
    said = {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": tokens,
        "token_type": kinds,
        "merges": [" ".join(pair) for pair in json.loads(made.to_str())["model"]["merges"]],
        "bos_token_id": 0,
        "eos_token_id": 0,
    } | changes
    found = {f"tokenizer.ggml.{key}": value for key, value in said.items() if value is not None}
    return made, found


@pytest.mark.parametrize("changes", [{}, {"pre": None}, {"pre": "phi-2"}])
def test_the_list_is_read(changes):
    theirs, said = keys(**changes)
    tokenizer = gguf_vocabulary.tokenizer_in(said, "x")
    theirs.encode_special_tokens = True
    text = f"hello <a>world<b> 123 {END}"
    assert tokenizer.encode(text).tolist() == theirs.encode(text).ids
    assert tokenizer.vocab_size == gguf_vocabulary.used(said) == theirs.get_vocab_size()
    assert tokenizer.end_of_text == 0
    assert tokenizer.special_ids == (281,)


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "llama"},
        {"model": "bert"},
        {"pre": "llama-bpe"},
        {"pre": "default"},
        {"pre": "olmo"},
    ],
)
def test_other_kinds_are_not_read(changes):
    with pytest.raises(UnknownTokenizer, match="llama"):
        gguf_vocabulary.tokenizer_in(keys(**changes)[1], "x")


@pytest.mark.slow
def test_gpt2s_own_list_is_recognised():
    own = GPT2Tokenizer()
    assert gguf_vocabulary.tokenizer_in(gguf_vocabulary.keys_of(own, 50_304), "x") == own


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A model of 285 rows as GGUF."""
    folder = tmp_path_factory.mktemp("gguf")
    bridge.convert(save_model(folder / "hf", 285), folder / "out", to="gguf", verify="none")
    return folder / "out" / "model.gguf"


def another(path, target, said):
    """A file of ours, but for the keys that only we write, and with these of its tokens."""
    writer = gguf.GGUFWriter(target, "gpt2")
    for key, value in read_gguf(path)[0].items():
        if key.startswith("gpt2."):
            write = writer.add_float32 if isinstance(value, float) else writer.add_uint32
            write(key, value)
    for key, value in said.items():
        write = {str: writer.add_string, int: writer.add_uint32}.get(type(value), writer.add_array)
        write(key, value)
    for tensor in gguf.GGUFReader(path).tensors:
        writer.add_tensor(tensor.name, tensor.data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def test_a_file_of_anothers(tmp_path, written):
    theirs, said = keys()
    source = bridge.open_checkpoint(another(written, tmp_path / "other.gguf", said))
    assert (source.config.vocab, source.config.tokens) == (285, 282)
    assert source.tokenizer.encode("<a> hello").tolist() == theirs.encode("<a> hello").ids


@pytest.mark.parametrize("model", ["gpt2", "llama"])
@pytest.mark.parametrize("change", [-1, 1])
def test_a_list_that_is_not_the_embeddings(tmp_path, written, model, change):
    _, said = keys(model=model)
    for key in ("tokens", "token_type"):
        held = said[f"tokenizer.ggml.{key}"]
        said[f"tokenizer.ggml.{key}"] = held[:-1] if change < 0 else [*held, held[-1]]
    with pytest.raises(Problem, match=f"lists {285 + change} tokens, and .* has 285 rows") as told:
        bridge.open_checkpoint(another(written, tmp_path / "other.gguf", said))
    assert told.value.exit_code == MISMATCH


def test_a_count_that_is_not_the_embeddings(tmp_path, written):
    path = another(written, tmp_path / "right.gguf", {"gpt2.vocab_size": 285})
    assert bridge.open_checkpoint(path).config.vocab == 285
    path = another(written, tmp_path / "wrong.gguf", {"gpt2.vocab_size": 284})
    with pytest.raises(Problem, match="vocab = 284, the tensors 285") as told:
        bridge.open_checkpoint(path)
    assert told.value.exit_code == MISMATCH
