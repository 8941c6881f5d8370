#!/usr/bin/env python3
"""Trains in two processes on this machine, which talk over localhost: a cluster in small.

    python examples/two_processes.py charlm:tiny --out runs/two --steps 100

Takes what `jaxmodels train` takes. Starts both again for as long as they end with 75 (stopped,
resumable: --max-hours was up, or the other process was lost) or one of them was killed; three
times in a row at most if no new checkpoint came of it. Any other code ends this, and is its own.
"""

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

STOPPED = 75
GRACE = 60.0  # seconds for the other to end too: it saves, or notices what happened
TRIES = 3


def main(flags: list[str]) -> int:
    """Runs both, again and again if need be; SIGTERM and Ctrl-C let them save and end it."""
    told: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: told.append(number))
    code, fruitless = STOPPED, 0
    while (code == STOPPED or code > 128) and not told and fruitless < TRIES:
        before = checkpoint(flags)
        code = together(flags, told)
        further = code == STOPPED or checkpoint(flags) > before
        fruitless = 0 if further else fruitless + 1
    return code


def checkpoint(flags: list[str]) -> int:
    """The step of the run's newest checkpoint; 0 without any."""
    words = [part for flag in flags for part in flag.split("=", 1)]
    run = Path(words[words.index("--out") + 1]) if "--out" in words[:-1] else Path()
    names = [path.name for path in (run / "checkpoints").glob("*")]
    return max((int(name) for name in names if name.isdecimal()), default=0)


def together(flags: list[str], told: list[int]) -> int:
    """Runs both once; a code that is neither 0 nor 75, else the larger of the two."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{free.getsockname()[1]}"
    command = ["jaxmodels", "train", *flags, "--coordinator", coordinator, "--processes", "2"]
    # Groups of their own: Ctrl-C reaches them through us, once.
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
        if (told or failed) and not terminated:
            terminated = True
            for process in both:
                process.terminate()
        if time.monotonic() > end:  # one that is frozen
            for process in both:
                process.kill()
        time.sleep(0.1)
    # Killed by a signal: as a shell tells it. What a process says itself counts more.
    codes = [code if code >= 0 else 128 - code for code in codes]
    return next((code for code in codes if code not in (0, STOPPED) and code < 128), max(codes))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
