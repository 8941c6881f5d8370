"""Changes of files: blind ones, and ones that know JSON headers, zips and pickles."""

import gzip
import io
import json
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

MOST = 20_000_000  # bytes: a bomb that is packed anew without compression is larger
NUMBERS = [
    0,
    1,
    2,
    7,
    8,
    127,
    128,
    255,
    256,
    32_767,
    65_535,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**63 - 1,
]
STRANGE: list[Any] = [
    *(-1, 0, 1, 2, 3, 2**31, 2**53, 2**63, 2**64, 10**30, 1.5, 1e308, float("nan")),
    *(
        None,
        True,
        False,
        "",
        "x",
        "../../x",
        "/etc/passwd",
        "\0",
        "x" * 10_000,
        "F32",
        "BF16",
        "I64",
    ),
    *([], {}, [0], [-1], [2**62], [[[[[]]]]], {"a": {"b": {}}}, [1] * 100, ["a", 1]),
]


def mutate(path: Path, rng: random.Random) -> tuple[str, Callable[[], None]]:
    """Changes one file at a path; says how, and gives what takes it back."""
    files = [p for p in sorted(path.rglob("*")) if p.is_file()] if path.is_dir() else [path]
    if path.is_dir() and rng.random() < 0.05:
        return _move(path, files, rng)
    # Small files say what the large ones mean.
    file = rng.choice(files)
    whole = file.read_bytes()
    ways: list[Callable[[bytes, random.Random], bytes]] = [*BLIND] * 2
    if file.suffix == ".json" and whole:
        ways += [_json] * 12
    if whole[8:9] == b"{":
        ways += [_header] * 12
    if whole.startswith(b"PK"):
        ways += [_zipped] * 12
    way = rng.choice(ways)
    changed = way(whole, rng)
    for _ in range(rng.choice([0, 0, 0, 1, 3])):
        changed = rng.choice(BLIND[:2])(changed, rng)
    file.write_bytes(changed[:MOST])
    return f"{way.__name__} {file.name}", lambda: _restore(file, whole)


def _restore(file: Path, whole: bytes) -> None:
    file.write_bytes(whole)


def _move(path: Path, files: list[Path], rng: random.Random) -> tuple[str, Callable[[], None]]:
    """A file that is gone, or lies there under another's name."""
    file, other = rng.choice(files), rng.choice(files)
    whole, content = file.read_bytes(), other.read_bytes()
    if rng.random() < 0.5 or file == other:
        file.unlink()
        return f"without {file.name}", lambda: _restore(file, whole)
    file.write_bytes(content)
    return f"{other.name} as {file.name}", lambda: _restore(file, whole)


def _flip(data: bytes, rng: random.Random) -> bytes:
    if not data:
        return b"\x00"
    at = rng.randrange(len(data))
    # Beginnings and ends say more than what is between.
    if rng.random() < 0.4:
        at = min(at, rng.randrange(512)) if rng.random() < 0.6 else max(at, len(data) - 256)
    return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]


def _number(data: bytes, rng: random.Random) -> bytes:
    width = rng.choice([1, 2, 4, 8])
    number = rng.choice([*NUMBERS, len(data), len(data) - 1, len(data) + 1]) % 2 ** (8 * width)
    at = rng.randrange(max(1, min(len(data), rng.choice([64, 1024, len(data) + 1]))))
    order: Any = rng.choice(["little", "big"])
    return data[:at] + number.to_bytes(width, order) + data[at + width :]


def _cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _grow(data: bytes, rng: random.Random) -> bytes:
    return data + rng.randbytes(rng.choice([1, 8, 1000]))


def _front(data: bytes, rng: random.Random) -> bytes:
    return rng.randbytes(rng.choice([1, 4, 22, 1000])) + data


def _zeros(data: bytes, rng: random.Random) -> bytes:
    at, size = rng.randrange(len(data) + 1), rng.choice([1, 16, 512, 4096])
    return data[:at] + bytes(min(size, len(data) - at)) + data[at + size :]


def _copy(data: bytes, rng: random.Random) -> bytes:
    start, at = (rng.randrange(len(data) + 1) for _ in range(2))
    part = data[start : start + rng.choice([4, 64, 2000])]
    return data[:at] + part + data[at + rng.choice([0, len(part)]) :]


def _remove(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + data[at + rng.choice([1, 8, 500]) :]


BLIND = [_flip, _number, _cut, _grow, _front, _zeros, _copy, _remove]


def _json(data: bytes, rng: random.Random) -> bytes:
    """One value of a JSON file becomes another, is gone, or is there twice."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return _flip(data, rng)
    return json.dumps(_changed(value, rng)).encode()


def _changed(value: Any, rng: random.Random) -> Any:
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(list(value))
        way = rng.random()
        if way < 0.1:
            return {k: v for k, v in value.items() if k != key}
        if way < 0.15:
            return {**value, rng.choice(["x", "", key + "x", "../" + key]): value[key]}
        return {**value, key: _changed(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.9:
        at = rng.randrange(len(value))
        return [*value[:at], _changed(value[at], rng), *value[at + 1 :]]
    if type(value) is int and rng.random() < 0.5:
        return value + rng.choice([-1, 1, value, -value, 2**32])
    return rng.choice(STRANGE)


def _header(data: bytes, rng: random.Random) -> bytes:
    """The header of a safetensors file, its length made to fit or not."""
    size = int.from_bytes(data[:8], "little")
    header = _json(data[8 : 8 + size], rng)
    told = len(header) if rng.random() < 0.8 else rng.choice([*NUMBERS, size])
    return told.to_bytes(8, "little") + header + data[8 + size :]


def _zipped(data: bytes, rng: random.Random) -> bytes:
    """A zip whose member is changed inside, with checksums that fit."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = {info.filename: archive.read(info) for info in archive.infolist()}
    except Exception:
        return _flip(data, rng)
    # The pickles: the rest is numbers.
    named = [name for name in members if name.endswith((".pkl", ".gz"))] or list(members)
    if not named:
        return _flip(data, rng)
    name = rng.choice(named)
    content = members[name]
    if name.endswith(".gz") and rng.random() < 0.9:
        try:
            content = gzip.compress(_some(gzip.decompress(content), rng), 1)
        except Exception:
            content = _some(content, rng)
    else:
        content = _some(content, rng)
    members[name] = content
    if rng.random() < 0.1:
        members[rng.choice(["../x", "/x", name + "x", "x\\y", "x/" * 500])] = content
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", rng.choice([0, 0, 8])) as archive:
        for key, value in members.items():
            archive.writestr(key, value)
    return held.getvalue()


def _some(data: bytes, rng: random.Random) -> bytes:
    for _ in range(rng.choice([1, 1, 2, 5])):
        data = rng.choice([_flip, _flip, _number, _copy, _remove, _cut])(data, rng)
    return data
