"""Several processes that train one model: how they start, agree and end together.

All of it works, and costs nothing, in a run of one process. Values are exchanged through the
key-value store of JAX's coordination service in process 0, not through the devices, so that a
background thread can do it while the devices compute. Stops and failures go over connections of
their own (`lifeline`), which outlive that store.
"""

import ctypes
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count as counter
from typing import Any

from jaxmodels import cli
from jaxmodels.errors import INTERNAL, STOPPED, USAGE, Problem
from jaxmodels.runtime.multihost.cluster import Place, find
from jaxmodels.runtime.multihost.lifeline import Lifelines, Message
from jaxmodels.runtime.multihost.rendezvous import Check, meet
from jaxmodels.runtime.stop import Stop
from jaxmodels.terminal import Stream

_NO_PROXY = "no_grpc_proxy"  # gRPC's name for it
_SLICE_MS = 500  # of a wait, between two looks at whether to stop
_VERDICT = 3.0  # seconds in which the lifelines know of a process that a collective misses
_AGAIN = "start all processes again; they go on from the newest checkpoint"


class _Group:
    """The other processes, and the ways to reach them."""

    def __init__(self, place: Place, peers: dict[int, Any], silence: int, stop: Stop):
        self.count, self.index, self.stop = place.processes, place.process, stop
        self.client: Any = None
        self.check: Check = stop.check
        self.turns = counter()
        self.failed = False
        self.lines = Lifelines(self.index, peers, silence, self.hear, self.lose)

    def hear(self, message: Message) -> None:
        """Ends this process when another one failed; stops it when that one is stopped.

        It may be waiting inside a collective for the one that failed, and would wait for ever.
        """
        if message["stop"]:
            self.stop.reason = self.stop.reason or message["stop"]
        elif not self.failed:  # else it says why itself
            cli.hush(False)
            cli.say(f"{message['what']}; so process {self.index} ends too")
            self.depart(message["code"])

    def lose(self, number: int, how: str) -> None:
        """Ends this process, to be started again, because another one was lost."""
        if self.failed:
            return
        what = f"process {number} was lost"
        self.lines.tell({"stop": "", "what": f"{what}: {how}", "code": STOPPED})
        self.depart(cli.fail(Problem(what, why=how, fix=_AGAIN, exit_code=STOPPED)), but=number)

    def depart(self, code: int, but: int = -1) -> None:
        """Ends at once: JAX would wait for the others, and its own end may hang."""
        self.lines.farewell(but)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


_group: _Group | None = None


def several() -> bool:
    """Whether this process is one of several."""
    return _group is not None


def count() -> int:
    """How many processes there are."""
    return _group.count if _group else 1


def index() -> int:
    """Which of them this one is, from 0 on."""
    return _group.index if _group else 0


def is_primary() -> bool:
    """Whether this process is the one that prints and writes for all."""
    return index() == 0


def start(
    coordinator: str,
    processes: int,
    process: int | None,
    wait: int,
    heartbeat: int,
    facts: dict[str, Any],
    stop: Stop,
) -> None:
    """Joins the other processes, if there are any; before JAX looks for devices.

    Args:
        coordinator: as `cluster.find`, like the next two.
        processes: how many.
        process: the number of this one.
        wait: seconds to wait for the others.
        heartbeat: seconds without a sign of a process after which the others end.
        facts: what must be the same in all; JSON-able.
        stop: asked while this process waits for others.

    Raises:
        Problem: as `rendezvous.meet`; (usage) the flags do not say enough.
    """
    place = find(coordinator, processes, process)
    if place is None:
        return
    host, _, port = place.coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise Problem(
            f"--coordinator must be HOST:PORT, not {place.coordinator!r}", exit_code=USAGE
        )
    end = time.monotonic() + wait
    address = (host.strip("[]"), int(port))
    peers = meet(address, place.processes, place.process, facts, wait, stop.check)
    team = _Group(place, peers, heartbeat, stop)
    team.lines.start()
    _abort_late()
    _initialize(place, max(30, int(end - time.monotonic())), 2 * heartbeat + 30)
    _join(team)


def _abort_late() -> None:
    """Delays an abort by six seconds, in its thread.

    JAX aborts a process as soon as process 0, and with it the coordination service, is gone. The
    lifelines notice that too, and end the process with a message; they only need a moment. JAX's
    client takes a `missed_heartbeat_callback` instead, but jaxlib 0.10 crashes in the call of one
    (std::bad_cast), and a handler of Python's `signal` would return at once and let the abort go
    on. So the handler is the C library's `sleep`, called with the signal's number, 6.
    """
    library = ctypes.CDLL(None)
    library.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
    library.signal.restype = ctypes.c_void_p
    library.signal(signal.SIGABRT, ctypes.cast(library.sleep, ctypes.c_void_p))


def _initialize(place: Place, wait: int, heartbeat: int) -> None:
    import jax

    host = place.coordinator.rpartition(":")[0].strip("[]")
    # gRPC would look for process 0 behind the proxy that serves the way out of the cluster.
    os.environ[_NO_PROXY] = ",".join(filter(None, [os.environ.get(_NO_PROXY), host]))
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_check_proxy_envs", False)
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM from us
    jax.distributed.initialize(
        place.coordinator,
        place.processes,
        place.process,
        place.devices,
        cluster_detection_method="deactivate",
        initialization_timeout=wait,
        heartbeat_timeout_seconds=heartbeat,
        shutdown_timeout_seconds=120,
    )


def _join(team: _Group) -> None:
    global _group
    from jax._src import distributed  # the store has no public name

    # Gloo prints its connections on standard output, which is for results.
    results = os.fdopen(os.dup(1), "w", buffering=1)
    sys.stdout.flush()
    os.dup2(2, 1)
    if isinstance(sys.stdout, Stream):
        sys.stdout.move(results)
    else:
        sys.stdout = results
    team.client = distributed.global_state.client
    _group = team
    cli.hush(team.index != 0)


def begun() -> None:
    """From now on a stop is agreed on between steps instead of raised while waiting."""
    if _group:
        _group.check = lambda: None


def all_gather(value: Any = None, name: str | None = None) -> list[Any]:
    """The JSON-able values of all processes, in their order; a barrier too.

    All processes call it in the same order; threads other than the main one give a name, each of
    which is used once.
    """
    if _group is None:
        return [value]
    key = f"jaxmodels/exchange/{name or next(_group.turns)}"
    if _group.index:
        _group.client.key_value_set(f"{key}/{_group.index}", json.dumps(value))
        return list(json.loads(_get(f"{key}/all")))
    values = [value] + [json.loads(_get(f"{key}/{other}")) for other in range(1, _group.count)]
    _group.client.key_value_set(f"{key}/all", json.dumps(values))
    return values


def broadcast(value: Any) -> Any:
    """The value of process 0."""
    return all_gather(value)[0]


def _get(key: str) -> str:
    """Waits for a value in the store without a limit: if a process dies, JAX ends all of them."""
    assert _group is not None
    while True:
        try:
            return str(_group.client.blocking_key_value_get(key, _SLICE_MS))
        except Exception as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise
        _group.check()


def tell_stop(reason: str) -> None:
    """Informs the others, before training has begun, that this process was stopped."""
    if _group is not None:
        _group.lines.tell({"stop": reason})


@contextmanager
def together() -> Iterator[None]:
    """When the block fails in one process, the others are informed and end with the same code.

    An error with `everywhere` is raised in all of them alike: each reports it itself.
    """
    try:
        yield
    except BaseException as error:
        if _group is not None and getattr(error, "everywhere", False):
            all_gather(name="failed everywhere")  # so that none takes another for lost
            _group.failed = True
        elif _group is not None:
            code = int(getattr(error, "exit_code", INTERNAL))
            what = str(getattr(error, "what", "") or f"{type(error).__name__}: {error}")
            _tell_failure(what.splitlines()[0], code)
        raise


@contextmanager
def lost_is_resumable() -> Iterator[None]:
    """Turns the error of a JAX call that misses another process into a Problem with code 75."""
    try:
        yield
    except Exception as error:
        if _group is None or hasattr(error, "exit_code"):
            raise
        time.sleep(_VERDICT)  # in which the lifelines end this process, if they know more
        message = str(error).lower()
        if "gloo" in message or "unavailable" in message or "coordination" in message:
            raise Problem(
                "the connection to another process was lost",
                why=str(error).splitlines()[0],
                fix=_AGAIN,
                exit_code=STOPPED,
            ) from error
        raise


def finish(code: int) -> int:
    """The exit code of process 0, for all: they end together."""
    code = int(all_gather(code, "exit code")[0])
    if _group is not None:
        _group.lines.end()
    return code


def _tell_failure(what: str, code: int) -> None:
    assert _group is not None
    _group.failed = True
    what = f"process {_group.index} failed: {what}"
    _group.lines.tell({"stop": "", "what": what, "code": code})


def leave(code: int) -> None:
    """Ends a failed process at once, if it is one of several: JAX would wait for the others."""
    if _group is not None:
        if not _group.failed:
            _tell_failure(f"it ended with exit code {code}", code)
        _group.depart(code)
