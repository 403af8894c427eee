"""Targets, videos set aside, picking and the choice of its threshold, against slow loops and planted cases."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from timegrain.boundaries import (
    Picking,
    change_curve,
    choose_picking,
    held_out,
    near_boundary,
    prominent_peaks,
)
from timegrain.boundary_finding import boundaries_of
from timegrain.feature_tables import VideoFeatures
from timegrain.metrics.boundary_f1 import BoundaryVideo, boundaries_from_scores

times = st.lists(st.integers(0, 400), max_size=20).map(lambda frames: [f / 30 for f in frames])


@given(times, times)
def test_near_is_what_a_slow_loop_says(moments, boundaries):
    expected = [any(abs(m - b) <= 0.15 + 1e-9 for b in boundaries) for m in moments]
    assert near_boundary(moments, boundaries).tolist() == expected


def test_exactly_the_tolerance_is_near():
    assert near_boundary([0.85, 1.0, 1.15, 1.1501], [1.0]).tolist() == [True, True, True, False]


@given(st.lists(st.text("abcdef", min_size=1, max_size=4), min_size=2, max_size=60), st.floats(0.01, 0.9))
def test_setting_aside_keeps_groups_together_and_both_sides_filled(names, share):
    aside = held_out(names, share)
    by_name = {name: {bool(a) for n, a in zip(names, aside, strict=True) if n == name} for name in names}
    assert all(len(sides) == 1 for sides in by_name.values())
    if len(by_name) > 1:
        assert {True, False} == {bool(a) for a in aside}


def test_setting_aside_does_not_move_others_and_meets_its_share():
    names = [f"video{i}" for i in range(4000)]
    aside = held_out(names, 0.1)
    assert 0.08 < aside.mean() < 0.12
    assert held_out(names[:2000], 0.1).tolist() == aside[:2000].tolist()
    assert held_out(names, 0.1, seed=1).tolist() != aside.tolist()


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_an_impossible_share_is_refused(share):
    with pytest.raises(ValueError, match="set aside"):
        held_out(["a", "b"], share)


scores = st.lists(st.integers(0, 10), min_size=1, max_size=40).map(lambda values: [v / 10 for v in values])


@given(scores, st.floats(0.05, 0.95))
def test_runs_are_the_official_rule(values, threshold):
    seconds = np.arange(len(values)) * 0.1
    frames = boundaries_from_scores(values, list(range(len(values))), threshold)
    assert Picking("runs", threshold).boundaries(values, seconds) == [float(seconds[f]) for f in frames]


@given(scores, st.floats(0.05, 0.95), st.sampled_from([0.0, 0.1, 0.35]))
def test_peaks_are_high_enough_local_maxima_that_keep_their_distance(values, threshold, gap):
    seconds = np.arange(len(values)) * 0.1
    found = Picking("peaks", threshold, gap).boundaries(values, seconds)
    places = [round(t / 0.1) for t in found]
    for place in places:
        around = values[max(0, place - 1) : place + 2]
        assert values[place] >= threshold
        assert values[place] == max(around)
    assert all(b - a >= max(gap / 0.1, 1) - 1e-6 for a, b in itertools.pairwise(places))
    if max(values) >= threshold and len(values) > 1:
        assert found


def test_peaks_at_both_ends_count_and_the_higher_of_two_near_ones_stays():
    seconds = np.arange(6) * 0.5
    assert Picking("peaks", 0.5, 0.0).boundaries([0.9, 0.1, 0.2, 0.1, 0.1, 0.8], seconds) == [0.0, 2.5]
    assert Picking("peaks", 0.5, 1.2).boundaries([0.1, 0.7, 0.1, 0.9, 0.1, 0.1], seconds) == [1.5]


@pytest.mark.parametrize("rate", [5.0, 10.0, 15.0, 25 / 3, 8.0])
def test_peaks_exactly_the_gap_apart_both_stay(rate):
    seconds = np.arange(200) / rate
    steps = 9  # of the gap, whose seconds are rounded
    values = np.zeros(200)
    values[[50, 50 + steps, 120, 120 + steps - 1]] = 0.9, 0.8, 0.9, 0.8
    expected = [seconds[50], seconds[50 + steps], seconds[120]]
    assert Picking("peaks", 0.5, steps / rate).boundaries(values, seconds) == expected
    found = prominent_peaks(values, seconds, seconds[-1], 1.0, steps / rate, 0.0)
    assert seconds[found].tolist() == expected
    assert Picking("peaks", 0.5).boundaries([0.9, 0.1, 0.8], [1.0, 1.0, 1.0]) == [1.0]  # times that stand still


@pytest.mark.parametrize("settings", [{"rule": "mean"}, {"gap_seconds": -1.0}])
def test_impossible_picking_is_refused(settings):
    with pytest.raises(ValueError, match=r"rule|gap"):
        Picking(**settings)


def planted(rng: np.random.Generator, scale: float) -> tuple[list, list, list]:
    """Scores with a wide bump at each boundary, over noise."""
    all_scores, all_seconds, videos = [], [], []
    for _ in range(12):
        seconds = np.arange(100) / 10
        marks = np.sort(rng.choice(np.arange(1, 9), 3, replace=False)).astype(float)
        curve = np.exp(-((seconds[:, None] - marks) ** 2) / 0.02).sum(1) + 0.2 * rng.random(100)
        all_scores.append(curve * scale)
        all_seconds.append(seconds)
        videos.append(BoundaryVideo(10.0, 10.0, (tuple(marks.tolist()),)))
    return all_scores, all_seconds, videos


@pytest.mark.parametrize("scale", [1.0, 1e-4])
def test_the_threshold_is_found_whatever_the_scale_of_the_scores(scale):
    choice = choose_picking(*planted(np.random.default_rng(0), scale))
    assert choice.f1 == 1.0
    assert 0.2 * scale < choice.picking.threshold < 1.2 * scale
    assert max(point["f1"] for point in choice.curve) == choice.f1
    assert {point["rule"] for point in choice.curve} == {"runs", "peaks"}


def test_videos_that_the_score_leaves_out_choose_nothing():
    all_scores, all_seconds, videos = planted(np.random.default_rng(0), 1.0)
    expected = choose_picking(all_scores, all_seconds, videos)
    doubtful = [BoundaryVideo(10.0, 10.0, ((0.0, 9.9),), 0.29) for _ in videos]
    noise = list(np.random.default_rng(1).random((len(videos), 100)))
    assert choose_picking(all_scores + noise, all_seconds * 2, videos + doubtful) == expected
    assert choose_picking(noise, all_seconds, doubtful).f1 < 1.0  # there is nothing else to go by


def test_without_scores_there_is_no_threshold():
    with pytest.raises(ValueError, match="no score"):
        choose_picking([], [], [])


def test_change_is_a_slow_loop_s_cosine_distance():
    rng = np.random.default_rng(0)
    features, seconds = rng.normal(size=(30, 5)), np.cumsum(rng.uniform(0.05, 0.3, 30))
    curve = change_curve(features, seconds, 0.5)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    for i in range(1, 30):
        before = [j for j in range(i) if seconds[j] >= seconds[i] - 0.5 - 1e-9] or [i - 1]
        after = [j for j in range(i, 30) if seconds[j] < seconds[i] + 0.5 - 1e-9] or [i]
        a, b = unit[before].sum(0), unit[after].sum(0)
        assert curve[i] == pytest.approx(1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b), abs=1e-12)
    assert curve[0] == 0


def test_prominent_peaks_lie_where_the_features_turn():
    rng = np.random.default_rng(1)
    seconds = np.arange(100) / 10
    kinds = rng.normal(size=(3, 8))
    features = kinds[np.searchsorted([4.0, 7.0], seconds, side="right")] + 0.05 * rng.normal(size=(100, 8))
    curve = change_curve(features, seconds, 1.0)
    found = seconds[prominent_peaks(curve, seconds, 10.0, 1.0, 0.6, 0.3)]
    assert found.tolist() == [4.0, 7.0]


def test_nothing_that_changes_has_no_boundary():
    still = np.ones((50, 4))
    curve = change_curve(still, np.arange(50) / 10, 1.0)
    assert len(prominent_peaks(curve, np.arange(50) / 10, 5.0, 1.0, 0.6, 0.3)) == 0
    assert len(prominent_peaks(np.empty(0), np.empty(0), 0.0, 1.0, 0.6, 0.3)) == 0


def test_what_padding_makes_of_the_ends_is_no_boundary():
    rng = np.random.default_rng(0)
    features = np.repeat(rng.normal(size=(2, 8)), (7, 5), axis=0) + rng.normal(scale=0.01, size=(12, 8))
    features[[0, -1]] = rng.normal(size=(2, 8))  # further from all else than the two halves from each other
    start = np.arange(12) * 0.5
    seen = VideoFeatures(
        "a.mp4", features.astype(np.float32), start + 0.25, start, start + 0.5, 6.0,
        features[:1], start[:1], start[-1:] + 0.5, features[0],
    )  # fmt: skip
    assert boundaries_of(seen).seconds.tolist() == [3.5]
    short = replace(seen, features=seen.features[:2], timestamps_seconds=start[:2], start_seconds=start[:2])
    assert len(boundaries_of(short).seconds) == 0
