"""Batches of documents that are tokenised during training: nothing is prepared or stored.

Every process cuts all windows and takes its rows: where a window begins is known only once those
before it are cut, and a position then holds for any number of processes.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import grain
import numpy as np

from data_pipelines.dataset import Dataset
from data_pipelines.documents import Documents, PackedDocuments, characters_of
from data_pipelines.encoding import separator
from data_pipelines.errors import DataProblem
from data_pipelines.loader import Batch, Rows, Validation, epoch_keys, permute
from data_pipelines.reading import Progress, Source
from data_pipelines.tfds import Texts, texts
from data_pipelines.tokenizers import Tokenizer, count_unknown, unknown_name

_SAMPLE = 64  # documents from which token counts are estimated
_AHEAD = 256  # documents tokenised ahead of time

VOCAB_DOCUMENTS = 1000
"""Documents whose characters are the vocabulary by default. Source: seed 000."""


@dataclass(frozen=True, eq=False, kw_only=True)
class StreamedDataset(Dataset):
    """Documents that are tokenised when they are needed; the last of them are held out."""

    source: Source
    tokenizer: Tokenizer
    counted: int = 0
    """Documents that the vocabulary was just counted over; 0 where it was given."""

    @property
    def notes(self) -> list[str]:
        """What the user should know, a sentence each."""
        held_out = f"{self.valid_documents:,} of {len(self._texts):,} documents are held out"
        notes = [f"{held_out}; the numbers of tokens are estimates from {_SAMPLE} of them"]
        if self.counted:
            first = f"the vocabulary is that of the first {self.counted:,} documents"
            share, name = f"{self._sample[1]:.2%}", unknown_name(self.tokenizer)
            notes.append(
                f"{first}; {share} of the characters in {_SAMPLE} documents from all over "
                f"are {name}"
            )
        return notes

    @property
    def valid_tokens(self) -> int:
        """Held-out tokens, estimated."""
        return int(self.valid_documents * self._mean)

    @property
    def train_tokens(self) -> int:
        """Tokens to train on, estimated."""
        return int((len(self._texts) - self.valid_documents) * self._mean)

    @property
    def valid_documents(self) -> int:
        """Documents at the end that are never trained on."""
        share = int(len(self._texts) * self.valid_fraction)
        return max(1, share) if self.valid_fraction else 0

    @property
    def is_empty(self) -> bool:
        """Whether the sampled documents have no tokens."""
        return not self._sample[0]

    @property
    def source_identity(self) -> dict[str, Any]:
        """The dataset, its version, split and field."""
        return self.source.records

    def train(self, rows: Rows = None) -> grain.DatasetIterator:
        """Endless batches, `tokens` int32 [rows, context + 1]; see `Dataset.train`.

        With `segments`, these too, of the same shape.
        """
        count = len(self._texts) - self.valid_documents
        documents = Documents(self._texts, 0, count, self.tokenizer, self.seed)
        options = grain.ReadOptions(num_threads=4, prefetch_buffer_size=_AHEAD)
        ahead = grain.MapDataset.source(documents).to_iter_dataset(options)
        return iter(PackedDocuments(ahead, self.batch, self.context + 1, self.end_of_text, rows))

    def valid(self, max_batches: int | None = None) -> "Validation | StreamedValidation":
        """Batches of held-out documents, the same at every call.

        Args:
            max_batches: an upper limit, of documents from all over, tokenised at once; None takes
                all, a batch at a time, and tokenises them again in each iteration.
        """
        if max_batches is None:
            return StreamedValidation(self)
        order = permute(
            np.arange(self.valid_documents, dtype=np.uint64),
            max(1, self.valid_documents),
            epoch_keys(0, 0),
        )
        needed = max_batches * self.batch * self.context + 1
        parts, have = [np.zeros(0, np.int32)], 0
        for ids in self.held_out(map(int, order)):
            if have >= needed:
                break
            parts.append(ids)
            have += len(ids)
        tokens = np.concatenate(parts)[:needed]
        return Validation(tokens, self.context, self.batch, max_batches, self.end_of_text)

    def held_out(self, order: Iterable[int]) -> Iterator[np.ndarray]:
        """Tokens of held-out documents with their separators, int32 [n], made lazily."""
        first = len(self._texts) - self.valid_documents
        for index in order:
            ids = self.tokenizer.encode(self._texts[first + int(index)])
            if len(ids):
                yield np.concatenate([ids, separator(self.tokenizer)])

    @cached_property
    def _texts(self) -> Texts:
        return texts(self.source)

    @property
    def _mean(self) -> float:
        """Tokens of a document."""
        return self._sample[0] + len(separator(self.tokenizer))

    @cached_property
    def _sample(self) -> tuple[float, float]:
        """Mean tokens of a document without its separator, and the share that is unknown."""
        places = np.linspace(0, len(self._texts) - 1, min(_SAMPLE, len(self._texts))).astype(int)
        lengths, unknown = [], 0
        for i in places:
            ids = self.tokenizer.encode(text := self._texts[int(i)])
            lengths.append(len(ids))
            unknown += count_unknown(self.tokenizer, text, ids)
        return float(np.mean(lengths)), unknown / max(1, sum(lengths))


class StreamedValidation(Iterable[Batch]):
    """Batches of all held-out documents in order; memory holds one document at a time.

    The windows are those of `Validation` over the concatenated tokens, last incomplete batch
    included.
    """

    def __init__(self, data: StreamedDataset):
        self._data = data

    def __iter__(self) -> Iterator[Batch]:
        data, pending = self._data, np.zeros(0, np.int32)
        size = data.batch * data.context
        sizes = (data.context, data.batch, None, data.end_of_text)
        for ids in data.held_out(range(data.valid_documents)):
            pending = np.concatenate([pending, ids])
            full = (len(pending) - 1) // size  # the last target is the first input of what follows
            if full > 0:
                yield from Validation(pending[: full * size + 1], *sizes)
                pending = pending[full * size :]
        yield from Validation(pending, *sizes)


def open_streamed(
    source: Source,
    tokenizer: Tokenizer | None,
    *,
    vocab_documents: int = VOCAB_DOCUMENTS,
    min_freq: int = 1,
    progress: Progress | None = None,
    **sizes: Any,
) -> StreamedDataset:
    """Documents that are tokenised during training.

    Args:
        source: the documents.
        tokenizer: None takes the characters of the first documents.
        vocab_documents: how many of them, at most.
        min_freq: a character must occur this often in them.
        progress: called as (stage, bytes done, bytes in all).
        sizes: context, batch, seed, valid_fraction and segments.

    Raises:
        DataProblem: (corrupt) there is no text to train on.
    """
    count = source.records["examples"]
    counted = min(vocab_documents, count) if tokenizer is None else 0
    if tokenizer is None and count:
        tokenizer = characters_of(source, counted, min_freq, progress)
    if tokenizer and count:
        data = StreamedDataset(
            spec=source.spec, tokenizer=tokenizer, source=source, counted=counted, **sizes
        )
    if not count or data.is_empty:
        raise DataProblem("the documents are empty", where=source.spec, fix="check the field")
    if data.valid_fraction < 1 and count == data.valid_documents:
        raise DataProblem(
            f"there are too few documents ({count}) to hold some of them out",
            where=source.spec,
            fix="use a smaller --valid-fraction, 0 for none",
        )
    return data
