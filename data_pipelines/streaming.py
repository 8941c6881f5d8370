"""Batches from documents that are tokenised while one trains: nothing is prepared, nothing kept."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import grain
import numpy as np

from data_pipelines.documents import Documents, PackedDocuments, characters_of
from data_pipelines.encoding import separator
from data_pipelines.errors import DataProblem
from data_pipelines.loader import Batch, Rows, Validation, epoch_keys, permute
from data_pipelines.reading import Progress, Source
from data_pipelines.tfds import Texts, texts
from data_pipelines.tokenizers import Tokenizer, count_unknown, unknown_name

_SAMPLE = 64  # documents that tell how long the others are
_AHEAD = 256  # documents that are tokenised before their turn

VOCAB_DOCUMENTS = 1000
"""Documents whose characters are the vocabulary, unless told otherwise. Source: seed 000."""


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
    counted: int = 0
    """Documents that the vocabulary was counted over just now; 0 where it was given."""

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
        notes = [f"{held_out}; the numbers of tokens are estimates from {_SAMPLE} of them"]
        if self.counted:
            first = f"the vocabulary is that of the first {self.counted:,} documents"
            share, name = f"{self._sample[1]:.2%}", unknown_name(self.tokenizer)
            notes.append(
                f"{first}; {share} of the characters of {_SAMPLE} from all over are {name}"
            )
        return notes

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
        options = grain.ReadOptions(num_threads=4, prefetch_buffer_size=_AHEAD)
        ahead = grain.MapDataset.source(documents).to_iter_dataset(options)
        return iter(PackedDocuments(ahead, self.batch, self.context + 1, self._end, rows))

    def valid(self, max_batches: int | None = None) -> "Validation | HeldOutDocuments":
        """Batches of held-out documents, always the same.

        Args:
            max_batches: no more than these, of documents from all over, tokenised here and now;
                None takes all, a batch at a time, and tokenises anew whenever it is gone through.
        """
        if max_batches is None:
            return HeldOutDocuments(self)
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

    @property
    def _mean(self) -> float:
        """Tokens of a document."""
        return self._sample[0] + len(separator(self.tokenizer))

    @cached_property
    def _sample(self) -> tuple[float, float]:
        """Tokens of a document without its end, and the share of them that are unknown."""
        places = np.linspace(0, len(self._texts) - 1, min(_SAMPLE, len(self._texts))).astype(int)
        lengths, unknown = [], 0
        for i in places:
            ids = self.tokenizer.encode(text := self._texts[int(i)])
            lengths.append(len(ids))
            unknown += count_unknown(self.tokenizer, text, ids)
        return float(np.mean(lengths)), unknown / max(1, sum(lengths))


class HeldOutDocuments(Iterable[Batch]):
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


def open_streamed(
    source: Source,
    tokenizer: Tokenizer | None,
    *sizes: Any,
    vocab_documents: int = VOCAB_DOCUMENTS,
    min_freq: int = 1,
    progress: Progress | None = None,
) -> Streamed:
    """Documents that are tokenised while one trains.

    Args:
        source: the documents.
        tokenizer: None takes the characters of the first documents.
        sizes: the fields of `Streamed` that follow.
        vocab_documents: how many those are, at most.
        min_freq: a character must occur this often in them.
        progress: called as (stage, bytes done, bytes in all).

    Raises:
        DataProblem: (corrupt) there is no text to train on.
    """
    count = source.records["examples"]
    counted = min(vocab_documents, count) if tokenizer is None else 0
    if tokenizer is None and count:
        tokenizer = characters_of(source, counted, min_freq, progress)
    if tokenizer and count:
        data = replace(Streamed(source, tokenizer, *sizes), counted=counted)
    if not count or not data._sample[0]:
        raise DataProblem("the documents are empty", where=source.spec, fix="check the field")
    if data.valid_fraction < 1 and count == data._held_out:
        raise DataProblem(
            f"there are too few documents ({count}) to hold some of them out",
            where=source.spec,
            fix="use a smaller --valid-fraction, 0 for none",
        )
    return data
