"""Measures the pages of a Parquet column before anything is unpacked.

A file of a few hundred bytes may unpack to gigabytes, and the sizes in its footer may be wrong: a
reader allocates memory by the header of each page. No value is longer than its page or dictionary,
which bounds the rows in memory at a time. The footer is read here too, because pyarrow aborts the
process on some damaged columns. Source: the format's `FileMetaData` and `PageHeader`,
https://github.com/apache/parquet-format, in Thrift's compact protocol.
"""

from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple

from data_pipelines.files import naming
from data_pipelines.limits import MAX_FOOTER

_HEADER = 1 << 8  # bytes of a header to read at first; its statistics may hold two texts
_MAX_HEADER = 1 << 24  # pyarrow's limit
_MAX_DEPTH = 12
_STOP, _TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY, _LIST, _SET, _STRUCT = 0, 1, 2, 3, 7, 8, 9, 10, 12
_INTEGERS = (4, 5, 6)

Struct = dict[int, Any]
"""A struct's values by the numbers of their fields."""


class Chunk(NamedTuple):
    """A column chunk: a column in a row group."""

    start: int
    """First byte in the file."""
    packed: int
    """Bytes in the file."""
    unpacked: int
    """Uncompressed bytes, by the footer."""


def chunks_of(path: Path, column: str) -> list[Chunk]:
    """The chunks of a top-level column, one for each row group.

    Raises:
        ValueError: the footer is damaged, or a row group has no such column.
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
            metadata = next(chunk[3] for chunk in group[1] if chunk[3][3] == name)
            start = min(metadata[9], metadata.get(11) or metadata[9])
            found.append(Chunk(start, metadata[7], metadata[6]))
    except (IndexError, KeyError, TypeError, AttributeError, StopIteration) as error:
        raise ValueError(f"its footer is damaged: {type(error).__name__}") from None
    for chunk in found:
        if min(chunk) < 0 or chunk.start + chunk.packed > size:
            raise ValueError(f"its footer points to bytes {chunk}, but the file has {size:,}")
    return found


def largest_page(path: Path, chunk: Chunk) -> int:
    """Uncompressed bytes of the largest page of a column chunk.

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
    """Bytes of the header at a position, and of its page, unpacked and packed."""
    size = _HEADER
    while True:
        file.seek(at)
        data = file.read(size)
        try:
            end, header = _struct(data, 0, 0)
            return end, int(header[2]), int(header[3])
        except (KeyError, TypeError):
            raise ValueError(f"the page at byte {at} has no size") from None
        except IndexError:
            if len(data) < size or size >= _MAX_HEADER:
                raise ValueError(f"the header of the page at byte {at} does not end") from None
        size *= 16


def _struct(data: bytes, at: int, depth: int) -> tuple[int, Struct]:
    """The position after a struct, and the struct; IndexError if the data end too early."""
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
    """The position after a value, and the value."""
    if depth > _MAX_DEPTH:
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
    kind = _BYTE if kind in (_TRUE, _FALSE) else kind  # in a list each has a byte
    values = []
    for _ in range(count):
        at, value = _value(data, at, kind, depth + 1)
        if at > len(data):
            raise IndexError
        values.append(value)
    return at, values


def _integer(data: bytes, at: int) -> tuple[int, int]:
    """The position after a signed number, and the number."""
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
