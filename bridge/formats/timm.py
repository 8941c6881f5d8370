"""DINOv2 in timm's format: the names of the published code, with the exceptions below.

timm has no `mask_token`, calls registers `reg_token`, packs SwiGLU into `mlp.fc1`, and gives the
class token no position if there are registers. Its `config.json` names the architecture.

Source: timm 1.0, `models/vision_transformer.py`: `vit_*_patch14_dinov2`,
`vit_*_patch14_reg4_dinov2`, and the filter that makes them of the published files.
"""

import re
from dataclasses import replace
from math import isqrt
from pathlib import Path
from typing import Any

import numpy as np

from bridge.core.tensors import Tensor
from bridge.formats.raw import RawCheckpoint
from bridge.storage.safetensors_reader import parse_json
from jaxmodels.errors import MISMATCH, Problem

CONFIG = "config.json"
_KNOWN = re.compile(r"vit_(small|base|large|giant)_patch14_(reg4_)?dinov2(\..*)?")
# Arguments of timm's models that do not affect features, and those that are fields of our Config.
_IDLE = {"num_classes", "global_pool", "dynamic_img_size", "dynamic_img_pad", "drop_rate",
         "drop_path_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate", "attn_drop_rate",
         "img_size", "embed_dim", "depth", "patch_size", "init_values"}  # fmt: skip
MAYBE = (
    "mask_token is missing, as in timm's files, which may have the same names: timm interpolates "
    "positions for images of another size with --set interpolation=antialias"
)
_FIELDS = {"num_heads": "heads"}


def understood(contents: RawCheckpoint, towers: list[str], folder: Path) -> RawCheckpoint:
    """The contents under the published names, with the settings of timm's config.

    Args:
        contents: of a DINOv2.
        towers: the prefix of each model in it.
        folder: may have a `config.json`.

    Raises:
        Problem: (mismatch) the config is timm's, but of a model other than DINOv2.
    """
    config = parse_json(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    named = isinstance(config.get("architecture"), str) and "model_type" not in config
    tensors = dict(contents.tensors)
    for tower in towers:
        _publish(tensors, tower)
    changed = tensors.keys() != contents.tensors.keys()
    contents = replace(contents, tensors=tensors, notes=list(contents.notes))
    if changed or named:
        contents.notes.append("the names are timm's")
        contents.usual = {**contents.usual, "interpolation": "antialias"}
    elif not any(name.endswith("mask_token") for name in tensors):
        contents.notes.append(MAYBE)
    if named:
        contents.fields = {**contents.fields, **_fields(config, folder / CONFIG)}
    return contents


def _fields(config: dict[str, Any], where: Path) -> dict[str, Any]:
    """Fields of our Config, from timm's config."""
    name, args = config["architecture"], config.get("model_args") or {}
    unknown = [key for key in args if key not in _IDLE | _FIELDS.keys()]
    if not _KNOWN.fullmatch(name) or unknown:
        odd = f"its argument {unknown[0][:80]!r}" if unknown else "it"
        raise Problem(
            f"timm's {name[:80]} is not supported",
            where=str(where),
            why=f"{odd} is not one of DINOv2 ({_KNOWN.pattern}); it may compute something else",
            fix="supported are timm's models whose names end in dinov2",
            exit_code=MISMATCH,
        )
    return {ours: args[theirs] for theirs, ours in _FIELDS.items() if theirs in args}


def _publish(tensors: dict[str, Tensor], tower: str) -> None:
    """Gives the tensors of a tower the names and shapes of the published code."""
    registers, pos = f"{tower}reg_token", tensors[f"{tower}pos_embed"]
    if registers in tensors:
        _rename(tensors, registers, f"{tower}register_tokens")
    if len(pos.shape) == 3 and isqrt(pos.shape[1]) ** 2 == pos.shape[1] > 1:
        tensors[pos.name] = _with_first(pos)
    fc1, fc2 = (tensors.get(f"{tower}blocks.0.mlp.{layer}.weight") for layer in ("fc1", "fc2"))
    if fc1 is None or fc2 is None or fc1.shape[0] != 2 * fc2.shape[-1]:
        return
    packed = re.compile(re.escape(tower) + r"(blocks\.\d+\.mlp)\.fc([12])\.(weight|bias)")
    for name in list(tensors):
        if found := packed.fullmatch(name):
            block, layer, end = found.groups()
            _rename(tensors, name, f"{tower}{block}.{'w12' if layer == '1' else 'w3'}.{end}")


def _rename(tensors: dict[str, Tensor], old: str, new: str) -> None:
    tensors[new] = replace(tensors.pop(old), name=new)


def _with_first(pos: Tensor) -> Tensor:
    """The patches' positions, preceded by zeros for the class token."""
    shape = (pos.shape[0], pos.shape[1] + 1, pos.shape[2])

    def read() -> np.ndarray:
        return np.concatenate([np.zeros_like(array := pos.read())[:, :1], array], axis=1)

    return replace(pos, shape=shape, read=read)
