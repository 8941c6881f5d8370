"""Documents that can be read again and again, in bounded memory."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CHUNK = 1 << 20
"""Bytes read at a time."""

Progress = Callable[[str, int, int], None]
"""Called with what is being done, the bytes done and the bytes in all."""


@dataclass(frozen=True)
class Part:
    """A piece of a source that can be read by itself: a file, or some of its documents."""

    bytes: int
    """About its size in UTF-8; exact where nothing but text is in the file."""
    read: Callable[[int], Iterator[tuple[str, bool]]]
    """Streams (text, whether it begins a document), given the bytes to read at a time."""


@dataclass(frozen=True)
class Source:
    """Documents, of which nothing is in memory."""

    spec: str
    parts: tuple[Part, ...]
    files: dict[str, int]
    """Name → size in bytes of what is read: helps to tell what changed."""
    paths: tuple[Path, ...] = ()
    """The same on disk."""
    records: dict[str, Any] = field(default_factory=dict)
    """What to take from the files (a field, a split); empty where they are text throughout."""

    @property
    def bytes(self) -> int:
        """Size of all parts together."""
        return sum(part.bytes for part in self.parts)

    def chunks(self, size: int = CHUNK) -> Iterator[str]:
        """The text in order, in pieces of at most `size` bytes; blank lines between documents.

        Raises:
            DataProblem: (corrupt) what is read is not text; names the file and the place.
        """
        started, fresh = False, False
        for part in self.parts:
            for text, begins in part.read(size):
                fresh = (fresh or begins) and started
                if not text:  # an empty document adds nothing, not even a blank line
                    continue
                if fresh:
                    yield "\n\n"
                fresh, started = False, True
                yield text

    def stamp(self) -> list[tuple[int, int]]:
        """Changes when a file does."""
        return [(stat.st_size, stat.st_mtime_ns) for stat in (p.stat() for p in self.paths)]


class Reading:
    """One pass over a source: iterate it, then ask what went by.

    Args:
        source: what to read.
        stage: what the pass is for, as told to `progress`.
        progress: called after every piece.
    """

    def __init__(self, source: Source, stage: str = "reading", progress: Progress | None = None):
        self.source, self.stage, self.progress = source, stage, progress
        self.characters = 0
        self._sha256 = hashlib.sha256()

    def __iter__(self) -> Iterator[str]:
        done = 0
        for text in self.source.chunks():
            data = text.encode("utf-8", "surrogatepass")
            self._sha256.update(data)
            self.characters += len(text)
            done += len(data)
            yield text
            if self.progress:
                self.progress(self.stage, min(done, self.source.bytes), self.source.bytes)

    def sha256(self) -> str:
        """Digest of the text."""
        return self._sha256.hexdigest()
