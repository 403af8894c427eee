"""VidSitu's annotation folder, as published and wrong."""

from __future__ import annotations

import json
import shutil
from collections import Counter

import pytest

from timegrain.data.benchmarks.vidsitu import event_centres, read_vidsitu

EVENTS = ("Ev1", "Ev2", "Ev3", "Ev4", "Ev5")
SEGMENT = "v_abcdefghijk_seg_10_20"


def write(folder, name, content):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def annotation(segment, verbs):
    return {event: {"vid_seg_int": segment, "VerbID": verb} for event, verb in zip(EVENTS, verbs, strict=True)}


VERBS = ["speak.01", "walk.01", "look.01", "run.02", "talk.01"]


def train_folder(folder, split=(SEGMENT,), annotations=None):
    write(folder, "split_files/vseg_split_train_lb.json", list(split))
    write(folder, "vseg_ann_files/vsann_train_lb.json", annotations or [annotation(SEGMENT, VERBS)])
    return folder


def test_the_validation_files(shared):
    case = shared / "golden" / "vidsitu" / "case1"
    benchmark = read_vidsitu(case)
    segments = json.loads((case / "split_files/vseg_split_valid_lb.json").read_text())
    info = {entry["vid_seg_int"]: entry for entry in json.loads((case / "vinfo_files/vinfo_valid_lb.json").read_text())}
    assert [video.video_id for video in benchmark.listed] == segments
    for index, video in enumerate(benchmark.listed):
        assert video.split == "val"
        assert video.extra["index_in_split"] == index
        sets = [info[video.video_id]["vbid_lst"][event][:10] for event in EVENTS]
        assert video.extra["verb_sets"] == sets
        for verb, verbs in zip(video.extra["verbs"], sets, strict=True):
            counts = Counter(verbs)
            assert counts[verb] == max(counts.values())
            assert verb == next(v for v in verbs if counts[v] == counts[verb])  # the first met on ties
    assert video.group == video.video_id[2:13]


def test_training_and_test_splits(tmp_path):
    folder = train_folder(
        tmp_path / "vidsitu_annotations", annotations=[annotation(SEGMENT, VERBS), annotation(SEGMENT, VERBS[::-1])]
    )
    write(folder, "split_files/vseg_split_testvb_lb.json", ["v_x_y_seg_0_10"])
    first, second = read_vidsitu(tmp_path).listed  # the folder above works too
    assert first.extra["verbs"] == VERBS  # the first annotation counts
    assert first.extra["event_centre_seconds"] == event_centres() == [1.0, 3.0, 5.0, 7.0, 9.0]
    assert (second.split, second.group, second.extra["verbs"]) == ("testvb", "x_y", None)


@pytest.mark.parametrize(
    ("split", "annotations", "message"),
    [
        ([SEGMENT, SEGMENT], None, "'v_abcdefghijk_seg_10_20' is listed in vseg_split_train_lb.json already"),
        ([SEGMENT, "v_b_seg_0_10"], None, "segment 'v_b_seg_0_10' has no verbs"),
        ([SEGMENT, 3], None, "not a list of segment names"),
        ([SEGMENT], [{"Ev1": {}}], "vsann_train_lb.json, entry 0: no 'Ev2' in it"),
        ([SEGMENT], [annotation(SEGMENT, [1, 2, 3, 4, 5])], "entry 0: vid_seg_int and VerbID must be text"),
        (["abc"], [annotation("abc", VERBS)], "'abc' isn't named v_ID_seg_START_END"),
        ([SEGMENT], '[{"Ev1": 1,}]', "line 1, column 12: not JSON"),
        ([SEGMENT], '{"a": 1}', "not a list"),
    ],
)
def test_a_wrong_file_is_named(tmp_path, split, annotations, message):
    with pytest.raises(ValueError, match=r"_lb.json") as caught:
        read_vidsitu(train_folder(tmp_path, split, annotations))
    assert message in str(caught.value)


def test_missing_files(tmp_path, shared):
    with pytest.raises(FileNotFoundError, match="no split_files/ in"):
        read_vidsitu(tmp_path)
    (tmp_path / "split_files").mkdir()
    with pytest.raises(FileNotFoundError, match="no vseg_split_SPLIT_lb"):
        read_vidsitu(tmp_path)
    shutil.rmtree(train_folder(tmp_path) / "vseg_ann_files")
    with pytest.raises(FileNotFoundError, match=r"vsann_train_lb.json; the verbs of the training split are in it"):
        read_vidsitu(tmp_path)
    write(tmp_path, "split_files/vseg_split_train_lb.json", [])
    write(tmp_path, "vseg_ann_files/vsann_train_lb.json", [annotation(SEGMENT, VERBS)])
    with pytest.raises(ValueError, match="no segment in"):
        read_vidsitu(tmp_path)
