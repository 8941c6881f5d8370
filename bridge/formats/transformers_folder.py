"""Folders of transformers: `config.json` says what the weights are, whatever holds them.

Weights are safetensors or torch's (`pytorch_model.bin`, or one torch file of another name), whole
or in shards; a Trainer's folder keeps its optimiser beside them. A file that is opened by itself
is what the `config.json` beside it says, too.
"""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from bridge.core.table import listing
from bridge.formats import deepspeed, dinov2, gguf, gpt2, model_files, torch_files
from bridge.formats.config_keys import ITS_CLASS, named_class
from bridge.formats.raw import RawCheckpoint, describe, is_own, origin_of
from bridge.storage import unsupported
from bridge.storage.safetensors_reader import parse_json
from jaxmodels.errors import CORRUPT, MISMATCH, Problem

CONFIG, ADAPTER = "config.json", "adapter_config.json"
# What transformers looks for in a folder, in its order: it reads the first, whatever else is there.
_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    torch_files.WEIGHTS,
    f"{torch_files.WEIGHTS}.index.json",
)
# transformers' model_type → what reads such a config.
KINDS = {"gpt2": gpt2, "dinov2": dinov2, "dinov2_with_registers": dinov2}
# How its classes' names begin → its model_type, the longest first.
_CLASSES = {
    "Dinov2WithRegisters": "dinov2_with_registers",
    "Dinov2": "dinov2",
    "GPT2": "gpt2",
}
# A word in the names of tensors that only that model_type has, where the config names none.
_MARKS = {
    ".attn.c_attn.weight": "gpt2",
    "embeddings.register_tokens": "dinov2_with_registers",
    "embeddings.patch_embeddings.projection.weight": "dinov2",
}
_QUANTISED = re.compile(
    r".*\.(scales|qweight|qzeros|g_idx|SCB|absmax|quant_map|quant_state.*|weight_scale(_inv)?)"
)


def config_in(folder: Path) -> dict[str, Any] | None:
    """What `config.json` of a folder says; None where there is none, or where it is our own.

    Raises:
        Problem: (corrupt) it cannot be read.
    """
    if not (folder / CONFIG).is_file():
        return None
    config = parse_json(folder / CONFIG)
    return None if is_own(config) else config


def kind_in(folder: Path) -> str | None:
    """The kind of model that the config of a folder names: a model_type, or the name of a class.

    None where it names none, or is our own, or cannot be read; it never raises.
    """
    try:
        return _named_kind(config_in(folder) or {})
    except Problem:
        return None


def open_folder(folder: Path) -> RawCheckpoint:
    """A folder whose config names the kind of its model.

    Raises:
        Problem: (corrupt) damaged, or without weights; (mismatch) of a kind that is not read, or
            its config asks for what the model here does not compute.
    """
    _check(config_in(folder) or {}, folder)
    return _weights(folder)


def with_config(contents: RawCheckpoint, folder: Path) -> RawCheckpoint:
    """The contents with the meaning that `config.json` in the folder gives them.

    Nothing changes where there is none, or where the weights say themselves what they are.

    Raises:
        Problem: as `open_folder`.
    """
    if contents.fields:
        return contents
    if not (folder / CONFIG).is_file():
        if "dinov2" in (found := {*_marked(contents)}):
            # Whoever wrote these names computes as transformers does.
            shown = next((each for each in found if each.endswith("registers")), "dinov2")
            usual = {"interpolation": dinov2.INTERPOLATION[shown]}
            return replace(contents, usual=usual | contents.usual)
        return contents
    if (config := config_in(folder)) is None:
        if contents.arch is None:
            describe(contents, folder)
        return contents
    kind = _named_kind(config)
    if kind is None and not contents.arch:
        kind = next(_marked(contents), None)
    if kind is None or (contents.arch and contents.arch != getattr(KINDS.get(kind), "ARCH", "")):
        return contents
    _check(config, folder)
    if held := [name for name in contents.tensors if _QUANTISED.fullmatch(name)]:
        raise _quantised(folder, f"it holds:\n{listing(held)}")
    known = KINDS[kind].described(contents, {**config, "model_type": kind}, config, folder)
    name = named_class(config)
    if name and not ITS_CLASS.fullmatch(name):
        known.notes.append(f"{name[:80]!r}, the class that config.json names, is read as {kind}")
    return replace(known, origin={**origin_of(folder), **known.origin})


def _marked(contents: RawCheckpoint) -> Iterator[str]:
    """Kinds of models that the names of tensors show; a name may follow a wrapper's prefix, so
    that only its end is sure."""
    return (k for end, k in _MARKS.items() if any(n.endswith(end) for n in contents.tensors))


def _named_kind(config: dict[str, Any]) -> str | None:
    if isinstance(kind := config.get("model_type"), str):
        return kind
    if (name := named_class(config)) is None:
        return None
    return next((kind for begin, kind in _CLASSES.items() if name.startswith(begin)), name)


def _check(config: dict[str, Any], folder: Path) -> None:
    """Refuses what a config says of any kind of model and is not read."""
    kind = _named_kind(config)
    if kind is not None and kind not in KINDS:
        raise Problem(
            f"the folder holds a model of the kind {kind[:80]!r}, which is not known here",
            where=str(folder / CONFIG),
            why=f"of transformers' models {', '.join(KINDS)} are read",
            fix="its tensors may have the same names; their numbers would mean something else",
            exit_code=MISMATCH,
        )
    name, code = named_class(config), config.get("auto_map")
    of_its_own = isinstance(code, dict) and any(key.startswith("AutoModel") for key in code)
    if name and of_its_own and not ITS_CLASS.fullmatch(name):
        raise Problem(
            f"the model has code of its own, the class {name[:80]!r}",
            where=str(folder / CONFIG),
            why="that code is not run, and what it computes is not known",
            fix="if it computes what transformers' class does, name that under architectures",
            exit_code=MISMATCH,
        )
    for key in ("quantization_config", "quantization"):
        if said := config.get(key):
            method = said.get("quant_method", said) if isinstance(said, dict) else said
            raise _quantised(folder, f"config.json says {key}: {str(method)[:80]}")
    if (folder / ADAPTER).is_file():
        raise Problem(
            "the folder holds an adapter (LoRA or the like) for another model",
            where=str(folder / ADAPTER),
            why="what the model computes depends on both",
            fix="merge them with peft's merge_and_unload(), and save the result",
            exit_code=MISMATCH,
        )


def _quantised(folder: Path, why: str) -> Problem:
    return Problem(
        "the model is quantised, which is not read",
        where=str(folder),
        why=why,
        fix="use a checkpoint of it that was not quantised (float32, bfloat16 or float16)",
        exit_code=MISMATCH,
    )


def _weights(folder: Path) -> RawCheckpoint:
    """The weights in a folder: those that transformers would take, else the only ones."""
    held = [folder / name for name in _WEIGHTS if (folder / name).is_file()]
    file = held[0] if held else None
    if file is not None:
        unsupported.refuse(file, text=file.suffix == ".json")
    if model_files.is_folder(folder) if file is None else ".safetensors" in file.name:
        contents = RawCheckpoint(folder, "safetensors", model_files.tensors_in(folder, file))
    elif file is not None or torch_files.is_folder(folder):
        contents = torch_files.open_folder(folder, file)
    elif gguf.is_folder(folder):
        return gguf.open_folder(folder)
    elif deepspeed.is_folder(folder):
        contents = deepspeed.open_folder(folder)
    else:
        raise _without_weights(folder, torch_files.weight_files(folder))
    others = {path.name for path in [*held, *torch_files.weight_files(folder)] if path != file}
    if file is not None and others:
        said = ", ".join(sorted(others))
        contents.notes.append(f"{file.name} is read, as transformers does, and not {said}")
    return contents


def _without_weights(folder: Path, files: list[Path]) -> Problem:
    if files:
        return Problem(
            "it is not clear which file is the model",
            where=str(folder),
            why=f"there are {', '.join(path.name for path in files)}",
            fix="give one of the files",
            exit_code=CORRUPT,
        )
    said, fix = unsupported.found_in(folder)
    lacking = f"there is neither a safetensors file nor {torch_files.WEIGHTS} in it"
    return Problem(
        "the folder has a config and no weights that can be read",
        where=str(folder),
        why="\n".join([*said, lacking]),
        fix=fix or "fetch all of its files",
        exit_code=CORRUPT,
    )
