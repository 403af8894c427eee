"""What ``timegrain boundaries`` can be told: one small dataclass per room, shown by its ``--help``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from timegrain.boundaries import GAP_SECONDS, TOLERANCE_SECONDS
from timegrain.boundary_layout import Mode
from timegrain.models.boundary_heads import Pooling
from timegrain.tasks.config import check_smallest


@dataclass
class BoundaryDataConfig:
    """Which videos, and which windows of them.

    Args:
        manifest: Made by `timegrain prepare gebd` or `timegrain eventworld`.
        split: Rows to train on.
        held_out: Share of the training videos set aside, by video, to choose rule and threshold on.
        num_frames: Frames of a window; null is the weights' clip, 16 without weights, 10 for method pc.
        stride: Source frames from one to the next; null is the weights', 4 without weights, 3 for methods on frames.
        every: Source frames from one candidate to the next.
        tolerance_seconds: A candidate this near to a boundary is a positive example.
        random_start: Begin each video's candidates at another frame in every epoch; not with frozen features, which
            are computed once.
        crop_size: Height and width in pixels; null is the weights', else 224 (112 for small backbones).
        picture: squash shows all of the picture as a square, centre the square in its middle.
        batch_size: Windows per step and process, half of them positive; videos for methods tcn and bmn.
        workers: Processes that decode; null is one per free core, 0 decodes in the training process.
        cache: Decode every training video once and keep the frames, uncompressed, on disk: for small data sets.
        cache_folder: Where frames and frozen features are kept; by default in the run's folder.
        max_failure_share: Stop when more than this share of the videos failed to decode during training.
    """

    manifest: Path | None = None
    split: str = "train"
    held_out: float = 0.1
    num_frames: int | None = None
    stride: int | None = None
    every: int = 3
    tolerance_seconds: float = TOLERANCE_SECONDS
    random_start: bool = True
    crop_size: int | None = None
    picture: Literal["squash", "centre"] = "squash"
    batch_size: int = 32
    workers: int | None = None
    cache: bool = False
    cache_folder: Path | None = None
    max_failure_share: float = 0.01

    def __post_init__(self) -> None:
        sizes = dict.fromkeys(("num_frames", "stride", "every", "crop_size", "batch_size"), 1)
        check_smallest(self, "data", sizes | dict.fromkeys(("tolerance_seconds", "workers", "max_failure_share"), 0))


@dataclass
class DetectorConfig:
    """Which network.

    Args:
        backbone: Of clips: r3d50 (the paper's), r3d18, r3d_tiny, …; of frames: resnet50 (torchvision's), pixels (8 x 8
            colours, a floor). auto is the weights', else r3d50 with a GPU and r3d_tiny without.
        options: Options of the backbone, such as `{padding: symmetric}`.
        weights: Start the backbone from these weights instead of random ones: a TimeGrain file or run, or for resnet50
            torchvision's file. Nothing is downloaded.
        pooling: How a window's time steps become one vector: mean; centre (the middle steps); halves (before and after,
            the PC baseline's); change (the mean, and how the halves differ). null is change, and halves for pc.
        head: Options of the network of tcn (width, num_layers, dropout) and bmn (num_moments, width, num_samples).
    """

    backbone: str = "auto"
    options: dict[str, Any] = field(default_factory=dict)
    weights: Path | None = None
    pooling: Pooling | None = None
    head: dict[str, Any] = field(default_factory=dict)


@dataclass
class PickingConfig:
    """How scores become boundaries; the threshold is always chosen on the videos set aside.

    Args:
        rule: runs (the benchmark's: the middle of each run of scores above the threshold), peaks (local maxima above
            it), or auto: whichever does better on the videos set aside.
        gap_seconds: Of two peaks nearer than this the lower is dropped.
    """

    rule: Literal["auto", "runs", "peaks"] = "auto"
    gap_seconds: float = GAP_SECONDS

    def __post_init__(self) -> None:  # here, because boundaries are picked after the training
        check_smallest(self, "picking", {"gap_seconds": 0})


@dataclass
class DecayConfig:
    """How the learning rate falls.

    Args:
        every_epochs: It is multiplied by `factor` every so many epochs; 0 keeps it.
        factor: See `every_epochs`.
    """

    every_epochs: int = 10
    factor: float = 0.1

    def __post_init__(self) -> None:
        check_smallest(self, "decay", {"every_epochs": 0, "factor": 0})


@dataclass
class BoundaryEvaluationConfig:
    """How videos are scored.

    Args:
        split: Rows to score; null is the first of val, valnew, test that the manifest has, none scores nothing.
        mode: windows sends every window through the backbone, as in training; dense goes over long chunks once and
            shares the work between windows (another function near a window's ends: see docs/benchmarks.md).
        every: Source frames from one candidate to the next; null is the training's.
        batch_size: Windows that go through the backbone at once.
        video_floors: Also score a change detector and PySceneDetect on the videos.
    """

    split: str | None = None
    mode: Mode = "windows"
    every: int | None = None
    batch_size: int = 16
    video_floors: bool = True

    def __post_init__(self) -> None:  # here, because videos are scored after the training
        check_smallest(self, "evaluation", {"every": 1, "batch_size": 1})
