"""Reading the files that are scored: each is checked whole before anything is computed.

A message names the file and the line, id or entry that is wrong. Pickles run nothing (see
:mod:`timegrain.safe_pickle`).
"""

from __future__ import annotations

import itertools
import json
import math
import numbers
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from timegrain.metrics.boundary_f1 import BoundaryVideo, Missing
from timegrain.safe_pickle import load_pickle

StrPath = str | os.PathLike[str]
EVENTS = ("Ev1", "Ev2", "Ev3", "Ev4", "Ev5")
_MIN_FIRST_EVENT = 9


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"the key {key!r} is given twice")
            seen.add(key)
    return result


def read_json(path: StrPath) -> Any:
    """Read a JSON file.

    Raises:
        ValueError: It is not JSON (the message gives the line), or an object names a key twice.
    """
    try:
        return json.loads(Path(path).read_text("utf-8-sig"), object_pairs_hook=_without_duplicates)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {error.lineno}, column {error.colno}: not JSON: {error.msg}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {error}") from error


def read_data(path: StrPath) -> Any:
    """Read a ``.json`` file as JSON, anything else as a pickle of plain data."""
    return read_json(path) if Path(path).suffix.lower() == ".json" else load_pickle(path)


def _mapping(value: Any, where: str) -> Mapping[Any, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{where}: a dict is needed, not {type(value).__name__}")
    return value


def _list(value: Any, where: str) -> Sequence[Any]:
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if not isinstance(value, list | tuple):
        raise ValueError(f"{where}: a list is needed, not {type(value).__name__}")
    return value


def _number(value: Any, where: str) -> float:
    # np.float64 is a float, other NumPy scalars register as numbers.Real; bool is an int but no measurement
    if isinstance(value, bool | np.bool_) or not isinstance(value, numbers.Real):
        raise ValueError(f"{where}: a number is needed, not {value!r:.60}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"{where}: {number} is not a finite number")
    return number


def _field(record: Mapping[Any, Any], name: str, where: str) -> Any:
    if name not in record:
        raise ValueError(f"{where}: the field {name!r} is missing")
    return record[name]


def _numbers(value: Any, where: str) -> tuple[float, ...]:
    items = _list(value, where)
    if all(type(item) is float for item in items) and all(map(math.isfinite, items)):
        return tuple(items)
    return tuple(_number(item, where) for item in items)


def read_boundary_truth(path: StrPath, missing: Missing) -> dict[str, BoundaryVideo]:
    """Ground truth of Kinetics-GEBD or TAPOS (``k400_mr345_*.pkl``), in the unit of one official program.

    Args:
        path: The pickle, or the same as JSON.
        missing: ``"challenge"`` reads seconds, ``"notebook"`` frames.

    Raises:
        ValueError: The file, or the named video in it, is not as published.
    """
    length_field, boundary_field = {
        "challenge": ("video_duration", "substages_timestamps"),
        "notebook": ("num_frames", "substages_myframeidx"),
    }[missing]
    videos: dict[str, BoundaryVideo] = {}
    for key, record in _mapping(read_data(path), f"{path}").items():
        where = f"{path}, video {key!r}"
        record = _mapping(record, where)
        length = _number(_field(record, length_field, where), f"{where}, {length_field}")
        lists = _list(_field(record, boundary_field, where), f"{where}, {boundary_field}")
        if any(
            isinstance(item, Mapping) for boundaries in lists if isinstance(boundaries, list) for item in boundaries
        ):
            raise ValueError(
                f"{where}: this is the raw annotation file; turn it into ground truth first (`timegrain prepare gebd`)"
            )
        if not lists:
            raise ValueError(f"{where}, {boundary_field}: no annotator")
        videos[key] = BoundaryVideo(
            length=length,
            last=length if missing == "challenge" else length - 1,
            annotations=tuple(_numbers(boundaries, f"{where}, {boundary_field}") for boundaries in lists),
            consistency=_number(_field(record, "f1_consis_avg", where), f"{where}, f1_consis_avg"),
        )
    if not videos:
        raise ValueError(f"{path}: no video in it")
    return videos


def read_boundaries(path: StrPath) -> dict[str, tuple[float, ...]]:
    """Predicted boundaries: a pickle or JSON file of a dict from video id to a list of seconds (or frames).

    Raises:
        ValueError: The file, or the named video in it, is something else.
    """
    return {
        key: _numbers(found, f"{path}, video {key!r}") for key, found in _mapping(read_data(path), f"{path}").items()
    }


def _verbs(value: Any, where: str) -> tuple[str, ...]:
    verbs = _list(value, where)
    for verb in verbs:
        if not isinstance(verb, str):
            raise ValueError(f"{where}: a verb id such as 'speak.01' is needed, not {verb!r:.60}")
    return tuple(verbs)


def _segment(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{where}: the name of a segment is needed, not {value!r:.60}")
    return value


def read_verb_labels(folder: StrPath, split: str = "valid") -> dict[str, tuple[tuple[str, ...], ...]]:
    """VidSitu's annotated verbs of each segment of a split, in the order of the split.

    Args:
        folder: The annotation folder, with ``split_files/`` and ``vinfo_files/``.
        split: ``"valid"``, or another split whose verbs are published.

    Returns:
        Segment id -> five lists of verb ids, one verb per annotator.

    Raises:
        ValueError: A file, or the named segment in it, is not as published.
        FileNotFoundError: A file is missing.
    """
    split_path = Path(folder) / "split_files" / f"vseg_split_{split}_lb.json"
    info_path = Path(folder) / "vinfo_files" / f"vinfo_{split}_lb.json"
    for path in (split_path, info_path):
        if not path.is_file():
            raise FileNotFoundError(f"{path} is not there; give the folder that holds split_files/ and vinfo_files/")
    info: dict[str, Any] = {}
    for number, record in enumerate(_list(read_json(info_path), f"{info_path}")):
        where = f"{info_path}, entry {number}"
        segment = _segment(_field(_mapping(record, where), "vid_seg_int", where), f"{where}, vid_seg_int")
        if segment in info:
            raise ValueError(f"{where}: segment {segment!r} has an entry already")
        info[segment] = record
    labels: dict[str, tuple[tuple[str, ...], ...]] = {}
    for number, listed in enumerate(_list(read_json(split_path), f"{split_path}")):
        segment = _segment(listed, f"{split_path}, entry {number}")
        where = f"{info_path}, segment {segment!r}"
        if segment in labels:
            raise ValueError(f"{split_path}: segment {segment!r} is listed twice")
        if segment not in info:
            raise ValueError(f"{where}: it is in the split but has no entry here")
        lists = _mapping(_field(info[segment], "vbid_lst", where), f"{where}, vbid_lst")
        labels[segment] = tuple(_verbs(_field(lists, event, where), f"{where}, {event}") for event in EVENTS)
        if not all(labels[segment]):
            raise ValueError(f"{where}, {EVENTS[labels[segment].index(())]}: no annotated verb")
        first = len(labels[segment][0])
        if first < _MIN_FIRST_EVENT:
            raise ValueError(f"{where}, Ev1: {first} verbs; the official program needs {_MIN_FIRST_EVENT}")
    if not labels:
        raise ValueError(f"{split_path}: no segment in it")
    return labels


def read_train_verbs(folder: StrPath) -> list[tuple[str, ...]] | None:
    """The five annotated verbs of each training segment of VidSitu, or ``None`` where that file is absent."""
    path = Path(folder) / "vseg_ann_files" / "vsann_train_lb.json"
    if not path.is_file():
        return None
    rows: list[tuple[str, ...]] = []
    for number, record in enumerate(_list(read_json(path), f"{path}")):
        where = f"{path}, entry {number}"
        events = [_mapping(_field(_mapping(record, where), event, where), where) for event in EVENTS]
        rows.append(_verbs([_field(event, "VerbID", where) for event in events], where))
    return rows


@dataclass(frozen=True)
class VerbPredictions:
    """Ranked verbs of each segment of a split.

    Attributes:
        verbs: One entry per segment that is needed, in the order of the split: five lists of verb ids, best first.
        repeated: Entries that were left out because their segment had one already (the official rule).
        unsorted: Events whose scores do not descend; their verbs count in the order given, as officially.
    """

    verbs: list[tuple[tuple[str, ...], ...]]
    repeated: int
    unsorted: int


def read_verb_predictions(
    path: StrPath, segments: Sequence[str], needed: Collection[str] | None = None
) -> VerbPredictions:
    """Predicted verbs in VidSitu's format: a list of ``{ann_idx, pred_vbs_ev, pred_scores_ev}``.

    Args:
        path: Pickle or JSON.
        segments: The segment ids of the split, in its order: ``ann_idx`` counts in it.
        needed: Those that are scored; all by default.

    Raises:
        ValueError: An entry is malformed or of an unknown segment, a score is not finite, or a needed segment has no
            entry.
    """
    found: dict[int, tuple[tuple[str, ...], ...]] = {}
    repeated = unsorted = 0
    for number, record in enumerate(_list(read_data(path), f"{path}")):
        where = f"{path}, entry {number}"
        record = _mapping(record, where)
        index = _number(_field(record, "ann_idx", where), f"{where}, ann_idx")
        if not (index.is_integer() and 0 <= index < len(segments)):
            raise ValueError(f"{where}: ann_idx {index:g} is not in the split, which has {len(segments)} segments")
        lists = _list(_field(record, "pred_vbs_ev", where), f"{where}, pred_vbs_ev")
        if len(lists) != len(EVENTS):
            raise ValueError(f"{where}, pred_vbs_ev: {len(lists)} lists; one for each of the five events is needed")
        verbs = tuple(_verbs(ranked, f"{where}, pred_vbs_ev") for ranked in lists)
        scores = [_numbers(s, f"{where}, pred_scores_ev") for s in _list(record.get("pred_scores_ev", ()), where)]
        if int(index) in found:
            repeated += 1
            continue
        found[int(index)] = verbs
        unsorted += sum(any(a < b for a, b in itertools.pairwise(s)) for s in scores)
    wanted = [index for index, segment in enumerate(segments) if needed is None or segment in needed]
    absent = [segments[index] for index in wanted if index not in found]
    if absent:
        raise ValueError(
            f"{path}: {len(absent)} of {len(wanted)} segments have no prediction, the first is {absent[0]!r}; the "
            "official program scores complete predictions only (--manifest scores the segments of a manifest)"
        )
    return VerbPredictions([found[index] for index in wanted], repeated, unsorted)


def _table(value: Any, where: str) -> np.ndarray:
    try:
        table = np.asarray(value, np.float64)
    except (TypeError, ValueError, OverflowError):
        table = np.empty(0)
    if table.ndim != 2:
        is_table = isinstance(value, list) and all(isinstance(row, list) for row in value)
        lengths = {len(row) for row in value} if is_table else set()
        detail = f"rows of different lengths ({min(lengths)} to {max(lengths)})" if len(lengths) > 1 else "not numbers"
        raise ValueError(f"{where}: a table of numbers, one row each, is needed; found {detail}")
    bad = np.flatnonzero(~np.isfinite(table).all(1))
    if len(bad):
        raise ValueError(f"{where}, row {bad[0]}: a number is missing or not finite")
    return table


def _integers(value: Any, where: str) -> np.ndarray:
    items = [_number(item, f"{where}, row {row}") for row, item in enumerate(_list(value, where))]
    for row, item in enumerate(items):
        if not item.is_integer() or abs(item) >= 2**53:
            raise ValueError(f"{where}, row {row}: {item:g} is not a whole number of usual size")
    return np.array(items, np.int64)


@dataclass(frozen=True)
class ClipLogits:
    """What a multi-view classifier gave: (V,) labels, (N,) clip ids in use, (N, C) their logits, views per video."""

    labels: np.ndarray
    clip_ids: np.ndarray
    logits: np.ndarray
    views_per_video: int


def read_clip_logits(path: StrPath) -> ClipLogits:
    """A JSON object (or pickled dict) of ``labels``, ``clip_ids``, ``logits_by_clip_id`` and ``views_per_video``.

    ``clip_ids`` lists the clips that were seen; row c of ``logits_by_clip_id`` belongs to clip c.

    Raises:
        ValueError: A part is missing or malformed.
    """
    data = _mapping(read_data(path), f"{path}")
    labels = _integers(_field(data, "labels", f"{path}"), f"{path}, labels")
    ids = _integers(_field(data, "clip_ids", f"{path}"), f"{path}, clip_ids")
    logits = _table(_field(data, "logits_by_clip_id", f"{path}"), f"{path}, logits_by_clip_id")
    views = _number(_field(data, "views_per_video", f"{path}"), f"{path}, views_per_video")
    for name, actual in (("num_videos", len(labels)), ("num_classes", logits.shape[1])):
        if name in data and data[name] != actual:
            raise ValueError(f"{path}: {name} is {data[name]}, but the file holds {actual}")
    outside = np.flatnonzero((ids < 0) | (ids >= len(logits)))
    if len(outside):
        raise ValueError(f"{path}, clip_ids, row {outside[0]}: clip {ids[outside[0]]} has no row in logits_by_clip_id")
    if not (views.is_integer() and views >= 1):
        raise ValueError(f"{path}: views_per_video is {views:g}; a whole number from 1 is needed")
    return ClipLogits(labels, ids, logits[ids], int(views))


@dataclass(frozen=True)
class RetrievalSets:
    """Gallery (G, D) and query (Q, D) features with their labels."""

    gallery: np.ndarray
    gallery_labels: np.ndarray
    query: np.ndarray
    query_labels: np.ndarray


def read_retrieval_sets(path: StrPath) -> RetrievalSets:
    """A JSON object (or pickled dict) of ``gallery_train``, ``gallery_labels``, ``query_test``, ``query_labels``.

    Raises:
        ValueError: A part is missing or malformed.
    """
    data = _mapping(read_data(path), f"{path}")
    parts: list[np.ndarray] = []
    for features_field, labels_field in (("gallery_train", "gallery_labels"), ("query_test", "query_labels")):
        features = _table(_field(data, features_field, f"{path}"), f"{path}, {features_field}")
        labels = _integers(_field(data, labels_field, f"{path}"), f"{path}, {labels_field}")
        if len(features) != len(labels):
            raise ValueError(f"{path}: {len(features)} rows in {features_field}, {len(labels)} in {labels_field}")
        parts += [features, labels]
    if parts[0].shape[1] != parts[2].shape[1]:
        raise ValueError(f"{path}: features of size {parts[0].shape[1]} in the gallery, {parts[2].shape[1]} in queries")
    return RetrievalSets(*parts)
