"""What this process may use of its machine."""

from __future__ import annotations

import os


def num_cores() -> int:
    """Cores that this process may use: as many as it makes sense to have workers."""
    try:
        return max(1, len(os.sched_getaffinity(0)))
    except AttributeError:  # not on Linux
        return max(1, os.cpu_count() or 1)
