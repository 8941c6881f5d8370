"""Validation batches of a mixture, those of one source after those of another."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from data_pipelines.errors import DataProblem
from data_pipelines.loader import Batch
from data_pipelines.streamed_dataset import StreamedDataset

_STREAMED = 10_000  # held-out windows of a streamed source, at most


def cumulative(shares: Sequence[float]) -> np.ndarray:
    """Cumulative shares from 0 to 1, both exact, so that counts add up to the batch."""
    return np.concatenate([[0.0], np.cumsum(shares)[:-1], [1.0]])


class Part(NamedTuple):
    """Held-out batches of one source."""

    name: str
    """The source's spec; with a number where two sources have one."""
    share: float
    """The share of the mixture that is drawn from it; those of all parts add up to 1."""
    batches: Sequence[Batch]


class MixtureValidation(Sequence[Batch]):
    """The batches of `parts`, one part after the other.

    No batch has rows of two sources, so that each source can be measured. The numbers of batches
    follow the shares only roughly: a mean over the mixture is that of the parts' means, weighted
    by `share`.
    """

    def __init__(self, parts: Sequence[Part]):
        self.parts = tuple(parts)

    def __len__(self) -> int:
        return sum(len(part.batches) for part in self.parts)

    def __getitem__(self, i: Any) -> Any:
        """Batch i, as its source gives it; a slice gives a list of batches."""
        if isinstance(i, slice):
            return [self[j] for j in range(*i.indices(len(self)))]
        i = range(len(self))[i]
        for part in self.parts:
            if i < len(part.batches):
                return part.batches[i]
            i -= len(part.batches)
        raise AssertionError


def validation_parts(data: Any, max_batches: int | None = None) -> list[Part]:
    """The held-out batches of each source of a `MixtureDataset`; none if nothing is held out.

    Args:
        data: the mixture.
        max_batches: an upper limit, divided by the shares, with at least one batch of each source;
            None takes all windows.

    Raises:
        DataProblem: a source has no held-out window.
    """
    if not data.valid_fraction or max_batches == 0:
        return []
    parts: list[Part] = []
    for source, share in zip(data.sources, data.shares, strict=True):
        count = max_batches and max(1, round(max_batches * share))
        if count is None and isinstance(source, StreamedDataset):
            count = -(-_STREAMED // data.batch)
        batches = replace(source, batch=data.batch).valid(count)
        if not len(batches):
            raise DataProblem(
                f"too little is held out for a context of {data.context:,}",
                where=source.spec,
                fix="give a larger --valid-fraction, 0 for none, or more text",
            )
        parts.append(Part(_unused(source.spec, parts), share, batches))
    return parts


def _unused(spec: str, parts: Sequence[Part]) -> str:
    names, number = {part.name for part in parts}, 1
    name = spec
    while name in names:
        number += 1
        name = f"{spec} ({number})"
    return name
