"""How many processor cores there are for us."""

import os


def cores() -> int:
    """Cores that this process may use: those of its affinity, where the system has that."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
