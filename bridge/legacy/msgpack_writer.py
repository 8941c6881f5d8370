"""Writes trees of arrays as `flax.serialization` does, one tensor at a time.

The form is described in `msgpack_reader`.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bridge.core.tensors import Fingerprint, Tensor, fingerprint, raw
from bridge.legacy.msgpack_reader import ARRAY, CHUNKED, Tree

MAX_CHUNK = 2**30


def write_msgpack(
    path: Path, tree: Tree, progress: Callable[[Tensor], None] = lambda _: None
) -> dict[str, Fingerprint]:
    """Writes a tree of `Tensor`s and plain values as flax does, one tensor at a time.

    The bytes are those of `flax.serialization.to_bytes` for a tree with keys in this order.

    Returns:
        tensor name → {"dtype", "shape", digest}.
    """
    digests = {}
    with path.open("wb") as file:
        for piece in _pieces(tree):
            if isinstance(piece, bytes):
                file.write(piece)
                continue
            array = piece.read()
            for part in _array(array):
                file.write(part)
            digests[piece.name] = fingerprint(array)
            progress(piece)
    return digests


def _pieces(tree: Any) -> Iterator[bytes | Tensor]:
    """What to write, in order: packed bytes, and tensors to be packed when their turn comes."""
    import msgpack

    if isinstance(tree, dict):
        yield msgpack.Packer().pack_map_header(len(tree))
        for key, value in tree.items():
            yield msgpack.packb(key)
            yield from _pieces(value)
    elif isinstance(tree, Tensor):
        yield tree
    else:
        yield msgpack.packb(tree)


def _array(array: np.ndarray) -> Iterator[bytes]:
    """An array as flax packs it, in chunks above 2^30 bytes."""
    import msgpack

    if array.nbytes <= MAX_CHUNK:
        yield _extension(array)
        return
    flat = np.ascontiguousarray(array).reshape(-1)
    step = max(1, MAX_CHUNK // array.dtype.itemsize)
    chunks = [flat[start : start + step] for start in range(0, flat.size, step)]
    yield msgpack.Packer().pack_map_header(3)
    yield msgpack.packb(CHUNKED) + msgpack.packb(True)
    yield msgpack.packb("shape") + msgpack.packb({str(i): n for i, n in enumerate(array.shape)})
    yield msgpack.packb("chunks") + msgpack.Packer().pack_map_header(len(chunks))
    for i, chunk in enumerate(chunks):
        yield msgpack.packb(str(i))
        yield _extension(chunk)


def _extension(array: np.ndarray) -> bytes:
    import msgpack

    content = msgpack.packb((array.shape, array.dtype.name, raw(array).tobytes()))
    return msgpack.packb(msgpack.ExtType(ARRAY, content))
