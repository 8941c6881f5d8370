"""Writes safetensors one tensor at a time, in shards when asked.

Not the library's writer, which needs all tensors in memory and stores wrong data for arrays
that are not C-contiguous, as every transposed kernel is (safetensors issue 825).
"""

import json
import re
from collections.abc import Callable
from pathlib import Path

from bridge.core.tensors import DTYPE_CODES, Fingerprint, Tensor
from bridge.storage.hashing import writing
from jaxmodels.errors import CORRUPT, USAGE, Problem

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def parse_size(text: str | int) -> int:
    """Bytes of "5GB", "300MB" or a plain number (powers of 1,000, as transformers counts).

    Raises:
        Problem: (usage) it is no size, or less than one byte.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?B|)", str(text).strip().upper())
    size = int(float(found[1]) * _UNITS[found[2]]) if found else 0
    if size < 1:
        raise Problem(f"not a size: {text!r}", fix="write it as 5GB or 300MB", exit_code=USAGE)
    return size


def plan_shards(tensors: list[Tensor], max_bytes: int) -> dict[str, list[Tensor]]:
    """File name → its tensors: filled in order, none over `max_bytes` unless one tensor is."""
    shards: list[list[Tensor]] = [[]]
    room = max_bytes
    for tensor in tensors:
        if shards[-1] and tensor.nbytes > room:
            shards.append([])
            room = max_bytes
        shards[-1].append(tensor)
        room -= tensor.nbytes
    if len(shards) == 1:
        return {SINGLE: shards[0]}
    return {
        f"model-{i:05d}-of-{len(shards):05d}.safetensors": shard
        for i, shard in enumerate(shards, start=1)
    }


def write_index(folder: Path, shards: dict[str, list[Tensor]]) -> None:
    """Writes the index of the shards of `plan_shards`, when there are several."""
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": sum(t.nbytes for ts in shards.values() for t in ts)},
            "weight_map": {t.name: name for name, tensors in shards.items() for t in tensors},
        }
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def write_file(
    path: Path,
    tensors: list[Tensor],
    progress: Callable[[Tensor], None] = lambda _: None,
    metadata: dict[str, str] | None = None,
) -> tuple[dict[str, Fingerprint], str]:
    """Writes one safetensors file, each tensor read, written and let go before the next.

    Args:
        path: the file.
        tensors: what it holds.
        progress: called after each tensor.
        metadata: added to its header.

    Returns:
        tensor name → {"dtype", "shape", digest}, of the values as they were in memory; and the
        sha256 of the file as it was to be written.

    Raises:
        Problem: (corrupt) a dtype that safetensors has no name for.
    """
    # Widest items first, so that every offset is a multiple of its item size, as readers that
    # map the file need.
    ordered = sorted(tensors, key=lambda tensor: -tensor.dtype.itemsize)
    fingerprints: dict[str, Callable[[], Fingerprint]] = {}
    with writing(path) as output:
        output.bytes(_header(ordered, metadata or {}))
        for tensor in ordered:
            array = tensor.read()
            if (array.shape, array.dtype) != (tensor.shape, tensor.dtype):
                raise RuntimeError(f"{tensor} was read as {array.shape} {array.dtype}")
            fingerprints[tensor.name] = output.tensor(array)
            del array  # before the next one is read
            progress(tensor)
    return {name: tell() for name, tell in fingerprints.items()}, output.sha256()


def _header(tensors: list[Tensor], metadata: dict[str, str]) -> bytes:
    header: dict[str, object] = {"__metadata__": {"format": "pt", **metadata}}
    start = 0
    for tensor in tensors:
        if tensor.dtype not in DTYPE_CODES:
            raise Problem(
                f"safetensors cannot hold {tensor.dtype}",
                where=tensor.name,
                fix="convert it, for example with --dtype float32",
                exit_code=CORRUPT,
            )
        header[tensor.name] = {
            "dtype": DTYPE_CODES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, start + tensor.nbytes],
        }
        start += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
