"""The stages that a sample goes through, each measured by itself: for ``timegrain bench`` and ``timegrain plan``.

Disk, decoding, cutting, the way from a worker to the training process, colour and blur; the training step, and all at once,
are in :mod:`timegrain.tasks.step_timing`. What one core
does is counted in CPU time, which a busy machine hardly changes; what several share (disk, hand-over, GPU) by the clock.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from timegrain.data.clips import VideoClips, collate, draw_clips, joined, what_to_read
from timegrain.data.decoding import VideoError
from timegrain.data.loading import EpochBatchSampler, ResumableLoader
from timegrain.data.location import Location
from timegrain.data.transforms import apply_augmentation
from timegrain.sampling import SAMPLERS

_BLOCK = 2**20


@dataclass
class Timing:
    """How long something took, once for each time it was done.

    Attributes:
        wall: Seconds by the clock.
        cpu: Seconds of CPU of this process, all threads.
    """

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    @contextlib.contextmanager
    def once(self, device: torch.device | None = None) -> Iterator[None]:
        """Take the time of what is done inside; a GPU's work is waited for on both sides."""
        synchronise(device)
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        synchronise(device)
        self.wall.append(time.perf_counter() - wall)
        self.cpu.append(time.process_time() - cpu)

    @property
    def mean_cpu(self) -> float:
        """Mean CPU seconds; 0 where nothing was measured."""
        return statistics.fmean(self.cpu) if self.cpu else 0.0

    def of_training(self, device: torch.device) -> list[float]:
        """Seconds that the training process needs: of CPU where it is one thread on a CPU, else by the clock."""
        return self.cpu if device.type == "cpu" and torch.get_num_threads() == 1 else self.wall


def synchronise(device: torch.device | None) -> None:
    """Wait until a GPU has done what it was given."""
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device is not None and device.type == "mps":
        torch.mps.synchronize()


@dataclass(frozen=True)
class DiskSpeed:
    """What reading whole files gave.

    Args:
        files: Read.
        bytes: Of them together.
        seconds: By the clock.
        cold: Whether the system could be asked to forget the files first; else some may have come from memory.
    """

    files: int
    bytes: int
    seconds: float
    cold: bool


def read_files(paths: Sequence[str], seconds: float) -> DiskSpeed:
    """Read files, and members of local shards, for about ``seconds``; one that can't be read, or has a URL, is left out."""
    total, number, cold = 0, 0, hasattr(os, "posix_fadvise")
    spent = 0.0
    for path in paths:
        place = Location.parse(path)
        left = place.size if place.size is not None else sys.maxsize
        try:
            with open(place.source, "rb", buffering=0) as file:
                if cold:
                    os.posix_fadvise(file.fileno(), place.offset, place.size or 0, os.POSIX_FADV_DONTNEED)
                file.seek(place.offset)
                started = time.perf_counter()
                while left > 0 and (block := file.read(min(_BLOCK, left))):
                    total += len(block)
                    left -= len(block)
                    if spent + time.perf_counter() - started > 2 * seconds:  # a film on a slow disk
                        break
        except OSError:
            continue
        spent += time.perf_counter() - started
        number += 1
        if spent > seconds:
            break
    return DiskSpeed(number, total, spent, cold)


@dataclass
class LoadCost:
    """What making samples takes on one core.

    Attributes:
        decode: Opening a video and decoding the frames of all its clips, the union of their boxes.
        whole: The same with cutting and resizing: all that a worker does for a sample.
        samples: Those that were made.
        failures: (path, reason) of videos that could not be decoded.
        by_video: CPU milliseconds of a sample by the path of its video.
    """

    decode: Timing = field(default_factory=Timing)
    whole: Timing = field(default_factory=Timing)
    samples: list[dict[str, Any]] = field(default_factory=list)
    failures: list[tuple[str, str]] = field(default_factory=list)
    by_video: dict[str, float] = field(default_factory=dict)


_KEPT = 8  # samples that are kept for the stages that follow


def make_samples(clips: VideoClips, seconds: float, at_least: int = 3) -> LoadCost:
    """Make samples as a worker does, of videos drawn over the whole manifest, for about ``seconds``.

    Args:
        clips: The run's data set.
        seconds: How long.
        at_least: Samples, however long they take.
    """
    cost = LoadCost()
    order = np.random.default_rng(clips.seed).permutation(len(clips))
    started, done, epoch = time.perf_counter(), 0, 0
    while done < at_least or time.perf_counter() - started < seconds:
        index = int(order[done % len(order)])
        epoch = done // len(order)
        done += 1
        path = clips.manifest[index].path
        try:
            # The first look at a file pays for the disk, which is a stage of its own.
            if epoch == 0:
                _decode(clips, index, epoch)
            with cost.decode.once():
                _decode(clips, index, epoch)
            with cost.whole.once():
                made = clips.sample(index, np.random.default_rng([clips.seed, epoch, index]))
        except VideoError as error:
            del cost.decode.wall[len(cost.whole.wall) :], cost.decode.cpu[len(cost.whole.cpu) :]
            if all(error.path != known for known, _ in cost.failures):
                cost.failures.append((str(error.path), error.reason))
            if len(cost.failures) >= len(order):
                break
            continue
        for timing in (cost.decode, cost.whole):  # of a sample, where a visit gives several
            timing.wall[-1] /= clips.samples_per_visit
            timing.cpu[-1] /= clips.samples_per_visit
        cost.by_video[path] = 1000 * cost.whole.cpu[-1]
        if len(cost.samples) < _KEPT:
            cost.samples += [{**sample, "failures": []} for sample in made.get("samples", (made,))]
    return cost


def _decode(clips: VideoClips, index: int, epoch: int) -> None:
    """Decode what a visit needs and use nothing of it."""
    row, sampler = clips.manifest[index], SAMPLERS[clips.sampler]
    rng = np.random.default_rng([clips.seed, epoch, index])
    plans = [
        draw_clips(rng, sampler, row.num_frames, row.height, row.width, clips.specs, clips.augment)
        for _ in range(clips.samples_per_visit)
    ]
    targets, boxes = what_to_read(joined(plans), row.num_frames)
    with clips.opened(index) as source:
        for _ in source.pictures(list(targets), crop=boxes):
            pass


def augment_samples(samples: Sequence[dict[str, Any]], device: torch.device, seconds: float) -> Timing:
    """Colour and blur of samples, as the training process does it; the time of one sample each."""
    timing = Timing()
    batch = collate(samples)
    on_device = [clip.to(device) for clip in batch["clips"]]
    started = time.perf_counter()
    for turn in range(1000):
        one = Timing()
        with one.once(device):
            for clip, augmentation in zip(on_device, batch["augmentations"], strict=True):
                apply_augmentation(clip, augmentation)
        if turn or time.perf_counter() - started > seconds:  # the first one warms up
            timing.wall.append(one.wall[0] / len(samples))
            timing.cpu.append(one.cpu[0] / len(samples))
            if time.perf_counter() - started > seconds:
                break
    return timing


class _Ready(Dataset[dict[str, Any]]):
    """Samples that are there already; a worker has only to hand them over."""

    def __init__(self, samples: Sequence[dict[str, Any]], length: int) -> None:
        self.samples, self.length = samples, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        return self.samples[key[1] % len(self.samples)]


def hand_over(
    samples: Sequence[dict[str, Any]], batch_size: int, workers: int, device: torch.device, seconds: float
) -> float:
    """Samples per second that get from workers to the device when nothing has to be decoded."""
    batches = 2_000
    sampler = EpochBatchSampler(batches * batch_size, batch_size)
    loader = ResumableLoader(
        _Ready(samples, batches * batch_size), sampler, collate, workers, pin_memory=device.type == "cuda"
    )
    number, started = 0, 0.0
    for turn, batch in enumerate(loader):
        for clip in batch["clips"]:
            clip.to(device, non_blocking=True)
        synchronise(device)
        if turn == 0:  # the workers have started
            started = time.perf_counter()
            continue
        number += batch_size
        if time.perf_counter() - started > seconds:
            break
    return number / max(time.perf_counter() - started, 1e-9)
