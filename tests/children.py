"""Tests in processes of their own, since for example the number of devices is fixed at start."""

import os
import subprocess
import sys
from pathlib import Path


def simulated(devices: int, **changes: str) -> dict[str, str]:
    """The environment of a process with so many devices, which compiles as these tests do."""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    return {**os.environ, "XLA_FLAGS": flags, **changes}


def printed(
    code: str, *words: str, env: dict[str, str] | None = None, timeout: float | None = None
) -> str:
    """The last line that a Python program prints, which must end well, within so many seconds."""
    done = subprocess.run(
        [sys.executable, "-c", "import gc; gc.set_threshold(100_000, 20, 50)\n" + code, *words],
        env=env,
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return (done.stdout.splitlines() or [""])[-1]
