"""`jaxmodels doctor`: is this machine ready?"""

import os
import platform
import shutil
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from data_pipelines.cores import cores
from jaxmodels.cli import emit, parse
from jaxmodels.extras import EXTRAS

_PACKAGES = (
    "jax jaxlib flax optax orbax-checkpoint grain tensorflow-datasets safetensors einops numpy"
).split()
_OPTIONAL = ("torch", "transformers")


@dataclass(frozen=True)
class Doctor:
    """Print versions, devices, memory and disk, and any problems with them."""

    json: bool = False
    """Print one JSON object on standard output."""


def main(argv: list[str]) -> int:
    """Runs the command; 0 if there are no problems, else 1."""
    options = parse(Doctor, argv, "doctor")
    found = examine()
    if options.json:
        emit(found)
    else:
        for name in ("python", "system", "devices", "matmul", "cores", "memory", "disk"):
            print(f"{name:<10} {found[name]}")
        print("packages   " + ", ".join(f"{k} {v}" for k, v in found["packages"].items()))
        for problem in found["problems"]:
            print(f"problem    {problem}")
        print("ready" if not found["problems"] else "not ready")
    return 1 if found["problems"] else 0


def examine() -> dict[str, Any]:
    """The report; `problems` is a list of sentences."""
    packages, problems = {}, []
    for name in (*_PACKAGES, *_OPTIONAL):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            if name in _OPTIONAL:
                packages[name] = f"not installed (jaxmodels[{EXTRAS[name]}])"
            else:
                problems.append(f"{name} is not installed: pip install jaxmodels")
    disk = shutil.disk_usage(".")
    if disk.free < 2**30:
        problems.append(f"only {disk.free / 2**30:.1f} GB of disk are free here")
    devices, matmul = _devices(problems)
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "python": sys.version.split()[0],
        "system": f"{platform.system()} {platform.machine()}",
        "devices": devices,
        "matmul": matmul,
        "cores": cores(),
        "memory": f"{pages / 2**30:.1f} GB",
        "disk": f"{disk.free / 2**30:.1f} GB free here",
        "packages": packages,
        "problems": problems,
    }


def _devices(problems: list[str]) -> tuple[str, str]:
    """The devices that JAX sees, and the speed of a matrix product (a check that they work)."""
    try:
        import time

        import jax
        import jax.numpy as jnp

        n, runs = 1024, 8
        x = jnp.ones((n, n), jnp.float32)
        multiply = jax.jit(lambda a: a @ a / n)
        y = multiply(x).block_until_ready()
        start = time.monotonic()
        for _ in range(runs):
            y = multiply(y)
        if float(y[0, 0]) != 1.0:
            problems.append("a product of matrices of ones is wrong on this device")
        rate = 2 * n**3 * runs / (time.monotonic() - start) / 1e9
        kinds = f"{jax.device_count()} × {jax.devices()[0].device_kind} ({jax.default_backend()})"
        return kinds, f"{rate:,.0f} GFLOP/s in float32"
    except Exception as error:
        problems.append(f"JAX does not start: {error}")
        return "none", "unknown"
