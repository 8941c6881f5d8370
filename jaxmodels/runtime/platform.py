"""Process-wide settings: memory allocator, compilation cache, threads, log noise of libraries.

On a CPU, memory that a step frees stays in the process (`keep_memory`): glibc would return it, and
the kernel clear it again, in every step. For models of 250,000 parameters or more, `train` computes
the step in the calling thread (`choose_thread`): in XLA's own threads glibc cannot keep the step's
temporaries of hundreds of megabytes. Smaller models overlap the host's work instead. Measurements
are in `benchmarks/LOG.md`.
"""

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
_INT_MAX = 2**31 - 1

LARGE = 250_000
"""Parameters from which on a train step takes 60 ms or more, so the host's share is negligible."""


def prepare() -> None:
    """Called first by every command that runs JAX.

    Keeps compiled programs on disk, in `$JAX_COMPILATION_CACHE_DIR` or the user's cache folder, so
    that the second start of a run is quick; and memory in the process (`keep_memory`).
    """
    import jax

    # Tracing makes hundreds of thousands of long-lived objects; collecting garbage after every 700
    # took a quarter of its time.
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
    """Makes writes to the compilation cache atomic, so that several processes can share it.

    JAX (0.10 to 0.12) writes an entry in place: a concurrent reader warns of a truncated stream and
    compiles again, and a full disk leaves half an entry for ever. Does nothing if JAX's cache is
    implemented differently.
    """
    from jax._src import lru_cache

    cache: Any = getattr(lru_cache, "LRUCache", None)
    suffix = getattr(lru_cache, "_CACHE_SUFFIX", None)
    if cache is None or suffix is None or cache.put.__module__ == __name__:
        return
    put = cache.put

    def put_atomically(self: Any, key: str, value: bytes) -> None:
        folder = Path(str(self.path))
        if self.eviction_enabled or not folder.is_dir():  # it locks, or is not a local folder
            put(self, key, value)
            return
        entry = folder / f"{key}{suffix}"
        if entry.exists():
            return
        temporary = folder / f".{os.getpid()}-{threading.get_ident()}.tmp"
        try:
            temporary.write_bytes(value)
            temporary.replace(entry)
        finally:
            temporary.unlink(missing_ok=True)

    cache.put = put_atomically


def keep_memory() -> None:
    """Keeps freed memory in the process for the next step: blocks of up to an eighth of the RAM.

    On a CPU, XLA allocates its temporaries anew for every step. glibc returns blocks of some
    megabytes to the kernel each time, which then clears the same memory again, page by page: up to
    a fifth of a train step, and 40% of a forward pass (`benchmarks/LOG.md`). Does nothing without
    glibc, or if the environment sets malloc's options (`MALLOC_…`).
    """
    if not _glibc() or any(name.startswith("MALLOC_") for name in os.environ):
        return
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    kept = min(memory // 8, _INT_MAX)  # fragmentation may leave up to three such blocks
    library = ctypes.CDLL(None)
    library.mallopt(_MMAP_THRESHOLD, kept)  # larger blocks are mapped and returned as before
    library.mallopt(_TRIM_THRESHOLD, kept)


def release_memory() -> None:
    """Gives freed memory back to the kernel, of which reading a model leaves as much as half its
    size. Does nothing without glibc."""
    if _glibc():
        ctypes.CDLL(None).malloc_trim(0)


def _glibc() -> bool:
    return sys.platform == "linux" and platform.libc_ver()[0] == "glibc"


def choose_thread(parameters: int) -> None:
    """Which thread computes a train step on a CPU: one of XLA's, or, for LARGE models, the caller.

    A step's temporaries are one block of up to gigabytes, and glibc keeps only those of the main
    thread, as the heaps of others end at 64 MB. The host's work is then no longer overlapped, which
    matters for small models only. To be called before JAX initialises its devices.

    Args:
        parameters: number of parameters of the model.
    """
    import jax

    jax.config.update("jax_cpu_enable_async_dispatch", parameters < LARGE)


def computes_inline(parameters: int) -> bool:
    """Whether, after `choose_thread`, a call of a train step returns when the step is computed."""
    import jax

    return jax.default_backend() == "cpu" and parameters >= LARGE


def environment() -> dict[str, str]:
    """Versions and devices of this process."""
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
    """Silences Orbax and its libraries, which log tracebacks of errors that they also raise.

    When a write fails, tensorstore also calls back into an event loop that Orbax has closed by
    then, and passes that error to `sys.unraisablehook`.
    """
    for name in ("absl", "asyncio", "concurrent.futures"):
        logging.getLogger(name).setLevel(logging.CRITICAL)

    def hook(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            sys.__unraisablehook__(unraisable)

    sys.unraisablehook = hook
