"""Injects four kinds of faults into a run of every architecture; 45 minutes on two cores."""

import argparse
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from datetime import date
from pathlib import Path

from tests.chaos import runs, trials


def run_trials(
    case: runs.Case, folder: Path, kills: int, disks: int, rng: random.Random
) -> Iterator[tuple[str, list[str], int]]:
    """The trials of a case: kind, failures, number of trials."""
    reference = folder / "reference"
    case.finish(reference)
    yield "kills", *trials.kills(case, reference, folder / "kills", kills, rng)
    yield "signals", *trials.signals(case, reference, folder / "signals")
    yield "full disks", *trials.full_disks(case, reference, folder, disks)
    yield "damaged files", *trials.damage(case, reference, folder, rng)


def main() -> int:
    """Prints failures, and a summary for benchmarks/LOG.md; 0 if there are none."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--kills", type=int, default=100, help="of all runs together")
    parser.add_argument("--disks", type=int, default=8, help="full disks for each run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="runs whose name contains this")
    options = parser.parse_args()
    rng, counts, wrong = random.Random(options.seed), Counter[str](), 0
    began = time.monotonic()
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None  # thousands of syncs wait for a disk
    with tempfile.TemporaryDirectory(prefix="chaos", dir=memory) as name:
        cases = [case for case in runs.cases(Path(name)) if options.only in case.name]
        kills = -(-options.kills // len(cases))
        for number, case in enumerate(cases):
            folder = Path(name, f"case{number}")
            folder.mkdir()
            for what, lines, count in run_trials(case, folder, kills, options.disks, rng):
                counts[what] += count
                wrong += len(lines)
                at = f"{time.monotonic() - began:5.0f} s  {case.name}: {count} {what}"
                print(at, *lines, sep="\n         ", flush=True)
    summary = ", ".join(f"{count} {what}" for what, count in counts.items())
    commit = ["git", "rev-parse", "--short", "HEAD"]
    version = subprocess.run(commit, capture_output=True, text=True, check=False).stdout.strip()
    seconds = time.monotonic() - began
    print(f"{date.today()}, commit {version}, {seconds:.0f} s: {summary}; {wrong} went wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
