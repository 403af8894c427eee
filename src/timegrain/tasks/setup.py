"""From settings to the parts of a training run: its videos, folder, batches and length."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Sequence, Sized
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from lightning import Trainer
from lightning.fabric.utilities.rank_zero import rank_zero_only
from torch.utils.data import Dataset

from timegrain.data.clip_dataset import ClipDataset
from timegrain.data.clips import VideoClips
from timegrain.data.frame_cache import FrameCache
from timegrain.data.loading import EpochBatchSampler, ResumableLoader
from timegrain.data.manifest import Manifest
from timegrain.data.probing import find_files
from timegrain.data.scan import scan
from timegrain.data.transforms import AugmentConfig
from timegrain.distributed import chunk_rows
from timegrain.machine import num_cores
from timegrain.sampling import ClipSpec
from timegrain.tasks.config import DataConfig, ModelConfig, ObjectiveConfig, RunConfig, TrainingConfig, with_defaults


@dataclass(frozen=True)
class Schedule:
    """How long a run is.

    Args:
        global_batch: Videos per contrastive batch, over all processes.
        steps: Optimiser steps in all.
        steps_per_epoch: Batches per pass over the videos, divided by those of an optimiser step.
        warmup_steps: Steps of the linear warm-up.
        samples: Samples that the run sees, a video as often as it gives one.
        shift: Steps among these that batches of this size throughout would not have made (fewer: below 0); not 0 where
            a run went on with batches of another size.
    """

    global_batch: int
    steps: int
    steps_per_epoch: float
    warmup_steps: int
    samples: int = 0
    shift: int = 0

    @property
    def epoch_steps(self) -> int:
        """Optimiser steps of a pass over the videos; it ends with one, also where the last batches do not fill it."""
        return math.ceil(self.steps_per_epoch)

    @property
    def epochs(self) -> float:
        """Passes over the videos."""
        return (self.steps - self.shift) / self.epoch_steps


def resolve(
    data: DataConfig, model: ModelConfig, objective: ObjectiveConfig, run: RunConfig
) -> tuple[DataConfig, ModelConfig, ObjectiveConfig, RunConfig, Manifest]:
    """Fill in every setting left open, and open (or make) the manifest of usable videos.

    Raises:
        ValueError: If there is no video to train on, not exactly one source of videos is named, or an option does not
            belong to the objective.
    """
    data, model, objective, run = fill_in(data, model, objective, run)
    if (data.folder is None) == (data.manifest is None):
        raise ValueError("name the videos: --data.folder FOLDER (any folder of videos) or --data.manifest FILE.parquet")
    source = data.folder or data.manifest
    assert source is not None
    kind = f"a{objective.alpha:g}" if objective.name == "teg" else objective.name
    kind = kind if objective.levels is None else "levels"
    run = replace(run, out=run.out or Path("runs") / f"{source.resolve().stem}-{kind}")
    assert run.out is not None
    manifest_path = data.manifest
    if data.folder is not None:
        manifest_path = run.out / "manifest.parquet"
        if not data.folder.is_dir():
            raise ValueError(f"{data.folder} is not a folder; --data.folder takes a folder of videos")
        goes_on, began = holds_run(run.out) and not run.restart, time.time()
        while not _lists(manifest_path, data.folder, goes_on):
            if is_first_process():
                with redirect_stdout(sys.stderr):  # standard output belongs to what `--json` prints at the end
                    scan(data.folder, out=manifest_path)
                break
            time.sleep(0.5)  # until the first process has made it, also where videos come in meanwhile
            if manifest_path.exists() and manifest_path.stat().st_mtime > began:
                break
    assert manifest_path is not None
    everything = Manifest.open(manifest_path)
    splits = set(everything.column("split").to_pylist())
    if data.split is None and "train" in splits:
        data = replace(data, split="train")
    chosen = everything.select(split=data.split, usable=False)
    if len(chosen) == 0:
        raise ValueError(
            f"no video of split {data.split!r} in {manifest_path}; it has {', '.join(sorted(map(repr, splits)))}"
        )
    manifest = chosen.select(usable=True)
    if len(manifest) == 0:
        first = chosen[0]
        raise ValueError(f"none of the {len(chosen)} videos in {manifest_path} is usable; the first: {first.error}")
    return data, model, with_queue(objective, data, run, len(manifest)), run, manifest


def fill_in(
    data: DataConfig, model: ModelConfig, objective: ObjectiveConfig, run: RunConfig
) -> tuple[DataConfig, ModelConfig, ObjectiveConfig, RunConfig]:
    """Fill in what does not depend on the videos.

    Raises:
        ValueError: If an option does not belong to the objective.
    """
    data, objective = with_defaults(data, objective)
    gpu = run.accelerator in ("cuda", "gpu") or (run.accelerator == "auto" and torch.cuda.is_available())
    backbone = model.backbone if model.backbone != "auto" else ("r3d50" if gpu else "r3d_tiny")
    size = data.crop_size or (224 if "50" in backbone else 112)
    data = replace(data, crop_size=size, workers=free_workers(data.workers))
    return data, replace(model, backbone=backbone), objective, run


def free_workers(workers: int | None) -> int:
    """The number asked for, else one per free core but one."""
    return workers if workers is not None else num_cores() - 1


def with_queue(objective: ObjectiveConfig, data: DataConfig, run: RunConfig, num_videos: int) -> ObjectiveConfig:
    """Fill in the size of MoCo's queue."""
    if objective.name != "moco" or objective.queue_size is not None:
        return objective
    a_step, half_epoch = data.batch_size * run.devices * run.num_nodes, num_videos // 2
    queue_size = max(a_step, min(half_epoch, 65_536 // (objective.num_clips or 2))) * (objective.num_clips or 2)
    return replace(objective, queue_size=queue_size)


def is_first_process() -> bool:
    """Whether this process writes and prints; known from the launcher's environment before processes are joined."""
    return int(getattr(rank_zero_only, "rank", None) or 0) == 0


def _lists(path: Path, folder: Path, is_of_run: bool) -> bool:
    """Whether a manifest is there that has the folder's videos; that of a run which goes on is taken as it is."""
    if is_of_run or not path.exists():
        return path.exists()
    known = Manifest.open(path).column("path").to_pylist()
    return {os.path.abspath(video) for video in known} == {os.path.abspath(video) for video in find_files(folder)}


def holds_run(out: Path) -> bool:
    """Whether there is something to go on from: a first try that failed must not bind the second."""
    return any(out.glob("checkpoints/*.ckpt")) or any(out.glob("*.safetensors"))


def build_clips(
    data: DataConfig, specs: Sequence[ClipSpec], augment: AugmentConfig, manifest: Manifest, seed: int, out: Path
) -> VideoClips:
    """The data set of the clips of each video."""
    assert data.crop_size is not None
    assert data.sampler is not None
    cache = build_cache(data, manifest, out)
    return VideoClips(
        manifest, specs, data.sampler, data.crop_size, augment, seed, cache, samples_per_visit=data.samples_per_visit
    )


class Kept(Protocol):
    """The part of a data room's settings that says whether and where decoded frames are kept."""

    cache: bool
    cache_folder: Path | None


def build_cache(data: Kept, manifest: Manifest, out: Path) -> FrameCache | None:
    """Decoded frames of the videos, if asked for; made by one of the run's processes, or of several runs'."""
    return FrameCache.build(manifest, data.cache_folder or out / "frames") if data.cache else None


class Batches(Protocol):
    """The part of a data room's settings that says how batches are made."""

    batch_size: int
    workers: int | None


def build_loader(
    dataset: Dataset[Any], collate: Callable[[Sequence[Any]], Any], data: Batches, run: TrainingConfig, trainer: Trainer
) -> ResumableLoader:
    """The loader of this process's share of every batch of a data set that takes (epoch, index)."""
    sampler = EpochBatchSampler(
        len(cast(Sized, dataset)), data.batch_size, run.seed, trainer.global_rank, trainer.world_size
    )
    batches_per_visit = 1
    if isinstance(dataset, ClipDataset):
        dataset.global_batch = data.batch_size * trainer.world_size
        batches_per_visit = dataset.samples_per_visit
    pin = trainer.strategy.root_device.type == "cuda"
    return ResumableLoader(
        dataset, sampler, collate, data.workers or 0, pin_memory=pin, batches_per_visit=batches_per_visit
    )


def check_batch(batch_size: int, global_batch: int, chunk_size: int | None, norms: bool) -> None:
    """Refuse batches without negatives, and chunks that leave a batch norm a single video to take statistics of.

    Args:
        batch_size: Of a process.
        global_batch: Of all processes.
        chunk_size: Videos that go through the network at once.
        norms: Whether the heads have batch norms.

    Raises:
        ValueError: If the batch or a chunk would be one video.
    """
    if global_batch < 2:
        raise ValueError("a batch of one video has nothing to contrast it with: --data.batch_size must be at least 2")
    if chunk_size is None or not norms or batch_size <= chunk_size:
        return
    smallest = min(rows.stop - rows.start for rows in chunk_rows(batch_size, chunk_size))
    if smallest < 2:
        raise ValueError(
            f"--run.chunk_size {chunk_size} cuts a batch of {batch_size} videos into chunks of which one is a single "
            "video: it has no batch to take statistics of. Use at least 3, or 2 with an even --data.batch_size"
        )


def plan(data: Batches, run: TrainingConfig, num_videos: int, samples_per_visit: int = 1) -> Schedule:
    """Steps and batch of the whole run; an epoch visits every video once, whatever number of samples a visit gives.

    Raises:
        ValueError: If the videos do not fill a batch.
    """
    processes = run.devices * run.num_nodes
    batches = len(EpochBatchSampler(num_videos, data.batch_size, world_size=processes)) * samples_per_visit
    return length_of(data.batch_size * processes, batches, run)


def length_of(global_batch: int, batches: int, run: TrainingConfig) -> Schedule:
    """A run's length from the number of batches in an epoch."""
    epoch_steps = -(-batches // run.accumulate)
    steps = run.steps if run.steps is not None else epoch_steps * run.epochs
    warmup = run.warmup_steps if run.warmup_steps is not None else round(run.warmup_epochs * epoch_steps)
    epochs, further = divmod(steps, epoch_steps)
    samples = global_batch * (epochs * batches + further * run.accumulate)
    return Schedule(global_batch, steps, batches / run.accumulate, min(warmup, steps // 2), samples)
