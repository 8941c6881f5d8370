"""Batches of text and batches of images with captions, mixed by weight.

Each batch is of one kind, so array shapes do not depend on the weights, and captions are compared
with a full batch of images. The kinds are spread evenly: after n batches, each has had its share of
n, rounded up or down.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import floor
from typing import Any

import numpy as np

from data_pipelines.captions.caption_dataset import CaptionDataset, LazySequence
from data_pipelines.dataset import Dataset
from data_pipelines.loader import Batch, Rows
from data_pipelines.mixture import MixtureDataset
from data_pipelines.mixture_validation import MixtureValidation, Part


@dataclass(frozen=True, eq=False, kw_only=True)
class TextAndImages(Dataset):
    """A dataset of text and one of images with captions."""

    text: MixtureDataset
    captioned: CaptionDataset
    text_share: float
    """Share of the batches that are text, between 0 and 1."""

    @property
    def vocab_needed(self) -> int:
        """Rows that an embedding needs."""
        return max(self.text.vocab_needed, self.captioned.vocab_needed)

    @property
    def notes(self) -> list[str]:
        """What the user should know, a sentence each."""
        shares = f"{self.text_share:.2%} of batches are text, the others images with captions"
        of_images = (f"{self.captioned.spec}: {note}" for note in self.captioned.notes)
        return [shares, *self.text.notes, *of_images]

    @property
    def train_tokens(self) -> int:
        """Tokens of text to train on; captions do not count."""
        return self.text.train_tokens

    @property
    def valid_tokens(self) -> int:
        """Held-out tokens of text."""
        return self.text.valid_tokens

    @property
    def train_images(self) -> int:
        """Images to train on."""
        return self.captioned.train_images

    @property
    def valid_images(self) -> int:
        """Held-out images."""
        return self.captioned.valid_images

    @property
    def source_identity(self) -> dict[str, Any]:
        """The identity of the text and of the images, and the share."""
        shared = self.batch_identity

        def own(data: Dataset) -> dict[str, Any]:
            return {k: v for k, v in data.identity.items() if shared.get(k) != v}

        return {
            "text": own(self.text),
            "images": own(self.captioned),
            "text_share": self.text_share,
        }

    def is_text(self, number: int) -> bool:
        """Whether batch `number` is text."""
        start = np.random.default_rng([self.seed, 2]).random()
        before, after = (floor(start + n * self.text_share) for n in (number, number + 1))
        return after > before

    def train(self, rows: Rows = None) -> "Turns":
        """Endless batches, each of the text or of the images; see `Dataset.train`."""
        return Turns(self, rows)

    def valid(self, max_batches: int | None = None) -> MixtureValidation:
        """Held-out batches of text, then of images.

        Args:
            max_batches: an upper limit, divided by the shares; each kind has at least one. None
                takes all.
        """
        of_text = of_images = max_batches
        if max_batches:
            of_text = max(1, round(max_batches * self.text_share))
            of_images = max(1, max_batches - of_text)
        parts = [
            part._replace(share=part.share * self.text_share)
            for part in self.text.valid(of_text).parts
        ]
        if len(images := self.captioned.valid(of_images)):
            parts.append(Part(self.captioned.spec, 1 - self.text_share, images))
        return MixtureValidation(parts)

    def retrieval(self, limit: int | None = None) -> tuple[LazySequence, list[list[str]]]:
        """The held-out images and their captions; see `CaptionDataset.retrieval`."""
        return self.captioned.retrieval(limit)


class Turns(Iterator[Batch]):
    """The batches of `TextAndImages.train`; its state is the next number and both positions."""

    def __init__(self, data: TextAndImages, rows: Rows):
        self._data, self._next = data, 0
        self._sources: list[Any] = [data.text.train(rows), data.captioned.train(rows)]

    def __next__(self) -> Batch:
        source = self._sources[0 if self._data.is_text(self._next) else 1]
        self._next += 1
        batch: Batch = next(source)
        return batch

    def get_state(self) -> dict[str, Any]:
        """The position after the last batch, JSON-able."""
        return {"batch": self._next, "sources": [source.get_state() for source in self._sources]}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues from where `get_state` was called."""
        self._next = int(state["batch"])
        for source, position in zip(self._sources, state["sources"], strict=True):
            source.set_state(position)
