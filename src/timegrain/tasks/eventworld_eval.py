"""What frozen features know about EventWorld: events, boundaries, and the video as a whole.

Probes are linear (:class:`timegrain.probes.LinearProbe`) and trained on the training videos alone; their penalty and the
boundary threshold are chosen on a held-out quarter of the training videos.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from scipy.ndimage import maximum_filter1d, uniform_filter1d
from sklearn.metrics import roc_auc_score
from torch import Tensor

from timegrain.metrics.boundary_f1 import BoundaryVideo, f1_score, match_boundaries
from timegrain.probes import LinearProbe, accuracy, knn_predict

Array = npt.NDArray[np.float64]

TOLERANCE = 0.05  # share of the video's duration, the headline threshold of Kinetics-GEBD
POSITIVE_SECONDS = 0.15  # a time step this near a boundary is a positive example, as in the benchmark's PC baseline
CLIP_SECONDS = 2.56  # one clip: 16 frames, stride 4, at 25 fps
L2_GRID = (1e-3, 1e-2, 1e-1, 1.0)  # penalties of a probe; more would cost time and change nothing


@dataclass(frozen=True)
class LabelledEvent:
    """An event with one of its labels: start inclusive, end exclusive."""

    start_seconds: float
    end_seconds: float
    label: str


@dataclass
class FeatureSet:
    """Features of the videos of one split, and what is known of the videos.

    Args:
        features: Per video (steps, D).
        timestamps_seconds: Per video (steps,).
        events: Per video, in order.
        boundaries_seconds: Per video.
        durations_seconds: Per video.
        labels: Class of each video.
    """

    features: list[Array]
    timestamps_seconds: list[Array]
    events: list[list[LabelledEvent]]
    boundaries_seconds: list[list[float]]
    durations_seconds: list[float]
    labels: list[str]


@dataclass
class Evaluation:
    """Scores, and the boundaries found, for pictures.

    Args:
        scores: By name, fractions.
        probabilities: Per test video (steps,), of a boundary.
        detections_seconds: Per test video.
    """

    scores: dict[str, float]
    probabilities: list[Array] = field(default_factory=list)
    detections_seconds: list[list[float]] = field(default_factory=list)


def evaluate(train: FeatureSet, test: FeatureSet) -> Evaluation:
    """Probe frozen features.

    Args:
        train: Fits the probes; its last quarter of videos chooses their strength and the threshold.
        test: Scored, and used for nothing else.

    Returns:
        ``event`` (accuracy of event classes), ``clip`` and ``video`` (accuracy of the video's class from the middle clip,
        and from the mean over the video), ``knn`` (the class of the 20 nearest clips), ``boundary_f1`` (at a tolerance of
        5 % of the duration) and ``boundary_auc`` (time steps near a boundary against the others).
    """
    inside = _boundaries(train, test)
    clips = _clip_features(train), _clip_features(test)
    means = [_tensor([f.mean(0) for f in part.features]) for part in (train, test)]
    scores = {
        "event": _probe(*_event_features(train), *_event_features(test)),
        "clip": _probe(clips[0], train.labels, clips[1], test.labels),
        "video": _probe(means[0], train.labels, means[1], test.labels),
        "knn": _knn(clips[0], train.labels, clips[1], test.labels),
        **inside.scores,
    }
    return Evaluation(scores, inside.probabilities, inside.detections_seconds)


def floors(train: FeatureSet, test: FeatureSet) -> dict[str, dict[str, float]]:
    """Rows that look at no pixel: the commonest classes, and evenly spaced boundaries.

    Returns:
        ``majority``, and ``uniform``: k even cuts, k chosen on the training videos for their F1.
    """

    def commonest(known: Sequence[str], wanted: Sequence[str]) -> float:
        names, counts = np.unique(known, return_counts=True)
        return float(np.mean(np.array(wanted) == names[counts.argmax()]))

    event = commonest(*[[e.label for events in part.events for e in events] for part in (train, test)])
    video = commonest(train.labels, test.labels)

    def cuts(part: FeatureSet, count: int) -> float:
        found = [[d * (i + 1) / (count + 1) for i in range(count)] for d in part.durations_seconds]
        return boundary_f1(found, part.boundaries_seconds, part.durations_seconds)

    best = max(range(1, 13), key=lambda count: cuts(train, count))
    return {
        "majority": {"event": event, "clip": video, "video": video, "knn": video},
        "uniform": {"boundary_f1": cuts(test, best), "boundary_auc": 0.5},
    }


def boundary_f1(
    detections: Sequence[Sequence[float]], truth: Sequence[Sequence[float]], durations: Sequence[float]
) -> float:
    """F1 over all videos of greedy one-to-one matches within 5 % of the duration (the matching of Kinetics-GEBD).

    Args:
        detections: Per video, seconds.
        truth: Per video, seconds; each takes its nearest free detection, in order.
        durations: Per video, seconds.
    """
    videos = [BoundaryVideo(d, d, (tuple(t),)) for t, d in zip(truth, durations, strict=True)]
    matches = match_boundaries(videos, detections, (TOLERANCE,))
    sums = (matches.true_positives.sum(), matches.num_positives.sum(), matches.num_detections.sum())
    return float(f1_score(*sums)[2])


def _numbers(known: Sequence[str], wanted: Sequence[str]) -> tuple[Tensor, Tensor, int]:
    """Class names as numbers, and how many classes there are; a name that training has not seen is always missed."""
    names = sorted(set(known) | set(wanted))
    parts = [torch.tensor([names.index(name) for name in part]) for part in (known, wanted)]
    return parts[0], parts[1], len(names)


def _train_probe(
    rows: Tensor, labels: Tensor, num_classes: int, part: int, score: Callable[[Tensor], float]
) -> LinearProbe:
    """A probe whose penalty the rows from ``part`` on have chosen, by the score of their logits; then fitted on all."""

    def fit(l2: float, last: int) -> LinearProbe:
        return LinearProbe.train(rows[:last], labels[:last], num_classes, l2_grid=[l2])

    best = max(L2_GRID, key=lambda l2: score(fit(l2, part).logits(rows[part:])))
    return fit(best, len(rows))


def _probe(known: Tensor, targets: Sequence[str], wanted: Tensor, truth: Sequence[str]) -> float:
    """Accuracy of a linear probe whose penalty a held-out quarter of the training rows has chosen."""
    labels, answers, num_classes = _numbers(targets, truth)
    part = len(known) * 3 // 4
    probe = _train_probe(known, labels, num_classes, part, lambda logits: accuracy(logits, labels[part:]))
    return accuracy(probe.logits(wanted), answers)


def _knn(known: Tensor, targets: Sequence[str], wanted: Tensor, truth: Sequence[str]) -> float:
    """Accuracy of the vote of the 20 nearest training clips, weighted by their similarity."""
    labels, answers, num_classes = _numbers(targets, truth)
    return accuracy(knn_predict(wanted, known, labels, num_classes, num_neighbours=20), answers)


def _tensor(rows: Sequence[Array]) -> Tensor:
    return torch.from_numpy(np.stack(rows)).float()


def _clip_features(part: FeatureSet) -> Tensor:
    """Mean over the clip in the middle of each video, (videos, D)."""
    rows = []
    for features, times, duration in zip(part.features, part.timestamps_seconds, part.durations_seconds, strict=True):
        middle = np.abs(times - duration / 2) <= CLIP_SECONDS / 2
        rows.append(features[middle].mean(0) if middle.any() else features.mean(0))
    return _tensor(rows)


def _event_features(part: FeatureSet) -> tuple[Tensor, list[str]]:
    """Mean over each event (its nearest time step where none falls inside), (events, D), and the events' classes."""
    rows, labels = [], []
    for features, times, events in zip(part.features, part.timestamps_seconds, part.events, strict=True):
        for event in events:
            inside = (times >= event.start_seconds) & (times < event.end_seconds)
            nearest = np.abs(times - (event.start_seconds + event.end_seconds) / 2).argmin()
            rows.append(features[inside].mean(0) if inside.any() else features[nearest])
            labels.append(event.label)
    return _tensor(rows), labels


def _change_features(features: Array, times: Array) -> Array:
    """What a boundary probe sees of a time step: how the mean before it differs from the mean after, at two scales."""
    step = float(np.median(np.diff(times))) if len(times) > 1 else 1.0
    columns = []
    for seconds in (0.3, 0.6):
        half = max(1, round(seconds / step))
        smooth = uniform_filter1d(features, half, axis=0, mode="nearest")
        index = np.arange(len(features))
        before = smooth[np.maximum(index - (half + 1) // 2, 0)]
        after = smooth[np.minimum(index + (half + 1) // 2, len(features) - 1)]
        columns += [np.abs(after - before), np.linalg.norm(after - before, axis=1, keepdims=True)]
    return np.concatenate(columns, 1)


def _boundaries(train: FeatureSet, test: FeatureSet) -> Evaluation:
    """Train a boundary probe, pick its peaks, score them."""

    def rows(part: FeatureSet) -> list[Array]:
        return [_change_features(f, t) for f, t in zip(part.features, part.timestamps_seconds, strict=True)]

    def near(part: FeatureSet) -> npt.NDArray[np.int64]:
        videos = zip(part.timestamps_seconds, part.boundaries_seconds, strict=True)
        return np.concatenate([
            (np.abs(times[:, None] - np.array([*boundaries, np.inf])) <= POSITIVE_SECONDS).any(1).astype(np.int64)
            for times, boundaries in videos
        ])  # fmt: skip

    def probabilities(probe: LinearProbe, videos: list[Array]) -> list[Array]:
        logits = probe.logits(torch.from_numpy(np.concatenate(videos)).float())
        flat = torch.softmax(logits.double(), 1)[:, 1].numpy()
        return np.split(flat, np.cumsum([len(video) for video in videos])[:-1])

    train_rows, test_rows, labels = rows(train), rows(test), near(train)
    part = len(train_rows) * 3 // 4
    part_rows = sum(len(video) for video in train_rows[:part])

    def auc(logits: Tensor) -> float:
        return float(roc_auc_score(labels[part_rows:], (logits[:, 1] - logits[:, 0]).numpy()))

    flat = torch.from_numpy(np.concatenate(train_rows)).float()
    known = torch.from_numpy(labels)
    probe = _train_probe(flat, known, 2, part_rows, auc)
    values = probabilities(probe, test_rows)

    # The threshold comes from videos that its probe has not seen.
    blind = LinearProbe.train(flat[:part_rows], known[:part_rows], 2, l2_grid=[probe.l2])
    found = probabilities(blind, train_rows[part:])
    peaks = [_peaks(p, t) for p, t in zip(found, train.timestamps_seconds[part:], strict=True)]

    def score(threshold: float) -> float:
        picked = [_above(some, threshold) for some in peaks]
        return boundary_f1(picked, train.boundaries_seconds[part:], train.durations_seconds[part:])

    threshold = float(max(np.quantile(np.concatenate(found), np.linspace(0.3, 0.98, 35)), key=score))
    picked = [_above(_peaks(p, t), threshold) for p, t in zip(values, test.timestamps_seconds, strict=True)]
    scores = {
        "boundary_f1": boundary_f1(picked, test.boundaries_seconds, test.durations_seconds),
        "boundary_auc": float(roc_auc_score(near(test), np.concatenate(values))),
    }
    return Evaluation(scores, values, picked)


def _peaks(probabilities: Array, times: Array, apart_seconds: float = 0.3) -> list[tuple[float, float]]:
    """Time and height of the local maxima, none within ``apart_seconds`` of a higher one."""
    step = float(np.median(np.diff(times))) if len(times) > 1 else 1.0
    width = 2 * max(1, round(apart_seconds / step)) + 1
    smooth = uniform_filter1d(probabilities, 3, mode="nearest")
    highest = smooth >= maximum_filter1d(smooth, width, mode="nearest")
    return list(zip(times[highest].tolist(), smooth[highest].tolist(), strict=True))


def _above(peaks: Sequence[tuple[float, float]], threshold: float) -> list[float]:
    """Times of the peaks that reach a threshold."""
    return [time for time, height in peaks if height >= threshold]
