"""The machine: compilation cache, devices, versions."""

import os
from pathlib import Path


def use_compilation_cache() -> None:
    """Keeps compiled programs on disk, so that the second start of a run is quick.

    They live in `$JAX_COMPILATION_CACHE_DIR`, or else in the user's cache folder.
    """
    import jax

    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = os.environ.get("JAX_COMPILATION_CACHE_DIR") or str(home / "jaxmodels" / "xla")
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
