"""What the pages of a Parquet column say of their size, before anything is unpacked.

A file of a few hundred bytes may unpack to gigabytes, and what its footer says of sizes may be
untrue: the header of each page is what a reader allocates by. Source: the format's `PageHeader`,
https://github.com/apache/parquet-format, in Thrift's compact protocol.
"""

from io import FileIO
from pathlib import Path
from typing import Any

from data_pipelines.files import naming

_HEADER = 1 << 8  # bytes of a header that are read at first; statistics in it may hold two texts
_LONGEST_HEADER = 1 << 24  # what pyarrow takes
_DEEPEST = 8
_STOP, _TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY, _LIST, _SET, _STRUCT = 0, 1, 2, 3, 7, 8, 9, 10, 12
_UNPACKED, _PACKED = 2, 3  # fields of a PageHeader: bytes of its page


def largest_page(path: Path, column: Any) -> int:
    """Bytes that the largest page of a column chunk unpacks to.

    Args:
        path: the Parquet file.
        column: pyarrow's ColumnChunkMetaData.

    Raises:
        ValueError: the headers are damaged.
        OSError: the file cannot be read.
    """
    largest = 0
    at = column.data_page_offset
    if column.has_dictionary_page and column.dictionary_page_offset:
        at = min(at, column.dictionary_page_offset)
    end = at + column.total_compressed_size
    with naming(path), path.open("rb", buffering=0) as file:
        size = file.seek(0, 2)
        if not 0 <= at <= end <= size:
            raise ValueError(f"its pages lie at bytes {at} to {end}, and the file has {size}")
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
            end, fields = _struct(data, 0, 0)
            return end, int(fields[_UNPACKED]), int(fields[_PACKED])
        except KeyError:
            raise ValueError(f"the page at byte {at} does not tell its size") from None
        except IndexError:
            if len(data) < size or size >= _LONGEST_HEADER:
                raise ValueError(f"the header of the page at byte {at} does not end") from None
        size *= 16


def _struct(data: bytes, at: int, depth: int) -> tuple[int, dict[int, int]]:
    """Where a struct ends, and its own fields that are numbers."""
    fields: dict[int, int] = {}
    number = 0
    while (head := data[at]) != _STOP:
        at += 1
        kind, step = head & 15, head >> 4
        if step:
            number += step
        else:
            at, number = _integer(data, at)
        if kind in (4, 5, 6):
            at, fields[number] = _integer(data, at)
        else:
            at = _skip(data, at, kind, depth)
    return at + 1, fields


def _skip(data: bytes, at: int, kind: int, depth: int) -> int:
    """The place after a value."""
    if depth > _DEEPEST:
        raise ValueError("the header of a page is nested too deeply")
    if kind in (_TRUE, _FALSE):
        return at
    if kind in (4, 5, 6):
        return _integer(data, at)[0]
    if kind == _BYTE:
        return at + 1
    if kind == _DOUBLE:
        return at + 8
    if kind == _BINARY:
        at, size = _natural(data, at)
        if at + size > len(data):
            raise IndexError
        return at + size
    if kind in (_LIST, _SET):
        count, kind, at = data[at] >> 4, data[at] & 15, at + 1
        if count == 15:
            at, count = _natural(data, at)
        for _ in range(count):
            at = _skip(data, at, _BYTE if kind in (_TRUE, _FALSE) else kind, depth + 1)
            if at > len(data):
                raise IndexError
        return at
    if kind == _STRUCT:
        return _struct(data, at, depth + 1)[0]
    raise ValueError(f"the header of a page has a field of the unknown type {kind}")


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
            raise ValueError("the header of a page has a number that does not end")
