"""How a process knows that the others live: a connection of each to process 0.

A process that ends, however it ends, closes its connection at once; a frozen one, or one whose
machine is gone, sends no sign of life. Process 0 notices, and informs the others; they notice the
end of process 0 themselves. Stops and failures travel the same way. None of it needs JAX, whose own
service ends with process 0, and whose own watch aborts the process.
"""

import json
import select
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

Message = dict[str, Any]

_LONGEST = 1 << 16  # bytes of a message
_LOOKS = 5  # at the clock, and signs, while a process may be silent
_FAREWELL = 5.0  # seconds that process 0 waits for the others to end before it


class Lifelines(threading.Thread):
    """Watches, in a thread of its own, over the connections of this process.

    Args:
        index: the number of this process.
        peers: number of another process → the connection to it; process 0 has one to each, the
            others one to process 0.
        silence: seconds without a sign after which a process is taken for lost.
        hear: called with each message of another process.
        lose: called with the number of a lost process, and how it was lost.
    """

    def __init__(
        self,
        index: int,
        peers: dict[int, socket.socket],
        silence: float | int,
        hear: Callable[[Message], None],
        lose: Callable[[int, str], None],
    ):
        super().__init__(name="lifelines", daemon=True)
        self.index, self.peers, self.silence = index, peers, silence
        self.hear, self.lose = hear, lose
        self.leaving = False
        self._buffers = dict.fromkeys(peers, b"")
        self._heard = dict.fromkeys(peers, time.monotonic())
        self._looked, self._still = time.monotonic(), 0.0
        self._sending = threading.Lock()
        for peer in peers.values():
            peer.setblocking(False)

    def run(self) -> None:
        """Reads, and sends a sign of life, several times within `silence`; until `end`."""
        while self.peers and not self.leaving:
            self._look(min(self.silence / _LOOKS, 5.0))

    def tell(self, message: Message, but: int = -1) -> None:
        """Sends a message to the other processes; process 0 forwards those it gets.

        Args:
            message: a JSON-able object.
            but: a process to leave out.
        """
        line = json.dumps(message).encode() + b"\n"
        with self._sending:
            for number, peer in list(self.peers.items()):
                if number != but:
                    with suppress(OSError):  # a process that is gone is noticed elsewhere
                        peer.sendall(line)

    def end(self) -> None:
        """Ends the watch, once all processes have agreed to end."""
        self.leaving = True
        self.tell({"bye": self.index})

    def farewell(self, but: int = -1) -> None:
        """Waits, in process 0, until the others have ended: they still need JAX's service."""
        self.leaving, until = True, time.monotonic() + _FAREWELL
        while self.index == 0 and self.peers.keys() - {but} and time.monotonic() < until:
            if threading.current_thread() is self or not self.is_alive():
                self._look(0.1)
            else:
                time.sleep(0.1)

    def _look(self, seconds: float) -> None:
        ready = select.select(list(self.peers.values()), [], [], seconds)[0]
        now = time.monotonic()
        self._still, self._looked = now - self._looked, now
        for number, peer in list(self.peers.items()):
            if peer in ready:
                self._heard[number] = now
                self._read(number, peer)
            elif self._still > self.silence / 2:  # nothing was read, and nothing given, meanwhile
                self._heard[number] = now
            elif now - self._heard[number] > self.silence:
                self._lost(number, f"it gave no sign for {self.silence:.0f} s")
        with self._sending:
            for peer in self.peers.values():
                with suppress(OSError):
                    peer.send(b"\n")

    def _read(self, number: int, peer: socket.socket) -> None:
        try:
            piece = peer.recv(_LONGEST)
        except BlockingIOError:
            return
        except OSError:
            piece = b""
        *lines, rest = (self._buffers[number] + piece).split(b"\n")
        self._buffers[number] = rest[-_LONGEST:]
        for line in filter(None, lines):
            message = json.loads(line)
            if "bye" in message:
                self.peers.pop(number, None)
            else:
                if self.index == 0:
                    self.tell(message, but=number)
                if not self.leaving:
                    self.hear(message)
        if not piece and number in self.peers:
            self._lost(number, "its connection was closed: it was killed, or its machine is gone")

    def _lost(self, number: int, how: str) -> None:
        self.peers.pop(number)
        if self._still > self.silence:
            how = f"this process stood still for {self._still:.0f} s, and was not waited for"
        if not self.leaving:
            self.lose(number, how)
