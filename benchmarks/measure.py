"""Side-by-side timing that survives a busy machine: CPU time, interleaved rounds, medians of per-round ratios."""

from __future__ import annotations

import gc
import os
import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass
class Row:
    """One line of the results.

    Attributes:
        work: What is done.
        method: With what.
        value: The number that the goal is about: a ratio of CPU times, or what ``unit`` says. None: not measured.
        goal: What ``value`` should not exceed.
        cpu_ms: Median CPU time.
        peer: What it is compared with.
        peer_cpu_ms: Median CPU time of that.
        unit: Of ``value``; empty for a ratio.
        note: What a reader must know; the reason where nothing was measured.
        is_ours: Whether the method is TimeGrain's.
    """

    work: str
    method: str
    value: float | None
    goal: float | None = None
    cpu_ms: float | None = None
    peer: str = ""
    peer_cpu_ms: float | None = None
    unit: str = ""
    note: str = ""
    is_ours: bool = field(default=True)

    @property
    def reached(self) -> str:
        """Whether the goal is reached; empty without one."""
        if self.goal is None:
            return ""
        return "not measured" if self.value is None else "yes" if self.value <= self.goal else "no"


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


def row(
    work: str,
    seconds: Mapping[str, list[float]],
    method: str,
    peer: str,
    goal: float | None = None,
    note: str = "",
    is_ours: bool = True,
) -> Row:
    """A method against a named alternative: the median over rounds of (method / peer in the same round)."""
    ratios = [a / b for a, b in zip(seconds[method], seconds[peer], strict=True)]
    return Row(
        work,
        method,
        statistics.median(ratios),
        goal,
        cpu_ms=1000 * statistics.median(seconds[method]),
        peer=peer,
        peer_cpu_ms=1000 * statistics.median(seconds[peer]),
        note=note,
        is_ours=is_ours,
    )


def not_measured(work: str, method: str, reason: str, goal: float | None = None, is_ours: bool = False) -> Row:
    """A line for what could not be measured here, with the reason."""
    return Row(work, method, None, goal, note=f"not measured: {' '.join(reason.split())[:200]}", is_ours=is_ours)
