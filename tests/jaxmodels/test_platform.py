"""A training process keeps freed memory unless the environment sets malloc's options."""

import ctypes
import errno
import os
import platform
import sys
from pathlib import Path

import pytest

from jaxmodels.runtime.platform import LARGE, keep_memory, release_memory, share_cache
from tests.children import printed

# Does something ten times, and tells the pages of memory that the system cleared meanwhile. The
# heap finds its size in some calls before.
PAGES = """
import ctypes, resource, sys
from jaxmodels.runtime.platform import choose_thread, keep_memory
keep_memory()
{work}
for _ in range(5):
    once()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    once()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
# Takes and frees 48 MB.
PIECE = """
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
def once():
    piece = libc.malloc(48 << 20)
    libc.memset(piece, 1, 48 << 20)
    libc.free(piece)
"""
# Frees all but the last of 800 blocks, between which malloc then has holes, and tells by how many
# bytes the process shrinks.
HOLES = """
import ctypes
from pathlib import Path
from jaxmodels.runtime.platform import release_memory
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
pieces = [libc.malloc(100_000) for _ in range(800)]
for piece in pieces:
    libc.memset(piece, 1, 100_000)
for piece in pieces[:-1]:
    libc.free(piece)
def held():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))
before = held()
release_memory()
print(before - held())
"""
# Runs a program whose temporary memory is 144 MB, on images that XLA copies in the background.
STEP = """
import jax, jax.numpy as jnp, numpy as np
from jaxmodels.runtime.platform import computes_inline
from jaxmodels.runtime.sharding import make_mesh, put_batch
choose_thread(int(sys.argv[1]))
mesh, images = make_mesh(), np.ones((6000, 200), np.uint8)
wait = computes_inline(int(sys.argv[1]))
@jax.jit
def step(images):
    x = images.max(axis=1).astype(jnp.float32)
    return jax.lax.cumsum(jnp.outer(x, x), 1)[-1].sum()
def once():
    step(put_batch({"images": images}, mesh, wait=wait)["images"]).block_until_ready()
"""


def _pages(work: str, *words: str, **env: str) -> int:
    own = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    return int(printed(PAGES.format(work=work), *words, env=own | env))


def test_what_is_freed_is_kept_unless_told_otherwise():
    assert _pages(PIECE) < 1000
    given_back = {"MALLOC_TRIM_THRESHOLD_": "131072", "MALLOC_MMAP_THRESHOLD_": "131072"}
    assert _pages(PIECE, **given_back) > 10_000


@pytest.mark.slow
def test_what_a_large_models_step_takes_is_kept_for_the_next():
    inline, apart = (_pages(STEP, str(size), XLA_FLAGS="") for size in (LARGE, LARGE - 1))
    assert inline < apart / 5


@pytest.mark.parametrize(("system", "library"), [("darwin", ""), ("linux", "musl")])
def test_another_c_library_is_left_alone(system, library, monkeypatch):
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(platform, "libc_ver", lambda: (library, ""))
    monkeypatch.setattr(ctypes, "CDLL", lambda name: pytest.fail("it was called"))
    keep_memory()
    release_memory()


@pytest.mark.skipif(sys.platform != "linux" or platform.libc_ver()[0] != "glibc", reason="glibc")
def test_freed_memory_is_given_back():
    assert int(printed(HOLES)) > 60_000_000


def test_an_entry_of_the_cache_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    """What another process reads meanwhile was never written under the entry's own name."""
    from jax._src.lru_cache import LRUCache

    share_cache()
    share_cache()  # a second time changes nothing
    cache, written = LRUCache(str(tmp_path), max_size=-1), []
    write = Path.write_bytes

    def noted(path, data):
        written.append(path.name)
        if data == b"full":
            write(path, data[:2])
            raise OSError(errno.ENOSPC, "full")
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", noted)
    cache.put("one", b"program")
    cache.put("one", b"another")  # the first stays
    assert cache.get("one") == b"program"
    with pytest.raises(OSError, match="full"):
        cache.put("two", b"full")
    assert cache.get("two") is None
    assert [path.name for path in tmp_path.iterdir()] == ["one-cache"]
    assert not {"one-cache", "two-cache"} & set(written)
