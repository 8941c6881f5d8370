"""A token file split in two, and its batches."""

from dataclasses import dataclass
from typing import Any

import grain
import numpy as np

from data_pipelines.dataset import Dataset
from data_pipelines.loader import Rows, Validation, Windows, read_ahead
from data_pipelines.token_files import TokenStream, open_bin


@dataclass(frozen=True, eq=False, kw_only=True)
class TokenDataset(Dataset):
    """A token stream; the last `valid_fraction` of it is held out."""

    stream: TokenStream

    @property
    def vocab_needed(self) -> int:
        """Rows that an embedding needs: the vocabulary's size, else the largest token + 1."""
        return self.stream.vocab_needed

    @property
    def tokens(self) -> np.ndarray:
        """All tokens, memory-mapped and read-only."""
        return self.stream.tokens

    @property
    def notes(self) -> list[str]:
        """What the user should know, a sentence each."""
        return list(self.stream.notes)

    @property
    def valid_tokens(self) -> int:
        """Held-out tokens."""
        return int(len(self.tokens) * self.valid_fraction)

    @property
    def train_tokens(self) -> int:
        """Tokens to train on."""
        return len(self.tokens) - self.valid_tokens

    @property
    def train_range(self) -> tuple[int, int]:
        """First training token, and the one after the last."""
        return 0, self.train_tokens

    @property
    def valid_range(self) -> tuple[int, int]:
        """First held-out token, and the one after the last: the end of the stream."""
        return self.train_tokens, len(self.tokens)

    @property
    def source_identity(self) -> dict[str, Any]:
        """Digest and dtype of the tokens."""
        return {**self.stream.sha256, "dtype": self.tokens.dtype.name}

    def train(self, rows: Rows = None) -> grain.DatasetIterator:
        """Endless shuffled batches, `tokens` int32 [rows, context + 1]; see `Dataset.train`.

        With `segments`, these too, of the same shape.
        """
        return read_ahead(self.windows(rows))

    def windows(self, rows: Rows = None) -> Windows:
        """Random access to the batches of `train`."""
        return Windows(
            self.tokens[slice(*self.train_range)],
            context=self.context,
            batch=self.batch,
            seed=self.seed,
            rows=rows,
            end_of_text=self.end_of_text,
            vocab_size=self._unchecked_vocab,
        )

    def valid(self, max_batches: int | None = None) -> Validation:
        """Held-out batches, the same at every call, made lazily."""
        return Validation(
            self.tokens[slice(*self.valid_range)],
            self.context,
            self.batch,
            max_batches,
            end_of_text=self.end_of_text,
            vocab_size=self._unchecked_vocab,
        )

    def identity_as(self, stored: dict[str, Any]) -> dict[str, Any]:
        """`identity`, with the digest of the full file where an earlier version stored that."""
        if "tokens_sha256" not in stored or "tokens_sample_sha256" not in self.stream.sha256:
            return self.identity
        full = open_bin(self.spec, self.tokenizer, full_scan=True).sha256
        return {k: v for k, v in self.identity.items() if k != "tokens_sample_sha256"} | full

    @property
    def _unchecked_vocab(self) -> int | None:
        """The vocabulary that batches must be checked against; None if all tokens were."""
        return None if self.stream.scanned else self.stream.vocab_needed
