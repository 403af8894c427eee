"""Frame-level mean average precision of AVA and AVA-Kinetics, by the rules of the official program.

The official program is ``get_ava_performance.py`` of the ActivityNet repository. Its rules:

- A frame is a video and a time to six decimals. Frames without boxes can belong to the evaluation.
- Detections on frames that the ground truth does not list are ignored; boxes of classes outside the label map are
  skipped in both files, though their frame still belongs to the evaluation.
- Only the 50 best-scored detections of a frame count, all classes together.
- Detections with ``x1 >= x2`` or ``y1 >= y2`` are dropped (after that limit).
- In each frame and class, detections are taken by descending score; each looks only at the ground-truth box of the
  highest overlap (intersection over union) and is a true positive if that is at least 0.5 and the box is still free.
- Average precision is the area under the precision envelope over all recall steps. A class with ground truth and no
  detection has 0; a class without ground truth has none and is left out of the mean.

Where scores are equal, the official result depends on how a NumPy version sorts. Here equal scores are ordered by
their content (frame, class, box), never by their place in a file: any order of the rows and any split of them into
parts gives the same bits.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_DETECTIONS = 50
MIN_OVERLAP = 0.5
IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]

_CHUNK_PAIRS = 1_000_000


def frame_key(video: str, seconds: float) -> str:
    """The name of a frame, equal for 902, 0902 and 902.000.

    Args:
        video: Id of the video.
        seconds: Time in seconds.
    """
    return f"{video},{seconds:.6f}"


@dataclass(frozen=True, slots=True)
class FrameBoxes:
    """N boxes in F frames.

    Attributes:
        frames: F names from :func:`frame_key`; a frame may have no box.
        frame: (N,) index into ``frames`` of each box.
        boxes: (N, 4) x1, y1, x2, y2 as fractions of the image.
        classes: (N,) action ids.
        scores: (N,) for detections, the score. For ground truth, the person id where there is one: the official
            program takes it for a score and orders boxes by it, which decides between equal overlaps.
    """

    frames: Sequence[str]
    frame: IntArray
    boxes: FloatArray
    classes: IntArray
    scores: FloatArray

    def __post_init__(self) -> None:
        rows = len(self.frame)
        shapes = (self.boxes.shape, self.classes.shape, self.scores.shape)
        if shapes != ((rows, 4), (rows,), (rows,)):
            raise ValueError(
                f"boxes, classes and scores of shapes {shapes}; ({rows}, 4), ({rows},), ({rows},) are needed"
            )
        if not (np.isfinite(self.boxes).all() and np.isfinite(self.scores).all()):
            bad = int(np.flatnonzero(~(np.isfinite(self.boxes).all(1) & np.isfinite(self.scores)))[0])
            raise ValueError(f"row {bad}, frame {self.frames[self.frame[bad]]!r}: a coordinate or score is not finite")

    def select(self, rows: NDArray[Any]) -> FrameBoxes:
        """The same frames with a part of the boxes."""
        return FrameBoxes(self.frames, self.frame[rows], self.boxes[rows], self.classes[rows], self.scores[rows])


def no_boxes() -> FrameBoxes:
    """No frame and no box."""
    empty = np.empty(0, np.int64)
    return FrameBoxes((), empty, np.empty((0, 4)), empty, np.empty(0))


def join(parts: Iterable[FrameBoxes]) -> FrameBoxes:
    """All boxes of several parts, in one list of frames in alphabetical order."""
    parts = list(parts)
    if not parts:
        return no_boxes()
    names = sorted(set(itertools.chain.from_iterable(part.frames for part in parts)))
    place = {name: index for index, name in enumerate(names)}
    moved = [np.array([place[name] for name in part.frames], np.int64)[part.frame] for part in parts]
    return FrameBoxes(
        names,
        np.concatenate(moved),
        np.concatenate([part.boxes for part in parts]),
        np.concatenate([part.classes for part in parts]),
        np.concatenate([part.scores for part in parts]),
    )


class FrameMAP:
    """Frame-mAP at an overlap of 0.5; see this module's text for the rules.

    Parts of the data (even parts of one frame) can be added or merged in any order; all is decided in ``compute``.

    Args:
        class_names: Name of each action id that is evaluated (the label map).
        max_detections: Detections that count in a frame, all classes together; ``None`` for no limit.
    """

    def __init__(self, class_names: Mapping[int, str], max_detections: int | None = MAX_DETECTIONS) -> None:
        self.class_names = dict(class_names)
        self.max_detections = max_detections
        self._truth: list[FrameBoxes] = []
        self._found: list[FrameBoxes] = []

    def update(self, ground_truth: FrameBoxes | None = None, detections: FrameBoxes | None = None) -> None:
        """Add ground truth, detections or both, of any frames."""
        if ground_truth is not None:
            self._truth.append(ground_truth)
        if detections is not None:
            self._found.append(detections)

    def merge(self, other: FrameMAP) -> None:
        """Add what another process has collected.

        Raises:
            ValueError: The label maps or limits differ.
        """
        if (self.class_names, self.max_detections) != (other.class_names, other.max_detections):
            raise ValueError("frame scores of different label maps or limits cannot be merged")
        self._truth += other._truth
        self._found += other._found

    def compute(self) -> dict[str, Any]:
        """The result so far.

        Returns:
            ``map`` (``None`` if no class has ground truth); ``ap``: by class name, ``None`` for a class without
            ground truth; ``counts``: ``frames``, ``boxes`` (ground truth of evaluated classes), ``detections`` (that
            count), and those left out: ``boxes_of_other_classes``, ``detections_of_other_classes``,
            ``detections_on_other_frames``, ``detections_over_limit``, ``detections_without_area``. Fractions, not
            percent.
        """
        truth, found = join(self._truth), join(self._found)
        classes = np.array(sorted(self.class_names), np.int64)
        place = {name: index for index, name in enumerate(truth.frames)}
        frame_of = np.array([place.get(name, -1) for name in found.frames], np.int64)
        num_frames = len(truth.frames)
        boxes = truth.select(np.isin(truth.classes, classes))
        known = np.isin(found.classes, classes)
        listed = frame_of[found.frame] >= 0 if len(found.frame) else np.zeros(0, bool)
        kept = found.select(known & listed)
        kept = FrameBoxes(truth.frames, frame_of[kept.frame], kept.boxes, kept.classes, kept.scores)
        limited = _best_of_each_frame(kept, self.max_detections)
        has_area = (limited.boxes[:, 0] < limited.boxes[:, 2]) & (limited.boxes[:, 1] < limited.boxes[:, 3])
        detections = limited.select(has_area)
        right = _true_positives(detections, boxes)
        precision: dict[str, float | None] = {}
        for number in classes.tolist():
            num_boxes = int((boxes.classes == number).sum())
            rows = detections.classes == number  # in order of score already
            precision[self.class_names[number]] = average_precision(right[rows], num_boxes)
        values = [value for value in precision.values() if value is not None]
        return {
            "map": float(np.mean(values)) if values else None,
            "ap": precision,
            "counts": {
                "frames": num_frames,
                "boxes": len(boxes.frame),
                "detections": len(detections.frame),
                "boxes_of_other_classes": len(truth.frame) - len(boxes.frame),
                "detections_of_other_classes": int((~known).sum()),
                "detections_on_other_frames": int((known & ~listed).sum()),
                "detections_over_limit": len(kept.frame) - len(limited.frame),
                "detections_without_area": len(limited.frame) - len(detections.frame),
            },
        }


def average_precision(right: NDArray[np.bool_], num_boxes: int) -> float | None:
    """Area under the precision envelope over all recall steps.

    Args:
        right: (N,) whether each detection is a true positive, best score first.
        num_boxes: Ground-truth boxes of the class.

    Returns:
        The average precision; 0 without detections; ``None`` without ground truth.
    """
    if num_boxes == 0:
        return None
    hits = np.cumsum(right)
    precision = hits / np.arange(1, len(right) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float((envelope * right).sum() / num_boxes)


def overlap(first: FloatArray, second: FloatArray) -> FloatArray:
    """Intersection over union of boxes (..., 4); 0 where both have no area."""
    width = np.minimum(first[..., 2], second[..., 2]) - np.maximum(first[..., 0], second[..., 0])
    height = np.minimum(first[..., 3], second[..., 3]) - np.maximum(first[..., 1], second[..., 1])
    shared = np.maximum(width, 0.0) * np.maximum(height, 0.0)
    area_first = (first[..., 3] - first[..., 1]) * (first[..., 2] - first[..., 0])
    area_second = (second[..., 3] - second[..., 1]) * (second[..., 2] - second[..., 0])
    union = area_first + area_second - shared
    ratio: FloatArray = np.divide(shared, union, out=np.zeros_like(shared), where=union != 0)
    return ratio


def _content_order(part: FrameBoxes, *first_keys: NDArray[Any]) -> IntArray:
    """Order by the given keys, then by score (best first), then by content."""
    columns = [part.boxes[:, i] for i in (3, 2, 1, 0)]
    return np.lexsort((*columns, part.classes, part.frame, -part.scores, *reversed(first_keys)))


def _best_of_each_frame(part: FrameBoxes, limit: int | None) -> FrameBoxes:
    """At most ``limit`` boxes of each frame; all frames together in order of score."""
    if limit is not None:
        by_frame = _content_order(part, part.frame)
        frame = part.frame[by_frame]
        starts = np.flatnonzero(np.r_[True, frame[1:] != frame[:-1]]) if len(frame) else np.empty(0, np.int64)
        rank = np.arange(len(frame)) - np.repeat(starts, np.diff(np.r_[starts, len(frame)]))
        part = part.select(by_frame[rank < limit])
    return part.select(_content_order(part))


def _true_positives(found: FrameBoxes, truth: FrameBoxes) -> NDArray[np.bool_]:
    """Which detections, given best first, are true positives.

    Each looks at one ground-truth box only, so a box belongs to the first detection that looks at it with enough
    overlap.
    """
    target, shared = _most_overlapped(found, truth)
    eligible = np.flatnonzero(shared >= MIN_OVERLAP)
    right = np.zeros(len(found.frame), bool)
    _, first = np.unique(target[eligible], return_index=True)
    right[eligible[first]] = True
    return right


def _most_overlapped(found: FrameBoxes, truth: FrameBoxes) -> tuple[IntArray, FloatArray]:
    """For each detection the ground-truth box of its frame and class that it overlaps most, and how much (else -1)."""
    span = int(max(found.classes.max(initial=0), truth.classes.max(initial=0))) + 1
    truth_group = truth.frame * span + truth.classes
    truth_order = _content_order(truth, truth_group)
    truth_group = truth_group[truth_order]
    found_group = found.frame * span + found.classes
    starts = np.searchsorted(truth_group, found_group, "left")
    counts = np.searchsorted(truth_group, found_group, "right") - starts
    target = np.full(len(found.frame), -1, np.int64)
    most = np.full(len(found.frame), -1.0)
    candidates = np.flatnonzero(counts)
    ends = np.cumsum(counts[candidates])
    for rows in _chunks(candidates, ends):
        number = counts[rows]
        firsts = np.cumsum(number) - number
        within = np.arange(int(number.sum())) - np.repeat(firsts, number)
        boxes = truth_order[np.repeat(starts[rows], number) + within]
        shared = overlap(np.repeat(found.boxes[rows], number, axis=0), truth.boxes[boxes])
        most[rows] = np.maximum.reduceat(shared, firsts)
        is_most = np.flatnonzero(shared == np.repeat(most[rows], number))
        pair_row = np.repeat(np.arange(len(rows)), number)[is_most]
        _, earliest = np.unique(pair_row, return_index=True)
        target[rows] = boxes[is_most[earliest]]
    return target, most


def _chunks(rows: IntArray, ends: IntArray) -> Iterable[IntArray]:
    """Runs of ``rows`` of at most about :data:`_CHUNK_PAIRS` pairs each, given where the pairs of each row end."""
    start = 0
    while start < len(rows):
        before = int(ends[start - 1]) if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + _CHUNK_PAIRS, "right")))
        yield rows[start:stop]
        start = stop
