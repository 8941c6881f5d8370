"""Which weights of a transformers folder are read, if there are several."""

import json
import os

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import GPT2Config, GPT2LMHeadModel

import bridge
from jaxmodels.errors import CORRUPT, MISMATCH, Problem

HEAD, EMBEDDING = "lm_head.weight", "transformer.wte.weight"


def module(seed: int, **keys: object) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    sizes = {"vocab_size": 12, "n_positions": 8, "n_embd": 8, "n_layer": 1, "n_head": 2}
    return GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=None, eos_token_id=None, **keys)).eval()


def state(seed: int) -> dict[str, torch.Tensor]:
    return {name: x.clone() for name, x in module(seed).state_dict().items() if name != HEAD}


def embedding(path) -> np.ndarray:
    return bridge.open_checkpoint(path).tensors["embed/embedding"].read()


def of(seed: int) -> np.ndarray:
    return state(seed)[EMBEDDING].numpy()


def shards(folder, stem, end, seed, save) -> None:
    held = state(seed)
    names, where = list(held), {}
    for i, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"{stem}-0000{i}-of-00002.{end}"
        save({name: held[name] for name in part}, folder / file)
        where |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": where}
    (folder / f"{stem.partition('.')[0]}.{end}.index.json").write_text(json.dumps(index))


def test_transformers_order_decides(tmp_path):
    module(0).config.save_pretrained(tmp_path)
    layers = [
        lambda: shards(tmp_path, "pytorch_model", "bin", 1, torch.save),
        lambda: torch.save(state(2), tmp_path / "pytorch_model.bin"),
        lambda: shards(tmp_path, "model", "safetensors", 3, save_file),
        lambda: save_file(state(4), tmp_path / "model.safetensors"),
    ]
    for seed, write in enumerate(layers, start=1):
        write()
        theirs = GPT2LMHeadModel.from_pretrained(tmp_path).transformer.wte.weight.detach().numpy()
        assert np.array_equal(embedding(tmp_path), theirs)
        assert np.array_equal(theirs, of(seed))
    (note,) = [n for n in bridge.open_checkpoint(tmp_path).notes if "as by transformers" in n]
    for name in ("model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index"):
        assert name in note


def test_an_index_that_was_left_when_its_shards_were_removed(tmp_path):
    module(1).save_pretrained(tmp_path, max_shard_size="2KB")
    module(2).save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors.index.json").is_file()
    assert np.array_equal(embedding(tmp_path), of(2))


@pytest.mark.parametrize("size", ["1GB", "2KB"])
def test_a_variant_alone(size, tmp_path):
    module(1).half().save_pretrained(tmp_path, variant="fp16", max_shard_size=size)
    assert np.array_equal(embedding(tmp_path), of(1).astype(np.float16))


def test_a_variant_beside_the_model(tmp_path):
    module(1).save_pretrained(tmp_path)
    module(2).half().save_pretrained(tmp_path, variant="fp16")
    assert np.array_equal(embedding(tmp_path), of(1))
    assert np.array_equal(embedding(tmp_path / "model.fp16.safetensors"), of(2).astype(np.float16))


def test_the_cache_of_the_hub(tmp_path):
    """Its snapshots are links to files whose names are digests."""
    model, cache = tmp_path / "model", tmp_path / "models--me--it"
    module(1).save_pretrained(model)
    snapshot = cache / "snapshots" / "1a2b3c"
    for folder in (cache / "blobs", snapshot):
        folder.mkdir(parents=True)
    for i, file in enumerate(model.iterdir()):
        (cache / "blobs" / f"{i:x}").write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(os.path.relpath(cache / "blobs" / f"{i:x}", snapshot))
    for path in (snapshot, snapshot / "model.safetensors"):
        source = bridge.open_checkpoint(path)
        assert (source.config.heads, source.config.gelu) == (2, "tanh")
        assert np.array_equal(embedding(path), of(1))
    with pytest.raises(Problem) as caught:
        bridge.open_checkpoint(cache)
    assert caught.value.exit_code == CORRUPT
    assert "snapshots/: 1a2b3c" in caught.value.fix


def test_a_trainers_newest_checkpoints_are_named(tmp_path):
    for step in (500, 1000, 1500, 2000):
        module(1).save_pretrained(tmp_path / f"checkpoint-{step}")
    with pytest.raises(Problem) as caught:
        bridge.open_checkpoint(tmp_path)
    assert "checkpoint-1000, checkpoint-1500, checkpoint-2000" in caught.value.fix


def test_a_head_that_is_not_tied_and_is_the_same(tmp_path):
    made = module(1, tie_word_embeddings=False)
    with torch.no_grad():
        made.lm_head.weight.copy_(made.transformer.wte.weight)
    made.save_pretrained(tmp_path / "same")
    source = bridge.open_checkpoint(tmp_path / "same")
    assert any("tie_word_embeddings is false" in note for note in source.notes)
    bridge.convert(tmp_path / "same", tmp_path / "out", to="gpt2")
    again = GPT2LMHeadModel.from_pretrained(tmp_path / "out").eval()
    tokens = torch.arange(8)[None] % 12
    with torch.no_grad():
        assert torch.equal(again(tokens).logits, made(tokens).logits)


@pytest.mark.parametrize("lacks", ["", HEAD, EMBEDDING])
def test_a_head_of_its_own(lacks, tmp_path):
    made = module(1, tie_word_embeddings=False)
    made.save_pretrained(tmp_path)
    held = {name: x.clone() for name, x in made.state_dict().items() if name != lacks}
    save_file(held, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(Problem) as caught:
        bridge.open_checkpoint(tmp_path)
    assert caught.value.exit_code == MISMATCH


def test_a_mask_that_is_not_the_causal_one(tmp_path):
    """GPT-2's older files hold their mask; that of local attention would change what is seen."""
    made = module(1)
    made.config.save_pretrained(tmp_path)
    mask = torch.tril(torch.ones(1, 1, 8, 8, dtype=torch.uint8))
    held = state(1) | {"transformer.h.0.attn.bias": mask}
    save_file(held, tmp_path / "model.safetensors")
    assert any("attn.bias" in note for note in bridge.open_checkpoint(tmp_path).notes)
    held["transformer.h.0.attn.bias"] = mask - mask.tril(-3)  # three positions back
    save_file(held, tmp_path / "model.safetensors")
    with pytest.raises(Problem, match="not the causal one") as caught:
        bridge.open_checkpoint(tmp_path)
    assert caught.value.exit_code == MISMATCH


def test_a_torch_file_of_float8_says_so(tmp_path):
    held = {name: x.to(torch.float8_e4m3fn) for name, x in state(1).items()}
    torch.save({"model": held, "model_args": {"n_head": 2}}, tmp_path / "ckpt.pt")
    with pytest.raises(Problem, match="float8") as caught:
        bridge.open_checkpoint(tmp_path / "ckpt.pt")
    assert caught.value.exit_code == MISMATCH


def test_code_of_its_own_is_refused_where_it_may_compute_otherwise(tmp_path):
    module(1).save_pretrained(tmp_path)
    said = json.loads((tmp_path / "config.json").read_text())
    file = tmp_path / "config.json"
    file.write_text(json.dumps(said | {"architectures": ["OurGPT2LMHeadModel"]}))
    assert any("'OurGPT2LMHeadModel'" in note for note in bridge.open_checkpoint(tmp_path).notes)
    code = {"auto_map": {"AutoModelForCausalLM": "ours.OurGPT2LMHeadModel"}}
    file.write_text(json.dumps(said | code | {"architectures": ["OurGPT2LMHeadModel"]}))
    with pytest.raises(Problem, match="needs its own code") as caught:
        bridge.open_checkpoint(tmp_path)
    assert caught.value.exit_code == MISMATCH
    file.write_text(json.dumps(said | code))
    assert np.array_equal(embedding(tmp_path), of(1))
