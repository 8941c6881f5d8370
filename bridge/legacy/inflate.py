"""Members of a zip file that are gzip files, as streams that can be taken up again anywhere.

A stream is a chain of layers: bytes of the file, the zip's compression, its CRC, gzip's compression
(zlib checks gzip's own CRC and size). Each layer can be copied where it stands, so that an array is
read later without what lies before it.
"""

import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from bridge.legacy.zip_reader import DEFLATED, Entry
from jaxmodels.errors import CORRUPT, UNSAFE, Problem

# What a file may become, all of its members together: FREE bytes, and RATIO times its own size
# more. Weights compress by a tenth, zeros a thousandfold.
FREE, RATIO = 2**28, 20
HELD = 2**28  # bytes that may be held in memory at once, besides the arrays that are asked for
SMALL = 2**20  # data of more bytes stays in the file until it is asked for
# What a read, and what stands for a run of bytes, is reckoned to take besides.
_OVERHEAD, _SPAN = 400, 2**17
_PIECE = 2**15
_GZIP, _RAW = 31, -15  # zlib's names of the two forms


@dataclass
class Allowance:
    """What one file may still take."""

    path: Path
    inflated: int
    held: int

    @staticmethod
    def of(path: Path) -> "Allowance":
        """The allowance of a file of this size."""
        return Allowance(path, FREE + RATIO * path.stat().st_size, HELD)

    def take(self, name: str, inflated: int = 0, held: int = 0) -> None:
        """Counts bytes.

        Raises:
            Problem: (unsafe) they are too many.
        """
        self.inflated -= inflated
        self.held -= held
        if self.inflated < 0 or self.held < 0:
            raise Problem(
                "the file unpacks to far more than a file of its size holds",
                where=f"{self.path}: {name}",
                why=f"at most {RATIO} times its size and {FREE:,} bytes are unpacked"
                if self.inflated < 0
                else f"more than {HELD:,} bytes of it are not large arrays",
                fix="use it only if you trust it: unpack it elsewhere and save its tensors anew",
                exit_code=UNSAFE,
            )


class Layer(Protocol):
    """One step from the bytes of a file to those of a pickle."""

    def pull(self) -> bytes:
        """The next bytes; none at the end."""

    def copy(self) -> "Layer":
        """The same, from here on."""


@dataclass
class _Slice:
    """Bytes of a file as they are."""

    path: Path
    position: int
    left: int

    def pull(self) -> bytes:
        if not self.left:
            return b""
        with self.path.open("rb") as file:
            file.seek(self.position)
            data = file.read(min(_PIECE, self.left))
        if not data:
            raise _broken(self.path, "it is cut off")
        self.position += len(data)
        self.left -= len(data)
        return data

    def copy(self) -> "_Slice":
        return replace(self)


class _Inflated:
    """What a compressed layer becomes; nothing may lie behind its end."""

    def __init__(self, where: str, source: Layer, form: int):
        self.where, self.source = where, source
        self.zlib = zlib.decompressobj(form)

    def pull(self) -> bytes:
        while not self.zlib.eof:
            data = self.zlib.unconsumed_tail or self.source.pull()
            try:
                out = self.zlib.decompress(data, _PIECE)
            except zlib.error as error:
                raise _broken(self.where, str(error)) from error
            if out:
                return out
            if not data and not self.zlib.eof:
                raise _broken(self.where, "its compressed data is cut off")
        if self.zlib.unused_data or self.source.pull():
            raise _broken(self.where, "there is data behind its end")
        return b""

    def copy(self) -> "_Inflated":
        twin = _Inflated.__new__(_Inflated)
        twin.where, twin.source, twin.zlib = self.where, self.source.copy(), self.zlib.copy()
        return twin


@dataclass
class _Checked:
    """A member's content: its size and CRC must be what the zip says."""

    where: str
    source: Layer
    size: int
    promised: int
    crc: int = 0

    def pull(self) -> bytes:
        data = self.source.pull()
        self.size -= len(data)
        self.crc = zlib.crc32(data, self.crc)
        if self.size < 0 or (not data and self.size):
            raise _broken(self.where, "its size is not the one that the zip file says")
        if not data and self.crc != self.promised:
            raise _broken(self.where, "its CRC is not the one that the zip file says")
        return data

    def copy(self) -> "_Checked":
        return replace(self, source=self.source.copy())


@dataclass
class _Counted:
    """Takes what comes through from an allowance; a copy reads what was counted once."""

    name: str
    source: Layer
    allowance: Allowance

    def pull(self) -> bytes:
        data = self.source.pull()
        self.allowance.take(self.name, inflated=len(data))
        return data

    def copy(self) -> Layer:
        return self.source.copy()


class Span:
    """Bytes of a stream that are read when they are asked for."""

    def __init__(self, layer: Layer, before: bytes, size: int):
        self.layer, self.before, self.size = layer, before, size

    def __len__(self) -> int:
        return self.size

    def read(self) -> np.ndarray:
        """The bytes (uint8 [n])."""
        result = np.empty(self.size, np.uint8)
        layer, piece, filled = self.layer.copy(), self.before, 0
        while filled < self.size:
            part = piece[: self.size - filled]
            result[filled : filled + len(part)] = np.frombuffer(part, np.uint8)
            filled += len(part)
            if filled < self.size and not (piece := layer.pull()):
                raise _broken("it", "the file has changed since it was opened")
        return result


class GzipStream:
    """The unpacked content of a gzipped member; see `bridge.legacy.instructions.Stream`."""

    def __init__(self, allowance: Allowance, entry: Entry):
        self.name, self.allowance = entry.name, allowance
        where = f"{allowance.path}: {entry.name}"
        layer: Layer = _Slice(allowance.path, entry.start, entry.compressed)
        if entry.method == DEFLATED:
            layer = _Counted(self.name, _Inflated(where, layer, _RAW), allowance)
        layer = _Inflated(where, _Checked(where, layer, entry.size, entry.crc), _GZIP)
        self.layer = _Counted(self.name, layer, allowance)
        self.buffer, self.used, self.position, self.start = b"", 0, 0, b""

    def tell(self) -> int:
        """How many bytes were read."""
        return self.position

    def read(self, size: int) -> bytes:
        """The next bytes; fewer at the end."""
        self.allowance.take(self.name, held=_OVERHEAD)
        parts = []
        while size > 0 and (part := self._next(size)):
            self.allowance.take(self.name, held=len(part))
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def readline(self) -> bytes:
        """The bytes to the end of the line."""
        line = bytearray()
        while (byte := self.read(1)) and byte != b"\n":
            line += byte
        return bytes(line) + byte

    def data(self, size: int) -> bytes | Span:
        """The next bytes; if they are many, what stands for them, and they are passed over."""
        if size <= SMALL:
            return self.read(size)
        before = self.buffer[self.used :]
        layer, left = self.layer.copy(), size
        while left and (part := self._next(left)):
            left -= len(part)
        self.allowance.take(self.name, held=_SPAN)
        return Span(layer, before, size - left)

    def finish(self) -> None:
        """Reads to the end of the member, so that its checks are made.

        Raises:
            Problem: (corrupt) there is more than one pickle, or a check fails.
        """
        if self.drain():
            raise _broken(f"{self.allowance.path}: {self.name}", "there is data behind its pickle")

    def drain(self) -> int:
        """Passes over the rest of the member, and says how long it was; raises as `finish`."""
        before = self.position
        while self._next(_PIECE):
            pass
        return self.position - before

    def _next(self, size: int) -> bytes:
        """Some of the next bytes; none at the end."""
        if self.used == len(self.buffer):
            self.buffer, self.used = self.layer.pull(), 0
            self.start = self.start or self.buffer[:2]
        part = self.buffer[self.used : self.used + size]
        self.used += len(part)
        self.position += len(part)
        return part


def _broken(where: object, why: str) -> Problem:
    return Problem(
        "a part of the zip file is damaged",
        where=str(where),
        why=why,
        fix="fetch or save the file again",
        exit_code=CORRUPT,
    )
