"""What Orbax and tensorstore need of paths, and make of a full disk.

Both take UTF-8 only, and below a folder named like a pattern, `[1]`, Orbax does not find what it
wrote, so that a checkpoint had no arrays. Such a folder gets another name, /proc/self/fd/N. With an
ASCII locale every name beyond ASCII is such a one.
"""

import os
import re
from functools import lru_cache
from pathlib import Path

from jaxmodels.files import FULL

_ODD, _OPEN = re.compile("[\ud800-\udfff*?[]"), Path("/proc/self/fd")


def as_full_disk(error: Exception, path: Path) -> Exception:
    """The OSError for a full disk, where a storage library reports one in its own types."""
    for code in FULL:
        if os.strerror(code) in str(error):
            return OSError(code, os.strerror(code), str(path))
    return error


def orbax_path(path: Path) -> Path:
    """The absolute path under a name that Orbax and tensorstore can open.

    They take UTF-8 only (with an ASCII locale, only ASCII), and Orbax finds its own files by a
    pattern: below a folder `[1]` it silently finds none. Such a folder and its parents are replaced
    by Linux's name of the open folder, /proc/self/fd/N. It stays open.
    """
    path = path.absolute()
    for part in (path, *path.parents):
        if _ODD.search(part.name) and _OPEN.is_dir():
            return _OPEN / str(_held(part, part.stat().st_ino)) / path.relative_to(part)
    return path


@lru_cache(maxsize=64)
def _held(folder: Path, number: int) -> int:
    """A descriptor of a folder; `number` is its inode, so that a new folder gets another."""
    return os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
