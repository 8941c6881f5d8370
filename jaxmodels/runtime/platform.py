"""The process: where compiled programs are kept, and who may write to the terminal."""

import os
from pathlib import Path


def prepare() -> None:
    """What every verb that runs JAX does first.

    Keeps compiled programs on disk, so that the second start of a run is quick; they live in
    `$JAX_COMPILATION_CACHE_DIR`, or else in the user's cache folder. Silences Orbax, which
    logs tracebacks of errors that it also raises, and that are shown as ours.
    """
    import logging

    import jax

    logging.getLogger("absl").setLevel(logging.CRITICAL)

    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = os.environ.get("JAX_COMPILATION_CACHE_DIR") or str(home / "jaxmodels" / "xla")
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
