"""The process keeps what it frees, unless the user has said otherwise."""

import ctypes
import os
import platform
import subprocess
import sys

import pytest

from jaxmodels.runtime.platform import keep_memory

# Takes and frees 48 MB ten times, as XLA does at each step, and tells the pages cleared meanwhile.
PAGES = """
import ctypes, resource
from jaxmodels.runtime.platform import keep_memory
keep_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
def once():
    piece = libc.malloc(48 << 20)
    libc.memset(piece, 1, 48 << 20)
    libc.free(piece)
once()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    once()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def _pages(**env: str) -> int:
    own = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", PAGES], env=own | env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_what_is_freed_is_kept_unless_told_otherwise():
    assert _pages() < 1000
    assert _pages(MALLOC_TRIM_THRESHOLD_="131072", MALLOC_MMAP_THRESHOLD_="131072") > 10_000


@pytest.mark.parametrize(("system", "library"), [("darwin", ""), ("linux", "musl")])
def test_another_c_library_is_left_alone(system, library, monkeypatch):
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(platform, "libc_ver", lambda: (library, ""))
    monkeypatch.setattr(ctypes, "CDLL", lambda name: pytest.fail("it was called"))
    keep_memory()
