"""Fair timing of several contestants, and records of it that can be compared later.

A contestant is built once and then called in turn with the others (A B C A B C …), so that all
meet the same state of the machine; what is compared is the ratio within each round.
"""

import json
import multiprocessing
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from jaxmodels.errors import INTERNAL, Problem

RESULTS = Path(__file__).with_name("results")
_PACKAGES = ("jax", "jaxlib", "flax", "torch", "transformers", "numpy")

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


def peak_memory() -> int:
    """Bytes of memory that this process held at its peak; 0 where Linux's /proc is missing."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return 0


def cores() -> int:
    """Cores that this process may use; every contestant gets as many threads."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def machine() -> dict[str, Any]:
    """What the run was measured on."""
    import jax

    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "cpu": _cpu(),
        "cores": cores(),
        "memory_bytes": pages,
        "platform": platform.platform(),
        "devices": [f"{device.platform}: {device.device_kind}" for device in jax.devices()],
        "load_before": round(os.getloadavg()[0], 2),
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Versions of Python and of what is compared; a package that is missing is left out."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """The commit of this checkout, with "-dirty" when files differ from it; "" outside git.

    Results do not count: a run adds to them.
    """
    git = ["git", "-C", str(Path(__file__).parent)]
    changes = ["status", "--porcelain", "--untracked-files=no", "--", ":/", ":!/benchmarks/results"]
    try:
        head, changed = (
            subprocess.run([*git, *words], capture_output=True, text=True, check=True).stdout
            for words in (["rev-parse", "HEAD"], changes)
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return head.strip() + ("-dirty" if changed.strip() else "")


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
        shared = asdict(self)
        return [
            {
                "suite": shared["suite"],
                "case": case,
                "contestant": timing.name,
                "unit": "ms",
                "median": 1e3 * median(timing.seconds),
                "min": 1e3 * min(timing.seconds),
                "max": 1e3 * max(timing.seconds),
                "first": 1e3 * timing.first,
                "rounds": len(timing.seconds),
                "times_as_fast_as": {
                    peer.name: ratio(timing, peer) for peer in timings if peer is not timing
                },
                "peak_bytes": timing.peak_bytes,
                **extra(timing),
                **{name: value for name, value in shared.items() if name != "suite"},
            }
            for timing in timings
        ]


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
