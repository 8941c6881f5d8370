"""Torch files: nanoGPT's checkpoint (the file, or the folder with it), and bare state dicts, among
them DINOv2's."""

import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from bridge import unsupported
from bridge.contents import Contents, checked, take_tokenizer
from bridge.formats import bitgen, dinov2_pth, nanogpt
from bridge.legacy import apart
from bridge.legacy.torch_file import is_old_torch, is_pickle
from bridge.safetensors_reader import read_sharded
from bridge.tensors import Tensor
from jaxmodels.errors import CORRUPT, Problem

# What the Trainer of transformers, and accelerate, write beside the weights.
_TRAINING = re.compile(
    r"(optimizer|scheduler|scaler)(_\d+)?\.(pt|bin)|training_args\.bin|rng_state.*\.pth"
    r"|random_states_\d+\.pkl"
)
WEIGHTS = "pytorch_model.bin"
COMPILED = "_orig_mod."  # torch.compile puts this before every name


def is_file(path: Path) -> bool:
    """Whether a file was written by `torch.save`."""
    return any(map(is_pickle, apart.names(path))) or is_old_torch(path)


def is_folder(folder: Path) -> bool:
    """Whether a folder holds one torch file, as nanoGPT's `out_dir`, or shards and their index."""
    return len(_indices(folder)) == 1 or len(weight_files(folder)) == 1


def open_folder(folder: Path) -> Contents:
    """nanoGPT's `out_dir`, or another folder; a tokeniser's file that lies in it is the model's."""
    if indices := _indices(folder):
        tensors = read_sharded(indices[0], lambda path: read_state(path)[0])
        contents = Contents(folder, "torch", tensors)
    else:
        contents = open_file(weight_files(folder)[0])
    contents.path, contents.tensors = folder, checked(folder, contents.tensors)
    take_tokenizer(contents, folder)
    return contents


def open_file(path: Path) -> Contents:
    """A torch file: nanoGPT's, BitGen Stage 1's, DINOv2's, or a bare state dict.

    Raises:
        Problem: (corrupt) damaged, or no named tensors in it; (unsafe) it asks to run code.
    """
    value = apart.read("torch", path, sorted(bitgen.RECORDS))
    if nanogpt.is_checkpoint(value):
        tensors, notes = _named(path, value["model"])
        return Contents(
            path,
            "nanogpt",
            tensors,
            arch="wikigpt",
            fields=nanogpt.fields(value["model_args"], path),
            origin=nanogpt.origin(value),
            notes=[*notes, nanogpt.GELU_NOTE],
            table="SEED",
            moments=partial(nanogpt.read_moments, path, tensors, value.get("optimizer")),
        )
    if bitgen.is_checkpoint(value):
        tensors, notes = _named(path, value.get(bitgen.STATE, value))
        return bitgen.contents(path, value, tensors, notes)
    state = value
    for key in ("model", "state_dict", "teacher"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    tensors, notes = _named(path, state)
    if dinov2_pth.is_state(tensors):
        return dinov2_pth.contents(path, tensors, notes)
    return Contents(path, "torch", tensors, notes=notes)


def read_state(path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of a file that holds a state dict and nothing else, and what is to be said.

    Raises:
        Problem: as `open_file`.
    """
    unsupported.refuse(path)
    return _named(path, apart.read("torch", path, []))


def weight_files(folder: Path) -> list[Path]:
    """The torch files in a folder that may hold a model: not what a trainer keeps beside it.

    One that has transformers' name for it is the model.
    """
    paths = (path for path in sorted(folder.iterdir()) if not _TRAINING.fullmatch(path.name))
    found = [path for path in paths if path.is_file() and is_file(path)]
    return [path for path in found if path.name == WEIGHTS] or found


def _indices(folder: Path) -> list[Path]:
    """The indices of torch's shards."""
    return sorted(folder.glob("*.bin.index.json"))


def _named(path: Path, state: Any) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of a state dict under their names, without torch.compile's prefix."""
    sound = isinstance(state, dict) and all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in state.items()
    )
    if not sound or not state:
        keys = [str(key) for key in state][:10] if isinstance(state, dict) else []
        raise Problem(
            "the torch file holds no named tensors",
            where=str(path),
            why=f"its keys: {', '.join(keys)}" if keys else f"it is a {type(state).__name__}",
            fix="save the state dict of the model: torch.save(model.state_dict(), PATH)",
            exit_code=CORRUPT,
        )
    prefix = COMPILED if all(name.startswith(COMPILED) for name in state) else ""
    notes = [f"the prefix {prefix!r}, left by torch.compile, was removed"] if prefix else []
    names = {name: name.removeprefix(prefix) for name in state}
    return {names[old]: replace(tensor, name=names[old]) for old, tensor in state.items()}, notes
