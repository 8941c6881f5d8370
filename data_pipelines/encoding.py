"""Encodes documents into a file of tokens, in bounded memory.

Special tokens written in a text are text: a web page that contains "<|endoftext|>" does not end a
document. Ends are put between documents by id.
"""

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypeVar

import numpy as np

from data_pipelines.reading import CHUNK, Part
from data_pipelines.tokenizers import Tokenizer, count_unknown

A = TypeVar("A")
B = TypeVar("B")
Piece = tuple[str, bool]
"""A text, and whether it starts a document."""


@dataclass(frozen=True)
class Shard:
    """Counts and digest of the tokens of some parts of a source."""

    tokens: int
    unknown: int
    documents: int
    """Non-empty ones."""
    sha256: str


def separator(tokenizer: Tokenizer) -> np.ndarray:
    """The ids between documents: end of text, or a blank line where there is no such token."""
    if tokenizer.end_of_text is None:
        return tokenizer.encode("\n\n")
    return np.asarray([tokenizer.end_of_text], np.int32)


class Writer:
    """Appends tokens to a file, counts and hashes them."""

    def __init__(self, file: BinaryIO, tokenizer: Tokenizer, dtype: str):
        self._file, self._dtype = file, dtype
        self._separator = separator(tokenizer)
        self._unknown = count_unknown(tokenizer, "\n\n", self._separator)
        self._sha256 = hashlib.sha256()
        self.tokens = self.unknown = 0

    def separate(self) -> None:
        """Appends the separator of documents."""
        self.add(self._separator, self._unknown)

    def add(self, ids: np.ndarray, unknown: int) -> None:
        """Appends ids, `unknown` of which stand for text that is not in the vocabulary."""
        data = ids.astype(self._dtype).tobytes()
        self._file.write(data)
        self._sha256.update(data)
        self.tokens += len(ids)
        self.unknown += unknown

    def done(self, documents: int) -> Shard:
        """Counts and digest of what was written."""
        return Shard(self.tokens, self.unknown, documents, self._sha256.hexdigest())


def encode(
    parts: Sequence[Part],
    tokenizer: Tokenizer,
    dtype: str,
    path: Path,
    tick: Callable[[int], None] = lambda done: None,
    threads: int = 1,
) -> Shard:
    """Writes the tokens of some parts, with separators between their documents.

    Args:
        parts: what to read.
        tokenizer: encodes.
        dtype: of the file, such as "<u2".
        path: the file; overwritten.
        tick: called with the bytes done, of `Part.bytes`.
        threads: pieces encoded at once; tiktoken and tokenizers release the GIL.
    """
    encode = partial(_encode, tokenizer)
    tokenizer.encode("")  # its tables are read once, not by each thread
    with path.open("wb") as file, ThreadPoolExecutor(threads) as pool:
        writer, documents, before = Writer(file, tokenizer, dtype), 0, 0
        for part in parts:
            read = 0
            for batch in _in_order(pool, threads, encode, _batches(_pieces(part, tokenizer))):
                for piece in batch:
                    if piece.begins:
                        if documents:
                            writer.separate()
                        documents += 1
                    writer.add(piece.ids, piece.unknown)
                    read += piece.bytes
                tick(before + min(read, part.bytes))
            before += part.bytes
    return writer.done(documents)


class Encoded(NamedTuple):
    """Tokens of a text, or of a piece of it."""

    ids: np.ndarray
    unknown: int
    begins: bool
    """Whether it starts a document."""
    bytes: int


def _encode(tokenizer: Tokenizer, pieces: list[Piece]) -> list[Encoded]:
    made = []
    for text, begins in pieces:
        ids = tokenizer.encode(text)
        size = len(text.encode("utf-8", "surrogatepass"))
        made.append(Encoded(ids, count_unknown(tokenizer, text, ids), begins, size))
    return made


def _in_order(
    pool: Executor, threads: int, function: Callable[[A], B], arguments: Iterable[A]
) -> Iterator[B]:
    """The function's results in order; at most one per thread is computed in advance."""
    ahead: deque[Future[B]] = deque()
    for argument in arguments:
        if len(ahead) > threads:
            yield ahead.popleft().result()
        ahead.append(pool.submit(function, argument))
    while ahead:
        yield ahead.popleft().result()


def _batches(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    """Pieces grouped into batches large enough for a thread."""
    batch: list[Piece] = []
    size = 0
    for piece in pieces:
        batch.append(piece)
        size += len(piece[0])
        if size >= CHUNK:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _pieces(part: Part, tokenizer: Tokenizer) -> Iterator[Piece]:
    """Non-empty texts, cut where it changes no token."""
    pending, new_document = "", True
    for text, begins in part.read(CHUNK):
        if begins:
            if pending:
                yield pending, new_document
            pending, new_document = text, True
            continue
        if cut := tokenizer.safe_cut(pending):
            yield pending[:cut], new_document
            new_document = False
        pending = pending[cut:] + text
    if pending:
        yield pending, new_document
