import os
import sys
from pathlib import Path

import pytest
from hypothesis import settings

GOLDEN = Path(__file__).parent / "golden"

# Tests compile the same tiny programs again and again; the cache is shared by all workers.
_CACHE = Path(__file__).parents[1] / ".cache" / "xla"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# A test's program runs a few times: LLVM optimises it less, which saves a fifth of the time. XLA's
# own passes stay. Level 0 would save a third, but adds numbers one by one, less exactly.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=1")


@pytest.fixture(scope="session")
def golden() -> Path:
    """The seeds' golden inputs, outputs and checkpoints."""
    return GOLDEN


@pytest.fixture(scope="module", autouse=True)
def _forgetful():
    """Compiled programs of all modules would take gigabytes; the cache on disk has them."""
    yield
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()


# The first example of a test pays for imports and compilation; a busy machine is no defect.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")
