"""Reads safetensors files and sharded folders. Nothing in them is believed before it is checked."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from bridge.core.table import listing
from bridge.core.tensors import DTYPES, Tensor
from bridge.storage import unsupported
from jaxmodels.errors import CORRUPT, Problem
from jaxmodels.reading import MAX_JSON, json_object, read_json

MAX_HEADER = MAX_JSON  # the format allows 100 MB; 100,000 tensors take 10 MB
MAX_TENSORS, MAX_DIMS = 100_000, 32
AGAIN = "fetch or save the file again"
MAX_SHARED = 2  # times the size of a file that tensors which repeat others may add to it
PIECE = 2**18  # bytes that stay in the caches while they are hashed


def looks_like_safetensors(path: Path) -> bool:
    """Whether a file begins as safetensors files do: a length, then an open brace."""
    with path.open("rb") as file:
        start = file.read(9)
    return len(start) == 9 and start[8:] == b"{" and start[5:8] == b"\0\0\0"


def read_file(path: Path) -> dict[str, Tensor]:
    """The tensors of one file, unread.

    Raises:
        Problem: (corrupt) truncated, or a header that is not what the format says.
    """
    size = path.stat().st_size
    if size > 8 and not looks_like_safetensors(path):
        unsupported.refuse(path)
    header, base = _header(path)
    metadata = header.pop("__metadata__", {})
    layout = sorted(
        ((name, *_entry(path, name, entry)) for name, entry in header.items()),
        key=lambda item: item[3:],
    )
    end = 0
    for name, _, _, start, stop in layout:
        if start != end:
            what = "overlaps the one before" if start < end else "leaves a hole before it"
            _refuse(path, f"the data of {name!r} {what}", f"it starts at {start}, not at {end}")
        end = stop
    if size < base + end:
        _refuse(path, "the file is truncated", _sizes(base + end, size))
    if size > base + end:
        _refuse(path, "there is data after the last tensor", _sizes(base + end, size))
    tensors = {
        name: Tensor(name, shape, dtype, SafetensorsArray(path, base + start, shape, dtype))
        for name, shape, dtype, start, _ in layout
    }
    return tensors | _shared(path, metadata, tensors)


def _shared(path: Path, metadata: dict[str, str], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that `safetensors.torch.save_model` left out, for they repeat another one.

    The header says so: {"the name left out": "the name of the tensor that it repeats"}.
    """
    shared = {
        name: replace(tensors[kept], name=name)
        for name, kept in metadata.items()
        if kept in tensors and name not in tensors
    }
    if sum(tensor.nbytes for tensor in shared.values()) > MAX_SHARED * path.stat().st_size:
        _refuse(path, "too many tensors are said to repeat others", f"{len(shared):,} names")
    return shared


def promised(path: Path) -> dict[str, tuple[tuple[int, ...], np.dtype, bool]]:
    """Name → shape, dtype, and whether the file is long enough for it, as the header says.

    Raises:
        Problem: (corrupt) the header itself is cut off, or not what the format says.
    """
    size = path.stat().st_size
    header, base = _header(path)
    header.pop("__metadata__", None)
    entries = {name: _entry(path, name, entry) for name, entry in header.items()}
    return {
        name: (shape, dtype, base + stop <= size)
        for name, (shape, dtype, _, stop) in entries.items()
    }


def read_sharded(
    index: Path, read: Callable[[Path], dict[str, Tensor]] | None = None
) -> dict[str, Tensor]:
    """The tensors of a sharded model, unread; the index is the authority.

    Args:
        index: the index; shards lie beside it.
        read: opens a shard; by default `read_file`.

    Raises:
        Problem: (corrupt) an index that is damaged or names a file elsewhere, a shard that
            is missing, or shards that do not hold exactly what the index says.
    """
    weight_map = parse_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(
        isinstance(name, str) for name in weight_map.values()
    ):
        _refuse(index, "the index has no weight_map", "it must map tensor names to file names")
    shards = sorted(set(weight_map.values()))
    for shard in shards:
        if shard in ("", ".", "..") or "/" in shard or "\\" in shard or "\0" in shard:
            _refuse(index, f"the index names a file elsewhere: {shard!r}", "shards lie beside it")
    if absent := [shard for shard in shards if not (index.parent / shard).is_file()]:
        _refuse(
            index,
            f"{len(absent)} of {len(shards)} shards are missing (incomplete download?)",
            listing(absent),
        )
    tensors: dict[str, Tensor] = {}
    complaints = []
    for shard in shards:
        held = (read or read_file)(index.parent / shard)
        promised = {name for name, file in weight_map.items() if file == shard}
        complaints += [f"{name} is not in {shard}" for name in sorted(promised - held.keys())]
        complaints += [f"{name} is in {shard}, stray" for name in sorted(held.keys() - promised)]
        tensors |= held
    if complaints:
        _refuse(index, "the shards do not hold what the index says", listing(complaints))
    return {name: tensors[name] for name in weight_map}


def parse_json(path: Path, limit: int = MAX_JSON) -> dict[str, Any]:
    """A JSON object from a file that is not trusted.

    Raises:
        Problem: (corrupt) no regular file, too large, not JSON, not an object, or a key twice.
    """
    try:
        return read_json(path, limit)
    except (OSError, ValueError) as error:
        if path.is_file():
            unsupported.refuse(path, text=True)  # says more, if it is a web page, for example
        _refuse(path, "the JSON cannot be read", str(error))


def read_metadata(path: Path) -> dict[str, str]:
    """The strings in the header of a file.

    Raises:
        Problem: (corrupt) as `read_file`.
    """
    return _header(path)[0].get("__metadata__", {})


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """The header, and where the data begins."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            _refuse(path, "the file is truncated", _sizes(8 + length if size >= 8 else 8, size))
        if length > MAX_HEADER:
            _refuse(path, "the header is too large", f"{length:,} bytes, at most {MAX_HEADER:,}")
        header = _object(path, file.read(length))
    if len(header) > MAX_TENSORS:
        _refuse(path, "it has too many tensors", f"{len(header):,}, at most {MAX_TENSORS:,}")
    metadata = header.get("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        _refuse(path, "__metadata__ is not a map of strings", "the header breaks the format")
    return header, 8 + length


def _object(path: Path, text: bytes) -> dict[str, Any]:
    try:
        return json_object(text)
    except ValueError as error:
        _refuse(path, "the header cannot be read", str(error))


def _entry(path: Path, name: str, entry: Any) -> tuple[tuple[int, ...], np.dtype, int, int]:
    """Shape, dtype, start and stop of one tensor, each checked."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        _refuse(path, f"bad entry for {name!r}", "it needs dtype, shape and data_offsets")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not isinstance(entry["dtype"], str) or entry["dtype"] not in DTYPES:
        kind = str(entry["dtype"])[:20]
        narrow = kind.startswith(("F8", "F6", "F4"))
        _refuse(
            path,
            f"{name!r} holds {kind}: float{kind[1]}, numbers of {kind[1]} bits, are not read"
            if narrow
            else f"unknown dtype of {name!r}: {kind}",
            f"known: {', '.join(DTYPES)}",
            "use a checkpoint of the model that was not quantised" if narrow else AGAIN,
        )
    if not _naturals(shape) or len(shape) > MAX_DIMS or prod(filter(None, shape)) >= 2**60:
        _refuse(path, f"bad shape of {name!r}", f"{str(shape)[:80]}")
    if not _naturals(offsets) or len(offsets) != 2:
        _refuse(path, f"bad offsets of {name!r}", f"{str(offsets)[:80]}")
    dtype, (start, stop) = DTYPES[entry["dtype"]], offsets
    if stop - start != prod(shape) * dtype.itemsize:
        _refuse(
            path,
            f"shape and bytes of {name!r} disagree",
            f"{shape} {entry['dtype']} takes {prod(shape) * dtype.itemsize} bytes, "
            f"the offsets give {stop - start}",
        )
    return tuple(shape), dtype, start, stop


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 2**63 for n in value)


@dataclass(frozen=True)
class SafetensorsArray:
    """How the values of a tensor are read: whole, or in pieces that take no memory to speak of."""

    path: Path
    start: int
    shape: tuple[int, ...]
    dtype: np.dtype

    def __call__(self) -> np.ndarray:
        """The values, in memory of their own."""
        # Plain reads, not a memory map: a file that shrinks meanwhile is an error, not a crash.
        buffer = np.empty(prod(self.shape) * self.dtype.itemsize, np.uint8)
        for _ in self._read(buffer.size, lambda done: buffer[done:]):
            pass
        return buffer.view(self.dtype).reshape(self.shape)

    def pieces(self) -> Iterator[np.ndarray]:
        """The values as `tensors.raw` gives them; a piece is overwritten by the next one."""
        buffer = np.empty(PIECE, np.uint8)
        size = prod(self.shape) * self.dtype.itemsize
        for count in self._read(size, lambda done: buffer[: size - done]):
            yield buffer[:count]

    def _read(self, size: int, place: Callable[[int], np.ndarray]) -> Iterator[int]:
        """Reads `size` bytes, those after the first n into `place(n)`; tells how many at once."""
        done = 0
        with self.path.open("rb", buffering=0) as file:
            file.seek(self.start)
            while done < size:
                count = file.readinto(place(done).data)
                if not count:
                    found = _sizes(self.start + size, self.start + done)
                    _refuse(self.path, "the file is truncated", found)
                done += count
                yield count


def _sizes(expected: int, actual: int) -> str:
    return f"expected {expected:,} bytes, found {actual:,}"


def _refuse(path: Path, what: str, why: str, fix: str = AGAIN) -> NoReturn:
    raise Problem(what, where=str(path), why=why, fix=fix, exit_code=CORRUPT)
