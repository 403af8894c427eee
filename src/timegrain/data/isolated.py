"""Work on many files in processes that may crash or hang without taking the rest along.

A video decoder is C code that meets files nobody tested: it can fall over (the process dies) or never come back. The
pools of the standard library give up as a whole when one worker dies and have no time limit per item. Here every item
has its own: the worker that had it is ended, the item is reported as a :class:`Failure`, and a fresh worker goes on.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, TypeVar

import torch

from timegrain.data.video import VideoError, short_reason
from timegrain.machine import num_cores

Item = TypeVar("Item")
Result = TypeVar("Result")

_GRACE_SECONDS = 5.0  # after its limit a worker that lost its parent ends itself
_START_SECONDS = 120.0


@dataclass(frozen=True)
class Failure:
    """An item without a result.

    Attributes:
        reason: Why, in one line.
    """

    reason: str


def run_isolated(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    time_limit_seconds: Callable[[Item], float],
    num_workers: int | None = None,
) -> Iterator[tuple[int, Result | Failure]]:
    """Apply a function to every item, each under a time limit, in worker processes.

    Args:
        function: A function of a module (it is sent to the workers by name). Any exception it raises becomes the
            item's failure.
        items: What to work on; sent to the workers one at a time.
        time_limit_seconds: The longest an item may take; then its worker is killed.
        num_workers: Number of processes; the number of cores by default.

    Yields:
        The position of an item and its result or its failure, in the order in which they finish.

    Raises:
        RuntimeError: If workers can't be started.
    """
    context = multiprocessing.get_context("spawn" if sys.platform == "win32" else "forkserver")
    if sys.platform != "win32":
        context.set_forkserver_preload(["timegrain.data.decoding", "timegrain.data.isolated"])
    todo = deque(range(len(items)))
    count = min(num_workers or num_cores(), len(items))
    workers: list[_Worker[Item, Result]] = []
    try:
        workers += [_Worker(context, function) for _ in range(count)]
        while workers:
            for worker in workers:
                if worker.is_idle and todo:
                    position = todo.popleft()
                    worker.give(position, items[position], time_limit_seconds(items[position]))
            workers = [worker for worker in workers if not worker.close_if_idle()]
            if not workers:
                return
            soonest = min(worker.deadline for worker in workers)
            waiting = [handle for worker in workers for handle in (worker.connection, worker.process.sentinel)]
            wait(waiting, timeout=max(0.0, soonest - time.monotonic()))
            for number, worker in enumerate(workers):
                outcome = worker.outcome()
                if outcome is not None:
                    yield outcome
                if worker.is_dead:
                    worker.kill()
                    workers[number] = _Worker(context, function)
    finally:
        for worker in workers:
            worker.kill()


class _Worker(Generic[Item, Result]):
    """One process, what it is working on, and until when."""

    def __init__(self, context: Any, function: Callable[[Item], Result]) -> None:
        self.connection: Connection
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, function), daemon=True)
        self.process.start()
        theirs.close()
        self.position: int | None = None
        self.limit = _START_SECONDS
        self.deadline = time.monotonic() + self.limit
        self.is_started = False
        self.is_dead = False

    @property
    def is_idle(self) -> bool:
        return self.is_started and self.position is None and not self.is_dead

    def give(self, position: int, item: Item, limit: float) -> None:
        self.position, self.limit = position, limit
        self.deadline = time.monotonic() + limit
        # A worker that died while idle: the sentinel reports it in the next round
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.connection.send((item, limit))

    def outcome(self) -> tuple[int, Result | Failure] | None:
        """The finished item, if there is one; marks the worker dead when it ended or has used up its time."""
        try:
            if self.connection.poll():
                message = self.connection.recv()
                if not self.is_started:
                    self.is_started = True
                    self.deadline = time.monotonic() + self.limit
                    return None
                position, self.position = self.position, None
                assert position is not None
                return position, message
        except (EOFError, OSError):
            self.process.join(timeout=10)
            return self._died(_death(self.process.exitcode))
        if not self.process.is_alive():
            return self._died(_death(self.process.exitcode))
        if time.monotonic() >= self.deadline:
            return self._died(f"took longer than {self.limit:.3g} s and was stopped")
        return None

    def _died(self, reason: str) -> tuple[int, Failure] | None:
        self.is_dead = True
        if not self.is_started:
            raise RuntimeError(f"a worker process could not start: {reason}")
        return None if self.position is None else (self.position, Failure(reason))

    def close_if_idle(self) -> bool:
        if not self.is_idle:
            return False
        self.connection.close()
        self.process.join(timeout=10)
        self.kill()
        return True

    def kill(self) -> None:
        self.connection.close()
        if self.process.is_alive():
            self.process.kill()
        self.process.join(timeout=10)


def _death(exit_code: int | None) -> str:
    if exit_code is None or exit_code >= 0:
        return f"the decoder ended its process (exit code {exit_code})"
    name = signal.Signals(-exit_code).name
    if name == "SIGKILL":
        return "the process was killed (SIGKILL), most likely because memory ran out"
    return f"the decoder crashed ({name})"


def _work(connection: Connection, function: Callable[[Any], Any]) -> None:
    """The worker's loop: receive an item, send its result, until the other end closes."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's; it ends its workers
    connection.send("ready")
    while True:
        try:
            item, limit = connection.recv()
        except (EOFError, OSError):
            return
        if hasattr(signal, "setitimer"):  # even a hang in C ends when the parent is gone and can't end it
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_REAL, limit + _GRACE_SECONDS)
        result: Any
        try:
            result = function(item)
        except (VideoError, OSError) as error:
            result = Failure(short_reason(error))
        except Exception as error:
            result = Failure(f"{type(error).__name__}: {short_reason(error)}")
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)
        try:
            connection.send(result)
        except (BrokenPipeError, ConnectionResetError):
            return
