"""A model directory with a memory, opened to be asked, or written to."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32, Int32, UInt8

import jaxmodels
from jaxmodels.bitgen import closeness, record, remember
from jaxmodels.bitgen.record import Closeness, Item, Record, Sums
from jaxmodels.errors import MISMATCH, USAGE, Problem
from jaxmodels.runtime.paths import Arrays, GraphDef, split

(RECORD,) = jaxmodels.arch("bitgen").CARRIED
GROUP = 32
"""Rows that are encoded at once."""
Vectors = Float32[np.ndarray, "n d"]


@dataclass(frozen=True)
class Texts:
    """Texts as the model sees them."""

    features: Vectors
    codes: Vectors


class Memorable:
    """A model directory with a memory.

    Raises:
        Problem: as `bridge.load`; (usage) the model has no memory, or the path is no model
            directory; (mismatch) it has no tokeniser.
    """

    def __init__(self, path: Path):
        from bridge.checkpoint.loading import model_of
        from bridge.checkpoint.opening import open_checkpoint

        self.path = path
        self.source = open_checkpoint(path)
        _check(path, self.source)
        self.tokenizer: Any = self.source.tokenizer
        self.data = self.source.origin.get("data", "")
        self.model = model_of(self.source)
        self.config = self.model.config
        self._parts = split(self.model)
        held = self.source.carried.get(RECORD)
        self.record = record.from_json(held, self.config.dim) if held else Record()

    @property
    def unrecorded(self) -> int:
        """How many things are in the memory that the record does not have."""
        return max(0, int(self.model.memory.count[...]) - len(self.record.items))

    def texts(self, texts: Sequence[str]) -> Texts:
        """Features and codes of texts.

        Raises:
            Problem: (usage) a text is empty, has nothing that the tokeniser knows, or does not fit.
        """
        tokens, mask = self._encoded(texts)
        parts = []
        for i in range(0, len(texts), GROUP):
            rows = [_filled(part[i : i + GROUP]) for part in (tokens, mask)]
            parts.append([np.asarray(x) for x in _of_texts(*self._parts, *rows)])
        features, codes = (np.concatenate(x)[: len(texts)] for x in zip(*parts, strict=True))
        return Texts(features, codes)

    def images(self, images: UInt8[np.ndarray, "n h w 3"]) -> Vectors:
        """Features of images."""
        parts = [
            np.asarray(_of_images(*self._parts, _filled(images[i : i + GROUP])))
            for i in range(0, len(images), GROUP)
        ]
        return np.concatenate(parts)[: len(images)]

    def read_images(self, files: Sequence[Path]) -> UInt8[np.ndarray, "n h w 3"]:
        """The pixels of image files, as the model was trained to see them.

        Raises:
            DataProblem: (corrupt) a file is missing, or no image.
        """
        from jaxmodels.commands.eval_images import read_images

        return read_images(tuple(files), self.config.image_size)

    def captions(self, images: UInt8[np.ndarray, "n h w 3"]) -> list[str]:
        """What the model itself says of images.

        Raises:
            Problem: (usage) it says nothing of one of them.
        """
        from jaxmodels.runtime.training.samples import caption

        most = self.config.context - 1  # an end must fit behind it
        rows = caption(self.model, self.tokenizer, images, max_tokens=most)
        words = [self.tokenizer.decode(row).strip() for row in rows]
        if "" in words:
            raise Problem(
                "the model has no words for an image",
                where=f"image {words.index('') + 1}",
                fix="give its caption with --caption",
                exit_code=USAGE,
            )
        return words

    def closeness(self) -> Closeness:
        """The thresholds as they were measured, or else by what is at hand."""
        if self.record.closeness is not None:
            return self.record.closeness
        filled = np.asarray(self.model.queue.filled())
        queue = self.model.queue.text[...], self.model.queue.image[...]
        return closeness.estimate(self.record, *(np.asarray(x, np.float32)[filled] for x in queue))

    def held(self, item: Item) -> float:
        """How like an item's code is what the memory has at its key: a cosine."""
        code = np.asarray(self.model.memory.read(jnp.asarray(item.key)[None]))[0]
        return float(code @ item.code / max(np.linalg.norm(code) * np.linalg.norm(item.code), 1e-6))

    def save(self, after: Record, empty: bool = False) -> None:
        """Makes the record, and the memory that belongs to it, those of the model directory.

        Args:
            after: the new record.
            empty: what was written without a record goes, too.
        """
        from bridge.conversion.edit import edit

        names = {pair.ours: pair.theirs for pair in self.source.pairs}
        paths = ("memory/gram", "memory/total", "memory/count")
        held = Sums(*(self.source.tensors[path].read() for path in paths))
        if empty:
            sums = Sums(*(np.zeros_like(x) for x in held))
        else:
            sums = record.changed(self.model.memory, held, self.record, after)
        arrays = {names[path]: np.asarray(x) for path, x in zip(paths, sums, strict=True)}
        edit(self.path, arrays, {RECORD: record.to_json(after)})

    def _encoded(self, texts: Sequence[str]) -> tuple[Int32[np.ndarray, "n t"], ...]:
        from data_pipelines.captions.tokens import encode_caption, pad

        for text in texts:
            _check_text(text, self.tokenizer, self.config.context)
        ids = [encode_caption(text, self.tokenizer) for text in texts]
        return pad(ids, self.config.context, self.tokenizer)


@partial(jax.jit, static_argnums=0)
def _of_texts(
    graphdef: GraphDef, params: Arrays, rest: Arrays, tokens: Any, mask: Any
) -> tuple[jax.Array, jax.Array]:
    model = graphdef.merge(params, rest)
    return model.text_features(tokens, mask), remember.codes(model, tokens, mask)


@partial(jax.jit, static_argnums=0)
def _of_images(graphdef: GraphDef, params: Arrays, rest: Arrays, images: Any) -> jax.Array:
    features: jax.Array = graphdef.merge(params, rest).image_features(
        images.astype(jnp.float32) / 255
    )
    return features


def _filled(rows: np.ndarray) -> np.ndarray:
    """One row, or GROUP of them: programs are compiled for these."""
    more = 0 if len(rows) == 1 else GROUP - len(rows)
    return np.concatenate([rows, np.repeat(rows[:1], more, axis=0)])


def _check(path: Path, source: Any) -> None:
    if source.arch != "bitgen":
        raise Problem(
            f"a {source.arch} has no memory",
            where=str(path),
            fix="give a bitgen",
            exit_code=USAGE,
        )
    if source.format not in ("safetensors", "packed"):
        raise Problem(
            "only a model directory can remember",
            where=str(path),
            why=f"this is another format: {source.format}",
            fix="make one of it: jaxmodels convert PATH DIRECTORY",
            exit_code=USAGE,
        )
    if source.tokenizer is None:
        raise Problem(
            "the model directory has no vocabulary, so text cannot be tokenised",
            where=str(path),
            fix="convert the model again, with --vocab FILE",
            exit_code=MISMATCH,
        )


def _check_text(text: str, tokenizer: Any, context: int) -> None:
    """Refuses a text of which the model would see nothing, or not all."""
    from data_pipelines.tokenizers import count_unknown
    from jaxmodels.commands.unknown import warn_unknown

    ids = tokenizer.encode(text)
    if not len(ids):
        raise Problem("the text is empty", fix="give at least a word", exit_code=USAGE)
    if count_unknown(tokenizer, text, ids) == len(ids):
        raise Problem(
            "nothing of the text is in the model's vocabulary",
            where=text[:80],
            why="the model would see unknown tokens only, and take all such texts for the same",
            fix="use the language and script that the model was trained on",
            exit_code=USAGE,
        )
    warn_unknown(text, tokenizer, "the text")
    if len(ids) + 1 > context:
        raise Problem(
            f"a text of {len(ids)} tokens does not fit a context of {context}",
            where=text[:80],
            fix="write it in shorter parts",
            exit_code=USAGE,
        )
