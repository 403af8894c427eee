"""From times to targets and from scores to boundaries: what boundary detectors share. Pure numpy.

A detector scores *candidates*, moments of a video. Training needs to know which of them lie near a boundary;
a result needs the few moments that the scores point at. Source of the rules: the PC baseline of Kinetics-GEBD (every
third frame is a candidate; positive within 0.15 s; the centre of each run of scores above a threshold is a boundary).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy.signal import find_peaks

from timegrain.metrics.boundary_f1 import (
    MIN_CONSISTENCY,
    BoundaryVideo,
    boundaries_from_scores,
    f1_score,
    match_boundaries,
)

Array = npt.NDArray[np.float64]
Rule = Literal["runs", "peaks"]

TOLERANCE_SECONDS = 0.15  # the PC baseline's: a candidate this near to a boundary is a positive example
GAP_SECONDS = 0.6  # Kinetics-GEBD's ground truth has no two boundaries of one annotator within this
HEADLINE = 0.05  # the relative distance at which the benchmark is reported
_NUM_THRESHOLDS = 49


def near_boundary(
    seconds: npt.ArrayLike, boundaries: npt.ArrayLike, tolerance_seconds: float = TOLERANCE_SECONDS
) -> npt.NDArray[np.bool_]:
    """Which moments lie near a boundary.

    Args:
        seconds: (N,) moments.
        boundaries: (K,) boundaries, in any order; there may be none.
        tolerance_seconds: How near; exactly this far is near.

    Returns:
        (N,) True where a boundary is at most ``tolerance_seconds`` away.
    """
    moments, marks = np.asarray(seconds, np.float64), np.sort(np.asarray(boundaries, np.float64).reshape(-1))
    if not len(marks):
        return np.zeros(len(moments), np.bool_)
    after = np.searchsorted(marks, moments)
    to_next = np.abs(marks[np.minimum(after, len(marks) - 1)] - moments)
    to_last = np.abs(marks[np.maximum(after - 1, 0)] - moments)
    near: npt.NDArray[np.bool_] = np.minimum(to_next, to_last) <= tolerance_seconds + 1e-9
    return near


def held_out(names: Sequence[str], share: float, seed: int = 0) -> npt.NDArray[np.bool_]:
    """Which videos are set aside, decided for each name by itself: adding videos moves no other one.

    Args:
        names: (V,) what belongs together (a video's id, or its group) has one name.
        share: Expected share, from 0 up to below 1.
        seed: Another seed sets others aside.

    Returns:
        (V,) True for those set aside; equal names fall on one side. At least one name is on each side if there are two.
    """
    if not 0 <= share < 1:
        raise ValueError(f"the share of videos set aside must be at least 0 and below 1, got {share}")
    places = {name: hashlib.sha256(f"{seed} {name}".encode()).digest() for name in names}
    limit = int(share * 2**64)
    aside = {name for name, digest in places.items() if int.from_bytes(digest[:8], "big") < limit}
    if share > 0 and len(places) > 1:
        ordered = sorted(places, key=places.__getitem__)
        aside = (aside | {ordered[0]}) - {ordered[-1]}
    return np.array([name in aside for name in names], np.bool_)


@dataclass(frozen=True)
class Picking:
    """How scores become boundaries.

    Args:
        rule: runs takes the middle of every run of scores of at least the threshold (the benchmark's instructions);
            peaks takes local maxima of at least the threshold.
        threshold: Between no boundary and a boundary.
        gap_seconds: Of two peaks nearer than this the lower is dropped; not used by runs.
    """

    rule: Rule = "runs"
    threshold: float = 0.5
    gap_seconds: float = GAP_SECONDS

    def __post_init__(self) -> None:
        if self.rule not in ("runs", "peaks"):
            raise ValueError(f"the rule is 'runs' or 'peaks', not {self.rule!r}")
        if not self.gap_seconds >= 0:
            raise ValueError(f"gap_seconds must not be negative, got {self.gap_seconds}")

    def boundaries(self, scores: npt.ArrayLike, seconds: npt.ArrayLike) -> list[float]:
        """The boundaries of one video, ascending.

        Args:
            scores: (N,) one finite score per candidate.
            seconds: (N,) times of the candidates, ascending.
        """
        values, times = np.asarray(scores, np.float64), np.asarray(seconds, np.float64)
        if self.rule == "runs":
            found = boundaries_from_scores(values.tolist(), range(len(times)), self.threshold)
            return [float(times[position]) for position in found]
        if not len(values):
            return []
        # A peak is higher than what surrounds it, and outside the video there is nothing.
        padded = np.pad(values, 1, constant_values=-np.inf)
        peaks, _ = find_peaks(padded, height=self.threshold, distance=_steps_between(times, self.gap_seconds))
        return [float(times[peak - 1]) for peak in peaks]


@dataclass(frozen=True)
class Choice:
    """A rule and threshold, and how they were found.

    Attributes:
        picking: The best of those tried.
        f1: Its F1 at the headline tolerance on the videos it was chosen on.
        curve: What was tried: ``{"rule", "threshold", "f1"}``.
    """

    picking: Picking
    f1: float
    curve: tuple[dict[str, Any], ...]


def choose_picking(
    scores: Sequence[Array],
    seconds: Sequence[Array],
    videos: Sequence[BoundaryVideo],
    rules: Sequence[Rule] = ("runs", "peaks"),
    gap_seconds: float = GAP_SECONDS,
) -> Choice:
    """Choose the rule and threshold with the highest F1@0.05 on some videos; never those a result is reported on.

    Videos of too little consistency, which the score leaves out, are left out here, too, unless there are no others.

    Args:
        scores: Per video (N,).
        seconds: Per video (N,).
        videos: Their ground truth, in seconds.
        rules: Rules to try; the first of equals wins, and the lowest threshold.
        gap_seconds: Of the peaks.

    Returns:
        The choice; thresholds are tried at quantiles of the scores, so their scale does not matter.

    Raises:
        ValueError: There is no video or no score.
    """
    given = list(zip(scores, seconds, videos, strict=True))
    counted = [part for part in given if part[2].consistency >= MIN_CONSISTENCY] or given
    truth = [video for _, _, video in counted]
    pooled = np.concatenate([np.empty(0), *(values for values, _, _ in counted)])
    if not len(pooled):
        raise ValueError("there is no score to choose a threshold on")
    thresholds = np.unique(np.quantile(pooled, np.linspace(0.02, 0.995, _NUM_THRESHOLDS), method="nearest"))
    tried: list[tuple[float, Picking]] = []
    for rule in rules:
        for threshold in thresholds.tolist():
            picking = Picking(rule, threshold, gap_seconds)
            found = [picking.boundaries(values, times) for values, times, _ in counted]
            matches = match_boundaries(truth, found, (HEADLINE,))
            sums = (matches.true_positives.sum(), matches.num_positives.sum(), matches.num_detections.sum())
            tried.append((float(f1_score(*sums)[2]), picking))
    f1, best = max(tried, key=lambda pair: pair[0])
    curve = tuple({"rule": p.rule, "threshold": p.threshold, "f1": value} for value, p in tried)
    return Choice(best, f1, curve)


def change_curve(features: npt.NDArray[Any], seconds: Array, window_seconds: float) -> Array:
    """How much the features differ between the time before a moment and the time after it.

    Every feature vector is scaled to length 1; the value is the cosine distance between the mean before and the
    mean from the moment on, 0 (the same) to 2. A change of what is seen counts, a change of its strength does not.

    Args:
        features: (N, D), one row per time step.
        seconds: (N,) ascending.
        window_seconds: How far each mean reaches; at least one time step.

    Returns:
        (N,); 0 at the first time step, which nothing comes before.
    """
    rows = np.asarray(features, np.float64)
    rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    sums = np.concatenate([np.zeros((1, rows.shape[1])), np.cumsum(rows, 0)])
    here = np.arange(len(rows))
    first = np.minimum(np.searchsorted(seconds, seconds - window_seconds - 1e-9), np.maximum(here - 1, 0))
    stop = np.maximum(np.searchsorted(seconds, seconds + window_seconds - 1e-9), here + 1)
    before, after = sums[here] - sums[first], sums[stop] - sums[here]
    lengths = np.linalg.norm(before, axis=1) * np.linalg.norm(after, axis=1)
    distance: Array = 1 - (before * after).sum(1) / np.maximum(lengths, 1e-12)
    distance[:1] = 0.0
    return distance


def prominent_peaks(
    curve: Array, seconds: Array, duration_seconds: float, prominence: float, gap_seconds: float, end_seconds: float
) -> npt.NDArray[np.int64]:
    """Positions of the peaks that stand out, none near an end of the video or near a higher one.

    Args:
        curve: (N,).
        seconds: (N,) ascending.
        duration_seconds: Of the video.
        prominence: How far a peak must rise above the higher of the valleys beside it, in standard deviations of the
            curve: against this video itself.
        gap_seconds: Of two peaks nearer than this the lower is dropped.
        end_seconds: Nothing this near to the beginning or the end is a boundary.
    """
    spread = float(np.std(curve)) if len(curve) else 0.0
    if len(curve) < 3 or spread < 1e-9:  # nothing happens here but rounding
        return np.empty(0, np.int64)
    found, _ = find_peaks(curve, prominence=prominence * spread, distance=_steps_between(seconds, gap_seconds))
    inside = (seconds[found] >= end_seconds) & (seconds[found] <= duration_seconds - end_seconds)
    peaks: npt.NDArray[np.int64] = found[inside].astype(np.int64)
    return peaks


def _steps_between(seconds: Array, gap_seconds: float) -> float:
    """How many positions two peaks must be apart; times that lie exactly the gap apart are far enough, also rounded."""
    spacing = max(float(np.median(np.diff(seconds))), 1e-9) if len(seconds) > 1 else 1.0
    return max(1.0, gap_seconds / spacing - 1e-6)
