"""Reads the files of `torch.save` from before torch 1.6, as data; see `torch_pickle`.

Format: five pickles, one after the other (a number that names the format, its version, what the
machine was, what was saved, and the keys of its storages), then for each key the count of its
numbers and the numbers themselves, always little-endian. A storage may be a view of another one.
Source: torch's `serialization.py`, `_legacy_save`, which still writes it when it is asked to.
"""

import re
from dataclasses import dataclass, replace
from functools import partial
from io import BufferedReader
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from bridge.legacy.instructions import BrokenPickle
from bridge.legacy.torch_pickle import MAX_PICKLE, Storage, read_tensors
from bridge.legacy.values import Named, brief, natural
from jaxmodels.errors import CORRUPT, Problem

# The number 0x1950A86A20F9469CFC6C, pickled by any protocol that has instructions of bytes.
_BEGIN = re.compile(rb"\x80[\x02-\x05](\x95.{8})?\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19\.", re.DOTALL)
_START = 32  # bytes that it takes at most
_VERSION = 1001
_COUNT = 8  # bytes of the count in front of a storage


def is_old_torch(path: Path) -> bool:
    """Whether a file was saved as torch before 1.6 did."""
    with path.open("rb") as file:
        return _BEGIN.match(file.read(_START)) is not None


def read_old_torch(path: Path) -> Any:
    """What was saved; see `torch_file.read_torch`."""
    with path.open("rb") as file:
        return _OldFile(path, file).value


@dataclass
class _Part:
    """The pickles in an open file, as a stream: at most so many bytes, and never beyond its end."""

    file: BufferedReader
    left: int

    def read(self, size: int, /) -> bytes:
        return self._took(self.file.read(min(size, self.left + 1)))

    def readline(self) -> bytes:
        return self._took(self.file.readline(self.left + 1))

    def tell(self) -> int:
        return self.file.tell()

    def data(self, size: int) -> bytes:
        return self.read(size)

    def _took(self, data: bytes) -> bytes:
        self.left -= len(data)
        if self.left < 0:
            raise BrokenPickle(f"it takes more than {MAX_PICKLE:,} bytes")
        return data


class _OldFile:
    def __init__(self, path: Path, file: BufferedReader):
        self.path, self.size = path, path.stat().st_size
        self.storages: dict[str, Storage] = {}
        self.places: dict[str, int] = {}
        stream = _Part(file, min(self.size, MAX_PICKLE))
        try:
            _, version, _ = (read_tensors(stream, str(path)) for _ in range(3))
            if version != _VERSION:
                raise BrokenPickle(f"its version is {brief(version)}, not {_VERSION}")
            self.value = read_tensors(stream, str(path), self.storage)
            keys = read_tensors(stream, str(path))
            if not isinstance(keys, list) or {*map(brief, keys)} != {*map(brief, self.storages)}:
                raise BrokenPickle("its storages are not those that it lists")
            self._place(file, keys)
        except BrokenPickle as error:
            self._refuse("the pickle in the file cannot be read", str(error))

    def storage(self, identity: Any) -> Any:
        """The value of a persistent id: a storage, or a class that comes with its source."""
        match identity:
            case ("module", Named() as of, *_):
                return of
            case ("storage", Named(kind), str(key), str(), int(size), *view) if natural(size):
                found = Storage.named(kind, size, partial(self.read, key))
            case _:
                raise BrokenPickle(f"a storage is given as {brief(identity)}")
        if self.storages.setdefault(key, found) != replace(found, read=self.storages[key].read):
            raise BrokenPickle(f"the storage {key} is given in two ways")
        match view:
            case [] | [None]:
                return found
            case [(str(), int(start), int(count))] if natural(start) and natural(count):
                if start + count > size:
                    raise BrokenPickle(f"a view reaches beyond the {size:,} of storage {key}")
                shift = start * found.width
                return replace(
                    found, size=count, read=lambda a, b: self.read(key, a + shift, b + shift)
                )
        raise BrokenPickle(f"a view is given as {brief(view)}")

    def _place(self, file: BufferedReader, keys: list[Any]) -> None:
        """Finds the position of each storage; together they fill the file."""
        at = file.tell()
        for key in keys:
            storage = self.storages[key]
            file.seek(at)
            count = file.read(_COUNT)
            if len(count) < _COUNT:
                self._cut_off(at)
            if (found := int.from_bytes(count, "little")) != storage.size:
                raise BrokenPickle(f"storage {key} has {found:,} numbers, not {storage.size:,}")
            self.places[key] = at + _COUNT
            at += _COUNT + storage.size * storage.width
        if at != self.size:
            self._cut_off(at)

    def read(self, key: str, start: int, stop: int) -> np.ndarray:
        """Bytes of a storage (uint8 [n]); the format has no checksums."""
        data = np.empty(stop - start, np.uint8)
        with self.path.open("rb") as file:
            file.seek(self.places[key] + start)
            if file.readinto(data.data) != data.size:
                self._cut_off(self.places[key] + stop)
        return data

    def _cut_off(self, wanted: int) -> NoReturn:
        what = "the file is cut off" if wanted > self.size else "there is more behind the storages"
        self._refuse(what, f"it has {self.size:,} bytes, and its storages end at {wanted:,}")

    def _refuse(self, what: str, why: str) -> NoReturn:
        fix = "fetch or save the file again"
        raise Problem(what, where=str(self.path), why=why, fix=fix, exit_code=CORRUPT)
