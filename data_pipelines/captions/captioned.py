"""Images with captions: training and validation batches, and what retrieval is measured on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import grain
import numpy as np
from jaxtyping import Int, UInt8

from data_pipelines.captions.tokens import Captions, encoded, padded
from data_pipelines.errors import USAGE, DataProblem
from data_pipelines.loader import ENDLESS, Rows, epoch_keys, evenly_spaced, permute, shuffled
from data_pipelines.tokenizers import Tokenizer, unknown_name

Batch = dict[str, np.ndarray]
Images = UInt8[np.ndarray, "b h w 3"]

CAPTIONS = 5
"""Captions of an image that retrieval is measured with: the first ones, as is usual on COCO."""


@dataclass(frozen=True, eq=False)
class Captioned:
    """As `Data`, for images with captions. A place is the number of an image."""

    spec: str
    texts: tuple[tuple[str, ...], ...]
    """The captions of each image."""
    pixels: Callable[[np.ndarray], Images]
    """Places → images, uint8 [b, side, side, 3]."""
    captions: Captions
    """The same as `texts`, encoded."""
    tokenizer: Tokenizer
    context: int
    batch: int
    side: int
    seed: int
    valid_fraction: float
    own: int
    """How many images, at the end, the source itself holds out."""
    what: dict[str, Any]
    """Identity of the images and captions, JSON-able."""
    told: tuple[str, ...]
    """Notes on the images."""
    threads: int
    """Readers of training batches."""

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
        notes, total = list(self.told), len(self.captions.ends)
        if cut := int((self.captions.lengths > self.context).sum()):
            share = cut / total
            notes.append(
                f"{cut:,} captions ({share:.2%}) are longer than {self.context} tokens and cut"
            )
        if unknown := self.captions.unknown:
            share = unknown / len(self.captions.ids)
            name = unknown_name(self.tokenizer)
            notes.append(f"{unknown:,} tokens ({share:.2%}) are {name}: not in the vocabulary")
        return notes

    @property
    def valid_images(self) -> int:
        """Images that are held out."""
        return len(self._held_out)

    @property
    def train_images(self) -> int:
        """Images to train on."""
        return len(self._seen)

    @property
    def valid_tokens(self) -> int:
        """Tokens of all captions of the images that are held out."""
        return self._tokens(self._held_out)

    @property
    def train_tokens(self) -> int:
        """Tokens of all captions of the images to train on."""
        return self._tokens(self._seen)

    @property
    def identity(self) -> dict[str, Any]:
        """JSON-able; when it is equal, a resumed run sees the batches it would have seen."""
        return {
            **self.what,
            "tokenizer": self.tokenizer.digest,
            "vocab_size": self.vocab_size,
            "valid_fraction": self.valid_fraction,
            "seed": self.seed,
            "context": self.context,
            "batch": self.batch,
            "side": self.side,
        }

    def train(self, rows: Rows = None) -> grain.DatasetIterator:
        """Endless shuffled batches of images, each with one of its captions.

        An epoch takes each image once; from epoch to epoch the captions of an image take turns,
        beginning with one that the seed draws. `tokens` int32 [rows, context], padded at the
        end; `mask` int32 [rows, context], 1 for a token of the caption; `images` uint8
        [rows, side, side, 3]; `image_id` int32 [rows], the image's place.

        `get_state()` is a small JSON-able dict, and `set_state` of it gives the next batch,
        whichever rows of it are taken.

        Args:
            rows: of each batch, in rising order, those that this process wants; None for all.

        Raises:
            DataProblem: (usage) all images are held out.
        """
        if not self.train_images:
            raise DataProblem("no image is left to train on", where=self.spec, exit_code=USAGE)
        ahead = max(8, self.threads)
        options = grain.ReadOptions(num_threads=self.threads, prefetch_buffer_size=ahead)
        drawn = Drawn(self, self._seen, rows)
        return iter(grain.MapDataset.source(drawn).to_iter_dataset(options))

    def valid(self, max_batches: int | None = None) -> "Lazy":
        """Batches of the held-out images, always the same: a sequence that makes them lazily.

        Each image comes once, the first with its first caption, the second with its second, and
        so on in turns.

        Args:
            max_batches: at most so many, evenly spread, and only full ones if there are more;
                None takes all.
        """
        places, chosen = self._held_out, evenly_spaced(self.valid_images, self.batch, max_batches)

        def make(i: int) -> Batch:
            turns = np.arange(len(places))[chosen[i] * self.batch :][: self.batch]
            return self.pairs(places[turns], turns)

        return Lazy(len(chosen), make)

    def retrieval(self, limit: int | None = None) -> tuple["Lazy", list[list[str]]]:
        """All held-out images, in their order, and the captions of each: its first five.

        Args:
            limit: take only so many images, the first.

        Returns:
            the images, a sequence of batches uint8 [b, side, side, 3] that are made lazily, and a
            list of captions for each image. `encode` makes tokens of captions.
        """
        places, size = self._held_out[:limit], self.batch

        def make(i: int) -> Images:
            return self.pixels(places[i * size : (i + 1) * size])

        captions = [list(self.texts[i][:CAPTIONS]) for i in places]
        return Lazy(-(-len(places) // size), make), captions

    def encode(self, captions: Sequence[str]) -> Batch:
        """`tokens` and `mask` of any captions, int32 [b, context], as in a batch."""
        ids = [encoded(caption, self.tokenizer) for caption in captions]
        tokens, mask = padded(ids, self.context, self.tokenizer)
        return {"tokens": tokens, "mask": mask}

    def pairs(self, places: np.ndarray, turns: np.ndarray) -> Batch:
        """Images, each with the caption whose turn it is."""
        first = self.captions.first[places]
        chosen = first + turns % self.captions.counts[places]
        said = [self.captions[i] for i in chosen.tolist()]
        tokens, mask = padded(said, self.context, self.tokenizer)
        ids = places.astype(np.int32)
        return {"tokens": tokens, "mask": mask, "images": self.pixels(places), "image_id": ids}

    @cached_property
    def offsets(self) -> np.ndarray:
        """Which caption of each image the first epoch takes, before it is taken modulo."""
        return np.random.default_rng(self.seed).integers(1 << 31, size=len(self.texts))

    @cached_property
    def _held_out(self) -> Int[np.ndarray, "m"]:
        """Places: those that the source holds out, else a share that is always drawn alike."""
        count = len(self.texts)
        if self.own:
            return np.arange(count - self.own, count)
        share = int(count * self.valid_fraction)
        drawn = permute(np.arange(share, dtype=np.uint64), count, epoch_keys(0, 0))
        return np.sort(drawn.astype(np.int64))

    @cached_property
    def _seen(self) -> Int[np.ndarray, "n"]:
        return np.setdiff1d(np.arange(len(self.texts)), self._held_out, assume_unique=True)

    def _tokens(self, places: np.ndarray) -> int:
        lengths = np.minimum(self.captions.lengths, self.context)
        upto = np.concatenate([[0], np.cumsum(lengths)])
        first = self.captions.first
        return int((upto[first[places + 1]] - upto[first[places]]).sum())


class Drawn:
    """Endless random-access batches for `grain.MapDataset.source`; see `Captioned.train`.

    Batch i depends on (seed, i) and on nothing else.
    """

    def __init__(self, data: Captioned, places: np.ndarray, rows: Rows):
        self._data, self._places = data, places
        chosen = np.arange(data.batch) if rows is None else rows
        self._rows = chosen.astype(np.uint64)

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, i: int) -> Batch:
        """Batch i."""
        positions = np.uint64(int(i) * self._data.batch) + self._rows
        count = len(self._places)
        places = self._places[shuffled(positions, count, self._data.seed)]
        epochs = (positions // np.uint64(count)).astype(np.int64)
        return self._data.pairs(places, self._data.offsets[places] + epochs)


class Lazy(Sequence[Any]):
    """A sequence whose elements are made when they are asked for; a slice gives a list of them."""

    def __init__(self, count: int, make: Callable[[int], Any]):
        self._count, self._make = count, make

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return [self[j] for j in range(*i.indices(len(self)))]
        return self._make(range(len(self))[i])
