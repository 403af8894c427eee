"""One job of the demo: train (or not), take features of a world's videos, evaluate them. Runs in a process of its own."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from timegrain.aggregation import aggregate, time_step_positions
from timegrain.data.clips import VideoClips
from timegrain.data.frame_cache import FrameCache
from timegrain.data.manifest import Manifest, VideoRow
from timegrain.data.transforms import AugmentConfig, center_view, to_model_input
from timegrain.files import atomic_path
from timegrain.losses import Level
from timegrain.models.hub import EncoderConfig, VideoEncoder, load_encoder, save_weights
from timegrain.optim import OptimConfig
from timegrain.sampling import ClipSpec
from timegrain.tasks.config import DataConfig, ModelConfig, ObjectiveConfig, RunConfig
from timegrain.tasks.eventworld_eval import FeatureSet, LabelledEvent, evaluate
from timegrain.tasks.supervised import train_supervised

LONG, SHORT = ClipSpec(16, 4), ClipSpec(8, 2)
CROP, BATCH = 24, 32
# In pictures of 24 pixels a stem that halves them leaves the blocks too little to begin with. With it, and at a temperature
# of 0.1, many runs stand still for a third of their steps (docs/reproduction.md, "What seeds decided").
NETWORK = {"stem_spatial_stride": 1}
TEMPERATURE = 0.2
FEATURE_STRIDE = 2  # source frames between the frames that features are taken from
PIXELS = 8  # side of the pictures of the raw-pixel floor
OPTIM = OptimConfig(name="adamw", learning_rate=2e-3, weight_decay=1e-4)
# No flips and no turning of colours: a posture's direction is what an event is, and the videos are grey.
AUGMENT = AugmentConfig(
    crop_area=(0.5, 1.0),
    crop_aspect=(0.8, 1.25),
    flip_probability=0.0,
    brightness=0.4,
    contrast=0.4,
    saturation=0.0,
    hue=0.0,
    grayscale_probability=0.0,
    blur_probability=(0.0, 0.0),
    solarize_probability=(0.0, 0.0),
)


PYRAMID = (
    Level(1, 1, 0.25, "persistent"),
    Level(1, 2, 0.25),
    Level(1, 4, 0.25),
    Level(2, 8, 0.25),
)  # every granularity at once, each of the same weight
NUM_EXAMPLES = 6  # test videos whose features are kept for pictures


@dataclass(frozen=True)
class Job:
    """What to do.

    Args:
        name: Of the method, as the tables show it.
        kind: ``teg``, ``pyramid``, ``supervised_inside``, ``supervised_video``, ``random`` or ``pixels``.
        world: Folder of the world, with the splits ``train`` and ``test``.
        out: Folder of the job.
        seed: Of weights and data order.
        steps: Training steps.
        alpha: For ``teg``.
    """

    name: str
    kind: str
    world: Path
    out: Path
    seed: int
    steps: int = 0
    alpha: float = 0.0


@dataclass(frozen=True)
class Example:
    """What a method makes of one test video, for pictures.

    Args:
        features: (steps, D).
        timestamps_seconds: (steps,).
        probabilities: (steps,), of a boundary.
        detections_seconds: Boundaries found.
    """

    features: np.ndarray
    timestamps_seconds: np.ndarray
    probabilities: np.ndarray
    detections_seconds: np.ndarray


@dataclass(frozen=True)
class Done:
    """What came of it.

    Args:
        job: Which job.
        scores: As :func:`timegrain.tasks.eventworld_eval.evaluate` names them.
        seconds: Of training, and of features with probes.
        examples: The first test videos.
    """

    job: Job
    scores: dict[str, float]
    seconds: dict[str, float]
    examples: list[Example] = field(default_factory=list)

    def save(self) -> None:
        """Keep it in the job's folder, so that the same demo again need not do the job again."""
        record = {"job": _record(self.job), "scores": self.scores, "seconds": self.seconds}
        arrays = {
            f"{field.name}_{number}": getattr(example, field.name)
            for number, example in enumerate(self.examples)
            for field in dataclasses.fields(Example)
        }
        with atomic_path(self.job.out / "result.npz") as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, record=json.dumps(record), **arrays)

    @classmethod
    def load(cls, job: Job) -> Done | None:
        """The result of the same job in the same folder, None if there is none."""
        path = job.out / "result.npz"
        if not path.exists():
            return None
        with np.load(path, allow_pickle=False) as file:
            record = json.loads(str(file["record"]))
            if record["job"] != _record(job):
                return None
            names = [field.name for field in dataclasses.fields(Example)]
            count = sum(key.startswith(names[0]) for key in file)
            examples = [Example(*(file[f"{name}_{number}"] for name in names)) for number in range(count)]
        return cls(job, record["scores"], record["seconds"], examples)


def _record(job: Job) -> dict[str, Any]:
    """A job and its recipe as JSON holds them; folders may move. Another recipe's result is none of this job's."""
    known = {name: value for name, value in dataclasses.asdict(job).items() if name not in ("world", "out")}
    return {**known, "network": NETWORK, "temperature": TEMPERATURE}


def run_job(job: Job) -> Done:
    """Do one job, or take what is known of it; everything it prints goes to ``log.txt`` in its folder."""
    known = Done.load(job)
    if known is not None:
        return known
    job.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    with (job.out / "log.txt").open("a") as log, contextlib.redirect_stderr(log), contextlib.redirect_stdout(log):
        started = time.perf_counter()
        encoder = _encoder(job)
        trained = time.perf_counter()
        train, test = (world_features(job.world, split, encoder) for split in ("train", "test"))
        found = evaluate(train, test)
        finished = time.perf_counter()
    examples = [
        Example(
            test.features[i], test.timestamps_seconds[i], found.probabilities[i], np.array(found.detections_seconds[i])
        )
        for i in range(min(NUM_EXAMPLES, len(test.features)))
    ]
    seconds = {"training": trained - started, "features and probes": finished - trained}
    done = Done(job, found.scores, seconds, examples)
    done.save()
    return done


def _encoder(job: Job) -> VideoEncoder | None:
    """The encoder to evaluate; None stands for raw pixels."""
    if job.kind == "pixels":
        return None
    if job.kind == "random":
        torch.manual_seed(job.seed)
        return VideoEncoder(_config()).eval()
    weights = job.out / "weights.safetensors"
    if job.kind in ("teg", "pyramid"):
        from timegrain.tasks.pretrain import pretrain

        pretrain(
            data=DataConfig(
                manifest=job.world / "manifest.parquet",
                long_frames=LONG.num_frames,
                long_stride=LONG.stride,
                short_frames=SHORT.num_frames,
                short_stride=SHORT.stride,
                crop_size=CROP,
                batch_size=BATCH,
                workers=0,
                cache=True,
                cache_folder=job.world / "frames",
            ),
            model=ModelConfig(backbone="r3d_tiny", options=NETWORK, head_hidden=96, head_layers=2, head_out=64),
            objective=ObjectiveConfig(
                levels=list(PYRAMID) if job.kind == "pyramid" else None,
                alpha=job.alpha if job.kind == "teg" else None,
                temperature=TEMPERATURE,
            ),
            augment=AUGMENT,
            optim=OPTIM,
            run=RunConfig(
                out=job.out,
                steps=job.steps,
                warmup_steps=job.steps // 20,
                seed=job.seed,
                accelerator="cpu",
                monitor_every_epochs=0,
                tensorboard=False,
            ),
        )
    elif not weights.exists():
        save_weights(_supervised(job), weights)
    return load_encoder(weights).eval()


def _config() -> EncoderConfig:
    return EncoderConfig(
        backbone="r3d_tiny",
        backbone_options=NETWORK,
        heads=(),
        clip_num_frames=LONG.num_frames,
        clip_stride=LONG.stride,
        crop_size=CROP,
    )


def _supervised(job: Job) -> VideoEncoder:
    """The ceiling: the same backbone, data, augmentation and steps, with labels."""
    manifest = Manifest.open(job.world / "manifest.parquet").select(split="train")
    cache = FrameCache.build(manifest, job.world / "frames")
    clips = VideoClips(manifest, (LONG, SHORT), crop_size=CROP, augment=AUGMENT, seed=job.seed, cache=cache)
    rows = list(manifest)
    if job.kind == "supervised_video":
        classes = list(manifest.class_names)
        of_video = torch.tensor([classes.index(str(row.label)) for row in rows])

        def targets(index: Tensor, positions: Tensor, num_steps: int) -> Tensor:
            return of_video[index]
    else:
        classes = sorted({event.label for row in rows for event in events_of(row)})
        # the class of every source frame of every video, looped videos included by their remainder
        of_frame = [torch.tensor([classes.index(label) for label in _labels_by_frame(row)]) for row in rows]

        def targets(index: Tensor, positions: Tensor, num_steps: int) -> Tensor:
            steps = time_step_positions(positions, num_steps).round().long()
            return torch.stack([of_frame[i][p % len(of_frame[i])] for i, p in zip(index.tolist(), steps, strict=True)])

    return train_supervised(
        clips, _config(), len(classes), targets, steps=job.steps, batch_size=BATCH, optim=OPTIM, seed=job.seed
    )


def events_of(row: VideoRow) -> list[LabelledEvent]:
    """The events of a video of the world, labelled by posture."""
    return [LabelledEvent(e["start_seconds"], e["end_seconds"], e["posture"]) for e in row.extra["events"]]


def _labels_by_frame(row: VideoRow) -> list[str]:
    events = events_of(row)
    times = np.arange(row.num_frames) / row.fps
    starts = np.array([event.start_seconds for event in events])
    return [events[i].label for i in np.searchsorted(starts, times + 1e-6) - 1]


def world_features(world: Path, split: str, encoder: VideoEncoder | None) -> FeatureSet:
    """Features of every video of one split of a world, at every time step of one dense pass.

    Args:
        world: Folder of the world.
        split: Which of its videos.
        encoder: Whose features; None gives raw pixels, 8 x 8 grey pictures, two frames averaged.
    """
    manifest = Manifest.open(world / "manifest.parquet").select(split=split)
    cache = FrameCache.build(manifest, world / "frames")
    rows = list(manifest)
    features, times = [], []
    with torch.inference_mode():
        for first in range(0, len(rows), 8):
            some = rows[first : first + 8]
            indices = np.arange(0, some[0].num_frames, FEATURE_STRIDE)
            frames = [cache.frames(first + i, indices) for i in range(len(some))]
            if encoder is None:
                pixels = torch.stack([center_view(clip, PIXELS)[:, 0] for clip in frames])
                # pairs of frames as one step, so that the floor sees as many moments as the network gives
                batch = aggregate(pixels.flatten(2).double(), len(indices) // 2)
                positions = time_step_positions(torch.from_numpy(indices)[None], batch.shape[1])[0]
            else:
                clips = torch.stack([center_view(clip, CROP) for clip in frames])
                batch = encoder(to_model_input(clips)).double()
                positions = time_step_positions(torch.from_numpy(indices)[None], batch.shape[1])[0]
            features += list(batch.numpy())
            times += [positions.numpy() / row.fps for row in some]
    return FeatureSet(
        features,
        times,
        [events_of(row) for row in rows],
        [list(row.extra["boundaries_seconds"]) for row in rows],
        [row.duration_seconds for row in rows],
        [str(row.label) for row in rows],
    )


def quiet_process() -> None:
    """Start of a worker process: one thread, no bars; the demo shows its own."""
    os.environ["TQDM_DISABLE"] = "1"
    os.environ["OMP_NUM_THREADS"] = "1"


def plain(done: Done) -> dict[str, Any]:
    """A job's result for ``results.json``."""
    job = done.job
    return {"name": job.name, "seed": job.seed, "steps": job.steps, **done.scores, "seconds": done.seconds}
