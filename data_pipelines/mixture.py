"""Batches whose rows are drawn from several texts, by weight."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Protocol

import grain
import numpy as np
from jaxtyping import Int

from data_pipelines.loader import Batch, Rows, Windows, epoch_keys, permute
from data_pipelines.mixture_valid import HeldOutMixture, upto
from data_pipelines.streaming import Streamed
from data_pipelines.tokenizers import Tokenizer

_AHEAD = 8  # batches that a thread makes before their turn


@dataclass(frozen=True, eq=False)
class Mixture:
    """As `Data`, for several texts: each row of a batch is a window of one of them.

    In every batch the rows of a source are its share of them, rounded up or down at random, so
    that its expectation is the share. A source that has been gone through begins anew.
    """

    spec: str
    sources: tuple[Any, ...]
    """Each is a `Data` or a `Streamed`, of batches of one row."""
    shares: tuple[float, ...]
    """Of each source, what part of the rows is drawn from it; their sum is 1."""
    tokenizer: Tokenizer | None
    """That of all sources; None for raw token files."""
    context: int
    batch: int
    seed: int
    valid_fraction: float
    segments: bool = False

    @property
    def vocab_size(self) -> int | None:
        """Size of the vocabulary; None when there is none."""
        return self.tokenizer.vocab_size if self.tokenizer else None

    @property
    def vocab_needed(self) -> int:
        """Rows that an embedding needs."""
        return max(source.vocab_needed for source in self.sources)

    @property
    def notes(self) -> list[str]:
        """What the user should know, a sentence each."""
        told = []
        for source, share in zip(self.sources, self.shares, strict=True):
            told.append(f"{share:.2%} of rows from {source.spec}: {source.train_tokens:,} tokens")
            told += [f"{source.spec}: {note}" for note in source.notes]
        return told

    @property
    def valid_tokens(self) -> int:
        """Tokens that are held out, of all sources."""
        return sum(source.valid_tokens for source in self.sources)

    @property
    def train_tokens(self) -> int:
        """Tokens to train on, of all sources."""
        return sum(source.train_tokens for source in self.sources)

    @property
    def identity(self) -> dict[str, Any]:
        """JSON-able; when it is equal, a resumed run sees the batches it would have seen."""
        common = {
            "tokenizer": self.tokenizer and self.tokenizer.digest,
            "vocab_size": self.vocab_size,
            "valid_fraction": self.valid_fraction,
            "seed": self.seed,
            "context": self.context,
            "batch": self.batch,
        }
        own = {
            f"source {i}": {k: v for k, v in source.identity.items() if k not in common}
            for i, source in enumerate(self.sources, 1)
        }
        return {**own, "shares": list(self.shares), **common}

    def train(self, rows: Rows = None) -> "Mixed":
        """Endless batches, `tokens` int32 [rows, context + 1]; `segments` if wanted.

        `get_state()` is a small JSON-able dict, and `set_state` of it gives the next batch,
        whichever rows of it are taken.

        Args:
            rows: of each batch, in rising order, those that this process wants; None for all.
        """
        return Mixed(self, np.arange(self.batch) if rows is None else rows)

    def valid(self, max_batches: int | None = None) -> HeldOutMixture:
        """Batches of held-out windows, always the same, of each source by its share.

        Args:
            max_batches: at most so many; None takes as many rows as all sources have windows.
        """
        return HeldOutMixture(self, max_batches)

    def sources_of(self, number: int) -> Int[np.ndarray, "b"]:
        """The source of each row of a batch: depends on the seed and the number, nothing else."""
        words = np.random.SeedSequence([self.seed, number, 1]).generate_state(1, np.uint64)
        start = int(words[0] >> np.uint64(11)) / 2**53
        borders = np.floor(upto(self.shares) * self.batch + start).astype(np.int64)
        drawn = np.repeat(np.arange(len(self.shares)), np.diff(borders))
        places = np.arange(self.batch, dtype=np.uint64)
        return drawn[permute(places, self.batch, epoch_keys(self.seed, number)).astype(np.int64)]


class _Position(Protocol):
    """How far a source has been read."""

    def take(self, count: int, wanted: np.ndarray) -> Batch:
        """Goes on by `count` windows; gives those of them that are `wanted`, nothing if none is."""

    def get_state(self) -> Any:
        """Itself, JSON-able."""

    def set_state(self, state: Any) -> None:
        """Goes there."""


class _Stored:
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


class _Flowing:
    """Position in documents that are tokenised meanwhile; all windows are cut."""

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


class Mixed(Iterator[Batch]):
    """The batches of `Mixture.train`, made ahead by a thread.

    Its state is the number of the next batch, and the position in each source.
    """

    def __init__(self, data: Mixture, rows: np.ndarray):
        self._data, self._rows, self._next = data, rows, 0
        self._sources: list[_Position] = [
            _Flowing(source.train()) if isinstance(source, Streamed) else _Stored(source.windows())
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
        """Goes on where `get_state` was called."""
        self.close()
        self._next = int(state["batch"])
        for source, position in zip(self._sources, state["sources"], strict=True):
            source.set_state(position)
        self._state = self._position()

    def close(self) -> None:
        """Ends what is being made."""
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
