"""AVA-Kinetics: people's boxes and actions at single key frames of movies (AVA) and of Kinetics clips."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from timegrain.data.benchmarks.joining import Benchmark, Listed, youtube_clip
from timegrain.data.benchmarks.reading import as_number, find_one, read_rows
from timegrain.data.probing import Row
from timegrain.metrics.frame_files import read_label_map
from timegrain.metrics.frame_map import frame_key

_SOURCE = re.compile(r"(ava|kinetics)_(train|val)_v[\d.]+\.csv")
_EXCLUDED = re.compile(r"ava_(train|val)_excluded_timestamps_v[\d.]+\.csv")
_LABEL_MAPS = (
    "ava_action_list*_for_activitynet_*.pbtxt",
    "ava_action_list*.pbtxt",
    "*.pbtxt",
)  # first: the 60 evaluated
_WHOLE_MOVIE_SECONDS = 1700.0  # annotated from 902 to 1798 s: a shorter file is the usual cut of 900 to 1800 s
_CUT_START_SECONDS = 900.0
_MAX_SHARE_OUTSIDE = 0.1  # more key frames than this beyond a file's end: it isn't the file annotated


@dataclass
class _Video:
    split: str
    source: str
    times: dict[float, int] = field(default_factory=dict)
    boxes: list[dict[str, Any]] = field(default_factory=list)


def read_ava_kinetics(annotations: Path) -> Benchmark:
    """Read AVA-Kinetics' annotation files.

    Args:
        annotations: The folder with the label map (``ava_action_list_*.pbtxt``) and any of ``ava_{train,val}_v2.2.csv``
            (with ``ava_{train,val}_excluded_timestamps_v2.2.csv``) and ``kinetics_{train,val}_v1.0.csv``.

    Returns:
        A row per movie, and per annotated Kinetics clip. Columns: ``key_frame_seconds``, times as the files name them
        (seconds of the original video), ascending, also of frames without a box; ``boxes``, each with ``key_frame``
        (position in that list), ``x1, y1, x2, y2`` (fractions of the picture), ``action`` (id), ``person`` (id, AVA's
        only); ``time_offset_seconds``, the time of the original at which the file starts, so that a key frame is at
        its time minus the offset; ``key_frames_outside``, how many lie beyond the file's end; ``source`` (ava,
        kinetics).

    Raises:
        FileNotFoundError: If the label map or all csv files are missing.
        ValueError: If a line isn't as published; the message names it.
    """
    label_map = find_one(annotations, _LABEL_MAPS, "label map (.pbtxt)")
    names = read_label_map(label_map)
    paths = {path: match for path in sorted(annotations.rglob("*.csv")) if (match := _SOURCE.fullmatch(path.name))}
    excluded = _excluded(path for path in annotations.rglob("*.csv") if _EXCLUDED.fullmatch(path.name))
    if not paths:
        raise FileNotFoundError(f"no ava_train_v2.2.csv, kinetics_val_v1.0.csv or the like in {annotations}")
    kinds = [(match[1], match[2]) for match in paths.values()]
    for kind in kinds:
        if kinds.count(kind) > 1:
            raise ValueError(f"{annotations} holds several versions of {kind[0]}_{kind[1]}; keep one of them there")
    videos: dict[str, _Video] = {}
    num_unknown = num_excluded = 0
    for path, match in paths.items():
        for line, row in read_rows(path):
            time = _check(row, path, line)
            if match[1] == "ava" and frame_key(row[0], time) in excluded:
                num_excluded += 1
                continue
            # A movie is one video; of Kinetics every annotated clip is, and one original may have several.
            key = row[0] if match[1] == "ava" else f"{row[0]} at {time:g} s"
            video = videos.setdefault(key, _Video(match[2], match[1]))
            if video.split != match[2]:
                raise ValueError(f"{path}, line {line}: {row[0]} is in the other split too")
            frame = video.times.setdefault(time, len(video.times))
            if len(row) == 2:
                continue
            if int(row[6]) not in names:
                num_unknown += 1
                continue
            numbers = [
                as_number(text, name, path, line) for name, text in zip(("x1", "y1", "x2", "y2"), row[2:6], strict=True)
            ]
            box: dict[str, Any] = dict(zip(("x1", "y1", "x2", "y2"), numbers, strict=True))
            person = int(row[7]) if len(row) == 8 else None
            video.boxes.append({"key_frame": frame, **box, "action": int(row[6]), "person": person})
    if not videos:
        raise ValueError(f"{', '.join(path.name for path in paths)}: no row left")
    listed = [_listed(key, video) for key, video in videos.items()]
    facts = {
        "annotation_files": [path.name for path in paths],
        "label_map": {str(number): name for number, name in sorted(names.items())},
        "excluded_key_frames_given": bool(excluded),
    }
    notes = [f"{len(names)} actions in {label_map.name}"]
    if num_excluded:
        notes.append(f"{num_excluded:,} rows on excluded key frames are left out")
    if num_unknown:
        notes.append(f"{num_unknown:,} rows of actions that aren't in the label map are left out; their frames stay")
    return Benchmark("ava-kinetics", listed, facts, notes, finish=_add_offset)


def _excluded(paths: Iterable[Path]) -> set[str]:
    frames = set()
    for path in paths:
        for line, row in read_rows(path):
            if len(row) != 2:
                raise ValueError(f"{path}, line {line}: {len(row)} columns; an exclusion list has 2, video and time")
            frames.add(frame_key(row[0], as_number(row[1], "time", path, line)))
    return frames


def _check(row: list[str], path: Path, line: int) -> float:
    """The time of a row whose layout is right."""
    if len(row) not in (2, 7, 8):
        raise ValueError(f"{path}, line {line}: {len(row)} columns; a row has 2, 7 or 8")
    if not row[0]:
        raise ValueError(f"{path}, line {line}: no video id")
    for column, name in ((6, "action id"), (7, "person id")):
        if column < len(row) and not row[column].isdigit():
            raise ValueError(f"{path}, line {line}: {name} {row[column]!r:.60} is not a whole number")
    return as_number(row[1], "time", path, line)


def _listed(key: str, video: _Video) -> Listed:
    order = sorted(video.times)
    place = {video.times[time]: position for position, time in enumerate(order)}
    boxes = [{**box, "key_frame": place[box["key_frame"]]} for box in video.boxes]
    boxes.sort(key=lambda box: box["key_frame"])  # stable: within a frame, the file's order
    extra = {"key_frame_seconds": order, "boxes": boxes, "source": video.source}
    if video.source == "ava":
        return Listed(key, video.split, None, key, (key,), extra=extra)
    youtube_id = key.partition(" at ")[0]
    extra["video_id"] = youtube_id
    return Listed(key, video.split, None, youtube_id, (), youtube_id, at_seconds=order[0], extra=extra)


def _add_offset(row: Row) -> None:
    """Where the file starts in the original, and an error when key frames lie outside of it."""
    times = row["key_frame_seconds"]
    if row["source"] == "ava":
        offset = 0.0 if row["duration_seconds"] > _WHOLE_MOVIE_SECONDS else _CUT_START_SECONDS
    else:
        clip = youtube_clip(Path(row["path"]).stem)
        offset = 0.0 if clip is None or math.isinf(clip[2]) else clip[1]
    row["time_offset_seconds"] = offset
    outside = [time for time in times if not 0 <= time - offset <= row["duration_seconds"]]
    row["key_frames_outside"] = len(outside)
    if len(outside) > _MAX_SHARE_OUTSIDE * len(times):
        row["error"] = (
            f"{len(outside)} of {len(times)} key frames, the first at {outside[0]:g} s, lie outside this file, which "
            f"lasts {row['duration_seconds']:.0f} s and is taken to start at {offset:g} s"
        )
