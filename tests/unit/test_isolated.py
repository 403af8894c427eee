"""Workers that crash, hang, raise or vanish, and the items around them that must not notice."""

from __future__ import annotations

import os
import signal
import time

import pytest

from timegrain.data.isolated import Failure, run_isolated
from timegrain.data.video import VideoError

pytestmark = pytest.mark.multiprocess


def task(name: str) -> str:
    if name == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if name == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if name == "leave":
        os._exit(3)
    if name == "hang":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(60)
    if name == "broken":
        raise VideoError(name, "no moov\natom")
    if name == "bug":
        raise KeyError("surprise")
    if name == "missing":
        raise FileNotFoundError(2, "No such file or directory", name)
    return name.upper()


def outcomes(items: list[str], num_workers: int, limit: float = 20.0) -> list[object]:
    found = dict(run_isolated(task, items, lambda item: limit, num_workers))
    assert sorted(found) == list(range(len(items)))
    return [found[position] for position in range(len(items))]


@pytest.mark.parametrize("num_workers", [1, 2])
def test_every_item_gets_its_result_or_its_reason(num_workers):
    items = ["a", "crash", "b", "broken", "leave", "bug", "missing", "killed", "c"]
    results = outcomes(items, num_workers)
    assert [results[0], results[2], results[8]] == ["A", "B", "C"]
    reasons = [result.reason for result in results if isinstance(result, Failure)]
    assert reasons[0] == "the decoder crashed (SIGSEGV)"
    assert reasons[1] == "no moov atom"
    assert reasons[2] == "the decoder ended its process (exit code 3)"
    assert reasons[3] == "KeyError: 'surprise'"
    assert reasons[4] == "No such file or directory"
    assert "memory ran out" in reasons[5]


def test_a_hang_is_ended_at_its_limit_and_the_others_go_on():
    began = time.monotonic()
    results = outcomes(["hang", "a", "b", "hang"], 2, limit=1.0)
    assert results[1:3] == ["A", "B"]
    assert results[0] == results[3] == Failure("took longer than 1 s and was stopped")
    assert time.monotonic() - began < 40


def test_no_items_start_no_worker():
    assert list(run_isolated(task, [], lambda item: 1.0)) == []


def test_stopping_early_ends_the_workers():
    results = run_isolated(task, ["a", "hang", "hang"], lambda item: 60.0, 2)
    assert next(results) == (0, "A")
    began = time.monotonic()
    results.close()
    assert time.monotonic() - began < 15
