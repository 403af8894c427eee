"""Kinetics' csv files, as published and wrong."""

from __future__ import annotations

import pytest

from timegrain.data.benchmarks.kinetics import read_kinetics

HEADER = "label,youtube_id,time_start,time_end,split\n"


def read(tmp_path, text, name="val.csv"):
    (tmp_path / name).write_bytes(text.encode())
    return read_kinetics(tmp_path)


def test_the_published_validation_file(shared):
    benchmark = read_kinetics(shared / "data" / "annotations" / "kinetics")
    assert len(benchmark.listed) == 19906
    assert len(benchmark.facts["classes"]) == 400
    first = benchmark.listed[0]
    assert (first.video_id, first.split, first.label) == ("0wR5jVB-WPk_000417_000427", "val", "abseiling")
    assert first.extra["start_in_original_seconds"] == 417.0
    names = (shared / "data" / "annotations" / "kinetics" / "label_map_k400.txt").read_text().splitlines()
    assert sorted(names) == benchmark.facts["classes"]


def test_several_files_and_mixed_line_ends(tmp_path):
    (tmp_path / "classes.csv").write_text("id,name\n1,x\n")  # another table: left alone
    (tmp_path / "train.csv").write_bytes((HEADER + '"jump, high",aaaaaaaaaaa,1,11,train\r\n').encode())
    (tmp_path / "test.csv").write_text("youtube_id,label,time_start,time_end,split,is_cc\nccccccccccc,,5,15,test,0\n")
    (tmp_path / "test2.csv").write_text("youtube_id,time_start,time_end,split\nddddddddddd,5,15,test\n")  # no label
    benchmark = read(tmp_path, "\ufeff" + HEADER + "bend,bbbbbbbbbbb,2,12,validate\r\n\nbend,bbbbbbbbbbb,20,30,val\n")
    found = {video.video_id: (video.split, video.label, video.group) for video in benchmark.listed}
    assert found == {
        "aaaaaaaaaaa_000001_000011": ("train", "jump, high", "aaaaaaaaaaa"),
        "bbbbbbbbbbb_000002_000012": ("val", "bend", "bbbbbbbbbbb"),
        "bbbbbbbbbbb_000020_000030": ("val", "bend", "bbbbbbbbbbb"),
        "ccccccccccc_000005_000015": ("test", None, "ccccccccccc"),
        "ddddddddddd_000005_000015": ("test", None, "ddddddddddd"),
    }
    assert "classes.csv is left alone: its header lacks youtube_id, time_start, time_end, split" in benchmark.notes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEADER, "no row after the header"),
        (HEADER + "bend,bbbbbbbbbbb,2,12\n", "line 2: 4 values for 5 columns"),
        (HEADER + "bend,bbbbbbbbbbb,two,12,val\n", "line 2: time_start 'two' is not a finite number"),
        (HEADER + "bend,bbbbbbbbbbb,12,2,val\n", "line 2: the clip runs from 12 to 2 s"),
        (HEADER + "bend,bbbbbbbbbbb,2,12,dev\n", "line 2: unknown split 'dev'"),
        (HEADER + ",bbbbbbbbbbb,2,12,val\n", "line 2: no label"),
        (HEADER + 2 * "bend,bbbbbbbbbbb,2,12,val\n", "line 3: bbbbbbbbbbb_000002_000012 is listed in line 2 already"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read(tmp_path, text)


def test_files_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError, match="no csv with the columns label,youtube_id"):
        read(tmp_path, "path,label\nx,y\n")
    with pytest.raises(ValueError, match="line 2: no label"):
        read(tmp_path, "youtube_id,time_start,time_end,split\nddddddddddd,5,15,val\n")
    (tmp_path / "val.csv").write_text("path,label\nx,y\n")
    with pytest.raises(ValueError, match="line 1: the header lacks youtube_id, time_start"):
        read_kinetics(tmp_path / "val.csv")
    (tmp_path / "val.csv").write_bytes(b"label,\xff\n")
    with pytest.raises(ValueError, match="not a text file of rows"):
        read_kinetics(tmp_path)
