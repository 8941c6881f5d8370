"""The process: its memory, where compiled programs are kept, who may write to the terminal."""

import ctypes
import gc
import logging
import os
import platform
import sys
import threading
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

# Of malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_MOST = 2**31 - 1  # an int is all that it takes

LARGE = 250_000
"""Parameters of a model whose train steps take so long, 60 ms or more, that the host's share does
not count."""


def prepare() -> None:
    """What every verb that runs JAX does first.

    Keeps compiled programs on disk, so that the second start of a run is quick; they live in
    `$JAX_COMPILATION_CACHE_DIR`, or else in the user's cache folder. Keeps memory (`keep_memory`).
    """
    import jax

    # Tracing makes hundreds of thousands of objects that stay. Looking for garbage among them after
    # each 700 took a quarter of its time.
    gc.set_threshold(100_000, 20, 50)

    keep_memory()
    silence_storage()
    share_cache()
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = os.environ.get("JAX_COMPILATION_CACHE_DIR") or str(home / "jaxmodels" / "xla")
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def share_cache() -> None:
    """Makes the cache of compiled programs safe for several processes that write to it.

    JAX (0.10 to 0.12) writes an entry in place: another process that reads it meanwhile warns of a
    truncated stream and compiles again, and a full disk leaves half an entry for ever. Here an
    entry appears whole or not at all. Does nothing where JAX keeps its cache in another way.
    """
    from jax._src import lru_cache

    cache: Any = getattr(lru_cache, "LRUCache", None)
    suffix = getattr(lru_cache, "_CACHE_SUFFIX", None)
    if cache is None or suffix is None or cache.put.__module__ == __name__:
        return
    put = cache.put

    def whole(self: Any, key: str, value: bytes) -> None:
        folder = Path(str(self.path))
        if self.eviction_enabled or not folder.is_dir():  # it locks, or is no local folder
            put(self, key, value)
            return
        entry = folder / f"{key}{suffix}"
        if entry.exists():
            return
        begun = folder / f".{os.getpid()}-{threading.get_ident()}.tmp"
        try:
            begun.write_bytes(value)
            begun.replace(entry)
        finally:
            begun.unlink(missing_ok=True)

    cache.put = whole


def keep_memory() -> None:
    """Makes the process keep what it frees for the next step: pieces of up to an eighth.

    On a CPU, XLA takes its temporary memory anew for every step. Pieces of some megabytes the C
    library of Linux gives back to the system each time, which then clears the same memory again,
    page by page: up to a fifth of a train step, and 40% of a forward pass
    (`benchmarks/LOG.md`). Does nothing where that library is not glibc, or where the
    environment says how it is to be done (`MALLOC_…`).
    """
    known = sys.platform == "linux" and platform.libc_ver()[0] == "glibc"
    if not known or any(name.startswith("MALLOC_") for name in os.environ):
        return
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    kept = min(memory // 8, _MOST)  # other data may come to lie between: up to three such pieces
    library = ctypes.CDLL(None)
    library.mallopt(_MMAP_THRESHOLD, kept)  # larger ones are mapped and given back as before
    library.mallopt(_TRIM_THRESHOLD, kept)


def choose_thread(parameters: int) -> None:
    """Who computes a train step on a CPU: one of XLA's threads, or, for LARGE models, the caller's.

    A step's temporary memory is one piece of up to gigabytes, and glibc keeps those of the first
    thread alone, as the heaps of others end at 64 MB. But the host's own work is then not done
    meanwhile, which only a small model feels. To be called before JAX looks for its devices.

    Args:
        parameters: how many the model has.
    """
    import jax

    jax.config.update("jax_cpu_enable_async_dispatch", parameters < LARGE)


def computes_inline(parameters: int) -> bool:
    """Whether a call of a train step, as `choose_thread` has it, ends when the step is computed."""
    import jax

    return jax.default_backend() == "cpu" and parameters >= LARGE


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
