"""What every dataset that `open_data` opens offers."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_pipelines.loader import Rows
from data_pipelines.tokenizers import Tokenizer


@dataclass(frozen=True, eq=False, kw_only=True)
class Dataset(ABC):
    """Endless training batches with a position that can be saved, and held-out batches."""

    spec: str
    """The spec that was opened, a form of `sources.SPECS`."""
    tokenizer: Tokenizer | None
    """None for raw token files, which do not say what their tokens mean."""
    context: int
    """Inputs in a window; tokens of a caption."""
    batch: int
    """Windows, or images, in a batch, over all processes."""
    seed: int
    """Draws the order."""
    valid_fraction: float
    """Share that is held out."""
    segments: bool = False
    """Whether batches number the documents in each window.

    They change the attention mask only: positions stay those of the window, and a target across
    the border of two documents counts, since the end of a text is itself a token to predict.
    """

    @abstractmethod
    def train(self, rows: Rows = None) -> Iterator[dict[str, np.ndarray]]:
        """Endless shuffled batches.

        The iterator's `get_state()` is a small JSON-able dict; `set_state` of it, in any process
        and for any rows, continues with the next batch.

        Args:
            rows: the rows of each batch that this process wants, ascending; None for all.
        """

    @abstractmethod
    def valid(self, max_batches: int | None = None) -> Iterable[dict[str, np.ndarray]]:
        """Held-out batches, the same at every call.

        Args:
            max_batches: an upper limit, evenly spread; None takes all.
        """

    @property
    def vocab_size(self) -> int | None:
        """Size of the vocabulary; None without one."""
        return self.tokenizer.vocab_size if self.tokenizer else None

    @property
    def vocab_needed(self) -> int:
        """Rows that an embedding needs."""
        assert self.tokenizer
        return self.tokenizer.vocab_size

    @property
    @abstractmethod
    def notes(self) -> list[str]:
        """What the user should know, a sentence each."""

    @property
    @abstractmethod
    def train_tokens(self) -> int:
        """Tokens to train on."""

    @property
    @abstractmethod
    def valid_tokens(self) -> int:
        """Held-out tokens."""

    @property
    @abstractmethod
    def source_identity(self) -> dict[str, Any]:
        """Identity of what is read, JSON-able."""

    @property
    def identity(self) -> dict[str, Any]:
        """JSON-able; where it is equal, a resumed run sees the batches it would have seen."""
        return self.source_identity | self.batch_identity

    def identity_as(self, stored: dict[str, Any]) -> dict[str, Any]:
        """`identity`, in the form of the `stored` one where an earlier version wrote another."""
        return self.identity

    @property
    def batch_identity(self) -> dict[str, Any]:
        """The part of `identity` that decides how batches are made."""
        return {
            "tokenizer": self.tokenizer and self.tokenizer.digest,
            "vocab_size": self.vocab_size,
            "valid_fraction": self.valid_fraction,
            "seed": self.seed,
            "context": self.context,
            "batch": self.batch,
        }

    @property
    def end_of_text(self) -> int | None:
        """The id that segments are counted at; None without segments."""
        return self.tokenizer.end_of_text if self.segments and self.tokenizer else None
