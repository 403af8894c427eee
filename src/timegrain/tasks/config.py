"""What a training run can be told: one small dataclass per room, shown by the commands' ``--help``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from timegrain.losses import Level, levels_for_alpha


def check_smallest(config: Any, group: str, smallest: Mapping[str, int]) -> None:
    """Refuse numbers that are too small to mean anything; None is left alone.

    Raises:
        ValueError: One is; the message names the option.
    """
    for name, least in smallest.items():
        value = getattr(config, name)
        if value is not None and not value >= least:
            raise ValueError(f"--{group}.{name} must be at least {least}, got {value}")


@dataclass
class DataConfig:
    """Which videos, and which clips of them.

    Args:
        folder: Folder of videos, searched with its subfolders; no labels needed. Either this or `manifest`.
        manifest: Manifest made by `timegrain manifest scan` or `timegrain prepare`.
        split: Rows to train on; by default the split `train` where the manifest has one, else all rows.
        sampler: How the two clips are drawn: long_short_contained is the paper's; the others are its Fig. 5(a) and
            CVRL's.
        long_frames: Frames of the long clip.
        long_stride: Source frames from one frame of the long clip to the next.
        short_frames: Frames of the short clip.
        short_stride: Source frames from one frame of the short clip to the next.
        crop_size: Height and width of the clips in pixels; null is 224, and 112 for the small backbones.
        batch_size: Videos per step and process.
        workers: Processes that decode; null is one per free core, 0 decodes in the training process.
        cache: Decode every video once and keep the frames, uncompressed, on disk: for small data sets.
        cache_folder: Where they are kept; by default in the run's folder. Runs on the same videos can share it.
        max_failure_share: Stop when more than this share of the videos failed to decode during training.
    """

    folder: Path | None = None
    manifest: Path | None = None
    split: str | None = None
    sampler: Literal[
        "long_short_contained", "long_short_random", "short_short_contained", "short_short_random", "cvrl_interval"
    ] = "long_short_contained"
    long_frames: int = 32
    long_stride: int = 4
    short_frames: int = 16
    short_stride: int = 2
    crop_size: int | None = None
    batch_size: int = 32
    workers: int | None = None
    cache: bool = False
    cache_folder: Path | None = None
    max_failure_share: float = 0.01

    def __post_init__(self) -> None:
        check_smallest(self, "data", {"crop_size": 1, "batch_size": 1, "workers": 0, "max_failure_share": 0})


@dataclass
class ModelConfig:
    """Which network.

    Args:
        backbone: r3d50 (the paper's), r3d18, r3d_tiny; auto is r3d50 with a GPU and r3d_tiny without.
        options: Options of the backbone, such as `{padding: symmetric}`.
        head_hidden: Width of the projection heads' hidden layers.
        head_layers: Hidden layers of a projection head.
        head_out: Size of an embedding.
        weights: Start from these weights (backbone, and heads where they fit) instead of random ones.
    """

    backbone: str = "auto"
    options: dict[str, Any] = field(default_factory=dict)
    head_hidden: int = 2048
    head_layers: int = 3
    head_out: int = 128
    weights: Path | None = None


@dataclass
class ObjectiveConfig:
    """How finely the features resolve time.

    Args:
        alpha: Weight of the fine-grained loss: 0 is TeG-PS (persistent), 0.9 the paper's TeG-FG (Eq. 3).
        num_short: n, embeddings of the short clip in the fine-grained loss.
        num_long: m, embeddings of the long clip in the fine-grained loss.
        temperature: τ of all losses.
        same_video_negatives: Contrast against other times of the same video, too (not in Eq. 1).
        symmetric: Average both directions (not in Eq. 1).
        levels: Any list of granularity levels instead of the two of `alpha`.
    """

    alpha: float = 0.9
    num_short: int = 1
    num_long: int = 4
    temperature: float = 0.1
    same_video_negatives: bool = False
    symmetric: bool = False
    levels: list[Level] | None = None

    def resolved_levels(self) -> tuple[Level, ...]:
        """The levels to train, weights of 0 left out."""
        if self.levels is not None:
            return tuple(level for level in self.levels if level.weight > 0)
        return tuple(
            Level(**{**level.__dict__, "same_video_negatives": self.same_video_negatives, "symmetric": self.symmetric})
            for level in levels_for_alpha(self.alpha, self.num_short, self.num_long)
        )


@dataclass
class TrainingConfig:
    """How long, on what, and where the results go.

    Args:
        out: Folder of the run; the same command again continues it. By default one under `runs`.
        epochs: Passes over the videos. Not used when `steps` is given.
        steps: Optimiser steps, instead of `epochs`.
        warmup_epochs: Length of the linear warm-up, in epochs.
        warmup_steps: Length of the linear warm-up in steps, instead of `warmup_epochs`.
        seed: Of the weights, the order, the clips and the augmentation.
        accelerator: auto, cpu, cuda or mps.
        devices: Processes per machine, one device each.
        num_nodes: Machines.
        precision: 32-true, bf16-mixed or 16-mixed; scores and softmax stay in float32.
        accumulate: Batches per optimiser step. Negatives come from one batch: this is not a larger contrastive batch.
        sync_batchnorm: Batch statistics over all processes, as the reference does; without effect
            on one process and on CPUs, where PyTorch has no such statistics.
        channels_last: Channels-last memory layout, faster on most GPUs.
        compile: Compile the network with torch.compile.
        checkpoint_minutes: Time between checkpoints.
        checkpoint_every_steps: Steps between checkpoints, instead of `checkpoint_minutes`.
        keep_every_epochs: Also keep a checkpoint for good every so many epochs; 0 keeps none.
        log_every_steps: Steps between lines of metrics.csv.
        tensorboard: Write TensorBoard event files.
        wandb: Log to this Weights & Biases project (needs the extra `wandb`).
        restart: Begin anew even if `out` holds a run; what it held is moved aside.
    """

    out: Path | None = None
    epochs: int = 100
    steps: int | None = None
    warmup_epochs: float = 5.0
    warmup_steps: int | None = None
    seed: int = 0
    accelerator: str = "auto"
    devices: int = 1
    num_nodes: int = 1
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    accumulate: int = 1
    sync_batchnorm: bool = True
    channels_last: bool = False
    compile: bool = False
    checkpoint_minutes: float = 10.0
    checkpoint_every_steps: int | None = None
    keep_every_epochs: int = 0
    log_every_steps: int = 10
    tensorboard: bool = True
    wandb: str | None = None
    restart: bool = False

    def __post_init__(self) -> None:
        at_least_one = ("epochs", "steps", "devices", "num_nodes", "accumulate", "checkpoint_every_steps")
        at_least_zero = ("warmup_epochs", "warmup_steps", "seed", "checkpoint_minutes", "keep_every_epochs")
        check_smallest(
            self, "run", dict.fromkeys((*at_least_one, "log_every_steps"), 1) | dict.fromkeys(at_least_zero, 0)
        )


@dataclass
class RunConfig(TrainingConfig):
    """How long, on what, where to, and how the features are watched on the way.

    Args:
        monitor_every_epochs: Epochs between looks at the features (kNN where there are labels, else retrieval of the
            same video); 0 never looks. The best checkpoint by it is kept as best.ckpt, to take weights from.
        monitor_videos: Videos that the monitor uses at most.
    """

    monitor_every_epochs: int = 10
    monitor_videos: int = 256
