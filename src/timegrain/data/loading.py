"""Loading that can stop anywhere and go on exactly: batches are a pure function of (seed, epoch, position)."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

Key = tuple[int, int]  # (epoch, index): with the seed, all that a sample depends on


def epoch_order(seed: int, epoch: int, num_samples: int) -> NDArray[np.int64]:
    """The samples in the order of an epoch."""
    return np.random.default_rng([seed, epoch]).permutation(num_samples)


class EpochBatchSampler(Sampler[list[Key]]):
    """Batches of (epoch, index) for one process; the order depends only on (seed, epoch).

    Every process sees other videos, all see the same number of batches, and the remainder that does not fill a batch on
    every process is left for other epochs. ``world_size`` processes with batches of b see together what one process
    with batches of ``world_size`` · b sees, batch by batch.

    Args:
        num_samples: Videos.
        batch_size: Videos per batch and process.
        seed: Of the run.
        rank: This process's number.
        world_size: Number of processes.

    Raises:
        ValueError: If not even one batch can be filled.
    """

    def __init__(self, num_samples: int, batch_size: int, seed: int = 0, rank: int = 0, world_size: int = 1) -> None:
        if batch_size < 1:
            raise ValueError(f"a batch has at least 1 video; the batch size is {batch_size}")
        if num_samples < batch_size * world_size:
            across = f" on each of {world_size} processes" if world_size > 1 else ""
            raise ValueError(
                f"{num_samples} usable videos do not fill one batch of {batch_size}{across}; "
                f"use a batch size of at most {num_samples // world_size}, or more videos"
            )
        self.num_samples, self.batch_size, self.seed = num_samples, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.epoch = 0
        self.start = 0

    def set_position(self, epoch: int, start: int = 0) -> None:
        """Choose the order of the next pass, and how many of its batches to leave out at the beginning."""
        self.epoch, self.start = epoch, start

    def __len__(self) -> int:
        return self.num_samples // (self.batch_size * self.world_size)

    def __iter__(self) -> Iterator[list[Key]]:
        order = epoch_order(self.seed, self.epoch, self.num_samples)
        batches = order[: len(self) * self.world_size * self.batch_size]
        own = batches.reshape(len(self), self.world_size, self.batch_size)[:, self.rank]
        for batch in own[self.start :]:
            yield [(self.epoch, int(index)) for index in batch]


def global_batch(state: Mapping[str, int]) -> int | None:
    """Samples per batch over all processes when a loader's state was taken; None in states that do not say."""
    return state["batch_size"] * state["world_size"] if "batch_size" in state else None


def visited(state: Mapping[str, int]) -> int:
    """Videos of the epoch that have given a sample when a loader's state was taken."""
    return -(-state["consumed"] // state.get("batches_per_visit", 1)) * (global_batch(state) or 0)


def at_batch_size(
    state: Mapping[str, int], batch_size: int, world_size: int, num_batches: int, accumulate: int = 1
) -> dict[str, int]:
    """A loader's state, taken with batches of one size, for a loader with batches of another.

    The samples of the global order that were handed out stay handed out: none comes twice in an epoch. Where they end
    inside a step of the new size, that step is left out, and its samples wait for other epochs; so do, with several
    samples of a visit, those that the videos just visited have still to give. Where both sizes are the same, whatever the
    number of processes, every further batch is the one that would have come.

    Args:
        state: As :meth:`ResumableLoader.state_dict` gives it.
        batch_size: Samples per batch and process from now on.
        world_size: Processes from now on.
        num_batches: Batches of an epoch from now on.
        accumulate: Batches of an optimiser step from now on.

    Example:
        >>> state = {"epoch": 2, "consumed": 3, "batch_size": 4, "world_size": 2}  # 24 samples of the epoch
        >>> at_batch_size(state, 16, 1, num_batches=10)
        {'epoch': 2, 'consumed': 2, 'batch_size': 16, 'world_size': 1}
    """
    size = batch_size * world_size
    before = global_batch(state) or size
    if before == size:
        consumed = -(-state["consumed"] // accumulate) * accumulate
    else:
        visit = state.get("batches_per_visit", 1)
        whole = math.lcm(accumulate, visit)  # batches after which both a step and a visit end
        consumed = -(-visited(state) * visit // (size * whole)) * whole
    passes, consumed = (0, consumed) if consumed < num_batches else (1, 0)
    place = {"epoch": state["epoch"] + passes, "consumed": consumed}
    return {**state, **place, "batch_size": batch_size, "world_size": world_size}


def _prepare_worker(worker: int) -> None:
    """One thread: OpenCV starts one per core by itself, with a worker per core a crowd. Ctrl-C is the parent's."""
    cv2.setNumThreads(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class ResumableLoader(DataLoader[Any]):
    """A DataLoader that knows where it is: the epoch, and how many of its batches have been handed out.

    Each pass is the next epoch; a pass that was broken off is gone on with. The Trainer saves the position in
    checkpoints and restores it, so the batches before it are not decoded again. The epoch is counted here and not left
    to the Trainer, which tells it only to samplers of single samples: it never reaches a sampler of batches.

    Args:
        dataset: Takes (epoch, index).
        sampler: Gives the batches.
        collate: From samples to a batch.
        num_workers: Processes that decode; 0 decodes in the training process.
        pin_memory: Whether to copy batches into page-locked memory, for a GPU.
        batches_per_visit: How many batches ``collate`` makes of the samples it is given: above 1 it returns a list of
            them, which are handed out one after the other.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        sampler: EpochBatchSampler,
        collate: Callable[[Sequence[Any]], Any],
        num_workers: int = 0,
        pin_memory: bool = False,
        batches_per_visit: int = 1,
    ) -> None:
        super().__init__(
            dataset,
            batch_sampler=sampler,
            collate_fn=collate,
            num_workers=num_workers,
            pin_memory=pin_memory,
            worker_init_fn=_prepare_worker,
            generator=torch.Generator(),  # its own, or every pass would draw from the global one
            persistent_workers=num_workers > 0,  # keys carry their epoch, so workers need not start anew for each
        )
        self.epoch_sampler, self.batches_per_visit = sampler, batches_per_visit
        self.epoch = self.consumed = 0

    def __len__(self) -> int:
        return len(self.epoch_sampler) * self.batches_per_visit

    def state_dict(self) -> dict[str, int]:
        """Where the next batch stands; behind the last batch of an epoch that is the beginning of the next one."""
        passes, consumed = divmod(self.consumed, len(self))
        sampler = self.epoch_sampler
        return {
            "epoch": self.epoch + passes,
            "consumed": consumed,
            "batch_size": sampler.batch_size,
            "world_size": sampler.world_size,
            "batches_per_visit": self.batches_per_visit,
        }

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on where ``state`` says; one of batches of another size has been through :func:`at_batch_size`.

        Raises:
            ValueError: The checkpoint was made before epochs were part of it, when every epoch repeated the first.
        """
        if "epoch" not in state:
            raise ValueError(
                "this checkpoint is of an earlier version, which trained every epoch on the clips of the first; begin "
                "anew with --run.restart true"
            )
        sampler = self.epoch_sampler
        assert global_batch(state) in (None, sampler.batch_size * sampler.world_size)
        self.epoch, self.consumed = state["epoch"], state["consumed"]

    def __iter__(self) -> Any:
        state = self.state_dict()
        self.epoch, self.consumed = state["epoch"], state["consumed"]
        visits, done = divmod(self.consumed, self.batches_per_visit)
        self.epoch_sampler.set_position(self.epoch, visits)
        for made in super().__iter__():
            for batch in made[done:] if self.batches_per_visit > 1 else [made]:
                self.consumed += 1
                yield batch
            done = 0
