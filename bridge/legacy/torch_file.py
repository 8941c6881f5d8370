"""Reads the zip files of `torch.save` without torch, and without running the pickle inside.

Format: a zip with `NAME/data.pkl` (a pickle in which tensors point to storages) and one
uncompressed member `NAME/data/KEY` for each storage.
"""

import zlib
from collections.abc import Container
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np

from bridge.legacy.instructions import BrokenPickle
from bridge.legacy.unpickle import Named, as_dict, brief, natural, read_pickle
from bridge.legacy.zip_reader import STORED, read_entries
from bridge.tensors import DTYPES, Tensor
from jaxmodels.errors import CORRUPT, Problem

MAX_PICKLE = 50_000_000  # bytes; the largest seen are a few million
MAX_DIMS = 32
_PIECE = 2**20  # bytes that are read at once

# Before torch 1.6: this number, pickled, in front.
OLD_FORMAT = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."

_STORAGES = {
    "Double": "F64",
    "Float": "F32",
    "Half": "F16",
    "BFloat16": "BF16",
    "Long": "I64",
    "Int": "I32",
    "Short": "I16",
    "Char": "I8",
    "Byte": "U8",
    "Bool": "BOOL",
}
STORAGES = {f"torch.{name}Storage": DTYPES[code] for name, code in _STORAGES.items()}
# dtypes that may be mentioned; they stay names.
_MENTIONED = {
    f"torch.{name}"
    for name in "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 bool".split()
}


class Storage(NamedTuple):
    """A run of numbers of one dtype in the zip."""

    dtype: np.dtype
    key: str
    size: int
    """How many numbers."""


def is_pickle(name: str) -> bool:
    """Whether a member of a zip is the pickle of `torch.save`."""
    return name.endswith("/data.pkl") and name.count("/") == 1


def is_old_torch(path: Path) -> bool:
    """Whether a file was saved by torch before 1.6."""
    with path.open("rb") as file:
        return file.read(len(OLD_FORMAT)) == OLD_FORMAT


def read_torch(path: Path, records: Container[str] = ()) -> Any:
    """What was saved: plain values, and a `Tensor` (unread, nameless) for each tensor.

    Args:
        path: the file.
        records: names of plain classes whose instances are read as dicts of their fields.

    Raises:
        Problem: (unsafe) the pickle names anything but what tensors need; (corrupt) damaged,
            or saved by torch before 1.6.
    """
    if is_old_torch(path):
        _refuse(
            path,
            "the file is in the format of torch before 1.6",
            "it is one pickle, not a zip",
            'torch.save(torch.load(PATH, weights_only=True), "new.pt") writes it anew',
        )
    return _Archive(path).value(records)


class _Archive:
    def __init__(self, path: Path):
        self.path = path
        self.members = {entry.name: entry for entry in read_entries(path)}
        pickles = [name for name in self.members if is_pickle(name)]
        if len(pickles) != 1:
            _refuse(path, "this is no file of torch.save", "it needs one data.pkl")
        self.pickle, self.root = pickles[0], pickles[0].removesuffix("data.pkl")
        self.sound: set[str] = set()  # members whose CRC was right: many tensors may share one

    def value(self, records: Container[str]) -> Any:
        if self.members[self.pickle].size > MAX_PICKLE:
            _refuse(self.path, "the pickle is too large", f"at most {MAX_PICKLE:,} bytes are read")
        order = f"{self.root}byteorder"
        if order in self.members and self.read(order).tobytes() != b"little":
            _refuse(self.path, "the file is big-endian", "only little-endian files are read")
        try:
            return read_pickle(
                self.read(self.pickle).tobytes(),
                str(self.path),
                {
                    "collections.OrderedDict": as_dict,
                    "torch._utils._rebuild_tensor_v2": self.tensor,
                    "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
                    "torch.Size": tuple,
                    "torch.device": _device,
                },
                STORAGES.keys() | _MENTIONED,
                self.storage,
                records,
            )
        except BrokenPickle as error:
            _refuse(self.path, "the pickle in the file cannot be read", str(error))

    def storage(self, identity: Any) -> Storage:
        match identity:
            case ("storage", Named(kind), str(key), str(), int(size)) if kind in STORAGES:
                pass
            case _:
                raise BrokenPickle(f"a storage is given as {brief(identity)}")
        member = self.members.get(f"{self.root}data/{key}")
        needed = size * STORAGES[kind].itemsize
        if member is None or member.size != needed:
            found = "missing" if member is None else f"of {member.size:,} bytes"
            raise BrokenPickle(f"data/{key} must have {needed:,} bytes and is {found}")
        return Storage(STORAGES[kind], key, size)

    def tensor(self, storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> Tensor:
        """The arguments of torch's `_rebuild_tensor_v2`, each checked, as a tensor."""
        sizes = (shape, stride)
        if not isinstance(storage, Storage) or not all(isinstance(x, tuple) for x in sizes):
            raise BrokenPickle("a tensor without storage, shape or strides")
        numbers = (offset, *shape, *stride)
        if len(shape) != len(stride) or len(shape) > MAX_DIMS or not all(map(natural, numbers)):
            raise BrokenPickle(f"a tensor of shape {brief(shape)}, strides {brief(stride)}")
        last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
        count = prod(shape)
        if count and (last >= storage.size or count > storage.size):
            raise BrokenPickle(f"a tensor of shape {shape} reaches beyond its {storage.size:,}")
        read = partial(self.values, storage, offset, shape, stride)
        return Tensor("", shape, storage.dtype, read)

    def values(
        self, storage: Storage, offset: int, shape: tuple[int, ...], stride: tuple[int, ...]
    ) -> np.ndarray:
        if not prod(shape):
            return np.empty(shape, storage.dtype)
        width = storage.dtype.itemsize
        last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
        name = f"{self.root}data/{storage.key}"
        flat = self.read(name, offset * width, (last + 1) * width).view(storage.dtype)
        steps = tuple(step * width for step in stride)
        return np.lib.stride_tricks.as_strided(flat, shape, steps, writeable=False)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Bytes of a member (uint8 [n]); the CRC of all of it is checked on the way."""
        entry = self.members[name]
        if entry.method != STORED or entry.size != entry.compressed:
            _refuse(self.path, f"{name} is compressed", "torch stores without compression")
        stop = entry.size if stop is None else stop
        # A member is read whole the first time.
        whole = name not in self.sound
        position, end, crc = (0, entry.size, 0) if whole else (start, stop, 0)
        wanted = np.empty(stop - start, np.uint8)
        with self.path.open("rb") as file:
            file.seek(entry.start + position)
            while position < end:
                piece = file.read(min(_PIECE, end - position))
                if not piece:
                    _refuse(self.path, f"{name} in the file is cut off", f"at {position:,} bytes")
                crc = zlib.crc32(piece, crc) if whole else crc
                first, last = max(start, position), min(stop, position + len(piece))
                if first < last:
                    part = piece[first - position : last - position]
                    wanted[first - start : last - start] = np.frombuffer(part, np.uint8)
                position += len(piece)
        if whole and crc != entry.crc:
            _refuse(self.path, f"{name} in the file is damaged", "its CRC is another")
        self.sound.add(name)
        return wanted


def _device(*names: Any) -> str:
    return ":".join(str(name) for name in names if isinstance(name, str | int))


def _refuse(path: Path, what: str, why: str, fix: str = "fetch or save the file again") -> NoReturn:
    raise Problem(what, where=str(path), why=why, fix=fix, exit_code=CORRUPT)
