"""Several processes that train one model: how they start, agree and end together.

All of it works, and costs nothing, in a run of one process. What processes tell each other here
goes through the key-value store of JAX's coordination service, which process 0 holds, not through
the devices: so a background thread may talk too, while the devices compute.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count as counter
from typing import Any

from jaxmodels import cli
from jaxmodels.errors import INTERNAL, USAGE, Problem
from jaxmodels.runtime.cluster import Place, find
from jaxmodels.runtime.rendezvous import Check, meet
from jaxmodels.runtime.stop import Stop

_NO_PROXY = "no_grpc_proxy"  # gRPC's name for it
_END = "jaxmodels/end"  # what ended one process, for the others
_ALL = -1  # all ended together
_SLICE_MS = 500  # of a wait, between two looks at whether to stop
_FAREWELL = 5.0  # seconds that a process which failed waits for the others to hear of it


class _Team:
    """The other processes, and the ways to reach them."""

    def __init__(self, place: Place, client: Any, stop: Stop):
        self.count, self.index, self.client, self.stop = (*place[1:3], client, stop)
        self.check: Check = stop.check
        self.turns = counter()
        self.failed = False
        self.watcher = threading.Thread(target=_watch, args=(self,), name="watch", daemon=True)


_team: _Team | None = None


def several() -> bool:
    """Whether this process is one of several."""
    return _team is not None


def count() -> int:
    """How many processes there are."""
    return _team.count if _team else 1


def first() -> bool:
    """Whether this process is the one that prints and writes for all."""
    return _team is None or _team.index == 0


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
        heartbeat: seconds without a sign of a process after which JAX ends the others.
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
    meet(address, place.processes, place.process, facts, wait, stop.check)
    _initialize(place, max(30, int(end - time.monotonic())), heartbeat)
    _join(place, stop)


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


def _join(place: Place, stop: Stop) -> None:
    global _team
    from jax._src import distributed  # the store has no public name

    # Gloo tells on standard output whom it is connected to, which is for results.
    results = os.fdopen(os.dup(1), "w", buffering=1)
    sys.stdout.flush()
    os.dup2(2, 1)
    sys.stdout = results
    _team = _Team(place, distributed.global_state.client, stop)
    cli.hush(place.process != 0)
    _team.watcher.start()


def begun() -> None:
    """From here on a stop is agreed upon between steps, no longer raised in a wait."""
    if _team:
        _team.check = lambda: None


def exchange(value: Any = None, name: str | None = None) -> list[Any]:
    """Gives a JSON-able value and gets those of all processes, in their order; a barrier too.

    All processes call it in the same order; a thread that is not the main one gives a name, one
    that is never used again.
    """
    if _team is None:
        return [value]
    key = f"jaxmodels/exchange/{name or next(_team.turns)}"
    if _team.index:
        _team.client.key_value_set(f"{key}/{_team.index}", json.dumps(value))
        return list(json.loads(_get(f"{key}/all")))
    values = [value] + [json.loads(_get(f"{key}/{other}")) for other in range(1, _team.count)]
    _team.client.key_value_set(f"{key}/all", json.dumps(values))
    return values


def from_first(value: Any) -> Any:
    """The value of process 0."""
    return exchange(value)[0]


def _get(key: str) -> str:
    """Waits for a value of the store, for as long as it takes: if a process dies, JAX ends all."""
    assert _team is not None
    while True:
        try:
            return str(_team.client.blocking_key_value_get(key, _SLICE_MS))
        except Exception as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise
        _team.check()


def _watch(team: _Team) -> None:
    """Ends this process when another one says that it failed; stops it when that one is stopped.

    It may be waiting inside a collective for the one that failed, and would wait for ever.
    """
    told: dict[str, Any] = {}
    while not told:
        try:
            told = json.loads(team.client.blocking_key_value_get(_END, 3_600_000))
        except Exception as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                return  # the end of the run
    if told["by"] in (team.index, _ALL):
        return
    if told["stop"]:
        team.stop.reason = team.stop.reason or told["stop"]
        return
    if not team.failed:  # else it says why itself
        cli.hush(False)
        cli.say(f"process {told['by']} failed: {told['what']}; so process {team.index} ends too")
        _depart(team, told["code"])


def tell_stop(reason: str) -> None:
    """Tells the others, before training has begun, that this process was stopped."""
    _tell({"stop": reason})


@contextmanager
def together() -> Iterator[None]:
    """When its block fails in one process, the others hear of it and end with the same code."""
    try:
        yield
    except BaseException as error:
        if _team is not None:
            code = int(getattr(error, "exit_code", INTERNAL))
            what = str(getattr(error, "what", "") or f"{type(error).__name__}: {error}")
            _team.failed = True
            _tell({"stop": "", "what": what.splitlines()[0], "code": code})
        raise


def part(code: int) -> int:
    """The exit code of process 0, for all: they end together, as they agreed."""
    code = int(exchange(code, "exit code")[0])
    if _team is not None:
        _tell({"by": _ALL})
        _team.watcher.join()  # Python must not end while it is in a call of JAX
    return code


def _tell(message: dict[str, Any]) -> None:
    if _team is not None:
        with suppress(Exception):  # another one was first
            _team.client.key_value_set(_END, json.dumps({"by": _team.index, **message}))


def leave(code: int) -> None:
    """Ends at once a process that failed, if it is one of several: JAX would have it wait."""
    if _team is not None:
        _tell({"stop": "", "what": f"it ended with exit code {code}", "code": code})
        _depart(_team, code)


def _depart(team: _Team, code: int) -> None:
    """Process 0 holds the store in which the others read why they end, and is the last to go."""
    end = time.monotonic() + _FAREWELL
    with suppress(Exception):
        team.client.key_value_set(f"{_END}/{team.index}", "gone")
    for other in range(1, team.count if team.index == 0 else 0):
        while time.monotonic() < end:
            with suppress(Exception):
                team.client.blocking_key_value_get(f"{_END}/{other}", _SLICE_MS)
                break
    time.sleep(0.5 if team.index == 0 else 0)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
