"""What this process may use of its machine: cores and memory, as far as a container or a scheduler lets it.

The limits of control groups are read here because Python and PyTorch do not know them, and ``joblib.cpu_count`` sees
only the outermost group, and rounds up.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_OWN_GROUPS = Path("/proc/self/cgroup")


def num_cores() -> int:
    """Cores that this process may use: as many as it makes sense to have workers.

    A container that may use 2.5 cores' time has 2: a third process would make the others wait.
    """
    limit = core_limit()
    return present_cores() if limit is None else max(1, min(present_cores(), int(limit)))


def present_cores() -> int:
    """Cores that this process may run on, whatever share of their time it gets."""
    try:
        return max(1, len(os.sched_getaffinity(0)))
    except AttributeError:  # not on Linux
        return max(1, os.cpu_count() or 1)


def core_limit() -> float | None:
    """Cores' worth of time that the control groups around this process allow; None where they set no limit."""
    limits = []
    for group in _groups("cpu"):
        quota, period = _number(group / "cpu.cfs_quota_us"), _number(group / "cpu.cfs_period_us")
        with suppress(OSError, ValueError):  # of version 2: "200000 100000", or "max 100000"
            quota, period = map(int, (group / "cpu.max").read_text().split())
        if quota > 0 and period > 0:
            limits.append(quota / period)
    return min(limits, default=None)


def memory_bytes() -> float:
    """Memory that this process may fill, in bytes: the machine's, or less where a control group allows less."""
    names = ("memory.max", "memory.limit_in_bytes")
    limits = [_number(group / name) for group in _groups("memory") for name in names]
    return min([present_memory_bytes(), *(float(limit) for limit in limits if limit > 0)])


def present_memory_bytes() -> float:
    """Memory of the machine; infinite where it does not say."""
    try:
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, ValueError, OSError):  # not on Windows
        return float("inf")


def _groups(controller: str) -> Iterator[Path]:
    """The folders of this process's control group and of those around it, in either version of control groups.

    In a container the paths are often the host's, and only the outermost folder is there: it is the container's.
    """
    try:
        lines = _OWN_GROUPS.read_text().splitlines()
    except OSError:  # not on Linux
        return
    for line in lines:
        _, controllers, name = line.split(":", 2)
        if controllers == "":  # version 2, alone or beside version 1
            tops = [_CGROUPS, _CGROUPS / "unified"]
        elif controller in controllers.split(","):
            tops = [_CGROUPS / controllers, _CGROUPS / controller]
        else:
            continue
        own = Path(name.lstrip("/"))
        inside = [Path()] if ".." in own.parts else [own, *own.parents]  # "..": a group that is not shown here
        yield from (top / group for top in tops for group in inside)


def _number(path: Path) -> int:
    """What a file of one number says; -1, as a group without a limit has it, where it says none."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return -1
