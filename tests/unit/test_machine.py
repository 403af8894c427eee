from __future__ import annotations

import os
from pathlib import Path

import pytest

from timegrain import machine
from timegrain.machine import core_limit, memory_bytes, num_cores, present_memory_bytes


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Control groups made up in a folder, on a machine of 8 cores."""
    monkeypatch.setattr(machine, "_CGROUPS", tmp_path)
    monkeypatch.setattr(machine, "_OWN_GROUPS", tmp_path / "own")
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)

    def make(own: str, **files: str) -> None:
        (tmp_path / "own").write_text(own)
        for name, text in files.items():
            path = tmp_path / name.replace("__", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.with_name(path.name.replace("_of_", ".")).write_text(text + "\n")

    return make


@pytest.mark.parametrize(
    ("quota", "cores"), [("max 100000", 8), ("250000 100000", 2), ("50000 100000", 1), ("1600000 100000", 8)]
)
def test_a_containers_share_counts_in_whole_cores(groups, quota: str, cores: int):
    groups("0::/\n", cpu_of_max=quota)
    assert num_cores() == cores


def test_the_tightest_group_around_the_process_counts(groups):
    groups("0::/user/one/job\n", user__one__job__cpu_of_max="max 100000", user__one__cpu_of_max="300000 100000")
    groups("0::/user/one/job\n", user__cpu_of_max="500000 100000", user__other__cpu_of_max="100000 100000")
    assert (core_limit(), num_cores()) == (3, 3)


def test_the_first_version_of_control_groups(groups):
    groups(
        "12:cpu,cpuacct:/docker/abc\n5:memory:/docker/abc\n1:name=systemd:/docker/abc\n",
        **{
            "cpu,cpuacct__cpu_of_cfs_quota_us": "150000",  # as in a container: its own group lies outermost
            "cpu,cpuacct__cpu_of_cfs_period_us": "50000",
            "memory__memory_of_limit_in_bytes": "9223372036854771712",
            "memory__docker__abc__memory_of_limit_in_bytes": "1000000",
        },
    )
    assert num_cores() == 3
    assert memory_bytes() == 1_000_000
    groups("12:cpu,cpuacct:/docker/abc\n", **{"cpu,cpuacct__cpu_of_cfs_quota_us": "-1"})
    assert core_limit() is None


def test_memory_without_a_limit_is_the_machines(groups):
    groups("0::/\n", memory_of_max="max")
    assert memory_bytes() == present_memory_bytes()
    groups("0::/\n", memory_of_max="2000000")
    assert memory_bytes() == 2_000_000


def test_groups_that_cannot_be_read_set_no_limit(groups, tmp_path: Path):
    groups("0::/../elsewhere\n", cpu_of_max="nonsense")
    assert core_limit() is None
    (tmp_path / "own").unlink()
    assert core_limit() is None


def test_the_cores_are_those_that_this_process_may_use():
    assert 1 <= num_cores() <= (os.cpu_count() or 1)
    if hasattr(os, "sched_setaffinity"):
        allowed = os.sched_getaffinity(0)
        try:
            os.sched_setaffinity(0, {min(allowed)})
            assert num_cores() == 1
        finally:
            os.sched_setaffinity(0, allowed)
