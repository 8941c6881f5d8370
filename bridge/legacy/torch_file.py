"""Reads the zip files of `torch.save` without torch, and without running the pickle inside.

Format: a zip with `NAME/data.pkl` (a pickle in which tensors point to storages) and one
uncompressed member `NAME/data/KEY` for each storage. Files from before torch 1.6 are no zips: see
`old_torch_file`.
"""

import zlib
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from bridge.legacy.instructions import BrokenPickle
from bridge.legacy.old_torch_file import is_old_torch, read_old_torch
from bridge.legacy.torch_pickle import MAX_PICKLE, Storage, read_tensors
from bridge.legacy.values import Named, brief
from bridge.legacy.zip_reader import STORED, read_entries
from jaxmodels.errors import CORRUPT, MISMATCH, Problem

_PIECE = 2**20  # bytes that are read at once


def is_pickle(name: str) -> bool:
    """Whether a member of a zip is the pickle of `torch.save`."""
    return name.endswith("/data.pkl") and name.count("/") == 1


def read_torch(path: Path) -> Any:
    """What was saved: plain values, and a `Tensor` (unread, nameless) for each tensor.

    What the pickle names besides tensors becomes a `Record` or stays a `Named`; see `harmless`.

    Raises:
        Problem: (unsafe) the pickle reaches for code; (mismatch) TorchScript; (corrupt) damaged.
    """
    return read_old_torch(path) if is_old_torch(path) else _Archive(path).value()


class _Archive:
    def __init__(self, path: Path):
        self.path = path
        self.members = {entry.name: entry for entry in read_entries(path)}
        pickles = [name for name in self.members if is_pickle(name)]
        if len(pickles) != 1:
            _refuse(path, "this is not a file of torch.save", "it needs one data.pkl")
        self.pickle, self.root = pickles[0], pickles[0].removesuffix("data.pkl")
        self.sound: set[str] = set()  # members whose CRC was right: many tensors may share one

    def value(self) -> Any:
        if any(name.startswith(f"{self.root}code/") for name in self.members):
            _refuse(
                self.path,
                "this is a TorchScript program, not a file of tensors",
                "it holds code, which is not read",
                "save its tensors: torch.save(torch.jit.load(PATH).state_dict(), NEW)",
                MISMATCH,
            )
        if self.members[self.pickle].size > MAX_PICKLE:
            _refuse(self.path, "the pickle is too large", f"at most {MAX_PICKLE:,} bytes are read")
        order = f"{self.root}byteorder"
        endianness = self.read(order).tobytes() if order in self.members else b"little"
        if endianness not in (b"little", b"big"):
            _refuse(self.path, "the order of bytes is unknown", f"it is {brief(endianness)}")
        self.swapped = endianness == b"big"
        try:
            return read_tensors(self.read(self.pickle).tobytes(), str(self.path), self.storage)
        except BrokenPickle as error:
            _refuse(self.path, "the pickle in the file cannot be read", str(error))

    def storage(self, identity: Any) -> Storage:
        match identity:
            case ("storage", Named(kind), str(key), str(), int(size)):
                name = f"{self.root}data/{key}"
                storage = Storage.named(kind, size, partial(self.read, name), self.swapped)
            case _:
                raise BrokenPickle(f"a storage is given as {brief(identity)}")
        member, needed = self.members.get(name), size * storage.width
        if member is None or member.size != needed:
            found = "missing" if member is None else f"of {member.size:,} bytes"
            raise BrokenPickle(f"data/{key} must have {needed:,} bytes and is {found}")
        return storage

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Bytes of a member (uint8 [n]); the CRC of all of it is checked on the way."""
        entry = self.members[name]
        if entry.method != STORED or entry.size != entry.compressed:
            _refuse(self.path, f"{name} is compressed", "torch stores without compression")
        stop = entry.size if stop is None else stop
        # The first time all of the member is read, for its CRC.
        check = name not in self.sound
        position, end, crc = (0, entry.size, 0) if check else (start, stop, 0)
        wanted = np.empty(stop - start, np.uint8)
        with self.path.open("rb") as file:
            file.seek(entry.start + position)
            while position < end:
                piece = file.read(min(_PIECE, end - position))
                if not piece:
                    _refuse(self.path, f"{name} in the file is cut off", f"at {position:,} bytes")
                crc = zlib.crc32(piece, crc) if check else crc
                first, last = max(start, position), min(stop, position + len(piece))
                if first < last:
                    part = piece[first - position : last - position]
                    wanted[first - start : last - start] = np.frombuffer(part, np.uint8)
                position += len(piece)
        if check and crc != entry.crc:
            _refuse(self.path, f"{name} in the file is damaged", "its CRC is another")
        self.sound.add(name)
        return wanted


def _refuse(
    path: Path,
    what: str,
    why: str,
    fix: str = "fetch or save the file again",
    exit_code: int = CORRUPT,
) -> NoReturn:
    raise Problem(what, where=str(path), why=why, fix=fix, exit_code=exit_code)
