"""Going on where a run stopped: how long it still is, and what changes with other processes or batches of another size."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from timegrain.checkpoints import loader_state, read_checkpoint
from timegrain.data.loading import at_batch_size, global_batch, visited
from timegrain.tasks.config import TrainingConfig
from timegrain.tasks.setup import Schedule, is_first_process


def go_on(length: Schedule, run: TrainingConfig, resume: Path | None) -> Schedule:
    """The length of a run that goes on from a checkpoint; with batches of another size it says what changes.

    A length in epochs stays one in epochs: what was done counts by the samples that were seen, and so does the schedule
    of the learning rate. A length in steps (``run.steps``) stays one in steps.

    Args:
        length: Of a run that has batches of this size from the first step on.
        run: Settings.
        resume: The checkpoint, or None for a new run.

    Raises:
        ValueError: The checkpoint is damaged.
    """
    if resume is None:
        return length
    checkpoint = read_checkpoint(resume, mapped=True)
    step, state = int(checkpoint["global_step"]), loader_state(checkpoint)
    processes = run.devices * run.num_nodes
    batch_size, batches = length.global_batch // processes, round(length.steps_per_epoch * run.accumulate)
    moved = at_batch_size(state, batch_size, processes, batches, run.accumulate) if "epoch" in state else state
    if run.steps is None and "epoch" in state:
        done = moved["epoch"] * -(-batches // run.accumulate) + moved["consumed"] // run.accumulate
        length = replace(length, steps=length.steps + step - done, shift=step - done)
    is_other = global_batch(state) is not None and (state["batch_size"], state["world_size"]) != (batch_size, processes)
    if is_other and is_first_process():
        print("\n".join(_changes(length, run, step, state, moved)), file=sys.stderr)
    return length


def _changes(
    length: Schedule, run: TrainingConfig, step: int, state: dict[str, int], moved: dict[str, int]
) -> list[str]:
    """What a run does differently from here on, in words."""
    before, now = state["batch_size"] * state["world_size"], length.global_batch
    lines = [
        f"going on        at step {step:,} with {moved['world_size']} x {moved['batch_size']} videos, before "
        f"{state['world_size']} x {state['batch_size']}: no longer bit for bit (sums in another order, batch norms over "
        "other videos, other dropout)"
    ]
    if now == before:
        lines += [
            f"batch           still {now} videos: the order and the members of every further batch stay as they were"
        ]
        return lines
    seen = visited(state)
    left = visited(moved) - seen if moved["epoch"] == state["epoch"] else 0
    keep = ""
    if before % moved["world_size"] == 0:
        keep = (
            f". --data.batch_size {before // moved['world_size']} would keep the batch of {before}, with --run.chunk_size "
            "where memory is short"
        )
    where = f"{seen:,} videos of epoch {state['epoch'] + 1} were seen and do not come again in it"
    waiting = f", {left:,} that fill no whole step wait for other epochs" if left else ""
    ends = (
        f"ends after {length.steps:,} steps as before, which see another number of videos"
        if run.steps is not None
        else f"{length.steps - step:,} more steps; the epochs stay {run.epochs} and the schedule goes by the videos seen"
    )
    return [
        *lines,
        f"batch           {now} videos instead of {before}: other negatives. The order of the videos stays as it was; "
        f"{where}{waiting}{keep}",
        f"learning rate   the same unless --optim.learning_rate is given: it was chosen for a batch of {before}, and "
        f"{now / before:g} times as much is customary for {now}",
        f"length          {ends}",
    ]
