"""What scores without a model: predictions made from annotations alone, and what people reach.

A number of a benchmark says little beside nothing. These are the rows to print under every result: the best constant,
the even spacing, the class prior, the label of another event of the same video, and another annotator. Each row says
on which labels its constants were chosen (``chosen_on``); ``"evaluated labels"`` makes it an upper bound of its kind.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from timegrain.metrics.boundary_f1 import THRESHOLDS, BoundaryF1, BoundaryVideo, Missing
from timegrain.metrics.frame_map import MAX_DETECTIONS, FrameBoxes, FrameMAP, join
from timegrain.metrics.matching import NUM_ANNOTATIONS, WithinVideoMatching
from timegrain.metrics.retrieval import RetrievalRecall
from timegrain.metrics.verbs import NUM_EVENTS, NUM_RANKS, VerbScores

SPACINGS = tuple(percent / 100 for percent in range(4, 51))
EVALUATED = "evaluated labels"
Labels = Mapping[str, Sequence[Sequence[str]]]


def uniform_boundaries(length: float, spacing: float) -> list[float]:
    """Boundaries at every multiple of a share of a video's length, inside it.

    Args:
        length: In seconds or frames.
        spacing: Share of the length between two boundaries.

    Returns:
        ``spacing * length``, ``2 * spacing * length``, ... below ``length``; in its unit.

    Raises:
        ValueError: The spacing is not between 0 and 1.
    """
    if not 0 < spacing < 1:
        raise ValueError(f"a spacing is a share of the video between 0 and 1, not {spacing:g}")
    number = int(np.ceil(1 / spacing - 1e-9)) - 1
    return [step * spacing * length for step in range(1, number + 1)]


def score_uniform(
    videos: Mapping[str, BoundaryVideo], spacing: float, missing: Missing, thresholds: Sequence[float] = THRESHOLDS
) -> dict[str, Any]:
    """GEBD scores of evenly spaced boundaries."""
    metric = BoundaryF1(missing, thresholds)
    metric.update(videos, {key: uniform_boundaries(video.length, spacing) for key, video in videos.items()})
    return metric.compute()


def best_spacing(videos: Mapping[str, BoundaryVideo], missing: Missing) -> float:
    """The spacing of :data:`SPACINGS` with the highest F1 at 0.05; the widest of equals."""
    scores = {spacing: score_uniform(videos, spacing, missing, THRESHOLDS[:1])["mean_f1"] for spacing in SPACINGS}
    return max(reversed(SPACINGS), key=scores.__getitem__)


def score_annotators(videos: Mapping[str, BoundaryVideo], missing: Missing) -> dict[str, Any]:
    """GEBD scores of people: each annotator against the others of the same video, leave one out.

    Every annotator of every video counts as one prediction; as always, the best matching of the remaining annotators
    counts, who are one fewer than a model meets. Videos of a single annotator are left out.
    """
    parts: dict[str, BoundaryVideo] = {}
    predictions: dict[str, Sequence[float]] = {}
    for key, video in videos.items():
        for index, own in enumerate(video.annotations if len(video.annotations) > 1 else ()):
            others = video.annotations[:index] + video.annotations[index + 1 :]
            parts[f"{key} {index}"] = BoundaryVideo(video.length, video.last, others, video.consistency)
            predictions[f"{key} {index}"] = own
    metric = BoundaryF1(missing)
    metric.update(parts, predictions)
    return metric.compute()


def _verb_row(
    name: str, chosen_on: str, predictions: Mapping[str, Sequence[Sequence[str]]], labels: Labels
) -> dict[str, Any]:
    scores, matching = VerbScores(), WithinVideoMatching()
    for key, annotated in labels.items():
        scores.update(predictions[key], annotated)
        matching.update(predictions[key], annotated)
    found = scores.compute()
    keys = ("acc@1", "acc@5", "vid@1", "rec@5")
    return {
        "name": name,
        "chosen_on": chosen_on,
        **{key: found[key] for key in keys},
        "matching": matching.compute()["accuracy"],
    }


def score_constant_verbs(name: str, chosen_on: str, verbs: Sequence[str], labels: Labels) -> dict[str, Any]:
    """VidSitu scores of the same ranked verbs for every event."""
    row = _verb_row(name, chosen_on, {key: [verbs] * NUM_EVENTS for key in labels}, labels)
    return row | {"verbs": list(verbs)}


def best_constant_verb(labels: Labels) -> str:
    """The verb that is among the annotations of most events (the first in the alphabet of equals)."""
    return _cover(labels, 1)[0]


def greedy_verbs(labels: Labels, number: int = NUM_RANKS) -> list[str]:
    """Verbs chosen one after the other so that each covers most of the events that are not covered yet."""
    return _cover(labels, number)


def _cover(labels: Labels, number: int) -> list[str]:
    open_events = [set(verbs[:NUM_ANNOTATIONS]) for events in labels.values() for verbs in events]
    chosen: list[str] = []
    for _ in range(number):
        counts = Counter(verb for verbs in open_events for verb in verbs)
        left = sorted(counts, key=lambda verb: (-counts[verb], verb))
        if not left:
            break
        chosen.append(left[0])
        open_events = [verbs for verbs in open_events if left[0] not in verbs]
    return chosen


def score_one_verb_per_video(labels: Labels) -> dict[str, Any]:
    """VidSitu scores of an oracle that names one verb for all five events of a video: the one in most of them."""
    best = {key: _cover({key: events}, 1) for key, events in labels.items()}
    name = "oracle: one verb per video"
    return _verb_row(name, EVALUATED, {key: [best[key]] * NUM_EVENTS for key in labels}, labels)


def score_shuffled_labels(labels: Labels) -> dict[str, Any]:
    """VidSitu scores of the right labels in the wrong order: label shuffle inside a video.

    The prediction of an event is the five verbs most annotated in an event of the same video that is drawn at random
    (all five in random order); the exact expectation. Its matching accuracy is chance by construction.
    """
    scores = VerbScores()
    for events in labels.values():
        scores.update([most_annotated(verbs) for verbs in events], events)
    found = scores.compute()["shuffled"]
    keys = ("acc@1", "acc@5", "vid@1", "rec@5")
    return {
        "name": "label shuffle inside a video",
        "chosen_on": EVALUATED,
        **{key: found[key] for key in keys},
        "matching": 1 / NUM_EVENTS,
    }


def most_annotated(verbs: Sequence[str]) -> list[str]:
    """The five verbs that most of the first ten annotators name, best first; equals in the order of the file."""
    return [verb for verb, _ in Counter(verbs[:NUM_ANNOTATIONS]).most_common(NUM_RANKS)]


def score_verb_annotators(labels: Labels) -> dict[str, Any]:
    """VidSitu scores of people: the verb of each annotator against those of the others, leave one out.

    Annotator n of a video is the n-th of each of its events. One verb is given per event, so only the first rank means
    something; ``acc@5`` and ``rec@5`` are ``None``.
    """
    scores, matching = VerbScores(), WithinVideoMatching()
    for events in labels.values():
        first_ten = [list(verbs[:NUM_ANNOTATIONS]) for verbs in events]
        number = min(map(len, first_ten))
        for index in range(number if number > 1 else 0):
            own = [[verbs[index]] for verbs in first_ten]
            others = [verbs[:index] + verbs[index + 1 :] for verbs in first_ten]
            scores.update(own, others)
            matching.update(own, others)
    row: dict[str, Any] = {"name": "human, leave one out", "chosen_on": "other annotators"}
    if not scores.num_videos:
        return row | dict.fromkeys(("acc@1", "acc@5", "vid@1", "rec@5", "matching"))
    found = scores.compute()
    return row | {
        "acc@1": found["acc@1"],
        "acc@5": None,
        "vid@1": found["vid@1"],
        "rec@5": None,
        "matching": matching.compute()["accuracy"],
    }


def score_majority_class(labels: Sequence[str], train_labels: Sequence[str] | None = None) -> dict[str, Any]:
    """Top-1 and top-5 (percent) and mean class accuracy (fraction) of the most frequent classes.

    Args:
        labels: Class of each video that is scored.
        train_labels: Classes on which the most frequent are found; the same labels by default.

    Raises:
        ValueError: There are no labels.
    """
    source = labels if train_labels is None else train_labels
    if not labels or not source:
        raise ValueError("no labels to count")
    counts = Counter(source)
    ranked = sorted(counts, key=lambda name: (-counts[name], name))[:5]
    own = Counter(labels)
    num_classes = len(set(own) | {ranked[0]})
    return {
        "name": "majority class",
        "chosen_on": EVALUATED if train_labels is None else "training labels",
        "top1": 100 * own[ranked[0]] / len(labels),
        "top5": 100 * sum(own[name] for name in ranked) / len(labels),
        "mean_class_accuracy": (1.0 if own[ranked[0]] else 0.0) / num_classes,
        "classes": ranked,
        "num_videos": len(labels),
    }


def score_random_order(gallery_labels: ArrayLike, query_labels: ArrayLike) -> dict[str, Any]:
    """Retrieval when the gallery comes in random order (the exact expectation): what features that say nothing reach."""
    recall = RetrievalRecall(centre=False)
    for name, labels in (("gallery", np.asarray(gallery_labels)), ("query", np.asarray(query_labels))):
        recall.update(name, np.ones((len(labels), 1)), labels)
    return {"name": "gallery in random order", "chosen_on": "-", "recall_at": recall.compute()["recall_at"]}


def class_priors(truth: FrameBoxes) -> dict[int, float]:
    """Share of the distinct boxes that carry each class."""
    boxes = max(len(distinct_boxes(truth).frame), 1)
    numbers, counts = np.unique(truth.classes, return_counts=True)
    return {int(number): float(count / boxes) for number, count in zip(numbers, counts, strict=True)}


def distinct_boxes(boxes: FrameBoxes) -> FrameBoxes:
    """Each box of each frame once, whatever its classes; frames by name, in them boxes by place."""
    boxes = join([boxes])
    rows = np.column_stack([boxes.frame, boxes.boxes])
    _, first = np.unique(rows, axis=0, return_index=True)
    return boxes.select(first)


def score_class_prior(
    truth: FrameBoxes,
    people: FrameBoxes,
    priors: Mapping[int, float],
    class_names: Mapping[int, str],
    rng: np.random.Generator,
    draws: int = 3,
) -> dict[str, Any]:
    """AVA frame-mAP when every person box gets, for every class, that class's share as its score.

    All boxes tie, and the result of ties is an accident of order: boxes are put in random order, and the mean over
    several draws is given with their spread.

    Args:
        truth: Ground truth.
        people: Person boxes; the classes do not matter.
        priors: Share of each class.
        class_names: The label map.
        rng: Draws the orders.
        draws: How many.

    Raises:
        ValueError: There is no box or no class to score.
    """
    boxes = distinct_boxes(people)
    known = np.array([number for number in class_names if priors.get(number, 0) > 0], np.int64)
    if not len(boxes.frame) or not len(known):
        raise ValueError("no person box, or no class of the label map among the training labels")
    shares = np.array([priors[number] for number in known.tolist()])
    best_first = np.argsort(-shares, kind="stable")
    known, shares = known[best_first], shares[best_first]
    # a frame of n boxes is full after 50 / n classes: the rest cannot count
    in_frame = np.bincount(boxes.frame, minlength=len(boxes.frames))[boxes.frame]
    rank, box = np.nonzero(np.arange(len(known))[:, None] * in_frame < MAX_DETECTIONS)
    values: list[float] = []
    for _ in range(draws):
        scores = shares[rank] * (1 - 1e-6 * rng.permutation(len(rank)) / len(rank))
        found = FrameBoxes(boxes.frames, boxes.frame[box], boxes.boxes[box], known[rank], scores)
        metric = FrameMAP(class_names)
        metric.update(truth, found)
        value = metric.compute()["map"]
        if value is None:
            raise ValueError("the ground truth has no box of a class in the label map")
        values.append(value)
    return {
        "name": "class prior",
        "map": float(np.mean(values)),
        "map_min": min(values),
        "map_max": max(values),
        "draws": draws,
        "num_boxes": len(boxes.frame),
    }
