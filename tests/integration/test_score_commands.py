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
    assert "3 predicted videos are not in the ground truth" in err
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
    code = "import sys, timegrain.metrics.score; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0  # scoring needs no torch
