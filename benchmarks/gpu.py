"""What one GPU reaches: `jaxmodels bench gpu`, or `benchmarks/gpu.sh`, which tests cuDNN too.

Train steps in bfloat16 with the sizes and goals of the project, ours against the compiled PyTorch
twin, whose attention is PyTorch's flash attention; each contestant has a process of its own. The
records are those of suite `step`. `--tiny` tries the same on any machine.
"""

import sys
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax

from benchmarks import step
from benchmarks.harness import RESULTS, Absent
from jaxmodels.cli import fail, parse, say
from jaxmodels.errors import within
from jaxmodels.runtime.planning.chips import GIB


class Case(NamedTuple):
    """A train step and what it is to reach."""

    preset: str
    batch: int
    """Sequences at most; half of them, and so on, where the memory is smaller."""
    gib: float
    """Memory of a sequence, beside `fixed`: by `plan --topology h100:1`."""
    fixed: float
    """Memory of parameters, gradients and optimiser in GiB."""
    goals: dict[str, float]
    """mfu, tokens_per_second, times (as fast as compiled PyTorch) → least value."""
    words: tuple[str, ...] = ()
    """Further options of `bench step`."""
    peer: bool = False
    """Whether PyTorch takes part."""
    rounds: int = 20
    """Timed steps at most."""
    tiny: str = ""
    """Preset that stands for it in a trial."""


CASES = (
    Case(
        *("wikigpt:gpt2-124m", 32, 0.44, 2.0, {"mfu": 0.45, "times": 1.0}),
        peer=True,
        tiny="wikigpt:tiny",
    ),
    Case("bwetaf:53m", 32, 0.5, 1.0, {"tokens_per_second": 700_000}, tiny="bwetaf:tiny"),
    Case(
        *("wigip:1.7b", 8, 12.3, 20.0, {"mfu": 0.45}),
        words=("--objective", "dense"),
        rounds=4,  # of five seconds on an H100
        tiny="wigip:tiny",
    ),
)
HEAD = ("step", "batch", "ms", "tokens/s", "MFU", "× PyTorch", "peak GiB", "goals")
RUNS: tuple[Sequence[str], ...] = ((),)
QUICK: tuple[Sequence[str], ...] = (("--tiny", "--rounds", "2"),)


@dataclass(frozen=True)
class Gpu:
    """Time the train steps whose speed on a GPU is a goal, and say which goals are met."""

    rounds: int = 20
    """Timed steps of each contestant, after two that are not."""
    minutes: float = 4.5
    """Begin no further step after this many minutes."""
    tiny: bool = False
    """Tiny models, on any device: to try it."""
    out: Path = RESULTS
    """Folder whose step.jsonl the results are added to."""

    def __post_init__(self) -> None:
        within("--rounds", self.rounds, 1)
        within("--minutes", self.minutes, 0)


def main(argv: list[str]) -> list[dict[str, Any]]:
    """Runs the suite, adds its records to the results and prints one table.

    Raises:
        Absent: there is no GPU that JAX can use.
        Problem: of the steps that failed, the first one's, after all others have run.
    """
    options = parse(Gpu, argv, "bench gpu")
    if jax.default_backend() != "gpu" and not options.tiny:
        raise Absent("JAX finds no GPU", "on a machine with one: pip install 'jaxmodels[cuda]'")
    until = time.monotonic() + 60 * options.minutes
    records: list[dict[str, Any]] = []
    rows: list[tuple[str, ...]] = []
    problems: list[Exception] = []
    for case in CASES:
        name = case.tiny if options.tiny else case.preset
        if time.monotonic() > until:
            say(f"{name} is left out: {options.minutes:g} minutes are over")
            rows.append((name, "not begun"))
            continue
        try:
            with redirect_stdout(sys.stderr):  # its own tables
                found = step.main(words(case, options, memory()))
        except Absent as absent:
            rows.append((name, absent.what))
            continue
        except Exception as error:
            problems.append(error)
            fail(error)
            rows.append((name, f"failed: {str(error).splitlines()[0][:80]}"))
            continue
        records += found
        rows.append(row(case, found, judged=not options.tiny))
    print(f"\n### On {jax.devices()[0].device_kind}\n{markdown(rows)}", flush=True)
    if problems:
        raise problems[0]
    return records


def memory() -> float:
    """GiB of the device's memory that JAX may take; infinite if it does not say."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return float(stats.get("bytes_limit", float("inf"))) / GIB


def words(case: Case, options: Gpu, gib: float) -> list[str]:
    """The options of `bench step` for a case on a device with so many GiB.

    Raises:
        Absent: not even one sequence fits.
    """
    batch = case.batch
    share = 0.5 if case.peer else 1.0  # both sides hold their model at once
    while not options.tiny and case.fixed + batch * case.gib > share * gib:
        batch //= 2
        if not batch:
            raise Absent(f"needs {(case.fixed + case.gib) / share:.0f} GiB, JAX has {gib:.0f}")
    preset = case.tiny if options.tiny else case.preset
    chosen = ["--preset", preset, "--batch", str(batch), "--dtype", "bfloat16", *case.words]
    # Compiling the twin takes a minute, and a trial measures nothing.
    peer = "" if not case.peer else "eager" if options.tiny else "compile"
    peers = [f"--no-{form}" for form in ("eager", "compile") if form != peer]
    rounds = min(options.rounds, case.rounds)
    timed = ["--isolated", "--rounds", str(rounds), "--out", str(options.out)]
    return [*chosen, *peers, *timed]


def row(case: Case, found: list[dict[str, Any]], judged: bool = True) -> tuple[str, ...]:
    """What a case reached, as a row of the table; `judged` by its goals."""
    ours = found[0]
    times = next(iter(ours["times_as_fast_as"].values()), None)
    reached = {
        "mfu": ours["mfu"],
        "tokens_per_second": ours["tokens_per_second"],
        "times": times,
    }
    return (
        ours["case"],
        str(ours["settings"]["batch"]),
        f"{ours['median']:,.1f}",
        f"{ours['tokens_per_second']:,.0f}",
        "" if ours["mfu"] is None else f"{ours['mfu']:.1%}",
        "" if times is None else f"{times:.2f}",
        f"{(ours['peak_bytes'] or 0) / GIB:.1f}",
        "; ".join(_goal(name, least, reached[name]) for name, least in case.goals.items())
        if judged
        else "none: a trial",
    )


def _goal(name: str, least: float, reached: float | None) -> str:
    texts = {
        "mfu": f"MFU {least:.0%}",
        "tokens_per_second": f"{least:,.0f} tokens/s",
        "times": f"{least:.1f} × PyTorch",
    }
    if reached is None:
        return f"{texts[name]}: unknown"
    return f"{texts[name]}: {'met' if reached >= least else 'missed'}"


def markdown(rows: Sequence[tuple[str, ...]]) -> str:
    """The rows as a Markdown table; a row of two is a step that was not measured, and why."""
    full = [one if len(one) > 2 else (one[0], *[""] * (len(HEAD) - 2), one[1]) for one in rows]
    lines = [HEAD, ["---", *["---:"] * (len(HEAD) - 2), "---"], *full]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
