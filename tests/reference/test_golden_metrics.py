"""Every golden case: inputs with what the official programs computed from them."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from timegrain.metrics.boundary_f1 import BoundaryF1, boundaries_from_scores, f1_score, match_boundaries
from timegrain.metrics.frame_files import read_boxes, read_frames, read_label_map, without_frames
from timegrain.metrics.frame_map import FrameMAP
from timegrain.metrics.inputs import (
    read_boundaries,
    read_boundary_truth,
    read_clip_logits,
    read_retrieval_sets,
    read_verb_labels,
    read_verb_predictions,
)
from timegrain.metrics.retrieval import RetrievalRecall
from timegrain.metrics.topk import TopKAccuracy
from timegrain.metrics.verbs import VerbScores
from timegrain.safe_pickle import load_pickle

PROGRAMS = {
    "challenge": ("challenge_eval_seconds", "pred_timestamps.pkl"),
    "notebook": ("notebook_frames", "pred_frames.json"),
}


@pytest.fixture(scope="module")
def golden(shared):
    return shared / "golden"


CASES = {
    "gebd": {"case1", "case2", "case3", "case8"},
    "vidsitu": {"case1", "case2", "case3"},
    "ava": {"case1", "case2", "case3", "case4", "case9"},
    "topk": {"case1", "case2"},
    "retrieval": {"case1", "case2"},
    "scenedetect": {"case1", "case2", "case3"},  # in tests/unit/test_change_detection.py, where the videos are at hand
}


def test_every_golden_case_is_one_of_the_tested(golden):
    for name, cases in CASES.items():
        assert {path.parent.name for path in (golden / name).glob("*/expected.json")} == cases


def expected(folder):
    return json.loads((folder / "expected.json").read_text())


@pytest.mark.parametrize("missing", PROGRAMS)
@pytest.mark.parametrize("case", ["case1", "case2", "case3", "case8"])
def test_gebd_bit_for_bit(golden, case, missing):
    folder = golden / "gebd" / case
    key, predictions = PROGRAMS[missing]
    official = expected(folder)[key]
    for truth in ("gt.pkl", "gt.json"):
        metric = BoundaryF1(missing)
        metric.update(read_boundary_truth(folder / truth, missing), read_boundaries(folder / predictions))
        result = metric.compute()
        assert result["counts"]["excluded"] == expected(folder)["n_excluded"]
        for threshold, row in official["by_threshold"].items():
            assert result["f1"][threshold] == row["f1"]
            assert result["recall"][threshold] == row["rec"]
            assert result["precision"][threshold] == row["prec"]
            assert result["counts"]["true_positives"][threshold] == row["tp"]
            assert result["counts"]["positives"][threshold] == row["num_pos"]
            assert result["counts"]["detections"][threshold] == row["num_det"]
        mean = official["mean_over_thresholds"]
        assert (result["mean_f1"], result["mean_recall"], result["mean_precision"]) == (
            mean["f1"],
            mean["rec"],
            mean["prec"],
        )


@pytest.mark.parametrize("missing", PROGRAMS)
@pytest.mark.parametrize("case", ["case1", "case2", "case3"])
def test_gebd_annotator_of_each_video(golden, case, missing):
    folder = golden / "gebd" / case
    key, predictions = PROGRAMS[missing]
    truth, found = read_boundary_truth(folder / "gt.pkl", missing), read_boundaries(folder / predictions)
    official = expected(folder)[key]["matched_videos_at_0_05"]
    matches = match_boundaries([truth[v] for v in official], [found[v] for v in official], (0.05,))
    for index, row in enumerate(official.values()):
        tp, positives = int(matches.true_positives[index, 0]), int(matches.num_positives[index, 0])
        assert (int(matches.annotator[index, 0]), tp, positives) == (row["annotator"], row["tp"], row["num_pos"])
        assert int(matches.num_detections[index]) == row["num_det"]
        assert float(f1_score(tp, positives, row["num_det"])[2]) == row["f1"]


def test_gebd_scores_to_boundaries(golden):
    folder = golden / "gebd" / "case1"
    sequences = json.loads((folder / "score_sequence.json").read_text())
    truth = load_pickle(folder / "gt.pkl")
    checked = 0
    for threshold, videos in expected(folder)["boundaries_from_scores"].items():
        for key, row in videos.items():
            scores, frames = sequences[key]["scores"], sequences[key]["frame_idx"]
            found = boundaries_from_scores(scores, frames, float(threshold))
            assert found == row["frames"]
            assert [frame / truth[key]["fps"] for frame in found] == row["seconds"]
            assert boundaries_from_scores(scores, frames, float(threshold), "round") == row["frames_efficientgebd"]
            checked += len(found)
    assert checked > 50


@pytest.mark.parametrize("case", ["case1", "case2", "case3"])
def test_vidsitu(golden, case):
    folder = golden / "vidsitu" / case
    official = expected(folder)["official_output"]
    labels = read_verb_labels(folder)
    for name in ("pred.pkl", "pred.json"):
        scores = VerbScores()
        for verbs, annotated in zip(
            read_verb_predictions(folder / name, list(labels)).verbs, labels.values(), strict=True
        ):
            scores.update(verbs, annotated)
        result = scores.compute()
        for k in range(1, 6):
            assert result[f"acc@{k}"] == pytest.approx(official[f"Per_Ev_Top_{k}"], abs=1e-9)
            assert result[f"vid@{k}"] == pytest.approx(official[f"Per_Vid_Top_{k}"], abs=1e-9)
        assert result["acc@5"] == pytest.approx(official["acc"], abs=1e-9)
        for limit in range(10):
            assert result["recall_macro"][str(limit)] == pytest.approx(official[f"recall_macro_1_th_{limit}"], abs=1e-9)
            assert result["num_verbs"][str(limit)] == official[f"num_vbs_thresh_{limit}"]
        assert result["rec@5"] == pytest.approx(expected(folder)["headline"]["Rec@5"], abs=1e-9)
        assert result["num_events"] == expected(folder)["n_events"]


def ava(golden, case, excluded=False):
    folder = golden / "ava" / case
    names = read_label_map(golden / "ava" / "label_map.pbtxt")
    truth = read_boxes(folder / "gt.csv", "ground truth").boxes
    if excluded:
        truth = without_frames(truth, read_frames(folder / "excluded_timestamps.csv"))
    metric = FrameMAP(names)
    metric.update(truth, read_boxes(folder / "det.csv", "detections").boxes)
    return metric.compute()


def agree(result, official):
    assert result["map"] == pytest.approx(official["PascalBoxes_Precision/mAP@0.5IOU"], abs=1e-9)
    prefix = "PascalBoxes_PerformanceByCategory/AP@0.5IOU/"
    by_class = {key.removeprefix(prefix): value for key, value in official.items() if key.startswith(prefix)}
    assert set(by_class) == set(result["ap"])
    for name, value in by_class.items():
        if value is None or math.isnan(value):
            assert result["ap"][name] is None
        else:
            assert result["ap"][name] == pytest.approx(value, abs=1e-9)


@pytest.mark.parametrize("case", ["case1", "case2", "case4", "case9"])
def test_ava_without_ties(golden, case):
    official = expected(golden / "ava" / case)
    assert official["tie_free"]
    result = ava(golden, case)
    agree(result, official["official_output"])
    assert result["counts"]["frames"] == official["key_frames"]


def test_ava_with_excluded_frames(golden):
    agree(ava(golden, "case1", excluded=True), expected(golden / "ava" / "case1")["official_on_gt_without_excluded"])


def test_ava_with_ties_is_inside_the_bounds(golden):
    official = expected(golden / "ava" / "case3")
    result = ava(golden, "case3")
    low, high = official["mAP_tie_bounds"]
    assert low <= result["map"] <= high
    checked = 0
    for key, (low, high) in official["AP_tie_bounds"].items():
        name = key.removeprefix("PascalBoxes_PerformanceByCategory/AP@0.5IOU/")
        if name in result["ap"]:
            assert low - 1e-12 <= result["ap"][name] <= high + 1e-12
            checked += 1
    assert checked == 8


@pytest.mark.parametrize("case", ["case1", "case2"])
def test_topk(golden, case):
    folder = golden / "topk" / case
    official, data = expected(folder), read_clip_logits(folder / "input.json")
    metric = TopKAccuracy(data.labels, data.logits.shape[1], data.views_per_video)
    for part in np.array_split(np.arange(len(data.clip_ids)), 7):
        metric.update(data.clip_ids[part], data.logits[part])
    result = metric.compute()
    assert (result["top1"], result["top5"]) == (official["top1"], official["top5"])
    assert (result["top1_correct"], result["top5_correct"]) == (official["top1_correct"], official["top5_correct"])
    assert result["mean_class_accuracy"] == pytest.approx(official["mmaction2_mean_class_accuracy"], abs=1e-12)
    assert [result["top1"] / 100, result["top5"] / 100] == pytest.approx(official["mmaction2_top_k_accuracy"])
    assert result["missing_clips"] == 0


@pytest.mark.parametrize("case", ["case1", "case2"])
@pytest.mark.parametrize(("centre", "key"), [(True, "recall_at"), (False, "without_centring")])
def test_retrieval(golden, case, centre, key):
    folder = golden / "retrieval" / case
    official, data = expected(folder), read_retrieval_sets(folder / "input.json")
    metric = RetrievalRecall(centre=centre)
    metric.update("gallery", data.gallery, data.gallery_labels)
    metric.update("query", data.query, data.query_labels)
    result = metric.compute()
    assert result["recall_at"] == pytest.approx(official[key], abs=1e-7)  # the reference is in float32
    if centre:
        counts = {k: round(value * result["num_queries"]) for k, value in result["recall_at"].items()}
        assert counts == official["correct_at"]
