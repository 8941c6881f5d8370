"""The process: where compiled programs are kept, and who may write to the terminal."""

import logging
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


def prepare() -> None:
    """What every verb that runs JAX does first.

    Keeps compiled programs on disk, so that the second start of a run is quick; they live in
    `$JAX_COMPILATION_CACHE_DIR`, or else in the user's cache folder.
    """
    import jax

    silence_storage()
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = os.environ.get("JAX_COMPILATION_CACHE_DIR") or str(home / "jaxmodels" / "xla")
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def environment() -> dict[str, str]:
    """Versions and devices that a run is computed with."""
    import jax

    found = {"python": platform.python_version(), "system": platform.platform()}
    for name in ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "libtpu"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    kinds = [device.device_kind for device in jax.devices()]
    devices = ", ".join(f"{kinds.count(kind)} × {kind}" for kind in dict.fromkeys(kinds))
    return found | {"devices": devices, "processes": str(jax.process_count())}


def silence_storage() -> None:
    """Orbax, and what is below it, log tracebacks of errors that they raise too.

    The error is shown as ours. When a write fails, tensorstore also calls back into an event
    loop that Orbax has closed by then, and hands that error to `sys.unraisablehook`.
    """
    for name in ("absl", "asyncio", "concurrent.futures"):
        logging.getLogger(name).setLevel(logging.CRITICAL)

    def hook(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            sys.__unraisablehook__(unraisable)

    sys.unraisablehook = hook
