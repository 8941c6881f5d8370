"""Batches of windows over a memory-mapped token file, in an order that costs no memory."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import grain
import numpy as np
from jaxtyping import Int, Int32, UInt64

from data_pipelines.errors import MISMATCH, USAGE, DataProblem

Batch = dict[str, Int32[np.ndarray, "b t"]]
Rows = Int[np.ndarray, "r"] | None

_ROUNDS = 4
ENDLESS = 2**62
"""Length of an endless sequence, with room for arithmetic on positions."""


class Windows:
    """Endless random-access batches for `grain.MapDataset.source`.

    Every token starts a window of context + 1 tokens (a stride of one, as upstream). An epoch
    takes each window once, in an order drawn from (seed, epoch); the next epoch follows without a
    gap, so a batch may span two. Batch i depends on (seed, i) only: resuming needs only i.

    Args:
        tokens: the token stream, one-dimensional, of any integer type; may be memory-mapped.
        context: inputs in a window.
        batch: windows in a batch.
        seed: draws the order.
        rows: which rows of each batch to yield, ascending; None yields all.
        end_of_text: add `segments`, counted at this id; None gives tokens only.
        vocab_size: refuse a batch with a token outside it; None where all tokens were checked.

    Raises:
        DataProblem: (usage) no window fits, or a size is not positive.
    """

    def __init__(
        self,
        tokens: np.ndarray,
        context: int,
        batch: int,
        seed: int = 0,
        rows: Rows = None,
        end_of_text: int | None = None,
        vocab_size: int | None = None,
    ):
        if context < 1 or batch < 1 or len(tokens) <= context or seed < 0:
            raise DataProblem(
                "the loader needs a positive context and batch, and a seed that is not negative",
                why=f"context {context}, batch {batch}, seed {seed}, {len(tokens)} tokens",
                exit_code=USAGE,
            )
        # np.memmap runs Python code on every slice; the plain view of the same memory does not.
        windows = np.lib.stride_tricks.sliding_window_view(np.asarray(tokens), context + 1)
        self._windows, self._seed, self._batch = windows, seed, batch
        self._rows = np.arange(batch, dtype=np.uint64) if rows is None else rows.astype(np.uint64)
        self._end, self._vocab_size = end_of_text, vocab_size

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, i: int) -> Batch:
        """Batch i: `tokens` int32 [rows, context + 1], and `segments` if wanted."""
        return self.at(np.uint64(int(i) * self._batch) + self._rows)

    def at(self, positions: UInt64[np.ndarray, "r"]) -> Batch:
        """The windows at these ascending positions of the endless order."""
        starts = shuffled(positions, len(self._windows), self._seed)
        return batch_of(_checked(self._windows[starts], self._vocab_size), self._end)


def _checked(tokens: np.ndarray, vocab_size: int | None) -> Int32[np.ndarray, "b t"]:
    if vocab_size is not None and tokens.size and (largest := int(tokens.max())) >= vocab_size:
        raise DataProblem(
            f"token {largest} does not fit a vocabulary of {vocab_size}",
            why="it came up in a batch; so large a file is not checked before training",
            fix="give the tokeniser that the file was made with, or its dtype: ?dtype=uint32",
            exit_code=MISMATCH,
        )
    return tokens.astype(np.int32)


def shuffled(positions: UInt64[np.ndarray, "r"], n: int, seed: int) -> UInt64[np.ndarray, "r"]:
    """The values at these ascending positions of the endless order: shuffled epochs of range(n)."""
    epochs, inside = np.divmod(positions, np.uint64(n))
    drawn = np.empty_like(positions)
    for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
        here = epochs == epoch
        drawn[here] = permute(inside[here], n, epoch_keys(seed, epoch))
    return drawn


def batch_of(tokens: Int32[np.ndarray, "b t"], end_of_text: int | None) -> Batch:
    """A batch, with `segments` if the id that ends a document is given.

    `segments` int32 [b, t] numbers the documents within a window from 0 on; the end of a text
    belongs to its document. Attention masked by it sees no other document.
    """
    if end_of_text is None:
        return {"tokens": tokens}
    segments = np.zeros_like(tokens)
    np.cumsum(tokens[:, :-1] == end_of_text, axis=1, out=segments[:, 1:])
    return {"tokens": tokens, "segments": segments}


def permute(
    x: UInt64[np.ndarray, "m"], n: int, keys: UInt64[np.ndarray, "r 2"]
) -> UInt64[np.ndarray, "m"]:
    """The images of x under a permutation of range(n) drawn by `keys`.

    Multiplying by an odd number, adding, and xor with a number's own high bits are bijections of
    b-bit numbers, and so is their composition. With 2^b ≥ n, a result outside range(n) is mapped
    again until it falls inside (cycle walking), which is a bijection too.
    """
    bits = max(1, (n - 1).bit_length())
    y = _mix(x, bits, keys)
    while (outside := y >= n).any():
        y[outside] = _mix(y[outside], bits, keys)
    return y


def _mix(x: np.ndarray, bits: int, keys: np.ndarray) -> np.ndarray:
    mask, half = np.uint64(2**bits - 1), np.uint64((bits + 1) // 2)
    for factor, offset in keys:
        x = (x * factor + offset) & mask
        x = x ^ (x >> half)
    return x


@lru_cache(maxsize=16)
def epoch_keys(seed: int, epoch: int) -> np.ndarray:
    """The keys of an epoch's order in `permute`, uint64 [rounds, 2].

    An odd factor and an offset for each round; the same on every machine and version.
    """
    drawn = np.random.SeedSequence([seed, epoch]).generate_state(2 * _ROUNDS, np.uint64)
    keys = drawn.reshape(_ROUNDS, 2)
    keys[:, 0] |= np.uint64(1)
    return keys


def batches(
    tokens: np.ndarray,
    *,
    context: int,
    batch: int,
    seed: int = 0,
    rows: Rows = None,
    end_of_text: int | None = None,
    vocab_size: int | None = None,
    threads: int = 2,
    ahead: int = 8,
) -> grain.DatasetIterator:
    """Endless shuffled batches, prefetched by threads; further arguments as `Windows`.

    `get_state()` is a small JSON-able dict; `set_state` of it, in any process, continues with the
    next batch.

    Args:
        threads: readers.
        ahead: batches made in advance.
    """
    return read_ahead(
        Windows(tokens, context, batch, seed, rows, end_of_text, vocab_size), threads, ahead
    )


def read_ahead(windows: Windows, threads: int = 2, ahead: int = 8) -> grain.DatasetIterator:
    """The batches of `windows`, as `batches`."""
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
    return iter(grain.MapDataset.source(windows).to_iter_dataset(options))


def evenly_spaced(count: int, batch: int, max_batches: int | None) -> list[int]:
    """The numbers of the batches to take of `count` held-out rows; see `Validation`."""
    every, full = -(-count // batch), count // batch
    available = every if max_batches is None or every <= max_batches else full or every
    wanted = available if max_batches is None else min(available, max(0, max_batches))
    return [i * available // wanted for i in range(wanted)]


class Validation(Sequence[Batch]):
    """Every target once, in fixed order: windows that overlap by one token.

    Tokens after the last full window are not predicted. The last batch may be incomplete. Where
    there are more than `max_batches`, only full ones are taken, if there are any: they have one
    shape and need no second compilation.

    Args:
        tokens: the held-out tokens.
        context: inputs in a window.
        batch: windows in a batch.
        max_batches: an upper limit, evenly spread over the tokens; None takes all.
        end_of_text: add `segments`, counted at this id; None gives tokens only.
        vocab_size: as `Windows`.
    """

    def __init__(
        self,
        tokens: np.ndarray,
        context: int,
        batch: int,
        max_batches: int | None = None,
        end_of_text: int | None = None,
        vocab_size: int | None = None,
    ):
        self._tokens, self._end = np.asarray(tokens), end_of_text
        self._context, self._batch, self._vocab_size = context, batch, vocab_size
        self._windows = max(0, (len(tokens) - 1) // context)
        self._chosen = evenly_spaced(self._windows, batch, max_batches)

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, i: Any) -> Any:
        """Batch i: `tokens` int32 [b, context + 1]; a slice gives a list of batches."""
        if isinstance(i, slice):
            return [self[j] for j in range(*i.indices(len(self)))]
        first = self._chosen[i] * self._batch
        rows = np.arange(first, min(first + self._batch, self._windows))
        places = rows[:, None] * self._context + np.arange(self._context + 1)
        return batch_of(_checked(self._tokens[places], self._vocab_size), self._end)
