#!/usr/bin/env python3
"""Trains in two processes on this machine, which talk over localhost: a cluster in small.

    python examples/two_processes.py charlm:tiny --out runs/two --steps 100

Takes what `jaxmodels train` takes. Starts both again for as long as they end with 75 (stopped,
resumable: --max-hours was up, say); any other code ends this, and is its own.
"""

import signal
import socket
import subprocess
import sys
import time

STOPPED = 75


def main(flags: list[str]) -> int:
    """Runs both, again and again if need be; SIGTERM and Ctrl-C let them save and end it."""
    told: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: told.append(number))
    code = STOPPED
    while code == STOPPED and not told:
        code = together(flags, told)
    return code


def together(flags: list[str], told: list[int]) -> int:
    """Runs both once; the first code that is neither 0 nor 75, else the larger of the two."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{free.getsockname()[1]}"
    command = ["jaxmodels", "train", *flags, "--coordinator", coordinator, "--processes", "2"]
    # Groups of their own: Ctrl-C reaches them through us, once.
    both = [
        subprocess.Popen([*command, "--process", str(i)], start_new_session=True) for i in (0, 1)
    ]
    ending = False
    while None in (codes := [process.poll() for process in both]):
        failed = any(code not in (None, 0, STOPPED) for code in codes)
        if (told or failed) and not ending:  # alone, the other would wait for its peer
            ending = True
            for process in both:
                process.terminate()
        time.sleep(0.1)
    bad = [code for code in codes if code not in (0, STOPPED)]
    code = bad[0] if bad else max(codes)
    return code if code >= 0 else 128 - code  # killed by a signal: as a shell tells it


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
