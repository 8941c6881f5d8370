"""transformers' GPT-2 folders: `config.json` with safetensors, whole or in shards."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from bridge.contents import Contents, origin_of, seed_of, take_tokenizer, with_seed
from bridge.formats import model_files
from bridge.safetensors_reader import parse_json
from jaxmodels.errors import MISMATCH, Problem

CONFIG = "config.json"
PREFIX = "transformer."

# transformers' key → our field and what transformers takes when the key is missing.
FIELDS: dict[str, tuple[str, Any]] = {
    "vocab_size": ("vocab", 50257),
    "n_positions": ("context", 1024),
    "n_embd": ("dim", 768),
    "n_layer": ("layers", 12),
    "n_head": ("heads", 12),
    "resid_pdrop": ("dropout", 0.1),
}
_GELU = {"gelu_new": "tanh", "gelu_pytorch_tanh": "tanh", "gelu": "exact"}

# Keys that change what is computed, and the only value that wikigpt computes.
ONLY = {
    "layer_norm_epsilon": 1e-5,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
}


def is_folder(folder: Path) -> bool:
    """Whether a folder is transformers' GPT-2, and not one of our own model directories."""
    if not (folder / CONFIG).is_file() or not model_files.is_folder(folder):
        return False
    try:
        config = parse_json(folder / CONFIG)
    except Problem:
        return False
    return config.get("model_type") == "gpt2" and "arch" not in config


def open_folder(folder: Path) -> Contents:
    """A GPT-2 folder.

    Raises:
        Problem: (corrupt) damaged; (mismatch) its config asks for what wikigpt does not compute.
    """
    config = parse_json(folder / CONFIG)
    contents = Contents(folder, "gpt2", model_files.tensors_in(folder))
    # GPT2Model saved by itself has no such prefix; the head's class has.
    if not any(name.startswith(PREFIX) for name in contents.tensors):
        contents.tensors = {
            PREFIX + name: replace(tensor, name=PREFIX + name)
            for name, tensor in contents.tensors.items()
        }
        contents.notes.append(f"names begin without {PREFIX!r}: the model was saved by itself")
    contents.arch, contents.table = "wikigpt", "WEIGHTS"
    contents.fields = _fields(config, folder)
    take_tokenizer(contents, folder)
    contents.origin = with_seed(origin_of(folder), "gpt2", config)
    contents.moments = partial(model_files.read_moments, folder)
    rates = {key: config.get(key, 0.1) for key in ("embd_pdrop", "attn_pdrop", "resid_pdrop")}
    if any(rate != rates["resid_pdrop"] for rate in rates.values()):
        contents.notes.append(f"dropout is that of resid_pdrop; the config has {rates}")
    return contents


def written_config(config: Any, keys: dict[str, Any], origin: dict[str, Any]) -> dict[str, Any]:
    """config.json of a GPT-2 folder: what it was, where that still holds, or made anew.

    Args:
        config: wikigpt's Config.
        keys: transformers' keys for it.
        origin: what is known of where the model comes from.
    """
    was = seed_of(origin, "gpt2")
    extra = {
        name: getattr(config, name)
        for name, usual in (("bias", True), ("tokens", config.vocab))
        if getattr(config, name) != usual
    }
    if not was:
        return {**keys, **extra}
    now = _fields({**was, **keys, **extra}, Path(CONFIG))
    before = _fields(was, Path(CONFIG))
    if all(before.get(name, value) == value for name, value in now.items()):
        return was
    return {**was, **keys, **extra}


def _fields(config: dict[str, Any], where: Path) -> dict[str, Any]:
    """Fields of wikigpt's Config that a GPT-2 config says."""
    for key, only in ONLY.items():
        if (value := config.get(key, only)) != only:
            raise _unsupported(key, value, f"wikigpt computes {only} only", where)
    activation = config.get("activation_function", "gelu_new")
    if not isinstance(activation, str) or activation not in _GELU:
        known = f"wikigpt computes {', '.join(_GELU)} only"
        raise _unsupported("activation_function", activation, known, where)
    fields = {field: config.get(key, usual) for key, (field, usual) in FIELDS.items()}
    fields["gelu"] = _GELU[activation]
    hidden = config.get("n_inner")
    if hidden is not None:
        fields["hidden"] = hidden
    # Ours, which transformers passes over: a model without biases has zeros in their place.
    fields |= {name: config[name] for name in ("bias", "tokens") if name in config}
    return fields


def _unsupported(key: str, value: Any, why: str, where: Path) -> Problem:
    return Problem(
        f"the config says {key} = {str(value)[:80]}, which is not supported",
        where=str(where),
        why=why,
        fix="convert another checkpoint of the model; the numbers of this one would be wrong",
        exit_code=MISMATCH,
    )
