"""`timegrain score ...` as a user types it: JSON that matches the golden values, and errors that print no result."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys

import pytest

from timegrain.cli import main
from timegrain.data.manifest import Manifest


@pytest.fixture
def run(capsys):
    def call(*arguments):
        code = main(["score", *map(str, arguments)])
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def golden(shared):
    return shared / "golden"


def result_of(run, *arguments):
    code, out, err = run(*arguments, "--json")
    assert code == 0, err
    return json.loads(out), err


@pytest.mark.parametrize(
    ("missing", "key", "predictions"),
    [
        ("challenge", "challenge_eval_seconds", "pred_timestamps.pkl"),
        ("notebook", "notebook_frames", "pred_frames.json"),
    ],
)
def test_gebd(run, golden, missing, key, predictions):
    folder = golden / "gebd" / "case1"
    arguments = ["--ground-truth", folder / "gt.pkl", "--predictions", folder / predictions, "--missing", missing]
    result, err = result_of(run, "gebd", *arguments)
    official = json.loads((folder / "expected.json").read_text())[key]
    assert list(result["f1"]) == ["0.05", "0.1", "0.15", "0.2", "0.25", "0.3", "0.35", "0.4", "0.45", "0.5"]
    assert result["f1"] == {threshold: row["f1"] for threshold, row in official["by_threshold"].items()}
    assert result["precision"] == {threshold: row["prec"] for threshold, row in official["by_threshold"].items()}
    assert result["recall"] == {threshold: row["rec"] for threshold, row in official["by_threshold"].items()}
    assert result["mean_f1"] == official["mean_over_thresholds"]["f1"]
    assert result["counts"]["unknown_ids"] == 3
    assert "3 videos are not in the ground truth and are ignored, the first is" in err
    code, out, _ = run("gebd", *arguments)
    assert code == 0
    assert f"0.05  {result['f1']['0.05']:.4f}" in out


def test_vidsitu(run, golden):
    folder = golden / "vidsitu" / "case2"
    result, err = result_of(run, "vidsitu", "--ground-truth", folder, "--predictions", folder / "pred.pkl")
    official = json.loads((folder / "expected.json").read_text())["official_output"]
    for k in range(1, 6):
        assert result[f"acc@{k}"] == pytest.approx(official[f"Per_Ev_Top_{k}"], abs=1e-9)
        assert result[f"vid@{k}"] == pytest.approx(official[f"Per_Vid_Top_{k}"], abs=1e-9)
    assert result["rec@5"] == pytest.approx(official["recall_macro_1_th_9"], abs=1e-9)
    assert set(result["matching"]) == {"accuracy", "chance", "videos", "tied_videos"}
    assert result["matching"]["chance"] == 0.2
    assert result["repeated_entries"] == 7
    assert "7 entries repeat" in err


def test_ava(run, golden):
    folder = golden / "ava" / "case1"
    arguments = ["--ground-truth", folder / "gt.csv", "--predictions", folder / "det.csv"]
    arguments += ["--label-map", golden / "ava" / "label_map.pbtxt"]
    official = json.loads((folder / "expected.json").read_text())
    result, _ = result_of(run, "ava", *arguments)
    assert result["map"] == pytest.approx(official["mAP"], abs=1e-9)
    assert len(result["ap"]) == 60
    assert result["ap"]["swim"] == pytest.approx(0.36941646285011537, abs=1e-9)
    assert result["ap"]["dance"] is None
    result, _ = result_of(run, "ava", *arguments, "--excluded", folder / "excluded_timestamps.csv")
    assert result["map"] == pytest.approx(0.33673165995482407, abs=1e-9)
    assert result["counts"]["excluded_frames"] == 4


def test_ava_ties_do_not_depend_on_the_order_of_rows(run, golden, tmp_path):
    folder = golden / "ava" / "case3"
    names = golden / "ava" / "label_map.pbtxt"
    first, _ = result_of(
        run, "ava", "--ground-truth", folder / "gt.csv", "--predictions", folder / "det.csv", "--label-map", names
    )
    for name in ("gt.csv", "det.csv"):
        rows = (folder / name).read_text().splitlines()
        (tmp_path / name).write_text("\r\n".join(reversed(rows)))
    second, _ = result_of(
        run, "ava", "--ground-truth", tmp_path / "gt.csv", "--predictions", tmp_path / "det.csv", "--label-map", names
    )
    assert first == second


def test_topk_and_retrieval(run, golden):
    result, err = result_of(run, "topk", "--predictions", golden / "topk" / "case2" / "input.json")
    assert (result["top1"], result["top5"]) == (25.0, 70.83333333333333)
    assert result["mean_class_accuracy"] == pytest.approx(0.2857142857142857)
    assert err == ""
    result, _ = result_of(run, "retrieval", "--predictions", golden / "retrieval" / "case1" / "input.json")
    assert result["recall_at"] == {"1": 0.375, "5": 0.75, "10": 0.85, "20": 0.9625, "50": 1.0}
    result, _ = result_of(
        run, "retrieval", "--predictions", golden / "retrieval" / "case1" / "input.json", "--centre", "false"
    )
    assert result["recall_at"]["1"] == 0.3875


EVERYWHERE = {"protocol", "coverage", "floors"}
KEYS = {
    "gebd": {"f1", "precision", "recall", "mean_f1", "mean_precision", "mean_recall", "missing", "counts", "beside"}
    | {"not_in_manifest"},
    "vidsitu": {f"{name}@{k}" for name in ("acc", "vid") for k in range(1, 6)}
    | {"rec@5", "recall_macro", "num_verbs", "num_videos", "num_events", "shuffled", "matching", "repeated_entries"}
    | {"not_in_manifest"},
    "ava": {"map", "ap", "counts"},
    "topk": {"top1", "top5", "mean_class_accuracy", "top1_correct", "top5_correct", "num_videos", "num_classes"}
    | {"views_per_video", "missing_clips", "videos_without_clips"},
    "retrieval": {"recall_at", "num_queries", "num_gallery", "tied_queries", "centred", "queries_without_match"},
}
FLOORS = {
    "gebd": ["uniform, every 15 %", "human, leave one out"],
    "vidsitu": [
        "constant speak.01",
        "constant greedy five",
        "oracle: one verb per video",
        "label shuffle inside a video",
        "human, leave one out",
    ],
    "ava": ["class prior"],
    "topk": ["majority class"],
    "retrieval": ["gallery in random order"],
}


def inputs(golden, name):
    folder = golden / name / "case1"
    return {
        "gebd": [
            "--ground-truth",
            folder / "gt.pkl",
            "--predictions",
            folder / "pred_timestamps.pkl",
            "--missing",
            "challenge",
        ],
        "vidsitu": ["--ground-truth", folder, "--predictions", folder / "pred.pkl"],
        "ava": [
            "--ground-truth",
            folder / "gt.csv",
            "--predictions",
            folder / "det.csv",
            "--label-map",
            golden / "ava" / "label_map.pbtxt",
        ],
        "topk": ["--predictions", folder / "input.json"],
        "retrieval": ["--predictions", folder / "input.json"],
    }[name]


@pytest.mark.parametrize("name", KEYS)
def test_keys_are_the_documented_ones_and_floors_stand_beside(run, golden, name, capsys):
    result, _ = result_of(run, name, *inputs(golden, name))
    assert set(result) == KEYS[name] | EVERYWHERE
    assert result["coverage"] is None
    assert [row["name"] for row in result["floors"]] == FLOORS[name]
    code, text, _ = run(name, *inputs(golden, name))
    assert code == 0
    assert all(floor in text for floor in FLOORS[name])
    bare, _ = result_of(run, name, *inputs(golden, name), "--floors", "false")
    assert bare == result | {"floors": []}
    with pytest.raises(SystemExit):
        main(["score", name, "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    spelled = {key for key in KEYS[name] if "@" not in key} | EVERYWHERE
    assert all(key in shown for key in spelled)


def test_further_predictions_are_rows_beside(run, golden):
    folder = golden / "gebd" / "case1"
    further = [folder / "pred_timestamps.json", folder / "pred_timestamps.pkl"]
    result, _ = result_of(run, "gebd", *inputs(golden, "gebd"), "--beside", *further)
    assert [row["name"] for row in result["beside"]] == [path.name for path in further]
    assert [row["f1@0.05"] for row in result["beside"]] == [result["f1"]["0.05"]] * 2


def manifest_of(path, benchmark, listed, **columns):
    facts = {"num_frames": 10, "fps": 25.0, "duration_seconds": 0.4, "width": 8, "height": 8}
    number = len(next(iter(columns.values())))
    rows = [facts | {"path": f"{i}.mp4"} | {key: column[i] for key, column in columns.items()} for i in range(number)]
    counts = {"listed": listed, "found": number, "usable": number}
    coverage = {"benchmark": benchmark, "splits": {"val": counts}, "missing_list": "m.missing.csv"}
    return Manifest.from_rows(rows, path.parent, coverage).write(path)


def test_a_manifest_narrows_what_is_scored_and_states_its_coverage(run, golden, tmp_path):
    case = golden / "gebd" / "case1"
    truth = json.loads((case / "gt.json").read_text())
    ids = list(truth)[:20]
    manifest = manifest_of(tmp_path / "m.parquet", "gebd", len(truth), video_id=ids)
    found = json.loads((case / "pred_timestamps.json").read_text())
    (tmp_path / "gt.json").write_text(json.dumps({key: truth[key] for key in ids}))
    (tmp_path / "p.json").write_text(json.dumps({key: found[key] for key in ids if key in found}))
    small = ["--ground-truth", tmp_path / "gt.json", "--predictions", tmp_path / "p.json", "--missing", "challenge"]
    expected, _ = result_of(run, "gebd", *small)
    result, _ = result_of(run, "gebd", *inputs(golden, "gebd"), "--manifest", manifest)
    assert result["coverage"]["splits"]["val"]["usable"] == 20
    assert result["not_in_manifest"] == len(truth) - 20
    assert (result["f1"], result["floors"]) == (expected["f1"], expected["floors"])
    code, text, _ = run("gebd", *inputs(golden, "gebd"), "--manifest", manifest)
    assert code == 0
    assert f"gebd: 20 of {len(truth):,} validation videos" in text
    assert f"missing list in {tmp_path / 'm.missing.csv'}" in text

    case = golden / "vidsitu" / "case1"
    segments = json.loads((case / "split_files" / "vseg_split_valid_lb.json").read_text())
    manifest = manifest_of(tmp_path / "v.parquet", "vidsitu", len(segments), video_id=segments[5:15])
    entries = [entry for entry in json.loads((case / "pred.json").read_text()) if 5 <= entry["ann_idx"] < 15]
    (tmp_path / "pred.json").write_text(json.dumps(entries))
    arguments = ["--ground-truth", case, "--predictions", tmp_path / "pred.json"]
    assert run("vidsitu", *arguments)[0] == 2
    result, _ = result_of(run, "vidsitu", *arguments, "--manifest", manifest)
    assert (result["num_videos"], result["not_in_manifest"]) == (10, len(segments) - 10)

    rows = [line.split(",") for line in (golden / "ava" / "case1" / "gt.csv").read_text().splitlines()]
    video = rows[0][0]
    times = sorted({float(row[1]) for row in rows if row[0] == video})
    columns = {"video_id": [video], "key_frame_seconds": [times]}
    manifest = manifest_of(tmp_path / "a.parquet", "ava-kinetics", 2, **columns)
    result, _ = result_of(run, "ava", *inputs(golden, "ava"), "--manifest", manifest)
    every = len({(row[0], float(row[1])) for row in rows})
    assert (result["counts"]["frames"], result["counts"]["frames_not_in_manifest"]) == (len(times), every - len(times))
    for name in ("topk", "retrieval"):
        result, _ = result_of(run, name, *inputs(golden, name), "--manifest", manifest)
        assert result["coverage"]["benchmark"] == "ava-kinetics"

    for name, other, message in (
        ("gebd", manifest, "no video of"),
        ("vidsitu", manifest, "no video of"),
        ("ava", tmp_path / "v.parquet", "no column 'key_frame_seconds'"),
        ("topk", tmp_path / "none.parquet", "no manifest at"),
    ):
        code, out, err = run(name, *inputs(golden, name), "--manifest", other)
        assert (code, out) == (2, "")
        assert message in err


def test_what_ava_ignores_is_said(run, golden, tmp_path):
    (tmp_path / "gt.csv").write_text("v,902,0.1,0.1,0.5,0.5,12,0\nv,903,0.1,0.1,0.5,0.5,99,0\n")
    (tmp_path / "det.csv").write_text("v,902,40,40,200,200,12,0.9\nw,0902,0.1,0.1,0.5,0.5,98,0.8\n")
    arguments = ["--ground-truth", tmp_path / "gt.csv", "--predictions", tmp_path / "det.csv"]
    _, err = result_of(run, "ava", *arguments, "--label-map", golden / "ava" / "label_map.pbtxt")
    assert "det.csv: 1 frames are not in" in err
    assert "the first is w,902.000000" in err
    assert "gt.csv: rows of 1 actions that are not in" in err
    assert "such as 99" in err
    assert "these look like pixels" in err


def test_queries_that_cannot_be_right_are_counted(run, tmp_path):
    data = {"gallery_train": [[1, 0], [0, 1]], "gallery_labels": [0, 1], "query_test": [[1, 0]], "query_labels": [7]}
    (tmp_path / "r.json").write_text(json.dumps(data))
    result, err = result_of(run, "retrieval", "--predictions", tmp_path / "r.json")
    assert (result["queries_without_match"], result["recall_at"]["1"]) == (1, 0.0)
    assert "1 queries have no video of their class" in err


GT = {"v": {"num_frames": 300, "video_duration": 10.0, "f1_consis_avg": 0.6, "substages_timestamps": [[5.0]]}}


class RunsOnLoad:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


def test_malicious_pickles_run_nothing(run, golden, tmp_path):
    target = tmp_path / "executed"
    bad, good = tmp_path / "bad.pkl", tmp_path / "good.pkl"
    bad.write_bytes(pickle.dumps({"v": [RunsOnLoad(target)]}))
    good.write_bytes(pickle.dumps(GT))
    for truth, predictions in ((good, bad), (bad, good)):
        code, out, err = run("gebd", "--ground-truth", truth, "--predictions", predictions, "--missing", "challenge")
        assert (code, out) == (2, "")
        assert "bad.pkl" in err
        assert "system" in err
    code, out, err = run("vidsitu", "--ground-truth", golden / "vidsitu" / "case1", "--predictions", bad, "--json")
    assert (code, out) == (2, "")
    assert "bad.pkl" in err
    assert not target.exists()


def test_errors_print_no_result(run, golden, tmp_path):
    truth, predictions = tmp_path / "gt.json", tmp_path / "p.json"
    truth.write_text(json.dumps(GT))
    for text, message in (
        ('{"w": [5.0]}', "no video of"),
        ('{"v": [NaN]}', "video 'v': nan is not a finite number"),
        ('{"v": [5.0], "v": [6.0]}', "the key 'v' is given twice"),
        ('{"v": [5.0]', "line 1"),
    ):
        predictions.write_text(text)
        code, out, err = run(
            "gebd", "--ground-truth", truth, "--predictions", predictions, "--missing", "challenge", "--json"
        )
        assert (code, out) == (2, "")
        assert message in err
        assert "Traceback" not in err
    case = golden / "ava" / "case1"
    rows = (case / "det.csv").read_text().splitlines()
    rows[99] = rows[99].rsplit(",", 1)[0] + ",nan"
    (tmp_path / "det.csv").write_text("\n".join(rows))
    arguments = ["--ground-truth", case / "gt.csv", "--predictions", tmp_path / "det.csv", "--json"]
    code, out, err = run("ava", *arguments, "--label-map", golden / "ava" / "label_map.pbtxt")
    assert (code, out) == (2, "")
    assert "det.csv, line 100: score is not a finite number" in err
    code, out, err = run("topk", "--predictions", tmp_path / "absent.json")
    assert (code, out) == (2, "")
    assert "absent.json" in err


def test_an_incomplete_vidsitu_submission_is_refused(run, golden, tmp_path):
    folder = tmp_path / "case"
    shutil.copytree(golden / "vidsitu" / "case3", folder)
    entries = json.loads((folder / "pred.json").read_text())
    (folder / "pred.json").write_text(json.dumps(entries[1:]))
    code, out, err = run("vidsitu", "--ground-truth", folder, "--predictions", folder / "pred.json")
    assert (code, out) == (2, "")
    assert "1 of 4 segments have no prediction" in err


def test_wrong_unit_is_noticed(run, golden):
    folder = golden / "gebd" / "case1"
    arguments = ["--ground-truth", folder / "gt.pkl", "--predictions", folder / "pred_frames.json"]
    _, err = result_of(run, "gebd", *arguments, "--missing", "challenge")
    assert "are they really in seconds?" in err


def test_a_whole_process_gives_one_json_object(golden):
    case = golden / "retrieval" / "case2" / "input.json"
    command = [sys.executable, "-m", "timegrain.cli", "score", "retrieval", "--predictions", str(case), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["num_queries"] == 60
    code = "import sys, timegrain.tasks.score; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0  # scoring needs no torch
