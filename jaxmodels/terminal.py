"""Standard output and error, which may go away while a command runs.

The reader of a pipe ends (`| head`), a connection is lost (SIGHUP, then EIO), a disk is full, a
stream was closed from the start (`>&-`), a terminal is stopped (Ctrl-S). Commands whose result is
on disk continue without their output; those whose result is their output end with 141. A message
waits one second for a reader that does not read.
"""

import errno
import io
import os
import select
import signal
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_PATIENCE = 1000  # milliseconds that a message waits for a reader that does not read


class OutputLost(BaseException):
    """The result cannot be written. Not an Exception, so that `except Exception` lets it pass.

    Args:
        error: the operating system's error.
    """

    def __init__(self, error: OSError | ValueError):
        super().__init__(str(error))
        self.error = error

    @property
    def full(self) -> bool:
        """Whether there was no space; otherwise nobody reads."""
        return isinstance(self.error, OSError) and self.error.errno in FULL


class Stream:
    """A text stream that survives the loss of its reader; a proxy of the given stream otherwise.

    What cannot be written is dropped, and `lost` holds the reason. Characters missing from the
    encoding are written as Python's escapes.

    Args:
        stream: the original standard output or error; None if it was closed.
        needed: raise `OutputLost` instead of dropping.
        wait: wait for a slow reader instead of dropping what it does not read in time.
    """

    def __init__(self, stream: Any, needed: bool, wait: bool):
        self._owned = stream is None
        self._stream: Any = stream or io.TextIOWrapper(io.FileIO(os.devnull, "w"), "utf-8")
        self.needed = needed
        self.lost: OutputLost | None = None
        self._poll: Any = None
        self._given = self._stream
        if wait:
            with suppress(OSError, ValueError):  # a process that shares it may have changed it
                os.set_blocking(self._stream.fileno(), True)
        else:
            self._reopen_nonblocking()
        self._patience = _PATIENCE

    def write(self, text: str) -> int:
        """Writes a text, or drops it; returns its length."""
        if self._ready():
            self._attempt(self._write, text)
        return len(text)

    def move(self, stream: Any) -> None:
        """Writes to another stream from now on."""
        self._stream = self._given = stream

    def writelines(self, lines: Any) -> None:
        """Writes each of the texts."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Flushes the underlying stream."""
        if self._ready():
            self._attempt(self._stream.flush)

    def isatty(self) -> bool:
        """Whether it is a terminal that can redraw lines; with TERM=dumb, as in notebooks, not."""
        with suppress(ValueError):  # it was closed
            return bool(self._stream.isatty()) and os.environ.get("TERM") != "dumb"
        return False

    def fileno(self) -> int:
        """The file descriptor of the original stream, for child processes."""
        return int(self._given.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
        except UnicodeEncodeError:
            encoding = self._stream.encoding
            self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))

    def _attempt(self, action: Callable[..., Any], *args: Any) -> None:
        try:
            action(*args)
        except (OSError, ValueError) as error:
            if isinstance(error, ValueError) and not self._stream.closed:
                raise
            self.lost = OutputLost(error)
            if self.needed or not self.lost.full:  # a disk may have space again
                self.drop()
            if self.needed:
                raise self.lost from error

    def close(self) -> None:
        """Closes what was opened here; the original stream stays open.

        Unwritten output is dropped: Python would try again at exit, and report another error.
        """
        if self.lost:
            self.drop()
        if self._owned:
            self._stream.close()

    def drop(self) -> None:
        """Redirects all pending and future output to /dev/null."""
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)

    def _reopen_nonblocking(self) -> None:
        """Makes writes to a pipe or terminal drop what is not read in time.

        The file is reopened, since O_NONBLOCK on the original would affect all who share it.
        """
        with suppress(OSError, ValueError):
            number = self._stream.fileno()
            mode = os.fstat(number).st_mode
            if not stat.S_ISFIFO(mode) and not os.isatty(number):
                return
            again = os.open(f"/dev/fd/{number}", os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK)
            self._poll = select.poll()
            self._poll.register(again, select.POLLOUT)
            raw: Any = io.FileIO(again, "w")
            self._owned = True
            encoding, errors = self._stream.encoding, "backslashreplace"
            self._stream.flush()
            self._stream = io.TextIOWrapper(raw, encoding, errors, write_through=True)

    def _ready(self) -> bool:
        """Whether the reader accepts more now. One that missed a text is not waited for again."""
        if self._poll is None:
            return True
        taken = bool(self._poll.poll(self._patience))
        self._patience = _PATIENCE if taken else 0
        return taken


@contextmanager
def resilient_output(needed: bool) -> Iterator[Stream]:
    """Within its block the terminal may go away: SIGHUP is ignored, messages never block for long.

    Args:
        needed: whether the command's only result is what it prints.

    Yields:
        Standard output, which is flushed when the block ends.
    """
    _fill_closed()
    before = sys.stdout, sys.stderr
    ours = Stream(sys.stdout, needed, wait=True)
    messages = Stream(sys.stderr, needed=False, wait=False)
    sys.stdout, sys.stderr = ours, messages
    main = threading.current_thread() is threading.main_thread()
    hangup = main and signal.getsignal(signal.SIGHUP) is signal.SIG_DFL
    if hangup:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        yield ours
    finally:
        messages.flush()
        sys.stdout, sys.stderr = before
        for stream in (ours, messages):
            stream.close()
        if hangup:
            signal.signal(signal.SIGHUP, signal.SIG_DFL)


def _fill_closed() -> None:
    """Opens /dev/null in place of closed streams: otherwise the next file would get the descriptor,
    and output of native code would end up in it.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
