"""The rows that stand under every result of a benchmark: what scores without a model, on the labels at hand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from timegrain.metrics.boundary_f1 import BoundaryVideo, Missing
from timegrain.metrics.floors import (
    EVALUATED,
    Labels,
    best_constant_verb,
    best_spacing,
    class_priors,
    greedy_verbs,
    score_annotators,
    score_class_prior,
    score_constant_verbs,
    score_one_verb_per_video,
    score_shuffled_labels,
    score_uniform,
    score_verb_annotators,
)
from timegrain.metrics.frame_map import FrameBoxes

TRAIN = "training labels"
GEBD_COLUMNS = ("f1@0.05", "precision@0.05", "recall@0.05", "mean_f1")
VIDSITU_COLUMNS = ("acc@1", "acc@5", "vid@1", "rec@5", "matching")
TOPK_COLUMNS = ("top1", "top5", "mean_class_accuracy")
AVA_COLUMNS = ("map", "map_min", "map_max", "boxes")
RETRIEVAL_COLUMNS = ("R@1", "R@5", "R@10", "R@20", "R@50")
Row = dict[str, Any]


def gebd_row(name: str, chosen_on: str, result: Mapping[str, Any]) -> Row:
    """A result of the GEBD metric as a row, with the values at 0.05 by names of their own."""
    kept = ("f1", "precision", "recall", "mean_f1", "mean_precision", "mean_recall", "missing", "counts")
    at_five = {f"{key}@0.05": result[key]["0.05"] for key in ("f1", "precision", "recall")}
    return {"name": name, "chosen_on": chosen_on, **{key: result[key] for key in kept}, **at_five}


def gebd_rows(
    videos: Mapping[str, BoundaryVideo],
    missing: Missing,
    train: Mapping[str, BoundaryVideo] | None = None,
    spacing: float | None = None,
) -> list[Row]:
    """Evenly spaced boundaries, and annotators against each other where there are several.

    Args:
        videos: Ground truth.
        missing: The official program that is followed.
        train: Ground truth of the training split, on which the spacing is chosen; else on ``videos``.
        spacing: A spacing to use instead, as a share of the video.
    """
    chosen_on = "stated" if spacing is not None else EVALUATED if train is None else TRAIN
    if spacing is None:
        spacing = best_spacing(videos if train is None else train, missing)
    uniform = gebd_row(f"uniform, every {100 * spacing:g} %", chosen_on, score_uniform(videos, spacing, missing))
    rows = [uniform | {"spacing": spacing}]
    if any(len(video.annotations) > 1 for video in videos.values()):
        rows.append(gebd_row("human, leave one out", "other annotators", score_annotators(videos, missing)))
    return rows


def vidsitu_rows(
    labels: Labels, train: Sequence[Sequence[str]] | None, verbs: Sequence[str] | None = None
) -> list[Row]:
    """Constant verbs, the right labels in the wrong order, and annotators.

    Args:
        labels: Annotated verbs of each segment.
        train: Verbs of the training segments, for constants that are chosen on them.
        verbs: Constant verbs to score as well, best first.
    """
    rows = []
    if verbs:
        rows.append(score_constant_verbs("constant, stated", "stated", verbs, labels))
    if train:
        counted = Counter(verb for events in train for verb in events)
        most = sorted(counted, key=lambda verb: (-counted[verb], verb))[:5]
        rows.append(score_constant_verbs(f"constant {most[0]}", TRAIN, most[:1], labels))
        rows.append(score_constant_verbs("constant top five", TRAIN, most, labels))
    best = best_constant_verb(labels)
    return [
        *rows,
        score_constant_verbs(f"constant {best}", EVALUATED, [best], labels),
        score_constant_verbs("constant greedy five", EVALUATED, greedy_verbs(labels), labels),
        score_one_verb_per_video(labels),
        score_shuffled_labels(labels),
        score_verb_annotators(labels),
    ]


def ava_rows(
    truth: FrameBoxes,
    people: FrameBoxes,
    train: FrameBoxes | None,
    class_names: Mapping[int, str],
    draws: int = 3,
    seed: int = 0,
) -> list[Row]:
    """The class prior: every person box gets each class's share of the training boxes as its score.

    Args:
        truth: Ground truth.
        people: Person boxes; ``truth`` itself is perfect localisation.
        train: Boxes that give the shares; ``truth`` by default.
        class_names: The label map.
        draws: Random orders of the (all tied) boxes.
        seed: Of the orders.
    """
    priors = class_priors(truth if train is None else train)
    row = score_class_prior(truth, people, priors, class_names, np.random.default_rng(seed), draws)
    boxes = "true" if people is truth else "given"
    return [row | {"chosen_on": EVALUATED if train is None else TRAIN, "boxes": boxes}]
