"""Within-video matching: chance is exactly one in five, and only telling events apart beats it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from timegrain.metrics.matching import WithinVideoMatching, affinities, best_assignments
from timegrain.metrics.verbs import VerbScores

LABELS = [
    ["look.01"] * 6 + ["walk.01"] * 4,
    ["speak.01"] * 5 + ["look.01"] * 5,
    ["run.01"] * 3 + ["look.01"] * 7,
    ["look.01"] * 9 + ["sit.01"],
    ["open.01", "look.01"],
]


def score(predicted, labels=None):
    metric = WithinVideoMatching()
    metric.update(predicted, LABELS if labels is None else labels)
    return metric.compute()


@pytest.mark.parametrize(
    "constant",
    [["look.01"], ["speak.01", "look.01", "walk.01", "run.01", "sit.01"], ["absent.01"], []],
)
def test_a_constant_prediction_scores_exactly_chance(constant):
    result = score([constant] * 5)
    assert result == {"accuracy": 0.2, "chance": 0.2, "videos": 1, "tied_videos": 1}


def test_the_constant_that_wins_at_accuracy_does_not_win_here():
    accuracy = VerbScores()
    accuracy.update([["look.01"]] * 5, LABELS)
    assert accuracy.compute()["acc@1"] == 1.0
    assert score([["look.01"]] * 5)["accuracy"] == 0.2


def test_right_and_reversed_predictions():
    right = [["walk.01"], ["speak.01"], ["run.01"], ["sit.01"], ["open.01"]]
    assert score(right)["accuracy"] == 1.0
    assert score(right[1:] + right[:1])["accuracy"] == 0.0
    assert score(right)["tied_videos"] == 0


def test_two_events_of_equal_labels_share_their_points():
    labels = [["a"], ["a"], ["c"], ["d"], ["e"]]
    result = score([["a"], ["a"], ["c"], ["d"], ["e"]], labels)
    assert result["accuracy"] == pytest.approx((1 + 5 / 5 - 2 / 5) / 2)  # two best assignments: 5 and 3 right
    assert result["tied_videos"] == 1


def test_a_prior_added_to_all_events_changes_nothing():
    rng = np.random.default_rng(0)
    for _ in range(20):
        table = rng.integers(0, 50, (5, 5))
        shifted = table + rng.integers(0, 50, 5)[:, None] + rng.integers(0, 50, 5)
        assert best_assignments(table) == best_assignments(shifted)


def test_random_predictions_average_to_chance():
    rng = np.random.default_rng(1)
    orders = list(itertools.permutations(range(5)))
    verbs = [rng.choice(["look.01", "walk.01", "speak.01", "run.01", "sit.01"], 5).tolist() for _ in range(5)]
    metric = WithinVideoMatching()
    for order in orders:  # every order of one set of predictions: the mean is chance exactly, ties or not
        metric.update([verbs[i] for i in order], LABELS)
    assert metric.compute()["accuracy"] == pytest.approx(0.2, abs=1e-15)


def test_affinities_by_hand():
    table = affinities([["a", "b", "a"], ["b"]], [["a", "a", "b", "c"], ["b"]])
    # in units of 1/60 of the smallest share (1/4): rank 1 = 60, rank 2 = 30; a verb counts at its better rank
    assert table.tolist() == [[60 * 2 + 30, 30 * 4], [60, 60 * 4]]
    many = affinities([["x", "x", "x", "x", "x", "a"]], [["b"] * 10 + ["x"]])
    assert many.tolist() == [[0]]  # neither the sixth verb nor the eleventh annotation counts


def test_bad_input_and_empty():
    metric = WithinVideoMatching()
    assert metric.compute() == {"accuracy": None, "chance": None, "videos": 0, "tied_videos": 0}
    with pytest.raises(ValueError, match="event 2 has no annotation"):
        metric.update([["a"], ["b"]], [["a"], []])
    with pytest.raises(ValueError, match="2 predictions for 1 events"):
        metric.update([["a"], ["b"]], [["a"]])
    with pytest.raises(ValueError, match="square"):
        metric.update_affinities(np.zeros((2, 3)))
    with pytest.raises(ValueError, match="square"):
        metric.update_affinities(np.full((2, 2), np.nan))
    with pytest.raises(ValueError, match="9 events"):
        metric.update_affinities(np.zeros((9, 9)))
    assert metric.compute()["videos"] == 0
