"""Validation batches of a mixture: held-out windows of its sources, by their shares."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from data_pipelines.errors import DataProblem
from data_pipelines.loader import Batch, Validation
from data_pipelines.streamed_dataset import StreamedDataset

_STREAMED = 10_000  # held-out windows of a streamed source, at most


def cumulative(shares: Sequence[float]) -> np.ndarray:
    """Cumulative shares from 0 to 1, both exact, so that counts add up to the batch."""
    return np.concatenate([[0.0], np.cumsum(shares)[:-1], [1.0]])


class MixtureValidation(Sequence[Batch]):
    """Batches of held-out windows, of each source by its share; see `MixtureDataset.valid`.

    A source with fewer windows than its share repeats them.
    """

    def __init__(self, data: Any, max_batches: int | None = None):
        self._batch = data.batch
        most = max_batches or 0
        available = [_windows_of(source) if data.valid_fraction else 0 for source in data.sources]
        rows = sum(available) if max_batches is None else min(most * data.batch, sum(available))
        if rows > data.batch:  # an incomplete batch would be compiled separately
            rows -= rows % data.batch
        borders = np.floor(cumulative(data.shares) * rows + 0.5).astype(np.int64)
        counts = borders[1:] - borders[:-1]
        self._windows: list[Validation] = [
            source.valid(int(count)) for source, count in zip(data.sources, counts, strict=True)
        ]
        # Evenly mixed: window k of a source comes after (k + 1/2) / count of all rows.
        for source, count, windows in zip(data.sources, counts, self._windows, strict=True):
            if count and not len(windows):
                raise DataProblem(
                    f"too little is held out for a context of {data.context:,}",
                    where=source.spec,
                    fix="give a larger --valid-fraction, 0 for none, or more text",
                )
        places = np.concatenate([np.arange(count) for count in counts])
        sources = np.repeat(np.arange(len(counts)), counts)
        order = np.argsort((places + 0.5) / counts[sources], kind="stable")
        self._sources, self._places = sources[order], places[order]

    def __len__(self) -> int:
        return -(-len(self._sources) // self._batch)

    def __getitem__(self, i: Any) -> Any:
        """Batch i: `tokens` int32 [b, context + 1]; a slice gives a list of batches."""
        if isinstance(i, slice):
            return [self[j] for j in range(*i.indices(len(self)))]
        first = range(len(self))[i] * self._batch
        rows = slice(first, first + self._batch)
        found = []
        for source, place in zip(self._sources[rows], self._places[rows], strict=True):
            windows = self._windows[source]
            found.append(windows[int(place) % len(windows)])
        return {name: np.concatenate([row[name] for row in found]) for name in found[0]}


def _windows_of(source: Any) -> int:
    """Held-out windows; estimated for streamed documents, and limited."""
    count = max(0, source.valid_tokens - 1) // source.context
    return min(max(1, count), _STREAMED) if isinstance(source, StreamedDataset) else count
