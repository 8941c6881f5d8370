"""What a reader found, as JSON, in which it leaves the process that read it (see `client`).

The JSON is a table of the dicts, lists and tensors, which refer to each other by number, so that
shared values stay shared, and a list may hold itself. A reference is a list of one number; numbers,
strings and None stand for themselves. Tuples become lists; a tensor becomes its name, dtype and
shape; anything else, bytes too, becomes a short description, a `Named`.
"""

from collections.abc import Callable
from functools import partial
from math import prod
from typing import Any

import numpy as np

from bridge.core.tensors import DTYPE_CODES, DTYPES, Tensor
from bridge.legacy.array_pickle import MAX_DIMS, Array
from bridge.legacy.values import Named, Record, brief, natural

Read = Callable[[int, tuple[int, ...], np.dtype], np.ndarray]
_SCALARS = (type(None), bool, int, float, str)


class Garbled(ValueError):
    """It is not what `encode` makes."""


def encode(value: Any) -> tuple[dict[str, Any], list[Tensor]]:
    """The value as JSON, and its tensors in the order in which the table has them."""
    parts: list[Any] = []
    places: dict[int, int] = {}
    tensors: list[Tensor] = []

    def point(part: Any) -> Any:
        if isinstance(part, np.generic):
            part = part.item()
        if type(part) in _SCALARS:
            return part
        if id(part) not in places:
            places[id(part)] = len(parts)
            parts.append(part)
        return [places[id(part)]]

    def row(part: Any) -> list[Any]:
        if isinstance(part, Array) and part.dtype is not None:
            part = part.tensor("")
        if isinstance(part, Tensor):
            tensors.append(part)
            return ["tensor", part.name, DTYPE_CODES[part.dtype], part.shape]
        if isinstance(part, dict):
            items = [[point(key), point(value)] for key, value in part.items()]
            if not isinstance(part, Record):
                return ["dict", items]
            return ["record", items, part.name, [point(value) for value in part.values_in_order]]
        if type(part) in (list, tuple):
            return ["list", [point(child) for child in part]]
        if isinstance(part, Array):
            return ["named", "an array that is not of numbers"]
        return ["named", part.name if isinstance(part, Named) else brief(part)]

    top = point(value)
    return {"top": top, "table": [row(part) for part in parts]}, tensors  # parts grows meanwhile


def decode(encoded: Any, read: Read, largest: int) -> Any:
    """The value that `encode` took; everything is checked before it is used.

    Args:
        encoded: the JSON.
        read: reads the tensor of a number, whose shape and dtype are these.
        largest: bytes that a tensor may have.

    Raises:
        Garbled: it is not what `encode` makes.
    """
    try:
        return _Decoded(encoded["table"], read, largest).part(encoded["top"])
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise Garbled(f"{type(error).__name__}: {str(error)[:200]}") from error


class _Decoded:
    def __init__(self, table: Any, read: Read, largest: int):
        self.table, self.read, self.largest = table, read, largest
        self.tensors = 0
        # All are made before any is filled: they may hold each other.
        self.made = [self.begun(*row) for row in table]
        for made, (kind, *content) in zip(self.made, table, strict=True):
            if kind == "list":
                made.extend(map(self.part, content[0]))
            elif kind in ("dict", "record"):
                made.update((self.key(key), self.part(value)) for key, value in content[0])
            if kind == "record":
                made.values_in_order = tuple(map(self.part, content[2]))

    def begun(self, kind: str, *content: Any) -> Any:
        match kind, content:
            case "list", [list()]:
                return []
            case "dict", [list()]:
                return {}
            case "record", [list(), str(name), list()]:
                return Record(name, ())
            case "named", [str(name)]:
                return Named(name)
            case "tensor", [str(name), str(code), list(shape)]:
                return self.tensor(name, DTYPES[code], tuple(shape))
        raise Garbled(f"a part of the kind {brief(kind)}")

    def tensor(self, name: str, dtype: np.dtype, shape: tuple[int, ...]) -> Tensor:
        sound = len(shape) <= MAX_DIMS and all(map(natural, shape))
        if not sound or prod(shape) * dtype.itemsize > self.largest:
            raise Garbled(f"a tensor of shape {brief(shape)}")
        number, self.tensors = self.tensors, self.tensors + 1
        return Tensor(name, shape, dtype, partial(self.read, number, shape, dtype))

    def part(self, pointer: Any) -> Any:
        if type(pointer) in _SCALARS:
            return pointer
        (number,) = pointer
        if not natural(number):
            raise Garbled(f"a part of the number {brief(number)}")
        return self.made[number]

    def key(self, pointer: Any) -> Any:
        """A key, which cannot be a list: one of scalars was a tuple."""
        key = self.part(pointer)
        if type(key) is list:
            key = tuple(self.table[pointer[0]][1])
            if not all(type(part) in _SCALARS for part in key):
                raise Garbled(f"a key of {brief(key)}")
        if not isinstance(key, (*_SCALARS, tuple)):
            raise Garbled(f"a key that is {brief(key)}")
        return key
