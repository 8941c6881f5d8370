"""Reads GGUF files, the form of llama.cpp, without believing anything in them.

Format: "GGUF", version, number of tensors and of keys; keys with typed values; for each tensor its
name, axes (innermost first), type and offset; then, aligned, the data.
Source: ggml's `docs/gguf.md`. Q8_0 is 32 numbers: a float16 scale and 32 int8.
"""

import struct
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, NoReturn

import numpy as np

from bridge.core.tensors import DTYPES, Tensor
from jaxmodels.errors import CORRUPT, Problem

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_KEYS, MAX_TENSORS, MAX_DIMS, MAX_NAME = 10_000, 100_000, 4, 65_535
MAX_ITEMS = 2_000_000  # of all arrays together; the largest vocabularies have 300,000 tokens
MAX_TEXT = 100_000_000  # bytes of all strings together
ALIGNMENT = "general.alignment"

_NUMBERS = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q",
    12: "<d",
}  # fmt: skip
_STRING, _ARRAY = 8, 9

# A block of Q8_0: 32 numbers.
Q8_0 = np.dtype([("scale", "<f2"), ("values", "i1", 32)])
BLOCK = 32
# ggml's type → its encoding in the file.
TYPES = {0: DTYPES["F32"], 1: DTYPES["F16"], 8: Q8_0, 30: DTYPES["BF16"]}
_OTHERS = {2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K",
           13: "Q5_K", 14: "Q6_K", 15: "Q8_K"}  # fmt: skip


class _Info(NamedTuple):
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    offset: int

    @property
    def nbytes(self) -> int:
        return stored_bytes(self.shape, self.dtype)


def looks_like_gguf(path: Path) -> bool:
    """Whether a file begins as GGUF files do."""
    with path.open("rb") as file:
        return file.read(4) == MAGIC


def stored_bytes(shape: tuple[int, ...], dtype: np.dtype) -> int:
    """Bytes of a tensor in the file."""
    per = BLOCK if dtype == Q8_0 else 1
    return prod(shape) // per * dtype.itemsize


def dequantised(blocks: np.ndarray) -> np.ndarray:
    """float32 [n * 32] of n blocks of Q8_0."""
    scale = blocks["scale"].astype(np.float32)[:, None]
    return (blocks["values"].astype(np.float32) * scale).reshape(-1)


def read_gguf(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Keys and tensors (unread; those of Q8_0 are read as float32) of a file.

    Raises:
        Problem: (corrupt) cut off, or not what the format says, or of a type that is not read.
    """
    with path.open("rb") as file:
        reader = _Reader(path, file)
        magic, version = reader.take(4), reader.number("<I")
        if int.from_bytes(version.to_bytes(4, "big"), "little") in VERSIONS:
            known = "little-endian ones are, which all current machines write"
            _refuse(path, "big-endian GGUF files are not read", known)
        if magic != MAGIC or version not in VERSIONS:
            _refuse(path, "this is not a GGUF file of version 2 or 3", f"it says version {version}")
        tensors, count = reader.number("<Q"), reader.number("<Q")
        if tensors > MAX_TENSORS or count > MAX_KEYS:
            _refuse(
                path, "the GGUF file has too many parts", f"{tensors:,} tensors, {count:,} keys"
            )
        keys: dict[str, Any] = {}
        for _ in range(count):
            key = reader.text(MAX_NAME)
            if key in keys:
                _refuse(path, "a key occurs twice", repr(key)[:100])
            keys[key] = reader.value(reader.number("<I"))
        infos = [reader.info() for _ in range(tensors)]
        end = file.tell()
    alignment = keys.get(ALIGNMENT, 32)
    if type(alignment) is not int or not 8 <= alignment <= 2**20 or alignment & (alignment - 1):
        _refuse(path, "its alignment is none", repr(alignment)[:80])
    return keys, _placed(path, infos, _aligned(end, alignment), alignment)


def _placed(path: Path, infos: list[_Info], base: int, alignment: int) -> dict[str, Tensor]:
    """The tensors, which must lie one after the other and fill the file."""
    if len({info.name for info in infos}) < len(infos):
        _refuse(path, "a tensor occurs twice", "")
    end, last = 0, 0
    for info in sorted(infos, key=lambda info: info.offset):
        if info.offset != end:
            what = "overlaps the one before" if info.offset < end else "leaves a hole before it"
            _refuse(path, f"the data of {info.name!r} {what}", f"at {info.offset}, not at {end}")
        last = end + info.nbytes
        end = _aligned(last, alignment)
    size = path.stat().st_size
    if not base + last <= size <= base + end:
        what = "the file is truncated" if size < base + last else "there is data behind its end"
        _refuse(path, what, f"expected {base + end:,} bytes, found {size:,}")
    return {
        info.name: Tensor(
            info.name,
            info.shape,
            DTYPES["F32"] if info.dtype == Q8_0 else info.dtype,
            partial(_values, path, base + info.offset, info),
        )
        for info in infos
    }


def is_quantised(tensor: Tensor) -> bool:
    """Whether a tensor of `read_gguf` is Q8_0 in the file."""
    read = tensor.read
    return isinstance(read, partial) and read.func is _values and read.args[2].dtype == Q8_0


def _values(path: Path, start: int, info: _Info) -> np.ndarray:
    buffer = np.empty(info.nbytes, np.uint8)
    with path.open("rb") as file:
        file.seek(start)
        if info.nbytes and file.readinto(buffer.data) != info.nbytes:
            _refuse(path, "the file is truncated", f"{info.name} reaches behind its end")
    array = buffer.view(info.dtype)
    return (dequantised(array) if info.dtype == Q8_0 else array).reshape(info.shape)


class _Reader:
    def __init__(self, path: Path, file: BinaryIO):
        self.path, self.file, self.size = path, file, path.stat().st_size
        self.items, self.bytes = MAX_ITEMS, MAX_TEXT

    def take(self, length: int) -> bytes:
        data = self.file.read(length) if length <= self.size else b""
        if len(data) != length:
            _refuse(self.path, "the file is truncated", f"{length:,} bytes are missing")
        return data

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def text(self, limit: int = MAX_TEXT) -> str:
        length = self.number("<Q")
        self.bytes -= length
        if length > limit or self.bytes < 0:
            _refuse(self.path, "a string is too long", f"{length:,} bytes")
        try:
            return self.take(length).decode("utf-8")
        except UnicodeDecodeError as error:
            _refuse(self.path, "a string is not text", str(error))

    def value(self, kind: int, nested: bool = False) -> Any:
        if kind in _NUMBERS:
            return self.number(_NUMBERS[kind])
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY or nested:
            _refuse(self.path, "a value is of an unknown kind", f"type {kind}")
        inner, length = self.number("<I"), self.number("<Q")
        self.items -= length
        if self.items < 0 or length > self.size:
            _refuse(self.path, "an array is too long", f"{length:,} items")
        return [self.value(inner, nested=True) for _ in range(length)]

    def info(self) -> _Info:
        name, dims = self.text(MAX_NAME), self.number("<I")
        if dims > MAX_DIMS:
            _refuse(self.path, f"bad shape of {name!r}", f"{dims} axes")
        shape = tuple(self.number("<Q") for _ in range(dims))[::-1]
        kind, offset = self.number("<I"), self.number("<Q")
        if kind not in TYPES:
            known = "F32, F16, BF16 and Q8_0 are read"
            _refuse(self.path, f"{name!r} is {_OTHERS.get(kind, f'of type {kind}')}", known)
        if prod(filter(None, shape)) >= 2**60 or offset >= 2**60:
            _refuse(self.path, f"bad shape of {name!r}", str(shape)[:80])
        if TYPES[kind] == Q8_0 and (not shape or shape[-1] % BLOCK):
            _refuse(self.path, f"bad shape of {name!r}", f"{shape}: Q8_0 has blocks of {BLOCK}")
        return _Info(name, shape, TYPES[kind], offset)


def _aligned(position: int, alignment: int) -> int:
    return -(-position // alignment) * alignment


def _refuse(path: Path, what: str, why: str) -> NoReturn:
    raise Problem(
        what, where=str(path), why=why, fix="fetch or save the file again", exit_code=CORRUPT
    )
