"""What reading an untrusted file may take, in proportion to the size of the file.

The system holds the reading process to its memory and processor time (see `bridge.sandbox`). What a
compressed file unpacks to is counted besides: a huge array of zeros costs that process nothing,
and whoever asks for its values everything.
"""

from dataclasses import dataclass
from pathlib import Path

from jaxmodels.errors import UNSAFE, Problem

MEMORY = 2**30  # bytes, besides the tensor that is asked for
SECONDS, BYTES_PER_SECOND = 60, 5_000_000  # ample for any machine, with more for each byte
# Bytes that all members of a file may unpack to: FREE, and RATIO times its own size. Weights
# compress by a tenth, zeros a thousandfold.
FREE, RATIO = 2**28, 20


def seconds(work: int) -> int:
    """Seconds of the processor for going through so many bytes."""
    return SECONDS + work // BYTES_PER_SECOND


def unpacked(size: int) -> int:
    """Bytes that a file of `size` bytes may unpack to."""
    return FREE + RATIO * size


@dataclass
class Allowance:
    """What is left of the bytes that a file may unpack to."""

    path: Path
    left: int

    @classmethod
    def of(cls, path: Path) -> "Allowance":
        """The allowance of a file of this size."""
        return cls(path, unpacked(path.stat().st_size))

    def take(self, name: str, count: int) -> None:
        """Counts bytes of the member `name`.

        Raises:
            Problem: (unsafe) they are too many.
        """
        self.left -= count
        if self.left < 0:
            raise Problem(
                "the file unpacks to far more than a file of its size holds",
                where=f"{self.path}: {name}",
                why=f"unpacking and reading it may take {FREE:,} bytes and {RATIO} times its size",
                fix="use it only if you trust it: unpack it elsewhere and save its tensors anew",
                exit_code=UNSAFE,
            )
