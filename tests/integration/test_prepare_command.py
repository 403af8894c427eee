"""`timegrain prepare` from official files and videos to a manifest with its coverage."""

from __future__ import annotations

import csv
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from conftest import make_video, moving_square
from timegrain.cli import main
from timegrain.data.coverage import coverage_lines
from timegrain.data.decoding import open_video
from timegrain.data.manifest import Manifest

pytestmark = pytest.mark.multiprocess


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("TIMEGRAIN_CACHE", str(tmp_path_factory.mktemp("cache")))


def run(capsys, *arguments):
    code = main(["prepare", *(str(argument) for argument in arguments)])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def run_json(capsys, *arguments):
    code, out, err = run(capsys, *arguments, "--json")
    assert code == 0, err
    return json.loads(out)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return make_video(tmp_path_factory.mktemp("clip") / "clip.mp4", moving_square(50, 96, 128), options={"g": "50"})


def place(clip, *paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(clip, path)


def kinetics(tmp_path, clip):
    """Five listed videos: two there, one broken, two missing; one more that isn't listed."""
    rows = [
        ("jump high", "aaaaaaaaaaa", 1, "train"),
        ("jump high", "bbbbbbbbbbb", 2, "val"),
        ("bend", "ccccccccccc", 3, "val"),
    ]
    rows += [("bend", "ddddddddddd", 4, "val"), ("bend", "eeeeeeeeeee", 5, "val")]
    annotations = tmp_path / "annotations"
    annotations.mkdir()
    lines = [f"{label},{name},{start},{start + 10},{split}" for label, name, start, split in rows]
    (annotations / "all.csv").write_text("\n".join(["label,youtube_id,time_start,time_end,split", *lines]) + "\n")
    videos = tmp_path / "videos"
    place(clip, videos / "train/jump_high/aaaaaaaaaaa_000001_000011.mp4", videos / "val/bbbbbbbbbbb_000002_000012.webm")
    place(clip, videos / "val/xxxxxxxxxxx_000002_000012.mp4")
    (videos / "val/ccccccccccc_000003_000013.mp4").write_bytes(b"half a download")
    return videos, annotations


def test_coverage_and_missing_list(tmp_path, clip, capsys):
    videos, annotations = kinetics(tmp_path, clip)
    out = tmp_path / "m.parquet"
    code, text, _ = run(capsys, "kinetics400", videos, "--annotations", annotations, "--out", out)
    assert code == 0
    missing_list = tmp_path / "m.missing.csv"
    expected = "kinetics400: 1 of 4 validation videos (25.00 %), 1 more is broken; missing list in"
    assert f"{expected} {missing_list}\n" in text
    assert "kinetics400: 1 of 1 training videos (100.00 %)\n" in text
    assert "1 videos in" in text
    assert "aren't listed" in text
    with (tmp_path / "m.missing.csv").open() as file:
        missing = list(csv.DictReader(file))
    assert missing == [
        {"split": "val", "video": "ddddddddddd_000004_000014", "label": "bend"},
        {"split": "val", "video": "eeeeeeeeeee_000005_000015", "label": "bend"},
    ]
    manifest = Manifest.open(out)
    assert [(row.split, row.label, row.group, row.extra["video_id"]) for row in manifest.select()] == [
        ("train", "jump high", "aaaaaaaaaaa", "aaaaaaaaaaa_000001_000011"),
        ("val", "jump high", "bbbbbbbbbbb", "bbbbbbbbbbb_000002_000012"),
    ]
    coverage = manifest.select("val").coverage
    assert coverage["splits"]["val"] == {"listed": 4, "found": 2, "usable": 1}
    assert coverage["classes"] == ["bend", "jump high"]
    assert coverage_lines(coverage)[1] == f"{expected} m.missing.csv"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["annotations", "m.missing.csv", "m.parquet", "videos"]
    _, again, said = run(capsys, "kinetics400", videos, "--annotations", annotations, "--out", out)
    assert again == text
    assert "2 of 3 videos were done before" in said


def test_the_uncut_video_is_not_taken_for_a_clip(tmp_path, clip, capsys):
    videos, annotations = kinetics(tmp_path, clip)
    make_video(videos / "ddddddddddd.mp4", moving_square(60), fps=3.0)
    report = run_json(capsys, "kinetics400", videos, "--annotations", annotations, "--out", tmp_path / "m.parquet")
    (reason,) = [reason for path, reason in report["errors"].items() if "ddd" in path]
    assert reason == "lasts 20 s, but the clip 10 s; is it the uncut video?"


def test_nothing_is_written_when_an_annotation_file_is_wrong(tmp_path, clip, capsys):
    videos, annotations = kinetics(tmp_path, clip)
    with (annotations / "all.csv").open("a") as file:
        file.write("bend,fffffffffff,late,15,val\n")
    code, out, err = run(capsys, "kinetics400", videos, "--annotations", annotations, "--out", tmp_path / "m.parquet")
    assert (code, out) == (2, "")
    assert "all.csv, line 7: time_start 'late' is not a finite number" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["annotations", "videos"]


def test_the_real_clips_of_ucf101(shared, tmp_path, capsys):
    """200 clips with another ending in folders by class, joined with the official lists of all 13,320."""
    source = shared / "data" / "ucf101_4"
    annotations = shared / "data" / "annotations" / "ucf101"
    report = run_json(capsys, "ucf101", source, "--annotations", annotations, "--out", tmp_path / "m.parquet")
    manifest = Manifest.open(tmp_path / "m.parquet")
    assert report["splits"]["train"] == {"listed": 9537, "found": 144, "usable": 144}
    assert report["splits"]["test"] == {"listed": 3783, "found": 56, "usable": 56}
    with (source / "clips.csv").open() as file:
        expected = {Path(row["path"]).stem: row for row in csv.DictReader(file)}
    assert len(manifest) == 200
    for row in manifest:
        known = expected[Path(row.path).stem]
        assert (row.label, row.split, row.num_frames) == (known["label"], known["split"], int(known["frames"]))
        assert row.group == f"v_{row.label}_g{known['group']}"


def test_ground_truth_of_gebd_is_written_for_scoring(shared, tmp_path, clip, capsys):
    case = shared / "golden" / "gebd" / "case1"
    annotations = tmp_path / "annotations"
    annotations.mkdir()
    shutil.copy(case / "raw_annotation.pkl", annotations / "k400_val_raw_annotation.pkl")
    with (case / "gt.pkl").open("rb") as file:
        expected = pickle.load(file)
    names = list(expected)
    place(clip, *(tmp_path / "videos" / expected[name]["path_video"] for name in names[:2]))
    out = tmp_path / "m.parquet"
    report = run_json(capsys, "gebd", tmp_path / "videos", "--annotations", annotations, "--out", out)
    assert report["splits"]["val"] == {"listed": 70, "found": 2, "usable": 2}
    assert report["files"] == ["m.gebd_val_official.pkl", "m.gebd_val_corrected.pkl"]
    official = pickle.loads((tmp_path / "m.gebd_val_official.pkl").read_bytes())
    assert official == expected
    row = next(row for row in Manifest.open(out) if row.extra["video_id"] == names[0])
    best = int(np.argmax(expected[names[0]]["f1_consis"]))
    assert row.extra["boundaries_seconds"] == expected[names[0]]["substages_timestamps"][best]
    assert row.extra["annotations_seconds"] == expected[names[0]]["substages_timestamps"]
    truth, found = tmp_path / "m.gebd_val_official.pkl", case / "pred_timestamps.pkl"
    score = ["score", "gebd", "--ground-truth", str(truth), "--predictions", str(found), "--missing", "challenge"]
    assert main([*score, "--json"]) == 0
    known = json.loads((case / "expected.json").read_text())["challenge_eval_seconds"]["by_threshold"]["0.05"]["f1"]
    assert json.loads(capsys.readouterr().out)["f1"]["0.05"] == known


def test_vidsitu_and_ava(shared, tmp_path, clip, capsys):
    case = shared / "golden" / "vidsitu" / "case1"
    segment = json.loads((case / "split_files" / "vseg_split_valid_lb.json").read_text())[3]
    videos, out = tmp_path / "videos", tmp_path / "v.parquet"
    place(clip, videos / f"{segment}.mp4", videos / "movie1.mkv", videos / "abcdefghijk_000020_000030.mp4")
    run_json(capsys, "vidsitu", videos, "--annotations", case, "--out", out)
    assert Manifest.open(out)[0].error == "lasts 2.0 s, so it ends before its last event, around 9 s"
    make_video(videos / f"{segment}.mp4", moving_square(45), fps=5)
    run_json(capsys, "vidsitu", videos, "--annotations", case, "--out", out)
    (row,) = Manifest.open(out).select("val")
    assert row.extra["index_in_split"] == 3
    assert [len(verbs) for verbs in row.extra["verb_sets"]] == [10] * 5
    annotations = tmp_path / "ava"
    annotations.mkdir()
    (annotations / "ava_action_list_v2.2.pbtxt").write_text('item { name: "stand" id: 12 }')
    (annotations / "ava_val_v2.2.csv").write_text("movie1,0910,0,0,1,1,12,0\n")
    (annotations / "kinetics_val_v1.0.csv").write_text("abcdefghijk,21.5,0,0.5,1,1,12\nabcdefghijk,50\n")
    out = tmp_path / "a.parquet"
    report = run_json(capsys, "ava-kinetics", tmp_path / "videos", "--annotations", annotations, "--out", out)
    assert report["splits"]["val"] == {"listed": 3, "found": 2, "usable": 1}
    movie, row = sorted(Manifest.open(out), key=lambda row: row.extra["source"])
    assert "lie outside this file, which lasts 2 s" in movie.error
    assert (row.extra["video_id"], row.extra["time_offset_seconds"], row.extra["key_frame_seconds"]) == (
        "abcdefghijk",
        20.0,
        [21.5],
    )
    assert row.extra["boxes"][0]["y1"] == 0.5


@pytest.mark.parametrize("kind", ["video", "frames"])
def test_written_anew_for_fast_training(tmp_path, clip, capsys, kind):
    videos, annotations = kinetics(tmp_path, clip)
    out = tmp_path / "m.parquet"
    arguments = ["kinetics400", videos, "--annotations", annotations, "--out", out, "--short-side", "48"]
    arguments += ["--frames"] if kind == "frames" else []
    report = run_json(capsys, *arguments)
    assert report["splits"]["val"] == {"listed": 4, "found": 2, "usable": 1}
    manifest = Manifest.open(out)
    row = manifest.select("train")[0]
    media = tmp_path / ("m_48_frames" if kind == "frames" else "m_48_gop12_crf23")
    ending = ".frames" if kind == "frames" else ".mp4"
    assert Path(row.path) == media / "train/jump_high" / f"aaaaaaaaaaa_000001_000011{ending}"
    assert (row.num_frames, row.height, row.width) == (50, 48, 64)
    assert row.extra["source_path"].endswith("videos/train/jump_high/aaaaaaaaaaa_000001_000011.mp4")
    with open_video(row.path) as reader:
        assert reader.frames([3, 49]).shape == (2, 3, 48, 64)
    written = Path(row.path).stat().st_mtime_ns
    run_json(capsys, *arguments)
    assert Path(row.path).stat().st_mtime_ns == written
    code = main(["manifest", "check", str(out), "--json"])
    assert code == 0
    assert json.loads(capsys.readouterr().out)["newly_broken"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["video", "frames"])
def test_killed_midway_it_goes_on_where_it_was(tmp_path, clip, capsys, kind):
    names = [f"{index:011d}" for index in range(24)]
    lines = [f"bend,{name},0,10,train" for name in names]
    (tmp_path / "a.csv").write_text("\n".join(["label,youtube_id,time_start,time_end,split", *lines]))
    videos = tmp_path / "videos"
    place(clip, *(videos / f"{name}_000000_000010.mp4" for name in names))
    out = tmp_path / "m.parquet"
    arguments = ["kinetics400", videos, "--annotations", tmp_path / "a.csv", "--out", out, "--short-side", "48"]
    arguments += ["--workers", "2", *(["--frames"] if kind == "frames" else [])]
    command = [sys.executable, "-m", "timegrain.cli", "prepare", *map(str, arguments)]
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
    media = tmp_path / {"video": "m_48_gop12_crf23", "frames": "m_48_frames"}[kind]
    journal = media / "converted.jsonl"
    while process.poll() is None and not (journal.is_file() and journal.read_text().count("source_path") >= 3):
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not out.exists()
    done = {path: path.stat().st_mtime_ns for path in media.glob("[!.]*") if path != journal}
    noted = [json.loads(line)["row"]["path"] for line in journal.read_text().splitlines() if line.endswith("}")]
    assert 3 <= len(noted) < len(names)
    report = run_json(capsys, *arguments)
    assert report["splits"]["train"] == {"listed": 24, "found": 24, "usable": 24}
    assert all(Path(path).stat().st_mtime_ns == done[Path(path)] for path in noted)  # not written again
    assert len(list(media.iterdir())) == 25  # nothing half written is left


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["kinetics400", "none", "--annotations", ".", "--out", "m.parquet"], "videos none isn't there"),
        (["kinetics400", ".", "--annotations", "none", "--out", "m.parquet"], "--annotations none isn't there"),
        (["kinetics400", ".", "--annotations", ".", "--out", "."], "is a folder; name the manifest file"),
        (["gebd", ".", "--annotations", ".", "--out", "m.parquet"], "no k400_SPLIT_raw_annotation.pkl in ."),
        (["ucf101", ".", "--annotations", ".", "--out", "m.parquet", "--fold", "4"], "official splits are 1, 2 and 3"),
        (["ucf101", ".", "--annotations", ".", "--out", "m.parquet", "--short-side", "4"], "at least 16 pixels"),
        (["gebd", ".", "--annotations", ".", "--out", "m.parquet", "--shards", "--shard-megabytes=0"], "at least 1 MB"),
        (["gebd", ".", "--annotations", ".", "--out", "m.parquet", "--fold=2"], "only ucf101 and hmdb51"),
        (["ucf101", ".", "--annotations", ".", "--out", "m.parquet", "--ground-truth=corrected"], "only gebd has two"),
        (["gebd", ".", "--annotations", ".", "--out", "m.parquet", "--media=x"], "--media x: it is for re-encoded"),
    ],
)
def test_prepare_says_what_is_wrong(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert list(tmp_path.iterdir()) == []


def test_no_listed_video_is_there(tmp_path, clip, capsys):
    videos, annotations = kinetics(tmp_path, clip)
    shutil.rmtree(videos)
    videos.mkdir()
    arguments = ["kinetics400", videos, "--annotations", annotations, "--out", tmp_path / "m.parquet"]
    assert "it holds no video; looked for names such as aaaaaaaaaaa_000001_000011.mp4" in run(capsys, *arguments)[2]
    place(clip, videos / "other.mp4")
    code, _, err = run(capsys, *arguments)
    assert code == 2
    assert "none of the 5 videos of kinetics400 is in" in err
    assert "it holds 1 videos, such as" in err


def test_an_unknown_benchmark_is_refused_with_the_known_ones(capsys):
    with pytest.raises(SystemExit) as left:
        main(["prepare", "kinetics", ".", "--annotations", ".", "--out", "m.parquet"])
    assert left.value.code == 2
    assert "ava-kinetics" in capsys.readouterr().err
