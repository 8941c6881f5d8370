"""A token file split in two, and how batches are drawn from it."""

from dataclasses import dataclass
from typing import Any

import grain
import numpy as np

from data_pipelines.loader import Rows, Validation, Windows, read_ahead
from data_pipelines.streams import TokenStream, open_bin
from data_pipelines.tokenizers import Tokenizer


@dataclass(frozen=True, eq=False)
class Data:
    """A token stream split in two, and how batches are drawn from it."""

    spec: str
    stream: TokenStream
    context: int
    batch: int
    seed: int
    valid_fraction: float
    segments: bool = False

    @property
    def tokenizer(self) -> Tokenizer | None:
        """None for a raw token file, which does not say what its tokens mean."""
        return self.stream.tokenizer

    @property
    def vocab_size(self) -> int | None:
        """Size of the vocabulary; None when there is none."""
        return self.tokenizer.vocab_size if self.tokenizer else None

    @property
    def vocab_needed(self) -> int:
        """Rows that an embedding needs: the vocabulary's size, else the largest token + 1."""
        return self.stream.vocab_needed

    @property
    def tokens(self) -> np.ndarray:
        """The whole stream, memory-mapped and read-only."""
        return self.stream.tokens

    @property
    def notes(self) -> list[str]:
        """What the user should know, a sentence each."""
        return list(self.stream.notes)

    @property
    def valid_tokens(self) -> int:
        """Tokens that are held out."""
        return int(len(self.tokens) * self.valid_fraction)

    @property
    def train_tokens(self) -> int:
        """Tokens to train on."""
        return len(self.tokens) - self.valid_tokens

    @property
    def train_range(self) -> tuple[int, int]:
        """First token to train on, and the one after the last."""
        return 0, self.train_tokens

    @property
    def valid_range(self) -> tuple[int, int]:
        """First held-out token, and the one after the last: the end of the stream."""
        return self.train_tokens, len(self.tokens)

    @property
    def identity(self) -> dict[str, Any]:
        """JSON-able; when it is equal, a resumed run sees the batches it would have seen."""
        return {
            **self.stream.sha256,
            "tokenizer": self.tokenizer and self.tokenizer.digest,
            "vocab_size": self.vocab_size,
            "dtype": self.tokens.dtype.name,
            "valid_fraction": self.valid_fraction,
            "seed": self.seed,
            "context": self.context,
            "batch": self.batch,
        }

    def train(self, rows: Rows = None) -> grain.DatasetIterator:
        """Endless shuffled batches, `tokens` int32 [rows, context + 1].

        With `segments`, these too, of the same shape: the number of the document in its window.

        `get_state()` is a small JSON-able dict, and `set_state` of it gives the next batch,
        whichever rows of it are taken.

        Args:
            rows: of each batch, in rising order, those that this process wants; None for all.
        """
        return read_ahead(self.windows(rows))

    def windows(self, rows: Rows = None) -> Windows:
        """The batches of `train`, in any order."""
        return Windows(
            self.tokens[slice(*self.train_range)],
            context=self.context,
            batch=self.batch,
            seed=self.seed,
            rows=rows,
            end_of_text=self._end,
            below=self._below,
        )

    def valid(self, max_batches: int | None = None) -> Validation:
        """Batches of the held-out tokens, always the same: a sequence that makes them lazily."""
        held_out = self.tokens[slice(*self.valid_range)]
        ends = {"end_of_text": self._end, "below": self._below}
        return Validation(held_out, self.context, self.batch, max_batches, **ends)

    def identity_as(self, stored: dict[str, Any]) -> dict[str, Any]:
        """`identity`, with the digest of a whole file where an earlier version stored that."""
        if "tokens_sha256" not in stored or "tokens_sample_sha256" not in self.stream.sha256:
            return self.identity
        whole = open_bin(self.spec, self.tokenizer, whole=True).sha256
        return {k: v for k, v in self.identity.items() if k != "tokens_sample_sha256"} | whole

    @property
    def _below(self) -> int | None:
        return None if self.stream.whole else self.stream.vocab_needed

    @property
    def _end(self) -> int | None:
        return self.tokenizer.end_of_text if self.segments and self.tokenizer else None
