"""Sources of documents, which can be read repeatedly in bounded memory."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CHUNK = 1 << 20
"""Bytes read at a time."""

Progress = Callable[[str, int, int], None]
"""Called as (stage, bytes done, bytes in all)."""


@dataclass(frozen=True)
class Part:
    """A part of a source that can be read independently: a file, or some of its documents."""

    bytes: int
    """Its approximate size in UTF-8; exact for plain text files."""
    read: Callable[[int], Iterator[tuple[str, bool]]]
    """Streams (text, whether it starts a document), given the bytes to read at a time."""


@dataclass(frozen=True)
class Source:
    """Documents that are read on demand."""

    spec: str
    parts: tuple[Part, ...]
    files: dict[str, int]
    """Name → size in bytes of each file, to report what changed."""
    paths: tuple[Path, ...] = ()
    """The files on disk."""
    records: dict[str, Any] = field(default_factory=dict)
    """What is read from the files (a field, a split), JSON-able; empty for plain text."""

    @property
    def bytes(self) -> int:
        """Total size of the parts."""
        return sum(part.bytes for part in self.parts)

    def chunks(self, size: int = CHUNK) -> Iterator[str]:
        """The text in order, in pieces of at most `size` bytes; blank lines between documents.

        Raises:
            DataProblem: (corrupt) a file is not text; names the file and the position.
        """
        started, new_document = False, False
        for part in self.parts:
            for text, starts in part.read(size):
                new_document = (new_document or starts) and started
                if not text:  # an empty document adds nothing, not even a blank line
                    continue
                if new_document:
                    yield "\n\n"
                new_document, started = False, True
                yield text

    def stamp(self) -> list[tuple[int, int]]:
        """Size and modification time of each file; changes when a file does."""
        return [(stat.st_size, stat.st_mtime_ns) for stat in (p.stat() for p in self.paths)]


class Reading:
    """One pass over a source that counts and hashes its text.

    Args:
        source: what to read.
        stage: its name for `progress`.
        progress: called after every chunk.
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
        """Digest of the text that was read."""
        return self._sha256.hexdigest()
