"""Texts in two parts: one to learn a vocabulary from, one to measure it on."""

from collections.abc import Iterator, Sequence
from typing import Any

from data_pipelines.documents import first_documents
from data_pipelines.reading import Progress, Reading
from data_pipelines.sources import open_text


class SplitText:
    """The first part of each text, to learn from, and then the rest, to measure on.

    Args:
        specs: of texts (not `bin:` or `mix:`).
        held_out: share of each text's bytes, from the end, that is not learned from.
        most: maximum number of bytes to read of each.
        progress: called as (stage, bytes done, bytes in all).
    """

    def __init__(
        self, specs: Sequence[str], held_out: float, most: int, progress: Progress | None = None
    ):
        sources = [open_text(spec) for spec in specs]
        self._readers = [_Reader(_stream(source, progress)) for source in sources]
        self._sizes = [min(source.bytes, most) for source in sources]
        self._held_out = held_out
        self.bytes = 0
        """Bytes that were learned from."""

    def learned(self) -> Iterator[str]:
        """The first part of each text."""
        for reader, size in zip(self._readers, self._sizes, strict=True):
            for text in reader.take(size - int(self._held_out * size)):
                self.bytes += len(text.encode("utf-8", "surrogatepass"))
                yield text

    def measured(self) -> Iterator[str]:
        """The rest of each text; to be read after `learned`."""
        for reader, size in zip(self._readers, self._sizes, strict=True):
            yield from reader.take(int(self._held_out * size))


def _stream(source: Any, progress: Progress | None) -> Iterator[str]:
    if "dataset" in source.records:
        return first_documents(source, source.records["examples"], progress)
    return iter(Reading(source, "learning a vocabulary", progress))


class _Reader:
    """Reads a given number of bytes at a time from a sequence of texts."""

    def __init__(self, texts: Iterator[str]):
        self._texts, self._rest = texts, ""

    def take(self, size: int) -> Iterator[str]:
        """The next `size` bytes of text, or all that is left."""
        while size > 0 and (text := self._rest or next(self._texts, None)) is not None:
            data = text.encode("utf-8", "surrogatepass")
            taken = text
            if len(data) > size:
                taken = data[:size].decode("utf-8", "ignore") or text[:1]
            self._rest = text[len(taken) :]
            size -= len(data) if not self._rest else size
            if taken:
                yield taken
