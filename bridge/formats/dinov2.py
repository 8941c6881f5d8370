"""transformers' DINOv2 folders, with and without registers, as transformers 4 and 5 write them.

Weights are safetensors or torch's (`pytorch_model.bin`), whole or in shards.
"""

from functools import partial
from pathlib import Path
from typing import Any

from bridge.contents import Contents, origin_of, seed_of, with_seed
from bridge.formats import model_files, torch_files
from bridge.safetensors_reader import parse_json, read_sharded
from bridge.tensors import Tensor
from jaxmodels.errors import CORRUPT, MISMATCH, Problem

CONFIG, WEIGHTS = "config.json", "pytorch_model.bin"
# transformers' model_type → how its class interpolates positions.
INTERPOLATION = {"dinov2": "size", "dinov2_with_registers": "antialias"}

# transformers' key → our field. Of what a config does not say, shapes tell all but the heads.
FIELDS = {
    "hidden_size": "dim",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "patch_size": "patch",
    "image_size": "image_size",
}
HEADS = 12  # what transformers takes when the key is missing
# Keys that change what is computed, and the only value that dinov2 computes.
ONLY = {
    "layer_norm_eps": 1e-6,
    "hidden_act": "gelu",
    "qkv_bias": True,
    "num_channels": 3,
    "use_mask_token": True,
}


def is_folder(folder: Path) -> bool:
    """Whether a folder is transformers' DINOv2, and not one of our own model directories."""
    if not (folder / CONFIG).is_file():
        return False
    try:
        config = parse_json(folder / CONFIG)
    except Problem:
        return False
    kind = config.get("model_type")
    return isinstance(kind, str) and kind in INTERPOLATION and "arch" not in config


def open_folder(folder: Path) -> Contents:
    """A DINOv2 folder.

    Raises:
        Problem: (corrupt) damaged, or without weights; (mismatch) its config asks for what dinov2
            does not compute.
    """
    config = parse_json(folder / CONFIG)
    tensors, notes = _tensors(folder)
    return Contents(
        folder,
        "dinov2",
        tensors,
        arch="dinov2",
        fields=_fields(config, folder),
        origin=with_seed(origin_of(folder), "dinov2", config),
        notes=notes,
        moments=partial(model_files.read_moments, folder),
    )


def written_config(config: Any, keys: dict[str, Any], origin: dict[str, Any]) -> dict[str, Any]:
    """config.json of a DINOv2 folder: what it was, where that still holds, or made anew.

    Args:
        config: dinov2's Config.
        keys: transformers' keys for it.
        origin: what is known of where the model comes from.
    """
    if config.interpolation != INTERPOLATION[keys["model_type"]]:
        keys = {**keys, "interpolation": config.interpolation}  # ours: transformers passes over it
    was = seed_of(origin, "dinov2")
    if was.get("model_type") not in INTERPOLATION:
        return keys
    where = Path(CONFIG)
    same = _fields({**was, **keys}, where) == _fields(was, where)
    return was if same else {**was, **keys}


def _fields(config: dict[str, Any], where: Path) -> dict[str, Any]:
    """Fields of dinov2's Config that a config of transformers says."""
    for key, only in ONLY.items():
        if (value := config.get(key, only)) != only:
            raise Problem(
                f"the config says {key} = {str(value)[:80]}, which is not supported",
                where=str(where),
                why=f"dinov2 computes {only} only",
                fix="convert another checkpoint of the model; the numbers of this one would be "
                "wrong",
                exit_code=MISMATCH,
            )
    fields = {ours: config[key] for key, ours in FIELDS.items() if key in config}
    registers = config["model_type"] == "dinov2_with_registers"
    return {
        "heads": HEADS,
        **fields,
        "mlp": "swiglu" if config.get("use_swiglu_ffn") else "gelu",
        "registers": config.get("num_register_tokens", 4) if registers else 0,
        "interpolation": config.get("interpolation", INTERPOLATION[config["model_type"]]),
    }


def _tensors(folder: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors in a folder, and what is to be said of them."""
    if model_files.is_folder(folder):
        return model_files.tensors_in(folder), []
    index = folder / f"{WEIGHTS}.index.json"
    if index.is_file():
        return read_sharded(index, lambda path: torch_files.read_state(path)[0]), []
    if (folder / WEIGHTS).is_file():
        return torch_files.read_state(folder / WEIGHTS)
    raise Problem(
        "the folder has a config and no weights",
        where=str(folder),
        why=f"there is neither a safetensors file nor {WEIGHTS} in it",
        fix="fetch all of its files",
        exit_code=CORRUPT,
    )
