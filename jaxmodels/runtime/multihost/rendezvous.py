"""The processes of a run meet before JAX starts, so that one that does not fit gets a message.

`jax.distributed` aborts the whole process, with a C++ trace, when an address is wrong, a process
never comes or two disagree; its time-outs only change when. So they first exchange a line of JSON
over the port that JAX will use: every process introduces itself to process 0, which answers all of
them alike. The connections stay open (`lifeline`).
"""

import json
import select
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any

from jaxmodels.errors import NETWORK, USAGE, Problem
from jaxmodels.runtime.settings import differences

_LONGEST = 1 << 20  # bytes of a line
_PAUSE = 0.2  # seconds between two tries

Check = Callable[[], None]


def meet(
    address: tuple[str, int],
    count: int,
    index: int,
    facts: dict[str, Any],
    wait: int,
    check: Check,
) -> dict[int, socket.socket]:
    """Waits until all processes are here and agree; returns their connections.

    Process 0 has one to each other process, by its number; the others have one to process 0.

    Args:
        address: host and port of process 0.
        count: processes in all.
        index: this one.
        facts: what must be the same in all of them; JSON-able.
        wait: seconds to wait.
        check: called several times a second; may raise.

    Raises:
        Problem: (network) process 0 is not there, or others did not come in time; (usage) the
            processes disagree.
    """
    end = time.monotonic() + wait
    me = {"process": index, "processes": count, "facts": facts}
    if index == 0:
        return _Host(address, me, end, check).gather(wait)
    return {0: _visit(address, me, end, check, wait)}


class _Host:
    """Process 0: listens to all others, then answers them."""

    def __init__(self, address: tuple[str, int], me: dict[str, Any], end: float, check: Check):
        self.address, self.me, self.end, self.check = address, me, end, check
        self.here: dict[int, socket.socket] = {}

    def gather(self, wait: int) -> dict[int, socket.socket]:
        """Answers "go" when all are here; else answers with a problem, and raises it."""
        with ExitStack() as stack:
            listener = stack.enter_context(_listen(self.address))
            self._reach_oneself(listener)
            problem = self._gather(listener, stack, wait)
            answer = {"what": problem.what, "why": problem.why} if problem else {"go": True}
            for caller in self.here.values():
                _send(caller, answer)
            if problem:
                for caller in self.here.values():  # they close first: the port is free at once
                    select.select([caller], [], [], 2)
                raise problem
            return {index: _kept(caller) for index, caller in self.here.items()}

    def _reach_oneself(self, listener: socket.socket) -> None:
        """Checks that process 0 is at the address where the others, and JAX here, look for it."""
        try:
            with socket.create_connection(self.address, timeout=10):
                if select.select([listener], [], [], 2)[0]:
                    listener.accept()[0].close()
                    return
            why = "something else answers there"
        except OSError as error:
            why = str(error)
        raise Problem(
            "process 0 does not reach itself at the coordinator's address",
            where=_text(self.address),
            why=why,
            fix="give the name or address of this machine, the one that the others know",
            exit_code=NETWORK,
        )

    def _gather(self, listener: socket.socket, stack: ExitStack, wait: int) -> Problem | None:
        """What is wrong; None when all are here."""
        count = self.me["processes"]
        while True:
            self.here = {index: one for index, one in self.here.items() if not _gone(one)}
            if len(self.here) == count - 1:
                return None
            self.check()
            if time.monotonic() > self.end:
                missing = sorted({*range(1, count)} - self.here.keys())
                return Problem(
                    f"only {len(self.here) + 1} of {count} processes came within {wait} s",
                    where=_text(self.address),
                    why=f"not heard of: process {', '.join(map(str, missing))}",
                    fix="see that they run and reach this address; --processes 1 trains alone",
                    exit_code=NETWORK,
                )
            if not select.select([listener], [], [], _PAUSE)[0]:
                continue
            caller = stack.enter_context(listener.accept()[0])
            greeting = _hear(caller, 5)
            if isinstance(greeting, dict) and greeting.keys() == self.me.keys():
                problem = self._differs(greeting)
                self.here[-1 if problem else greeting["process"]] = caller
                if problem:
                    return problem

    def _differs(self, greeting: dict[str, Any]) -> Problem | None:
        """Why this process cannot join."""
        index, count = greeting["process"], self.me["processes"]
        why = ""
        if greeting["processes"] != count:
            theirs = greeting["processes"]
            why = f"process 0 expects {count} processes, process {index} expects {theirs}"
        elif index in self.here or not 0 < index < count:
            why = f"two processes say that they are number {index}"
        elif changed := differences(self.me["facts"], greeting["facts"]):
            rows = (f"{name}: {ours!r} and {theirs!r}" for name, (ours, theirs) in changed.items())
            why = f"process 0 and process {index} were started with\n" + "\n".join(rows)
        if not why:
            return None
        fix = "start all with the same command and version, each with its own --process"
        return Problem("the processes disagree", why=why, fix=fix, exit_code=USAGE)


def _visit(
    address: tuple[str, int], me: dict[str, Any], end: float, check: Check, wait: int
) -> socket.socket:
    """Another process: introduces itself, and waits for the answer."""
    why = "nothing answers"
    while time.monotonic() < end:
        check()
        try:
            with socket.create_connection(address, timeout=2) as host:
                _send(host, me)
                answer = _hear(host, end + 5 - time.monotonic(), check)
                if isinstance(answer, dict) and answer.get("go"):
                    return _kept(host)
        except OSError as error:
            why = str(error)
        else:
            if isinstance(answer, dict) and "what" in answer:
                code = USAGE if "disagree" in answer["what"] else NETWORK
                raise Problem(answer["what"], why=answer["why"], exit_code=code)
            why = "what answers there is not a process of this run, or has ended"
        time.sleep(_PAUSE)
    raise Problem(
        f"process 0 was not found within {wait} s",
        where=_text(address),
        why=why,
        fix="check the address, that process 0 runs, and that no firewall is between",
        exit_code=NETWORK,
    )


def _listen(address: tuple[str, int]) -> socket.socket:
    try:
        if socket.has_dualstack_ipv6():
            return socket.create_server(
                ("", address[1]), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024
            )
        return socket.create_server(("", address[1]), backlog=1024)
    except OSError as error:
        raise Problem(
            "process 0 cannot listen at the coordinator's port",
            where=_text(address),
            why=str(error.strerror or error),
            fix="give another port in --coordinator, to all processes",
            exit_code=NETWORK,
        ) from error


def _send(to: socket.socket, message: dict[str, Any]) -> None:
    with suppress(OSError):  # it is gone, and needs no answer
        to.sendall(json.dumps(message).encode() + b"\n")


def _hear(other: socket.socket, seconds: float | int, check: Check = lambda: None) -> Any:
    """The JSON value of one line; None when there is none in time."""
    end, heard = time.monotonic() + seconds, b""
    other.setblocking(False)
    while not heard.endswith(b"\n") and len(heard) < _LONGEST and time.monotonic() < end:
        check()
        if select.select([other], [], [], _PAUSE)[0]:
            piece = other.recv(1 << 16)
            if not piece:
                return None
            heard += piece
    try:
        return json.loads(heard)
    except ValueError:
        return None
    finally:
        other.setblocking(True)


def _kept(connection: socket.socket) -> socket.socket:
    """The connection, which its `with` block then leaves open."""
    return socket.socket(fileno=connection.detach())


def _gone(caller: socket.socket) -> bool:
    """Whether the other side, which has no more to say, has hung up."""
    return bool(select.select([caller], [], [], 0)[0])


def _text(address: tuple[str, int]) -> str:
    return f"{address[0]}:{address[1]}"
