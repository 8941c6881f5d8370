"""The instructions of a pickle, read one by one from a stream: what they say, not what they do."""

import io
import pickletools
from collections.abc import Iterator
from typing import IO, Any, Protocol, cast

_OPCODES = {opcode.code.encode("latin-1"): opcode for opcode in pickletools.opcodes}
# Instruction whose argument is bytes → how many bytes give its size.
BYTES = {"SHORT_BINBYTES": 1, "BINBYTES": 4, "BINBYTES8": 8, "BYTEARRAY8": 8}


class BrokenPickle(ValueError):
    """The bytes are no pickle of plain values."""


class PickleStream(Protocol):
    """Where a pickle is read from."""

    def read(self, size: int, /) -> bytes:
        """The next bytes; fewer where the stream ends."""

    def readline(self) -> bytes:
        """The bytes to the end of the line."""

    def tell(self) -> int:
        """How many bytes were read."""

    def data(self, size: int) -> Any:
        """The next bytes as they are, or what stands for them (it has their length)."""


class InMemory(io.BytesIO):
    """A stream over bytes that are at hand."""

    def data(self, size: int) -> bytes:
        """The next bytes."""
        return self.read(size)


def instructions(stream: PickleStream) -> Iterator[tuple[str, Any, int]]:
    """Name in `pickletools`, argument and place of each instruction."""
    while True:
        at = stream.tell()
        code = stream.read(1)
        if not code:
            return
        opcode = _OPCODES.get(code)
        # Python 3 writes no STRING, and decoding one gives warnings.
        if opcode is None or opcode.name == "STRING":
            raise BrokenPickle(f"{code!r} at byte {at} is not an instruction that is read")
        argument = None
        if opcode.name in BYTES:
            size = int.from_bytes(stream.read(BYTES[opcode.name]), "little")
            argument = stream.data(size)
            if len(argument) != size:
                raise BrokenPickle(f"{size:,} bytes are announced at byte {at}, and not there")
        elif opcode.arg:
            argument = opcode.arg.reader(cast(IO[bytes], stream))
        yield opcode.name, argument, at
