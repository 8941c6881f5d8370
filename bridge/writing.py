"""Writing a file and hashing it at once: disk and hashes work while the next piece is made."""

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from bridge.tensors import Fingerprint, entry, pieces

Hash = Any  # of hashlib, which has no public name for it


class Output:
    """A file that is being written in pieces; see `writing`."""

    def __init__(self, write: Callable[[Any], Any], threads: ThreadPoolExecutor):
        self._write, self._threads = write, threads
        self._begun: list[Future[Any]] = []
        self._whole = hashlib.sha256()

    def bytes(self, piece: Any, *hashes: Hash) -> None:
        """Begins to write a piece, once the one before it is written: two are held at most."""
        self.wait()
        calls = self._write, self._whole.update, *(each.update for each in hashes)
        self._begun = [self._threads.submit(call, piece) for call in calls]

    def tensor(self, array: np.ndarray) -> Callable[[], Fingerprint]:
        """Begins to write the values as `raw` gives them.

        Returns:
            what tells, once all is written, what a manifest says of them.
        """
        own = hashlib.sha256()
        for piece in pieces(array):
            self.bytes(piece.data, own)
        if array.flags.c_contiguous:
            self.wait()  # the last piece is a part of the array, which is to be let go
        dtype, shape = array.dtype, array.shape
        return lambda: entry(dtype, shape, own.hexdigest())

    def wait(self) -> None:
        """Waits for what was begun, and raises its errors."""
        begun, self._begun = self._begun, []
        for each in begun:
            each.result()

    def sha256(self) -> str:
        """Of all that was written, in hexadecimal."""
        self.wait()
        return self._whole.hexdigest()


@contextmanager
def writing(path: Path) -> Iterator[Output]:
    """A new file to write; it is complete, though not yet safe on the disk, after the block."""
    # Disk, hash of the file, hash of the tensor; unbuffered, as all but the header is large.
    with path.open("wb", buffering=0) as file, ThreadPoolExecutor(3) as threads:

        def write(piece: Any) -> None:
            left = memoryview(piece)
            while left:  # Linux writes 2 GB at most in one call
                left = left[file.write(left) :]

        output = Output(write, threads)
        yield output
        output.wait()
