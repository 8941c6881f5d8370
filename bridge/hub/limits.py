"""Limits on a hub's answers: how many bytes, and for how long. An answer need not ever end."""

import threading
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any, TypeVar

from jaxmodels.errors import NETWORK, Problem

T = TypeVar("T")

ANSWER = 30_000_000  # bytes of an answer that is no file, such as the list of files
SPARE = 10_000  # bytes of a file's answer besides the file: redirections, words of an error
PATIENCE = 30.0  # seconds that any answer may take
RATE = 10_000  # bytes a second that must arrive on the whole


@dataclass
class _Limit:
    """What may still arrive for one call."""

    address: str
    bytes: int
    end: float  # of time.monotonic

    def take(self, count: int) -> None:
        """Counts bytes that arrived.

        Raises:
            Problem: (network) too many, or too late.
        """
        self.bytes -= count
        if self.bytes < 0:
            raise _problem(self.address, "the hub sends more than it should")
        if time.monotonic() > self.end:
            raise _problem(self.address, "the hub takes too long")


_limit: ContextVar[_Limit | None] = ContextVar("limit", default=None)


def seconds_for(size: int) -> float:
    """How long files of so many bytes may take."""
    return PATIENCE + size / RATE


def limited(
    address: str, call: Callable[[], T], size: int = ANSWER, seconds: float = PATIENCE
) -> T:
    """What `call` returns, which may ask the hub; raises what it raises.

    Args:
        address: whom it asks, for errors.
        call: runs in its own thread, which is abandoned when time is up.
        size: bytes that the answers may have, all together.
        seconds: how long it may take.

    Raises:
        Problem: (network) the answers are longer, or do not end in time.
    """
    result: list[T] = []
    errors: list[BaseException] = []

    def work() -> None:
        _limit.set(_Limit(address, size + SPARE, time.monotonic() + seconds))
        try:
            result.append(call())
        except BaseException as error:
            errors.append(error)

    _watch()
    # A waiting thread of the hub's client would keep the process from ending, if it were no daemon.
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise _problem(address, "the hub takes too long")
    if errors:
        raise errors[0]
    return result[0]


def _problem(address: str, what: str, why: str = "") -> Problem:
    return Problem(
        what,
        where=address,
        why=why
        or f"an answer may take {PATIENCE:.0f} s, and a second more for each {RATE:,} bytes of a "
        "file; it may not be longer than the list of files says",
        fix="try again; what arrived of large files is kept",
        exit_code=NETWORK,
    )


def _watch() -> None:
    """Lets every client that huggingface_hub makes from now on count what it receives.

    Downloads go over HTTP: hf_xet's are not counted, and go to a host that the answer names.
    """
    from huggingface_hub import constants, set_client_factory
    from huggingface_hub.utils import _http

    constants.HF_HUB_DISABLE_XET = True
    made = getattr(_http, "_GLOBAL_CLIENT_FACTORY", _http.default_client_factory)
    if getattr(made, "func", None) is not _client:
        set_client_factory(partial(_client, made))


def _client(make: Callable[[], Any]) -> Any:
    client = make()
    hooks = client.event_hooks
    client.event_hooks = {
        "request": [*hooks.get("request", ()), _ask_plainly],
        "response": [*hooks.get("response", ()), _count],
    }
    return client


def _ask_plainly(request: Any) -> None:
    """A few bytes could unfold to gigabytes, uncounted."""
    if _limit.get() is not None:
        request.headers["accept-encoding"] = "identity"


def _count(response: Any) -> None:
    limit = _limit.get()
    if limit is None:
        return
    if response.headers.get("content-encoding", "identity") != "identity":
        why = "a few bytes might unfold to any number; plain ones were asked for"
        raise _problem(limit.address, "the hub's answer is compressed", why)
    stream, take = response.stream, limit.take
    # httpx or httpx2, by the version of huggingface_hub: mypy cannot know the base class.
    kind = import_module(type(response).__module__.partition(".")[0])

    class Counted(kind.SyncByteStream):  # type: ignore[name-defined]
        """The bytes of the answer, counted."""

        def __iter__(self) -> Iterator[bytes]:
            for piece in stream:
                take(len(piece))
                yield piece

        def close(self) -> None:
            stream.close()

    response.stream = Counted()
