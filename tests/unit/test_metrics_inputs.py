"""Files to be scored: what is read, and what each refusal says."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from timegrain.metrics.frame_files import read_boxes, read_frames, read_label_map, without_frames
from timegrain.metrics.inputs import (
    read_boundaries,
    read_boundary_truth,
    read_clip_logits,
    read_json,
    read_retrieval_sets,
    read_train_verbs,
    read_verb_labels,
    read_verb_predictions,
)

VIDEO = {
    "num_frames": 300,
    "video_duration": 10.0,
    "f1_consis_avg": 0.6,
    "substages_timestamps": [[1.0, 2], []],
    "substages_myframeidx": [[30.0, 60.0], []],
}


def dump(path, value):
    if path.suffix == ".json":
        path.write_text(json.dumps(value))
    else:
        path.write_bytes(pickle.dumps(value))
    return path


def test_boundary_truth_in_both_units(tmp_path):
    numpy_video = VIDEO | {
        "substages_timestamps": [np.array([1.0, 2.0]), []],
        "f1_consis_avg": np.float32(0.5),
        "num_frames": np.int64(300),
    }
    path = dump(tmp_path / "gt.pkl", {"a": VIDEO, "b": numpy_video})
    seconds, frames = read_boundary_truth(path, "challenge"), read_boundary_truth(path, "notebook")
    assert seconds["a"].annotations == seconds["b"].annotations == ((1.0, 2.0), ())
    assert (seconds["a"].length, seconds["a"].last) == (10.0, 10.0)
    assert (frames["b"].length, frames["b"].last) == (300.0, 299.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"video_duration": None}, "video 'v', video_duration: a number is needed, not None"),
        ({"video_duration": float("nan")}, "video_duration: nan is not a finite number"),
        ({"video_duration": True}, "a number is needed, not True"),
        ({"substages_timestamps": []}, "no annotator"),
        ({"substages_timestamps": {"a": 1}}, "a list is needed, not dict"),
        ({"substages_timestamps": [["x"]]}, "a number is needed, not 'x'"),
        ({"substages_timestamps": [[{"start_time": 1.0}]]}, "raw annotation file"),
        ({"f1_consis_avg": "high"}, "f1_consis_avg: a number is needed"),
    ],
)
def test_boundary_truth_refusals(tmp_path, change, message):
    path = dump(tmp_path / "gt.pkl", {"v": VIDEO | change})
    with pytest.raises(ValueError, match=message) as caught:
        read_boundary_truth(path, "challenge")
    assert str(path) in str(caught.value)


def test_boundary_truth_missing_field_and_wrong_kind(tmp_path):
    for value, message in (
        ({"v": {k: v for k, v in VIDEO.items() if k != "num_frames"}}, "video 'v': the field 'num_frames' is missing"),
        ({"v": [1, 2]}, "video 'v': a dict is needed, not list"),
        ([VIDEO], "a dict is needed, not list"),
        ({}, "no video in it"),
    ):
        with pytest.raises(ValueError, match=message):
            read_boundary_truth(dump(tmp_path / "gt.pkl", value), "notebook")


def test_boundaries(tmp_path):
    value = {"a": [1, 2.5], "b": np.array([3.0]), "c": []}
    assert read_boundaries(dump(tmp_path / "p.pkl", value)) == {"a": (1.0, 2.5), "b": (3.0,), "c": ()}
    for bad, message in (
        ({"a": [1.0, float("nan")]}, "video 'a': nan is not"),
        ({"a": 1.0}, "video 'a': a list is needed, not float"),
        ({"a": None}, "video 'a': a list is needed, not NoneType"),
        ({"a": ["1.0"]}, "video 'a': a number is needed, not '1.0'"),
        ([1.0], "a dict is needed, not list"),
    ):
        with pytest.raises(ValueError, match=message):
            read_boundaries(dump(tmp_path / "p.pkl", bad))


def test_json_mistakes(tmp_path):
    path = tmp_path / "p.json"
    for text, message in (
        ('{"a": [1.0],\n "a": [2.0]}', "the key 'a' is given twice"),
        ('{"a": [1.0],\n "b": [2.0,]}', "line 2, column"),
        ("", "line 1, column 1"),
        ("[" * 100_000, "p.json: "),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_json(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"p\.json"):
        read_json(path)
    path.write_bytes(b'\xef\xbb\xbf{"a": [NaN]}')
    with pytest.raises(ValueError, match="nan is not"):
        read_boundaries(path)


SEGMENTS = ["v_aaaaaaaaaaa_seg_0_10", "v_bbbbbbbbbbb_seg_5_15"]


def verb_folder(root, segments=SEGMENTS, info=None, labels=None):
    (root / "split_files").mkdir(parents=True, exist_ok=True)
    (root / "vinfo_files").mkdir(exist_ok=True)
    labels = labels or {f"Ev{i}": ["look.01"] * 10 for i in range(1, 6)}
    info = [{"vid_seg_int": s, "vbid_lst": labels} for s in segments] if info is None else info
    dump(root / "split_files" / "vseg_split_valid_lb.json", segments)
    dump(root / "vinfo_files" / "vinfo_valid_lb.json", info)
    return root


def test_verb_labels(tmp_path):
    labels = read_verb_labels(verb_folder(tmp_path))
    assert list(labels) == SEGMENTS
    assert labels[SEGMENTS[0]][4] == ("look.01",) * 10
    with pytest.raises(FileNotFoundError, match="holds split_files"):
        read_verb_labels(tmp_path / "nowhere")


def test_verb_label_refusals(tmp_path):
    full = {f"Ev{i}": ["look.01"] * 10 for i in range(1, 6)}
    good = {"vid_seg_int": SEGMENTS[0], "vbid_lst": full}
    for arguments, message in (
        ({"segments": SEGMENTS[:1] * 2, "info": [good]}, "is listed twice"),
        ({"info": [good]}, f"segment '{SEGMENTS[1]}': it is in the split but has no entry"),
        ({"info": [good, good]}, "has an entry already"),
        ({"info": [{"vbid_lst": full}]}, "entry 0: the field 'vid_seg_int' is missing"),
        ({"info": [{"vid_seg_int": s} for s in SEGMENTS]}, "the field 'vbid_lst' is missing"),
        ({"labels": {k: v for k, v in full.items() if k != "Ev4"}}, "the field 'Ev4' is missing"),
        ({"labels": full | {"Ev2": []}}, "Ev2: no annotated verb"),
        ({"labels": full | {"Ev1": ["a.01"] * 8}}, "Ev1: 8 verbs; the official program needs 9"),
        ({"labels": full | {"Ev2": [3]}}, "a verb id such as"),
        ({"segments": [], "info": []}, "no segment"),
        ({"segments": [["a"]], "info": []}, "entry 0: the name of a segment is needed, not"),
        ({"info": [{"vid_seg_int": {"a": 1}}]}, "entry 0, vid_seg_int: the name of a segment is needed, not"),
    ):
        with pytest.raises(ValueError, match=message):
            read_verb_labels(verb_folder(tmp_path / "x", **arguments))


def entry(index, **change):
    verbs = [["look.01", "walk.01"]] * 5
    return {"ann_idx": index, "pred_vbs_ev": verbs, "pred_scores_ev": [[0.9, 0.1]] * 5} | change


def test_verb_predictions(tmp_path):
    twice = [entry(1), entry(np.int64(0)), entry(1, pred_vbs_ev=[["x"]] * 5), entry(0)]
    read = read_verb_predictions(dump(tmp_path / "p.pkl", twice), SEGMENTS)
    assert read.repeated == 2
    assert read.verbs[1][0] == ("look.01", "walk.01")
    rising = [entry(0), entry(1, pred_scores_ev=[[0.1, 0.9]] * 5)]
    assert read_verb_predictions(dump(tmp_path / "p.pkl", rising), SEGMENTS).unsorted == 5
    for bad, message in (
        ([entry(0)], f"1 of 2 segments have no prediction, the first is '{SEGMENTS[1]}'"),
        ([entry(0), entry(2)], "entry 1: ann_idx 2 is not in the split, which has 2 segments"),
        ([entry(0), entry(0.5)], "ann_idx 0.5"),
        ([entry(-1)], "ann_idx -1"),
        ([entry(0, pred_vbs_ev=[["a"]] * 4)], "entry 0, pred_vbs_ev: 4 lists"),
        ([entry(0, pred_vbs_ev=[[1]] * 5)], "a verb id such as 'speak.01' is needed, not 1"),
        ([entry(0, pred_scores_ev=[[float("nan")]] * 5)], "entry 0, pred_scores_ev: nan"),
        ([{"pred_vbs_ev": []}], "entry 0: the field 'ann_idx' is missing"),
        ({"a": 1}, "a list is needed, not dict"),
    ):
        with pytest.raises(ValueError, match=message):
            read_verb_predictions(dump(tmp_path / "p.pkl", bad), SEGMENTS)


def test_train_verbs(tmp_path):
    assert read_train_verbs(tmp_path) is None
    (tmp_path / "vseg_ann_files").mkdir()
    path = tmp_path / "vseg_ann_files" / "vsann_train_lb.json"
    dump(path, [{f"Ev{i}": {"VerbID": f"v{i}.01"} for i in range(1, 6)}])
    assert read_train_verbs(tmp_path) == [("v1.01", "v2.01", "v3.01", "v4.01", "v5.01")]
    dump(path, [{f"Ev{i}": {} for i in range(1, 6)}])
    with pytest.raises(ValueError, match="entry 0: the field 'VerbID' is missing"):
        read_train_verbs(tmp_path)


CLIPS = {"labels": [0, 1], "clip_ids": [1, 0], "views_per_video": 1, "logits_by_clip_id": [[1.0, 2.0], [3.0, 4.0]]}


def test_clip_logits(tmp_path):
    path = tmp_path / "c.json"
    assert read_clip_logits(dump(path, CLIPS)).logits.tolist() == [[3.0, 4.0], [1.0, 2.0]]
    for change, message in (
        ({"labels": [0.5, 1]}, "labels, row 0: 0.5 is not a whole number"),
        ({"clip_ids": [1, 2]}, "clip_ids, row 1: clip 2 has no row"),
        ({"logits_by_clip_id": [[1.0, 2.0], [3.0]]}, "rows of different lengths"),
        ({"logits_by_clip_id": [[1.0, 2.0], [3.0, float("nan")]]}, "logits_by_clip_id, row 1"),
        ({"logits_by_clip_id": [["a"]]}, "not numbers"),
        ({"logits_by_clip_id": 3}, "logits_by_clip_id"),
        ({"logits_by_clip_id": [[10**400, 1.0], [1.0, 2.0]]}, "not numbers"),
        ({"num_videos": 3}, "num_videos is 3, but the file holds 2"),
        ({"views_per_video": 0}, "views_per_video is 0; a whole number"),
    ):
        with pytest.raises(ValueError, match=message):
            read_clip_logits(dump(path, CLIPS | change))
    with pytest.raises(ValueError, match="the field 'clip_ids' is missing"):
        read_clip_logits(dump(path, {"labels": [0]}))


def test_retrieval_sets(tmp_path):
    good = {"gallery_train": [[1.0]], "gallery_labels": [0], "query_test": [[1.0]], "query_labels": [0]}
    path = tmp_path / "r.json"
    assert read_retrieval_sets(dump(path, good)).query.tolist() == [[1.0]]
    for change, message in (
        ({"query_labels": [0, 1]}, "1 rows in query_test, 2 in query_labels"),
        ({"query_test": [[1.0, 2.0]]}, "size 1 in the gallery, 2 in queries"),
    ):
        with pytest.raises(ValueError, match=message):
            read_retrieval_sets(dump(path, good | change))


TRUTH = "v,0902,0.1,0.1,0.5,0.5,3,1\r\nv,902.0,0.1,0.1,0.6,0.5,4\nv,903\r\rw,1.5\n\n"


def test_boxes_with_mixed_line_ends_and_columns(tmp_path):
    path = tmp_path / "gt.csv"
    path.write_bytes(b"\xef\xbb\xbf" + TRUTH.encode())
    read = read_boxes(path, "ground truth")
    assert read.boxes.frames == ("v,902.000000", "v,903.000000", "w,1.500000")
    assert read.boxes.frame.tolist() == [0, 0]
    assert read.boxes.scores.tolist() == [1.0, 1.0]
    part = without_frames(read.boxes, {"v,902.000000", "absent"})
    assert part.frames == ("v,903.000000", "w,1.500000")
    assert len(part.frame) == 0


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("v,1,0.1,0.1,0.5,0.5,3", "line 2: 7 columns; a row of detections has 8"),
        ("v,1", "line 2: 2 columns"),
        ("v,1,0.1,0.1,0.5,0.5,3,nan", "line 2: score is not a finite number"),
        ("v,1,0.1,inf,0.5,0.5,3,0.5", "line 2: y1 is not a finite number"),
        ("v,1,0.1,x,0.5,0.5,3,0.5", "line 2: y1 'x' is not a number"),
        ("v,1,0.1,0.1,0.5,0.5,3,", "line 2: score '' is not a number"),
        ("v,1,0.1,0.1,0.5,0.5,walk,0.5", "line 2: action id 'walk' is not a whole number"),
        ("v,1,0.1,0.1,0.5,0.5,99999999999999999999,0.5", "line 2: action id"),
        ("v,nan,0.1,0.1,0.5,0.5,3,0.5", "line 2: a video id and a finite time"),
        (",1,0.1,0.1,0.5,0.5,3,0.5", "line 2: a video id and a finite time"),
        ("v,late,0.1,0.1,0.5,0.5,3,0.5", "line 2: time 'late' is not a number"),
        ('"v,1,0.1', "columns"),
        ("v" * 200_000, "after line"),
        ("v,\0,0.1,0.1,0.5,0.5,3,0.5", "line 2"),
    ],
)
def test_box_refusals_name_the_line(tmp_path, row, message):
    path = tmp_path / "det.csv"
    path.write_text("v,1,0.1,0.1,0.5,0.5,3,0.5\n" + row + "\n")
    with pytest.raises(ValueError, match=message) as caught:
        read_boxes(path, "detections")
    assert str(path) in str(caught.value)


def test_more_box_refusals(tmp_path):
    path = tmp_path / "gt.csv"
    path.write_text("video,time,x1,y1,x2,y2,action,person\n")
    with pytest.raises(ValueError, match=r"line 1: time 'time' is not a number \(these files have no header"):
        read_boxes(path, "ground truth")
    path.write_text("")
    with pytest.raises(ValueError, match="no row"):
        read_boxes(path, "ground truth")
    assert read_boxes(path, "detections").boxes.frames == ()
    path.write_bytes(b"v,1,0.1,0.1,0.5,0.5,3,0.5\nv\xff\xfe,1\n")
    with pytest.raises(ValueError, match="not a text file"):
        read_boxes(path, "ground truth")


def test_repeated_rows_are_found_wherever_they_are(tmp_path):
    path = tmp_path / "det.csv"
    row, other = "v,1,0.1,0.1,0.5,0.5,3,0.5", "v,1,0.1,0.1,0.5,0.5,3,0.6"
    path.write_text("\n".join([row, other, row.replace("v,1,", "v,1.0,"), other, other]))
    read = read_boxes(path, "detections")
    assert (read.repeated, read.first_repeated_line) == (3, 3)


LINES = st.lists(
    st.sampled_from(
        [
            "v,1,0.1,0.1,0.5,0.5,3,0.5",
            "w,0902.50,1e-3,.1,0.30000000000000004,1,12,1",
            '"v",902.5,0.1,0.1,0.5,0.5,3,0.25',
            "v,1,0.1,0.1,0.5,0.5,3",
            "v,1",
            "",
            " v, 1, 0.1,0.1,0.5,0.5, 3,0.5",
            "v,1,0.1,nan,0.5,0.5,3,0.5",
            "v,1,0.1,,0.5,0.5,3,0.5",
            "v,1,0.1,0.1,0.5,0.5,3.0,0.5",
            "v,x,0.1,0.1,0.5,0.5,3,0.5",
            "v,1,0.1,0.1,0.5,true,03,0.5",
            '"v,1,0.1',
            "v,1,0x1,1_0,0.5,0.5,3,0.5",
        ]
    ),
    max_size=5,
)


@settings(max_examples=200, deadline=None)
@given(lines=LINES, end=st.sampled_from(["\n", "\r\n", "\r"]), kind=st.sampled_from(["detections", "ground truth"]))
def test_large_files_read_like_small_ones(tmp_path_factory, lines, end, kind):
    path = tmp_path_factory.mktemp("rows") / "det.csv"
    path.write_bytes(end.join(lines).encode())
    outcomes = []
    for limit in (0, 10**9):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("timegrain.metrics.frame_files._LARGE_BYTES", limit)
            try:
                read = read_boxes(path, kind)
            except ValueError as error:
                outcomes.append(str(error))
            else:
                boxes = read.boxes
                names = [boxes.frames[index] for index in boxes.frame]
                rows = (boxes.boxes.tolist(), boxes.classes.tolist(), boxes.scores.tolist())
                outcomes.append((set(boxes.frames), names, *rows, read.repeated, read.first_repeated_line))
    assert outcomes[0] == outcomes[1]


@settings(max_examples=60, deadline=None)
@given(text=st.text(alphabet="v,01.\n\r\"'x", max_size=60))
def test_any_text_is_read_or_refused_with_a_message(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("rows") / "det.csv"
    path.write_bytes(text.encode())
    outcome = ""
    try:
        read_boxes(path, "detections")
    except ValueError as error:
        outcome = str(error)
    assert not outcome or outcome.startswith(str(path))


def test_exclusion_list(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("v,0902\nv,903.5\n")
    assert read_frames(path) == {"v,902.000000", "v,903.500000"}
    path.write_text("v,0902\nv\n")
    with pytest.raises(ValueError, match="line 2: 1 columns"):
        read_frames(path)


def test_label_map(tmp_path):
    path = tmp_path / "map.pbtxt"
    path.write_text(
        'item {\r\n  name: "run/jog"\r\n  id: 10\r\n}\nitem { name: "id: 5" label_id: 3 }\nlabel {id: 4 name: \'x\'}'
    )
    assert read_label_map(path) == {10: "run/jog", 3: "id: 5", 4: "x"}
    for text, message in (
        ('item {\n name: "a"\n}', "line 1: an item needs a name and an id"),
        ('item { name: "a" id: 1 }\nitem { name: "b" id: 1 }', "line 2: id 1 or name 'b' occurs twice"),
        ('item { name: "a" id: 1 }\nitem { name: "a" id: 2 }', "line 2: id 2 or name 'a' occurs twice"),
        ("1: run", "no item in it"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_label_map(path)


def test_label_maps_as_published(shared):
    folder = shared / "data" / "annotations" / "ava"
    assert len(read_label_map(folder / "ava_action_list_v2.1_for_activitynet_2018.pbtxt")) == 60
    assert read_label_map(folder / "custom_ava_action_list_v2.2.pbtxt")[1] == "Incubation"
