"""transformers' GPT-2 folders: what is accepted, what is refused, and the way back."""

import json
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Model

import bridge
from bridge.formats.tokenizer import write_tokenizer
from data_pipelines.tokenizers import CharTokenizer
from jaxmodels.errors import CORRUPT, MISMATCH, Problem
from tests.bridge.helpers import vocabulary, write_run

torch.set_num_threads(1)
SIZES = {"vocab_size": 61, "n_positions": 16, "n_embd": 32, "n_layer": 2, "n_head": 4}


def refused(exit_code, call, *arguments, **options):
    with pytest.raises(Problem) as caught:
        call(*arguments, **options)
    assert caught.value.exit_code == exit_code
    return "\n".join([caught.value.what, caught.value.where, caught.value.why])


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """(folder that transformers wrote, the module); not to be changed."""
    torch.manual_seed(0)
    module = GPT2LMHeadModel(GPT2Config(**SIZES)).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    folder = tmp_path_factory.mktemp("gpt2") / "model"
    module.save_pretrained(folder)
    return folder, module


def changed(saved, tmp_path, **values):
    copy = shutil.copytree(saved[0], tmp_path / "copy")
    said = {**json.loads((copy / "config.json").read_text()), **values}
    (copy / "config.json").write_text(json.dumps(said))
    return copy


def logits(module):
    tokens = torch.arange(32).reshape(2, 16) % 61
    with torch.no_grad():
        return tokens.numpy().astype(np.int32), module(tokens).logits.numpy()


def same_outputs(path, module):
    tokens, expected = logits(module)
    found, _ = bridge.load(path)(jnp.asarray(tokens))
    return np.abs(np.asarray(found) - expected).max() <= 2e-5


@pytest.mark.slow
def test_a_folder_opens(saved):
    source = bridge.open_checkpoint(saved[0])
    assert (source.format, source.arch, source.config.gelu) == ("gpt2", "wikigpt", "tanh")
    assert (source.config.heads, source.config.hidden, source.config.dropout) == (4, 128, 0.1)
    assert same_outputs(*saved)


def test_shards(saved, tmp_path):
    saved[1].save_pretrained(tmp_path / "shards", max_shard_size="40KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    assert bridge.open_checkpoint(tmp_path / "shards").format == "gpt2"
    assert bridge.diff(tmp_path / "shards", saved[0]).same


def test_names_without_the_prefix(saved, tmp_path):
    inner = saved[1].transformer
    assert isinstance(inner, GPT2Model)
    inner.save_pretrained(tmp_path / "inner")
    file = tmp_path / "inner" / "model.safetensors"
    # As the files that were published first: the causal mask of each block was saved too.
    masks = {f"h.{i}.attn.bias": torch.ones(1, 1, 16, 16).tril() for i in range(2)}
    save_file({**load_file(file), **masks}, file, metadata={"format": "pt"})
    source = bridge.open_checkpoint(tmp_path / "inner")
    assert "dropped: h.1.attn.bias, no parameter" in source.notes
    assert bridge.diff(tmp_path / "inner", saved[0]).same


@pytest.mark.parametrize("activation", ["gelu", "gelu_pytorch_tanh"])
def test_activations(saved, tmp_path, activation):
    copy = changed(saved, tmp_path, activation_function=activation)
    module = GPT2LMHeadModel.from_pretrained(copy).eval()
    assert same_outputs(copy, module)


@pytest.mark.parametrize(
    "values",
    [
        {"activation_function": "relu"},
        {"layer_norm_epsilon": 1e-6},
        {"scale_attn_by_inverse_layer_idx": True},
        {"scale_attn_weights": False},
        {"add_cross_attention": True},
        {"tie_word_embeddings": False},
    ],
)
def test_what_changes_the_numbers_is_refused(saved, tmp_path, values):
    told = refused(MISMATCH, bridge.load, changed(saved, tmp_path, **values))
    assert next(iter(values)) in told


def test_what_changes_nothing_is_accepted(saved, tmp_path):
    copy = changed(saved, tmp_path, reorder_and_upcast_attn=True, summary_type="x")
    assert same_outputs(copy, saved[1])


def test_sizes_that_contradict_the_tensors(saved, tmp_path):
    told = refused(MISMATCH, bridge.load, changed(saved, tmp_path, n_layer=12))
    assert "the config says layers = 12, the tensors 2" in told
    shutil.rmtree(tmp_path / "copy")
    refused(CORRUPT, bridge.load, changed(saved, tmp_path, n_head=5))


@pytest.mark.parametrize("by", ["safetensors", "gpt2", "orbax"])
def test_there_and_back(saved, tmp_path, by):
    bridge.convert(saved[0], tmp_path / "between", to=by, verify="roundtrip")
    bridge.convert(tmp_path / "between", tmp_path / "back", to="gpt2", verify="logits")
    found = json.loads((tmp_path / "back" / "config.json").read_text())
    assert found == json.loads((saved[0] / "config.json").read_text())
    back, told = GPT2LMHeadModel.from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not any(told.values())
    for (name, ours), theirs in zip(
        back.state_dict().items(), saved[1].state_dict().values(), strict=True
    ):
        assert torch.equal(ours, theirs), name
    assert bridge.open_checkpoint(tmp_path / "back").format == "gpt2"
    assert bridge.open_checkpoint(tmp_path / "between").format == by


def with_characters(saved, folder, size):
    shutil.copytree(saved[0], folder)
    write_tokenizer(folder, CharTokenizer.from_json(vocabulary(size), ""), 16)
    assert not (folder / "characters.json").exists()
    return folder


@pytest.mark.parametrize("to", ["gpt2", "nanogpt", "orbax"])
def test_the_tokeniser_in_the_folder_is_the_models(saved, tmp_path, to):
    source = bridge.open_checkpoint(with_characters(saved, tmp_path / "copy", 61))
    assert source.tokenizer.decode(source.tokenizer.encode("straße")) == "straße"
    assert bridge.inspect(tmp_path / "copy").vocab_present
    report = bridge.convert(tmp_path / "copy", tmp_path / "out", to=to, config={"gelu": "exact"})
    assert "tokenizer.json" in report.files
    written = {p.relative_to(tmp_path / "out") for p in (tmp_path / "out").rglob("*")}
    assert {Path(name) for name in report.files} <= written
    assert bridge.open_checkpoint(tmp_path / "out").tokenizer.digest == source.tokenizer.digest


def test_rows_that_the_tokeniser_has_no_ids_for_are_padding(saved, tmp_path):
    source = bridge.open_checkpoint(with_characters(saved, tmp_path / "copy", 59))
    assert (source.config.vocab, source.config.tokens) == (61, 59)
    assert any("rows 59 to 60 of the embedding are padding" in note for note in source.notes)
    large = with_characters(saved, tmp_path / "large", 64)
    assert "64 entries, the model 61" in refused(MISMATCH, bridge.load, large)


def test_a_config_that_changed_is_written_anew(saved, tmp_path):
    bridge.convert(saved[0], tmp_path / "out", to="gpt2", config={"gelu": "exact"})
    said = json.loads((tmp_path / "out" / "config.json").read_text())
    assert said["activation_function"] == "gelu"
    assert said["summary_type"] == "cls_index"


@pytest.mark.slow
@pytest.mark.parametrize("key", ["activation_function", "embd_pdrop", "n_layer", "model_type"])
def test_values_of_any_type_are_refused_in_words(tmp_path, key):
    run = write_run(tmp_path / "run", {1: 2.0}, spec="wikigpt:tiny")
    bridge.convert(run, tmp_path / "out", to="gpt2")
    (tmp_path / "out" / "manifest.json").unlink()
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    (tmp_path / "out" / "config.json").write_text(json.dumps(config | {key: ["a", 1]}))
    report = bridge.inspect(tmp_path / "out")
    assert report.format in ("gpt2", "safetensors")
    if key in ("activation_function", "n_layer"):
        assert report.problems
