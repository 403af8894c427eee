"""F1 of generic event boundaries at relative-distance thresholds (Kinetics-GEBD, TAPOS).

Two official programs exist and differ, so each result says which one it follows (``missing``):

=============  ===================================  ==========================================
rule           ``"challenge"`` (the server's)       ``"notebook"`` (the data set's notebook)
=============  ===================================  ==========================================
unit           seconds                              0-based frames
kept           ``0 <= t <= video_duration``         ``0 <= frame <= num_frames - 1``
tolerance      threshold x ``video_duration``       threshold x ``num_frames``
absent video   annotator 0's boundaries are misses  skipped
=============  ===================================  ==========================================

Common to both, and kept bit for bit: videos of consistency below 0.3 are left out; ground-truth boundaries are
matched in list order, each to the nearest detection that is still free (the first of equals), and greedily; for
every video *and every threshold* the annotator of the highest F1 counts (the first of equals); true positives,
positives and detections are summed over the videos before any ratio is taken.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

THRESHOLDS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5)
MIN_CONSISTENCY = 0.3
Missing = Literal["challenge", "notebook"]
IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]

_CHUNK_ELEMENTS = 200_000  # pairs x thresholds x detections of one pass: the arrays stay in the cache


@dataclass(frozen=True, slots=True)
class BoundaryVideo:
    """The ground truth of one video, in one unit (seconds or frames) throughout.

    Attributes:
        length: What the thresholds are relative to: ``video_duration`` or ``num_frames``.
        last: The largest detection that is kept: ``video_duration`` or ``num_frames - 1``.
        annotations: The boundaries of each annotator, in the order of the file; an annotator may have none.
        consistency: ``f1_consis_avg``; the video counts from 0.3 on.
    """

    length: float
    last: float
    annotations: tuple[tuple[float, ...], ...]
    consistency: float = 1.0


@dataclass(frozen=True, slots=True)
class BoundaryMatches:
    """What was matched in each of V videos at each of T thresholds.

    Attributes:
        annotator: (V, T) index of the annotator that counts.
        true_positives: (V, T).
        num_positives: (V, T) boundaries of that annotator.
        num_detections: (V,) detections inside the video.
    """

    annotator: IntArray
    true_positives: IntArray
    num_positives: IntArray
    num_detections: IntArray


def f1_score(true_positives: Any, num_positives: Any, num_detections: Any) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Recall, precision and F1 as the official programs compute them.

    Recall is 1 without positives, precision 0 without detections, F1 0 if both are 0.

    Args:
        true_positives: Counts of any shape.
        num_positives: Counts, same shape or broadcast to it.
        num_detections: Counts, same shape or broadcast to it.

    Returns:
        (recall, precision, f1), float64.
    """
    tp, positives, detections = np.broadcast_arrays(true_positives, num_positives, num_detections)
    recall = np.where(positives == 0, 1.0, tp / np.maximum(positives, 1))
    precision = np.where(detections == 0, 0.0, tp / np.maximum(detections, 1))
    total = recall + precision
    f1 = np.where(total == 0, 0.0, 2 * recall * precision / np.where(total == 0, 1.0, total))
    return recall, precision, f1


def match_boundaries(
    videos: Sequence[BoundaryVideo],
    detections: Sequence[Sequence[float]],
    thresholds: Sequence[float] = THRESHOLDS,
) -> BoundaryMatches:
    """Match the detections of each video to each of its annotators; keep the annotator of the highest F1.

    Args:
        videos: V videos, each with at least one annotator.
        detections: The detections of each, in the video's unit, in any order (the order decides between equally
            near ones); duplicates count. Those outside ``[0, last]`` are removed.
        thresholds: T relative distances.

    Returns:
        The matches. A video without a detection inside it has no true positive, and the positives of annotator 0.
    """
    kept = [[t for t in found if 0 <= t <= video.last] for video, found in zip(videos, detections, strict=True)]
    shape = (len(videos), len(thresholds))
    annotator = np.zeros(shape, np.int64)
    tp = np.zeros(shape, np.int64)
    first = np.array([len(video.annotations[0]) for video in videos], np.int64)
    positives = np.repeat(first[:, None], len(thresholds), 1)
    num_detections = np.array([len(found) for found in kept], np.int64)

    scored = [index for index, found in enumerate(kept) if found]
    if scored:
        num_annotators = np.array([len(videos[index].annotations) for index in scored])
        video_of_pair = np.repeat(np.arange(len(scored)), num_annotators)
        annotator_of_pair = np.concatenate([np.arange(n) for n in num_annotators])
        boundaries = [boundaries for index in scored for boundaries in videos[index].annotations]
        pair_tp = _match_pairs(
            boundaries,
            [kept[index] for index in scored],
            video_of_pair,
            np.array([[threshold * videos[index].length for threshold in thresholds] for index in scored]),
        )
        pair_positives = np.array([len(b) for b in boundaries], np.int64)[:, None]
        found = num_detections[scored][video_of_pair][:, None]
        table = np.full((len(scored), int(num_annotators.max()), len(thresholds)), -1.0)
        table[video_of_pair, annotator_of_pair] = f1_score(pair_tp, pair_positives, found)[2]
        best = table.argmax(1)
        chosen = (np.cumsum(num_annotators) - num_annotators)[:, None] + best
        annotator[scored] = best
        tp[scored] = np.take_along_axis(pair_tp, chosen, 0)
        positives[scored] = pair_positives[:, 0][chosen]
    return BoundaryMatches(annotator, tp, positives, num_detections)


def _match_pairs(
    boundaries: Sequence[Sequence[float]], detections: Sequence[Sequence[float]], video: IntArray, tolerance: FloatArray
) -> IntArray:
    """True positives of each pair (video, annotator) at each threshold, (P, T); pairs of one size go together."""
    num_boundaries = np.array([len(b) for b in boundaries])
    num_detections = np.array([len(d) for d in detections])[video]
    order = np.lexsort((num_boundaries, num_detections))
    num_thresholds = tolerance.shape[1]
    result = np.zeros((len(boundaries), num_thresholds), np.int64)
    start = 0
    while start < len(order):
        size = max(1, _CHUNK_ELEMENTS // (num_thresholds * int(num_detections[order[start]])))
        pairs = order[start : start + size]
        while len(pairs) > 1 and len(pairs) * num_thresholds * num_detections[pairs[-1]] > 2 * _CHUNK_ELEMENTS:
            pairs = pairs[: len(pairs) // 2]  # the last pair is the widest, and all are padded to it
        start += len(pairs)
        truth = _padded([boundaries[pair] for pair in pairs], np.nan)
        found = _padded([detections[index] for index in video[pairs]], np.inf)
        result[pairs] = _match_greedily(truth, found, tolerance[video[pairs]])
    return result


def _padded(rows: Sequence[Sequence[float]], fill: float) -> FloatArray:
    """Rows of different length as one (rows, longest) array."""
    lengths = np.array([len(row) for row in rows])
    table = np.full((len(rows), int(lengths.max())), fill)
    table[np.arange(table.shape[1]) < lengths[:, None]] = list(itertools.chain.from_iterable(rows))
    return table


def _match_greedily(truth: FloatArray, found: FloatArray, tolerance: FloatArray) -> IntArray:
    """Boundaries (P, G) padded with NaN, detections (P, D) padded with inf, tolerances (P, T) -> matches (P, T)."""
    free = np.ones((*tolerance.shape, found.shape[1]), bool)
    matched = np.zeros(tolerance.shape, np.int64)
    for column in range(truth.shape[1]):
        distance = np.abs(truth[:, column, None] - found)
        distance[np.isnan(distance)] = np.inf
        candidates = np.where(free, distance[:, None, :], np.inf)
        nearest = candidates.argmin(2)
        hit = np.take_along_axis(candidates, nearest[..., None], 2)[..., 0] <= tolerance
        matched += hit
        pair, threshold = np.nonzero(hit)
        free[pair, threshold, nearest[pair, threshold]] = False
    return matched


class BoundaryF1:
    """F1, recall and precision of boundary detections over a data set; see this module's text for the rules.

    The state is a few counts, so parts of a data set scored anywhere can be merged in any order without changing a
    bit of the result.

    Args:
        missing: Which official program's rule holds for a video that is absent from the predictions.
        thresholds: Relative distances.
    """

    def __init__(self, missing: Missing = "challenge", thresholds: Sequence[float] = THRESHOLDS) -> None:
        if missing not in ("challenge", "notebook"):
            raise ValueError(f"missing is 'challenge' or 'notebook', not {missing!r}")
        self.missing = missing
        self.thresholds = tuple(thresholds)
        self.true_positives = np.zeros(len(self.thresholds), np.int64)
        self.num_positives = np.zeros(len(self.thresholds), np.int64)
        self.num_detections = 0
        self.num_videos = self.num_excluded = self.num_missing = 0

    def update(self, videos: Mapping[str, BoundaryVideo], predictions: Mapping[str, Sequence[float]]) -> None:
        """Add videos.

        Args:
            videos: Ground truth by id.
            predictions: Detections by id, in the unit of ``videos``. Ids that ``videos`` lacks are ignored.

        Raises:
            ValueError: A video has no annotator, or a number is not finite; the message names the video.
        """
        scored: list[BoundaryVideo] = []
        detections: list[Sequence[float]] = []
        num_excluded = num_missing = 0
        for key, video in videos.items():
            if not video.annotations:
                raise ValueError(f"video {key!r} has no annotator")
            found = predictions.get(key)
            numbers = () if found is None else found  # an array has no truth value
            lengths = (video.length, video.last, video.consistency)
            if not all(map(math.isfinite, itertools.chain(lengths, numbers, *video.annotations))):
                raise ValueError(f"video {key!r}: a length, boundary or detection is not a finite number")
            if video.consistency < MIN_CONSISTENCY:
                num_excluded += 1
                continue
            if found is None:
                num_missing += 1
                if self.missing == "notebook":
                    continue
            scored.append(video)
            detections.append(numbers)
        if scored:
            matches = match_boundaries(scored, detections, self.thresholds)
            self.true_positives += matches.true_positives.sum(0)
            self.num_positives += matches.num_positives.sum(0)
            self.num_detections += int(matches.num_detections.sum())
        self.num_videos += len(scored)
        self.num_excluded += num_excluded
        self.num_missing += num_missing

    def merge(self, other: BoundaryF1) -> None:
        """Add what another process has counted.

        Args:
            other: A metric of other videos, with the same rule and thresholds.

        Raises:
            ValueError: The rules or thresholds differ.
        """
        if (self.missing, self.thresholds) != (other.missing, other.thresholds):
            raise ValueError("boundary scores of different rules or thresholds cannot be merged")
        self.true_positives += other.true_positives
        self.num_positives += other.num_positives
        self.num_detections += other.num_detections
        self.num_videos += other.num_videos
        self.num_excluded += other.num_excluded
        self.num_missing += other.num_missing

    def compute(self) -> dict[str, Any]:
        """The result so far.

        Returns:
            ``f1``, ``precision``, ``recall``: dicts keyed by threshold (``"0.05"``); ``mean_f1``, ``mean_precision``,
            ``mean_recall``: arithmetic means over the thresholds; ``missing``: the rule; ``counts``: ``videos``
            (counted in the sums), ``excluded`` (consistency below 0.3), ``missing`` (no prediction), and by threshold
            ``true_positives``, ``positives``, ``detections``. Fractions, not percent.
        """
        recall, precision, f1 = f1_score(self.true_positives, self.num_positives, self.num_detections)
        names = [f"{threshold:g}" for threshold in self.thresholds]

        def by_threshold(values: NDArray[Any]) -> dict[str, Any]:
            return dict(zip(names, values.tolist(), strict=True))

        return {
            "f1": by_threshold(f1),
            "precision": by_threshold(precision),
            "recall": by_threshold(recall),
            "mean_f1": float(np.mean(f1)),
            "mean_precision": float(np.mean(precision)),
            "mean_recall": float(np.mean(recall)),
            "missing": self.missing,
            "counts": {
                "videos": self.num_videos,
                "excluded": self.num_excluded,
                "missing": self.num_missing,
                "true_positives": by_threshold(self.true_positives),
                "positives": by_threshold(self.num_positives),
                "detections": by_threshold(np.full(len(names), self.num_detections)),
            },
        }


def boundaries_from_scores(
    scores: Sequence[float],
    frame_indices: Sequence[int],
    threshold: float = 0.5,
    middle: Literal["truncate", "round"] = "truncate",
) -> list[int]:
    """Frames at which a sequence of boundary scores says that a boundary is: the middle of each run above a threshold.

    Args:
        scores: One score per scored frame.
        frame_indices: The frame of each score (the official baseline scores every third frame, counted from 1).
        threshold: A run is a maximal stretch of scores of at least this.
        middle: What is done with the middle of a run of even length: truncated (the data set's instructions), or
            rounded half to even (EfficientGEBD's code).

    Returns:
        One of ``frame_indices`` per run, in order.

    Raises:
        ValueError: The lengths differ, or a score is not finite.
    """
    values = np.asarray(scores, np.float64)
    if values.shape != (len(frame_indices),) or not np.isfinite(values).all():
        raise ValueError(f"{values.size} scores for {len(frame_indices)} frames; one finite score per frame is needed")
    above = np.concatenate([[False], values >= threshold, [False]])
    edges = np.flatnonzero(above[1:] != above[:-1]).reshape(-1, 2)
    middles = [(int(start) + int(stop) - 1) / 2 for start, stop in edges]
    return [int(frame_indices[int(m) if middle == "truncate" else round(m)]) for m in middles]
