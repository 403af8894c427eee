"""Side-by-side timing that survives a busy machine: CPU time, interleaved rounds, medians of per-round ratios."""

from __future__ import annotations

import gc
import multiprocessing
import os
import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection


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


def measure_apart(methods: Mapping[str, Callable[[], Callable[[int], object]]], rounds: int) -> dict[str, list[float]]:
    """As :func:`measure`, each method in a process of its own, so that what one sets for its process is its own.

    Args:
        methods: Functions of a module that make the methods; called once in their process.
        rounds: As there.

    Raises:
        RuntimeError: A method could not be made, or failed; the message says why.
    """
    context = multiprocessing.get_context("spawn")
    pipes: dict[str, Connection] = {}
    for name, make in methods.items():
        pipes[name], theirs = context.Pipe()
        context.Process(target=_serve, args=(theirs, make), daemon=True).start()
        theirs.close()

    def seconds_of(name: str, number: int) -> float:
        pipes[name].send(number)
        answer = pipes[name].recv()
        if isinstance(answer, str):
            raise RuntimeError(f"{name}: {answer}")
        return float(answer)

    order, rng = list(methods), random.Random(0)
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for number in range(rounds + 1):
        rng.shuffle(order)
        for name in order:
            found = seconds_of(name, number)
            if number:
                seconds[name].append(found)
    for pipe in pipes.values():
        pipe.close()
    return seconds


def _serve(pipe: Connection, make: Callable[[], Callable[[int], object]]) -> None:
    """Make a method, then do it as often as a number is sent, and send back its CPU seconds, or why there are none."""
    method = None
    while True:
        try:
            number = pipe.recv()
        except EOFError:
            return
        try:
            method = method or make()
            gc.collect()
            before = cpu_seconds()
            method(number)
            pipe.send(cpu_seconds() - before)
        except Exception as error:
            pipe.send(f"{type(error).__name__}: {error}")


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
