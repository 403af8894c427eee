"""The commands ``timegrain floors scenedetect`` and ``timegrain floors change``: boundaries of videos without a model.

Both write predictions that ``timegrain score gebd`` reads. A video that cannot be read has no entry there; it is named
on standard error with the reason, and counted.
"""

from __future__ import annotations

import json as json_module
import pickle
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np

from timegrain.data.boundaries import benchmark_id
from timegrain.data.decoding import open_video
from timegrain.data.journal import VideoJournal
from timegrain.data.location import shown
from timegrain.data.manifest import Manifest
from timegrain.data.probing import TIME_LIMIT_SECONDS, check_work, find_files
from timegrain.files import atomic_path
from timegrain.tasks.change_detection import ChangeDetector, Method, shot_cuts
from timegrain.tasks.printing import coverage_text, report

Unit = Literal["seconds", "frames"]


@dataclass(frozen=True)
class Cuts:
    """Shot cuts of a video; sent to worker processes."""

    threshold: float = 27.0
    min_scene_frames: int = 15
    unit: Unit = "seconds"

    def __call__(self, path: str) -> list[float]:
        """The cuts, in order."""
        cv2.setNumThreads(1)  # the workers share the cores
        frames, seconds = shot_cuts(path, self.threshold, self.min_scene_frames)
        return [float(value) for value in (seconds if self.unit == "seconds" else frames)]


@dataclass(frozen=True)
class Changes:
    """Change boundaries of a video; sent to worker processes."""

    detector: ChangeDetector = field(default_factory=ChangeDetector)
    unit: Unit = "seconds"

    def __call__(self, path: str) -> list[float]:
        """The boundaries, in order."""
        cv2.setNumThreads(1)
        seconds = self.detector.boundaries(path)
        if self.unit == "seconds":
            return [float(value) for value in seconds]
        with open_video(path) as reader:  # boundaries lie on frames
            return [float(value) for value in np.searchsorted(reader.timestamps, seconds - 1e-9)]


def floors_scenedetect(
    videos: Path,
    *,
    out: Path,
    split: str | None = None,
    threshold: float = 27.0,
    min_scene_frames: int = 15,
    unit: Unit = "seconds",
    workers: int | None = None,
    time_limit: float = TIME_LIMIT_SECONDS,
    json: bool = False,
) -> None:
    """Shot cuts by PySceneDetect's ContentDetector: the SceneDet row of the boundary benchmark.

    The same command continues after an interruption.

    JSON keys: detector, videos, failed, failures (reason by id), boundaries, out, coverage (of a manifest, else null).

    Example::

        timegrain floors scenedetect VIDEOS --out cuts.json

    Args:
        videos: A manifest (.parquet) or a folder of videos.
        out: Where to write a dict from video id to boundaries, as .json or .pkl; `timegrain score gebd` reads it. The
            id is the manifest's video_id, else the YouTube id of a file named after it, else the file's name without
            ending.
        split: Only this split of the manifest.
        threshold: Mean change of hue, saturation and brightness that makes a cut.
        min_scene_frames: Shortest scene.
        unit: seconds for the challenge program, frames for the notebook.
        workers: Processes; all cores by default.
        time_limit: Seconds that one video may take; then it counts as failed.
        json: Print one JSON object.

    Raises:
        ValueError: There is no video, two videos share an id, or none can be read.
    """
    name = f"PySceneDetect ContentDetector, threshold {threshold:g}, scenes of at least {min_scene_frames} frames"
    detect = Cuts(threshold, min_scene_frames, unit)
    _detect(name, detect, videos, split, out, workers, time_limit, json)


def floors_change(
    videos: Path,
    *,
    out: Path,
    split: str | None = None,
    method: Method = "both",
    rate: float = 10.0,
    window_seconds: float = 0.5,
    smooth_seconds: float = 0.1,
    prominence: float = 0.5,
    unit: Unit = "seconds",
    workers: int | None = None,
    time_limit: float = TIME_LIMIT_SECONDS,
    json: bool = False,
) -> None:
    """Boundaries where picture or motion change most, without learning: pixel difference and optical flow.

    The same command continues after an interruption.

    JSON keys: detector, videos, failed, failures (reason by id), boundaries, out, coverage (of a manifest, else null).

    Example::

        timegrain floors change m.parquet --split val --out changes.pkl

    Args:
        videos: A manifest (.parquet) or a folder of videos.
        out: Where to write a dict from video id to boundaries, as .json or .pkl; `timegrain score gebd` reads it.
        split: Only this split of the manifest.
        method: pixels (colours on a coarse grid), flow (optical flow on it), or both added.
        rate: Frames per second that are looked at.
        window_seconds: How much before and after each time is compared.
        smooth_seconds: Standard deviation of the smoothing.
        prominence: How far a peak must stand out, in standard deviations over the video.
        unit: seconds for the challenge program, frames for the notebook.
        workers: Processes; all cores by default.
        time_limit: Seconds that one video may take; then it counts as failed.
        json: Print one JSON object.

    Raises:
        ValueError: There is no video, two videos share an id, none can be read, or an option is out of range.
    """
    detector = ChangeDetector(method, rate, window_seconds, smooth_seconds, prominence)
    _detect(f"{detector}", Changes(detector, unit), videos, split, out, workers, time_limit, json)


def _detect(
    name: str,
    detect: Callable[[str], list[float]],
    videos: Path,
    split: str | None,
    out: Path,
    workers: int | None,
    time_limit: float,
    json: bool,
) -> None:
    if out.suffix not in (".json", ".pkl"):
        raise ValueError(f"--out {out}: predictions are written as .json or .pkl")
    check_work(workers, time_limit)
    paths, coverage = _paths_by_id(videos, split)
    ids, files = list(paths), list(paths.values())
    failures: dict[str, str] = {}
    with VideoJournal(out, files, [repr(detect)] * len(files)) as journal:
        for video, reason in journal.run(detect, files, lambda _: time_limit, workers, "looking for boundaries"):
            failures[ids[video]] = reason
            print(f"{shown(files[video])}: {reason}", file=sys.stderr)
        if not journal.results:
            first = next(iter(failures.values()))
            raise ValueError(f"none of the {len(files)} videos could be read; the first: {first}")
        ordered = {ids[video]: journal.results[video] for video in sorted(journal.results)}
        with atomic_path(out) as temporary:
            if out.suffix == ".json":
                temporary.write_text(json_module.dumps(ordered))
            else:
                temporary.write_bytes(pickle.dumps(ordered))
    number = sum(map(len, ordered.values()))
    result: dict[str, Any] = {
        "detector": name,
        "videos": len(ordered),
        "failed": len(failures),
        "failures": {key: failures[key] for key in ids if key in failures},
        "boundaries": number,
        "out": str(out),
        "coverage": coverage,
    }
    text = f"{number:,} boundaries in {len(ordered):,} videos written to {out}"
    text += f"; {len(failures):,} videos failed" if failures else ""
    report(result, [name, *coverage_text(coverage, videos), text], json)


def _paths_by_id(videos: Path, split: str | None) -> tuple[dict[str, str], dict[str, Any] | None]:
    """Files by the id that the benchmark knows them by, and the coverage that a manifest carries."""
    coverage = None
    listed: list[tuple[str | None, str]]
    if videos.is_dir():
        if split is not None:
            raise ValueError(f"--split {split}: {videos} is a folder; only a manifest has splits")
        listed = [(None, str(path)) for path in find_files(videos)]
    else:
        manifest = Manifest.open(videos).select(split)
        coverage = manifest.coverage
        listed = [(row.extra.get("video_id"), row.path) for row in manifest]
    paths: dict[str, str] = {}
    for video_id, path in listed:
        key = benchmark_id(video_id, path)
        if key in paths:
            raise ValueError(f"two videos have the id {key!r}: {shown(paths[key])} and {shown(path)}")
        paths[key] = path
    if not paths:
        raise ValueError(f"{videos}: no video in it")
    return paths, coverage
