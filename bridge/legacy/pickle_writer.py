"""Writes pickles of plain values and numpy arrays: the few instructions of protocol 4 they need.

Arrays are written as numpy 1 and 2 both read them (`numpy.core`, not `numpy._core`), optax's tuples
under the names that all its versions know. The same values give the same bytes.
"""

import struct
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from bridge.core.tensors import DTYPES, Tensor, raw
from bridge.legacy.values import Record

_PIECE = 2**20
_TO_NUMPY = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R"
# Size and alignment in memory follow from the dtype, flags are none.
_USUAL = b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00"
_BFLOAT16 = b"K\x02K\x02K\x40"


class Writable(Protocol):
    """Where a pickle is written to."""

    def write(self, data: Any, /) -> object:
        """Takes bytes."""


def write_pickle(
    file: Writable, value: Any, leaf: Callable[[Writable, Tensor], None], protocol: int = 4
) -> None:
    """Writes a value of dicts, lists, tuples, strings, numbers, None, `Record`s and `Tensor`s.

    Args:
        file: where to.
        value: the value; `Record`s are named tuples.
        leaf: writes what stands for a tensor, called in the order of writing.
        protocol: the number in the header; without bytes, all from 2 on are the same.
    """
    file.write(bytes([0x80, protocol]))
    _write(file, value, leaf)
    file.write(b".")


def write_text(file: Writable, text: str) -> None:
    """A string."""
    data = text.encode()
    file.write(b"X" + struct.pack("<I", len(data)) + data)


def write_number(file: Writable, number: int) -> None:
    """A number of at most 64 bits."""
    file.write(b"\x8a\x09" + number.to_bytes(9, "little", signed=True))


def write_array(file: Writable, values: np.ndarray) -> None:
    """numpy's own form of an array in C order."""
    file.write(_TO_NUMPY + b"(K\x01")
    _write(file, values.shape, _no_leaf)
    _dtype(file, values.dtype)
    data = raw(values).data
    wide = len(data) >= 2**32
    file.write(b"\x89" + (b"\x8e" if wide else b"B"))
    file.write(struct.pack("<Q" if wide else "<I", len(data)))
    for start in range(0, len(data), _PIECE):
        file.write(data[start : start + _PIECE])
    file.write(b"tb")


def _no_leaf(file: Writable, tensor: Tensor) -> None:
    raise TypeError("there are no tensors in a shape")


def _write(file: Writable, value: Any, leaf: Callable[[Writable, Tensor], None]) -> None:
    match value:
        case Record():
            module, _, name = value.name.rpartition(".")
            file.write(f"c{module}\n{name}\n".encode())
            _write(file, value.values_in_order, leaf)
            file.write(b"\x81")
        case dict():
            file.write(b"}(")
            for item in value.items():
                for part in item:
                    _write(file, part, leaf)
            file.write(b"u")
        case tuple() | list():
            file.write(b"(" if isinstance(value, tuple) else b"](")
            for item in value:
                _write(file, item, leaf)
            file.write(b"t" if isinstance(value, tuple) else b"e")
        case str():
            write_text(file, value)
        case bool() | None:
            file.write({True: b"\x88", False: b"\x89", None: b"N"}[value])
        case int():
            write_number(file, value)
        case float():
            file.write(b"G" + struct.pack(">d", value))
        case Tensor():
            leaf(file, value)
        case _:
            raise TypeError(f"a {type(value).__name__} is not written")


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
