#!/usr/bin/env python3
"""Trains in two processes on this machine, which talk over localhost: a small cluster.

    python examples/two_processes.py charlm:tiny --out runs/two --steps 100

Takes the options of `jaxmodels train`. Restarts both while they exit with 75 (stopped, resumable:
--max-hours was reached, or the other process was lost) or one of them was killed; at most three
times in a row without a new checkpoint. Exits with any other code of theirs.
"""

import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

STOPPED = 75
GRACE = 60.0  # seconds for the other process to save, or to notice the loss, and exit
TRIES = 3


def main(flags: list[str]) -> int:
    """Runs both, repeatedly if needed; SIGTERM and Ctrl-C let them save and stop."""
    signals: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: signals.append(number))
    code, fruitless = STOPPED, 0
    while (code == STOPPED or code > 128) and not signals and fruitless < TRIES:
        before = checkpoint(flags)
        code = run_both(flags, signals)
        advanced = code == STOPPED or checkpoint(flags) > before
        fruitless = 0 if advanced else fruitless + 1
    return code


def program() -> str:
    """The command jaxmodels: on PATH, or beside the Python that runs this."""
    found = shutil.which("jaxmodels") or shutil.which("jaxmodels", path=Path(sys.executable).parent)
    return found or sys.exit("jaxmodels is not installed: see docs/install.md")


def checkpoint(flags: list[str]) -> int:
    """The step of the run's newest checkpoint; 0 without any."""
    words = [part for flag in flags for part in flag.split("=", 1)]
    run = Path(words[words.index("--out") + 1]) if "--out" in words[:-1] else Path()
    names = [path.name for path in (run / "checkpoints").glob("*")]
    return max((int(name) for name in names if name.isdecimal()), default=0)


def run_both(flags: list[str], signals: list[int]) -> int:
    """Runs both once; returns a code that is neither 0 nor 75, else the larger of the two."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{free.getsockname()[1]}"
    command = [program(), "train", *flags, "--coordinator", coordinator, "--processes", "2"]
    # In their own process groups, so that Ctrl-C reaches them through us, once.
    both = [
        subprocess.Popen([*command, "--process", str(i)], start_new_session=True) for i in (0, 1)
    ]
    terminated = False
    end = float("inf")
    while None in (codes := [process.poll() for process in both]):
        ended = [code for code in codes if code is not None]
        if ended:
            end = min(end, time.monotonic() + GRACE)
        failed = any(0 < code <= 128 and code != STOPPED for code in ended)
        if (signals or failed) and not terminated:
            terminated = True
            for process in both:
                process.terminate()
        if time.monotonic() > end:  # one of them is frozen
            for process in both:
                process.kill()
        time.sleep(0.1)
    # A kill by a signal is reported as by a shell; an exit code of a process takes precedence.
    codes = [code if code >= 0 else 128 - code for code in codes]
    return next((code for code in codes if code not in (0, STOPPED) and code < 128), max(codes))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
