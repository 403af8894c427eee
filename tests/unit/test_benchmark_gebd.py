"""Kinetics-GEBD: from raw annotations to ground truth, slip for slip, and without the slips."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from timegrain.data.benchmarks.gebd import (
    MIN_SECONDS,
    corrected_boundaries,
    make_ground_truth,
    official_boundaries,
    read_gebd,
)
from timegrain.safe_pickle import load_pickle


def event(start, end=None):
    return {"start_time": start, "end_time": start if end is None else end, "label": "EventChange (Timestamp/Range): x"}


def shot(start, end=None):
    return {**event(start, end), "label": "ShotChangeImmediateTimestamp: N/A"}


def gradual(start, end):
    return {**event(start, end), "label": "ShotChangeGradualRange: Change due to Cut"}


def record(*annotators, **values):
    usual = {
        "fps": 25.0,
        "num_frames": 250,
        "video_duration": 10.0,
        "path_video": "air drumming/abcdefghijk_000147_000157.mp4",
        "f1_consis": [0.5] * len(annotators),
        "f1_consis_avg": 0.5,
    }
    return {**usual, "substages_timestamps": list(annotators), **values}


def test_the_official_step_gives_the_published_ground_truth(shared):
    """Every annotator of every video of the golden case: same boundaries, same frames, same videos, same order."""
    case = shared / "golden" / "gebd" / "case1"
    raw, expected = load_pickle(case / "raw_annotation.pkl"), load_pickle(case / "gt.pkl")
    made = make_ground_truth(raw, "official")
    assert list(made) == list(expected)
    for key, video in expected.items():
        assert made[key].keys() == video.keys()
        for name, value in video.items():
            assert made[key][name] == value, (key, name)
    assert len(made) == 70
    assert len(raw) == 72


def test_the_corrected_step_differs_only_where_the_slips_were(shared):
    raw = load_pickle(shared / "golden" / "gebd" / "case1" / "raw_annotation.pkl")
    official, corrected = make_ground_truth(raw, "official"), make_ground_truth(raw, "corrected")
    changed = [
        (key, annotator)
        for key in official
        for annotator, times in enumerate(official[key]["substages_timestamps"])
        if times != corrected[key]["substages_timestamps"][annotator]
    ]
    assert 0 < len(changed) < 100  # of 350 annotators


@pytest.mark.parametrize(
    ("entries", "official", "corrected"),
    [
        ([], [], []),
        ([event(3.0, 4.0)], [3.5], [3.5]),
        ([event(0.2), event(0.3), event(9.7), event(9.8)], [0.3, 9.7], [0.3, 9.7]),  # both ends are inclusive
        ([event(5.0), event(5.6), event(5.7)], [5.0, 5.7], [5.0, 5.7]),  # 0.6 s is too near
        ([event(1.0), shot(1.5), shot(4.0)], [1.5, 4.0], [1.5, 4.0]),
        ([event(4.5), shot(1.5), shot(4.0)], [1.5, 4.0, 4.5], [1.5, 4.0]),  # the last shot change is never compared
        ([gradual(2.0, 3.0), gradual(2.5, 4.0)], [3.0], [3.0]),
        ([gradual(5.0, 6.0), gradual(2.0, 3.0)], [5.5], [2.5, 5.5]),  # apart, but not in order: merged
        ([gradual(2.0, 3.0), event(2.5), event(2.6), event(6.0)], [2.5, 2.6, 6.0], [2.5, 6.0]),  # skips after removing
        ([gradual(2.0, 3.0), event(1.7), event(5.0)], [2.5, 5.0], [2.5, 5.0]),  # 0.3 s around a range belongs to it
    ],
)
def test_both_steps_on_small_cases(entries, official, corrected):
    assert official_boundaries(entries, 10.0) == pytest.approx(official)
    assert corrected_boundaries(entries, 10.0) == pytest.approx(corrected)


def test_equal_starts_remove_the_first_of_them():
    """Removal by value: the published program keeps starts and ends apart, and they come out of step."""
    entries = [gradual(1.0, 1.5), gradual(3.0, 4.0), gradual(1.0, 1.4)]
    # starts 1, 3, 1 and ends 1.5, 4, 1.4: the second "overlaps" the third; the first 1 goes, and the end 1.4
    assert official_boundaries(entries, 10.0) == [(3.0 + 1.5) / 2, (1.0 + 4.0) / 2]
    assert corrected_boundaries(entries, 10.0) == [1.25, 3.5]


changes = st.builds(
    lambda kind, start, length: kind(round(start, 2), round(start + length, 2)),
    st.sampled_from([event, shot, gradual]),
    st.floats(0, 10),
    st.floats(0, 2),
)


@given(st.lists(changes, max_size=12))
def test_what_the_corrected_step_promises(entries):
    found = corrected_boundaries(entries, 10.0)
    assert found == sorted(found)
    assert all(MIN_SECONDS <= t <= 10 - MIN_SECONDS + 2 for t in found)
    assert corrected_boundaries(list(reversed(entries)), 10.0) == pytest.approx(found)  # order doesn't matter
    only_events = [entry for entry in entries if entry["label"].startswith("EventChange")]
    apart = np.diff(corrected_boundaries(only_events, 10.0))
    assert (apart > 2 * MIN_SECONDS).all()


def plain_official(entries, duration):
    """The published step as it is described, by positions in lists: slow, and without iterating over what shrinks."""
    events, shots, starts, ends = [], [], [], []
    for entry in entries:
        middle = (entry["start_time"] + entry["end_time"]) / 2
        if middle < 0.3 or middle > duration - 0.3:
            continue
        kind = entry["label"].split(" ")[0]
        if kind == "ShotChangeGradualRange:":
            starts.append(entry["start_time"])
            ends.append(entry["end_time"])
        else:
            (events if kind == "EventChange" else shots).append(middle)
    at = 0
    while at + 1 < len(starts):
        if ends[at] >= starts[at + 1]:
            del starts[starts.index(starts[at + 1])]
            del ends[ends.index(min(ends[at], ends[at + 1]))]
        else:
            at += 1
    for changes_of_kind in (events, shots):
        at = 0
        while at < len(changes_of_kind):
            value = changes_of_kind[at]
            for start, end in zip(starts, ends, strict=True):
                if start - 0.3 <= value <= end + 0.3:
                    del changes_of_kind[changes_of_kind.index(value)]
                    break
            at += 1  # also after a removal: the next one is skipped
        changes_of_kind.sort()
        at = 0
        while at + 1 < len(changes_of_kind):
            if changes_of_kind[at + 1] - changes_of_kind[at] <= 0.6:
                del changes_of_kind[at + 1]
            else:
                at += 1
    for shot in shots[:-1]:
        events = [value for value in events if not abs(value - shot) <= 0.6]
    return sorted(events + shots + [(start + end) / 2 for start, end in zip(starts, ends, strict=True)])


@settings(max_examples=300)
@given(st.lists(changes, max_size=14))
def test_the_official_step_against_a_slow_reference(entries):
    assert official_boundaries(entries, 10.0) == plain_official(entries, 10.0)


@given(st.lists(changes, max_size=12))
def test_without_occasion_for_a_slip_both_agree(entries):
    plain = [entry for entry in entries if entry["label"].startswith("EventChange")]
    assert official_boundaries(plain, 10.0) == corrected_boundaries(plain, 10.0)


def test_frames_come_from_the_videos_own_rate():
    made = make_ground_truth({"v": record([event(9.7)], [], [event(2.0)], fps=26.0)}, "official")["v"]
    assert made["substages_myframeidx"] == [[249.0], [], [52.0]]  # never beyond the last frame
    assert made["path_frame"] == "air drumming/abcdefghijk_000147_000157"


def test_videos_that_the_official_step_leaves_out():
    two = record([event(3.0)], [event(3.0)])
    no_fps = {name: value for name, value in record([], [], []).items() if name != "fps"}
    made = make_ground_truth({"two": two, "none": no_fps, "good": record([], [], [])}, "official")
    assert list(made) == ["good"]
    with pytest.raises(ValueError, match="raw: no video with at least 3 annotators"):
        make_ground_truth({"two": two}, "official")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({}, "no list substages_timestamps"),
        (record([], [], [], fps="fast"), "fps = 'fast' is not a finite number"),
        (record([], [], [], video_duration=float("nan")), "video_duration = nan"),
        (record([], [], [], f1_consis=[0.1]), "f1_consis must hold one number for each of the 3 annotators"),
        (record([], [], [], path_video=None), "no path_video"),
        (record([], [], 3), "annotator 2: not a list of changes"),
        (record([], [{"start_time": 1.0, "label": "x"}], []), "annotator 1: a change lacks end_time"),
        (record([], [{"start_time": 1.0, "end_time": 2.0}], []), "is not a change with start_time"),
    ],
)
def test_a_wrong_entry_is_named(entry, message):
    with pytest.raises(ValueError, match=r"file.pkl, video 'abc'") as caught:
        make_ground_truth({"good": record([], [], []), "abc": entry}, "official", "file.pkl")
    assert message in str(caught.value)


def write(folder, name, content):
    (folder / name).write_bytes(pickle.dumps(content))


def test_the_manifest_gets_the_most_consistent_annotator(tmp_path):
    raw = record([event(1.0)], [event(4.5), shot(4.0)], [event(7.0)], f1_consis=[0.2, 0.9, 0.9])
    write(tmp_path, "k400_val_raw_annotation.pkl", {"abcdefghijk": raw})
    benchmark = read_gebd(tmp_path)
    (video,) = benchmark.listed
    assert video.extra["boundaries_seconds"] == [4.0, 4.5]
    assert video.extra["annotations_seconds"] == [[1.0], [4.0, 4.5], [7.0]]
    assert (video.split, video.label, video.group) == ("val", "air drumming", "abcdefghijk")
    assert video.stems == ("abcdefghijk_000147_000157", "abcdefghijk")
    assert read_gebd(tmp_path, "corrected").listed[0].extra["boundaries_seconds"] == [4.0]
    assert benchmark.files.keys() == {"gebd_val_official.pkl", "gebd_val_corrected.pkl"}
    assert benchmark.facts["ground_truth"] == {"val": "official"}
    for duration, is_whole in ((10.3, False), (240.0, True)):
        row = {"video_id": "abcdefghijk", "duration_seconds": duration, "error": None}
        benchmark.finish(row)
        assert (row["error"] is not None) == is_whole


def test_published_ground_truth_is_taken_as_it_is(tmp_path, shared):
    case = shared / "golden" / "gebd" / "case1"
    name = "k400_mr345_train_min_change_duration0.3.pkl"
    (tmp_path / name).write_bytes((case / "gt.pkl").read_bytes())
    benchmark = read_gebd(tmp_path)
    assert len(benchmark.listed) == 70
    assert benchmark.facts["ground_truth"] == {"train": "as published"}
    assert not benchmark.files
    first = json.loads((case / "gt.json").read_text())[benchmark.listed[0].video_id]
    assert benchmark.listed[0].extra["annotations_seconds"] == first["substages_timestamps"]


def test_files_that_are_wrong(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no k400_SPLIT_raw_annotation.pkl in"):
        read_gebd(tmp_path)
    write(tmp_path, "k400_val_raw_annotation.pkl", {"v": record([], [], [])})
    write(tmp_path, "k400_valnew_raw_annotation.pkl", {"v": record([], [], [])})
    with pytest.raises(ValueError, match=r"valnew.*'v': it is in split val too"):
        read_gebd(tmp_path)
    (tmp_path / "k400_valnew_raw_annotation.pkl").unlink()
    write(tmp_path, "k400_val_raw_annotation.pkl", ["a list"])
    with pytest.raises(ValueError, match="not a dict by video id"):
        read_gebd(tmp_path)
    write(tmp_path, "k400_val_raw_annotation.pkl", print)
    with pytest.raises(ValueError, match=r"k400_val_raw_annotation.pkl.*builtins.print"):
        read_gebd(tmp_path)
    (tmp_path / "k400_val_raw_annotation.pkl").unlink()
    write(tmp_path, "k400_mr345_val_min_change_duration0.3.pkl", {"v": {"f1_consis": []}})
    with pytest.raises(ValueError, match="video 'v': not an entry of ground truth: KeyError"):
        read_gebd(tmp_path)
