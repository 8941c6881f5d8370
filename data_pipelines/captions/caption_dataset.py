"""Images with captions: batches to train and validate on, and the pairs that retrieval ranks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import grain
import numpy as np
from jaxtyping import Int, UInt8

from data_pipelines.captions.tokens import Captions, encode_caption, pad
from data_pipelines.dataset import Dataset
from data_pipelines.errors import USAGE, DataProblem
from data_pipelines.loader import ENDLESS, Rows, epoch_keys, evenly_spaced, permute, shuffled
from data_pipelines.tokenizers import Tokenizer, unknown_name

Batch = dict[str, np.ndarray]
Images = UInt8[np.ndarray, "b h w 3"]

CAPTIONS = 5
"""Captions of an image that retrieval ranks: the first ones, as is usual on COCO."""


@dataclass(frozen=True, eq=False, kw_only=True)
class CaptionDataset(Dataset):
    """Images with captions. An image is identified by its index."""

    texts: tuple[tuple[str, ...], ...]
    """The captions of each image."""
    pixels: Callable[[np.ndarray], Images]
    """Indices → images, uint8 [b, side, side, 3]."""
    captions: Captions
    """`texts`, encoded."""
    tokenizer: Tokenizer
    side: int
    """Width and height of an image in pixels."""
    source_valid: int
    """Images in the validation split of the source, which come last."""
    prepared_identity: dict[str, Any]
    """Identity of the images and captions, JSON-able."""
    image_notes: tuple[str, ...]
    """Notes on the images."""
    threads: int
    """Readers of training batches."""

    TEXTS: ClassVar[str] = "captions"
    """What `texts` are, for notes."""

    @property
    def notes(self) -> list[str]:
        """What the user should know, a sentence each."""
        notes, total = list(self.image_notes), len(self.captions.ends)
        if cut := int((self.captions.lengths > self.context).sum()):
            share = cut / total
            notes.append(
                f"{cut:,} {self.TEXTS} ({share:.2%}) are longer than {self.context} tokens and cut"
            )
        if unknown := self.captions.unknown:
            share = unknown / len(self.captions.ids)
            name = unknown_name(self.tokenizer)
            notes.append(f"{unknown:,} tokens ({share:.2%}) are {name}: not in the vocabulary")
        return notes

    @property
    def valid_images(self) -> int:
        """Held-out images."""
        return len(self._held_out)

    @property
    def train_images(self) -> int:
        """Images to train on."""
        return len(self._trained_on)

    @property
    def valid_tokens(self) -> int:
        """Tokens of all captions of the held-out images."""
        return self._tokens(self._held_out)

    @property
    def train_tokens(self) -> int:
        """Tokens of all captions of the images to train on."""
        return self._tokens(self._trained_on)

    @property
    def source_identity(self) -> dict[str, Any]:
        """The images and captions, and the size of the images."""
        return {**self.prepared_identity, "side": self.side}

    def train(self, rows: Rows = None) -> grain.DatasetIterator:
        """Endless shuffled batches of images, each with one of its captions.

        An epoch takes each image once; from epoch to epoch an image's captions take turns, from
        one that the seed draws. `tokens` int32 [rows, context], padded at the end; `mask` int32
        [rows, context], 1 for a token of the caption; `images` uint8 [rows, side, side, 3];
        `image_id` int32 [rows], the image's index. See `Dataset.train`.

        Raises:
            DataProblem: (usage) all images are held out.
        """
        if not self.train_images:
            raise DataProblem("no image is left to train on", where=self.spec, exit_code=USAGE)
        ahead = max(8, self.threads)
        options = grain.ReadOptions(num_threads=self.threads, prefetch_buffer_size=ahead)
        batches = ShuffledCaptions(self, self._trained_on, rows)
        return iter(grain.MapDataset.source(batches).to_iter_dataset(options))

    def valid(self, max_batches: int | None = None) -> "LazySequence":
        """Batches of the held-out images, the same at every call, made lazily.

        Each image comes once, the first with its first caption, the second with its second, and
        so on in turns.

        Args:
            max_batches: an upper limit, evenly spread; full batches only if there are more. None
                takes all.
        """
        indices, chosen = self._held_out, evenly_spaced(self.valid_images, self.batch, max_batches)

        def make(i: int) -> Batch:
            turns = np.arange(len(indices))[chosen[i] * self.batch :][: self.batch]
            return self.pairs(indices[turns], turns)

        return LazySequence(len(chosen), make)

    def retrieval(self, limit: int | None = None) -> tuple["LazySequence", list[list[str]]]:
        """All held-out images, in their order, and the captions of each: its first five.

        Args:
            limit: take only the first so many images.

        Returns:
            the images, a sequence of batches uint8 [b, side, side, 3] made lazily, and a list of
            captions for each image. `encode` makes tokens of captions.
        """
        indices, size = self._held_out[:limit], self.batch

        def make(i: int) -> Images:
            return self.pixels(indices[i * size : (i + 1) * size])

        captions = [list(self.texts[i][:CAPTIONS]) for i in indices]
        return LazySequence(-(-len(indices) // size), make), captions

    def encode(self, captions: Sequence[str]) -> Batch:
        """`tokens` and `mask` of any captions, int32 [b, context], as in a batch."""
        ids = [encode_caption(caption, self.tokenizer) for caption in captions]
        tokens, mask = pad(ids, self.context, self.tokenizer)
        return {"tokens": tokens, "mask": mask}

    def pairs(self, indices: np.ndarray, turns: np.ndarray) -> Batch:
        """Images, each with the caption whose turn it is."""
        first = self.captions.first[indices]
        chosen = first + turns % self.captions.counts[indices]
        captions = [self.captions[i] for i in chosen.tolist()]
        tokens, mask = pad(captions, self.context, self.tokenizer)
        ids = indices.astype(np.int32)
        return {"tokens": tokens, "mask": mask, "images": self.pixels(indices), "image_id": ids}

    @cached_property
    def offsets(self) -> np.ndarray:
        """The caption of each image in the first epoch, modulo their number."""
        return np.random.default_rng(self.seed).integers(1 << 31, size=len(self.texts))

    @cached_property
    def _held_out(self) -> Int[np.ndarray, "m"]:
        """Indices: the validation split of the source, else a share drawn with a fixed seed."""
        count = len(self.texts)
        if self.source_valid:
            return np.arange(count - self.source_valid, count)
        share = int(count * self.valid_fraction)
        drawn = permute(np.arange(share, dtype=np.uint64), count, epoch_keys(0, 0))
        return np.sort(drawn.astype(np.int64))

    @cached_property
    def _trained_on(self) -> Int[np.ndarray, "n"]:
        return np.setdiff1d(np.arange(len(self.texts)), self._held_out, assume_unique=True)

    def _tokens(self, indices: np.ndarray) -> int:
        lengths = np.minimum(self.captions.lengths, self.context)
        cumulative = np.concatenate([[0], np.cumsum(lengths)])
        first = self.captions.first
        return int((cumulative[first[indices + 1]] - cumulative[first[indices]]).sum())


class ShuffledCaptions:
    """Endless random-access batches for `grain.MapDataset.source`; see `CaptionDataset.train`.

    Batch i depends on (seed, i) only.
    """

    def __init__(self, data: CaptionDataset, indices: np.ndarray, rows: Rows):
        self._data, self._indices = data, indices
        chosen = np.arange(data.batch) if rows is None else rows
        self._rows = chosen.astype(np.uint64)

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, i: int) -> Batch:
        """Batch i."""
        positions = np.uint64(int(i) * self._data.batch) + self._rows
        count = len(self._indices)
        indices = self._indices[shuffled(positions, count, self._data.seed)]
        epochs = (positions // np.uint64(count)).astype(np.int64)
        return self._data.pairs(indices, self._data.offsets[indices] + epochs)


class LazySequence(Sequence[Any]):
    """A sequence whose elements are made on access; a slice gives a list of them."""

    def __init__(self, count: int, make: Callable[[int], Any]):
        self._count, self._make = count, make

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return [self[j] for j in range(*i.indices(len(self)))]
        return self._make(range(len(self))[i])
