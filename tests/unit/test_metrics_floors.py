"""Floors from annotations alone, worked out by hand or against a slower way."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from timegrain.metrics.boundary_f1 import BoundaryF1, BoundaryVideo
from timegrain.metrics.floors import (
    best_constant_verb,
    best_spacing,
    class_priors,
    distinct_boxes,
    greedy_verbs,
    most_annotated,
    score_annotators,
    score_class_prior,
    score_constant_verbs,
    score_majority_class,
    score_one_verb_per_video,
    score_shuffled_labels,
    score_uniform,
    score_verb_annotators,
    uniform_boundaries,
)
from timegrain.metrics.frame_map import FrameBoxes, FrameMAP
from timegrain.metrics.verbs import VerbScores


def test_uniform_boundaries():
    assert uniform_boundaries(10.0, 0.3) == pytest.approx([3.0, 6.0, 9.0])
    assert uniform_boundaries(10.0, 0.25) == pytest.approx([2.5, 5.0, 7.5])  # not at the end itself
    assert len(uniform_boundaries(10.0, 0.1)) == 9
    for spacing in (0.0, 1.0, -0.1):
        with pytest.raises(ValueError, match="between 0 and 1"):
            uniform_boundaries(10.0, spacing)


def video(*annotations, length=10.0):
    return BoundaryVideo(length, length, annotations)


def test_best_spacing_finds_even_videos():
    videos = {"a": video((2.5, 5.0, 7.5)), "b": video((5.0, 10.0, 15.0), length=20.0)}
    spacing = best_spacing(videos, "challenge")
    assert score_uniform(videos, spacing, "challenge")["f1"]["0.05"] == 1.0
    assert spacing == 0.26  # the widest that is right: 2.6, 5.2, 7.8 are within 5 % of the boundaries


def test_annotators_against_each_other():
    alike, alone = video((2.0, 5.0), (2.0, 5.0), (9.0,)), video((5.0,))
    result = score_annotators({"a": alike, "alone": alone}, "challenge")
    # two agree (2 of 2 each); the third has one detection, of which none is right, against two boundaries
    assert result["counts"]["true_positives"]["0.05"] == 4
    assert result["counts"]["positives"]["0.05"] == 6
    assert result["counts"]["detections"]["0.05"] == 5
    assert score_annotators({"alone": alone}, "challenge")["counts"]["videos"] == 0
    low = BoundaryVideo(10.0, 10.0, ((1.0,), (1.0,)), 0.2)
    assert score_annotators({"low": low}, "challenge")["counts"]["excluded"] == 2


LABELS = {
    "x": [["look"] * 6 + ["walk"] * 4, ["run"] * 10, ["look", "sit"] * 5, ["sit"] * 9 + ["run"], ["open"] * 10],
    "y": [["look"] * 10, ["look", "open"] * 5, ["walk"] * 10, ["hug"] * 10, ["look"] + ["kick"] * 9],
}


def test_constant_verbs():
    assert best_constant_verb(LABELS) == "look"
    row = score_constant_verbs("constant", "stated", ["look"], LABELS)
    assert (row["acc@1"], row["matching"], row["verbs"]) == (0.5, 0.2, ["look"])
    # look covers 5 of 10 events; then run and (of the rest) hug, open, walk one or two each
    greedy = greedy_verbs(LABELS)
    assert greedy[:2] == ["look", "run"]
    assert score_constant_verbs("five", "x", greedy, LABELS)["acc@5"] == 1.0
    assert greedy_verbs({"z": [["a"]] * 5}) == ["a"]


def test_one_verb_per_video_and_most_annotated():
    row = score_one_verb_per_video(LABELS)
    assert row["acc@1"] == (2 + 3) / 10
    assert most_annotated(["b", "a", "a", "c", "b", *"defgh", "h", "h"]) == ["b", "a", "c", "d", "e"]


def test_label_shuffle_is_the_mean_over_all_orders():
    row = score_shuffled_labels(LABELS)
    values = []
    for order in itertools.permutations(range(5)):
        scores = VerbScores()
        for events in LABELS.values():
            scores.update([most_annotated(events[i]) for i in order], events)
        values.append(scores.compute())
    for key in ("acc@1", "acc@5", "vid@1"):
        assert row[key] == pytest.approx(np.mean([value[key] for value in values]), abs=1e-12)


def test_verb_annotators():
    row = score_verb_annotators(LABELS)
    shared = [sum(verbs.count(v) for v in set(verbs) if verbs.count(v) > 1) for e in LABELS.values() for verbs in e]
    assert row["acc@1"] == pytest.approx(sum(shared) / 100)
    assert row["acc@5"] is None
    single = score_verb_annotators({"z": [["a"]] * 5})
    assert single["acc@1"] is single["matching"] is None


def test_majority_class():
    row = score_majority_class(["a", "a", "b", "c"])
    assert (row["top1"], row["top5"], row["mean_class_accuracy"]) == (50.0, 100.0, pytest.approx(1 / 3))
    row = score_majority_class(["a", "a", "b", "c"], ["d", "d", "b"])
    assert (row["top1"], row["top5"], row["mean_class_accuracy"]) == (0.0, 25.0, 0.0)
    assert row["chosen_on"] == "training labels"
    with pytest.raises(ValueError, match="no labels"):
        score_majority_class([])


def frame_boxes(rng, num_frames=12, num_classes=70):
    frame = np.sort(rng.integers(num_frames, size=40))
    corner = rng.choice([0.1, 0.3, 0.5], (40, 2))
    names = tuple(f"v,{i}.000000" for i in range(num_frames))
    return FrameBoxes(names, frame, np.hstack([corner, corner + 0.3]), rng.integers(1, num_classes, 40), np.ones(40))


def test_class_prior_by_the_long_way():
    rng = np.random.default_rng(0)
    truth = frame_boxes(rng)
    names = {number: f"class {number}" for number in range(1, 71)}
    priors = class_priors(truth)
    people = distinct_boxes(truth)
    assert sum(priors.values()) == pytest.approx(40 / len(people.frame))
    row = score_class_prior(truth, people, priors, names, np.random.default_rng(1), draws=40)
    values = []
    for seed in range(40):  # every box with every class, and ties broken by noise
        noise = np.random.default_rng(seed)
        numbers = np.repeat(sorted(priors), len(people.frame))
        scores = np.array([priors[n] for n in numbers.tolist()]) * (1 - 1e-6 * noise.random(len(numbers)))
        times = len(priors)
        metric = FrameMAP(names)
        boxes = np.tile(people.boxes, (times, 1))
        metric.update(truth, FrameBoxes(people.frames, np.tile(people.frame, times), boxes, numbers, scores))
        values.append(metric.compute()["map"])
    spread = np.std(values) / np.sqrt(40) + 1e-9
    assert abs(row["map"] - np.mean(values)) < 5 * spread
    assert row["map_min"] <= row["map"] <= row["map_max"]


def test_class_prior_refuses_nothing_to_score():
    rng = np.random.default_rng(0)
    truth = frame_boxes(rng)
    with pytest.raises(ValueError, match="no class of the label map"):
        score_class_prior(truth, truth, {99: 0.5}, {1: "a"}, rng)
    with pytest.raises(ValueError, match="no box of a class"):
        score_class_prior(truth.select(truth.classes == 2), truth, {99: 0.5}, {99: "a"}, rng)


def test_floors_agree_with_the_metric(shared):
    from timegrain.metrics.inputs import read_boundary_truth

    videos = read_boundary_truth(shared / "golden" / "gebd" / "case1" / "gt.pkl", "challenge")
    metric = BoundaryF1()
    metric.update(videos, {key: [0.2 * i * v.length for i in range(1, 5)] for key, v in videos.items()})
    assert score_uniform(videos, 0.2, "challenge")["counts"] == metric.compute()["counts"]
