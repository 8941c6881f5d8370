"""What transformers' config of a DINOv2 says, with and without registers, and how it is written."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from bridge.formats import model_files
from bridge.formats.config_keys import check_only
from bridge.formats.raw import RawCheckpoint, upstream_of, with_upstream

ARCH, CONFIG = "dinov2", "config.json"
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
}
MASK = "use_mask_token"  # features do not depend on it, and what is written always has the token


def described(
    contents: RawCheckpoint, config: dict[str, Any], said: dict[str, Any], folder: Path
) -> RawCheckpoint:
    """Contents with what a config says of them.

    Args:
        contents: the tensors.
        config: what is said, with the model_type.
        said: config.json as it is.
        folder: where it lies.

    Raises:
        Problem: (mismatch) the config asks for what dinov2 does not compute.
    """
    result = replace(
        contents,
        format="dinov2",
        arch=ARCH,
        fields=_fields(config, folder / CONFIG),
        # Where nothing says that transformers wrote it, its usual value is no answer either.
        usual={"heads": HEADS} if said.keys() & {"model_type", "architectures"} else {},
        origin=with_upstream(contents.origin, "dinov2", said),
    )
    if folder == contents.path:
        result.moments = partial(model_files.read_moments, folder)
    return result


def written_config(config: Any, keys: dict[str, Any], origin: dict[str, Any]) -> dict[str, Any]:
    """config.json of a DINOv2 folder: what it was, where that still holds, or made anew.

    Args:
        config: dinov2's Config.
        keys: transformers' keys for it.
        origin: what is known of where the model comes from.
    """
    if config.interpolation != INTERPOLATION[keys["model_type"]]:
        keys = {**keys, "interpolation": config.interpolation}  # ours: transformers passes over it
    was = dict(upstream_of(origin, "dinov2"))
    if was.get(MASK) is False:
        was[MASK] = True
    if was.get("model_type") not in INTERPOLATION:
        return keys
    where = Path(CONFIG)
    same = _fields({**was, **keys}, where) == _fields(was, where)
    return was if same else {**was, **keys}


def _fields(config: dict[str, Any], where: Path) -> dict[str, Any]:
    """Fields of dinov2's Config that a config of transformers says."""
    check_only(config, ONLY, ARCH, where)
    fields = {ours: config[key] for key, ours in FIELDS.items() if key in config}
    registers = config["model_type"] == "dinov2_with_registers"
    return {
        **fields,
        "mlp": "swiglu" if config.get("use_swiglu_ffn") else "gelu",
        "registers": config.get("num_register_tokens", 4) if registers else 0,
        "interpolation": config.get("interpolation", INTERPOLATION[config["model_type"]]),
    }
