"""Boundaries of a manifest's videos, and the windows around candidates that a detector is trained on.

A manifest with the column ``boundaries_seconds`` will do: that of ``timegrain prepare gebd``, which also has every
annotator's boundaries, and that of ``timegrain eventworld``, whose one list counts as one annotator of full consistency.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from timegrain.boundaries import TOLERANCE_SECONDS, near_boundary
from timegrain.data.benchmarks.joining import youtube_clip
from timegrain.data.labelled_clips import Sample
from timegrain.data.loading import EpochBatchSampler, Key
from timegrain.data.location import file_name, shown
from timegrain.data.manifest import Manifest
from timegrain.data.transforms import center_view, resize_crop
from timegrain.metrics.boundary_f1 import BoundaryVideo
from timegrain.sampling import ClipSpec, centred_clip

Picture = Literal["squash", "centre"]
Value = TypeVar("Value")


def benchmark_id(video_id: str | None, path: str) -> str:
    """What a benchmark calls a video: its id, else the YouTube id that its file is named after, else the file's name."""
    stem = Path(file_name(path)).stem
    clip = youtube_clip(stem)
    return video_id or (clip[0] if clip is not None else stem)


@dataclass(frozen=True)
class BoundaryTruth:
    """What is known of V videos.

    Attributes:
        manifest: The videos, in this order.
        ids: What the benchmark calls them.
        names: What belongs together: a video's group, else its id.
        boundaries: Per video (K,) seconds ascending, of the annotator who agrees best with the others; for training.
        annotations: Per video the boundaries of every annotator, in their order; for scores.
        consistency: Per video, ``f1_consis_avg``.
        annotator_consistency: Per video, one number per annotator.
    """

    manifest: Manifest
    ids: tuple[str, ...]
    names: tuple[str, ...]
    boundaries: tuple[npt.NDArray[np.float64], ...]
    annotations: tuple[tuple[tuple[float, ...], ...], ...]
    consistency: tuple[float, ...]
    annotator_consistency: tuple[tuple[float, ...], ...]

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def of(cls, manifest: Manifest) -> BoundaryTruth:
        """Read the columns of a manifest.

        Raises:
            ValueError: There are no boundaries, a value is not as expected, or two videos share an id.
        """
        columns = manifest.column_names
        where = str(manifest.path or "the manifest")
        if "boundaries_seconds" not in columns:
            raise ValueError(
                f"{where} has no column boundaries_seconds, so there is nothing to learn or to score. `timegrain prepare "
                "gebd` makes such a manifest from Kinetics-GEBD's files, `timegrain eventworld` generates one"
            )
        paths = manifest.column("path").to_pylist()
        given = manifest.column("video_id").to_pylist() if "video_id" in columns else [None] * len(paths)
        ids = [benchmark_id(video_id, path) for video_id, path in zip(given, paths, strict=True)]
        _check_distinct(ids, paths)
        groups = manifest.column("group").to_pylist()
        own = manifest.column("boundaries_seconds").to_pylist()
        everyone = manifest.column("annotations_seconds").to_pylist() if "annotations_seconds" in columns else own
        means = manifest.column("f1_consis_avg").to_pylist() if "f1_consis_avg" in columns else [1.0] * len(paths)
        each = manifest.column("f1_consis").to_pylist() if "f1_consis" in columns else [None] * len(paths)
        boundaries, annotations = [], []
        for row, path in enumerate(paths):
            at = f"{where}, video {path}"
            boundaries.append(np.sort(np.array(_seconds(own[row], at), np.float64)))
            lists = everyone[row] if everyone is not own else [own[row]]
            annotations.append(tuple(tuple(_seconds(times, at)) for times in lists or [own[row]]))
        return cls(
            manifest,
            tuple(ids),
            tuple(str(group or key) for group, key in zip(groups, ids, strict=True)),
            tuple(boundaries),
            tuple(annotations),
            tuple(1.0 if value is None else float(value) for value in means),
            tuple(
                tuple(float(value) for value in values) if values else (1.0,) * len(lists)
                for values, lists in zip(each, annotations, strict=True)
            ),
        )

    def select(self, chosen: npt.NDArray[np.bool_]) -> BoundaryTruth:
        """Some of the videos: (V,) True for those kept.

        Raises:
            ValueError: None is kept.
        """
        rows = np.flatnonzero(chosen).tolist()

        def kept(values: tuple[Value, ...]) -> tuple[Value, ...]:
            return tuple(values[row] for row in rows)

        return BoundaryTruth(
            self.manifest.take(rows),
            kept(self.ids),
            kept(self.names),
            kept(self.boundaries),
            kept(self.annotations),
            kept(self.consistency),
            kept(self.annotator_consistency),
        )

    def videos(self) -> dict[str, BoundaryVideo]:
        """The ground truth by id, in seconds, as the scores take it."""
        durations = self.manifest.column("duration_seconds").to_pylist()
        return {
            key: BoundaryVideo(float(duration), float(duration), lists, consistency)
            for key, duration, lists, consistency in zip(
                self.ids, durations, self.annotations, self.consistency, strict=True
            )
        }

    def records(self) -> dict[str, dict[str, Any]]:
        """The ground truth in the layout of ``k400_mr345_*.pkl``, which ``timegrain score gebd`` reads."""
        records = {}
        for key, row, lists, mean, each in zip(
            self.ids, self.manifest, self.annotations, self.consistency, self.annotator_consistency, strict=True
        ):
            last = row.num_frames - 1
            records[key] = {
                "num_frames": row.num_frames,
                "path_video": shown(row.path),
                "fps": row.fps,
                "video_duration": row.duration_seconds,
                "path_frame": str(Path(shown(row.path)).with_suffix("")),
                "f1_consis": list(each),
                "f1_consis_avg": mean,
                "substages_myframeidx": [[float(min(last, math.floor(t * row.fps))) for t in times] for times in lists],
                "substages_timestamps": [list(times) for times in lists],
            }
        return records


def _check_distinct(ids: list[str], paths: list[str]) -> None:
    seen: dict[str, str] = {}
    for key, path in zip(ids, paths, strict=True):
        if key in seen:
            raise ValueError(
                f"two videos have the id {key!r}: {shown(seen[key])} and {shown(path)}; choose one split of the manifest"
            )
        seen[key] = path


def _seconds(values: Any, at: str) -> list[float]:
    if values is None:
        raise ValueError(f"{at}: boundaries_seconds is empty; a video without boundaries has an empty list")
    times = [float(value) if value is not None else math.nan for value in values]
    if not all(math.isfinite(time) and time >= 0 for time in times):
        raise ValueError(f"{at}: {values!r:.80} are not times in seconds")
    return times


class CandidateSampler(EpochBatchSampler):
    """Batches of candidates, half of them near a boundary; the order depends only on (seed, epoch).

    Every ``every``-th frame of a video is a candidate, from a start that each epoch draws for each video. A batch is
    half positives and half negatives, each drawn without repetition within an epoch. The number of batches is that of
    the mean over all starts, so that every epoch has as many; one that has a few candidates fewer begins them anew.
    Keys are (epoch, place): the place is the frame's number when all videos are laid end to end.

    Args:
        truth: The videos.
        every: Frames from one candidate to the next.
        batch_size: Candidates per batch and process, even.
        tolerance_seconds: How near to a boundary a positive is.
        random_start: Off: candidates start at frame 0 in every epoch.
        seed: Of the run.
        rank: This process's number.
        world_size: Number of processes.

    Raises:
        ValueError: The batch is odd, or there are not enough candidates of one kind to fill one.
    """

    def __init__(
        self,
        truth: BoundaryTruth,
        every: int,
        batch_size: int,
        tolerance_seconds: float = TOLERANCE_SECONDS,
        random_start: bool = True,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if batch_size < 2 or batch_size % 2:
            raise ValueError(f"half a batch is positives: the batch size must be even, got {batch_size}")
        if every < 1:
            raise ValueError(f"every must be at least 1 frame, got {every}")
        lengths = np.array(truth.manifest.column("num_frames").to_pylist(), np.int64)
        rates = truth.manifest.column("fps").to_pylist()
        self.offsets = np.concatenate([[0], np.cumsum(lengths)])
        self.every, self.random_start = every, random_start
        self.is_near = np.concatenate(
            [
                near_boundary(np.arange(length) / rate, boundaries, tolerance_seconds)
                for length, rate, boundaries in zip(lengths, rates, truth.boundaries, strict=True)
            ]
        )
        grid = self.is_near if random_start else self.is_near[self._candidates(0)]
        per_epoch = len(grid) // every if random_start else len(grid)
        half = batch_size // 2 * world_size
        positives = int(grid.sum()) // every if random_start else int(grid.sum())
        for kind, count in (("near a boundary", positives), ("away from all boundaries", per_epoch - positives)):
            if count < half:
                raise ValueError(
                    f"{count} candidates a pass are {kind} in {len(truth)} videos, too few for half a batch of "
                    f"{batch_size}; use a smaller batch size, or more videos"
                )
        self.num_batches = positives // half
        super().__init__(2 * positives, batch_size, seed, rank, world_size)

    def __len__(self) -> int:
        return self.num_batches

    def place(self, key: int) -> tuple[int, int]:
        """The video's row and the frame that a place stands for."""
        video = int(np.searchsorted(self.offsets, key, side="right")) - 1
        return video, key - int(self.offsets[video])

    def _candidates(self, epoch: int) -> npt.NDArray[np.int64]:
        """Places of all candidates of an epoch, ascending."""
        rng = np.random.default_rng([self.seed if self.random_start else 0, epoch, 1])
        videos = len(self.offsets) - 1
        starts = rng.integers(self.every, size=videos) if self.random_start else np.zeros(videos, np.int64)
        begins, ends = self.offsets[:-1], self.offsets[1:]
        return np.concatenate(
            [np.arange(b + s, e, self.every) for b, e, s in zip(begins, ends, starts, strict=True)]
        ).astype(np.int64)

    def __iter__(self) -> Iterator[list[Key]]:
        candidates = self._candidates(self.epoch)
        near = self.is_near[candidates]
        rng = np.random.default_rng([self.seed, self.epoch, 0])
        half = self.batch_size // 2
        wanted = len(self) * self.world_size * half
        halves = []
        for part in (candidates[near], candidates[~near]):
            order = np.resize(rng.permutation(part), wanted)
            halves.append(order.reshape(len(self), self.world_size, half)[:, self.rank])
        for batch in np.concatenate(halves, 1)[self.start :]:
            yield [(self.epoch, int(place)) for place in batch]


def picture(frames: Tensor, size: int, how: Picture) -> Tensor:
    """Frames uint8 (T, C, H, W) as squares: the whole picture squashed, or the square in its middle."""
    if how == "squash":
        return resize_crop(frames, None, size, rounding="nearest")
    return center_view(frames, size, rounding="nearest")


@dataclass(frozen=True)
class AroundCandidates:
    """The windows that a :class:`CandidateSampler`'s places stand for, for `timegrain.data.labelled_clips.LabelledClips`.

    Args:
        manifest: The sampler's videos.
        sampler: Knows where a place is, and what is near a boundary.
        window: Shape of a window.
    """

    manifest: Manifest
    sampler: CandidateSampler
    window: ClipSpec

    def __call__(self, place: int, rng: np.random.Generator) -> Sample:
        """The window around a place; the target is 1 near a boundary, else 0. Draws nothing."""
        video, frame = self.sampler.place(place)
        frames = centred_clip(self.manifest[video].num_frames, self.window, frame)
        return Sample(video, frames, torch.tensor(int(self.sampler.is_near[place])))
