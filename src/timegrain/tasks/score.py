"""The commands ``timegrain score ...``: official scores of prediction files, from the shell.

With ``--json``, standard output is one JSON object whose keys are those of the metric's ``compute`` and, in every one of
them, ``protocol`` (the rules that were followed), ``coverage`` (of the manifest, else null), and ``floors`` (rows of what
scores without a model, on the same labels). Warnings go to standard error. Nothing is printed before all is read and
checked. One long file, because five commands of one shape are read side by side.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from timegrain.metrics.boundary_f1 import BoundaryF1, BoundaryVideo, Missing
from timegrain.metrics.floors import score_majority_class, score_random_order
from timegrain.metrics.frame_files import read_boxes, read_frames, read_label_map, without_frames
from timegrain.metrics.frame_map import FrameMAP, frame_key
from timegrain.metrics.inputs import (
    read_boundaries,
    read_boundary_truth,
    read_clip_logits,
    read_retrieval_sets,
    read_train_verbs,
    read_verb_labels,
    read_verb_predictions,
)
from timegrain.metrics.matching import WithinVideoMatching
from timegrain.metrics.retrieval import RetrievalRecall
from timegrain.metrics.topk import TopKAccuracy
from timegrain.metrics.verbs import VerbScores
from timegrain.tasks.floor_rows import (
    AVA_COLUMNS,
    GEBD_COLUMNS,
    RETRIEVAL_COLUMNS,
    TOPK_COLUMNS,
    VIDSITU_COLUMNS,
    ava_rows,
    gebd_row,
    gebd_rows,
    vidsitu_rows,
)
from timegrain.tasks.printing import coverage_text, report, table, warn

Item = TypeVar("Item")
Rows = list[dict[str, Any]]


def _open(manifest: Path | None) -> tuple[dict[str, Any] | None, Rows | None]:
    """Coverage of a manifest, and id and key frames of each of its usable videos; nothing without one."""
    if manifest is None:
        return None, None
    from timegrain.data.manifest import Manifest  # it takes a moment to load

    everything = Manifest.open(manifest)
    if "video_id" not in everything.column_names:
        raise ValueError(f"{manifest} has no column 'video_id'; a manifest of `timegrain prepare` is needed")
    usable = everything.select()
    names = [name for name in ("video_id", "key_frame_seconds") if name in usable.column_names]
    columns = [usable.column(name).to_pylist() for name in names]
    return everything.coverage, [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]


def _present(items: Mapping[str, Item], rows: Rows | None, where: Path) -> dict[str, Item]:
    """Those of a benchmark's videos that a manifest has; all without one."""
    if rows is None:
        return dict(items)
    there = {row["video_id"] for row in rows}
    kept = {key: item for key, item in items.items() if key in there}
    if not kept:
        raise ValueError(f"no video of {where} is in the manifest, which has {rows[0]['video_id']!r}, for example")
    return kept


def _score_boundaries(
    videos: Mapping[str, BoundaryVideo], found: Mapping[str, Sequence[float]], missing: Missing, where: Path
) -> dict[str, Any]:
    """GEBD's result with its further counts, and warnings about what looks wrong."""
    unknown = sorted(str(key) for key in found if key not in videos)
    if found and len(unknown) == len(found):
        raise ValueError(
            f"no video of {where} is in the ground truth: {unknown[0]!r} is not, for example; "
            f"ids there look like {next(iter(videos))!r}"
        )
    metric = BoundaryF1(missing)
    metric.update(videos, found)
    result = metric.compute()
    shared = {key: times for key, times in found.items() if key in videos}
    outside = sum(not 0 <= t <= videos[key].last for key, times in shared.items() for t in times)
    result["counts"] |= {"unknown_ids": len(unknown), "detections_outside": outside}
    if unknown:
        warn(f"{where}: {len(unknown)} videos are not in the ground truth and are ignored, the first is {unknown[0]!r}")
    if outside * 2 > sum(map(len, shared.values())):
        unit = "seconds" if missing == "challenge" else "frames"
        warn(f"{where}: {outside} detections lie outside their video: are they really in {unit}?")
    if result["counts"]["missing"]:
        fate = "count as missed" if missing == "challenge" else "are skipped"
        warn(f"{where}: {result['counts']['missing']} videos have no prediction and {fate}")
    return result


def score_gebd(
    *,
    ground_truth: Path,
    predictions: Path,
    missing: Missing,
    beside: list[Path] | None = None,
    manifest: Path | None = None,
    floors: bool = True,
    json: bool = False,
) -> None:
    """F1 of event boundaries at relative distances 0.05 to 0.5 (Kinetics-GEBD, TAPOS), bit for bit the official one.

    JSON keys: f1, precision, recall (each keyed "0.05" ... "0.5"), mean_f1, mean_precision, mean_recall, missing,
    counts (videos, excluded, missing, unknown_ids, detections_outside; true_positives, positives, detections by
    threshold), protocol, coverage, not_in_manifest, beside (a row per further file), floors (rows of evenly spaced
    boundaries and of annotators against each other). Rows have name, chosen_on and the keys of the result.

    Example::

        timegrain score gebd --ground-truth k400_mr345_val.pkl --predictions p.pkl --missing challenge

    Args:
        ground_truth: The official ground truth (k400_mr345_*.pkl), or the same as JSON.
        predictions: A dict from video id to a list of boundaries, as pickle or JSON.
        missing: Which official program to follow. challenge: boundaries in seconds, a video without prediction
            counts as missed. notebook: 0-based frames, such a video is skipped.
        beside: Further files of predictions to print beside, such as those of `timegrain floors scenedetect`.
        manifest: Score only the videos that this manifest of `timegrain prepare` can use, and state its coverage.
        floors: Score what needs no model as well.
        json: Print one JSON object.

    Raises:
        ValueError: A file is malformed, or predictions and ground truth share no video.
    """
    every = read_boundary_truth(ground_truth, missing)
    coverage, rows = _open(manifest)
    videos = _present(every, rows, ground_truth)
    found = {path: read_boundaries(path) for path in (predictions, *(beside or ()))}
    if rows is not None:  # what the manifest lacks is neither missed nor unknown
        found = {path: {k: t for k, t in f.items() if k in videos or k not in every} for path, f in found.items()}
    results = {path: _score_boundaries(videos, times, missing, path) for path, times in found.items()}
    result = results[predictions]
    unit = "seconds" if missing == "challenge" else "frames"
    result |= {
        "protocol": f"Kinetics-GEBD, {missing} program ({unit})",
        "coverage": coverage,
        "not_in_manifest": len(every) - len(videos),
        "beside": [gebd_row(path.name, "-", results[path]) for path in beside or ()],
        "floors": gebd_rows(videos, missing) if floors else [],
    }
    lines = [
        f"{name:>9}  {result['f1'][name]:.4f}  {result['precision'][name]:.4f}  {result['recall'][name]:.4f}"
        for name in result["f1"]
    ]
    mean = f"{'mean':>9}  {result['mean_f1']:.4f}  {result['mean_precision']:.4f}  {result['mean_recall']:.4f}"
    counts = result["counts"]
    head = f"{result['protocol']}: {counts['videos']} videos, {counts['excluded']} excluded (consistency below 0.3)"
    compared = [gebd_row(predictions.name, "-", result), *result["beside"], *result["floors"]]
    report(
        result,
        [
            head,
            *coverage_text(coverage, manifest),
            "threshold  F1      prec.   recall",
            *lines,
            mean,
            *(["", *table(compared, GEBD_COLUMNS)] if len(compared) > 1 else []),
        ],
        json,
    )


def score_vidsitu(
    *,
    ground_truth: Path,
    predictions: Path,
    split: str = "valid",
    manifest: Path | None = None,
    floors: bool = True,
    json: bool = False,
) -> None:
    """Verb scores of VidSitu, and whether the five predictions of a video can be told apart.

    JSON keys, as fractions: acc@1 ... acc@5, vid@1 ... vid@5, rec@5, recall_macro and num_verbs (keyed "0" ... "9"),
    num_videos, num_events, shuffled (the same scores expected for each video's predictions in random order),
    matching (accuracy, chance, videos, tied_videos), repeated_entries, protocol, coverage, not_in_manifest, floors (the
    rows of `timegrain floors vidsitu`).

    Example::

        timegrain score vidsitu --ground-truth ANNOTATIONS --predictions p.pkl --json

    Args:
        ground_truth: The annotation folder, with split_files/ and vinfo_files/.
        predictions: A list of {ann_idx, pred_vbs_ev, pred_scores_ev}, as pickle or JSON.
        split: A split whose verbs are published.
        manifest: Score only the segments that this manifest of `timegrain prepare` can use, and state its coverage;
            without it every segment of the split needs a prediction.
        floors: Score what needs no model as well.
        json: Print one JSON object.

    Raises:
        ValueError: A file is malformed, or a segment has no prediction.
    """
    every = read_verb_labels(ground_truth, split)
    coverage, rows = _open(manifest)
    labels = _present(every, rows, ground_truth)
    predicted = read_verb_predictions(predictions, list(every), None if rows is None else set(labels))
    scores, matching = VerbScores(), WithinVideoMatching()
    for verbs, annotated in zip(predicted.verbs, labels.values(), strict=True):
        scores.update(verbs, annotated)
        matching.update(verbs, annotated)
    result = {
        **scores.compute(),
        "matching": matching.compute(),
        "repeated_entries": predicted.repeated,
        "protocol": f"VidSitu verbs, {split}; a verb is right if any of up to 10 annotators names it",
        "coverage": coverage,
        "not_in_manifest": len(every) - len(labels),
        "floors": vidsitu_rows(labels, read_train_verbs(ground_truth)) if floors else [],
    }
    if predicted.repeated:
        warn(f"{predicted.repeated} entries repeat a segment and are ignored, as in the official program")
    if predicted.unsorted:
        warn(f"the scores of {predicted.unsorted} events do not descend; their verbs count in the order given")
    shuffled, matched = result["shuffled"], result["matching"]
    names = ["acc@1", "acc@5", "vid@1", "rec@5"]
    own = {"name": predictions.name, **{name: result[name] for name in names}, "matching": matched["accuracy"]}
    lines = [
        f"{result['protocol']}: {result['num_videos']} videos, {result['num_events']} events",
        *coverage_text(coverage, manifest),
        "          score   events of a video in random order",
        *(f"{name:<8}  {result[name]:.4f}  {shuffled[name]:.4f}" for name in names),
        f"matching  {matched['accuracy']:.4f}  chance {matched['chance']:.4f}",
        *(["", *table([own, *result["floors"]], VIDSITU_COLUMNS)] if floors else []),
    ]
    report(result, lines, json)


def score_ava(
    *,
    ground_truth: Path,
    predictions: Path,
    label_map: Path,
    excluded: Path | None = None,
    manifest: Path | None = None,
    floors: bool = True,
    json: bool = False,
) -> None:
    """Frame-mAP at overlap 0.5 of AVA or AVA-Kinetics, by the rules of the official program.

    JSON keys, as fractions: map, ap (by class name; null for a class without ground truth), counts, protocol, coverage,
    floors (the row of `timegrain floors ava`: each class's share as the score of every true box, in one random order).

    Example::

        timegrain score ava --ground-truth ava_val.csv --predictions p.csv --label-map actions.pbtxt

    Args:
        ground_truth: Rows video, time, x1, y1, x2, y2, action id and perhaps person id; or video and time alone.
        predictions: Rows video, time, x1, y1, x2, y2, action id, score.
        label_map: The .pbtxt of the evaluated actions.
        excluded: Rows video, time of frames that are taken out of the ground truth first.
        manifest: Score only key frames of the videos that this manifest of `timegrain prepare` can use, and state its
            coverage.
        floors: Score the class prior as well.
        json: Print one JSON object.

    Raises:
        ValueError: A line of a file is malformed.
    """
    names = read_label_map(label_map)
    truth = read_boxes(ground_truth, "ground truth")
    found = read_boxes(predictions, "detections")
    boxes = without_frames(truth.boxes, read_frames(excluded)) if excluded is not None else truth.boxes
    num_excluded = len(truth.boxes.frames) - len(boxes.frames)
    coverage, rows = _open(manifest)
    num_listed = len(boxes.frames)
    if rows is not None:
        if rows and "key_frame_seconds" not in rows[0]:
            raise ValueError(f"{manifest} has no column 'key_frame_seconds'; it is not of ava-kinetics")
        there = {frame_key(row["video_id"], time) for row in rows for time in row["key_frame_seconds"] or ()}
        boxes = without_frames(boxes, set(boxes.frames) - there)
        if not boxes.frames:
            raise ValueError(f"no frame of {ground_truth} is in {manifest}")
    metric = FrameMAP(names)
    metric.update(boxes, found.boxes)
    result = metric.compute()
    counts = result["counts"]
    counts |= {"excluded_frames": num_excluded, "frames_not_in_manifest": num_listed - len(boxes.frames)}
    result |= {
        "protocol": "AVA frame-mAP at overlap 0.5, at most 50 detections per frame",
        "coverage": coverage,
        "floors": ava_rows(boxes, boxes, None, names, draws=1) if floors and counts["boxes"] else [],
    }
    for path, file in ((ground_truth, truth), (predictions, found)):
        if file.repeated:
            warn(f"{path}: {file.repeated} rows repeat another exactly (line {file.first_repeated_line}); all count")
    elsewhere = sorted(set(found.boxes.frames) - set(truth.boxes.frames))
    if elsewhere:
        warn(
            f"{predictions}: {len(elsewhere)} frames are not in {ground_truth}; their rows are ignored, as in the "
            f"official program; the first is {elsewhere[0]}"
        )
    for path, file in ((ground_truth, truth), (predictions, found)):
        others = sorted(set(file.boxes.classes.tolist()) - set(names))
        if others:
            warn(f"{path}: rows of {len(others)} actions that are not in {label_map} are skipped, such as {others[0]}")
    if np.abs(found.boxes.boxes).max(initial=0) > 10 >= np.abs(truth.boxes.boxes).max(initial=0):
        warn(f"{predictions}: coordinates are fractions of the picture; these look like pixels")
    width = max(map(len, names.values()))
    own = {"name": predictions.name, "map": result["map"]}
    lines = [
        f"{result['protocol']}: {counts['frames']} frames, {counts['boxes']} boxes, {counts['detections']} detections",
        *coverage_text(coverage, manifest),
        *(f"{name:<{width}}  {value:.4f}" for name, value in result["ap"].items() if value is not None),
        f"{'mAP':<{width}}  {math.nan if result['map'] is None else result['map']:.4f}",
        *(["", *table([own, *result["floors"]], AVA_COLUMNS)] if result["floors"] else []),
    ]
    report(result, lines, json)


def score_topk(*, predictions: Path, manifest: Path | None = None, floors: bool = True, json: bool = False) -> None:
    """Top-1, top-5 (percent) and mean class accuracy (fraction) of videos seen in several views.

    Softmax of each clip, sum over the clips of a video. JSON keys: top1, top5, mean_class_accuracy, top1_correct,
    top5_correct, num_videos, num_classes, views_per_video, missing_clips, videos_without_clips, protocol, coverage,
    floors (the row of the majority class).

    Example::

        timegrain score topk --predictions p.json

    Args:
        predictions: JSON with labels, clip_ids (those seen), logits_by_clip_id, views_per_video; clip c is view
            c % views_per_video of video c // views_per_video.
        manifest: The manifest that the videos are from; its coverage is stated.
        floors: Score the majority class as well.
        json: Print one JSON object.

    Raises:
        ValueError: The file is malformed, or a clip is unknown or given twice.
    """
    data = read_clip_logits(predictions)
    coverage, _ = _open(manifest)
    metric = TopKAccuracy(data.labels, data.logits.shape[1], data.views_per_video)
    metric.update(data.clip_ids, data.logits)
    result = metric.compute()
    result |= {
        "protocol": f"{data.views_per_video} views per video, softmax summed over views",
        "coverage": coverage,
        "floors": [score_majority_class([str(label) for label in data.labels])] if floors else [],
    }
    if result["missing_clips"]:
        warn(f"{result['missing_clips']} clips are missing; {result['videos_without_clips']} videos have none: wrong")
    lines = [
        f"{result['num_videos']} videos, {result['protocol']}",
        *coverage_text(coverage, manifest),
        f"top-1                {result['top1']:.2f} %",
        f"top-5                {result['top5']:.2f} %",
        f"mean class accuracy  {100 * result['mean_class_accuracy']:.2f} %",
        *(["", *table([{"name": predictions.name, **result}, *result["floors"]], TOPK_COLUMNS)] if floors else []),
    ]
    report(result, lines, json)


def score_retrieval(
    *,
    predictions: Path,
    centre: bool = True,
    manifest: Path | None = None,
    floors: bool = True,
    json: bool = False,
) -> None:
    """Nearest-neighbour retrieval: share of queries with a video of their class among the k nearest.

    JSON keys: recall_at (keyed "1", "5", "10", "20", "50", fractions), num_queries, num_gallery, tied_queries, centred,
    queries_without_match, protocol, coverage, floors (the row of a gallery in random order).

    Example::

        timegrain score retrieval --predictions p.json --json

    Args:
        predictions: JSON with gallery_train, gallery_labels, query_test, query_labels: one feature per video.
        centre: Subtract from each set its own mean first, as the reference code does.
        manifest: The manifest that the videos are from; its coverage is stated.
        floors: Score a gallery in random order as well.
        json: Print one JSON object.

    Raises:
        ValueError: The file is malformed.
    """
    data = read_retrieval_sets(predictions)
    coverage, _ = _open(manifest)
    metric = RetrievalRecall(centre=centre)
    metric.update("gallery", data.gallery, data.gallery_labels)
    metric.update("query", data.query, data.query_labels)
    result = metric.compute()
    without = int((~np.isin(data.query_labels, data.gallery_labels)).sum())
    result |= {
        "queries_without_match": without,
        "protocol": f"nearest neighbours by cosine, {'each set centred' if centre else 'not centred'}",
        "coverage": coverage,
        "floors": [score_random_order(data.gallery_labels, data.query_labels)] if floors else [],
    }
    if without:
        warn(f"{without} queries have no video of their class in the gallery and cannot be right")
    head = f"{result['num_queries']} queries, {result['num_gallery']} gallery videos, {result['protocol']}"
    rows = [{"name": predictions.name, **result}, *result["floors"]]
    flat = [row | {f"R@{k}": value for k, value in row["recall_at"].items()} for row in rows]
    values = [f"R@{k:<3} {value:.4f}" for k, value in result["recall_at"].items()]
    below = ["", *table(flat, RETRIEVAL_COLUMNS)] if floors else []
    report(result, [head, *coverage_text(coverage, manifest), *values, *below], json)
