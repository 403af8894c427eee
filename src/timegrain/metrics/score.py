"""The commands ``timegrain score ...``: official scores of prediction files, from the shell.

With ``--json``, standard output is one JSON object whose keys are those of the metric's ``compute`` and ``protocol``,
which names the rules that were followed. Warnings go to standard error. Nothing is printed before all is read and
checked.
"""

from __future__ import annotations

import json as json_module
import math
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from timegrain.metrics.boundary_f1 import BoundaryF1, Missing
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
from timegrain.metrics.matching import WithinVideoMatching
from timegrain.metrics.retrieval import RetrievalRecall
from timegrain.metrics.topk import TopKAccuracy
from timegrain.metrics.verbs import VerbScores


def report(result: dict[str, Any], lines: Iterable[str], json: bool) -> None:
    """Print a result: as one JSON object, or as lines to read.

    Args:
        result: Plain values; no NaN.
        lines: What a reader wants to see of it.
        json: Which of the two.
    """
    print(json_module.dumps(result, indent=2, allow_nan=False) if json else "\n".join(lines))


def warn(message: str) -> None:
    """Print a warning on standard error."""
    print(f"warning: {message}", file=sys.stderr)


def score_gebd(*, ground_truth: Path, predictions: Path, missing: Missing, json: bool = False) -> None:
    """F1 of event boundaries at relative distances 0.05 to 0.5 (Kinetics-GEBD, TAPOS), bit for bit the official one.

    JSON keys: f1, precision, recall (each keyed "0.05" ... "0.5"), mean_f1, mean_precision, mean_recall, missing,
    counts (videos, excluded, missing, unknown_ids, detections_outside; true_positives, positives, detections by
    threshold), protocol.

    Args:
        ground_truth: The official ground truth (k400_mr345_*.pkl), or the same as JSON.
        predictions: A dict from video id to a list of boundaries, as pickle or JSON.
        missing: Which official program to follow. challenge: boundaries in seconds, a video without prediction
            counts as missed. notebook: 0-based frames, such a video is skipped.
        json: Print one JSON object.

    Raises:
        ValueError: A file is malformed, or the two files share no video.
    """
    videos = read_boundary_truth(ground_truth, missing)
    found = read_boundaries(predictions)
    unknown = sorted(str(key) for key in found if key not in videos)
    if found and len(unknown) == len(found):
        raise ValueError(
            f"no video of {predictions} is in {ground_truth}: {unknown[0]!r} is not, for example; "
            f"ids there look like {next(iter(videos))!r}"
        )
    metric = BoundaryF1(missing)
    metric.update(videos, found)
    result = metric.compute()
    shared = {key: times for key, times in found.items() if key in videos}
    outside = sum(not 0 <= t <= videos[key].last for key, times in shared.items() for t in times)
    result["counts"] |= {"unknown_ids": len(unknown), "detections_outside": outside}
    unit = "seconds" if missing == "challenge" else "frames"
    result["protocol"] = f"Kinetics-GEBD, {missing} program ({unit})"
    if unknown:
        warn(
            f"{len(unknown)} predicted videos are not in the ground truth and are ignored, the first is {unknown[0]!r}"
        )
    if outside * 2 > sum(map(len, shared.values())):
        warn(f"{outside} detections lie outside their video: are they really in {unit}?")
    if result["counts"]["missing"]:
        fate = "count as missed" if missing == "challenge" else "are skipped"
        warn(f"{result['counts']['missing']} videos have no prediction and {fate}")
    rows = [
        f"{name:>9}  {result['f1'][name]:.4f}  {result['precision'][name]:.4f}  {result['recall'][name]:.4f}"
        for name in result["f1"]
    ]
    mean = f"{'mean':>9}  {result['mean_f1']:.4f}  {result['mean_precision']:.4f}  {result['mean_recall']:.4f}"
    counts = result["counts"]
    head = f"{result['protocol']}: {counts['videos']} videos, {counts['excluded']} excluded (consistency below 0.3)"
    report(result, [head, "threshold  F1      prec.   recall", *rows, mean], json)


def score_vidsitu(*, ground_truth: Path, predictions: Path, split: str = "valid", json: bool = False) -> None:
    """Verb scores of VidSitu, and whether the five predictions of a video can be told apart.

    JSON keys, as fractions: acc@1 ... acc@5, vid@1 ... vid@5, rec@5, recall_macro and num_verbs (keyed "0" ... "9"),
    num_videos, num_events, shuffled (the same scores expected for each video's predictions in random order),
    matching (accuracy, chance, videos, tied_videos), repeated_entries, protocol.

    Args:
        ground_truth: The annotation folder, with split_files/ and vinfo_files/.
        predictions: A list of {ann_idx, pred_vbs_ev, pred_scores_ev}, as pickle or JSON.
        split: A split whose verbs are published.
        json: Print one JSON object.

    Raises:
        ValueError: A file is malformed, or a segment has no prediction.
    """
    labels = read_verb_labels(ground_truth, split)
    predicted = read_verb_predictions(predictions, list(labels))
    scores, matching = VerbScores(), WithinVideoMatching()
    for verbs, annotated in zip(predicted.verbs, labels.values(), strict=True):
        scores.update(verbs, annotated)
        matching.update(verbs, annotated)
    result = {
        **scores.compute(),
        "matching": matching.compute(),
        "repeated_entries": predicted.repeated,
        "protocol": f"VidSitu verbs, {split}; a verb is right if any of up to 10 annotators names it",
    }
    if predicted.repeated:
        warn(f"{predicted.repeated} entries repeat a segment and are ignored, as in the official program")
    if predicted.unsorted:
        warn(f"the scores of {predicted.unsorted} events do not descend; their verbs count in the order given")
    shuffled, matched = result["shuffled"], result["matching"]
    names = ["acc@1", "acc@5", "vid@1", "rec@5"]
    lines = [
        f"{result['protocol']}: {result['num_videos']} videos, {result['num_events']} events",
        "          score   events of a video in random order",
        *(f"{name:<8}  {result[name]:.4f}  {shuffled[name]:.4f}" for name in names),
        f"matching  {matched['accuracy']:.4f}  chance {matched['chance']:.4f}",
    ]
    report(result, lines, json)


def score_ava(
    *, ground_truth: Path, predictions: Path, label_map: Path, excluded: Path | None = None, json: bool = False
) -> None:
    """Frame-mAP at overlap 0.5 of AVA or AVA-Kinetics, by the rules of the official program.

    JSON keys, as fractions: map, ap (by class name; null for a class without ground truth), counts, protocol.

    Args:
        ground_truth: Rows video, time, x1, y1, x2, y2, action id and perhaps person id; or video and time alone.
        predictions: Rows video, time, x1, y1, x2, y2, action id, score.
        label_map: The .pbtxt of the evaluated actions.
        excluded: Rows video, time of frames that are taken out of the ground truth first.
        json: Print one JSON object.

    Raises:
        ValueError: A line of a file is malformed.
    """
    names = read_label_map(label_map)
    truth = read_boxes(ground_truth, "ground truth")
    found = read_boxes(predictions, "detections")
    metric = FrameMAP(names)
    boxes = without_frames(truth.boxes, read_frames(excluded)) if excluded is not None else truth.boxes
    metric.update(boxes, found.boxes)
    result = metric.compute()
    counts = result["counts"]
    counts["excluded_frames"] = len(truth.boxes.frames) - len(boxes.frames)
    result["protocol"] = "AVA frame-mAP at overlap 0.5, at most 50 detections per frame"
    for path, file in ((ground_truth, truth), (predictions, found)):
        if file.repeated:
            warn(f"{path}: {file.repeated} rows repeat another exactly (line {file.first_repeated_line}); all count")
    if len(found.boxes.frame) and counts["detections_on_other_frames"] == len(found.boxes.frame):
        warn(f"no detection of {predictions} is on a frame of {ground_truth}")
    width = max(map(len, names.values()))
    lines = [
        f"{result['protocol']}: {counts['frames']} frames, {counts['boxes']} boxes, {counts['detections']} detections",
        *(f"{name:<{width}}  {value:.4f}" for name, value in result["ap"].items() if value is not None),
        f"{'mAP':<{width}}  {math.nan if result['map'] is None else result['map']:.4f}",
    ]
    report(result, lines, json)


def score_topk(*, predictions: Path, json: bool = False) -> None:
    """Top-1, top-5 (percent) and mean class accuracy (fraction) of videos seen in several views.

    Softmax of each clip, sum over the clips of a video. JSON keys: top1, top5, mean_class_accuracy, top1_correct,
    top5_correct, num_videos, num_classes, views_per_video, missing_clips, videos_without_clips, protocol.

    Args:
        predictions: JSON with labels, clip_ids (those seen), logits_by_clip_id, views_per_video; clip c is view
            c % views_per_video of video c // views_per_video.
        json: Print one JSON object.

    Raises:
        ValueError: The file is malformed, or a clip is unknown or given twice.
    """
    data = read_clip_logits(predictions)
    metric = TopKAccuracy(data.labels, data.logits.shape[1], data.views_per_video)
    metric.update(data.clip_ids, data.logits)
    result = metric.compute()
    result["protocol"] = f"{data.views_per_video} views per video, softmax summed over views"
    if result["missing_clips"]:
        warn(f"{result['missing_clips']} clips are missing; {result['videos_without_clips']} videos have none: wrong")
    lines = [
        f"{result['num_videos']} videos, {result['protocol']}",
        f"top-1                {result['top1']:.2f} %",
        f"top-5                {result['top5']:.2f} %",
        f"mean class accuracy  {100 * result['mean_class_accuracy']:.2f} %",
    ]
    report(result, lines, json)


def score_retrieval(*, predictions: Path, centre: bool = True, json: bool = False) -> None:
    """Nearest-neighbour retrieval: share of queries with a video of their class among the k nearest.

    JSON keys: recall_at (keyed "1", "5", "10", "20", "50", fractions), num_queries, num_gallery, tied_queries, centred,
    protocol.

    Args:
        predictions: JSON with gallery_train, gallery_labels, query_test, query_labels: one feature per video.
        centre: Subtract from each set its own mean first, as the reference code does.
        json: Print one JSON object.

    Raises:
        ValueError: The file is malformed.
    """
    data = read_retrieval_sets(predictions)
    metric = RetrievalRecall(centre=centre)
    metric.update("gallery", data.gallery, data.gallery_labels)
    metric.update("query", data.query, data.query_labels)
    result = metric.compute()
    result["protocol"] = f"nearest neighbours by cosine, {'each set centred' if centre else 'not centred'}"
    head = f"{result['num_queries']} queries, {result['num_gallery']} gallery videos, {result['protocol']}"
    report(result, [head, *(f"R@{k:<3} {value:.4f}" for k, value in result["recall_at"].items())], json)
