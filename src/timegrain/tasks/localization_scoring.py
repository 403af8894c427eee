"""Scores of a localizer on AVA-Kinetics: detected people and annotated boxes, by the official rules."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from timegrain.data.coverage import coverage_lines
from timegrain.data.journal import VideoJournal
from timegrain.data.key_frame_clips import KeyFramePictures
from timegrain.data.key_frames import KeyFrame, key_frames, read_people, truth_of, with_people
from timegrain.data.location import shown
from timegrain.data.manifest import Manifest
from timegrain.data.transforms import to_model_input
from timegrain.files import atomic_path
from timegrain.metrics.frame_map import FrameBoxes, FrameMAP
from timegrain.models.localizer import ActionLocalizer
from timegrain.models.people import find_people, person_detector
from timegrain.models.weights import fingerprint_of
from timegrain.progress import track
from timegrain.report.results import Result
from timegrain.sampling import ClipSpec
from timegrain.tasks.config import check_smallest

PEOPLE = "people.csv"  # in the run's folder: people that were detected, for the next time


@dataclass
class LocalizationData:
    """Which key frames, and who is in them.

    Args:
        manifest: From `timegrain prepare ava-kinetics`, or `timegrain eventworld --individual_postures true`.
        split_train: Rows to train on, with their annotated boxes.
        split_test: Rows to score.
        people: Detected people of the test frames: csv rows video, time, x1, y1, x2, y2, score. By default they are
            detected by torchvision's Faster R-CNN and kept in the run's folder.
        detector_weights: That detector's weights (.pth) on disk; by default torchvision downloads them.
        min_person_score: Detections at or below it are left out; the same team's code uses 0.2.
        num_frames: Frames of a clip, centred on the key frame.
        stride: Source frames from one to the next.
        crop_size: Height and width of training clips.
        short_side: Shorter side of test clips, which are whole pictures.
        max_people: People of a training clip at most.
        batch_size: Clips per step and process.
        workers: Processes that decode; null and 0 decode in the training process.
        max_failure_share: Stop when more than this share of the videos failed to decode during training.
    """

    manifest: Path
    split_train: str = "train"
    split_test: str = "val"
    people: Path | None = None
    detector_weights: Path | None = None
    min_person_score: float = 0.2
    num_frames: int = 32
    stride: int = 2
    crop_size: int = 224
    short_side: int = 256
    max_people: int = 32
    batch_size: int = 16
    workers: int | None = None
    max_failure_share: float = 0.01

    def __post_init__(self) -> None:
        sizes = ("num_frames", "stride", "crop_size", "short_side", "max_people", "batch_size")
        check_smallest(self, "data", dict.fromkeys(sizes, 1) | {"workers": 0, "max_failure_share": 0})


@dataclass(frozen=True)
class Scored:
    """A localizer's results on a split.

    Attributes:
        scores: Of detected people, as ``FrameMAP.compute`` gives them.
        ceiling: Of annotated boxes.
        truth: Ground truth.
        people: The detected people.
        num_frames: Key frames scored.
        broken: Reason by video that could not be read.
        coverage: Of the manifest.
    """

    scores: Mapping[str, Any]
    ceiling: Mapping[str, Any]
    truth: FrameBoxes
    people: FrameBoxes
    num_frames: int
    broken: Mapping[str, str]
    coverage: Mapping[str, Any] | None

    def said(self, result: Result, out: Path) -> str:
        """A table for people."""
        lines = [f"{row.method:<28} {row.scores['map']:.4f}  ({row.role})" for row in result.rows]
        lines += [f"could not read {path}: {reason}" for path, reason in self.broken.items()]
        return "\n".join([f"{'frame-mAP at overlap 0.5':<28}", *lines, *coverage_lines(self.coverage), str(out)])


@dataclass(frozen=True)
class ToScore:
    """What a localizer is scored on.

    Attributes:
        manifest: Videos of the test split.
        frames: Their key frames with annotated boxes.
        people: Detected people by key frame; None where they are still to be detected.
    """

    manifest: Manifest
    frames: list[KeyFrame]
    people: Mapping[str, tuple[np.ndarray, np.ndarray]] | None

    @classmethod
    def of(cls, manifest: Manifest, data: LocalizationData, names: Mapping[int, str]) -> ToScore:
        """Read before training begins, so that a wrong name doesn't cost one.

        Raises:
            FileNotFoundError: A file that is named isn't there.
            ValueError: The split has no key frame, or the file of people is not one.
        """
        test = manifest.select(split=data.split_test)
        frames = key_frames(test, list(names))
        if not frames:
            raise ValueError(f"{data.manifest} has no key frame inside a video of {data.split_test!r}")
        if data.people is not None and data.detector_weights is not None:
            raise ValueError(
                "--data.people names the people, --data.detector_weights is for detecting them: give one of both"
            )
        if data.people is None and data.detector_weights is not None and not data.detector_weights.is_file():
            raise FileNotFoundError(f"file not found: {data.detector_weights} (--data.detector_weights)")
        return cls(test, frames, read_people(data.people) if data.people is not None else None)


def score_localizer(
    localizer: ActionLocalizer,
    tested: ToScore,
    data: LocalizationData,
    names: Mapping[int, str],
    out: Path,
    device: torch.device,
) -> Scored:
    """Score detected people and annotated boxes of the test split; write the official csv of the former."""
    test, frames, ids = tested.manifest, tested.frames, list(names)
    pictures = KeyFramePictures(test, frames, ClipSpec(data.num_frames, data.stride), data.short_side)
    people = tested.people if tested.people is not None else _people(pictures, data, out, device)
    detected = with_people(frames, people, data.min_person_score)
    logits_detected, logits_true, broken = {}, {}, {}
    localizer = localizer.to(device).eval()
    for index, clip in track(_load(pictures, data.workers), "scoring key frames", total=len(frames)):
        if isinstance(clip, str):
            broken[shown(test[frames[index].video].path)] = clip
            continue
        batch = to_model_input(clip[None].to(device))
        logits_detected[index] = _probabilities(localizer, batch, detected[index])
        logits_true[index] = _probabilities(localizer, batch, frames[index])
    if not logits_true:
        path, reason = next(iter(broken.items()))
        raise ValueError(f"no key frame of the {len(broken)} test videos could be read; the first: {path}: {reason}")
    truth = truth_of(frames, ids)
    detections = _detections(detected, logits_detected, ids)
    with atomic_path(out / "detections.csv") as temporary:
        write_detections(temporary, detections)
    scores = []
    for found in (detections, _detections(frames, logits_true, ids)):
        metric = FrameMAP(names)
        metric.update(truth, found)
        scores.append(metric.compute())
    boxes = np.concatenate([frame.boxes for frame in detected])
    owner = np.concatenate([np.full(len(frame.boxes), i) for i, frame in enumerate(detected)]).astype(np.int64)
    where = FrameBoxes(
        [frame.key for frame in detected], owner, boxes, np.zeros(len(owner), np.int64), np.ones(len(owner))
    )
    return Scored(scores[0], scores[1], truth, where, len(frames), broken, test.coverage)


@torch.inference_mode()
def _probabilities(localizer: ActionLocalizer, clip: Tensor, frame: KeyFrame) -> np.ndarray:
    """(K, C) action probability x person score."""
    if not len(frame.boxes):
        return np.zeros((0, frame.actions.shape[1]))
    height, width = clip.shape[-2:]
    pixels = torch.from_numpy(frame.boxes * [width, height, width, height]).to(clip)
    probabilities: np.ndarray = localizer(clip, [pixels]).sigmoid().double().cpu().numpy()
    return probabilities * frame.scores[:, None]


def _detections(frames: Sequence[KeyFrame], scores: Mapping[int, np.ndarray], ids: Sequence[int]) -> FrameBoxes:
    order = sorted(scores)
    tables = [scores[index] for index in order]
    owner = np.concatenate([np.full(table.size, index) for index, table in zip(order, tables, strict=True)])
    boxes = np.concatenate([np.repeat(frames[index].boxes, len(ids), 0) for index in order])
    classes = np.concatenate([np.tile(ids, len(table)) for table in tables])
    values = np.concatenate([table.ravel() for table in tables])
    return FrameBoxes([frame.key for frame in frames], owner.astype(np.int64), boxes, classes.astype(np.int64), values)


def write_detections(path: Path, detections: FrameBoxes) -> None:
    """Rows of the official form: video, time, x1, y1, x2, y2, action id, score."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        for frame, box, action, score in zip(
            detections.frame, detections.boxes, detections.classes, detections.scores, strict=True
        ):
            video, _, seconds = detections.frames[frame].rpartition(",")
            writer.writerow([video, seconds, *(f"{value:.6f}" for value in box), action, f"{score:.9f}"])


def _people(
    pictures: KeyFramePictures, data: LocalizationData, out: Path, device: torch.device
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Person boxes of the test frames, detected once and kept."""
    kept = out / PEOPLE
    if kept.exists():
        return read_people(kept)
    detector = person_detector(data.detector_weights, device)
    frames = pictures.frames
    middle = KeyFramePictures(pictures.manifest, frames, ClipSpec(1, 1), 720)
    name = fingerprint_of(detector, None)
    paths = [pictures.manifest[frame.video].path for frame in frames]
    with VideoJournal(kept, paths, [[name, frame.frame] for frame in frames], "key frames") as journal:
        left = Subset(middle, journal.left)
        for index, clip in track(_load(left, data.workers), "detecting people", total=len(left)) if left else ():
            if isinstance(clip, str):
                continue
            ((boxes, scores),) = find_people(detector, [clip[0]])
            journal.finish(index, [boxes.double().tolist(), scores.double().tolist()])
        results = [(frames[index], *journal.results[index]) for index in sorted(journal.results)]
        with atomic_path(kept) as temporary, temporary.open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            for frame, boxes, scores in results:
                writer.writerows(
                    [frame.video_id, f"{frame.seconds:.6f}", *box, score]
                    for box, score in zip(boxes, scores, strict=True)
                )
    return {frame.key: (np.array(boxes).reshape(-1, 4), np.array(scores)) for frame, boxes, scores in results}


def _load(pictures: Dataset[tuple[int, Tensor | str]], workers: int | None) -> Iterator[tuple[int, Tensor | str]]:
    loader: DataLoader[tuple[int, Tensor | str]] = DataLoader(pictures, batch_size=None, num_workers=workers or 0)
    return iter(loader)
