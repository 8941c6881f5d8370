"""Writes pickles of plain values and numpy arrays: the few instructions of protocol 4 they need.

Arrays are written as numpy 1 and 2 both read them (`numpy.core`, not `numpy._core`), optax's tuples
under the names that all its versions know. The same values give the same bytes.
"""

import struct
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from bridge.legacy.unpickle import Record
from bridge.tensors import DTYPES, Tensor, raw

_PIECE = 2**20
_TO_NUMPY = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R"
# Size and alignment in memory follow from the dtype, flags are none.
_USUAL = b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00"
_BFLOAT16 = b"K\x02K\x02K\x40"


class Writable(Protocol):
    """Where a pickle is written to."""

    def write(self, data: Any, /) -> object:
        """Takes bytes."""


def write_pickle(file: Writable, value: Any, array: Callable[[Tensor], np.ndarray]) -> None:
    """Writes a value of dicts, tuples, strings, numbers, `Record`s and `Tensor`s.

    Args:
        file: where to.
        value: the value; `Record`s are named tuples.
        array: the values of a tensor, called in the order of writing, one at a time.
    """
    file.write(b"\x80\x04")
    _write(file, value, array)
    file.write(b".")


def _write(file: Writable, value: Any, array: Callable[[Tensor], np.ndarray]) -> None:
    match value:
        case Record():
            module, _, name = value.name.rpartition(".")
            file.write(f"c{module}\n{name}\n".encode())
            _write(file, value.values_in_order, array)
            file.write(b"\x81")
        case dict():
            file.write(b"}(")
            for key, item in value.items():
                _write(file, key, array)
                _write(file, item, array)
            file.write(b"u")
        case tuple():
            file.write(b"(")
            for item in value:
                _write(file, item, array)
            file.write(b"t")
        case str():
            text = value.encode()
            file.write(b"X" + struct.pack("<I", len(text)) + text)
        case int():
            number = value.to_bytes(9, "little", signed=True)
            file.write(b"\x8a\x09" + number)
        case Tensor():
            _array(file, array(value), array)
        case _:
            raise TypeError(f"a {type(value).__name__} is not written")


def _array(file: Writable, values: np.ndarray, array: Callable[[Tensor], np.ndarray]) -> None:
    """numpy's own form of an array in C order."""
    file.write(_TO_NUMPY + b"(K\x01")
    _write(file, values.shape, array)
    _dtype(file, values.dtype)
    data = raw(values).data
    wide = len(data) >= 2**32
    file.write(b"\x89" + (b"\x8e" if wide else b"B"))
    file.write(struct.pack("<Q" if wide else "<I", len(data)))
    for start in range(0, len(data), _PIECE):
        file.write(data[start : start + _PIECE])
    file.write(b"tb")


def _dtype(file: Writable, dtype: np.dtype) -> None:
    little = dtype.newbyteorder("<")
    file.write(b"cnumpy\ndtype\n")
    if little == DTYPES["BF16"]:
        file.write(b"cml_dtypes\nbfloat16\n")
    else:
        name = little.str[1:].encode()
        file.write(b"X" + struct.pack("<I", len(name)) + name)
    order = b"|" if dtype.itemsize == 1 else b"<"
    sizes = _BFLOAT16 if little == DTYPES["BF16"] else _USUAL
    file.write(b"\x89\x88\x87R(K\x03X\x01\x00\x00\x00" + order + b"NNN" + sizes + b"tb")
