"""The list of members of a zip file, read strictly: what could mean two things is refused.

Format: PKWARE's APPNOTE. A member has a header in the directory at the end of the file and another
in front of its bytes; both must say the same.
"""

import re
import struct
from collections import Counter
from pathlib import Path
from typing import BinaryIO, NamedTuple, NoReturn

from jaxmodels.errors import CORRUPT, UNSAFE, Problem

MAX_ENTRIES = 10_000
MAX_DIRECTORY = 10_000_000  # bytes
STORED, DEFLATED = 0, 8

_END, _END64, _LOCATOR64 = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"
_CENTRAL, _LOCAL = b"PK\x01\x02", b"PK\x03\x04"
_END_SIZE, _END64_SIZE, _LOCATOR_SIZE, _CENTRAL_SIZE, _LOCAL_SIZE = 22, 56, 20, 46, 30
_FULL16, _FULL32 = 0xFFFF, 0xFFFFFFFF  # "see the zip64 field"
_ENCRYPTED, _SIZES_BEHIND, _UTF8, _HIDDEN = 0x0001, 0x0008, 0x0800, 0x2040
_KIND, _FOLDER, _REGULAR = 0xF000, 0x4000, 0x8000  # of Unix file modes


class Entry(NamedTuple):
    """A member, as both of its headers say."""

    name: str
    method: int
    """`STORED` or `DEFLATED`."""
    crc: int
    """CRC-32 of the content."""
    compressed: int
    """Bytes in the file."""
    size: int
    """Bytes of the content."""
    start: int
    """Where its bytes begin in the file."""


class _Header(NamedTuple):
    flags: int
    method: int
    crc: int
    compressed: int
    size: int
    raw_name: bytes
    name: str
    offset: int
    mode: int
    """What kind of file it was on Unix; 0 where that is not said."""


def names_in(path: Path) -> list[str]:
    """The names that a zip's directory lists, unchecked; empty where it cannot be read."""
    try:
        with path.open("rb") as file:
            return [header.name for header in _directory(path, file)[0]]
    except (Problem, OSError):
        return []


def read_entries(path: Path) -> list[Entry]:
    """The members of a zip file, without its folders; their content is not read.

    Raises:
        Problem: (unsafe) names that lead outside, that repeat, or are links; encrypted or
            overlapping members, or too many; (corrupt) damaged.
    """
    with path.open("rb") as file:
        headers, end = _directory(path, file)
        for header in headers:
            _check(path, header)
        names = [header.name.rstrip("/").casefold() for header in headers]
        if twice := [name for name, times in Counter(names).items() if times > 1]:
            _unsafe(path, "the zip file has a name twice", ", ".join(twice[:5]))
        entries = [_entry(path, file, header) for header in headers]
    position = 0
    for entry in sorted(entries, key=lambda entry: entry.start):
        if entry.start < position or entry.start + entry.compressed > end:
            _unsafe(path, "the members of the zip file overlap", entry.name)
        position = entry.start + entry.compressed
    return [entry for entry in entries if not entry.name.endswith("/")]


def _directory(path: Path, file: BinaryIO) -> tuple[list[_Header], int]:
    """The headers at the end of the file, and where they begin."""
    count, size, start, end = _end_of(path, file)
    if count > MAX_ENTRIES or size > MAX_DIRECTORY:
        said = f"{count:,} members, {size:,} bytes; at most {MAX_ENTRIES:,} are read"
        _unsafe(path, "the zip file has too many members", said)
    if start + size != end:
        _broken(path, f"its directory is said to end at {start + size:,} and ends at {end:,}")
    data = _at(path, file, start, size)
    headers, position = [], 0
    for _ in range(count):
        header, position = _central(path, data, position)
        headers.append(header)
    if position != len(data):
        _broken(path, "its directory is longer than its members")
    return headers, start


def _end_of(path: Path, file: BinaryIO) -> tuple[int, int, int, int]:
    """Number of members, size of the directory, where it should begin and where it must end."""
    length = file.seek(0, 2)
    tail = _at(path, file, max(0, length - _END_SIZE - _FULL16), min(length, _END_SIZE + _FULL16))
    found = tail.rfind(_END)
    while found >= 0:
        record = tail[found : found + _END_SIZE]
        if len(record) == _END_SIZE:
            *disks, here, count, size, start, comment = struct.unpack("<4HIIH", record[4:])
            if found + _END_SIZE + comment == len(tail):
                break
        found = tail.rfind(_END, 0, found)
    else:
        _broken(path, "its end is missing")
    end = length - len(tail) + found
    in_front = _at(path, file, end - _LOCATOR_SIZE, _LOCATOR_SIZE) if end >= _LOCATOR_SIZE else b""
    if in_front.startswith(_LOCATOR64):
        *disks, here, count, size, start, end = _end64(path, file, in_front, end)
    elif _FULL16 in (here, count) or _FULL32 in (size, start):
        _broken(path, "its zip64 record is missing")
    if any(disks) or here != count:
        _broken(path, "it is a part of several")
    return count, size, start, end


def _end64(path: Path, file: BinaryIO, locator: bytes, end: int) -> tuple[int, ...]:
    """As `_end_of`, from the wide record that a locator points to, with the disks in front."""
    disk, place, _ = struct.unpack("<IQI", locator[4:])
    record = _at(path, file, place, _END64_SIZE)
    if not record.startswith(_END64) or disk or place + _END64_SIZE + _LOCATOR_SIZE != end:
        _broken(path, "its zip64 record is not where the file says")
    # Versions and the record's own size stand in front.
    first, second, here, count, size, start = struct.unpack("<IIQQQQ", record[16:])
    return first, second, here, count, size, start, place


def _central(path: Path, data: bytes, position: int) -> tuple[_Header, int]:
    """A header of the directory, and where the next one begins."""
    record = data[position : position + _CENTRAL_SIZE]
    if len(record) < _CENTRAL_SIZE or not record.startswith(_CENTRAL):
        _broken(path, "its directory is cut off")
    _, _, flags, method, _, crc, compressed, size = struct.unpack("<4HIIII", record[4:28])
    name_size, extra_size, comment_size, disk, _, kind, offset = struct.unpack("<5HII", record[28:])
    position += _CENTRAL_SIZE
    raw_name, extra = (
        data[position : position + name_size],
        data[position + name_size : position + name_size + extra_size],
    )
    sizes = _zip64(path, extra, {"size": size, "compressed": compressed, "offset": offset})
    if disk:
        _broken(path, "it is a part of several")
    name, mode = _text(path, raw_name, flags), kind >> 16 & _KIND
    header = _Header(flags, method, crc, raw_name=raw_name, name=name, mode=mode, **sizes)
    return header, position + name_size + extra_size + comment_size


def _zip64(path: Path, extra: bytes, sizes: dict[str, int]) -> dict[str, int]:
    """Sizes above 4 GB stand in an extra field, in this order, where 32 bits are all ones."""
    wide = [key for key, value in sizes.items() if value == _FULL32]
    while wide and len(extra) >= 4:
        kind, length = struct.unpack("<HH", extra[:4])
        field, extra = extra[4 : 4 + length], extra[4 + length :]
        if kind == 1 and len(field) >= 8 * len(wide):
            numbers = struct.unpack(f"<{len(wide)}Q", field[: 8 * len(wide)])
            return {**sizes, **dict(zip(wide, numbers, strict=True))}
    if wide:
        _broken(path, "a zip64 size is missing")
    return sizes


def _entry(path: Path, file: BinaryIO, header: _Header) -> Entry:
    """The member of a header, compared with the header in front of its bytes."""
    record = _at(path, file, header.offset, _LOCAL_SIZE)
    _, flags, method, _, crc, compressed, size, name_size, extra_size = struct.unpack(
        "<HHHIIIIHH", record[4:]
    )
    start = header.offset + _LOCAL_SIZE + name_size + extra_size
    rest = _at(path, file, header.offset + _LOCAL_SIZE, name_size + extra_size)
    same = (flags ^ header.flags) & (_ENCRYPTED | _SIZES_BEHIND | _UTF8) == 0
    if not flags & _SIZES_BEHIND:
        said = _zip64(path, rest[name_size:], {"size": size, "compressed": compressed})
        same &= crc == header.crc and said == {
            "size": header.size,
            "compressed": header.compressed,
        }
    if (
        not same
        or not record.startswith(_LOCAL)
        or (rest[:name_size], method) != (header.raw_name, header.method)
    ):
        _broken(path, f"the two headers of {header.name} disagree")
    if header.method not in (STORED, DEFLATED):
        _broken(path, f"{header.name} is compressed in a way that is not read: {header.method}")
    return Entry(header.name, method, header.crc, header.compressed, header.size, start)


def _check(path: Path, header: _Header) -> None:
    name, mode = header.name, header.mode
    parts = name.rstrip("/").split("/")
    if (
        {"..", ".", ""} & {*parts}
        or re.search(r"[\x00-\x1f\x7f\\]", name)
        or re.match(r"[A-Za-z]:", name)
    ):
        _unsafe(path, "a name in the zip file leads outside of it", repr(name)[:200])
    if header.flags & (_ENCRYPTED | _HIDDEN):
        _unsafe(path, f"{name} in the zip file is encrypted", "its content cannot be checked")
    if mode not in (0, _FOLDER, _REGULAR):
        _unsafe(path, f"{name} in the zip file is a link or device", f"its mode is {mode:#o}")


def _text(path: Path, raw: bytes, flags: int) -> str:
    try:
        return raw.decode("utf-8" if flags & _UTF8 else "cp437")
    except UnicodeDecodeError:
        _broken(path, "a name in it is not text")


def _at(path: Path, file: BinaryIO, start: int, size: int) -> bytes:
    if start < 0:
        _broken(path, "it is cut off")
    file.seek(start)
    data = file.read(size)
    if len(data) != size:
        _broken(path, "it is cut off")
    return data


def _broken(path: Path, why: str) -> NoReturn:
    raise Problem(
        "the zip file is damaged",
        where=str(path),
        why=why,
        fix="fetch or save the file again",
        exit_code=CORRUPT,
    )


def _unsafe(path: Path, what: str, why: str) -> NoReturn:
    raise Problem(
        what,
        where=str(path),
        why=why,
        fix="use it only if you trust it: unpack it elsewhere and save its tensors anew",
        exit_code=UNSAFE,
    )
