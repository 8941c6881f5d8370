"""Torch files: checkpoints of nanoGPT (the file or its folder), its relatives and BitGen Stage 1,
and state dicts, alone or inside what a trainer saved."""

import re
from dataclasses import replace
from pathlib import Path

from bridge import sandbox
from bridge.core.tensors import Tensor
from bridge.formats import bitgen, nanogpt, nanogpt_args
from bridge.formats.raw import RawCheckpoint, checked, take_tokenizer
from bridge.formats.state_dicts import held_in
from bridge.legacy.old_torch_file import is_old_torch
from bridge.legacy.torch_file import is_pickle
from bridge.storage import unsupported
from bridge.storage.safetensors_reader import read_sharded

# Files that transformers' Trainer and accelerate write beside the weights.
_TRAINING = re.compile(
    r"(optimizer|scheduler|scaler)(_\d+)?\.(pt|bin)|training_args\.bin|rng_state.*\.pth"
    r"|random_states_\d+\.pkl"
)
WEIGHTS = "pytorch_model.bin"
_INDEX = re.compile(r".*\.bin\.index(\.[\w-]+)?\.json")


def is_file(path: Path) -> bool:
    """Whether a file was written by `torch.save`."""
    return any(map(is_pickle, sandbox.names(path))) or is_old_torch(path)


def is_folder(folder: Path) -> bool:
    """Whether a folder holds one torch file, as nanoGPT's `out_dir`, or shards and their index."""
    return len(_indices(folder)) == 1 or len(weight_files(folder)) == 1


def open_folder(folder: Path, file: Path | None = None) -> RawCheckpoint:
    """nanoGPT's `out_dir`, or another folder, with the tokeniser in it if there is one.

    `file` is the model's file, or the index of its shards; None finds it.
    """
    file = file or next(iter([*_indices(folder), *weight_files(folder)]))
    if file.suffix == ".json":
        tensors = read_sharded(file, lambda path: read_state(path)[0])
        contents = RawCheckpoint(folder, "torch", tensors)
    else:
        contents = open_file(file)
    contents.path, contents.tensors = folder, checked(folder, contents.tensors)
    take_tokenizer(contents, folder)
    return contents


def open_file(path: Path) -> RawCheckpoint:
    """A torch file: nanoGPT's, BitGen Stage 1's, or state dicts.

    Raises:
        Problem: (corrupt) damaged, or no named tensors in it; (unsafe) it asks to run code.
    """
    value = sandbox.read("torch", path)
    held = held_in(value.get(bitgen.STATE, value) if bitgen.is_checkpoint(value) else value, path)
    if bitgen.is_checkpoint(value):
        return bitgen.contents(path, value, held.tensors, held.notes)
    contents = RawCheckpoint(path, "torch", held.tensors, notes=held.notes, strange=held.strange)
    if (args := nanogpt_args.args_of(value)) is not None:
        return nanogpt.described(contents, value, args)
    contents.usual = nanogpt_args.beside(value, path)
    contents.config = nanogpt_args.transformers_config(value)
    return contents


def read_state(path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of a file that holds state dicts and nothing else, and notes.

    Raises:
        Problem: as `open_file`.
    """
    unsupported.refuse(path)
    held = held_in(sandbox.read("torch", path), path)
    return held.tensors, held.notes


def weight_files(folder: Path) -> list[Path]:
    """The torch files in a folder that may be the model, without those of a trainer's state.

    If one has transformers' name for weights, it is the only one returned.
    """
    paths = (path for path in sorted(folder.iterdir()) if not _TRAINING.fullmatch(path.name))
    found = [path for path in paths if path.is_file() and is_file(path)]
    return [path for path in found if path.name == WEIGHTS] or found


def _indices(folder: Path) -> list[Path]:
    """The indices of torch's shards."""
    return sorted(path for path in folder.iterdir() if _INDEX.fullmatch(path.name))


# A torch file counts as nanoGPT's until it has been read.
FORMAT = replace(
    nanogpt.FORMAT,
    what="nanoGPT's `ckpt.pt`, or another torch file of named tensors, or a folder with one",
    is_file=is_file,
    open_file=open_file,
    is_folder=is_folder,
    open_folder=open_folder,
    endings=(".pt", ".pth", ".bin"),
)
