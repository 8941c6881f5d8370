"""Writes what `torch.save` writes, one tensor at a time; the format is in `torch_file`.

Not torch's own writer, which needs all tensors in memory. The same values give the same bytes.
"""

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bridge.core.tensors import Tensor, raw
from bridge.legacy.pickle_writer import Writable, write_number, write_pickle, write_text
from bridge.legacy.torch_pickle import STORAGES

ALIGNMENT = 64  # of each storage in the file, so that torch can map it
_ROOT = "archive/"
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the first that a zip can say
_KINDS = {dtype: name.removeprefix("torch.") for name, dtype in STORAGES.items()}
_PIECE = 2**20
_LOCAL_SIZE, _PADDING = 30, b"FB"  # of a member's header; torch's name of the field that fills


def write_torch(path: Path, value: Any, values: Callable[[Tensor], np.ndarray]) -> None:
    """Writes a value of dicts, lists, tuples, strings, numbers and `Tensor`s.

    Args:
        path: the file.
        value: the value; a Tensor that is there twice becomes one storage, shared.
        values: those of a tensor, called once for each, in the order of the pickle.
    """
    tensors: dict[int, tuple[str, Tensor]] = {}

    def place(file: Writable, tensor: Tensor) -> None:
        key, _ = tensors.setdefault(id(tensor), (str(len(tensors)), tensor))
        _rebuilt(file, tensor, key)

    pickled = io.BytesIO()
    write_pickle(pickled, value, place, protocol=2)
    with zipfile.ZipFile(path, "w") as archive:
        _add(archive, "data.pkl", pickled.getvalue())
        _add(archive, "byteorder", b"little")
        for key, tensor in tensors.values():
            _add(archive, f"data/{key}", raw(values(tensor)))
        _add(archive, "version", b"3\n")


def _add(archive: zipfile.ZipFile, name: str, data: Any) -> None:
    info = zipfile.ZipInfo(_ROOT + name, _EPOCH)
    info.create_system, info.external_attr = 3, 0o100644 << 16
    info.file_size, view = len(data), memoryview(data).cast("B")
    if info.file_size < 2**31:  # larger ones get a wider header
        assert archive.fp is not None
        begin = archive.fp.tell() + _LOCAL_SIZE + len(info.filename) + 4
        fill = -begin % ALIGNMENT
        info.extra = _PADDING + fill.to_bytes(2, "little") + bytes(fill)
    with archive.open(info, "w") as member:
        for start in range(0, len(view), _PIECE):
            member.write(view[start : start + _PIECE])


def _rebuilt(file: Writable, tensor: Tensor, key: str) -> None:
    """The call by which torch makes a tensor of a storage."""
    file.write(b"ctorch._utils\n_rebuild_tensor_v2\n((")
    write_text(file, "storage")
    file.write(f"ctorch\n{_KINDS[tensor.dtype]}\n".encode())
    for word in (key, "cpu"):
        write_text(file, word)
    write_number(file, tensor.size)
    file.write(b"tQ")
    write_number(file, 0)
    steps = [1]
    for n in tensor.shape[:0:-1]:
        steps.append(steps[-1] * n)
    for numbers in (tensor.shape, steps[::-1] if tensor.shape else ()):
        file.write(b"(")
        for number in numbers:
            write_number(file, number)
        file.write(b"t")
    file.write(b"\x89ccollections\nOrderedDict\n)RtR")
