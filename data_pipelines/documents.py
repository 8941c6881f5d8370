"""Tokenised documents in random order, packed into windows; the characters of the first ones.

Documents are shuffled by a permutation of all their numbers, not through a buffer of 10,000 like
seed 000's: array_record gives random access, so the order mixes the full dataset, costs no memory,
and a position in it is one number, where a buffer's contents would have to be saved.

They are packed by our own iterator, not grain's `ConcatThenSplit`, whose state holds tuples that
JSON turns into lists, which it then misreads. Our state is the document and how many of its tokens
are used.
"""

from collections.abc import Iterator
from typing import Any

import grain
import numpy as np

from data_pipelines.characters import CharTokenizer
from data_pipelines.encoding import separator
from data_pipelines.errors import DataProblem
from data_pipelines.loader import ENDLESS, Batch, Rows, batch_of, epoch_keys, permute
from data_pipelines.reading import Progress, Source
from data_pipelines.tfds import Texts, texts
from data_pipelines.tokenizers import Tokenizer


class Documents:
    """Endless random access to tokenised documents, for `grain.MapDataset.source`.

    An epoch takes each document once, in an order drawn from (seed, epoch).

    Args:
        texts: the documents.
        first: index of the first one to take.
        count: how many to take from there on.
        tokenizer: encodes; each document ends with its separator.
        seed: draws the order.
    """

    def __init__(self, texts: Texts, first: int, count: int, tokenizer: Tokenizer, seed: int):
        self._texts, self._first, self._count = texts, first, count
        self._tokenizer, self._separator = tokenizer, separator(tokenizer)
        self._seed = seed

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, i: int) -> np.ndarray:
        """Document i of the order: int32 [n]; an empty one has no tokens, not even a separator."""
        epoch, place = divmod(int(i), self._count)
        keys = epoch_keys(self._seed, epoch)
        index = int(permute(np.asarray([place], np.uint64), self._count, keys)[0])
        ids = self._tokenizer.encode(self._texts[self._first + index])
        return np.concatenate([ids, self._separator]) if len(ids) else ids


class PackedDocuments(grain.IterDataset):
    """Batches of windows, cut from the concatenated documents.

    Args:
        parent: yields tokens, int32 [n].
        batch: windows in a batch.
        length: tokens of a window; the last of one is the first of the next, so that each is
            predicted once.
        end_of_text: add `segments`, counted at this id; None gives tokens only.
        rows: which windows of a batch to yield, ascending; None yields all.
    """

    def __init__(
        self,
        parent: grain.IterDataset,
        batch: int,
        length: int,
        end_of_text: int | None = None,
        rows: Rows = None,
    ):
        super().__init__(parent)
        self._sizes, self._end = (batch, length), end_of_text
        self._rows = slice(None) if rows is None else rows

    def __iter__(self) -> grain.DatasetIterator:
        return _PackedIterator(self._parent.__iter__(), self._sizes, self._end, self._rows)


class _PackedIterator(grain.DatasetIterator):
    """The state is the position of the document being cut, and how many of its tokens are used."""

    def __init__(
        self,
        parent: grain.DatasetIterator,
        sizes: tuple[int, int],
        end: int | None,
        rows: np.ndarray | slice,
    ):
        super().__init__(parent)
        self._sizes, self._end, self._rows = sizes, end, rows
        self._before, self._offset = parent.get_state(), 0
        self._tokens: np.ndarray | None = None  # of the document being cut; read when needed

    def __next__(self) -> Batch:
        batch, length = self._sizes
        windows = np.stack([self._window(length) for _ in range(batch)])
        return batch_of(windows[self._rows], self._end)

    def get_state(self) -> dict[str, Any]:
        return {"documents": self._before, "offset": self._offset}

    def set_state(self, state: dict[str, Any]) -> None:
        self._before, self._offset, self._tokens = state["documents"], state["offset"], None
        self._parents[0].set_state(self._before)

    def _window(self, length: int) -> np.ndarray:
        parts, missing = [], length
        while missing:
            if self._tokens is None:
                self._tokens = next(self._parents[0])
            part = self._tokens[self._offset : self._offset + missing]
            if not len(part):
                self._before = self._parents[0].get_state()
                self._offset, self._tokens = 0, None
                continue
            parts.append(part)
            self._offset += len(part)
            missing -= len(part)
        self._offset -= 1  # the last target is the first input of what follows
        return np.concatenate(parts)


def characters_of(
    source: Source, count: int, min_freq: int = 1, progress: Progress | None = None
) -> CharTokenizer:
    """The characters of the first documents, and of the blank line between documents.

    One document is in memory at a time. Taking the first ones follows seed 000, which has no
    blank line between them; a run keeps its vocabulary, and nothing is counted again.

    Args:
        source: documents opened by `open_tfds`.
        count: how many, from the first on.
        min_freq: a character must occur this often in them.
        progress: called as (stage, bytes done, bytes in all), both estimates.

    Raises:
        DataProblem: (corrupt) no character occurs so often.
    """
    found = CharTokenizer.build(first_documents(source, count, progress), min_freq)
    if not found.chars:
        raise DataProblem(
            f"the first {count:,} documents give no vocabulary",
            where=source.spec,
            why=f"no character occurs {min_freq:,} times in them" if min_freq > 1 else "all empty",
            fix="use more --vocab-documents, or a smaller --min-freq",
        )
    return found


def first_documents(source: Source, count: int, progress: Progress | None = None) -> Iterator[str]:
    """The first documents of a source opened by `open_tfds`, each with the blank line after it."""
    documents = texts(source)
    share = source.bytes / len(documents)
    for i in range(count):
        yield text + "\n\n" if (text := documents[i]) else ""
        if progress:
            progress("counting characters", round(i * share), round(count * share))
