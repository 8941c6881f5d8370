"""Model directories, and safetensors files with or without an index."""

import re
from dataclasses import replace
from functools import partial
from pathlib import Path

from bridge.core.moments import SETTINGS, Moments, count_of
from bridge.core.tensors import Tensor
from bridge.formats.format import Format
from bridge.formats.raw import RawCheckpoint, checked, describe
from bridge.storage.safetensors_reader import (
    looks_like_safetensors,
    parse_json,
    read_file,
    read_metadata,
    read_sharded,
)
from bridge.storage.safetensors_writer import write_file
from jaxmodels.errors import CORRUPT, Problem

OPTIMIZER = "optimizer.safetensors"
# Indexes of safetensors shards; transformers puts the name of a variant (fp16) before the ending.
_INDEX = re.compile(r"(?!.*\.bin\.index\.).*\.index(\.[\w-]+)?\.json")
# torch's names of AdamW's two moments.
_MEAN, _SQUARE = ".exp_avg", ".exp_avg_sq"


def _safetensors_files(folder: Path) -> tuple[list[Path], list[Path]]:
    paths = (path for path in sorted(folder.iterdir()) if path.name != OPTIMIZER)
    files = [path for path in paths if path.is_file()]
    indices = [path for path in files if _INDEX.fullmatch(path.name)]
    return indices, [path for path in files if looks_like_safetensors(path)]


def is_folder(folder: Path) -> bool:
    """Whether safetensors files, or an index of them, lie in a folder."""
    return any(_safetensors_files(folder))


def tensors_in(folder: Path, file: Path | None = None) -> dict[str, Tensor]:
    """The tensors of the one model in a folder, each compared with its digest if there is one.

    Args:
        folder: the model's.
        file: the model among others there, or the index of its shards.

    Raises:
        Problem: (corrupt) damaged, or not clearly one model.
    """
    indices, files = _safetensors_files(folder)
    if file is not None:
        read = read_sharded if file in indices else read_file
        return checked(folder, read(file))
    if len(indices) == 1:
        tensors = read_sharded(indices[0])
        shards = set(parse_json(indices[0])["weight_map"].values())
        stray = [file.name for file in files if file.name not in shards]
    elif indices or len(files) > 1:
        tensors, stray = {}, [path.name for path in indices or files]
    else:
        tensors, stray = read_file(files[0]), []
    if stray:
        raise Problem(
            "it is unclear which files are the model",
            where=str(folder),
            why=f"these are there besides a whole model: {', '.join(stray)}"
            if tensors
            else f"one index or one file was expected, found {', '.join(stray)}",
            fix="remove the files that do not belong there, or give one file",
            exit_code=CORRUPT,
        )
    return checked(folder, tensors)


def open_folder(folder: Path) -> RawCheckpoint:
    """A model directory, or a folder of safetensors files."""
    contents = RawCheckpoint(folder, "safetensors", tensors_in(folder))
    contents.moments = partial(read_moments, folder)
    describe(contents, folder)
    return contents


def open_file(path: Path) -> RawCheckpoint:
    """One safetensors file."""
    return RawCheckpoint(path, "safetensors", read_file(path))


def read_moments(folder: Path) -> Moments | None:
    """AdamW's state as `write_moments` wrote it; None if there is none."""
    path = folder / OPTIMIZER
    if not path.is_file():
        return None
    tensors, metadata = read_file(path), read_metadata(path)
    step = metadata.pop("step", "")
    count = count_of(int(step) if step.isdecimal() else step, str(path))
    mu, nu = (
        {name.removesuffix(end): t for name, t in tensors.items() if name.endswith(end)}
        for end in (_MEAN, _SQUARE)
    )
    settings = {key: float(value) for key, value in metadata.items() if key in SETTINGS}
    return Moments(count, mu, nu, settings)


def write_moments(folder: Path, moments: Moments) -> dict[str, str]:
    """Writes AdamW's state beside a model: the model's names, each with torch's ending.

    Args:
        folder: the model directory.
        moments: under the model's names, in its layout.

    Returns:
        file → sha256 of the content written.
    """
    metadata = {"step": str(moments.count), **{k: repr(v) for k, v in moments.settings.items()}}
    tensors = [
        replace(held[name], name=name + end)
        for name in moments.mu
        for held, end in ((moments.mu, _MEAN), (moments.nu, _SQUARE))
    ]
    return {OPTIMIZER: write_file(folder / OPTIMIZER, tensors, metadata=metadata)[1]}


FORMAT = Format(
    "safetensors",
    "a model directory or safetensors file",
    is_file=looks_like_safetensors,
    open_file=open_file,
    is_folder=is_folder,
    open_folder=open_folder,
    endings=(".safetensors",),
    readers=2,
    pytorch=True,
    tables=("SAVED", "WEIGHTS"),
    filled=True,
)
