"""The demo's evaluation: features that know the answer score 1, features that know nothing score at the floor."""

from __future__ import annotations

import numpy as np
import pytest

from timegrain.tasks.eventworld_eval import FeatureSet, LabelledEvent, boundary_f1, evaluate, floors

STEPS, DURATION, KINDS, SCENES = 60, 4.8, 4, 3


def world(num_videos: int, seed: int, knows: str) -> FeatureSet:
    """Videos of random events; `knows` says what their features hold: events, scenes or nothing."""
    rng = np.random.default_rng(seed)
    times = (np.arange(STEPS) + 0.5) * DURATION / STEPS
    parts = FeatureSet([], [], [], [], [], [])
    for _ in range(num_videos):
        edges = np.sort(rng.choice(np.arange(8, STEPS - 7, 8), rng.integers(1, 5), replace=False)) * DURATION / STEPS
        kinds = (rng.integers(KINDS) + np.cumsum(rng.integers(1, KINDS, len(edges) + 1))) % KINDS
        bounds = [0.0, *edges, DURATION]
        scene = int(rng.integers(SCENES))
        features = 0.05 * rng.normal(size=(STEPS, KINDS + SCENES))
        if knows == "events":
            features[np.arange(STEPS), kinds[np.searchsorted(edges, times, side="right")]] += 1
        if knows == "scenes":
            features[:, KINDS + scene] += 1
        parts.features.append(features)
        parts.timestamps_seconds.append(times)
        parts.events.append([LabelledEvent(bounds[i], bounds[i + 1], f"kind{k}") for i, k in enumerate(kinds)])
        parts.boundaries_seconds.append([float(edge) for edge in edges])
        parts.durations_seconds.append(DURATION)
        parts.labels.append(f"scene{scene}")
    return parts


def test_features_of_events_find_events_and_boundaries_and_no_scene():
    found = evaluate(world(120, 0, "events"), world(80, 1, "events"))
    assert found.scores["event"] > 0.99
    assert found.scores["boundary_f1"] > 0.9
    assert found.scores["boundary_auc"] > 0.97
    assert found.scores["video"] < 0.6
    assert len(found.detections_seconds) == len(found.probabilities) == 80


def test_features_of_scenes_find_scenes_and_no_event():
    scores = evaluate(world(120, 0, "scenes"), world(80, 1, "scenes")).scores
    assert min(scores["clip"], scores["video"], scores["knn"]) > 0.99
    assert scores["event"] < 0.5
    assert abs(scores["boundary_auc"] - 0.5) < 0.1


def test_features_of_nothing_are_at_the_floor_and_no_floor_looks_at_features():
    train, test = world(120, 0, "nothing"), world(80, 1, "nothing")
    scores, floor = evaluate(train, test).scores, floors(train, test)
    assert scores["event"] < floor["majority"]["event"] + 0.1
    assert scores["video"] < floor["majority"]["video"] + 0.15
    assert floor == floors(world(120, 0, "events"), world(80, 1, "events"))
    assert 0 < floor["uniform"]["boundary_f1"] < 0.9


def test_boundary_f1_counts_one_to_one_within_five_percent():
    assert boundary_f1([[1.0, 1.1]], [[1.0]], [10.0]) == pytest.approx(2 / 3)  # a second detection is a false one
    assert boundary_f1([[1.5]], [[1.0]], [10.0]) == 1.0  # inclusive
    assert boundary_f1([[1.51]], [[1.0]], [10.0]) == 0.0
    assert boundary_f1([[1.0], []], [[1.0], [2.0]], [10.0, 10.0]) == pytest.approx(2 / 3)
