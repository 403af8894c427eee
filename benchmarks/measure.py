"""Side-by-side timing that survives a busy machine: CPU time, interleaved rounds, medians of per-round ratios."""

from __future__ import annotations

import gc
import os
import random
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

Row = dict[str, Any]


def cpu_seconds() -> float:
    """CPU time of this process (all threads, to the nanosecond) and of its finished children."""
    times = os.times()
    return time.process_time() + times.children_user + times.children_system


def measure(methods: Mapping[str, Callable[[int], object]], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of every method in every round.

    Each round calls every method once, in shuffled order, with the round's number (all see the same sample). The
    first round warms up and is dropped.
    """
    order, rng = list(methods), random.Random(0)
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for number in range(rounds + 1):
        rng.shuffle(order)
        for name in order:
            gc.collect()
            before = cpu_seconds()
            methods[name](number)
            if number:
                seconds[name].append(cpu_seconds() - before)
    return seconds


def row(work: str, seconds: Mapping[str, list[float]], ours: str, peer: str, goal: float | None, note: str = "") -> Row:
    """One line of the results: ours against a named alternative.

    The ratio is the median over rounds of (ours / peer in the same round).
    """
    ratios = [a / b for a, b in zip(seconds[ours], seconds[peer], strict=True)]
    return {
        "work": work,
        "method": ours,
        "peer": peer,
        "ratio": statistics.median(ratios),
        "goal": goal,
        "cpu_ms": 1000 * statistics.median(seconds[ours]),
        "peer_cpu_ms": 1000 * statistics.median(seconds[peer]),
        "rounds": len(ratios),
        "note": note,
    }
