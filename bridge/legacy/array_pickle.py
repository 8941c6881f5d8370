"""Pickled trees of arrays, as numpy and jax write them, read as data: see `unpickle`.

Forms: `_reconstruct(ndarray, (0,), b"b")` and a BUILD with (1, shape, dtype, whether Fortran order,
bytes); from protocol 5 on `_frombuffer(bytes, dtype, shape, order)`; a scalar is
`scalar(dtype, bytes)`; a jax array wraps the first. Tuples of optax stay names with values.
Source: numpy's `__reduce__` and `__reduce_ex__`, old and new module paths; jax `_src/array.py`, and
`_src/device_array.py` before jax 0.4.

A zip of pickles is walked once when it is opened, every CRC to the end. Of each array above 1 MB
only the place is kept, as a copy of the decompressor's state, so that any array is read later
without what precedes it: 1.9 GB of wigip:1.7b and its moments were opened with 179 MB of memory.
"""

import re
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np

from bridge.core.tensors import DTYPES, Tensor
from bridge.legacy.budget import Allowance
from bridge.legacy.inflate import GzipStream, Span
from bridge.legacy.instructions import BrokenPickle
from bridge.legacy.unpickle import read_pickle
from bridge.legacy.values import Building, Named, as_dict, brief, natural
from bridge.legacy.zip_reader import read_entries
from jaxmodels.errors import CORRUPT, UNSAFE, Problem

MAX_DIMS = 32
MAX_DEPTH = 20
_NAME = re.compile(r"[A-Za-z0-9_-]{1,100}")

_KINDS = {dtype.str[1:]: dtype for dtype in DTYPES.values() if dtype.kind != "V"}
_BFLOAT16 = "ml_dtypes.bfloat16"
_NDARRAY = "numpy.ndarray"
_CORES = ("numpy.core", "numpy._core")


@dataclass
class Kind(Building):
    """A dtype; BUILD says its byte order."""

    dtype: np.dtype

    def build(self, state: Any) -> None:
        """Takes (version, byte order, and None or sizes: nothing within elements)."""
        match state:
            case (int(), "<" | "|" | "=" | ">" as order, None, None, None, int(), int(), int()):
                self.dtype = self.dtype.newbyteorder(order)
            case _:
                raise BrokenPickle(f"a dtype of state {brief(state)}")


@dataclass
class Array(Building):
    """An array, unread if it is large."""

    shape: tuple[int, ...] = ()
    dtype: np.dtype | None = None
    data: bytes | Span = field(default=b"", repr=False)
    order: Literal["C", "F"] = "C"

    def build(self, state: Any) -> None:
        """Takes (version, shape, dtype, whether in Fortran order, bytes)."""
        match state:
            case (int(), tuple(shape), Kind(dtype), bool(fortran), bytes() | Span() as data):
                self.fill(shape, dtype, data, "F" if fortran else "C")
            case _:
                raise BrokenPickle(f"an array of state {brief(state)}")

    def fill(
        self, shape: Any, dtype: np.dtype, data: bytes | Span, order: Literal["C", "F"]
    ) -> None:
        """Takes the parts, which must fit each other."""
        if len(shape) > MAX_DIMS or not all(map(natural, shape)):
            raise BrokenPickle(f"an array of shape {brief(shape)}")
        if prod(shape) * dtype.itemsize != len(data):
            raise BrokenPickle(f"an array of shape {shape} and {dtype}, of {len(data):,} bytes")
        self.shape, self.dtype, self.data, self.order = shape, dtype, data, order

    def tensor(self, name: str) -> Tensor:
        """The array under a name; little-endian, whatever the file has."""
        if self.dtype is None:
            raise BrokenPickle(f"{name} is an array without values")
        return Tensor(name, self.shape, self.dtype.newbyteorder("<"), self.values)

    def values(self) -> np.ndarray:
        """The values, of the shape and in the dtype that `tensor` says."""
        assert self.dtype is not None
        held = self.data.read() if isinstance(self.data, Span) else self.data
        array: np.ndarray = np.frombuffer(held, self.dtype).reshape(self.shape, order=self.order)
        return array.astype(self.dtype.newbyteorder("<"), copy=False)


class _OptaxNames:
    """The names of optax's classes: their values are read, the classes never looked up."""

    def __contains__(self, name: object) -> bool:
        return bool(re.fullmatch(r"optax(\.[a-z_]\w*)+\.[A-Z]\w*", str(name)))


def read_arrays(stream: GzipStream, path: Path) -> Any:
    """The value in a member: plain values, `Array` for arrays, `Record` for optax's tuples.

    Raises:
        Problem: (unsafe) the pickle names anything else, or has arrays of Python objects, or
            becomes too large; (corrupt) damaged, or no pickle of such values.
    """
    where = f"{path}: {stream.member}"
    try:
        value = read_pickle(stream, where, _calls(where), _CONSTANTS, None, _OptaxNames())
    except BrokenPickle as error:
        if stream.start in (b"\x1f\x8b", b"PK"):
            raise _unsafe(
                "there is a compressed file in a compressed file",
                where,
                "so do those that fill disk and memory; it was not unpacked",
            ) from error
        stream.drain()  # damage below, or a size beyond all bounds, explains more
        raise _damaged(where, str(error)) from error
    stream.finish()
    return value


def read_members(path: Path, names: str) -> dict[str, Any]:
    """`read_arrays` of the members of a zip whose names match, in full.

    Returns:
        `values` (name → value), and `others` (the names of the other members).
    """
    allowance, values, others = Allowance.of(path), {}, []
    for entry in read_entries(path):
        if re.fullmatch(names, entry.name):
            values[entry.name] = read_arrays(GzipStream(allowance, entry), path)
        else:
            others.append(entry.name)
    return {"values": values, "others": others}


def tensors_of(value: Any, name: str, where: str) -> dict[str, Tensor]:
    """The arrays of a tree of dicts by name, keys joined with dots, `name` before them.

    Raises:
        Problem: (corrupt) it holds anything but arrays, or is no tree.
    """
    found: dict[str, Tensor] = {}
    seen: set[int] = set()

    def walk(node: Any, name: str, depth: int) -> None:
        if isinstance(node, Tensor):
            found[name] = replace(node, name=name)
            return
        if type(node) is not dict or id(node) in seen or depth > MAX_DEPTH:
            raise BrokenPickle(f"{name or 'it'} is not a tree of arrays: {brief(node)}")
        seen.add(id(node))
        for key, child in node.items():
            if not isinstance(key, str) or not _NAME.fullmatch(key):
                raise BrokenPickle(f"{name or 'it'} has the key {brief(key)}")
            walk(child, f"{name}.{key}" if name else key, depth + 1)

    try:
        walk(value, name, 0)
    except BrokenPickle as error:
        raise _damaged(where, str(error)) from error
    return found


def _damaged(where: str, why: str) -> Problem:
    return Problem(
        "a pickle in the file cannot be read",
        where=where,
        why=why,
        fix="fetch or save the file again",
        exit_code=CORRUPT,
    )


def _unsafe(what: str, where: str, why: str) -> Problem:
    return Problem(
        what,
        where=where,
        why=why,
        fix="use it only if you trust it: save its tensors alone, as safetensors, elsewhere",
        exit_code=UNSAFE,
    )


def kind_of(of: Any, *_: Any) -> Kind | None:
    """The dtype that numpy's `dtype(of)` is; None where it is none of numbers."""
    name = of.name if isinstance(of, Named) else of
    if name == _BFLOAT16:
        return Kind(DTYPES["BF16"])
    return Kind(_KINDS[name]) if isinstance(name, str) and name in _KINDS else None


def _calls(where: str) -> dict[str, Any]:
    """What stands in for each name that numpy and jax call."""

    def kind(of: Any, *_: Any) -> Kind:
        if (known := kind_of(of)) is not None:
            return known
        raise _unsafe(
            "the file holds arrays that are not numbers, and was refused",
            where,
            f"the dtype is {brief(of.name if isinstance(of, Named) else of)}; arrays of objects "
            "may run code when they are loaded the usual way",
        )

    return {
        **NUMPY,
        "numpy.dtype": kind,
        "jax._src.array._reconstruct_array": _jax_array,
        "jax._src.device_array.reconstruct_device_array": _jax_array,
        "collections.OrderedDict": as_dict,
        "flax.core.frozen_dict.FrozenDict": as_dict,
        "__builtin__.bytes": bytes_of_old,
    }


_CONSTANTS = {_NDARRAY, _BFLOAT16}


def _reconstruct(of: Any, shape: Any, code: Any) -> Array:
    if of != Named(_NDARRAY) or shape != (0,) or code not in (b"b", "b"):
        raise BrokenPickle(f"an array of class {brief(of)}")
    return Array()


def _scalar(kind: Any, data: Any) -> Array:
    array = Array()
    array.build((1, (), kind, False, data))
    return array


def _from_buffer(data: Any, kind: Any, shape: Any, order: Any, axes: Any = None) -> Array:
    if order not in ("C", "F") or axes is not None:
        raise BrokenPickle(f"an array in the order {brief(order)}, {brief(axes)}")
    array = Array()
    array.build((1, shape, kind, order == "F", data))
    return array


def _jax_array(function: Any, arguments: Any, state: Any, *_: Any) -> Array:
    if function not in [Named(f"{core}.multiarray._reconstruct") for core in _CORES]:
        raise BrokenPickle(f"a jax array made by {brief(function)}")
    array = _reconstruct(*arguments)
    array.build(state)
    return array


def bytes_of_old() -> bytes:
    """Empty bytes, as protocols below 3 write them."""
    return b""


def _encode(text: Any, encoding: Any) -> bytes:
    """Bytes, as protocols below 3 write them."""
    if encoding != "latin1":
        raise BrokenPickle(f"bytes as {brief(encoding)}")
    return text.encode("latin1")


# What stands in for what numpy's arrays call, but for dtypes.
NUMPY: dict[str, Any] = {
    **{f"{core}.multiarray._reconstruct": _reconstruct for core in _CORES},
    **{f"{core}.multiarray.scalar": _scalar for core in _CORES},
    **{f"{core}.numeric._frombuffer": _from_buffer for core in _CORES},
    "_codecs.encode": _encode,
}
