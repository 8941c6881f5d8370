"""The process keeps what it frees, unless the user has said otherwise."""

import os
import subprocess
import sys

import pytest

# Takes and frees 32 MB ten times, as XLA does at each step, and tells the pages cleared meanwhile.
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
    done = subprocess.run(
        [sys.executable, "-c", PAGES], env=os.environ | env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_what_is_freed_is_kept_unless_told_otherwise():
    assert _pages() < 1000
    assert _pages(MALLOC_TRIM_THRESHOLD_="131072", MALLOC_MMAP_THRESHOLD_="131072") > 10_000
