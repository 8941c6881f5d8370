"""The items that were written into a memory: `memory.json` of a model directory.

The memory itself holds sums (`larimar.SufficientStats`), in which items cannot be told apart. The
record keeps each item's text, source, key and code, so that it can be listed, recognised and
forgotten. Items are summed in float64, so forgetting an item gives the memory that never had it.
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
    """An item that was written."""

    number: int
    """Unique, and never used again."""
    kind: Kind
    """A text, an image with the model's own caption, or an image with a given caption."""
    text: str
    """What is remembered, as text."""
    source: str
    """Where it came from: a file, a line of one, or "the command line"."""
    written: str
    """Time of writing, in UTC: "2026-11-30T17:00:00"."""
    key: Float32[np.ndarray, "d"]
    """The key: the unit feature of the image, or of the text if there is no image."""
    text_key: Float32[np.ndarray, "d"]
    """The unit feature of the text."""
    code: Float32[np.ndarray, "d"]
    """The code: what is remembered, as the memory holds it."""


@dataclass(frozen=True)
class Threshold:
    """The similarity from which a query is about an item, and how often that is wrong."""

    least: float
    """The smallest cosine that passes."""
    answered: float
    """Share of queries about nothing written that are answered (false positives)."""
    refused: float
    """Share of queries about something written that are not answered (false negatives)."""


@dataclass(frozen=True)
class Closeness:
    """The thresholds for each kind of comparison (`closeness.measure`)."""

    text: Threshold
    """Texts with texts."""
    image: Threshold
    """Images with images."""
    cross: Threshold
    """Images with texts."""
    pairs: int
    """Number of pairs of image and text that they were measured on."""
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
        """The record with more items, numbered from `next`."""
        new = [replace(item, number=n) for n, item in enumerate(items, self.next)]
        return replace(self, items=(*self.items, *new), next=self.next + len(new))

    def without(self, numbers: Iterable[int]) -> "Record":
        """The record without the items with these numbers."""
        gone = set(numbers)
        return replace(self, items=tuple(i for i in self.items if i.number not in gone))

    def vectors(self, name: str) -> Float32[np.ndarray, "n d"]:
        """`key`, `text_key` or `code` of all items."""
        return np.stack([getattr(item, name) for item in self.items])


class Sums(NamedTuple):
    """`larimar.SufficientStats` in numpy, float64."""

    gram: Float[np.ndarray, "m m"]
    total: Float[np.ndarray, "m d"]
    number: np.ndarray


def contribution(memory: Memory, record: Record) -> Sums:
    """The sums of a record's items, in float64."""
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
    """The sums of a memory after its record changed, in the dtypes of `held`.

    What was written without a record stays. If there is no such rest, the result is the sum of the
    items alone, so that rounding errors do not accumulate.

    Args:
        memory: the memory, whose slots the items are addressed with.
        held: its stored sums, float32 or float64.
        before: the items that they contain.
        after: the items that they shall contain.

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
            why="the model was trained further, or its memory set, after the items were written",
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
        content: the file's bytes.
        width: length of the model's features.

    Raises:
        Problem: (corrupt) it is damaged, of another version, or from a model of another width.
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
        raise ValueError("an item has no number or no text")
    vectors = {
        name: np.frombuffer(base64.b64decode(entry[name], validate=True), "<f4")
        for name in _VECTORS
    }
    for name, vector in vectors.items():
        if vector.shape != (width,) or not np.isfinite(vector).all():
            raise ValueError(f"{name} does not have {width} finite numbers")
    key, text_key, code = vectors.values()
    return Item(entry["number"], **words, key=key, text_key=text_key, code=code)


def _closeness(entry: dict[str, Any]) -> Closeness:
    found = {name: Threshold(**entry[name]) for name in ("text", "image", "cross")}
    return Closeness(**found, pairs=int(entry["pairs"]), data=str(entry["data"]))
