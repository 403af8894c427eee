"""The commands ``timegrain floors ...`` that need annotations only: what a benchmark's scores are without a model."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from timegrain.metrics.boundary_f1 import Missing
from timegrain.metrics.floors import score_majority_class
from timegrain.metrics.frame_files import read_boxes, read_frames, read_label_map, without_frames
from timegrain.metrics.inputs import read_boundary_truth, read_train_verbs, read_verb_labels
from timegrain.tasks.floor_rows import (
    AVA_COLUMNS,
    GEBD_COLUMNS,
    TOPK_COLUMNS,
    VIDSITU_COLUMNS,
    Row,
    ava_rows,
    gebd_rows,
    vidsitu_rows,
)
from timegrain.tasks.printing import coverage_text, report, table


def _show(
    benchmark: str,
    protocol: str,
    rows: Sequence[Row],
    columns: Sequence[str],
    json: bool,
    coverage: dict[str, Any] | None = None,
    manifest: Path | None = None,
) -> None:
    """Print the rows: as one JSON object, or as a table of some of their columns."""
    lines = [protocol, *coverage_text(coverage, manifest), *table(rows, columns)]
    report({"benchmark": benchmark, "protocol": protocol, "coverage": coverage, "rows": list(rows)}, lines, json)


def floors_gebd(
    *,
    ground_truth: Path,
    missing: Missing = "challenge",
    train: Path | None = None,
    spacing: float | None = None,
    json: bool = False,
) -> None:
    """GEBD without a model: evenly spaced boundaries, and annotators against each other.

    JSON: benchmark, protocol, coverage (null), rows; each row has name, chosen_on, the keys of `timegrain score gebd`, and
    f1@0.05, precision@0.05, recall@0.05; the uniform row also has spacing (a share of the video).

    Example::

        timegrain floors gebd --ground-truth k400_mr345_val.pkl --train k400_mr345_train.pkl

    Args:
        ground_truth: The ground truth (k400_mr345_*.pkl), or the same as JSON.
        missing: Which official program to follow: challenge (seconds) or notebook (frames).
        train: Ground truth of the training split, on which the best spacing is found.
        spacing: A spacing to use instead, as a share of the video.
        json: Print one JSON object.

    Raises:
        ValueError: A file is malformed, or the spacing is not between 0 and 1.
    """
    videos = read_boundary_truth(ground_truth, missing)
    if train is not None and spacing is not None:
        raise ValueError("--train is what a spacing is found on, --spacing is one that is given: choose one of them")
    trained = None if train is None else read_boundary_truth(train, missing)
    rows = gebd_rows(videos, missing, trained, spacing)
    _show("gebd", f"Kinetics-GEBD, {missing} program", rows, GEBD_COLUMNS, json)


def floors_vidsitu(
    *, ground_truth: Path, split: str = "valid", verbs: list[str] | None = None, json: bool = False
) -> None:
    """VidSitu without a model: constant verbs, the right labels in the wrong order, and annotators.

    JSON: benchmark, protocol, coverage (null), rows; each row has name, chosen_on, acc@1, acc@5, vid@1, rec@5 and
    matching (fractions; null where it says nothing), and for constants the verbs.

    Example::

        timegrain floors vidsitu --ground-truth ANNOTATIONS

    Args:
        ground_truth: The annotation folder. Where it holds vseg_ann_files/vsann_train_lb.json, constants chosen on the
            training labels are added.
        split: A split whose verbs are published.
        verbs: Constant verbs to score as well, best first.
        json: Print one JSON object.

    Raises:
        ValueError: A file is malformed.
    """
    labels = read_verb_labels(ground_truth, split)
    rows = vidsitu_rows(labels, read_train_verbs(ground_truth), verbs)
    protocol = f"VidSitu verbs, {split}; a verb is right if any of up to 10 annotators names it"
    _show("vidsitu", protocol, rows, VIDSITU_COLUMNS, json)


def floors_kinetics(
    *, ground_truth: Path, train: Path | None = None, split: str | None = None, json: bool = False
) -> None:
    """Action recognition without a model: the most frequent class (Kinetics, UCF101, HMDB51, any manifest).

    JSON: benchmark, protocol, coverage (of a manifest, else null), rows; the row has name, chosen_on, top1 and top5
    (percent), mean_class_accuracy (fraction), classes, num_videos.

    Examples::

        timegrain floors kinetics --ground-truth val.csv --train train.csv
        timegrain floors kinetics --ground-truth m.parquet --split test

    Args:
        ground_truth: A csv file with a column label, as Kinetics has it, or a manifest (.parquet).
        train: The same of the training split, on which the most frequent classes are found.
        split: Only this split of the manifest; with it and without train, the manifest's split train counts.
        json: Print one JSON object.

    Raises:
        ValueError: A file has no labels.
    """
    labels, coverage = _class_labels(ground_truth, split)
    train_labels = None
    if train is not None:
        train_labels, _ = _class_labels(train, "train" if train.suffix == ".parquet" else None)
    elif split is not None and split != "train" and ground_truth.suffix == ".parquet":
        train_labels, _ = _class_labels(ground_truth, "train")
    row = score_majority_class(labels, train_labels)
    _show("kinetics", f"{len(labels)} videos", [row], TOPK_COLUMNS, json, coverage, ground_truth)


def _class_labels(path: Path, split: str | None) -> tuple[list[str], dict[str, Any] | None]:
    """Labels of the videos of a split, and the coverage that a manifest carries."""
    coverage = None
    if path.suffix == ".parquet":
        from timegrain.data.manifest import Manifest

        manifest = Manifest.open(path).select(split, usable=False)
        coverage = manifest.coverage
        labels = [label for label in manifest.column("label").to_pylist() if label is not None]
    else:
        labels = _csv_labels(path, split)
    if not labels:
        raise ValueError(f"{path}: no label in it" + (f" in split {split!r}" if split else ""))
    return labels, coverage


def _csv_labels(path: Path, split: str | None) -> list[str]:
    labels = []
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        try:
            if "label" not in (reader.fieldnames or ()):
                raise ValueError(
                    f"{path}, line 1: no column 'label' in the header {','.join(reader.fieldnames or ())!r:.200}"
                )
            for row in reader:
                if not row["label"]:
                    raise ValueError(f"{path}, line {reader.line_num}: no label")
                if split is None or row.get("split") == split:
                    labels.append(row["label"])
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{path}, after line {reader.line_num}: not a text file of rows: {error}") from error
    return labels


def floors_ava(
    *,
    ground_truth: Path,
    label_map: Path,
    train: Path | None = None,
    boxes: Path | None = None,
    excluded: Path | None = None,
    draws: int = 3,
    seed: int = 0,
    json: bool = False,
) -> None:
    """AVA without a model: every person box gets each class's share of the training boxes as its score.

    JSON: benchmark, protocol, coverage (null), rows; the row has name, chosen_on, map (mean over the draws), map_min,
    map_max, draws, num_boxes, boxes.

    Example::

        timegrain floors ava --ground-truth ava_val.csv --train ava_train.csv --label-map actions.pbtxt

    Args:
        ground_truth: Rows of the ground truth.
        label_map: The .pbtxt of the evaluated actions.
        train: Ground truth of the training split, which gives the shares.
        boxes: Person boxes as rows of detections; the true boxes by default, which is perfect localisation.
        excluded: Rows video, time of frames that are taken out of the ground truth first.
        draws: Random orders of the (all tied) boxes.
        seed: Of the orders.
        json: Print one JSON object.

    Raises:
        ValueError: A file is malformed.
    """
    names = read_label_map(label_map)
    truth = read_boxes(ground_truth, "ground truth").boxes
    if excluded is not None:
        truth = without_frames(truth, read_frames(excluded))
    people = truth if boxes is None else read_boxes(boxes, "detections").boxes
    trained = None if train is None else read_boxes(train, "ground truth").boxes
    rows = ava_rows(truth, people, trained, names, draws, seed)
    _show("ava", "AVA frame-mAP at overlap 0.5", rows, AVA_COLUMNS, json)
