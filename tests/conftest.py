import gc
import os
import shutil
import sys
import threading
from collections import Counter
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
# A test's program runs a few times and mostly compiles: without LLVM's optimisations and XLA's
# newer code generator it compiles in a quarter of the time. XLA's own passes stay. Sums are then
# taken one number after another, less exactly: what must agree closely is compared in float64.
os.environ.setdefault(
    "XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
)
# Checkpoints are synced to the disk, which takes longer than all else that a small one needs.
_MEMORY = Path("/dev/shm")
if os.access(_MEMORY, os.W_OK) and shutil.disk_usage(_MEMORY).free > 4e9:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(_MEMORY))


# Bytes of a worker's memory from which compiled programs are forgotten.
_LARGE = 2.5e9
_PROGRAMS = 500  # of one MLIR context


def pytest_configure(config):
    """Both workers write to one cache, at the same time."""
    from jaxmodels.runtime.platform import share_cache

    share_cache()
    _share_contexts()


def _share_contexts():
    """Programs are lowered in one MLIR context, of which JAX makes a new one for each.

    It takes a quarter of the time of a program of one operation, and a megabyte that JAX keeps. A
    context grows by the constants of its programs, so that a new one is made from time to time.
    """
    from jax._src.interpreters import mlir  # private: without this name, tests are only slower

    if not hasattr(mlir, "make_ir_context"):
        return
    made, of_thread = mlir.make_ir_context, threading.local()

    def context():
        if not getattr(of_thread, "left", 0):
            of_thread.context, of_thread.left = made(), _PROGRAMS
        of_thread.left -= 1
        return of_thread.context

    mlir.make_ir_context = context


def pytest_collection_modifyitems(items):
    """Modules with the most slow tests begin, so that no worker ends with a long one alone."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


def pytest_collection_finish():
    """Tracing makes many small objects, and looking for garbage among them takes a third of it."""
    gc.freeze()
    gc.set_threshold(100_000, 20, 50)


@pytest.fixture(scope="session")
def golden() -> Path:
    """The seeds' golden inputs, outputs and checkpoints."""
    return GOLDEN


@pytest.fixture(scope="module", autouse=True)
def _forgetful():
    """Compiled programs of all modules would take gigabytes; the cache on disk has them.

    To forget them, and to look for garbage, after every module takes a tenth of the quick tests'
    time: it waits until they have grown.
    """
    yield
    from bridge.conversion.progress import memory

    if "jax" in sys.modules and memory() > _LARGE:
        sys.modules["jax"].clear_caches()
        gc.collect()
        gc.freeze()


@pytest.fixture(scope="module")
def examples():
    """The architectures of `examples/` are registered."""
    from tests import contract

    contract.join()
    yield
    contract.leave()


# The first example of a test pays for imports and compilation; a busy machine is no defect.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")
