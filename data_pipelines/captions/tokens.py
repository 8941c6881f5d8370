"""Captions as rows of tokens of one length."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Int32

from data_pipelines.encoding import separator
from data_pipelines.tokenizers import Tokenizer, count_unknown


def padding(tokenizer: Tokenizer) -> int:
    """The id that fills a row: padding, else the end of text, else 0."""
    pad_id = getattr(tokenizer, "pad_id", None)
    return next(i for i in (pad_id, tokenizer.end_of_text, 0) if i is not None)


def pad(
    ids: Sequence[np.ndarray], context: int, tokenizer: Tokenizer
) -> tuple[Int32[np.ndarray, "b t"], Int32[np.ndarray, "b t"]]:
    """Left-aligned captions: `tokens`, and `mask`, 1 for a token of the caption.

    Args:
        ids: of each caption, with its end; cut to `context`.
        context: length of a row.
        tokenizer: gives the padding.
    """
    tokens = np.full((len(ids), context), padding(tokenizer), np.int32)
    mask = np.zeros_like(tokens)
    for row, caption in enumerate(ids):
        kept = caption[:context]
        tokens[row, : len(kept)] = kept
        mask[row, : len(kept)] = 1
    return tokens, mask


def encode_caption(caption: str, tokenizer: Tokenizer) -> Int32[np.ndarray, "n"]:
    """A caption and its end: the end of text, or a blank line where there is no such token."""
    return np.concatenate([tokenizer.encode(caption), separator(tokenizer)])


@dataclass(frozen=True)
class Captions:
    """The captions of all images, encoded."""

    ids: Int32[np.ndarray, "n"]
    """Concatenated."""
    ends: np.ndarray
    """Where each ends."""
    first: np.ndarray
    """The number of each image's first caption, and the number of captions."""
    unknown: int
    """Ids of text that is not in the vocabulary."""

    @classmethod
    def of(cls, images: Iterable[Sequence[str]], tokenizer: Tokenizer) -> "Captions":
        """Encodes the captions of each image."""
        parts: list[np.ndarray] = []
        first, unknown = [0], 0
        of_separator = count_unknown(tokenizer, "\n\n", separator(tokenizer))
        for captions in images:
            for caption in captions:
                parts.append(encode_caption(caption, tokenizer))
                unknown += count_unknown(tokenizer, caption + "\n\n", parts[-1]) - of_separator
            first.append(len(parts))
        ends = np.cumsum([len(part) for part in parts])
        return cls(np.concatenate(parts), ends, np.asarray(first), unknown)

    def __getitem__(self, i: int) -> Int32[np.ndarray, "n"]:
        """The ids of caption i."""
        return self.ids[self.ends[i - 1] if i else 0 : self.ends[i]]

    @cached_property
    def lengths(self) -> np.ndarray:
        """Ids of each caption."""
        return np.diff(self.ends, prepend=0)

    @property
    def counts(self) -> np.ndarray:
        """Captions of each image."""
        return np.diff(self.first)
