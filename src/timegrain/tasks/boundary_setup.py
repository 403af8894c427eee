"""From settings to the parts of a boundary detector's training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning import Trainer
from torch.utils.data import Dataset

from timegrain.boundaries import held_out
from timegrain.boundary_features import FeatureStore, StoredStretches, StoredWindows
from timegrain.callbacks import FailedVideos
from timegrain.data.boundaries import AroundCandidates, BoundaryTruth, CandidateSampler
from timegrain.data.clip_dataset import collate
from timegrain.data.frame_cache import FrameCache
from timegrain.data.labelled_clips import LabelledClips
from timegrain.data.loading import EpochBatchSampler, ResumableLoader
from timegrain.data.location import shown
from timegrain.data.manifest import Manifest
from timegrain.data.transforms import AugmentConfig
from timegrain.models.boundary import (
    FRAME_BACKBONES,
    BoundaryConfig,
    BoundaryDetector,
    Method,
    load_frame_weights,
)
from timegrain.models.boundary_heads import BoundaryMatching
from timegrain.models.hub import EncoderConfig, VideoEncoder
from timegrain.models.weights import find_encoder
from timegrain.sampling import ClipSpec
from timegrain.tasks.boundary_config import BoundaryDataConfig, DetectorConfig
from timegrain.tasks.config import TrainingConfig, refuse_ignored
from timegrain.tasks.setup import Schedule, free_workers, is_first_process, length_of

Training = Literal["frozen", "finetune"]
# The whole picture, colours and sides as they are: the PC baseline trains without augmentation.
AS_IT_IS = AugmentConfig(
    crop_sampler="whole", flip_probability=0.0, jitter_probability=0.0, grayscale_probability=0.0,
    blur_probability=(0.0, 0.0), solarize_probability=(0.0, 0.0),
)  # fmt: skip
_TEST_SPLITS = ("val", "valnew", "test")
_STRETCH = 100  # candidates of a stretch of tcn: 10 s at 30 frames a second and every third


def open_manifest(path: Path | None) -> Manifest:
    """The manifest asked for.

    Raises:
        ValueError: None is named.
    """
    if path is None:
        raise ValueError(
            "name the videos: --data.manifest FILE.parquet, from `timegrain prepare gebd` or `timegrain eventworld`"
        )
    return Manifest.open(path)


def choose_split(manifest: Manifest, split: str | None) -> str | None:
    """The split to score: the one asked for, else the first known name; None where there is none."""
    if split == "none":
        return None
    return split or next((name for name in _TEST_SPLITS if name in manifest.splits), None)


def resolve_detector(
    method: Method,
    training: Training,
    data: BoundaryDataConfig,
    model: DetectorConfig,
    augment: AugmentConfig,
    run: TrainingConfig,
) -> tuple[BoundaryConfig, VideoEncoder | None]:
    """Everything left open, from the weights and the method.

    Returns:
        How to build the detector, and the encoder whose backbone it starts from, if any.

    Raises:
        ValueError: The settings contradict each other or the weights.
    """
    if training == "frozen":
        because = "features of a frozen backbone are computed once, from pictures as they are"
        refuse_ignored("augment", augment, vars(augment), because, AS_IT_IS)
    if method in ("tcn", "bmn") and model.pooling is not None:
        raise ValueError(f"--model.pooling is of the methods window and pc; {method} pools nothing")
    source: VideoEncoder | None = None
    known = EncoderConfig()
    backbone, options = model.backbone, dict(model.options)
    on_frames = backbone in FRAME_BACKBONES
    if model.weights is not None and not on_frames:
        source = find_encoder(model.weights)
        known = source.config
        if backbone not in ("auto", known.backbone):
            raise ValueError(f"{model.weights} has the backbone {known.backbone}, not {backbone}")
        backbone, options = known.backbone, {**known.backbone_options, **options}
    elif backbone == "auto":
        gpu = run.accelerator in ("cuda", "gpu") or (run.accelerator == "auto" and torch.cuda.is_available())
        backbone = "r3d50" if gpu else "r3d_tiny"
    if backbone == "pixels" and training == "finetune":
        raise ValueError("pixels have nothing to fine-tune; use --backbone frozen")
    per_frame = on_frames or method == "pc"
    frames, stride = (10, 3) if per_frame else (16, 4) if source is None else (known.clip_num_frames, known.clip_stride)
    small = backbone not in ("r3d50", "resnet50")
    size = known.crop_size if source is not None else 112 if small else 224
    config = BoundaryConfig(
        method=method,
        backbone=backbone,
        backbone_options=options,
        frozen=training == "frozen",
        pooling=model.pooling or ("halves" if method == "pc" else "change"),
        num_frames=data.num_frames or frames,
        stride=data.stride or stride,
        every=data.every,
        crop_size=data.crop_size or size,
        picture=data.picture,
        head=dict(model.head),
        extra={"started_from": _origin(model, source)},
    )
    return config, source


def _origin(model: DetectorConfig, source: VideoEncoder | None) -> dict[str, Any]:
    """What tables should call the features: how the weights were trained."""
    if source is not None:
        return {key: value for key, value in source.config.extra.items() if key in ("objective", "alpha", "levels")}
    return {"objective": "given weights" if model.weights is not None else "random weights"}


def build_detector(config: BoundaryConfig, source: VideoEncoder | None, weights: Path | None) -> BoundaryDetector:
    """The detector with its starting weights; what is frozen is marked so."""
    detector = BoundaryDetector(config)
    if source is not None:
        target = detector.features if config.method != "pc" else detector.features.network
        try:
            target.load_state_dict(source.backbone.state_dict())  # type: ignore[union-attr]
        except RuntimeError as error:
            raise ValueError(f"{weights} does not fit the backbone {config.backbone}: {error}") from error
    elif weights is not None:
        load_frame_weights(detector.features, weights)
    if config.frozen:
        detector.features.requires_grad_(False).eval()
    return detector


def divide(truth: BoundaryTruth, share: float) -> tuple[BoundaryTruth, BoundaryTruth]:
    """Training videos, and those set aside to choose rule and threshold on.

    Raises:
        ValueError: One of the two is empty.
    """
    if not share > 0:
        raise ValueError("--data.held_out must be above 0: rule and threshold are chosen on the videos set aside")
    aside = held_out(truth.names, share)
    if aside.all() or not aside.any():
        raise ValueError(f"{len(truth)} videos of one group cannot be divided; more groups are needed")
    return truth.select(~aside), truth.select(aside)


class Batches:
    """The training data of a detector: what is read, in which order, and how long a run it makes.

    Args:
        config: The detector's.
        truth: Training videos.
        data: Settings; ``workers`` is set.
        augment: How windows are changed, when the backbone is trained.
        run: Settings.
        store: Features of a frozen backbone.
        cache: Decoded frames, when the backbone is trained.
    """

    def __init__(
        self,
        detector: BoundaryDetector,
        truth: BoundaryTruth,
        data: BoundaryDataConfig,
        augment: AugmentConfig,
        run: TrainingConfig,
        store: FeatureStore | None,
        cache: FrameCache | None,
    ) -> None:
        self.data, self.run, self.truth = data, run, truth
        self.config = config = detector.config
        self.dataset: Dataset[dict[str, Any]]
        if config.is_windowed:
            sampler = self.sampler()
            assert isinstance(sampler, CandidateSampler)
            if store is not None:
                self.dataset = StoredWindows(truth, sampler, store)
            else:
                draw = AroundCandidates(truth.manifest, sampler, ClipSpec(config.num_frames, config.stride))
                self.dataset = LabelledClips(
                    truth.manifest, len(sampler.is_near), draw, config.crop_size, augment, run.seed, cache
                )
        else:
            assert store is not None
            is_bmn = isinstance(detector.head, BoundaryMatching)
            length = detector.head.num_moments if isinstance(detector.head, BoundaryMatching) else _STRETCH
            self.dataset = StoredStretches(truth, store, length, data.tolerance_seconds, is_bmn, run.seed)

    def sampler(self, rank: int = 0, world_size: int = 1) -> EpochBatchSampler:
        """The order of the samples for one process."""
        seed, size = self.run.seed, self.data.batch_size
        if not self.config.is_windowed:
            return EpochBatchSampler(len(self.truth), size, seed, rank, world_size)
        moves = self.data.random_start and not self.config.frozen
        return CandidateSampler(
            self.truth, self.data.every, size, self.data.tolerance_seconds, moves, seed, rank, world_size
        )

    def loader(self, trainer: Trainer) -> ResumableLoader:
        """The loader of this process's share of every batch."""
        sampler = self.sampler(trainer.global_rank, trainer.world_size)
        pin = trainer.strategy.root_device.type == "cuda"
        return ResumableLoader(self.dataset, sampler, collate, self.data.workers or 0, pin_memory=pin)

    def schedule(self) -> Schedule:
        """Steps of the whole run."""
        processes = self.run.devices * self.run.num_nodes
        return length_of(self.data.batch_size * processes, len(self.sampler(0, processes)), self.run)


def build_store(
    detector: BoundaryDetector,
    truth: BoundaryTruth,
    folder: Path,
    batch_size: int,
    workers: int,
    failures: FailedVideos,
) -> tuple[FeatureStore, BoundaryTruth]:
    """Features of a frozen backbone, and the videos that have them; the others are written down.

    Raises:
        ValueError: No video has features.
        VideoError: More have none than may.
    """
    paths = [str(path) for path in truth.manifest.column("path").to_pylist()]
    store = FeatureStore.build(detector, paths, folder, batch_size=batch_size, workers=workers)
    lost = dict(store.broken)
    for path, num_frames in zip(paths, truth.manifest.column("num_frames").to_pylist(), strict=True):
        if path not in lost and not store.holds(path, num_frames):
            lost[path] = "it changed since it was scanned, and has other frames: run `timegrain manifest scan` again"
    if is_first_process():
        failures.note([(shown(path), reason) for path, reason in lost.items()], 0)
    if not lost:
        return store, truth
    if len(lost) == len(set(paths)):
        path, reason = next(iter(lost.items()))
        raise ValueError(f"none of the {len(lost)} videos can be used; the first: {shown(path)}: {reason}")
    return store, truth.select(np.array([path not in lost for path in paths], np.bool_))


def with_defaults(data: BoundaryDataConfig) -> BoundaryDataConfig:
    """The settings with the number of workers filled in."""
    return replace(data, workers=free_workers(data.workers))
