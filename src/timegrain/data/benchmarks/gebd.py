"""Kinetics-GEBD: raw annotations of event boundaries become ground truth.

The published ground truth was made from the raw annotations by a program that edits lists while it walks through them,
so that some boundaries survive its own rules. Two steps are built here, named apart:

``official``   what that program does, slip for slip. Scores of other papers are made with it.
``corrected``  the same rules without the slips: ranges are put in order before they are merged, no boundary near a
               range is skipped, and the last shot change counts as the others do.

Upstream repaired its program in May 2022; its repaired files aren't at hand to compare ``corrected`` with, so neither
name stands for them. Source: StanLei52/GEBD at 5f7e722.
"""

from __future__ import annotations

import math
import numbers
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from timegrain.data.benchmarks.joining import Benchmark, Listed, youtube_clip
from timegrain.data.probing import Row
from timegrain.safe_pickle import load_pickle

GroundTruth = Literal["official", "corrected"]
Entry = Mapping[str, Any]

MIN_SECONDS = 0.3  # shortest time between a change and either end; half the shortest time between two changes
_MIN_ANNOTATORS = 3
_RAW_NAME = re.compile(r"k400_(\w+)_raw_annotation\.pkl")
_MADE_NAME = re.compile(r"k400_mr345_(\w+)_min_change_duration0\.3\.pkl")
_NEEDED = ("fps", "num_frames", "video_duration", "f1_consis_avg")


def official_boundaries(entries: Sequence[Entry], duration_seconds: float) -> list[float]:
    """One annotator's boundaries as the published program makes them.

    Args:
        entries: ``start_time``, ``end_time`` (seconds) and ``label`` of each annotated change, in the file's order.
        duration_seconds: Of the video.

    Returns:
        Boundaries in seconds, ascending.
    """
    events, shots, ranges = _sorted_by_kind(entries, duration_seconds)
    starts, ends = [start for start, _ in ranges], [end for _, end in ranges]
    first = 0
    while first < len(starts) - 1:  # in annotation order; an equal start or end further up goes instead
        if ends[first] >= starts[first + 1]:
            starts.remove(starts[first + 1])
            ends.remove(min(ends[first], ends[first + 1]))
        else:
            first += 1
    for changes in (events, shots):
        for change in changes:  # the list shrinks under the loop, which then skips the next change
            if any(start - MIN_SECONDS <= change <= end + MIN_SECONDS for start, end in zip(starts, ends, strict=True)):
                changes.remove(change)
    events, shots = _thinned(events), _thinned(shots)
    events = [event for event in events if not _is_near(event, shots[:-1])]
    middles = [(start + end) / 2 for start, end in zip(starts, ends, strict=True)]
    return sorted(events + shots + middles)


def corrected_boundaries(entries: Sequence[Entry], duration_seconds: float) -> list[float]:
    """One annotator's boundaries by the same rules without the slips; see :func:`official_boundaries`."""
    events, shots, ranges = _sorted_by_kind(entries, duration_seconds)
    merged: list[tuple[float, float]] = []
    for start, end in sorted(ranges):
        if merged and merged[-1][1] >= start:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))

    def outside(changes: Sequence[float]) -> list[float]:
        return [c for c in changes if not any(s - MIN_SECONDS <= c <= e + MIN_SECONDS for s, e in merged)]

    shots = _thinned(outside(shots))
    events = [event for event in _thinned(outside(events)) if not _is_near(event, shots)]
    return sorted(events + shots + [(start + end) / 2 for start, end in merged])


def _sorted_by_kind(
    entries: Sequence[Entry], duration_seconds: float
) -> tuple[list[float], list[float], list[tuple[float, float]]]:
    """Events, shot changes and ranges of gradual shot change whose middle isn't too near the video's ends."""
    events: list[float] = []
    shots: list[float] = []
    ranges: list[tuple[float, float]] = []
    for entry in entries:
        start, end = entry["start_time"], entry["end_time"]
        middle = (start + end) / 2
        if not MIN_SECONDS <= middle <= duration_seconds - MIN_SECONDS:
            continue
        kind = entry["label"].split(" ")[0]
        if kind == "EventChange":
            events.append(middle)
        elif kind == "ShotChangeGradualRange:":
            ranges.append((start, end))
        else:
            shots.append(middle)
    return events, shots, ranges


def _thinned(changes: Sequence[float]) -> list[float]:
    """Ascending, without those that follow a kept one within twice the shortest time."""
    kept: list[float] = []
    for change in sorted(changes):
        if not kept or change - kept[-1] > 2 * MIN_SECONDS:
            kept.append(change)
    return kept


def _is_near(event: float, shots: Sequence[float]) -> bool:
    return any(abs(event - shot) <= 2 * MIN_SECONDS for shot in shots)


def make_ground_truth(raw: Mapping[str, Mapping[str, Any]], kind: GroundTruth, where: str = "raw") -> dict[str, Any]:
    """Ground truth in the official layout from raw annotations.

    Args:
        raw: By video id: ``fps``, ``num_frames``, ``video_duration``, ``path_video``, ``f1_consis``, ``f1_consis_avg``,
            ``substages_timestamps`` (per annotator a list of changes). Videos with fewer than three annotators, or
            without one of the first four but ``path_video``, are left out, as in the official step.
        kind: Which step.
        where: Name of the file, for messages.

    Returns:
        By video id, what ``k400_mr345_*_min_change_duration0.3.pkl`` holds: ``substages_timestamps`` (per annotator a
        list of seconds), ``substages_myframeidx`` (frames from 0), and the video's own fields.

    Raises:
        ValueError: If an entry isn't as published; the message names the video.
    """
    make: Callable[[Sequence[Entry], float], list[float]]
    make = official_boundaries if kind == "official" else corrected_boundaries
    truth: dict[str, Any] = {}
    for key, record in raw.items():
        at = f"{where}, video {key!r}"
        if not isinstance(record, Mapping) or not isinstance(record.get("substages_timestamps"), list | tuple):
            raise ValueError(f"{at}: no list substages_timestamps")
        annotators = record["substages_timestamps"]
        if len(annotators) < _MIN_ANNOTATORS or any(name not in record for name in _NEEDED):
            continue
        fps, num_frames, duration = (_number(record, name, at) for name in ("fps", "num_frames", "video_duration"))
        scores = record.get("f1_consis")
        if not isinstance(scores, list | tuple) or len(scores) != len(annotators):
            raise ValueError(f"{at}: f1_consis must hold one number for each of the {len(annotators)} annotators")
        if not isinstance(record.get("path_video"), str):
            raise ValueError(f"{at}: no path_video")
        for number, entries in enumerate(annotators):
            _check_entries(entries, f"{at}, annotator {number}")
        seconds = [make(entries, duration) for entries in annotators]
        truth[key] = {
            "num_frames": int(num_frames),
            "path_video": record["path_video"],
            "fps": fps,
            "video_duration": duration,
            "path_frame": record["path_video"].removesuffix(".mp4"),
            "f1_consis": list(scores),
            "f1_consis_avg": _number(record, "f1_consis_avg", at),
            "substages_myframeidx": [
                [float(min(int(num_frames) - 1, math.floor(t * fps))) for t in times] for times in seconds
            ],
            "substages_timestamps": seconds,
        }
    if not truth:
        raise ValueError(f"{where}: no video with at least {_MIN_ANNOTATORS} annotators")
    return truth


def _number(record: Mapping[str, Any], name: str, at: str) -> float:
    value = record[name]
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not math.isfinite(value):
        raise ValueError(f"{at}: {name} = {value!r:.60} is not a finite number")
    return float(value)


def _check_entries(entries: Any, at: str) -> None:
    if not isinstance(entries, list | tuple):
        raise ValueError(f"{at}: not a list of changes")
    for entry in entries:
        if not isinstance(entry, Mapping) or not isinstance(entry.get("label"), str):
            raise ValueError(f"{at}: {entry!r:.80} is not a change with start_time, end_time and label")
        for name in ("start_time", "end_time"):
            if name not in entry:
                raise ValueError(f"{at}: a change lacks {name}")
            _number(entry, name, at)


def read_gebd(annotations: Path, ground_truth: GroundTruth = "official") -> Benchmark:
    """Read Kinetics-GEBD's annotation files.

    Args:
        annotations: The folder with ``k400_SPLIT_raw_annotation.pkl``; for a split that is only there as published
            ground truth (``k400_mr345_SPLIT_min_change_duration0.3.pkl``), that is taken as it is.
        ground_truth: Which step makes the boundaries of the manifest from raw annotations.

    Returns:
        The videos of the ground truth. Columns: ``boundaries_seconds``, of the annotator who agrees best with the
        others (highest ``f1_consis``, the first of equals), for training; ``annotations_seconds``, of all annotators;
        ``f1_consis``, ``f1_consis_avg``. Files beside the manifest: both ground truths of every raw split, for scoring.

    Raises:
        FileNotFoundError: If there is neither.
        ValueError: If a file isn't as published; the message names the video.
    """
    raw = {match[1]: path for path in sorted(annotations.rglob("*.pkl")) if (match := _RAW_NAME.fullmatch(path.name))}
    made = {match[1]: path for path in sorted(annotations.rglob("*.pkl")) if (match := _MADE_NAME.fullmatch(path.name))}
    if not raw and not made:
        raise FileNotFoundError(f"no k400_SPLIT_raw_annotation.pkl in {annotations}")
    files: dict[str, Any] = {}
    listed: list[Listed] = []
    source: dict[str, str] = {}
    splits: dict[str, str] = {}
    seconds: dict[str, float] = {}
    for split in sorted(raw | made):
        if split in raw:
            content = _load(raw[split])
            kinds = {kind: make_ground_truth(content, kind, str(raw[split])) for kind in ("official", "corrected")}
            files.update({f"gebd_{split}_{kind}.pkl": truth for kind, truth in kinds.items()})
            truth, source[split] = kinds[ground_truth], ground_truth
        else:
            truth, source[split] = _load(made[split]), "as published"
        for key, record in truth.items():
            where = f"{raw.get(split) or made[split]}, video {key!r}"
            if key in splits:
                raise ValueError(
                    f"{where}: it is in split {splits[key]} too; keep the files of one of them in the folder"
                )
            splits[key] = split
            listed.append(_listed(key, record, split, where))
            seconds[key] = _number(record, "video_duration", where) if "video_duration" in record else math.inf
    facts = {"ground_truth": source, "min_change_seconds": MIN_SECONDS}
    notes = [f"ground truth of split {split}: {kind}" for split, kind in source.items()]
    return Benchmark("gebd", listed, facts, notes, files, partial(_check_length, seconds))


def _check_length(seconds: Mapping[str, float], row: Row) -> None:
    """A file much longer than the clip that was annotated is the whole video, where boundaries lie at other times."""
    annotated = seconds[row["video_id"]]
    if row["duration_seconds"] > annotated + 5:
        row["error"] = (
            f"lasts {row['duration_seconds']:.0f} s, but the clip annotated {annotated:.0f} s; is it the uncut video?"
        )


def _load(path: Path) -> dict[str, Any]:
    content = load_pickle(path)
    if not isinstance(content, dict) or not content or not all(isinstance(key, str) for key in content):
        raise ValueError(f"{path}: not a dict by video id")
    return content


def _listed(key: str, record: Any, split: str, where: str) -> Listed:
    try:
        seconds = [[float(t) for t in times] for times in record["substages_timestamps"]]
        scores = [float(score) for score in record["f1_consis"]]
        folder, _, name = record["path_video"].rpartition("/")
        best = scores.index(max(scores))
        extra = {
            "boundaries_seconds": seconds[best],
            "annotations_seconds": seconds,
            "f1_consis": scores,
            "f1_consis_avg": float(record["f1_consis_avg"]),
        }
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise ValueError(f"{where}: not an entry of ground truth: {type(error).__name__}: {error}") from error
    stem = Path(name).stem
    clip = youtube_clip(stem)
    label = folder.rpartition("/")[2].replace("_", " ") or None
    return Listed(key, split, label, clip[0] if clip else None, (stem, key), extra=extra)
