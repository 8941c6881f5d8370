"""Replaces tensors and files of a model directory, and leaves the rest unchanged."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from bridge.core.tensors import fingerprint, raw
from bridge.storage.safetensors_reader import SafetensorsArray, parse_json, read_file
from jaxmodels.errors import CORRUPT, USAGE, Problem
from jaxmodels.files import atomic_folder, files_below
from jaxmodels.runtime.manifest import MANIFEST, digests, write_sealed


def edit(folder: Path, arrays: Mapping[str, np.ndarray], files: Mapping[str, bytes]) -> None:
    """Changes a model directory atomically: all changes appear, or none.

    Other tensors stay bit for bit, and other files keep the digests recorded for them, so that
    earlier damage is still found.

    Args:
        folder: a model directory.
        arrays: name in its files → new values, of the shape and dtype of the old ones.
        files: name → content of files that are added or replaced.

    Raises:
        Problem: (usage) it is no model directory; (corrupt) a tensor is missing, or has another
            shape or dtype.
    """
    if not (folder / MANIFEST).is_file():
        raise Problem(
            "only a model directory can be changed",
            where=str(folder),
            why=f"it has no {MANIFEST}",
            fix="`jaxmodels convert` makes one of any checkpoint",
            exit_code=USAGE,
        )
    manifest = parse_json(folder / MANIFEST)
    places = _places(folder, arrays)
    shards = {place.path.name for place in places.values()}
    changed = {*shards, *files}
    with atomic_folder(folder, force=True) as new:
        for path in files_below(folder):
            name = str(path.relative_to(folder))
            if name not in {*files, MANIFEST}:
                _put(path, new / name, link=name not in shards)
        for name, place in places.items():
            with (new / place.path.name).open("r+b") as file:
                file.seek(place.start)
                file.write(raw(arrays[name]).tobytes())
        for name, content in files.items():
            (new / name).write_bytes(content)
        found = digests(new, lambda name: name in changed)
        tensors = {name: fingerprint(array) for name, array in arrays.items()}
        others = {key: value for key, value in manifest.items() if key not in ("files", "seal")}
        others["tensors"] = {**manifest["tensors"], **tensors}
        write_sealed(new / MANIFEST, {**others, "files": {**manifest["files"], **found}})


def _places(folder: Path, arrays: Mapping[str, np.ndarray]) -> dict[str, SafetensorsArray]:
    """The position of each tensor in its file."""
    held = {
        name: tensor
        for file in sorted(folder.glob("*.safetensors"))
        for name, tensor in read_file(file).items()
    }
    found = {}
    for name, array in arrays.items():
        tensor = held.get(name)
        if tensor is None or (tensor.shape, tensor.dtype) != (array.shape, array.dtype):
            raise Problem(
                f"the tensor {name} cannot be replaced",
                where=str(folder),
                why="it is missing"
                if tensor is None
                else f"it is {tensor.shape} {tensor.dtype}, "
                f"and the new values are {array.shape} {array.dtype}",
                fix="convert the model again",
                exit_code=CORRUPT,
            )
        assert isinstance(tensor.read, SafetensorsArray)
        found[name] = tensor.read
    return found


def _put(path: Path, target: Path, link: bool) -> None:
    """Puts the same file at another path; as a hard link if it will not be changed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        if not link:
            raise OSError
        os.link(path.resolve(), target)
    except OSError:  # also of a file system without hard links
        shutil.copyfile(path, target)
