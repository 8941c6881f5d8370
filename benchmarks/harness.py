"""Fair timing of several contestants, and records of it that can be compared later.

A contestant is built once and then called in turn with the others (A B C A B C …), so that all
meet the same state of the machine; what is compared is the ratio within each round.
"""

import json
import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from benchmarks.machine import RESULTS, commit, cores, machine, peak_memory, versions
from jaxmodels.errors import CORRUPT, INTERNAL, USAGE, Problem

__all__ = [
    "RESULTS", "Absent", "Call", "Contestant", "Run", "Timing", "cores", "identity", "race",
    "ratio", "read", "save", "table",
]  # fmt: skip

# Settings that make the same case another measurement.
_SIZES = ("batch", "dtype", "context", "prompt", "new_tokens", "steps")


class Absent(Problem):
    """A suite cannot run here, since something that it needs is not there; the others can."""

    def __init__(self, what: str, fix: str = ""):
        super().__init__(what, fix=fix, exit_code=USAGE)


Call = Callable[[int], Any]
"""Does one unit of work on the inputs of a round, to its end."""


class Contestant(NamedTuple):
    """What is timed."""

    name: str
    make: Callable[[], Call]
    """Builds it; must be picklable (a module's function or a `partial` of one) for isolation."""


@dataclass
class Timing:
    """What was measured of one contestant."""

    name: str
    first: float
    """Seconds of the first call, compilation included."""
    seconds: list[float] = field(default_factory=list)
    """Seconds of each round after warm-up."""
    value: Any = None
    """What the first call returned."""
    peak_bytes: int | None = None
    """Peak memory of its process; known only when it has its own."""


def race(
    contestants: Sequence[Contestant], rounds: int, warmup: int = 2, isolated: bool = False
) -> list[Timing]:
    """Times the contestants in turn, `rounds` times each after `warmup` calls.

    Args:
        contestants: built one after the other, in this order.
        rounds: calls that count.
        warmup: calls before them, the first of which is recorded as `first`.
        isolated: give each its own process, so that none lives with another's allocator,
            threads and caches; they still take turns.

    Raises:
        Problem: (internal) the process of an isolated contestant ended before its time.
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
    """How many times as fast as the peer: the median of the ratios of each round."""
    pairs = zip(timing.seconds, peer.seconds, strict=True)
    return median(theirs / ours for ours, theirs in pairs)


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
                why="its own error stands above",
                exit_code=INTERNAL,
            ) from error

    def run(index: int) -> tuple[float, Any, int]:
        ours.send(index)
        return receive()

    try:
        receive()  # built: nothing is timed while another is still being built
        yield run
    finally:
        ours.close()
        process.join()


def _serve(make: Callable[[], Call], pipe: Any) -> None:
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
    """One run of a suite: what all of its records share. Made before anything is timed."""

    suite: str
    settings: dict[str, Any]
    machine: dict[str, Any] = field(default_factory=machine)
    versions: dict[str, str] = field(default_factory=versions)
    commit: str = field(default_factory=commit)
    date: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    def records(
        self, case: str, timings: list[Timing], extra: Callable[[Timing], dict[str, Any]]
    ) -> list[dict[str, Any]]:
        """One record a contestant: times in ms, ratios to every peer, and what `extra` adds."""
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
        """One record. `median` is what is compared with other runs, in `unit`: less is better."""
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


def identity(record: dict[str, Any]) -> tuple[Any, ...]:
    """What a record measures: the same of two records means that they can be compared."""
    settings = record.get("settings", {})
    sizes = (str(settings.get(name)) for name in _SIZES)
    return (record["suite"], record["case"], record["contestant"], *sizes)


def read(path: Path) -> list[dict[str, Any]]:
    """The records of a file, or of every .jsonl file in a folder, the oldest first.

    Raises:
        Problem: (corrupt) there is none, or a line is no record.
    """
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    records = []
    for file in files:
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            try:
                record = json.loads(line)
                identity(record)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise Problem(
                    "this line is no record of a measurement",
                    where=f"{file}:{number}",
                    why=repr(error),
                    exit_code=CORRUPT,
                ) from error
            records.append(record)
    if not records:
        raise Problem("no records of measurements are there", where=str(path), exit_code=CORRUPT)
    return sorted(records, key=lambda record: str(record.get("date")))


def save(records: list[dict[str, Any]], folder: Path) -> Path:
    """Appends records to the suite's file, one JSON line each."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{records[0]['suite']}.jsonl"
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)
    return path


def table(records: list[dict[str, Any]], columns: dict[str, str]) -> str:
    """A Markdown table of one case; the last column compares the first contestant to each.

    Args:
        records: of one case, ours first.
        columns: field → heading of what is shown beside the times.
    """
    ours = records[0]["times_as_fast_as"]
    names = [records[0]["contestant"], "median ms", "min", "max", *columns.values()]
    rows = [["", *names[1:], f"{names[0]} is … times as fast"]]
    rows.append(["---", *["---:"] * (len(rows[0]) - 1)])
    for record in records:
        times = [f"{record[name]:,.1f}" for name in ("median", "min", "max")]
        others = [f"{record[name]:,.4g}" if record[name] else "" for name in columns]
        against = ours.get(record["contestant"])
        faster = "" if against is None else f"{against:.2f}"
        rows.append([record["contestant"], *times, *others, faster])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
