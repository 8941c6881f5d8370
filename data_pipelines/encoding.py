"""Documents to a file of tokens, in bounded memory."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from data_pipelines.sources import CHUNK, Part
from data_pipelines.tokenizers import Tokenizer, count_unknown


@dataclass(frozen=True)
class Shard:
    """What was written for some parts of a source."""

    tokens: int
    unknown: int
    documents: int
    """Those that hold any text."""
    sha256: str


def separator(tokenizer: Tokenizer) -> np.ndarray:
    """What stands between documents: end of text, or a blank line where there is no such token."""
    if tokenizer.end_of_text is None:
        return tokenizer.encode("\n\n")
    return np.asarray([tokenizer.end_of_text], np.int32)


class Writer:
    """Appends tokens to a file, and counts."""

    def __init__(self, file: BinaryIO, tokenizer: Tokenizer, dtype: str):
        self._file, self._dtype = file, dtype
        self._separator = separator(tokenizer)
        self._unknown = count_unknown(tokenizer, "\n\n", self._separator)
        self._sha256 = hashlib.sha256()
        self.tokens = self.unknown = 0

    def separate(self) -> None:
        """Appends what stands between documents."""
        self.add(self._separator, self._unknown)

    def add(self, ids: np.ndarray, unknown: int) -> None:
        """Appends ids, so many of which stand for what the vocabulary cannot write."""
        data = ids.astype(self._dtype).tobytes()
        self._file.write(data)
        self._sha256.update(data)
        self.tokens += len(ids)
        self.unknown += unknown

    def done(self, documents: int) -> Shard:
        """What was written."""
        return Shard(self.tokens, self.unknown, documents, self._sha256.hexdigest())


def encode(
    parts: Sequence[Part],
    tokenizer: Tokenizer,
    dtype: str,
    path: Path,
    tick: Callable[[int], None] = lambda done: None,
) -> Shard:
    """Writes the tokens of some parts, with separators between their documents.

    Args:
        parts: what to read.
        tokenizer: encodes.
        dtype: of the file, in numpy's letters.
        path: the file; written anew.
        tick: called with the bytes done, of those that the parts tell.
    """
    with path.open("wb") as file:
        writer, documents, before = Writer(file, tokenizer, dtype), 0, 0
        for part in parts:
            read = 0
            for text, begins in _pieces(part, tokenizer):
                if begins:
                    if documents:
                        writer.separate()
                    documents += 1
                ids = tokenizer.encode(text)
                writer.add(ids, count_unknown(tokenizer, text, ids))
                read += len(text.encode("utf-8", "surrogatepass"))
                tick(before + min(read, part.bytes))
            before += part.bytes
    return writer.done(documents)


def _pieces(part: Part, tokenizer: Tokenizer) -> Iterator[tuple[str, bool]]:
    """(text, whether it begins a document), cut where it changes no token; no empty ones."""
    held, fresh = "", True
    for text, begins in part.read(CHUNK):
        if begins:
            if held:
                yield held, fresh
            held, fresh = text, True
            continue
        if cut := tokenizer.safe_cut(held):
            yield held[:cut], fresh
            fresh = False
        held = held[cut:] + text
    if held:
        yield held, fresh
