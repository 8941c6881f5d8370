"""Tokenisers beside a model: every form in which they are stored, converted to every format."""

import json
import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer
from transformers import AutoTokenizer, GPT2Tokenizer, PreTrainedTokenizerFast

import bridge
from bridge.formats.tokenizer import NO_TOKENIZER
from data_pipelines.transformers_files import read_files, transformers_differs
from jaxmodels.commands.initial import refuse_new_vocabulary
from jaxmodels.errors import CORRUPT, DONE, MISMATCH, Problem
from jaxmodels.recipe import Recipe
from tests.bridge.helpers import command
from tests.bridge.tokenizer_folders import END, FLAGS, save_model, slow_files, trained

TARGETS = ["safetensors", "gpt2", "nanogpt", "gguf", "orbax"]
TEXT = f" hello <a><b>  world<c> don't 123 {END} 漢字\n\n"


def theirs(folder, text=TEXT, **options):
    return AutoTokenizer.from_pretrained(folder, **options)(text)["input_ids"]


def same_ids(folder, text=TEXT):
    """transformers and we read a text alike; special tokens in it are text for us."""
    tokenizer = bridge.open_checkpoint(folder).tokenizer
    ids = theirs(folder, text, split_special_tokens=True)
    assert tokenizer.encode(text).tolist() == ids
    assert tokenizer.decode(ids) == AutoTokenizer.from_pretrained(folder).decode(ids)


def fast(folder, added):
    made = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(trained()), eos_token=END)
    made.add_tokens(added)
    made.save_pretrained(folder)


def of_gpt2s_class(folder, added):
    model = json.loads(trained())["model"]
    made = GPT2Tokenizer(vocab=model["vocab"], merges=[tuple(m) for m in model["merges"]])
    made.add_tokens(added)
    made.save_pretrained(folder)


def bare(folder, added):
    made = Tokenizer.from_str(trained())
    made.add_tokens(added)
    made.save(str(folder / "tokenizer.json"))


def slow(folder, added):
    special = [token.content for token in added if token.special]
    first = len(json.loads(trained())["model"]["vocab"])
    ids = {token.content: first + i for i, token in enumerate(added)}
    named = {"eos_token": END, "pad_token": special[0]} if special else {"eos_token": END}
    slow_files(folder, added_tokens=ids, special_tokens_map=named)


def slow_with_decoder(folder, added):
    first = len(json.loads(trained())["model"]["vocab"])
    rows = {str(first + i): json.loads(json.dumps(vars_of(t))) for i, t in enumerate(added)}
    said = {"tokenizer_class": "GPT2Tokenizer", "added_tokens_decoder": rows, "eos_token": END}
    slow_files(folder, tokenizer_config=said)


def vars_of(token):
    names = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")
    return {name: getattr(token, name) for name in names}


FORMS = [fast, of_gpt2s_class, bare, slow, slow_with_decoder]
ADDED = [
    AddedToken("<a>", lstrip=True),
    AddedToken("<b>", rstrip=True, normalized=False),
    AddedToken("<c>", special=True),
]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_transformers_ids_before_and_after(form, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    form(source, ADDED)
    save_model(source, 283)
    opened = bridge.open_checkpoint(source)
    assert opened.config.tokens == opened.tokenizer.vocab_size == 283
    assert opened.tokenizer.end_of_text == 0
    same_ids(source)
    for to in ("safetensors", "gpt2"):
        bridge.convert(source, tmp_path / to, to=to, verify="none")
        assert theirs(tmp_path / to) == theirs(source)
        same_ids(tmp_path / to)


@pytest.mark.parametrize("to", TARGETS)
def test_every_target_keeps_it(to, tmp_path):
    fast(tmp_path / "source", ADDED)
    source = bridge.open_checkpoint(save_model(tmp_path / "source", 283))
    bridge.convert(tmp_path / "source", tmp_path / "out", to=to, verify="none")
    written = bridge.open_checkpoint(tmp_path / "out")
    assert written.config.tokens == 283
    assert written.tokenizer == source.tokenizer
    for name in ("end_of_text", "special_ids"):
        assert getattr(written.tokenizer, name) == getattr(source.tokenizer, name)


names = st.text(st.sampled_from("abc<>|ß "), min_size=1, max_size=4).map(lambda name: f"<{name}>")
tokens = st.builds(
    AddedToken,
    names,
    special=st.booleans(),
    lstrip=st.booleans(),
    rstrip=st.booleans(),
    single_word=st.booleans(),
    normalized=st.booleans(),
)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("weights"), 300)


@settings(max_examples=5, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    form=st.sampled_from([fast, bare, slow_with_decoder]),
    added=st.lists(tokens, max_size=3, unique_by=lambda token: token.content),
    to=st.sampled_from(TARGETS),
    data=st.data(),
)
def test_random_added_tokens(form, added, to, data, weights, tmp_path):
    source, out = tmp_path / "source", tmp_path / "out"
    for folder in (source, out):
        shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(weights, source)
    form(source, added)
    written = [*(token.content for token in added), "hello", " ", "x", "\n"]
    text = "".join(data.draw(st.lists(st.sampled_from(written), max_size=8)))
    same_ids(source, text)
    bridge.convert(source, out, to=to, verify="none")
    opened = bridge.open_checkpoint(out)
    assert opened.config.tokens == 280 + len(added)
    ids = opened.tokenizer.encode(text).tolist()
    assert ids == theirs(source, text, split_special_tokens=True)
    if to in ("safetensors", "gpt2"):
        assert theirs(out, text) == theirs(source, text)


def test_ids_with_holes_are_those_of_the_file(tmp_path):
    """transformers 4 wrote and read them so; transformers 5 numbers on, to rows of no token."""
    count = slow_files(tmp_path, added_tokens={"<x>": 285, "<yy>": 290})
    source = bridge.open_checkpoint(save_model(tmp_path, 300))
    tokenizer = source.tokenizer
    assert tokenizer.encode("<x><yy>").tolist() == [285, 290]
    assert (tokenizer.vocab_size, source.config.tokens) == (291, 291)
    holes = {*range(count, 285), *range(286, 290)}
    assert holes <= set(tokenizer.special_ids)
    for to in ("gpt2", "gguf"):
        bridge.convert(tmp_path, tmp_path / to, to=to, verify="none")
        assert bridge.open_checkpoint(tmp_path / to).tokenizer == tokenizer
    assert theirs(tmp_path / "gpt2", "<x><yy>") == [285, 290]


def test_a_special_token_without_an_id_gets_a_row_that_is_there(tmp_path):
    slow_files(tmp_path, special_tokens_map={"pad_token": "<pad>", "eos_token": END})
    for rows, tokens in ((280, 280), (281, 281), (290, 281)):
        source = bridge.open_checkpoint(save_model(tmp_path, rows))
        assert (source.config.tokens, source.tokenizer.vocab_size) == (tokens, tokens)
    assert source.tokenizer.special_ids == (280,)


def test_settings_are_taken_over_and_code_is_not(tmp_path):
    said = {
        "tokenizer_class": "GPT2Tokenizer",
        "auto_map": {"AutoTokenizer": ["evil.Evil", None]},
        "model_max_length": 77,
        "padding_side": "left",
        "pad_token": END,
        "custom": 3,
    }
    bare(tmp_path, [])
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(said))
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    save_model(tmp_path, 280)
    drawing = {"eos_token_id": 5, "temperature": 0.5, "do_sample": True, "custom_generate": "evil"}
    (tmp_path / "generation_config.json").write_text(json.dumps(drawing))
    bridge.convert(tmp_path, tmp_path / "out", to="gpt2", verify="none")
    written = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    kept = {name: written[name] for name in ("model_max_length", "padding_side", "pad_token")}
    assert kept == {"model_max_length": 77, "padding_side": "left", "pad_token": END}
    assert written["chat_template"] == "{{ messages }}"
    assert written["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert not {"auto_map", "custom"} & written.keys()
    written = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert (written["eos_token_id"], written["temperature"]) == (5, 0.5)
    assert "custom_generate" not in written


# A sentencepiece model of whole words, a kind that is not read: its pieces, and the trainer's type.
WORDS = b"\x0a\x0e\x0a\x05<unk>\x15\0\0\0\0\x18\x02" + b"\x12\x02\x18\x03"
KINDS = {
    "tokenizer.model": WORDS,
    "spiece.model": WORDS,
    "vocab.txt": b"[PAD]\n[UNK]\n",
    "vocab.json": b'{"a": 0}',
    "tokenizer.json": b'{"version": "9", "added_tokens": [], "model": {"type": "New"}}',
    "tokenizer_config.json": b'{"tokenizer_class": "ByT5Tokenizer"}',
}


@pytest.fixture(scope="module")
def rows_of_gpt2(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("gpt2"), 50_257)


@pytest.mark.parametrize("name", KINDS)
def test_one_that_is_not_read_is_replaced_by_none(name, rows_of_gpt2, tmp_path):
    shutil.copytree(rows_of_gpt2, tmp_path / "source")
    (tmp_path / "source" / name).write_bytes(KINDS[name])
    source = bridge.open_checkpoint(tmp_path / "source")
    assert source.tokenizer is None
    assert any("tokeniser beside the tensors is not used" in note for note in source.notes)


def test_nor_does_an_output_get_gpt2s(rows_of_gpt2, tmp_path, capsys):
    source = tmp_path / "source"
    shutil.copytree(rows_of_gpt2, source)
    (source / "spiece.model").write_bytes(KINDS["spiece.model"])
    code, report, _ = command(capsys, "convert", source, tmp_path / "out", "--json")
    assert (code, report["vocab_present"]) == (0, False)
    assert any("tokeniser beside the tensors is not used" in note for note in report["notes"])
    for to in ("nanogpt", "gguf"):  # they have 50,257 rows too
        bridge.convert(tmp_path / "out", tmp_path / to, to=to, verify="none")
        assert bridge.open_checkpoint(tmp_path / to).tokenizer is None


def test_nor_does_a_run_that_begins_there(rows_of_gpt2):
    source = bridge.open_checkpoint(rows_of_gpt2)
    recipe = Recipe(tokenizer="gpt2")
    refuse_new_vocabulary(recipe, source)
    source.origin[NO_TOKENIZER] = "it is spiece.model"
    with pytest.raises(Problem, match="no vocabulary"):
        refuse_new_vocabulary(recipe, source)


def test_gpt2s_is_assumed_where_nothing_lies(rows_of_gpt2):
    source = bridge.open_checkpoint(rows_of_gpt2)
    assert source.tokenizer.vocab_size == 50_257
    assert "assumed: the tokeniser is GPT-2's" in source.notes


def test_a_file_is_read_with_the_tokeniser_beside_it(tmp_path):
    bare(tmp_path, [])
    save_model(tmp_path, 280)
    source = bridge.open_checkpoint(tmp_path / "model.safetensors", config={"heads": 2})
    assert source.tokenizer.vocab_size == 280
    bare(tmp_path, ADDED)
    source = bridge.open_checkpoint(tmp_path / "model.safetensors", config={"heads": 2})
    assert source.tokenizer is None
    assert any("it has 283 tokens, and the model 280 rows" in note for note in source.notes)


def test_sizes(tmp_path):
    bare(tmp_path, ADDED)
    with pytest.raises(Problem, match="has 283 entries, the model 282") as caught:
        bridge.open_checkpoint(save_model(tmp_path, 282))
    assert caught.value.exit_code == MISMATCH
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(Problem) as caught:
        bridge.open_checkpoint(tmp_path)
    assert caught.value.exit_code == CORRUPT
    assert caught.value.where == str(tmp_path / "tokenizer.json")


@pytest.mark.parametrize(("rows", "tokens"), [(50_258, 50_258), (50_300, 50_300)])
def test_rows_are_tokens_unless_a_tokeniser_says_otherwise(rows, tokens, tmp_path):
    source = save_model(tmp_path / "source", rows)
    assert bridge.open_checkpoint(source).config.tokens == tokens
    for to in ("gpt2", "nanogpt"):
        bridge.convert(source, tmp_path / to, to=to, verify="roundtrip")
        written = bridge.open_checkpoint(tmp_path / to)
        assert (written.config.tokens, written.tokenizer) == (tokens, None)


def test_two_files_that_disagree(tmp_path):
    decoder = {"5": FLAGS | {"content": "<z>"}}
    bare(tmp_path, [AddedToken("<z>")])
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": decoder}))
    source = bridge.open_checkpoint(save_model(tmp_path, 281))
    assert source.tokenizer is None
    assert any("'<z>' the ids 280 and 5" in note for note in source.notes)


def test_a_given_vocabulary_settles_an_assumed_count(tmp_path, capsys):
    """A bare file of 285 rows does not say how many of them are tokens."""
    weights = save_model(tmp_path / "in", 285) / "model.safetensors"
    (tmp_path / "in" / "config.json").unlink()
    config = {"heads": 2, "gelu": "exact"}
    assert bridge.open_checkpoint(weights, config=config).assumed["tokens"] == 285
    (tmp_path / "tokenizer.json").write_text(trained())
    words = ["convert", weights, tmp_path / "out", "--vocab", tmp_path / "tokenizer.json"]
    words += ["--set", "heads=2", "gelu=exact", "--json"]
    code, report, err = command(capsys, *words)
    assert code == DONE, err
    assert "tokens" not in report["assumed"]
    assert "assumed: tokens" not in err
    assert "rows 280 to 284 of the embedding are padding" in err
    assert "`tokens" not in (tmp_path / "out" / "README.md").read_text()
    source = bridge.open_checkpoint(tmp_path / "out")
    assert (source.config.vocab, source.config.tokens, source.assumed) == (285, 280, {})
    assert source.tokenizer.vocab_size == 280


def test_a_gpt2_without_a_named_class_gets_gpt2s_tokeniser(tmp_path):
    """AutoTokenizer goes by the model then, which decides what ends a text."""
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    model = {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []}
    content = {"version": "1.0", "added_tokens": [], "pre_tokenizer": level, "model": model}
    lower = {"normalizer": {"type": "Lowercase"}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content | lower))
    assert not transformers_differs(tmp_path, lambda: content | lower)
    assert read_files(tmp_path, rows=4)[0]["added_tokens"] == []
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    assert "GPT2Tokenizer" in transformers_differs(tmp_path, lambda: content | lower)[0]
    assert not transformers_differs(tmp_path, lambda: content)
    (end,) = read_files(tmp_path, rows=4)[0]["added_tokens"]
    assert (end["id"], end["content"]) == (2, "<|endoftext|>")
