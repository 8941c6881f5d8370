"""Batches whose rows are drawn from several texts, by weight.

Rows are drawn by systematic sampling: a batch is cut at the cumulative shares, shifted by one
number that seed and batch draw, then permuted. A count is its expectation rounded up or down, so
shares are exact on average and hardly vary; those of independent draws would.
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Protocol

import grain
import numpy as np
from jaxtyping import Int

from data_pipelines.dataset import Dataset
from data_pipelines.loader import Batch, Rows, Windows, epoch_keys, permute
from data_pipelines.mixture_validation import MixtureValidation, cumulative, validation_parts
from data_pipelines.streamed_dataset import StreamedDataset

_AHEAD = 8  # batches that a thread makes in advance


@dataclass(frozen=True, eq=False, kw_only=True)
class MixtureDataset(Dataset):
    """Several texts; each row of a batch is a window of one of them.

    In every batch the number of rows of a source is its share, rounded up or down at random, so
    that its expectation is the share. A source that is exhausted starts over.
    """

    sources: tuple[Any, ...]
    """Each is a `TokenDataset` or a `StreamedDataset`, of batches of one row."""
    shares: tuple[float, ...]
    """Share of the rows that is drawn from each source; their sum is 1."""

    @property
    def vocab_needed(self) -> int:
        """Rows that an embedding needs."""
        return max(source.vocab_needed for source in self.sources)

    @property
    def notes(self) -> list[str]:
        """What the user should know, a sentence each."""
        notes = []
        for source, share in zip(self.sources, self.shares, strict=True):
            if len(self.sources) > 1:  # beside images there may be one text
                tokens = f"{source.train_tokens:,} tokens"
                notes.append(f"{share:.2%} of rows from {source.spec}: {tokens}")
            notes += [f"{source.spec}: {note}" for note in source.notes]
        return notes

    @property
    def valid_tokens(self) -> int:
        """Held-out tokens of all sources."""
        return sum(source.valid_tokens for source in self.sources)

    @property
    def train_tokens(self) -> int:
        """Tokens to train on, of all sources."""
        return sum(source.train_tokens for source in self.sources)

    @property
    def source_identity(self) -> dict[str, Any]:
        """The identity of each source, and the shares."""
        shared = self.batch_identity
        sources = {
            f"source {i}": {k: v for k, v in source.identity.items() if k not in shared}
            for i, source in enumerate(self.sources, 1)
        }
        return {**sources, "shares": list(self.shares)}

    def train(self, rows: Rows = None) -> "MixtureIterator":
        """Endless batches, `tokens` int32 [rows, context + 1]; see `Dataset.train`.

        With `segments`, these too, of the same shape.
        """
        return MixtureIterator(self, np.arange(self.batch) if rows is None else rows)

    def valid(self, max_batches: int | None = None) -> MixtureValidation:
        """Batches of held-out windows, the same at every call; see `validation_parts`."""
        return MixtureValidation(validation_parts(self, max_batches))

    def sources_of(self, number: int) -> Int[np.ndarray, "b"]:
        """The source of each row of batch `number`, drawn by it and the seed alone."""
        words = np.random.SeedSequence([self.seed, number, 1]).generate_state(1, np.uint64)
        start = int(words[0] >> np.uint64(11)) / 2**53
        borders = np.floor(cumulative(self.shares) * self.batch + start).astype(np.int64)
        drawn = np.repeat(np.arange(len(self.shares)), np.diff(borders))
        places = np.arange(self.batch, dtype=np.uint64)
        return drawn[permute(places, self.batch, epoch_keys(self.seed, number)).astype(np.int64)]


class _Position(Protocol):
    """How far a source has been read."""

    def take(self, count: int, wanted: np.ndarray) -> Batch:
        """Advances by `count` windows; returns those that are `wanted`, {} if none is."""

    def get_state(self) -> Any:
        """The position, JSON-able."""

    def set_state(self, state: Any) -> None:
        """Restores it."""


class _FilePosition:
    """Position in a token file."""

    def __init__(self, windows: Windows):
        self._windows, self._next = windows, 0

    def take(self, count: int, wanted: np.ndarray) -> Batch:
        at, self._next = self._next, self._next + count
        return self._windows.at(np.uint64(at) + wanted.astype(np.uint64)) if len(wanted) else {}

    def get_state(self) -> Any:
        return self._next

    def set_state(self, state: Any) -> None:
        self._next = int(state)


class _StreamPosition:
    """Position in streamed documents; all windows are cut, wanted or not."""

    def __init__(self, batches: grain.DatasetIterator):
        self._batches = batches

    def take(self, count: int, wanted: np.ndarray) -> Batch:
        cut = [next(self._batches) for _ in range(count)]
        names = cut[0] if len(wanted) else ()
        return {name: np.concatenate([cut[i][name] for i in wanted]) for name in names}

    def get_state(self) -> Any:
        return self._batches.get_state()

    def set_state(self, state: Any) -> None:
        self._batches.set_state(state)


class MixtureIterator(Iterator[Batch]):
    """The batches of `MixtureDataset.train`, made in advance by a thread.

    Its state is the number of the next batch, and the position in each source.
    """

    def __init__(self, data: MixtureDataset, rows: np.ndarray):
        self._data, self._rows, self._next = data, rows, 0
        self._sources: list[_Position] = [
            _StreamPosition(source.train())
            if isinstance(source, StreamedDataset)
            else _FilePosition(source.windows())
            for source in data.sources
        ]
        self._thread, self._ahead = ThreadPoolExecutor(1), deque[Future[tuple[Batch, Any]]]()
        self._state = self._position()

    def __next__(self) -> Batch:
        while len(self._ahead) <= _AHEAD:
            self._ahead.append(self._thread.submit(self._make))
        batch, self._state = self._ahead.popleft().result()
        return batch

    def get_state(self) -> dict[str, Any]:
        """The position after the last batch, JSON-able."""
        return self._state

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues from where `get_state` was called."""
        self.close()
        self._next = int(state["batch"])
        for source, position in zip(self._sources, state["sources"], strict=True):
            source.set_state(position)
        self._state = self._position()

    def close(self) -> None:
        """Cancels the batches that are being made."""
        while self._ahead:
            future = self._ahead.pop()
            if not future.cancel():
                wait([future])

    def _make(self) -> tuple[Batch, dict[str, Any]]:
        drawn = self._data.sources_of(self._next)
        self._next += 1
        ours = drawn[self._rows]
        batch: Batch = {}
        for number, source in enumerate(self._sources):
            places = np.flatnonzero(drawn == number)
            taken = source.take(len(places), np.flatnonzero(np.isin(places, self._rows)))
            for name, windows in taken.items():
                shape = (len(ours), windows.shape[1])
                batch.setdefault(name, np.empty(shape, np.int32))[ours == number] = windows
        return batch, self._position()

    def _position(self) -> dict[str, Any]:
        return {"batch": self._next, "sources": [deepcopy(s.get_state()) for s in self._sources]}
