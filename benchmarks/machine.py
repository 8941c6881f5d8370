"""The circumstances of a measurement: machine, versions, commit; and peak memory."""

import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from data_pipelines.cores import cores

_PACKAGES = ("jax", "jaxlib", "flax", "torch", "transformers", "numpy")
_HERE = Path(__file__).parent

# In a checkout beside this file; an installed package writes to the current directory.
RESULTS = _HERE / "results" if (_HERE.parent / ".git").exists() else Path("bench-results")


def peak_memory() -> int:
    """Peak memory of this process in bytes: of the accelerator, if it used one.

    0 where Linux's /proc is missing.
    """
    if on_device := _device_peak():
        return on_device
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return 0


def _device_peak() -> int:
    """Peak memory of JAX and PyTorch together on the first accelerator; 0 without one."""
    held = 0
    if (jax := sys.modules.get("jax")) and jax.default_backend() != "cpu":
        held += (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)
    if (torch := sys.modules.get("torch")) and torch.cuda.is_initialized():
        held += torch.cuda.max_memory_allocated()
    return held


def machine() -> dict[str, Any]:
    """The machine of a run."""
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
    """The processor's name, with family and model: a cloud's "AMD EPYC" may be any of five."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    info = {name.strip(): value.strip() for name, _, value in (x.partition(":") for x in lines)}
    if "model name" not in info:
        return platform.processor() or platform.machine()
    if "cpu family" not in info:  # only x86 has one
        return info["model name"]
    return f"{info['model name']} (family {info['cpu family']}, model {info['model']})"


def versions() -> dict[str, str]:
    """Versions of Python and of the compared packages; missing ones are left out."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """The commit of this checkout, with "-dirty" if files differ from it; "" outside git.

    Results are ignored: a run adds to them.
    """
    git = ["git", "-C", str(_HERE)]
    changes = ["status", "--porcelain", "--untracked-files=no", "--", ":/", ":!/benchmarks/results"]
    try:
        head, changed = (
            subprocess.run([*git, *words], capture_output=True, text=True, check=True).stdout
            for words in (["rev-parse", "HEAD"], changes)
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return head.strip() + ("-dirty" if changed.strip() else "")
