"""Batches from documents that are tokenised while one trains: nothing is prepared, nothing kept."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import grain
import numpy as np

from data_pipelines.errors import USAGE, DataProblem
from data_pipelines.loader import (
    ENDLESS,
    Batch,
    Rows,
    Validation,
    batch_of,
    epoch_keys,
    permute,
)
from data_pipelines.shards import separator
from data_pipelines.sources import Source
from data_pipelines.tfds import Texts, texts
from data_pipelines.tokenizers import Tokenizer

_SAMPLE = 64  # documents that tell how long the others are


class Documents:
    """Endless random access to tokenised documents, for `grain.MapDataset.source`.

    An epoch takes each document once, in an order drawn from (seed, epoch).

    Args:
        texts: the documents.
        first: index of the first that is taken.
        count: how many are taken from there on.
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
        """Document at place i: int32 [n]; an empty one has no tokens at all."""
        epoch, place = divmod(int(i), self._count)
        keys = epoch_keys(self._seed, epoch)
        index = int(permute(np.asarray([place], np.uint64), self._count, keys)[0])
        ids = self._tokenizer.encode(self._texts[self._first + index])
        return np.concatenate([ids, self._separator]) if len(ids) else ids


class Packed(grain.IterDataset):
    """Documents one after the other, cut into windows, a batch of them at a time.

    Args:
        parent: yields tokens, int32 [n].
        batch: windows in a batch.
        length: tokens of a window; the last of one is the first of the next.
        end_of_text: give `segments` too, counted at this id; None gives tokens only.
        rows: which windows of a batch to yield, in rising order; None yields all.
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
    """Its state: where the document that is being cut came from, and the tokens of it used."""

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
        self._tokens: np.ndarray | None = None  # read when it is needed

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


@dataclass(frozen=True, eq=False)
class Streamed:
    """As `Data`, for documents that are tokenised when their turn comes."""

    source: Source
    tokenizer: Tokenizer
    context: int
    batch: int
    seed: int
    valid_fraction: float
    segments: bool = False

    @property
    def spec(self) -> str:
        """What was asked for."""
        return self.source.spec

    @property
    def vocab_size(self) -> int:
        """Size of the vocabulary."""
        return self.tokenizer.vocab_size

    @property
    def vocab_needed(self) -> int:
        """Rows that an embedding needs."""
        return self.tokenizer.vocab_size

    @property
    def notes(self) -> list[str]:
        """What the user should know, a sentence each."""
        held_out = f"{self._held_out:,} of {len(self._texts):,} documents are held out"
        return [f"{held_out}; the numbers of tokens are estimates from {_SAMPLE} of them"]

    @property
    def valid_tokens(self) -> int:
        """Tokens that are held out, estimated."""
        return int(self._held_out * self._mean)

    @property
    def train_tokens(self) -> int:
        """Tokens to train on, estimated."""
        return int((len(self._texts) - self._held_out) * self._mean)

    @property
    def identity(self) -> dict[str, Any]:
        """JSON-able; when it is equal, a resumed run sees the batches it would have seen."""
        return {
            **self.source.records,
            "tokenizer": self.tokenizer.digest,
            "vocab_size": self.vocab_size,
            "valid_fraction": self.valid_fraction,
            "seed": self.seed,
            "context": self.context,
            "batch": self.batch,
        }

    def train(self, rows: Rows = None) -> grain.DatasetIterator:
        """Endless batches, `tokens` int32 [rows, context + 1]; `segments` if wanted.

        `get_state()` is a small JSON-able dict, and `set_state` of it gives the next batch,
        whichever rows of it are taken: where a window begins is known only once all before it
        are cut, so every process reads and tokenises all documents.

        Args:
            rows: of each batch, in rising order, those that this process wants; None for all.
        """
        count = len(self._texts) - self._held_out
        documents = Documents(self._texts, 0, count, self.tokenizer, self.seed)
        options = grain.ReadOptions(num_threads=4, prefetch_buffer_size=256)
        ahead = grain.MapDataset.source(documents).to_iter_dataset(options)
        return iter(Packed(ahead, self.batch, self.context + 1, self._end, rows))

    def valid(self, max_batches: int | None = None) -> "Validation | HeldOut":
        """Batches of held-out documents, always the same.

        Args:
            max_batches: no more than these, of documents from all over, tokenised here and now;
                None takes all, a batch at a time, and tokenises anew whenever it is gone through.
        """
        if max_batches is None:
            return HeldOut(self)
        order = permute(
            np.arange(self._held_out, dtype=np.uint64), max(1, self._held_out), epoch_keys(0, 0)
        )
        needed = max_batches * self.batch * self.context + 1
        parts, have = [np.zeros(0, np.int32)], 0
        for ids in self.held_out(map(int, order)):
            if have >= needed:
                break
            parts.append(ids)
            have += len(ids)
        tokens = np.concatenate(parts)[:needed]
        return Validation(tokens, self.context, self.batch, max_batches, end_of_text=self._end)

    def held_out(self, order: Iterable[int]) -> Iterator[np.ndarray]:
        """Tokens of held-out documents with their separators, int32 [n], as they are asked for."""
        first = len(self._texts) - self._held_out
        for index in order:
            ids = self.tokenizer.encode(self._texts[first + int(index)])
            if len(ids):
                yield np.concatenate([ids, separator(self.tokenizer)])

    @property
    def _end(self) -> int | None:
        return self.tokenizer.end_of_text if self.segments else None

    @cached_property
    def _texts(self) -> Texts:
        return texts(self.source)

    @property
    def _held_out(self) -> int:
        """Documents at the end that are never trained on."""
        share = int(len(self._texts) * self.valid_fraction)
        return max(1, share) if self.valid_fraction else 0

    @cached_property
    def _mean(self) -> float:
        """Tokens of a document."""
        places = np.linspace(0, len(self._texts) - 1, min(_SAMPLE, len(self._texts))).astype(int)
        lengths = [len(self.tokenizer.encode(self._texts[int(i)])) for i in places]
        return float(np.mean(lengths)) + len(separator(self.tokenizer))


class HeldOut(Iterable[Batch]):
    """All held-out documents in their order, as batches; memory holds one of them at a time.

    The windows are those of `Validation` over the joined tokens, incomplete batch included.
    """

    def __init__(self, data: Streamed):
        self._data = data

    def __iter__(self) -> Iterator[Batch]:
        data, kept = self._data, np.zeros(0, np.int32)
        size = data.batch * data.context
        sizes = (data.context, data.batch, None, data._end)
        for ids in data.held_out(range(data._held_out)):
            kept = np.concatenate([kept, ids])
            whole = (len(kept) - 1) // size  # its last target begins what follows
            if whole > 0:
                yield from Validation(kept[: whole * size + 1], *sizes)
                kept = kept[whole * size :]
        yield from Validation(kept, *sizes)


def open_streamed(source: Source, tokenizer: Tokenizer | None, *sizes: Any) -> Streamed:
    """Documents that are tokenised while one trains; `sizes` are the other fields of `Streamed`.

    Raises:
        DataProblem: (usage) there is no tokeniser; (corrupt) there is no text to train on.
    """
    if tokenizer is None:
        raise DataProblem(
            "a character vocabulary must be counted over the whole text first",
            where=source.spec,
            fix=f"use gpt2, or run `jaxmodels data prepare {source.spec} FOLDER --tokenizer chars`"
            " and give bin:FOLDER",
            exit_code=USAGE,
        )
    count = source.records["examples"]
    data = Streamed(source, tokenizer, *sizes) if count else None
    if not data or data._mean <= len(separator(tokenizer)):
        raise DataProblem("the documents are empty", where=source.spec, fix="check the field")
    if data.valid_fraction < 1 and count == data._held_out:
        raise DataProblem(
            f"there are too few documents ({count}) to hold some of them out",
            where=source.spec,
            fix="use a smaller --valid-fraction, 0 for none",
        )
    return data
