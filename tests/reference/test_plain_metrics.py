"""The package's metrics against the same rules written as loops, on whatever hypothesis thinks of."""

from __future__ import annotations

import math

import numpy as np
import plain_metrics as plain
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from timegrain.metrics.boundary_f1 import THRESHOLDS, BoundaryF1, BoundaryVideo
from timegrain.metrics.frame_map import FrameBoxes, FrameMAP, frame_key
from timegrain.metrics.matching import WithinVideoMatching
from timegrain.metrics.retrieval import RetrievalRecall
from timegrain.metrics.topk import TopKAccuracy
from timegrain.metrics.verbs import VerbScores

# a coarse grid makes equal distances, exact tolerances and boundaries at the ends frequent
TIMES = st.integers(-2, 22).map(lambda n: n / 2) | st.floats(-1, 11)
VIDEO = st.tuples(
    st.sampled_from([10.0, 7.5, 0.0]),
    st.lists(st.lists(TIMES, max_size=5), min_size=1, max_size=4),
    st.sampled_from([0.1, 0.3, 0.9]),
)


@settings(max_examples=150, deadline=None)
@given(
    videos=st.lists(VIDEO, max_size=6),
    predictions=st.dictionaries(st.integers(0, 7), st.lists(TIMES, max_size=6), max_size=6),
    missing=st.sampled_from(["challenge", "notebook"]),
)
def test_boundary_f1(videos, predictions, missing):
    rows = {str(i): (length, length, lists, consistency) for i, (length, lists, consistency) in enumerate(videos)}
    found = {str(key): times for key, times in predictions.items()}
    truth = {key: BoundaryVideo(a, b, tuple(map(tuple, lists)), c) for key, (a, b, lists, c) in rows.items()}
    whole = BoundaryF1(missing)
    whole.update(truth, found)
    result = whole.compute()
    for threshold in THRESHOLDS:
        name = f"{threshold:g}"
        recall, precision, f1, counts = plain.boundary_f1(rows, found, missing, threshold)
        assert (result["recall"][name], result["precision"][name], result["f1"][name]) == (recall, precision, f1)
        got = result["counts"]
        assert (got["true_positives"][name], got["positives"][name], got["detections"][name]) == counts
    parts = BoundaryF1(missing)
    for key in reversed(truth):
        part = BoundaryF1(missing)
        part.update({key: truth[key]}, found)
        parts.merge(part)
    assert parts.compute() == result


VERBS = st.sampled_from([f"v{i}.01" for i in range(8)])
EVENTS = st.lists(st.lists(VERBS, min_size=1, max_size=12), min_size=5, max_size=5)
RANKED = st.lists(st.lists(VERBS, max_size=6), min_size=5, max_size=5)


@settings(max_examples=80, deadline=None)
@given(pairs=st.lists(st.tuples(RANKED, EVENTS), min_size=1, max_size=5), cut=st.integers(0, 5))
def test_verbs_and_matching(pairs, cut):
    predicted, annotated = [p for p, _ in pairs], [a for _, a in pairs]
    shards = [(VerbScores(), WithinVideoMatching()) for _ in range(2)]
    whole = (VerbScores(), WithinVideoMatching())
    for index, (p, a) in enumerate(pairs):
        for metric in (*whole, *shards[index < cut]):
            metric.update(p, a)
    result = whole[0].compute()
    reference = plain.verb_scores(predicted, annotated)
    for name, value in reference.items():
        got = result["recall_macro"][name.split()[1]] if name.startswith("recall") else result[name]
        assert got == pytest.approx(value, abs=1e-12)
    matching = whole[1].compute()
    assert matching["accuracy"] == float(plain.matching_accuracy(predicted, annotated))
    for mine, other, all_of_it in zip(*shards, whole, strict=True):
        mine.merge(other)
        assert mine.compute() == all_of_it.compute()


GRID = st.integers(0, 8).map(lambda n: n / 8)
BOX = st.tuples(GRID, GRID, GRID, GRID)
FRAME = st.tuples(st.sampled_from("ab"), st.sampled_from([1.0, 2.5]))
TRUTH = st.lists(st.tuples(FRAME, BOX, st.integers(1, 4)) | st.tuples(FRAME), max_size=14)
FOUND = st.lists(st.tuples(FRAME, BOX, st.integers(1, 4)), max_size=25)


def table(rows, scores=None):
    frames = sorted({frame_key(*row[0]) for row in rows})
    full = [row for row in rows if len(row) > 1]
    return FrameBoxes(
        frames,
        np.array([frames.index(frame_key(*row[0])) for row in full], np.int64),
        np.array([row[1] for row in full], np.float64).reshape(-1, 4),
        np.array([row[2] for row in full], np.int64),
        np.ones(len(full)) if scores is None else np.array(scores, np.float64),
    )


@settings(max_examples=200, deadline=None)
@given(truth=TRUTH, found=FOUND, limit=st.sampled_from([2, 5, 50]), seed=st.integers(0, 999))
def test_frame_map(truth, found, limit, seed):
    # real ground-truth boxes have area; equal ones are allowed
    truth = [row for row in truth if len(row) == 1 or (row[1][0] < row[1][2] and row[1][1] < row[1][3])]
    rng = np.random.default_rng(seed)
    scores = rng.permutation(len(found)) / max(len(found), 1)  # no two equal: the official result is defined
    names = {1: "one", 2: "two", 3: "three"}
    expected, by_class = plain.frame_map(
        ordered_truth(truth), [(*row, score) for row, score in zip(found, scores, strict=True)], names, limit
    )
    whole = FrameMAP(names, limit)
    whole.update(table(truth), table(found, scores))
    result = whole.compute()
    assert (math.nan if result["map"] is None else result["map"]) == pytest.approx(expected, abs=1e-12, nan_ok=True)
    for number, name in names.items():
        got = result["ap"][name]
        assert (math.nan if got is None else got) == pytest.approx(by_class[number], abs=1e-12, nan_ok=True)
    shards = [FrameMAP(names, limit) for _ in range(3)]
    for row in truth:
        shards[rng.integers(3)].update(ground_truth=table([row]))
    for row, score in zip(found, scores, strict=True):
        shards[rng.integers(3)].update(detections=table([row], [score]))
    shards[0].merge(shards[1])
    shards[2].merge(shards[0])
    assert shards[2].compute() == result


def ordered_truth(rows):
    """Equal overlaps go to the first box: give the plain code the package's order, that of content."""
    return sorted(rows, key=lambda row: row[1] if len(row) > 1 else ())


@settings(max_examples=100, deadline=None)
@given(
    truth=TRUTH,
    found=FOUND,
    scores=st.lists(st.sampled_from([0.1, 0.5]), min_size=25, max_size=25),
    seed=st.integers(0, 99),
)
def test_frame_map_of_equal_scores_does_not_depend_on_order(truth, found, scores, seed):
    names = {1: "one", 2: "two", 3: "three"}
    scores = scores[: len(found)]
    first, second = FrameMAP(names, 5), FrameMAP(names, 5)
    first.update(table(truth), table(found, scores))
    order = np.random.default_rng(seed).permutation(len(found))
    second.update(table(truth[::-1]), table([found[i] for i in order], [scores[i] for i in order]))
    assert first.compute() == second.compute()


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.tuples(st.integers(1, 12), st.integers(1, 6), st.integers(2, 5), st.integers(2, 4)),
    centre=st.booleans(),
    seed=st.integers(0, 999),
)
def test_retrieval(sizes, centre, seed):
    num_gallery, num_queries, size, num_classes = sizes
    rng = np.random.default_rng(seed)
    gallery, query = rng.normal(size=(num_gallery + 1, size)), rng.normal(size=(num_queries + 1, size))
    labels = rng.integers(num_classes, size=num_gallery + 1), rng.integers(num_classes, size=num_queries + 1)
    ranks = (1, 2, 5, 50)
    expected = plain.retrieval(gallery, labels[0], query, labels[1], ranks, centre)
    whole = RetrievalRecall(ranks, centre)
    whole.update("gallery", gallery, labels[0])
    whole.update("query", query, labels[1])
    assert whole.compute()["recall_at"] == pytest.approx(expected, abs=1e-12)
    shards = [RetrievalRecall(ranks, centre) for _ in range(2)]
    for name, values, classes in (("gallery", gallery, labels[0]), ("query", query, labels[1])):
        to = rng.integers(2, size=len(values))
        for index, shard in enumerate(shards):
            shard.update(name, values[to == index], classes[to == index])
    shards[1].merge(shards[0])
    assert shards[1].compute() == whole.compute()


@settings(max_examples=60, deadline=None)
@given(sizes=st.tuples(st.integers(1, 8), st.integers(1, 4), st.integers(2, 8)), seed=st.integers(0, 999))
def test_topk(sizes, seed):
    num_videos, views, num_classes = sizes
    rng = np.random.default_rng(seed)
    labels = rng.integers(num_classes, size=num_videos)
    clips = rng.permutation(num_videos * views)
    logits = rng.normal(size=(len(clips), num_classes)) * 3
    whole = TopKAccuracy(labels, num_classes, views)
    whole.update(clips, logits)
    result = whole.compute()
    top1, top5, mean_class = plain.top_k(labels.tolist(), num_classes, views, clips.tolist(), logits.tolist())
    assert (result["top1"], result["top5"]) == pytest.approx((top1, top5))
    assert result["mean_class_accuracy"] == pytest.approx(mean_class)
    shards = [TopKAccuracy(labels, num_classes, views) for _ in range(3)]
    to = rng.integers(3, size=len(clips))
    for index, shard in enumerate(shards):
        shard.update(clips[to == index], logits[to == index])
    shards[2].merge(shards[1])
    shards[2].merge(shards[0])
    assert shards[2].compute() == result
    assert np.array_equal(shards[2]._sums, whole._sums)
