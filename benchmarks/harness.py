"""Fair timing of several contestants, and records that can be compared later.

A contestant is built once and then called in turn with the others (A B C A B C …), so that all
meet the same state of the machine; ratios are taken within each round.
"""

import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from statistics import median
from typing import Any, NamedTuple

from benchmarks.machine import RESULTS, commit, machine, peak_memory, versions
from benchmarks.records import Absent, identity, read, save, table
from jaxmodels.errors import INTERNAL, UNVERIFIED, Problem, within
from jaxmodels.runtime.platform import keep_memory

__all__ = [
    "RESULTS",
    "Absent",
    "Call",
    "Contestant",
    "Run",
    "Timing",
    "identity",
    "positive",
    "race",
    "ratio",
    "read",
    "relative_errors",
    "save",
    "table",
]


Call = Callable[[int], Any]
"""Does one unit of work on the inputs of a round, and waits for its end."""


class Contestant(NamedTuple):
    """What is timed."""

    name: str
    make: Callable[[], Call]
    """Builds it; picklable for isolation: a module's function or a `partial` of one."""


@dataclass
class Timing:
    """The measurements of a contestant."""

    name: str
    first: float
    """Seconds of the first call, compilation included."""
    seconds: list[float] = field(default_factory=list)
    """Seconds of each round after the warm-up."""
    value: Any = None
    """Result of the first call."""
    peak_bytes: int | None = None
    """Peak memory of its process, if it has its own."""


def race(
    contestants: Sequence[Contestant], rounds: int, warmup: int = 2, isolated: bool = False
) -> list[Timing]:
    """Times the contestants in turn, `rounds` times each after `warmup` calls.

    Args:
        contestants: built one after the other, in this order.
        rounds: timed calls.
        warmup: calls before them; the first is recorded as `first`.
        isolated: run each in its own process, so that none shares another's allocator, threads
            and caches; they still take turns.

    Raises:
        Problem: (internal) the process of an isolated contestant ended early.
    """
    with ExitStack() as stack:
        place = _process if isolated else _here
        runs = [stack.enter_context(place(contestant.make)) for contestant in contestants]
        timings = []
        for contestant, run in zip(contestants, runs, strict=True):
            seconds, value, _ = run(0)
            timings.append(Timing(contestant.name, seconds, value=value))
        for index in range(1, warmup + rounds):
            for timing, run in zip(timings, runs, strict=True):
                seconds, _, peak = run(index)
                timing.peak_bytes = peak if isolated else None
                if index >= warmup:
                    timing.seconds.append(seconds)
    return timings


def ratio(timing: Timing, peer: Timing) -> float:
    """Speed relative to the peer: the median of the ratios of each round."""
    pairs = zip(timing.seconds, peer.seconds, strict=True)
    return median(theirs / ours for ours, theirs in pairs)


def relative_errors(timings: Sequence[Timing], limit: float, what: str) -> dict[str, float]:
    """Contestant → largest difference of its value from the first one's, over the latter's maximum.

    Args:
        timings: their values are arrays.
        limit: the largest error allowed.
        what: name of the values, such as "features".

    Raises:
        Problem: (verification) an error is larger: they do not do the same work.
    """
    ours = timings[0].value
    found = {one.name: float(abs(ours - one.value).max() / abs(ours).max()) for one in timings}
    if max(found.values()) > limit:
        raise Problem(
            f"the contestants compute different {what}",
            where=f"relative errors {found}, at most {limit} allowed",
            exit_code=UNVERIFIED,
        )
    return found


def positive(options: Any, *names: str) -> None:
    """Checks that options are at least 1.

    Raises:
        Problem: (usage) one is not.
    """
    for name in names:
        value = getattr(options, name)
        for number in value if isinstance(value, tuple) else (value,):
            within(f"--{name}", number, 1)


@contextmanager
def _here(make: Callable[[], Call]) -> Iterator[Callable[[int], tuple[float, Any, int]]]:
    call = make()

    def run(index: int) -> tuple[float, Any, int]:
        start = time.perf_counter()
        value = call(index)
        return time.perf_counter() - start, value, peak_memory()

    yield run


@contextmanager
def _process(make: Callable[[], Call]) -> Iterator[Callable[[int], tuple[float, Any, int]]]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(make, theirs), daemon=True)
    process.start()
    theirs.close()  # so that the end of the process ends our waiting

    def receive() -> Any:
        try:
            return ours.recv()
        except (EOFError, OSError) as error:
            raise Problem(
                "the process of a contestant ended",
                why="its own error is printed above",
                exit_code=INTERNAL,
            ) from error

    def run(index: int) -> tuple[float, Any, int]:
        ours.send(index)
        return receive()

    try:
        receive()  # built: nothing is timed while another contestant is being built
        yield run
    finally:
        ours.close()
        process.join()


def _serve(make: Callable[[], Call], pipe: Any) -> None:
    keep_memory()  # as the verb does for contestants in its own process
    with _here(make) as run:
        pipe.send("built")
        while True:
            try:
                index = pipe.recv()
            except EOFError:
                return
            pipe.send(run(index))


@dataclass(frozen=True)
class Run:
    """A run of a suite: what its records share. Made before anything is timed."""

    suite: str
    settings: dict[str, Any]
    machine: dict[str, Any] = field(default_factory=machine)
    versions: dict[str, str] = field(default_factory=versions)
    commit: str = field(default_factory=commit)
    date: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    def records(
        self, case: str, timings: list[Timing], extra: Callable[[Timing], dict[str, Any]]
    ) -> list[dict[str, Any]]:
        """A record per contestant: times in ms, ratios to every peer, and what `extra` adds."""
        return [
            self.record(
                case,
                timing.name,
                "ms",
                1e3 * median(timing.seconds),
                min=1e3 * min(timing.seconds),
                max=1e3 * max(timing.seconds),
                first=1e3 * timing.first,
                compile_ms=1e3 * max(0.0, timing.first - median(timing.seconds)),
                rounds=len(timing.seconds),
                times_ms=[round(1e3 * seconds, 4) for seconds in timing.seconds],
                times_as_fast_as={
                    peer.name: ratio(timing, peer) for peer in timings if peer is not timing
                },
                peak_bytes=timing.peak_bytes,
                **extra(timing),
            )
            for timing in timings
        ]

    def record(
        self, case: str, contestant: str, unit: str, median: float, **more: Any
    ) -> dict[str, Any]:
        """One record; its `median`, in `unit`, is compared with other runs."""
        shared = asdict(self)
        return {
            "suite": shared.pop("suite"),
            "case": case,
            "contestant": contestant,
            "unit": unit,
            "median": median,
            **more,
            **shared,
        }
