"""AVA's unit: a key frame of a video, the people in it, and what each of them does.

A manifest of ``timegrain prepare ava-kinetics`` lists key frames and boxes by video; here they become one entry per key
frame, with the actions of equal boxes joined. Person boxes for testing come from a file of detections.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from timegrain.data.benchmarks.reading import read_rows
from timegrain.data.location import file_name
from timegrain.data.manifest import Manifest
from timegrain.metrics.frame_map import FrameBoxes, frame_key

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class KeyFrame:
    """People at one moment.

    Attributes:
        video: Row of the manifest.
        video_id: As the official files name it.
        seconds: As the official files name the moment (time of the original video).
        frame: Frame of the file.
        boxes: (K, 4) x1, y1, x2, y2 as fractions of the picture.
        actions: (K, C) 1 where a person does an action; empty columns where nothing is known.
        scores: (K,) of the detector; 1 for annotated boxes.
    """

    video: int
    video_id: str
    seconds: float
    frame: int
    boxes: FloatArray
    actions: npt.NDArray[np.float32]
    scores: FloatArray

    @property
    def key(self) -> str:
        """Its name in evaluation."""
        return frame_key(self.video_id, self.seconds)


def class_names(manifest: Manifest) -> dict[int, str]:
    """The label map that the manifest carries, by action id.

    Raises:
        ValueError: It carries none.
    """
    names = (manifest.coverage or {}).get("label_map")
    if not names:
        raise ValueError(f"{manifest.path} has no label map; make it with `timegrain prepare ava-kinetics`")
    return {int(number): str(name) for number, name in names.items()}


def key_frames(manifest: Manifest, action_ids: Sequence[int]) -> list[KeyFrame]:
    """Every annotated key frame that lies inside its file, in the manifest's order; of some no person is annotated.

    Args:
        manifest: Rows with ``key_frame_seconds``, ``time_offset_seconds`` and ``boxes``.
        action_ids: The columns of ``actions``; boxes of other actions keep their place without them.

    Raises:
        ValueError: The manifest is not one of AVA-Kinetics.
    """
    column = {number: place for place, number in enumerate(action_ids)}
    found: list[KeyFrame] = []
    for video in range(len(manifest)):
        row = manifest[video]
        try:
            times, offset = row.extra["key_frame_seconds"], float(row.extra["time_offset_seconds"])
            rows = row.extra["boxes"] or []
        except KeyError as error:
            raise ValueError(
                f"{manifest.path} has no column {error}; `timegrain prepare ava-kinetics` makes manifests of key frames"
            ) from error
        people: list[dict[tuple[float, ...], set[int]]] = [{} for _ in times]
        for box in rows:
            place = tuple(float(box[name]) for name in ("x1", "y1", "x2", "y2"))
            people[box["key_frame"]].setdefault(place, set()).add(int(box["action"]))
        video_id = row.extra.get("video_id") or Path(file_name(row.path)).stem
        for seconds, boxes in zip(times, people, strict=True):
            frame = round((seconds - offset) * row.fps)
            if not 0 <= frame < row.num_frames:
                continue
            actions = np.zeros((len(boxes), len(action_ids)), np.float32)
            for person, known in enumerate(boxes.values()):
                actions[person, [column[action] for action in known if action in column]] = 1
            places = np.array(list(boxes), np.float64).reshape(-1, 4)
            found.append(KeyFrame(video, video_id, seconds, frame, places, actions, np.ones(len(boxes))))
    return found


def truth_of(frames: Sequence[KeyFrame], action_ids: Sequence[int]) -> FrameBoxes:
    """Ground truth for :class:`timegrain.metrics.frame_map.FrameMAP`: a box per person and action."""
    person = [np.argwhere(frame.actions > 0) for frame in frames]
    index = np.concatenate([np.full(len(rows), number) for number, rows in enumerate(person)]).astype(np.int64)
    boxes = [frame.boxes[rows[:, 0]] for frame, rows in zip(frames, person, strict=True)]
    classes = np.array(action_ids, np.int64)[np.concatenate(person)[:, 1]]
    return FrameBoxes(
        [frame.key for frame in frames], index, np.concatenate(boxes), classes, np.ones(len(index), np.float64)
    )


def read_people(path: Path) -> dict[str, tuple[FloatArray, FloatArray]]:
    """Detected people by key frame: boxes (K, 4) and scores (K,).

    Args:
        path: Rows without header: video, time, x1, y1, x2, y2, score; or the same with one more column before the score,
            as in the detections that other code bases publish, which is not read.

    Raises:
        ValueError: It is no text, or a line is something else; the message names it.
    """
    found: dict[str, list[list[float]]] = {}
    for line, row in read_rows(path):
        if len(row) not in (7, 8):
            raise ValueError(f"{path}, line {line}: {len(row)} columns; person boxes have 7 or 8, the score last")
        try:
            values = [float(text) for text in (*row[2:6], row[-1])]
            key = frame_key(row[0], float(row[1]))
        except ValueError:
            hint = " (these files have no header line)" if line == 1 else ""
            raise ValueError(f"{path}, line {line}: a time, box or score is not a number{hint}") from None
        if not np.isfinite(values).all() or values[0] >= values[2] or values[1] >= values[3]:
            raise ValueError(f"{path}, line {line}: {row[2:6]} is no box with x1 < x2 and y1 < y2")
        found.setdefault(key, []).append(values)
    if not found:
        raise ValueError(f"{path}: no row in it")
    return {key: (np.array(rows)[:, :4], np.array(rows)[:, 4]) for key, rows in found.items()}


def with_people(
    frames: Sequence[KeyFrame], people: Mapping[str, tuple[FloatArray, FloatArray]], min_score: float
) -> list[KeyFrame]:
    """The same moments with detected people in place of the annotated ones; moments without a person stay, empty."""
    none = np.zeros((0, 4)), np.zeros(0)
    replaced = []
    for frame in frames:
        boxes, scores = people.get(frame.key, none)
        kept = scores > min_score
        actions = np.zeros((int(kept.sum()), frame.actions.shape[1]), np.float32)
        replaced.append(
            KeyFrame(frame.video, frame.video_id, frame.seconds, frame.frame, boxes[kept], actions, scores[kept])
        )
    return replaced
