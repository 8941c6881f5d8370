"""Writing a file and hashing it at once: disk and hashes work while the next piece is made."""

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from bridge.core.tensors import DIGEST, DIGESTS, Fingerprint, entry, pieces

# Bytes handed to the system in one call. A larger call makes Linux look for pages as large in its
# cache: at 16 MB a call, writing took four times as long.
CALL = 2**18
# Pieces that are held until they are written and hashed, so that nobody waits for the slowest.
HELD = 4
# Bytes after which the disk starts to write, long before it must be done.
AHEAD = 2**27


class HashedFile:
    """A file that is being written in pieces; see `writing`."""

    def __init__(self, file: Any, workers: list[ThreadPoolExecutor]):
        self._file, self._workers = file, workers
        self._begun: deque[list[Future[Any]]] = deque()
        self._synced: list[Future[Any]] = []
        self._unsynced = 0
        self._whole = hashlib.sha256()

    def bytes(self, piece: Any, *own: Any) -> None:
        """Begins to write a piece, and to add it to hashes of its own besides the file's."""
        self._wait(HELD - 1)
        calls = self._write, self._whole.update, *(each.update for each in own)
        self._begun.append(
            [w.submit(call, piece) for w, call in zip(self._workers, calls, strict=False)]
        )
        self._unsynced += len(piece)
        if self._unsynced > AHEAD:
            self._unsynced = 0
            self._synced.append(self._workers[-1].submit(os.fdatasync, self._file.fileno()))

    def tensor(self, array: np.ndarray) -> Callable[[], Fingerprint]:
        """Begins to write the values as `raw` gives them.

        Returns:
            a function that gives, once all is written, their entry in a manifest.
        """
        own = DIGESTS[DIGEST]()
        for piece in pieces(array):
            self.bytes(piece.data, own)
        if array.flags.c_contiguous:
            self._wait(0)  # the last pieces are parts of the array, which is to be let go
        dtype, shape = array.dtype, array.shape
        return lambda: entry(dtype, shape, own.hexdigest())

    def sha256(self) -> str:
        """Of all that was written, in hexadecimal; waits for it, and raises its errors."""
        self._wait(0)
        for each in self._synced:
            each.result()
        return self._whole.hexdigest()

    def _write(self, piece: Any) -> None:
        left = memoryview(piece)
        while left:
            left = left[self._file.write(left[:CALL]) :]

    def _wait(self, left: int) -> None:
        """Waits until so many pieces are left that were begun, and raises errors of the others."""
        while len(self._begun) > left:
            for each in self._begun.popleft():
                each.result()


@contextmanager
def writing(path: Path) -> Iterator[HashedFile]:
    """A new file to write; it is complete, though not yet safe on the disk, after the block."""
    with ExitStack() as stack:
        # Unbuffered, as all but the header is large.
        file = stack.enter_context(path.open("wb", buffering=0))
        # A thread each for writing, hash of the file, hash of the tensor, disk: pieces keep order.
        workers = [stack.enter_context(ThreadPoolExecutor(1)) for _ in range(4)]
        output = HashedFile(file, workers)
        yield output
        output.sha256()
