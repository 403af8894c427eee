"""What lets a training run stop anywhere and go on: whole checkpoints, taken between steps, by all processes at once."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import distributed as dist
from tqdm import tqdm

from timegrain.data.loading import at_batch_size, global_batch
from timegrain.files import atomic_path


def read_checkpoint(path: Path | str, *, mapped: bool = False) -> dict[str, Any]:
    """Read a checkpoint without running any code in it.

    Args:
        path: The file.
        mapped: Leave the tensors in the file until they are used: to look at something small.

    Raises:
        ValueError: It is damaged; the message says which and what to do.
    """
    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if Path(path).is_file() and not zipfile.is_zipfile(path):  # torch then speaks of its own options
            reason = f"its {Path(path).stat().st_size:,} bytes are no whole checkpoint"
        raise ValueError(
            f"the checkpoint {path} cannot be read ({reason}). Copy a kept checkpoint of the same folder over it to "
            "continue from there, or use --run.restart true"
        ) from error
    return checkpoint


def loader_state(checkpoint: dict[str, Any]) -> dict[str, int]:
    """Where the loader stood when the engine took a checkpoint; the dict inside it, not a copy."""
    state: dict[str, int] = checkpoint["loops"]["fit_loop"]["state_dict"]["combined_loader"][0]
    return state


def move_checkpoint(
    checkpoint: dict[str, Any], batch_size: int, world_size: int, num_batches: int, accumulate: int
) -> bool:
    """Let a checkpoint go on with another number of processes or batches of another size, in place.

    Args:
        checkpoint: The engine's, taken between two steps.
        batch_size: Samples per batch and process from now on.
        world_size: Processes from now on.
        num_batches: Batches of an epoch from now on.
        accumulate: Batches of an optimiser step from now on.

    Returns:
        Whether anything had to be changed.
    """
    state = loader_state(checkpoint)
    if global_batch(state) is None or (state["batch_size"], state["world_size"]) == (batch_size, world_size):
        return False
    state.update(at_batch_size(state, batch_size, world_size, num_batches, accumulate))
    # The engine counts the batches of the epoch by itself; a checkpoint is taken when the last one is all but complete.
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    progress["is_last_batch"] = state["consumed"] == 0
    behind = state["consumed"] or num_batches
    lag = progress["current"]["ready"] - progress["current"]["completed"]
    progress["current"].update(ready=behind, started=behind, processed=behind, completed=behind - lag)
    return True


class AtomicCheckpoints(TorchCheckpointIO):
    """Checkpoints that are whole or not there, read back without running any code in them."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write beside ``path``, flush to the disk, rename."""
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = True) -> dict[str, Any]:
        """Read a checkpoint; a damaged one is a ValueError that says which and what to do."""
        return read_checkpoint(path)


class StepCheckpoint(ModelCheckpoint):
    """ModelCheckpoint that looks only when an optimiser step is complete, in a folder that may have been moved.

    Gradients gathered inside an accumulated step are in no checkpoint, so the resumed step would be another one.
    """

    _step_before = -1

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Remember the step that this batch belongs to."""
        self._step_before = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save, if it is time and this batch ended a step."""
        if trainer.global_step > self._step_before:
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the best score also where the run's folder has another name now: it names files in it."""
        before, now = str(state_dict.get("dirpath")), str(self.dirpath)

        def renamed(value: Any) -> Any:
            if isinstance(value, dict):
                return {renamed(key): score for key, score in value.items()}
            return now + value.removeprefix(before) if isinstance(value, str) and value.startswith(before) else value

        super().load_state_dict({key: renamed(value) for key, value in state_dict.items()})


class RunStopped(Exception):
    """A run that was asked to stop has stopped after a whole step, with a checkpoint."""


class BetweenSteps(Callback):
    """What happens between steps on demand: a checkpoint when the clock says so, the end when a signal asks for it.

    Ctrl-C and SIGTERM (as schedulers send it) end a run after a whole step, with a checkpoint of it; a second one ends
    it at once. SIGUSR1 under SLURM, its warning before the time is over, also puts the job back into the queue.

    Clocks differ and a signal may reach one process only, so several processes have to agree, and to ask at every step
    would make each wait for the slowest. They meet at steps that all of them know: at each meeting the first process
    says how far the next one is, by how long steps take, so that one comes about every ``every_seconds``.

    Args:
        checkpoint: Where checkpoints go, ``last.ckpt``.
        minutes: Time between checkpoints; None takes none by the clock.
        every_seconds: Time between meetings, at most.
    """

    def __init__(self, checkpoint: Path, minutes: float | None = None, every_seconds: float = 5.0) -> None:
        self.checkpoint = checkpoint
        self.interval = None if minutes is None else 60 * minutes
        self.every_seconds = every_seconds if self.interval is None else min(every_seconds, self.interval)
        self.is_asked = self.wants_requeue = False
        self.meetings = 0
        self._step_before = -1
        self._next_meeting = self._gap = 0
        self._saved = self._met = 0.0
        self._handlers: dict[signal.Signals, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen from now on."""
        self._saved = self._met = time.monotonic()
        self._next_meeting, self._gap = trainer.global_step + 1, 1
        if threading.current_thread() is threading.main_thread():
            asks = [signal.SIGINT, signal.SIGTERM, *([signal.SIGUSR1] if SLURMEnvironment.detect() else [])]
            for number in asks:
                self._handlers[number] = signal.signal(number, self._ask)

    def _ask(self, number: int, frame: Any) -> None:
        self.wants_requeue |= number == signal.SIGUSR1
        if self.is_asked and number != signal.SIGUSR1:
            raise KeyboardInterrupt
        if not self.is_asked and _is_first():
            tqdm.write("\nstopping after this step, with a checkpoint (once more: at once)", file=sys.stderr)
        self.is_asked = True

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Remember the step that this batch belongs to."""
        self._step_before = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save or stop, if it is time for that and this batch ended a step."""
        if trainer.global_step == self._step_before:
            return
        is_due = self.interval is not None and time.monotonic() - self._saved >= self.interval
        stops, requeues = self.is_asked, self.wants_requeue
        if trainer.world_size > 1:
            if trainer.global_step < self._next_meeting:
                return
            stops, requeues, is_due = self._meet(trainer, is_due)
        if is_due or stops:
            trainer.save_checkpoint(self.checkpoint)
            self._saved = time.monotonic()
        if stops:
            if requeues and trainer.is_global_zero:
                _requeue()
            raise RunStopped(f"stopped after step {trainer.global_step}")

    def _meet(self, trainer: Trainer, is_due: bool) -> tuple[bool, bool, bool]:
        """What all processes together want: to stop, to be queued again, a checkpoint (which the first decides)."""
        now = time.monotonic()
        seconds_per_step = (now - self._met) / self._gap
        gap = max(1, min(2 * self._gap, int(self.every_seconds / max(seconds_per_step, 1e-6))))
        self._met = now
        leads = trainer.is_global_zero
        said = torch.tensor(
            [int(self.is_asked), int(self.wants_requeue), int(leads and is_due), gap if leads else 0],
            device=trainer.strategy.root_device,
        )
        dist.all_reduce(said, dist.ReduceOp.MAX)
        stops, requeues, saves, self._gap = said.tolist()
        self._next_meeting = trainer.global_step + self._gap
        self.meetings += 1
        return bool(stops), bool(requeues), bool(saves)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen no longer."""
        self._restore()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Listen no longer."""
        self._restore()

    def _restore(self) -> None:
        while self._handlers:
            signal.signal(*self._handlers.popitem())


def _is_first() -> bool:
    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0


def _requeue() -> None:
    """Put this SLURM job back into the queue; the same command then goes on from the checkpoint."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]
    program = shutil.which("scontrol")
    done = subprocess.run([program, "requeue", job], check=False).returncode == 0 if program else False
    said = "put back into the queue" if done else "could not be put back into the queue: submit it again"
    tqdm.write(f"SLURM job {job} {said}", file=sys.stderr)


def end_with_parent(parent: int, alive: Callable[[], int] = os.getppid, every_seconds: float = 2.0) -> None:
    """End this process when the one that started it is gone: one that waits for others in a GPU would wait on.

    Args:
        parent: Process id of who started this one.
        alive: Gives the present parent's.
        every_seconds: Time between looks.
    """

    def watch() -> None:
        while alive() == parent:
            time.sleep(every_seconds)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="parent-watch").start()
