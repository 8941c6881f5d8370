"""Reads trees of arrays in the msgpack form of `flax.serialization`, each array when asked.

`msgpack.Unpacker` would do for the tree, but it copies each array, of up to a gigabyte, to memory
and does not tell where in the file it is; so it could not stay there until it is asked for.

An array is a msgpack extension of type 1 whose bytes are themselves msgpack: [shape, dtype name,
values]. One of more than 2^30 bytes is a map {"__msgpack_chunked_array__": true, "shape": ...,
"chunks": ...} of flat pieces. Tuples, lists and named tuples are maps with string keys.
Source: flax 0.12, `flax/serialization.py`; msgpack's specification.
"""

import struct
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np

from bridge.core.tensors import DTYPES, Tensor
from jaxmodels.errors import CORRUPT, Problem

CHUNKED = "__msgpack_chunked_array__"
MAX_DEPTH = 64
MAX_DIMS = 32
MAX_ITEMS = 1_000_000  # of all maps and lists together
MAX_NAME = 1000  # bytes
ARRAY, COMPLEX, SCALAR = 1, 2, 3  # flax's extension types
_KINDS = {dtype.name: dtype for dtype in DTYPES.values()}

Tree = dict[str, Any]

# First byte → (what follows, the form of its length).
_LENGTHS = {
    0xC4: ("bin", ">B"), 0xC5: ("bin", ">H"), 0xC6: ("bin", ">I"),
    0xC7: ("ext", ">B"), 0xC8: ("ext", ">H"), 0xC9: ("ext", ">I"),
    0xD9: ("str", ">B"), 0xDA: ("str", ">H"), 0xDB: ("str", ">I"),
    0xDC: ("array", ">H"), 0xDD: ("array", ">I"),
    0xDE: ("map", ">H"), 0xDF: ("map", ">I"),
}  # fmt: skip
_NUMBERS = {
    0xCA: ">f", 0xCB: ">d", 0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q",
    0xD0: ">b", 0xD1: ">h", 0xD2: ">i", 0xD3: ">q",
}  # fmt: skip
_CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}


def looks_like_tree(path: Path) -> bool:
    """Whether a file begins as a msgpack map with a short string for its first key."""
    with path.open("rb") as file:
        start = file.read(6)
    if not start or not (0x81 <= start[0] <= 0x8F or start[0] in (0xDE, 0xDF)):
        return False
    key = start[{0xDE: 3, 0xDF: 5}.get(start[0], 1) :]
    return bool(key) and (0xA1 <= key[0] <= 0xBF or key[0] == 0xD9)


def read_msgpack(path: Path) -> Tree:
    """The tree in a file: nested dicts whose leaves are plain values and `Tensor`s, unread.

    Only the structure is read; each tensor reads its own bytes when it is asked.

    Raises:
        Problem: (corrupt) cut off, or not what flax writes.
    """
    with path.open("rb") as file:
        reader = _Reader(path, file)
        tree = reader.value("")
        if not isinstance(tree, dict):
            _refuse(path, "the file holds no tree", f"its top is a {type(tree).__name__}")
        if file.tell() != reader.size:
            extra = f"{reader.size - file.tell():,} bytes"
            _refuse(path, "there is data after the tree", extra)
    return tree


def leaves(tree: Tree, prefix: str = "") -> dict[str, Any]:
    """Leaf by its dotted name: {"a": {"b": x}} → {"a.b": x}."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            found |= leaves(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found


class _Reader:
    def __init__(self, path: Path, file: BinaryIO):
        self.path, self.file, self.size = path, file, path.stat().st_size
        self.left = MAX_ITEMS

    def value(self, name: str, depth: int = 0) -> Any:
        """The next value; `name` is its place in the tree, keys joined with dots."""
        if depth > MAX_DEPTH:
            _refuse(self.path, "the tree is too deep", f"at most {MAX_DEPTH} levels are read")
        kind, length = self.header()
        if kind in ("map", "array"):
            self.left -= length
            if self.left < 0:
                _refuse(self.path, "the tree is too large", f"at most {MAX_ITEMS:,} parts are read")
        if kind == "map":
            return self.map(length, name, depth)
        if kind == "array":
            return [self.value(f"{name}.{i}", depth + 1) for i in range(length)]
        if kind == "str":
            return self.text(length)
        if kind == "bin":
            return self.take(length)
        if kind == "ext":
            return self.extension(length, name)
        return length

    def map(self, length: int, name: str, depth: int) -> Any:
        result: Tree = {}
        for _ in range(length):
            kind, size = self.header()
            if kind == "str" and size > MAX_NAME:
                _refuse(self.path, f"a key in {name or 'the tree'} is too long", f"{size:,} bytes")
            key = self.text(size) if kind == "str" else str(size)
            if key in result or kind not in ("str", "plain"):
                _refuse(self.path, f"bad key in {name or 'the tree'}", repr(key)[:80])
            result[key] = self.value(f"{name}.{key}" if name else key, depth + 1)
        return self.chunked(result, name) if CHUNKED in result else result

    def header(self) -> tuple[str, Any]:
        """What comes next and its length; ("plain", value) for what fits the header."""
        first = self.take(1)[0]
        if first < 0x80 or first >= 0xE0:
            return "plain", first if first < 0x80 else first - 256
        if first < 0xC0:
            kind = "map" if first < 0x90 else "array" if first < 0xA0 else "str"
            return kind, first & (0x1F if kind == "str" else 0x0F)
        if first in _CONSTANTS:
            return "plain", _CONSTANTS[first]
        if first in _NUMBERS:
            return "plain", self.number(_NUMBERS[first])
        if 0xD4 <= first <= 0xD8:
            return "ext", 1 << (first - 0xD4)
        if first not in _LENGTHS:
            _refuse(self.path, "this is not msgpack", f"byte {first:#x} at {self.file.tell() - 1}")
        kind, form = _LENGTHS[first]
        return kind, self.number(form)

    def extension(self, length: int, name: str) -> Any:
        kind = self.take(1)[0]
        end = self.file.tell() + length
        if kind == COMPLEX:
            return self.complex(name, end)
        if kind not in (ARRAY, SCALAR):
            _refuse(self.path, f"{name} is of an unknown kind", f"extension type {kind}")
        if self.header() != ("array", 3):
            _refuse(self.path, f"{name} is not an array", "[shape, dtype, values] is missing")
        shape, dtype = (self.value(name, MAX_DEPTH - 1) for _ in range(2))
        label, size = self.header()
        start = self.file.tell()
        sound = _is_shape(shape) and isinstance(dtype, str) and dtype in _KINDS
        if not sound or label != "bin":
            _refuse(self.path, f"{name} is not an array", f"shape {shape}, dtype {dtype}"[:200])
        needed = prod(shape) * _KINDS[dtype].itemsize
        if size != needed or start + size != end:
            _refuse(self.path, f"shape and bytes of {name} disagree", f"{needed:,} and {size:,}")
        self.need(start + size)
        self.file.seek(start + size)
        tensor = self.tensor(name, tuple(shape), _KINDS[dtype], start)
        return tensor.read()[()] if kind == SCALAR else tensor

    def complex(self, name: str, end: int) -> complex:
        """A complex number: the list of its two parts."""
        parts = self.value(name, MAX_DEPTH - 1)
        numbers = isinstance(parts, list) and all(type(part) in (int, float) for part in parts)
        if not numbers or len(parts) != 2 or self.file.tell() != end:
            _refuse(self.path, f"{name} is not a complex number", repr(parts)[:80])
        return complex(*parts)

    def chunked(self, parts: Tree, name: str) -> Tensor:
        """The tensor whose flat pieces these are."""
        shape, pieces = parts.get("shape"), parts.get("chunks")
        if not isinstance(shape, dict) or not isinstance(pieces, dict):
            _refuse(self.path, f"{name} is not a chunked array", "shape or chunks are missing")
        # Keys count "0", "1", ..., in whatever order they were written.
        sizes: list[Any] = [shape.get(str(i)) for i in range(len(shape))]
        chunks: list[Any] = [pieces.get(str(i)) for i in range(len(pieces))]
        sound = _is_shape(sizes) and all(isinstance(chunk, Tensor) for chunk in chunks)
        if not sound or len({chunk.dtype for chunk in chunks}) != 1:
            _refuse(self.path, f"{name} is not a chunked array", f"shape {sizes}"[:200])
        if sum(chunk.size for chunk in chunks) != prod(sizes):
            _refuse(self.path, f"the pieces of {name} do not fit its shape", f"{sizes}"[:200])

        def read() -> np.ndarray:
            array = np.empty(prod(sizes), chunks[0].dtype)
            start = 0
            for chunk in chunks:
                array[start : start + chunk.size] = chunk.read().reshape(-1)
                start += chunk.size
            return array.reshape(sizes)

        return Tensor(name, tuple(sizes), chunks[0].dtype, read)

    def tensor(self, name: str, shape: tuple[int, ...], dtype: np.dtype, start: int) -> Tensor:
        path, size = self.path, prod(shape) * dtype.itemsize

        def read() -> np.ndarray:
            buffer = np.empty(size, np.uint8)
            with path.open("rb") as file:
                file.seek(start)
                if size and file.readinto(buffer.data) != size:
                    _cut(path, start + size)
            return buffer.view(dtype).reshape(shape)

        return Tensor(name, shape, dtype, read)

    def text(self, length: int) -> str:
        try:
            return self.take(length).decode("utf-8")
        except UnicodeDecodeError as error:
            _refuse(self.path, "the tree has a name that is not text", str(error))

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def take(self, length: int) -> bytes:
        self.need(self.file.tell() + length)
        return self.file.read(length)

    def need(self, end: int) -> None:
        if end > self.size:
            _cut(self.path, end)


def _is_shape(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) <= MAX_DIMS
        and all(type(n) is int and 0 <= n < 2**60 for n in value)
    )


def _cut(path: Path, needed: int) -> NoReturn:
    have = path.stat().st_size
    _refuse(path, "the file is truncated", f"at least {needed:,} bytes are needed, it has {have:,}")


def _refuse(path: Path, what: str, why: str) -> NoReturn:
    raise Problem(
        what, where=str(path), why=why, fix="fetch or save the file again", exit_code=CORRUPT
    )
