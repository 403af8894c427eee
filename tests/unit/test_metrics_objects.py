"""The metrics as objects: cases worked out by hand, what they refuse, and that a refusal leaves no trace."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest

from timegrain.metrics.boundary_f1 import BoundaryF1, BoundaryVideo, boundaries_from_scores
from timegrain.metrics.frame_map import FrameBoxes, FrameMAP, average_precision, frame_key, join, no_boxes, overlap
from timegrain.metrics.retrieval import RetrievalRecall
from timegrain.metrics.topk import TopKAccuracy
from timegrain.metrics.verbs import VerbScores


def f1_at(metric, threshold="0.05"):
    return metric.compute()["f1"][threshold]


def test_gebd_tolerance_is_inclusive_and_matching_is_greedy():
    video = BoundaryVideo(10.0, 10.0, ((2.0, 2.4),))
    for detections, right in (([2.5], 1), ([2.5000001], 1), ([1.5], 1), ([1.4999999], 0), ([2.0, 2.4], 2)):
        metric = BoundaryF1(thresholds=(0.05,))
        metric.update({"v": video}, {"v": detections})
        assert metric.true_positives.tolist() == [right]
    # 2.0 takes 2.25 (the first listed of the equally near), and 2.4 is left with 1.75: too far
    for detections, right in (([2.25, 1.75], 1), ([1.75, 2.25], 2)):
        metric = BoundaryF1(thresholds=(0.05,))
        metric.update({"v": video}, {"v": detections})
        assert metric.true_positives.tolist() == [right]


def test_gebd_rules_for_missing_and_excluded_videos():
    videos = {
        "seen": BoundaryVideo(10.0, 10.0, ((5.0,), (1.0, 2.0))),
        "absent": BoundaryVideo(10.0, 10.0, ((1.0, 2.0, 3.0), (5.0,))),
        "inconsistent": BoundaryVideo(10.0, 10.0, ((1.0,),), 0.29999999),
        "just consistent": BoundaryVideo(10.0, 10.0, ((1.0,),), 0.3),
    }
    found = {"seen": [5.0], "just consistent": [11.0], "inconsistent": [1.0], "unknown": [3.0]}
    challenge, notebook = BoundaryF1("challenge"), BoundaryF1("notebook")
    for metric in (challenge, notebook):
        metric.update(videos, found)
    assert challenge.compute()["counts"]["positives"]["0.05"] == 1 + 3 + 1
    assert notebook.compute()["counts"]["positives"]["0.05"] == 1 + 1
    for metric in (challenge, notebook):
        counts = metric.compute()["counts"]
        assert (counts["excluded"], counts["missing"], counts["detections"]["0.5"]) == (1, 1, 1)


def test_gebd_takes_arrays():
    metric = BoundaryF1()
    metric.update(
        {"v": BoundaryVideo(10.0, 10.0, ((2.0, 5.0),)), "w": BoundaryVideo(10.0, 10.0, ((2.0,),))},
        {"v": np.array([2.0, 5.0]), "w": np.array([])},
    )
    assert metric.true_positives.tolist() == [2] * 10
    assert (metric.num_detections, metric.num_missing) == (2, 0)


def test_gebd_without_anything():
    result = BoundaryF1().compute()
    assert result["recall"]["0.05"] == 1.0
    assert result["precision"]["0.05"] == result["f1"]["0.05"] == result["mean_f1"] == 0.0


def test_gebd_refusals_leave_no_trace():
    metric = BoundaryF1()
    good = BoundaryVideo(10.0, 10.0, ((5.0,),))
    for bad, found in (
        (BoundaryVideo(10.0, 10.0, ()), [1.0]),
        (BoundaryVideo(math.nan, 10.0, ((1.0,),)), [1.0]),
        (BoundaryVideo(10.0, 10.0, ((math.inf,),)), [1.0]),
        (BoundaryVideo(10.0, 10.0, ((1.0,),), math.nan), [1.0]),
        (good, [math.nan]),
    ):
        with pytest.raises(ValueError, match="'bad'"):
            metric.update({"good": good, "bad": bad}, {"good": [5.0], "bad": found})
    assert metric.compute() == BoundaryF1().compute()
    with pytest.raises(ValueError, match="different rules"):
        metric.merge(BoundaryF1("notebook"))
    with pytest.raises(ValueError, match="'challenge' or 'notebook'"):
        BoundaryF1("server")  # type: ignore[arg-type]


def test_gebd_many_detections_in_one_video_stay_in_bounds():
    videos = {"long": BoundaryVideo(10.0, 10.0, ((5.0, 6.0),) * 3)}
    videos |= {str(i): BoundaryVideo(10.0, 10.0, ((5.0,),)) for i in range(300)}
    found = {"long": np.linspace(0, 10, 200_000).tolist()} | {str(i): [5.0] for i in range(300)}
    metric = BoundaryF1()
    metric.update(videos, found)
    assert metric.true_positives.tolist() == [302] * 10


def test_scores_to_boundaries():
    assert boundaries_from_scores([0.6, 0.5, 0.4, 0.9], [1, 4, 7, 10]) == [1, 10]
    assert boundaries_from_scores([0.6] * 4, [1, 4, 7, 10], middle="round") == [7]
    assert boundaries_from_scores([], []) == []
    for scores in ([0.1], [0.1, math.nan]):
        with pytest.raises(ValueError, match="scores for 2 frames"):
            boundaries_from_scores(scores, [1, 2])


def test_verbs_by_hand():
    metric = VerbScores()
    labels = [["a"] * 9, ["a", "b"], ["b"] * 2, ["c", "d"], ["a"]]
    metric.update([["a"], ["x", "b"], ["b"], [], ["x"] * 5 + ["a"]], labels)
    result = metric.compute()
    assert [result[f"acc@{k}"] for k in (1, 2, 5)] == [0.4, 0.6, 0.6]
    assert result["vid@5"] == 0.0
    assert result["num_verbs"] == {"0": 2} | {str(t): 0 for t in range(1, 10)}
    assert result["recall_macro"]["0"] == 1.0  # named twice or more: a in event 1, b in event 3
    assert result["rec@5"] == 0.0
    # in random order: a fits events 1, 2, 5; b (rank 1) events 2, 3; x-b (rank 2) events 2, 3
    assert result["shuffled"]["acc@1"] == pytest.approx((3 + 2) / 25)
    assert result["shuffled"]["acc@2"] == pytest.approx((3 + 2 + 2) / 25)


def test_verbs_refuse():
    metric = VerbScores()
    with pytest.raises(ValueError, match="no video"):
        metric.compute()
    with pytest.raises(ValueError, match="five each"):
        metric.update([["a"]] * 4, [["a"]] * 5)
    with pytest.raises(ValueError, match="event 3 has no annotation"):
        metric.update([["a"]] * 5, [["a"], ["a"], [], ["a"], ["a"]])
    assert metric.num_videos == 0


def boxes(rows, scores):
    frames = sorted({row[0] for row in rows})
    return FrameBoxes(
        frames,
        np.array([frames.index(row[0]) for row in rows], np.int64),
        np.array([row[1] for row in rows], np.float64),
        np.array([row[2] for row in rows], np.int64),
        np.array(scores, np.float64),
    )


def test_frame_map_looks_at_the_nearest_box_only():
    near, far = (0.0, 0.0, 1.0, 1.0), (0.0, 0.0, 1.0, 0.6)
    truth = boxes([("f", near, 1), ("f", far, 1)], [1, 1])
    metric = FrameMAP({1: "one"})
    # both detections overlap `near` most; the second would fit `far` too, but does not get it
    metric.update(truth, boxes([("f", near, 1), ("f", (0.0, 0.0, 1.0, 0.9), 1)], [0.9, 0.8]))
    assert metric.compute()["ap"]["one"] == 0.5


def test_frame_map_overlap_of_exactly_half_counts():
    assert overlap(np.array([0.0, 0, 1, 1]), np.array([0.0, 0, 1, 0.5])) == 0.5
    assert overlap(np.zeros(4), np.zeros(4)) == 0.0
    metric = FrameMAP({1: "one"})
    metric.update(boxes([("f", (0.0, 0, 1, 1), 1)], [1]), boxes([("f", (0.0, 0, 1, 0.5), 1)], [0.9]))
    assert metric.compute()["map"] == 1.0


def test_frame_map_limit_classes_and_frames():
    box = (0.1, 0.1, 0.9, 0.9)
    truth = boxes([("f", box, 1), ("f", box, 9), ("g", box, 2)], [1, 1, 1])
    rows = [("f", box, 2)] * 50 + [("f", box, 1), ("f", box, 9), ("other", box, 1), ("g", (0.5, 0.5, 0.5, 0.6), 2)]
    metric = FrameMAP({1: "one", 2: "two", 3: "three"})
    metric.update(truth, boxes(rows, [0.9] * 50 + [0.1, 1.0, 1.0, 1.0]))
    result = metric.compute()
    assert result["ap"] == {"one": 0.0, "two": 0.0, "three": None}  # the only good detection is the 51st of its frame
    assert result["counts"] == {
        "frames": 2,
        "boxes": 2,
        "detections": 50,
        "boxes_of_other_classes": 1,
        "detections_of_other_classes": 1,
        "detections_on_other_frames": 1,
        "detections_over_limit": 1,
        "detections_without_area": 1,
    }
    unlimited = FrameMAP({1: "one", 2: "two", 3: "three"}, max_detections=None)
    unlimited.update(truth, boxes(rows, [0.9] * 50 + [0.1, 1.0, 1.0, 1.0]))
    assert unlimited.compute()["ap"]["one"] == 1.0


def test_frame_map_empty_and_refusals():
    metric = FrameMAP({1: "one"})
    assert metric.compute()["map"] is None
    metric.update(no_boxes(), no_boxes())
    assert metric.compute()["ap"] == {"one": None}
    assert join([]).frames == ()
    with pytest.raises(ValueError, match="different label maps"):
        metric.merge(FrameMAP({2: "two"}))
    with pytest.raises(ValueError, match=r"row 1, frame 'f'.*not finite"):
        boxes([("f", (0.0, 0, 1, 1), 1), ("f", (0.0, 0, math.nan, 1), 1)], [1, 1])
    with pytest.raises(ValueError, match="are needed"):
        FrameBoxes(("f",), np.zeros(2, np.int64), np.zeros((1, 4)), np.zeros(2, np.int64), np.zeros(2))
    assert frame_key("v", 902) == frame_key("v", float("0902.000")) != frame_key("v", 902.5)
    assert average_precision(np.array([False, True, True]), 4) == pytest.approx((2 / 3 + 2 / 3) / 4)


def test_topk_counts_a_video_without_clips_as_wrong_and_refuses_bad_clips():
    metric = TopKAccuracy([0, 1, 2], num_classes=3, views_per_video=2)
    metric.update([0, 3], [[5.0, 0, 0], [0, 5.0, 0]])
    for clips, logits, message in (
        ([0], [[1.0, 0, 0]], "clip id 0 is given twice"),
        ([1, 1], [[1.0, 0, 0]] * 2, "clip id 1 is given twice"),
        ([6], [[1.0, 0, 0]], "unknown clip id 6"),
        ([-1], [[1.0, 0, 0]], "unknown clip id -1"),
        ([1], [[math.nan, 0, 0]], "clip id 1: a logit is not a finite number"),
        ([1], [[1.0, 0]], "logits of shape"),
    ):
        with pytest.raises(ValueError, match=message):
            metric.update(clips, logits)
    result = metric.compute()
    assert (result["top1_correct"], result["missing_clips"], result["videos_without_clips"]) == (2, 4, 1)
    assert result["top5"] == pytest.approx(200 / 3)  # five of three classes: all, but the unseen video stays wrong
    other = TopKAccuracy([0, 1, 2], num_classes=3, views_per_video=2)
    other.update([3], [[0.0, 0, 0]])
    with pytest.raises(ValueError, match="clip id 3 was seen by both"):
        metric.merge(other)
    with pytest.raises(ValueError, match="different videos"):
        metric.merge(TopKAccuracy([0, 1], 3, 2))
    with pytest.raises(ValueError, match="video 1 has label 3"):
        TopKAccuracy([0, 3], 3)
    with pytest.raises(ValueError, match="at least one video"):
        TopKAccuracy([], 3)


def test_topk_sums_probabilities_not_logits():
    metric = TopKAccuracy([1], num_classes=2, views_per_video=3)
    metric.update([0, 1, 2], [[100.0, 0], [0, 2.0], [0, 2.0]])  # mean logits say 0, mean probabilities say 1
    assert metric.compute()["top1"] == 100.0


def test_retrieval_of_collapsed_features_is_chance():
    metric = RetrievalRecall(ranks=(1, 2, 10))
    metric.update("gallery", np.ones((4, 3)), [0, 0, 1, 2])
    metric.update("query", np.ones((2, 3)), [0, 1])
    result = metric.compute()
    assert result["recall_at"]["1"] == pytest.approx((2 / 4 + 1 / 4) / 2)
    assert result["recall_at"]["2"] == pytest.approx((1 - 1 / 6 + 1 / 2) / 2)
    assert result["recall_at"]["10"] == 1.0
    assert result["tied_queries"] == 2


def test_retrieval_refuses():
    metric = RetrievalRecall()
    with pytest.raises(ValueError, match="the query set is empty"):
        metric.compute()
    metric.update("gallery", np.ones((2, 3)), [0, 1])
    for name, values, labels, message in (
        ("query", np.ones((2, 4)), [0, 1], "size 4 among features of size 3"),
        ("query", np.ones((2, 3)), [0], "for 1 labels"),
        ("query", np.full((1, 3), np.nan), [0], "row 0 holds"),
        ("test", np.ones((1, 3)), [0], "'gallery' and 'query'"),
    ):
        with pytest.raises(ValueError, match=message):
            metric.update(name, values, labels)
    with pytest.raises(ValueError, match="different ranks"):
        metric.merge(RetrievalRecall(centre=False))


def test_metrics_travel_between_processes():
    retrieval, verbs = RetrievalRecall(), VerbScores()
    retrieval.update("gallery", np.eye(3), [0, 1, 2])
    retrieval.update("query", np.eye(3), [0, 1, 2])
    verbs.update([["a"]] * 5, [["a"]] * 5)
    boundaries, frames, topk = BoundaryF1(), FrameMAP({1: "one"}), TopKAccuracy([0], 2)
    boundaries.update({"v": BoundaryVideo(10.0, 10.0, ((5.0,),))}, {"v": [5.0]})
    frames.update(boxes([("f", (0.0, 0, 1, 1), 1)], [1]), boxes([("f", (0.0, 0, 1, 1), 1)], [0.9]))
    topk.update([0], [[1.0, 0.0]])
    for metric in (retrieval, verbs, boundaries, frames, topk):
        assert pickle.loads(pickle.dumps(metric)).compute() == metric.compute()
