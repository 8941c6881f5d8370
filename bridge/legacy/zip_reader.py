"""The members of a zip file; what two readers could understand differently is refused.

`zipfile` reads the directory at the end of the file. It forgives much, so that the end of the file,
the names and the header in front of each member are checked here. Format: PKWARE's APPNOTE.
"""

import io
import re
import struct
import zipfile
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, NoReturn

from jaxmodels.errors import CORRUPT, UNSAFE, Problem

MAX_ENTRIES = 10_000
MAX_DIRECTORY = 10_000_000  # bytes
STORED, DEFLATED = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED

_LOCAL, _END, _LOCATOR64 = b"PK\x03\x04", b"PK\x05\x06", b"PK\x06\x07"
_LOCAL_SIZE, _END_SIZE, _END64_SIZE, _LOCATOR_SIZE = 30, 22, 56, 20
_FULL32 = 0xFFFFFFFF  # "see the zip64 field"
_ENCRYPTED, _SIZES_BEHIND, _UTF8, _HIDDEN = 0x0001, 0x0008, 0x0800, 0x2040
_KIND, _FOLDER, _REGULAR = 0xF000, 0x4000, 0x8000  # of Unix file modes


class Entry(NamedTuple):
    """A member, as both of its headers describe it."""

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


def names_in(path: Path) -> list[str]:
    """The names in a zip's directory, unchecked; empty where it cannot be read."""
    with suppress(Problem, OSError), _File(io.FileIO(path)) as file:
        return [info.orig_filename for info in _directory(path, file)[0]]
    return []


def checked_names(path: Path) -> list[str]:
    """The names of the members; raises as `read_entries`."""
    return [entry.name for entry in read_entries(path)]


def read_entries(path: Path) -> list[Entry]:
    """The members of a zip file without its folders; their content is not read.

    Raises:
        Problem: (unsafe) names that lead outside, that repeat, or are links; encrypted or
            overlapping members, or too many; (corrupt) damaged.
    """
    with _File(io.FileIO(path)) as file:
        infos, end = _directory(path, file)
        for info in infos:
            _check(path, info)
        names = [info.orig_filename.rstrip("/").casefold() for info in infos]
        if twice := [name for name, times in Counter(names).items() if times > 1]:
            _unsafe(path, "the zip file has a name twice", ", ".join(twice[:5]))
        if min((info.header_offset for info in infos), default=0):
            _broken(path, "there is data in front of its first member")
        entries = [_entry(path, file, info) for info in infos]
    position = 0
    for entry in sorted(entries, key=lambda entry: entry.start):
        if entry.start < position or entry.start + entry.compressed > end:
            _unsafe(path, "the members of the zip file overlap", entry.name)
        position = entry.start + entry.compressed
    return [entry for entry in entries if not entry.name.endswith("/")]


class _File(io.BufferedReader):
    """A file of which `zipfile` reads no directory that is larger than is sane."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > MAX_DIRECTORY:
            _unsafe(Path(self.name), "the zip file has too many members", f"{size:,} bytes of them")
        return super().read(size)


def _directory(path: Path, file: _File) -> tuple[list[zipfile.ZipInfo], int]:
    """The headers at the end of the file, and where they begin."""
    try:
        archive = zipfile.ZipFile(file)
    except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error) as error:
        _broken(path, str(error))
    infos, comment = archive.infolist(), len(archive.comment)
    if len(infos) > MAX_ENTRIES:
        count = f"{len(infos):,} members; at most {MAX_ENTRIES:,} are read"
        _unsafe(path, "the zip file has too many members", count)
    # zipfile ignores data in front of the first member and behind the end, and the count.
    size = file.seek(0, 2)
    start = max(0, size - comment - _END_SIZE - _LOCATOR_SIZE)
    tail = _at(path, file, start, size - comment - start)
    record = tail[-_END_SIZE:]
    *disks, here, count, _, _, length = struct.unpack("<4HIIH", record[4:])
    if not record.startswith(_END) or length != comment:
        _broken(path, "there is data behind its end")
    if tail.startswith(_LOCATOR64):
        start -= _END64_SIZE
        if int.from_bytes(tail[8:16], "little") != start:
            _broken(path, "its zip64 record is not where the file says")
        record = _at(path, file, start, _END64_SIZE)
        *disks, here, count = struct.unpack("<IIQQ", record[16:40])
    if any(disks) or here != count or count != len(infos):
        _broken(path, "its directory lists another number of members than its end")
    return infos, archive.start_dir


def _check(path: Path, info: zipfile.ZipInfo) -> None:
    name, mode = info.orig_filename, info.external_attr >> 16 & _KIND
    parts = name.rstrip("/").split("/")
    if (
        {"..", ".", ""} & {*parts}
        or re.search(r"[\x00-\x1f\x7f\\]", name)
        or re.match(r"[A-Za-z]:", name)
    ):
        _unsafe(path, "a name in the zip file leads outside of it", repr(name)[:200])
    if info.flag_bits & (_ENCRYPTED | _HIDDEN):
        _unsafe(path, f"{name} in the zip file is encrypted", "its content cannot be checked")
    if mode not in (0, _FOLDER, _REGULAR):
        _unsafe(path, f"{name} in the zip file is a link or device", f"its mode is {mode:#o}")


def _entry(path: Path, file: _File, info: zipfile.ZipInfo) -> Entry:
    """The member of a header, which the header in front of its bytes must repeat."""
    name, method = info.orig_filename, info.compress_type
    record = _at(path, file, info.header_offset, _LOCAL_SIZE)
    _, flags, local_method, _, *sizes, name_size, extra_size = struct.unpack(
        "<HHHIIIIHH", record[4:]
    )
    behind = _at(path, file, info.header_offset + _LOCAL_SIZE, name_size + extra_size)
    encoding = "utf-8" if info.flag_bits & _UTF8 else "cp437"
    same = record.startswith(_LOCAL) and behind[:name_size] == name.encode(encoding)
    same &= local_method == method and info.volume == 0
    same &= _FULL32 not in (info.file_size, info.compress_size)
    same &= (flags ^ info.flag_bits) & (_ENCRYPTED | _SIZES_BEHIND | _UTF8) == 0
    if not flags & _SIZES_BEHIND:
        if sizes[1:] == [_FULL32, _FULL32]:
            sizes[1:] = _zip64_sizes(behind[name_size:])
        same &= sizes == [info.CRC, info.compress_size, info.file_size]
    if not same:
        _broken(path, f"the two headers of {name} disagree")
    if method not in (STORED, DEFLATED):
        _broken(path, f"{name} is compressed in a way that is not read: {method}")
    start = info.header_offset + _LOCAL_SIZE + name_size + extra_size
    return Entry(name, method, info.CRC, info.compress_size, info.file_size, start)


def _zip64_sizes(extra: bytes) -> list[int]:
    """The sizes in the file and unpacked, from the extra field of a header in front of a member."""
    while len(extra) >= 4:
        kind, length = struct.unpack("<HH", extra[:4])
        if kind == 1 and length >= 16 and len(extra) >= 20:
            return [int.from_bytes(extra[12:20], "little"), int.from_bytes(extra[4:12], "little")]
        extra = extra[4 + length :]
    return []


def _at(path: Path, file: _File, start: int, size: int) -> bytes:
    data = b""
    if start < file.seek(0, 2):
        file.seek(start)
        data = file.read(size)
    if len(data) != size:
        _broken(path, "it is cut off")
    return data


def _broken(path: Path, why: str) -> NoReturn:
    fix = "fetch or save the file again"
    raise Problem("the zip file is damaged", where=str(path), why=why, fix=fix, exit_code=CORRUPT)


def _unsafe(path: Path, what: str, why: str) -> NoReturn:
    fix = "use it only if you trust it: unpack it elsewhere and save its tensors anew"
    raise Problem(what, where=str(path), why=why, fix=fix, exit_code=UNSAFE)
