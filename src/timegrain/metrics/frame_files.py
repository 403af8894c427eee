"""AVA's files: boxes as rows of text, exclusion lists, and the label map.

Rows are kept as packed numbers. A large file in which every row is plain is read by Arrow at once; any other is read row
by row, so that a message can name the line. Both give the same numbers.
"""

from __future__ import annotations

import csv
import math
import os
import re
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from timegrain.metrics.frame_map import FrameBoxes, frame_key

StrPath = str | os.PathLike[str]
Kind = Literal["ground truth", "detections"]
_COLUMNS = {"ground truth": (2, 7, 8), "detections": (8,)}
_NAMES = ("video_id", "time", "x1", "y1", "x2", "y2", "action id", "score")
_LARGE_BYTES = 1_000_000


def _rows(path: StrPath) -> Iterator[tuple[int, list[str]]]:
    """Non-empty rows with their line numbers; any mixture of line ends."""
    with Path(path).open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file)
        try:
            for row in reader:
                if row:
                    yield reader.line_num, row
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{path}, after line {reader.line_num}: not a text file of rows: {error}") from error


class _Frames:
    """Numbers the frames in order of appearance; the time is parsed once per spelling."""

    def __init__(self, path: StrPath) -> None:
        self.path = path
        self.index: dict[str, int] = {}
        self._spelled: dict[tuple[str, str], int] = {}

    def number(self, video: str, time: str, line: int) -> int:
        known = self._spelled.get((video, time))
        if known is None:
            seconds = _number(time, "time", self.path, line)
            if not video or not math.isfinite(seconds):
                raise ValueError(
                    f"{self.path}, line {line}: a video id and a finite time are needed, not {video!r}, {time!r}"
                )
            known = self.index.setdefault(frame_key(video, seconds), len(self.index))
            self._spelled[video, time] = known
        return known


def _number(text: str, name: str, path: StrPath, line: int) -> float:
    try:
        return float(text)
    except ValueError:
        hint = " (these files have no header line)" if line == 1 else ""
        raise ValueError(f"{path}, line {line}: {name} {text!r:.60} is not a number{hint}") from None


@dataclass(frozen=True)
class BoxFile:
    """The boxes of a file.

    Attributes:
        boxes: The rows, and the frames they name.
        repeated: Rows that are exactly equal to another; they count, as in the official program.
        first_repeated_line: The line of the first of them, or 0.
    """

    boxes: FrameBoxes
    repeated: int
    first_repeated_line: int


def read_boxes(path: StrPath, kind: Kind) -> BoxFile:
    """Read ground truth or detections.

    Args:
        path: Rows without header. Ground truth: video, time, x1, y1, x2, y2, action id, and in AVA's own files person
            id; or video and time alone for a frame without boxes. Detections: the same with a score last.
        kind: Which of the two.

    Returns:
        The boxes; ``scores`` holds the person id of ground truth (1 where there is none).

    Raises:
        ValueError: A line has the wrong number of columns, or something that is not a (finite) number.
    """
    frames = _Frames(path)
    read = _read_at_once(path, frames) if Path(path).stat().st_size >= _LARGE_BYTES else None
    if read is None:
        frames = _Frames(path)
        read = _read_rows(path, kind, frames)
    boxes, line_of = read
    if not frames.index and kind == "ground truth":
        raise ValueError(f"{path}: no row in it")
    repeated = _repeated(boxes)
    return BoxFile(boxes, len(repeated), int(line_of[repeated].min()) if len(repeated) else 0)


def _read_rows(path: StrPath, kind: Kind, frames: _Frames) -> tuple[FrameBoxes, np.ndarray]:
    """The boxes, and the line of each."""
    allowed = _COLUMNS[kind]
    lines, frame, classes = array("q"), array("q"), array("q")
    values = array("d")  # x1, y1, x2, y2, score of each row
    for line, row in _rows(path):
        if len(row) not in allowed:
            wanted = " or ".join(map(str, allowed))
            raise ValueError(f"{path}, line {line}: {len(row)} columns; a row of {kind} has {wanted}")
        number = frames.number(row[0], row[1], line)
        if len(row) == 2:
            continue
        try:
            values.extend(map(float, row[2:6]))
            values.append(float(row[7]) if len(row) == 8 else 1.0)
            classes.append(int(row[6]))
        except (ValueError, OverflowError):
            for name, text in zip(_NAMES[2:6] + _NAMES[7:], row[2:6] + row[7:], strict=False):
                _number(text, name, path, line)
            raise ValueError(f"{path}, line {line}: action id {row[6]!r:.60} is not a whole number") from None
        frame.append(number)
        lines.append(line)
    table = np.frombuffer(values, np.float64).reshape(-1, 5) if values else np.empty((0, 5))
    line_of, frame_of, class_of = (np.array(part, np.int64) for part in (lines, frame, classes))
    bad = np.flatnonzero(~np.isfinite(table).all(1))
    if len(bad):
        column = int(np.flatnonzero(~np.isfinite(table[bad[0]]))[0])
        name = (*_NAMES[2:6], "score" if kind == "detections" else "person id")[column]
        raise ValueError(f"{path}, line {line_of[bad[0]]}: {name} is not a finite number")
    return FrameBoxes(tuple(frames.index), frame_of, table[:, :4].copy(), class_of, table[:, 4].copy()), line_of


def _read_at_once(path: StrPath, frames: _Frames) -> tuple[FrameBoxes, np.ndarray] | None:
    """The same where every line has eight plain columns; ``None`` where one has not, whatever it has."""
    import pyarrow as pa  # it takes a moment to load, which a small file does not need
    import pyarrow.csv as arrow_csv

    number, text = pa.float64(), pa.dictionary(pa.int32(), pa.string())
    types = dict(zip(_NAMES, (text, text, number, number, number, number, pa.int64(), number), strict=True))
    try:
        table = arrow_csv.read_csv(
            path,
            arrow_csv.ReadOptions(use_threads=False, column_names=list(_NAMES)),
            arrow_csv.ParseOptions(ignore_empty_lines=False),
            arrow_csv.ConvertOptions(column_types=types, null_values=[], true_values=[], false_values=[]),
        )
    except pa.ArrowException:
        return None
    values = [table[name].to_numpy() for name in (*_NAMES[2:6], "score")]
    if not all(np.isfinite(column).all() for column in values):
        return None
    keys = [table[name].unify_dictionaries().combine_chunks() for name in ("video_id", "time")]
    videos, times = (key.dictionary.to_pylist() for key in keys)
    video, time = (key.indices.to_numpy().astype(np.int64) for key in keys)
    pairs, frame_of = np.unique(video * len(times) + time, return_inverse=True)
    try:
        numbers = [frames.number(videos[pair // len(times)], times[pair % len(times)], 0) for pair in pairs.tolist()]
    except ValueError:
        return None
    frame = np.array(numbers, np.int64)[frame_of]
    boxes = FrameBoxes(
        tuple(frames.index), frame, np.stack(values[:4], 1), table["action id"].to_numpy(), values[4].copy()
    )
    return boxes, np.arange(1, len(frame) + 1)


def _repeated(boxes: FrameBoxes) -> np.ndarray:
    """Rows that are equal to an earlier one."""
    columns = (np.arange(len(boxes.frame)), *boxes.boxes.T, boxes.scores, boxes.classes, boxes.frame)
    order = np.lexsort(columns)
    same = np.ones(max(len(order) - 1, 0), bool)
    for column in columns[1:]:
        same &= column[order[1:]] == column[order[:-1]]
    repeated: np.ndarray = order[1:][same]
    return repeated


def without_frames(boxes: FrameBoxes, excluded: set[str]) -> FrameBoxes:
    """Boxes and frames that are not among the excluded frames."""
    kept = [index for index, name in enumerate(boxes.frames) if name not in excluded]
    place = np.full(len(boxes.frames), -1, np.int64)
    place[kept] = np.arange(len(kept))
    rows = place[boxes.frame] >= 0 if len(boxes.frame) else np.zeros(0, bool)
    part = boxes.select(rows)
    names = tuple(boxes.frames[index] for index in kept)
    return FrameBoxes(names, place[part.frame], part.boxes, part.classes, part.scores)


def read_frames(path: StrPath) -> set[str]:
    """Frames of an exclusion list: rows of video and time.

    Raises:
        ValueError: A line is something else.
    """
    frames = _Frames(path)
    for line, row in _rows(path):
        if len(row) != 2:
            raise ValueError(f"{path}, line {line}: {len(row)} columns; an exclusion list has 2, video and time")
        frames.number(row[0], row[1], line)
    return set(frames.index)


def read_label_map(path: StrPath) -> dict[int, str]:
    """Action names by id from a ``.pbtxt`` label map (``item { name: "..." id: 1 }``, or ``label_id:``).

    Raises:
        ValueError: An item lacks a name or id, or an id or name occurs twice.
    """
    try:
        text = Path(path).read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text file: {error}") from error
    names: dict[int, str] = {}
    for item in re.finditer(r"\{([^{}]*)\}", text):
        line = text.count("\n", 0, item.start()) + 1
        name = re.search(r"""\bname\s*:\s*(?:"([^"]*)"|'([^']*)')""", item[1])
        number = re.search(r"\b(?:label_)?id\s*:\s*(\d+)", item[1].replace(name[0], "") if name else item[1])
        if name is None or number is None:
            raise ValueError(f"{path}, line {line}: an item needs a name and an id")
        title = name[1] if name[1] is not None else name[2]
        if int(number[1]) in names or title in names.values():
            raise ValueError(f"{path}, line {line}: id {number[1]} or name {title!r} occurs twice")
        names[int(number[1])] = title
    if not names:
        raise ValueError(f'{path}: no item in it; a label map has items {{ name: "..." id: 1 }}')
    return names
