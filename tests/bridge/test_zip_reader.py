"""Zip files that are damaged or built to mislead, and gzip inside of them."""

import gzip
import io
import os
import stat
import struct
import zipfile
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.legacy import budget, inflate, zip_reader
from bridge.legacy.budget import Allowance
from bridge.legacy.inflate import GzipStream, Span
from bridge.legacy.zip_reader import names_in, read_entries
from jaxmodels.errors import CORRUPT, UNSAFE, Problem
from tests.bridge.zips import write_zip

TEXT = b"hello " * 1000


def refused(exit_code, call, *arguments):
    with pytest.raises(Problem) as caught:
        call(*arguments)
    assert caught.value.exit_code == exit_code, (caught.value.what, caught.value.why)
    return f"{caught.value.what}: {caught.value.where}: {caught.value.why}"


def read_all(path):
    """The content of every member, unpacked twice."""
    allowance, found = Allowance.of(path), {}
    for entry in read_entries(path):
        stream = GzipStream(allowance, entry)
        parts = []
        while part := stream.read(1000):
            parts.append(part)
        stream.finish()
        found[entry.name] = b"".join(parts)
    return found


@pytest.fixture
def sound(tmp_path):
    return write_zip(tmp_path / "x.zip", {"a": gzip.compress(TEXT), "d/b": gzip.compress(b"")})


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_what_zipfile_writes_is_read(tmp_path, method):
    members = {"a": gzip.compress(TEXT), "ä/漢": gzip.compress(os.urandom(200_000))}
    path = write_zip(tmp_path / "x.zip", members, method)
    assert read_all(path) == {name: gzip.decompress(data) for name, data in members.items()}
    assert names_in(path) == list(members)


def test_what_shutil_and_streams_write_is_read(tmp_path):
    import shutil

    (tmp_path / "in" / "params").mkdir(parents=True)
    (tmp_path / "in" / "params" / "a").write_bytes(gzip.compress(TEXT))
    path = shutil.make_archive(str(tmp_path / "made"), "zip", tmp_path / "in")
    assert read_all(tmp_path / "made.zip") == {"params/a": TEXT}, path

    class Pipe(io.RawIOBase):  # cannot seek: sizes stand behind the data
        def __init__(self):
            self.data = b""

        def writable(self):
            return True

        def write(self, data):
            self.data += bytes(data)
            return len(data)

    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", gzip.compress(TEXT))
    (tmp_path / "piped.zip").write_bytes(pipe.data)
    assert read_all(tmp_path / "piped.zip") == {"a": TEXT}


def test_zip64(tmp_path, monkeypatch):
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 50)
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 1)
    path = write_zip(tmp_path / "x.zip", {"a": gzip.compress(TEXT), "b": gzip.compress(TEXT)})
    assert b"PK\x06\x06" in path.read_bytes()
    assert read_all(path) == {"a": TEXT, "b": TEXT}
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\x06\x06") + 48] ^= 1  # where the directory begins
    path.write_bytes(data)
    refused(CORRUPT, read_entries, path)


def test_a_member_that_begins_beyond_any_file(tmp_path):
    info = zipfile.ZipInfo("a")
    info.extra = struct.pack("<HHQ", 1, 8, 2**63)
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr(info, b"")
    path = changed(tmp_path / "x.zip", CENTRAL, 42, b"\xff\xff\xff\xff")
    assert "cut off" in refused(CORRUPT, read_entries, with_first(path))


def with_first(path):
    """A zip with another member in front, at its beginning."""
    data = bytearray(path.read_bytes())
    directory, end = data.index(CENTRAL), data.index(END)
    first = data[directory:end]
    first[42:46], first[46:47] = bytes(4), b"b"
    size = struct.unpack("<I", data[end + 12 : end + 16])[0] + len(first)
    data[end + 8 : end + 16] = struct.pack("<HHI", 2, 2, size)
    path.write_bytes(data[:directory].replace(b"a", b"b", 1) + first + data[directory:])
    return path


@pytest.mark.parametrize(
    "name",
    ["../a", "d/../../a", "/etc/a", "C:/a", "c:a", "d\\..\\a", "a\x01b", "d//a", "./a", "d/./a"],
)
def test_names_that_lead_outside(tmp_path, name):
    path = write_zip(tmp_path / "x.zip", {"a": b"", name: b""})
    assert "leads outside" in refused(UNSAFE, read_entries, path)


def test_a_name_with_a_null(tmp_path):
    path = write_zip(tmp_path / "x.zip", {"aXb": b""})
    path.write_bytes(path.read_bytes().replace(b"aXb", b"a\0b"))
    assert "leads outside" in refused(UNSAFE, read_entries, path)


@pytest.mark.parametrize("names", [("a", "a"), ("a", "A"), ("d/a", "D/A"), ("d", "d/")])
def test_a_name_twice(tmp_path, names):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for i, name in enumerate(names):
            archive.writestr(zipfile.ZipInfo(f"{i}" * len(name)), b"")
    data = (tmp_path / "x.zip").read_bytes()
    for i, name in enumerate(names):
        data = data.replace(f"{i}".encode() * len(name), name.encode())
    (tmp_path / "x.zip").write_bytes(data)
    assert "a name twice" in refused(UNSAFE, read_entries, tmp_path / "x.zip")


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO, stat.S_IFSOCK])
def test_links_and_devices(tmp_path, kind):
    info = zipfile.ZipInfo("a")
    info.external_attr = (kind | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr(info, "/etc/passwd")
    assert "a link or device" in refused(UNSAFE, read_entries, tmp_path / "x.zip")


def changed(path, signature, at, new):
    """Other bytes in a header: `at` after its signature's start."""
    data = bytearray(path.read_bytes())
    start = data.index(signature) + at
    data[start : start + len(new)] = new
    path.write_bytes(data)
    return path


CENTRAL, LOCAL, END = b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06"


@pytest.mark.parametrize("flags", [1, 1 << 6, 1 << 13])
def test_encrypted_members(sound, flags):
    changed(sound, CENTRAL, 8, struct.pack("<H", flags))
    assert "encrypted" in refused(UNSAFE, read_entries, sound)


@pytest.mark.parametrize(
    ("signature", "at", "new"),
    [
        (LOCAL, 30, b"b"),  # the name
        (LOCAL, 8, b"\0\0"),  # the method
        (LOCAL, 14, b"abcd"),  # the CRC
        (LOCAL, 18, b"\x01\0\0\0"),  # the size in the file
        (LOCAL, 22, b"\x01\0\0\0"),  # the size
        (LOCAL, 6, b"\x01"),  # encrypted
        (LOCAL, 0, b"XX"),
        (CENTRAL, 0, b"XX"),
        (CENTRAL, 10, b"\x0c\0"),  # bzip2
        (CENTRAL, 34, b"\x01\0"),  # another disk
        (CENTRAL, 42, b"\xff\xff\0\0"),  # where it begins
        (END, 8, b"\x01\0\x01\0"),  # how many members
        (END, 8, b"\x07\0\x07\0"),
        (END, 4, b"\x01\0"),  # another disk
        (END, 12, b"\x01\0\0\0"),  # the directory's size
        (END, 16, b"\x01\0\0\0"),  # where it begins
        (END, 20, b"\x01\0"),  # a comment that is not there
        (END, 8, b"\xff\xff\xff\xff"),  # zip64, and it is none
    ],
)
def test_headers_that_disagree(sound, signature, at, new):
    refused(CORRUPT, read_entries, changed(sound, signature, at, new))


@pytest.mark.parametrize("junk", [b"#!/bin/sh\n", b"PK\x03\x04"])
def test_junk_in_front_and_behind(sound, junk):
    data = sound.read_bytes()
    for changed_data in (junk + data, data + junk):
        sound.write_bytes(changed_data)
        refused(CORRUPT, read_entries, sound)


def test_members_that_overlap(tmp_path):
    path = write_zip(tmp_path / "x.zip", {"a": gzip.compress(TEXT), "b": gzip.compress(TEXT)})
    data = bytearray(path.read_bytes())
    second = data.rindex(CENTRAL)
    data[second + 42 : second + 46] = bytes(4)  # begins where the first one does
    data[second + 46] = ord("a")
    path.write_bytes(data)
    with pytest.raises(Problem) as caught:
        read_entries(path)
    assert caught.value.exit_code == UNSAFE
    data[second + 46] = ord("b")
    path.write_bytes(data)
    refused(CORRUPT, read_entries, path)


def test_many_members(tmp_path, monkeypatch):
    monkeypatch.setattr(zip_reader, "MAX_ENTRIES", 3)
    path = write_zip(tmp_path / "x.zip", {str(i): b"" for i in range(4)})
    assert "too many members" in refused(UNSAFE, read_entries, path)
    assert names_in(path) == []


@pytest.mark.parametrize("size", [0, 1, 7, 21, 22, 100])
def test_no_zip_at_all(tmp_path, size):
    (tmp_path / "x").write_bytes(b"PK\x03\x04" * 25 if size == 100 else bytes(size))
    refused(CORRUPT, read_entries, tmp_path / "x")
    assert names_in(tmp_path / "x") == []


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_every_crc_is_checked(tmp_path, method):
    path = write_zip(tmp_path / "x.zip", {"a": gzip.compress(TEXT, 0)}, method)
    crc = zlib.crc32(gzip.compress(TEXT, 0))
    data = path.read_bytes().replace(struct.pack("<I", crc), b"abcd")
    path.write_bytes(data)
    assert "x.zip: a: its CRC is not" in refused(CORRUPT, read_all, path)


@pytest.mark.parametrize(
    ("at", "message"), [(-8, "incorrect data check"), (-4, "incorrect length check")]
)
def test_gzips_trailer_is_checked(tmp_path, at, message):
    data = bytearray(gzip.compress(TEXT))
    data[at] ^= 1
    path = write_zip(tmp_path / "x.zip", {"a": bytes(data)})
    assert message in refused(CORRUPT, read_all, path)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x1f\x8b",
        b"plain text",
        gzip.compress(TEXT)[:-1],
        gzip.compress(TEXT)[:-9],
        gzip.compress(TEXT) + b"\0",
        gzip.compress(TEXT) * 2,
        zlib.compress(TEXT),
    ],
    ids=[
        "empty",
        "two bytes",
        "text",
        "a byte short",
        "no trailer",
        "a byte more",
        "twice",
        "zlib",
    ],
)
def test_gzip_that_is_cut_or_goes_on(tmp_path, data):
    refused(CORRUPT, read_all, write_zip(tmp_path / "x.zip", {"a": data}))


def test_sizes_that_lie(tmp_path):
    path = write_zip(tmp_path / "x.zip", {"a": gzip.compress(TEXT)})
    size = len(gzip.compress(TEXT))
    for wrong in (size - 1, size + 1):
        lying = path.read_bytes().replace(struct.pack("<I", size), struct.pack("<I", wrong))
        (tmp_path / "y.zip").write_bytes(lying)
        assert "its size is not" in refused(CORRUPT, read_all, tmp_path / "y.zip")


@pytest.mark.parametrize("layers", [1, 2])
def test_bombs(tmp_path, monkeypatch, layers):
    monkeypatch.setattr(budget, "FREE", 1_000_000)
    zeros = gzip.compress(bytes(20_000_000))
    # Twice compressed, the gzip header's comment alone may be endless.
    data = zeros if layers == 1 else b"\x1f\x8b\x08\x10" + bytes(6) + b"a" * 20_000_000
    path = write_zip(tmp_path / "x.zip", {"params/a.pkl.gz": data})
    message = refused(UNSAFE, read_all, path)
    assert "unpacks to far more" in message
    assert "params/a.pkl.gz" in message


def test_many_small_members_share_an_allowance(tmp_path, monkeypatch):
    monkeypatch.setattr(budget, "FREE", 1_000_000)
    path = write_zip(tmp_path / "x.zip", {str(i): gzip.compress(bytes(90_000)) for i in range(20)})
    refused(UNSAFE, read_all, path)


def test_spans_are_read_in_any_order_and_held_nowhere(tmp_path, monkeypatch):
    monkeypatch.setattr(inflate, "SMALL", 1000)
    runs = [os.urandom(size) for size in (1001, 70_000, 5, 33_000, 200_000)]
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        path = write_zip(tmp_path / "x.zip", {"a": gzip.compress(b"".join(runs))}, method)
        stream = GzipStream(Allowance.of(path), read_entries(path)[0])
        found = [stream.data(len(run)) for run in runs]
        stream.finish()
        assert [isinstance(data, Span) for data in found] == [True, True, False, True, True]
        assert stream.tell() == sum(map(len, runs))
        for i in (4, 0, 1, 3, 4):
            assert found[i].read().tobytes() == runs[i]


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_no_change_of_a_zip_crashes_the_reader(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("x") / "x.zip"
    write_zip(path, {"a": gzip.compress(b"some text"), "b/c": gzip.compress(bytes(100))})
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at : at + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
    path.write_bytes(raw)
    names_in(path)
    codes = []
    try:
        read_all(path)
    except Problem as problem:
        codes.append(problem.exit_code)
    assert set(codes) <= {CORRUPT, UNSAFE}
