"""What training on labelled videos can be told: rooms of finetune, probe linear, attentive and vidsitu."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from timegrain.data.transforms import Rounding
from timegrain.tasks.config import check_smallest


@dataclass
class LabelledDataConfig:
    """Which videos, and which clips of them.

    Args:
        manifest: Videos with labels, from `timegrain manifest scan` or `timegrain prepare`.
        split_train: Split to learn from.
        split_test: Split to score; by default `test` where the manifest has one, else `val`.
        num_frames: Frames of a clip; by default those of the weights' long clip, without weights 32.
        stride: Source frames from one to the next; by default that of the weights, without weights 2.
        crop_size: Height and width of the training clips in pixels; by default that of the weights, without weights 224,
            and 112 for the small backbones.
        batch_size: Clips per step and process.
        workers: Processes that decode; null is one per free core, 0 decodes in the training process.
        cache: Decode every training video once and keep the frames, uncompressed, on disk: for small data sets.
        cache_folder: Where they are kept; by default in the run's folder. Runs on the same videos can share it.
        max_failure_share: Stop when more than this share of the videos failed to decode during training.
    """

    manifest: Path | None = None
    split_train: str = "train"
    split_test: str | None = None
    num_frames: int | None = None
    stride: int | None = None
    crop_size: int | None = None
    batch_size: int = 32
    workers: int | None = None
    cache: bool = False
    cache_folder: Path | None = None
    max_failure_share: float = 0.01

    def __post_init__(self) -> None:
        check_smallest(
            self, "data",
            {"num_frames": 1, "stride": 1, "crop_size": 1, "batch_size": 1, "workers": 0, "max_failure_share": 0},
        )  # fmt: skip


@dataclass
class EventData:
    """Which events, and how they are seen.

    Args:
        manifest: From `timegrain prepare vidsitu`, or from `timegrain eventworld` with five events a video.
        split_train: Rows to learn from.
        split_test: Rows to score; only the validation split's verbs are published.
        num_frames: Frames of an event's clip; by default those of the weights' long clip, without weights 16.
        stride: Source frames from one to the next; by default that of the weights, without weights 4.
        crop_size: In pixels; by default that of the weights, without weights 224.
        num_crops: Crops of a test clip along the longer side, 1 or 3.
        batch_size: Events per step and process; in a test, clips that go through the network at once.
        workers: Processes that decode; null is one fewer than there are cores, 0 decodes in the main process.
        max_failure_share: Stop when more than this share of the videos failed to decode during training.
    """

    manifest: Path
    split_train: str = "train"
    split_test: str = "val"
    num_frames: int | None = None
    stride: int | None = None
    crop_size: int | None = None
    num_crops: Literal[1, 3] = 1
    batch_size: int = 16
    workers: int | None = None
    max_failure_share: float = 0.01

    def __post_init__(self) -> None:
        sizes = dict.fromkeys(("num_frames", "stride", "crop_size", "batch_size"), 1)
        check_smallest(self, "data", sizes | {"workers": 0, "max_failure_share": 0})


@dataclass
class BackboneConfig:
    """Which network to train from scratch; with weights it is theirs.

    Args:
        backbone: A name that `timegrain model-info --help` lists; auto is r3d50 with a GPU and r3d_tiny without.
        options: Options of the backbone, such as `{padding: symmetric}`.
    """

    backbone: str = "auto"
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class ClassifierConfig:
    """What stands on the features.

    Args:
        normalise: Divide a clip's feature by its length before the linear layer.
        dropout: Share of features set to 0 while training.
        num_blocks: Blocks of self-attention before the query of an attentive probe.
        num_heads: Heads of an attentive probe's attention.
        random_weights: How many random initialisations of the same network are probed beside the weights, on the same
            clips: a floor for frozen features. Each costs as much as the weights themselves.
    """

    normalise: bool = False
    dropout: float = 0.0
    num_blocks: int = 3
    num_heads: int = 16
    random_weights: int = 1

    def __post_init__(self) -> None:
        check_smallest(self, "classifier", {"num_blocks": 0, "num_heads": 1, "random_weights": 0})


@dataclass
class EvaluationConfig:
    """How the test videos are seen: every one is decoded once; softmax is averaged over its views.

    Args:
        num_clips: Clips per video, evenly spaced.
        num_crops: Crops per clip along the longer side, 1 (the middle) or 3.
        crop_size: The shorter side, and the crops' height and width; by default 8/7 of the training crop (256 for 224).
        rounding: How resized pixels become whole numbers; truncate is the reference's, nearest is quicker.
        batch_size: Views that go through the network at once.
    """

    num_clips: int = 10
    num_crops: Literal[1, 3] = 3
    crop_size: int | None = None
    rounding: Rounding = "truncate"
    batch_size: int = 8

    def __post_init__(self) -> None:  # here, because a test comes after the training
        check_smallest(self, "test", {"num_clips": 1, "crop_size": 1, "batch_size": 1})
