"""Where the pages of a Parquet column lie and what they unpack to, before anything is unpacked.

A file of a few hundred bytes may unpack to gigabytes, and what its footer says of sizes may be
untrue: the header of each page is what a reader allocates by. The footer is read here too, because
pyarrow ends the process where it tells of damaged columns one by one. Source: the format's
`FileMetaData` and `PageHeader`, https://github.com/apache/parquet-format, in Thrift's compact
protocol.
"""

from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple

from data_pipelines.limits import MAX_FOOTER
from jaxmodels.files import naming

_HEADER = 1 << 8  # bytes of a header that are read at first; statistics in it may hold two texts
_LONGEST_HEADER = 1 << 24  # what pyarrow takes
_DEEPEST = 12
_STOP, _TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY, _LIST, _SET, _STRUCT = 0, 1, 2, 3, 7, 8, 9, 10, 12
_INTEGERS = (4, 5, 6)

Struct = dict[int, Any]
"""A struct's values by the numbers of their fields."""


class Chunk(NamedTuple):
    """A column in a row group."""

    start: int
    """First byte in the file."""
    packed: int
    """Bytes in the file."""
    unpacked: int
    """Bytes that they unpack to, as the footer says."""


def chunks_of(path: Path, column: str) -> list[Chunk]:
    """A top-level column in each row group of a file.

    Raises:
        ValueError: the footer is damaged, or has no such column everywhere.
        OSError: the file cannot be read.
    """
    with naming(path), path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - 8))
        length = int.from_bytes(file.read(4), "little")
        if not 0 < length <= min(size - 12, MAX_FOOTER):
            raise ValueError(f"its footer has {length:,} bytes; at most {MAX_FOOTER:,} are read")
        file.seek(size - 8 - length)
        footer = file.read(length)
    name, found = [column.encode()], []
    try:
        for group in _struct(footer, 0, 0)[1][4]:
            if not group[3]:  # no rows, and no pages: the offsets may lead anywhere
                found.append(Chunk(0, 0, 0))
                continue
            told = next(chunk[3] for chunk in group[1] if chunk[3][3] == name)
            start = min(told[9], told.get(11) or told[9])
            found.append(Chunk(start, told[7], told[6]))
    except (IndexError, KeyError, TypeError, AttributeError, StopIteration) as error:
        raise ValueError(f"its footer is damaged: {type(error).__name__}") from None
    for chunk in found:
        if min(chunk) < 0 or chunk.start + chunk.packed > size:
            raise ValueError(f"its footer points to bytes {chunk}, and the file has {size:,}")
    return found


def largest_page(path: Path, chunk: Chunk) -> int:
    """Bytes that the largest page of a column chunk unpacks to.

    Raises:
        ValueError: the headers are damaged.
        OSError: the file cannot be read.
    """
    largest, at, end = 0, chunk.start, chunk.start + chunk.packed
    with naming(path), path.open("rb", buffering=0) as file:
        while at < end:
            length, unpacked, packed = _page(file, at)
            if min(unpacked, packed) < 0 or at + length + packed > end:
                raise ValueError(f"the page at byte {at} is longer than the column")
            largest = max(largest, unpacked)
            at += length + packed
    return largest


def _page(file: FileIO, at: int) -> tuple[int, int, int]:
    """Bytes of the header at a place, and those of its page, unpacked and packed."""
    size = _HEADER
    while True:
        file.seek(at)
        data = file.read(size)
        try:
            end, header = _struct(data, 0, 0)
            return end, int(header[2]), int(header[3])
        except (KeyError, TypeError):
            raise ValueError(f"the page at byte {at} does not tell its size") from None
        except IndexError:
            if len(data) < size or size >= _LONGEST_HEADER:
                raise ValueError(f"the header of the page at byte {at} does not end") from None
        size *= 16


def _struct(data: bytes, at: int, depth: int) -> tuple[int, Struct]:
    """The place after a struct, and the struct; IndexError where the data end before it."""
    fields: Struct = {}
    number = 0
    while (head := data[at]) != _STOP:
        at += 1
        kind, step = head & 15, head >> 4
        if step:
            number += step
        else:
            at, number = _integer(data, at)
        at, fields[number] = _value(data, at, kind, depth + 1)
    return at + 1, fields


def _value(data: bytes, at: int, kind: int, depth: int) -> tuple[int, Any]:
    """The place after a value, and the value."""
    if depth > _DEEPEST:
        raise ValueError("its metadata are nested too deeply")
    if kind in (_TRUE, _FALSE):
        return at, kind == _TRUE
    if kind in _INTEGERS:
        return _integer(data, at)
    if kind == _BYTE:
        return at + 1, data[at]
    if kind == _DOUBLE:
        return at + 8, None
    if kind == _BINARY:
        at, size = _natural(data, at)
        if at + size > len(data):
            raise IndexError
        return at + size, data[at : at + size]
    if kind in (_LIST, _SET):
        return _list(data, at, depth)
    if kind == _STRUCT:
        return _struct(data, at, depth)
    raise ValueError(f"its metadata have a field of the unknown type {kind}")


def _list(data: bytes, at: int, depth: int) -> tuple[int, list[Any]]:
    count, kind, at = data[at] >> 4, data[at] & 15, at + 1
    if count == 15:
        at, count = _natural(data, at)
    kind = _BYTE if kind in (_TRUE, _FALSE) else kind  # they have a byte each in a list
    values = []
    for _ in range(count):
        at, value = _value(data, at, kind, depth + 1)
        if at > len(data):
            raise IndexError
        values.append(value)
    return at, values


def _integer(data: bytes, at: int) -> tuple[int, int]:
    """The place after a signed number, and the number."""
    at, value = _natural(data, at)
    return at, (value >> 1) ^ -(value & 1)


def _natural(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return at, value
        if shift > 63:
            raise ValueError("its metadata have a number that does not end")
