"""A random GPT-2, and the ways in which people keep one: for the property test of GPT-2."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from hypothesis import strategies as st
from safetensors.torch import save_file, save_model
from transformers import GPT2Config, GPT2LMHeadModel

TANH, EXACT = ("gelu_new", "gelu_fast", "gelu_pytorch_tanh"), ("gelu", "gelu_python")
ALIASES = {
    "n_embd": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_positions": "max_position_embeddings",
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Way:
    """How the model is kept."""

    form: str
    """transformers' folder, one file of it, nanoGPT's, GGUF."""
    dtype: str
    torch: bool
    """`pytorch_model.bin` in place of safetensors."""
    shards: bool
    trainer: bool
    """What the Trainer keeps beside the weights is there."""
    names: str
    """Which names: all, those of one side of the tie, those of GPT2Model, of a head beside it."""
    config: str
    """config.json as it is, without a model_type, by other keys, or only what is not usual."""


ways = st.builds(
    Way,
    form=st.sampled_from(["folder", "folder", "folder", "file", "nanogpt", "gguf"]),
    dtype=st.sampled_from(list(DTYPES)),
    torch=st.booleans(),
    shards=st.booleans(),
    trainer=st.booleans(),
    names=st.sampled_from(["all", "embedding", "head", "inner", "dialogpt", "classifier", "model"]),
    config=st.sampled_from(["as it is", "no model_type", "aliases", "short"]),
)


@st.composite
def configs(draw: Any) -> dict[str, Any]:
    """Keys of a GPT2Config; most are such that wikigpt computes the same."""
    heads = draw(st.integers(1, 4))
    dim = heads * draw(st.sampled_from([2, 4, 6]))
    values = {
        "vocab_size": draw(st.integers(11, 30)),
        "n_positions": draw(st.integers(8, 12)),
        "n_embd": dim,
        "n_layer": draw(st.integers(1, 3)),
        "n_head": heads,
        "n_inner": draw(st.sampled_from([None, None, 4 * dim, dim, 7])),
        "activation_function": draw(st.sampled_from([*TANH, *EXACT])),
        "bos_token_id": None,
        "eos_token_id": None,
    }
    odd = draw(
        st.sampled_from(
            [
                *[{}] * 7,
                {"layer_norm_epsilon": 1e-3},
                {"scale_attn_weights": False},
                {"scale_attn_by_inverse_layer_idx": True},
                {"reorder_and_upcast_attn": True},
                {"tie_word_embeddings": False},
                {"add_cross_attention": True},
                {"activation_function": "relu"},
                {"is_causal": False},
                {"is_decoder": True, "torchscript": True},
            ]
        )
    )
    return values | odd


def make(values: dict[str, Any], dtype: str, seed: int) -> GPT2LMHeadModel:
    """The module, its numbers those of the dtype, far enough from 0 that mistakes show."""
    torch.manual_seed(seed)
    module = GPT2LMHeadModel(GPT2Config(**values)).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return module.to(DTYPES[dtype]).float()


def expected(module: GPT2LMHeadModel, tokens: np.ndarray) -> np.ndarray:
    """Its logits, computed in float64, so that no rounding is between the two sides."""
    with torch.no_grad():
        logits = module.double()(torch.from_numpy(tokens).long()).logits.numpy()
    module.float()
    return logits


def write(folder: Path, module: GPT2LMHeadModel, way: Way) -> Path:
    """Keeps a module in one of the ways; the file or folder to open."""
    if way.form == "nanogpt":
        return _nanogpt(folder, module, way)
    if way.form == "gguf":
        return _gguf(folder, module)
    state = {name: tensor.to(DTYPES[way.dtype]) for name, tensor in _state(module, way).items()}
    (folder / "config.json").write_text(json.dumps(_config(module, way)))
    if way.trainer:
        torch.save({"state": {}, "param_groups": []}, folder / "optimizer.pt")
        torch.save({"last_epoch": 3}, folder / "scheduler.pt")
        torch.save(torch.get_rng_state(), folder / "rng_state.pth")
        (folder / "trainer_state.json").write_text("{}")
    if way.names == "model":  # with the header's word on what is tied
        save_model(module.to(DTYPES[way.dtype]), folder / "model.safetensors")
        module.float()
        return folder / "model.safetensors" if way.form == "file" else folder
    stem, end = ("pytorch_model", "bin") if way.torch else ("model", "safetensors")

    def save(held: dict[str, torch.Tensor], path: Path) -> None:
        if way.torch:
            torch.save(held, path)
        else:
            save_file({n: t.clone() for n, t in held.items()}, path, metadata={"format": "pt"})

    if way.shards and way.form == "folder":
        names, where = list(state), {}
        for i, part in enumerate((names[::2], names[1::2]), start=1):
            file = f"{stem}-0000{i}-of-00002.{end}"
            save({name: state[name] for name in part}, folder / file)
            where |= dict.fromkeys(part, file)
        index = {"metadata": {}, "weight_map": where}
        (folder / f"{stem}.{end}.index.json").write_text(json.dumps(index))
    else:
        save(state, folder / f"{stem}.{end}")
    return folder / f"{stem}.{end}" if way.form == "file" else folder


def _state(module: GPT2LMHeadModel, way: Way) -> dict[str, torch.Tensor]:
    state, head, wte = dict(module.state_dict()), "lm_head.weight", "transformer.wte.weight"
    if not module.config.tie_word_embeddings:
        return state
    match way.names:
        case "embedding":
            del state[head]
        case "head":
            del state[wte]
        case "inner":
            del state[head]
            return {name.removeprefix("transformer."): x for name, x in state.items()}
        case "dialogpt":
            state["lm_head.decoder.weight"] = state.pop(head)
        case "classifier":
            state["score.weight"] = torch.ones(2, module.config.n_embd)
    return state


def _config(module: GPT2LMHeadModel, way: Way) -> dict[str, Any]:
    said = module.config.to_dict() | {"dtype": way.dtype}
    match way.config:
        case "no model_type":
            del said["model_type"]
        case "aliases":
            said = {ALIASES.get(key, key): value for key, value in said.items()}
        case "short":
            usual = GPT2Config().to_dict()
            said = {key: x for key, x in said.items() if key not in usual or usual[key] != x}
            said["model_type"] = "gpt2"
    return said


def _nanogpt(folder: Path, module: GPT2LMHeadModel, way: Way) -> Path:
    """nanoGPT's names and layout, which must compute what the module does."""
    config = module.config
    state = {
        name: (x.T.contiguous() if name.split(".")[-2].startswith("c_") and x.ndim == 2 else x)
        for name, x in module.state_dict().items()
    }
    args = {"n_layer": config.n_layer, "n_head": config.n_head, "n_embd": config.n_embd,
            "block_size": config.n_positions, "bias": True, "vocab_size": config.vocab_size,
            "dropout": 0.0}  # fmt: skip
    held = {name: x.to(DTYPES[way.dtype]) for name, x in state.items()}
    torch.save({"model": held, "model_args": args, "iter_num": 1}, folder / "ckpt.pt")
    return folder / "ckpt.pt" if way.torch else folder


def _gguf(folder: Path, module: GPT2LMHeadModel) -> Path:
    """What llama.cpp's converter makes of the module."""
    config, path = module.config, folder / "model.gguf"
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GPT2, config.n_layer)
    writer = gguf.GGUFWriter(path, "gpt2")
    writer.add_block_count(config.n_layer)
    writer.add_context_length(config.n_positions)
    writer.add_embedding_length(config.n_embd)
    writer.add_feed_forward_length(config.n_inner or 4 * config.n_embd)
    writer.add_head_count(config.n_head)
    writer.add_layer_norm_eps(config.layer_norm_epsilon)
    for name, x in module.transformer.state_dict().items():
        turned = x.T if ".c_" in name and x.ndim == 2 else x
        there = names.get_name(name, try_suffixes=(".weight", ".bias"))
        writer.add_tensor(there, turned.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
