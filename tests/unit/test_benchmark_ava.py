"""AVA-Kinetics' csv files and label map, as published and wrong."""

from __future__ import annotations

import pytest

from timegrain.data.benchmarks.ava import read_ava_kinetics
from timegrain.data.benchmarks.joining import VideoFiles

MAP = 'item {\n  name: "stand"\n  id: 12\n}\nitem {\n  name: "talk to (e.g., self)"\n  id: 79\n}\n'


def read(folder, **files):
    """Keyword `ava_val_v2_2="rows"` is the file ava_val_v2.2.csv."""
    (folder / "ava_action_list_v2.2_for_activitynet_2019.pbtxt").write_text(MAP)
    for name, text in files.items():
        head, _, minor = name.rpartition("_")
        (folder / f"{head}.{minor}.csv").write_bytes(text.encode())
    return read_ava_kinetics(folder)


def test_movies_and_clips(tmp_path):
    benchmark = read(
        tmp_path,
        ava_val_v2_2="m1,0904,0.1,0.2,0.3,0.4,12,7\r\nm1,0902,0.0,0,1,1,79,3\nm1,0902,0.0,0,1,1,12,3\nm1,0903\nm2,902.0,0,0,1,1,5,0\n",
        kinetics_train_v1_0="abcdefghijk,5.0,0.1,0.1,0.5,0.5,79\nabcdefghijk,25.5,0.1,0.1,0.5,0.5,12\n",
    )
    m1, m2, first, second = benchmark.listed
    assert (m1.video_id, m1.split, m1.extra["source"]) == ("m1", "val", "ava")
    assert m1.extra["key_frame_seconds"] == [902.0, 903.0, 904.0]
    assert [(box["key_frame"], box["action"], box["person"]) for box in m1.extra["boxes"]] == [
        (0, 79, 3),
        (0, 12, 3),
        (2, 12, 7),
    ]
    assert m1.extra["boxes"][2] == {
        "key_frame": 2,
        "x1": 0.1,
        "y1": 0.2,
        "x2": 0.3,
        "y2": 0.4,
        "action": 12,
        "person": 7,
    }
    assert m2.extra["boxes"] == []  # an action outside the label map: its frame stays
    assert m2.extra["key_frame_seconds"] == [902.0]
    assert (first.split, first.extra["video_id"], first.at_seconds) == ("train", "abcdefghijk", 5.0)
    assert second.extra["key_frame_seconds"] == [25.5]
    assert second.extra["boxes"][0]["person"] is None
    assert benchmark.facts["label_map"] == {"12": "stand", "79": "talk to (e.g., self)"}
    assert any("1 rows of actions that aren't in the label map" in note for note in benchmark.notes)


def test_of_both_published_label_maps_the_evaluated_one_is_taken(tmp_path):
    (tmp_path / "ava_action_list_v2.2.pbtxt").write_text(MAP + 'item {\n  name: "swim"\n  id: 66\n}\n')
    assert sorted(read(tmp_path, ava_val_v2_2="m1,0902\n").facts["label_map"]) == ["12", "79"]


def test_excluded_key_frames_are_left_out(tmp_path):
    (tmp_path / "ava_val_excluded_timestamps_v2.2.csv").write_text("m1,0903\n")
    rows = "m1,0902,0,0,1,1,12,0\nm1,903,0,0,1,1,12,0\n"
    benchmark = read(tmp_path, ava_val_v2_2=rows)
    assert benchmark.listed[0].extra["key_frame_seconds"] == [902.0]
    assert benchmark.facts["excluded_key_frames_given"]


def test_a_clip_is_the_file_that_holds_its_key_frame(tmp_path):
    rows = "abcdefghijk,5.0,0,0,1,1,12\nabcdefghijk,25.5,0,0,1,1,12\nabcdefghijk,99\n"
    listed = read(tmp_path, kinetics_val_v1_0=rows).listed
    videos = tmp_path / "videos"
    videos.mkdir()
    for name in ("abcdefghijk_000000_000010.mp4", "abcdefghijk_000020_000030.mkv", "other.mp4"):
        (videos / name).touch()
    found = [[path.name for path in VideoFiles(videos).of(video)] for video in listed]
    assert found == [["abcdefghijk_000000_000010.mp4"], ["abcdefghijk_000020_000030.mkv"], []]


@pytest.mark.parametrize(
    ("path", "duration", "source", "times", "offset", "outside", "has_error"),
    [
        ("m.mkv", 5400.0, "ava", [902.0, 1798.0], 0.0, 0, False),  # the whole movie
        ("m.mp4", 900.0, "ava", [902.0, 1798.0], 900.0, 0, False),  # the usual cut of 15 minutes
        ("m.mp4", 896.0, "ava", [float(t) for t in range(902, 1799)], 900.0, 2, False),
        ("m.mp4", 60.0, "ava", [902.0, 1798.0], 900.0, 1, True),  # another file
        ("abcdefghijk_000020_000030.mp4", 10.0, "kinetics", [25.5], 20.0, 0, False),
        ("abcdefghijk.mp4", 200.0, "kinetics", [25.5], 0.0, 0, False),
    ],
)
def test_where_a_file_starts_in_the_original(tmp_path, path, duration, source, times, offset, outside, has_error):
    finish = read(tmp_path, ava_val_v2_2="m1,0902\n").finish
    row = {
        "path": f"/videos/{path}",
        "duration_seconds": duration,
        "source": source,
        "key_frame_seconds": times,
        "error": None,
    }
    finish(row)
    assert row["time_offset_seconds"] == offset
    assert row["key_frames_outside"] == outside
    assert (row["error"] is not None) == has_error
    if has_error:
        assert "1 of 2 key frames, the first at 1798 s, lie outside this file, which lasts 60 s" in row["error"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("m1,0902,0,0,1\n", "line 1: 5 columns; a row has 2, 7 or 8"),
        ("m1,0902\nm1,soon\n", "line 2: time 'soon' is not a finite number"),
        ("m1,0902,0,0,1,nan,12,0\n", "line 1: y2 'nan' is not a finite number"),
        ("m1,0902,0,0,1,1,stand,0\n", "line 1: action id 'stand' is not a whole number"),
        ("m1,0902,0,0,1,1,12,-1\n", "line 1: person id '-1' is not a whole number"),
        (",0902\n", "line 1: no video id"),
        ("\n", "no row left"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, row, message):
    with pytest.raises(ValueError, match=r"ava_val_v2.2.csv") as caught:
        read(tmp_path, ava_val_v2_2=row)
    assert message in str(caught.value)


def test_files_that_are_wrong(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no label map \(.pbtxt\) in"):
        read_ava_kinetics(tmp_path)
    with pytest.raises(FileNotFoundError, match="no ava_train_v2"):
        read(tmp_path)
    with pytest.raises(ValueError, match="line 1: m1 is in the other split too"):
        read(tmp_path, ava_val_v2_2="m1,0902\n", ava_train_v2_2="m1,0902\n")
    with pytest.raises(ValueError, match="several versions of ava_val; keep one"):
        read(tmp_path, ava_val_v2_1="m1,0902\n")
    (tmp_path / "ava_val_v2.1.csv").unlink()
    (tmp_path / "ava_train_v2.2.csv").unlink()
    (tmp_path / "ava_val_excluded_timestamps_v2.2.csv").write_text("m1,0902,3\n")
    with pytest.raises(ValueError, match="line 1: 3 columns; an exclusion list has 2"):
        read_ava_kinetics(tmp_path)
    (tmp_path / "ava_action_list_v2.1_for_activitynet_2018.pbtxt").write_text(MAP)
    with pytest.raises(ValueError, match="holds 2 files of label map"):
        read_ava_kinetics(tmp_path)


def test_the_public_samples(shared, tmp_path):
    samples = shared / "data" / "annotations" / "ava"
    names = {
        "ava_action_list_v2.1_for_activitynet_2018.pbtxt": "ava_action_list_v2.1_for_activitynet_2018.pbtxt",
        "mmaction2_ava_dataset_ava_sample.csv": "ava_train_v2.1.csv",
        "mmaction2_ava_dataset_ava_excluded_timestamps_sample.csv": "ava_train_excluded_timestamps_v2.1.csv",
    }
    for source, target in names.items():
        (tmp_path / target).write_bytes((samples / source).read_bytes())
    benchmark = read_ava_kinetics(tmp_path)
    assert len(benchmark.facts["label_map"]) == 60
    video = benchmark.listed[0]
    assert video.video_id == "0f39OWEqJ24"
    assert 903.0 not in video.extra["key_frame_seconds"]  # excluded
    assert {box["action"] for box in video.extra["boxes"]} <= {12, 17, 79}
