"""Loading that can stop anywhere and go on exactly: batches are a pure function of (seed, epoch, position)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

Key = tuple[int, int]  # (epoch, index): with the seed, all that a sample depends on


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

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next pass; the Trainer calls it."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_samples // (self.batch_size * self.world_size)

    def __iter__(self) -> Iterator[list[Key]]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.num_samples)
        batches = order[: len(self) * self.world_size * self.batch_size]
        own = batches.reshape(len(self), self.world_size, self.batch_size)[:, self.rank]
        start, self.start = self.start, 0
        for batch in own[start:]:
            yield [(self.epoch, int(index)) for index in batch]


def _one_thread(worker: int) -> None:
    """OpenCV starts a thread per core by itself; with a worker per core that is a crowd."""
    cv2.setNumThreads(0)


class ResumableLoader(DataLoader[Any]):
    """A DataLoader whose state is how many batches of the epoch have been handed out.

    The Trainer saves it in checkpoints and restores it: the next pass then starts behind those batches, without
    decoding them again.

    Args:
        dataset: Takes (epoch, index).
        sampler: Gives the batches.
        collate: From samples to a batch.
        num_workers: Processes that decode; 0 decodes in the training process.
        pin_memory: Whether to copy batches into page-locked memory, for a GPU.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        sampler: EpochBatchSampler,
        collate: Callable[[Sequence[Any]], Any],
        num_workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        super().__init__(
            dataset,
            batch_sampler=sampler,
            collate_fn=collate,
            num_workers=num_workers,
            pin_memory=pin_memory,
            worker_init_fn=_one_thread,
            generator=torch.Generator(),  # its own, or every pass would draw from the global one
            persistent_workers=num_workers > 0,  # keys carry their epoch, so workers need not start anew for each
        )
        self.epoch_sampler = sampler
        self.consumed = 0

    def state_dict(self) -> dict[str, int]:
        """Batches handed out in this epoch; 0 after the last one, because the next pass starts anew."""
        return {"consumed": self.consumed % len(self)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Start the next pass behind the batches that ``state`` counts."""
        self.epoch_sampler.start = self.consumed = state["consumed"]

    def __iter__(self) -> Any:
        self.consumed = self.epoch_sampler.start
        for batch in super().__iter__():
            self.consumed += 1
            yield batch
