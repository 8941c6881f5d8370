"""What was written into a memory, item by item: `memory.json` of a model directory.

The memory itself holds sums (`larimar.SufficientStats`), from which no item can be read off. The
record keeps of each item its words, where it came from, and the numbers that were added for it, so
that it can be listed, recognised and taken out again. Sums of items are taken in float64, so that
a memory from which an item was forgotten is the memory that never had it.
"""

import base64
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32

from jaxmodels.bitgen import larimar
from jaxmodels.bitgen.memory import Memory
from jaxmodels.errors import CORRUPT, Problem

VERSION = 1
Kind = Literal["text", "image", "caption"]
_VECTORS = ("key", "text_key", "code")


@dataclass(frozen=True, eq=False)
class Item:
    """One thing that was written."""

    number: int
    """Identifies it; never given twice."""
    kind: Kind
    """A text, an image that the model captioned itself, or an image with a given caption."""
    text: str
    """What is remembered, in words."""
    source: str
    """Where it came from: a file, a line of one, or "the command line"."""
    written: str
    """When, in UTC: "2026-11-30T17:00:00"."""
    key: Float32[np.ndarray, "d"]
    """What it is found by: the unit feature of the image, or of the text if there is none."""
    text_key: Float32[np.ndarray, "d"]
    """The unit feature of the text."""
    code: Float32[np.ndarray, "d"]
    """What is remembered, as the memory holds it."""


@dataclass(frozen=True)
class Threshold:
    """From which similarity on a query is about what was written, and how often that errs."""

    least: float
    """The least cosine that counts."""
    answered: float
    """Share of queries about nothing that was written which are answered all the same."""
    refused: float
    """Share of queries about something that was written which are not answered."""


@dataclass(frozen=True)
class Closeness:
    """What a query must be like, by what it is compared with (`closeness.measure`)."""

    text: Threshold
    """Texts with texts."""
    image: Threshold
    """Images with images."""
    cross: Threshold
    """Images with texts."""
    pairs: int
    """How many pairs of image and text it was measured on."""
    data: str
    """Which ones."""


@dataclass(frozen=True)
class Record:
    """All items of a memory, in the order of writing."""

    items: tuple[Item, ...] = ()
    next: int = 1
    """The number of the next item."""
    closeness: Closeness | None = None
    """None: not measured."""

    def with_items(self, items: Iterable[Item]) -> "Record":
        """The record with more items, which get the next numbers."""
        new = [replace(item, number=n) for n, item in enumerate(items, self.next)]
        return replace(self, items=(*self.items, *new), next=self.next + len(new))

    def without(self, numbers: Iterable[int]) -> "Record":
        """The record without the items of these numbers."""
        gone = set(numbers)
        return replace(self, items=tuple(i for i in self.items if i.number not in gone))

    def vectors(self, name: str) -> Float32[np.ndarray, "n d"]:
        """`key`, `text_key` or `code` of all items."""
        return np.stack([getattr(item, name) for item in self.items])


class Sums(NamedTuple):
    """`larimar.SufficientStats` outside of JAX."""

    gram: Float[np.ndarray, "m m"]
    total: Float[np.ndarray, "m d"]
    number: np.ndarray


def contribution(memory: Memory, record: Record) -> Sums:
    """What the items of a record add to a memory, in float64."""
    m, d = memory.config.slots, memory.config.dim
    if not record.items:
        return Sums(np.zeros((m, m)), np.zeros((m, d)), np.asarray(0))
    slots = np.asarray(memory.keys[...], np.float64)
    keys, codes = (record.vectors(name).astype(np.float64) for name in ("key", "code"))
    with jax.enable_x64(True):
        w = np.asarray(
            larimar.address(
                jnp.asarray(keys),
                jnp.asarray(slots),
                memory.config.noise,
                memory.config.addressing,
            )
        )
    return Sums(w.T @ w, w.T @ codes, np.asarray(len(keys)))


def changed(memory: Memory, held: Sums, before: Record, after: Record) -> Sums:
    """The sums of a memory after its record changed, in the dtypes of those it holds.

    What was written without a record stays. Where nothing was, the result is the sum of the items
    alone, so that rounding errors do not add up.

    Args:
        memory: whose slots are addressed.
        held: the sums as they are stored, of float32 or float64.
        before: the items in them.
        after: the items that are to be in them.

    Raises:
        Problem: (corrupt) the memory does not hold what its record says.
    """
    old, new = contribution(memory, before), contribution(memory, after)
    others = int(held.number) - len(before.items)
    rest = held.gram - old.gram, held.total - old.total  # float64, as `old` is
    rounding = 8 * np.finfo(held.gram.dtype).eps
    own = all(
        np.abs(left).max() <= rounding * np.abs(part).max()
        for left, part in zip(rest, old[:2], strict=True)
    )
    if others < 0 or (others == 0 and not own):
        raise Problem(
            "the memory does not hold what its record says",
            where="memory.json",
            why="the model was trained on, or its memory set, after the items were written",
            fix="`jaxmodels memory forget PATH --all` empties both",
            exit_code=CORRUPT,
        )
    gram, total = (0 if others == 0 else left for left in rest)
    return Sums(
        (gram + new.gram).astype(held.gram.dtype),
        (total + new.total).astype(held.total.dtype),
        np.asarray(others + len(after.items), held.number.dtype),
    )


def to_json(record: Record) -> bytes:
    """The content of `memory.json`; vectors are little-endian float32 in base64."""
    items = [{name: _text(value) for name, value in vars(item).items()} for item in record.items]
    value = {
        "version": VERSION,
        "next": record.next,
        "closeness": record.closeness and asdict(record.closeness),
        "items": items,
    }
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()


def from_json(content: bytes, width: int) -> Record:
    """The record in a `memory.json`.

    Args:
        content: of the file.
        width: length of the model's features.

    Raises:
        Problem: (corrupt) it is damaged, of another version, or of a model of another width.
    """
    try:
        value = json.loads(content)
        version = value["version"]
        if version == VERSION:
            return Record(
                tuple(_item(entry, width) for entry in value["items"]),
                int(value["next"]),
                value["closeness"] and _closeness(value["closeness"]),
            )
        why = f"it is of version {version!r}, and this program knows version {VERSION}"
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        why = f"{type(error).__name__}: {error}"
    raise Problem(
        "the record of what was written into the memory cannot be read",
        where="memory.json",
        why=why,
        fix="use the version that wrote it, or remove the file: the memory stays, without a record",
        exit_code=CORRUPT,
    )


def _text(value: Any) -> Any:
    if not isinstance(value, np.ndarray):
        return value
    return base64.b64encode(value.astype("<f4").tobytes()).decode()


def _item(entry: dict[str, Any], width: int) -> Item:
    words: dict[str, Any] = {name: entry[name] for name in ("kind", "text", "source", "written")}
    if type(entry["number"]) is not int or not all(type(v) is str for v in words.values()):
        raise ValueError("an item has no number, or words that are no text")
    vectors = {
        name: np.frombuffer(base64.b64decode(entry[name], validate=True), "<f4")
        for name in _VECTORS
    }
    for name, vector in vectors.items():
        if vector.shape != (width,) or not np.isfinite(vector).all():
            raise ValueError(f"{name} is not {width} finite numbers")
    key, text_key, code = vectors.values()
    return Item(entry["number"], **words, key=key, text_key=text_key, code=code)


def _closeness(entry: dict[str, Any]) -> Closeness:
    found = {name: Threshold(**entry[name]) for name in ("text", "image", "cross")}
    return Closeness(**found, pairs=int(entry["pairs"]), data=str(entry["data"]))
