"""The processor cores available."""

import os


def cores() -> int:
    """Cores that this process may use, by its affinity where the system has that."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
