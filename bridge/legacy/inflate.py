"""Gzip files that are members of a zip, as streams whose large arrays are read later.

`gzip` and `zipfile` could do no more than begin again. An optimiser's state is one gzip file of
many arrays, which are asked for in another order than they were written; so the state of the
decompression is kept where each of them begins.
"""

import io
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bridge.legacy.budget import Allowance
from bridge.legacy.zip_reader import STORED, Entry
from jaxmodels.errors import CORRUPT, Problem

SMALL = 2**20  # data of more bytes stays in the file until it is asked for
# Bytes that are charged for a read, and for the state of the decompression at a `Span`.
_OVERHEAD, _SPAN = 400, 2**17
_PIECE = 2**15
_GZIP, _RAW = 31, -15  # zlib's names of the two forms


class _Unpacked(io.RawIOBase):
    """The unpacked bytes of a gzipped member; size and CRC are checked on the way.

    What is unpacked is taken from `allowance`. A copy goes on from the same place, and takes none.
    """

    def __init__(self, path: Path, entry: Entry, allowance: Allowance | None = None):
        self.path, self.entry, self.allowance = path, entry, allowance
        self.gzip, self.deflate = zlib.decompressobj(_GZIP), zlib.decompressobj(_RAW)
        self.read_bytes = self.size = self.crc = self.position = 0

    def copy(self) -> "_Unpacked":
        """The same stream, from here on."""
        twin = _Unpacked(self.path, self.entry)
        twin.gzip, twin.deflate = self.gzip.copy(), self.deflate.copy()
        twin.read_bytes, twin.size, twin.crc = self.read_bytes, self.size, self.crc
        return twin

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def readinto(self, buffer: Any) -> int:
        data = self._inflated(self.gzip, self._content, len(buffer))
        buffer[: len(data)] = data
        self.position += len(data)
        return len(data)

    def _inflated(self, stage: Any, source: Callable[[], bytes], most: int = _PIECE) -> bytes:
        """Some of what a compressed stream becomes; nothing may lie behind its end."""
        while not stage.eof:
            data = stage.unconsumed_tail or source()
            try:
                out: bytes = stage.decompress(data, most)
            except zlib.error as error:
                raise self.broken(str(error)) from error
            if out:
                if self.allowance:
                    self.allowance.take(self.entry.name, len(out))
                return out
            if not data and not stage.eof:
                raise self.broken("its compressed data is cut off")
        if stage.unused_data or source():
            raise self.broken("there is data behind its end")
        return b""

    def _content(self) -> bytes:
        """Some of the member's content: its size and CRC must be what the zip says."""
        stored = self.entry.method == STORED
        data = self._stored() if stored else self._inflated(self.deflate, self._stored)
        self.size += len(data)
        self.crc = zlib.crc32(data, self.crc)
        if self.size > self.entry.size or (not data and self.size < self.entry.size):
            raise self.broken("its size is not the one that the zip file says")
        if not data and self.crc != self.entry.crc:
            raise self.broken("its CRC is not the one that the zip file says")
        return data

    def _stored(self) -> bytes:
        """Some of the member's bytes as they are in the file."""
        size = min(_PIECE, self.entry.compressed - self.read_bytes)
        if not size:
            return b""
        with self.path.open("rb") as file:
            file.seek(self.entry.start + self.read_bytes)
            data = file.read(size)
        if not data:
            raise self.broken("it is cut off")
        self.read_bytes += len(data)
        return data

    def broken(self, why: str) -> Problem:
        """The problem with a damaged member."""
        return Problem(
            "a part of the zip file is damaged",
            where=f"{self.path}: {self.entry.name}",
            why=why,
            fix="fetch or save the file again",
            exit_code=CORRUPT,
        )


class Span:
    """Bytes of a stream that are read when they are asked for."""

    def __init__(self, source: _Unpacked, before: bytes, size: int):
        self.source, self.before, self.size = source, before[:size], size

    def __len__(self) -> int:
        return self.size

    def read(self) -> np.ndarray:
        """The bytes (uint8 [n])."""
        result = np.empty(self.size, np.uint8)
        source, filled = self.source.copy(), len(self.before)
        result[:filled] = np.frombuffer(self.before, np.uint8)
        while filled < self.size:
            count = source.readinto(result.data[filled : filled + _PIECE])
            if not count:
                raise source.broken("the file has changed since it was opened")
            filled += count
        return result


class GzipStream(io.BufferedReader):
    """The unpacked content of a gzipped member; see `bridge.legacy.instructions.PickleStream`."""

    def __init__(self, allowance: Allowance, entry: Entry):
        self.source = _Unpacked(allowance.path, entry, allowance)
        super().__init__(self.source, _PIECE)
        self.member, self.allowance = entry.name, allowance
        self.start = self.peek(2)[:2]

    def read(self, size: int | None = -1, /) -> bytes:
        """The next bytes; fewer at the end. However large `size` is, only those take memory."""
        self.allowance.take(self.member, _OVERHEAD)
        left, parts = size or 0, []
        if 0 <= left <= SMALL:
            return super().read(left)
        while left > 0 and (part := super().read(min(left, SMALL))):
            parts.append(part)
            left -= len(part)
        return b"".join(parts)

    def readline(self, size: int | None = -1, /) -> bytes:
        """The bytes to the end of the line, charged as so many reads: a long number takes long."""
        line = super().readline(size)
        self.allowance.take(self.member, _OVERHEAD * len(line))
        return line

    def data(self, size: int) -> bytes | Span:
        """The next bytes; if they are many, what stands for them, and they are passed over."""
        if size <= SMALL:
            return self.read(size)
        before, source = self.peek(), self.source.copy()
        self.allowance.take(self.member, _SPAN)
        return Span(source, before, self._pass(size))

    def finish(self) -> None:
        """Reads to the end of the member, so that its checks are made.

        Raises:
            Problem: (corrupt) there is more than one pickle, or a check fails.
        """
        if self.drain():
            raise self.source.broken("there is data behind its pickle")

    def drain(self) -> int:
        """Passes over the rest of the member and returns its length; raises as `finish`."""
        return self._pass(self.allowance.left + _PIECE)

    def _pass(self, size: int) -> int:
        left = size
        while left and (part := self.read1(min(left, _PIECE))):
            left -= len(part)
        return size - left
