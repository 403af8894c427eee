"""VidSitu: movie segments of ten seconds with five events of two seconds, each with its verb."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from timegrain.data.benchmarks.joining import Benchmark, Listed
from timegrain.data.probing import Row
from timegrain.metrics.inputs import EVENTS, read_json, read_verb_labels

EVENT_SECONDS = 2.0
_MAX_VERBS = 10  # the official evaluation reads this many annotators
_SPLITS = {"train": "train", "valid": "val", "testvb": "testvb", "testsrl": "testsrl", "testevrel": "testevrel"}
_SEGMENT = re.compile(r"v_(.+)_seg_(\d+)_(\d+)")


def event_centres(num_events: int = 5) -> list[float]:
    """Middle of each event in seconds: 1, 3, 5, 7, 9 (the official frame ``int((i + 0.5) * 60)`` at 30 per second)."""
    return [(event + 0.5) * EVENT_SECONDS for event in range(num_events)]


def read_vidsitu(annotations: Path) -> Benchmark:
    """Read VidSitu's annotation folder.

    Args:
        annotations: The folder that holds ``split_files/``, ``vseg_ann_files/`` and ``vinfo_files/``.

    Returns:
        The segments. Columns: ``verbs``, one verb id per event: the annotated one in training, the most frequent of the
        ten annotators' in validation (the first met on ties), none in the test splits; ``verb_sets``, the first ten
        annotators' verbs of each event, in validation; ``event_centre_seconds``; ``index_in_split``, by which official
        predictions name a segment.

    Raises:
        FileNotFoundError: If a file isn't there.
        ValueError: If a file isn't as published; the message names file and segment.
    """
    root = _root(annotations)
    listed: list[Listed] = []
    seen: dict[str, str] = {}
    for name, split in _SPLITS.items():
        path = root / "split_files" / f"vseg_split_{name}_lb.json"
        if not path.is_file():
            continue
        segments = _segments(path, seen)
        sets: Mapping[str, Sequence[Sequence[str]]] = {}
        verbs: Mapping[str, Sequence[str]] = {}
        if name == "train":
            verbs = _train_verbs(root / "vseg_ann_files" / "vsann_train_lb.json")
        elif name == "valid":
            sets = {s: [list(v[:_MAX_VERBS]) for v in events] for s, events in read_verb_labels(root, name).items()}
            verbs = {s: [Counter(v).most_common(1)[0][0] for v in events] for s, events in sets.items()}
        for index, segment in enumerate(segments):
            if split in ("train", "val") and segment not in verbs:
                raise ValueError(f"{path}: segment {segment!r} has no verbs in the annotation files")
            match = _SEGMENT.fullmatch(segment)
            if match is None:
                raise ValueError(f"{path}: {segment!r} isn't named v_ID_seg_START_END")
            extra = {
                "verbs": verbs.get(segment),
                "verb_sets": sets.get(segment),
                "event_centre_seconds": event_centres(),
                "index_in_split": index,
            }
            listed.append(Listed(segment, split, None, match[1], (segment,), extra=extra))
    if not listed:
        raise ValueError(f"no segment in {root / 'split_files'}")
    return Benchmark("vidsitu", listed, {"event_seconds": EVENT_SECONDS}, finish=_check_length)


def _check_length(row: Row) -> None:
    """A file that ends before the middle of the last event cannot show all five; half a second is let go."""
    last = row["event_centre_seconds"][-1]
    if row["duration_seconds"] + 0.5 < last:
        row["error"] = f"lasts {row['duration_seconds']:.1f} s, so it ends before its last event, around {last:g} s"


def _root(annotations: Path) -> Path:
    found = [path.parent for path in sorted(annotations.rglob("split_files"))]
    if not found:
        raise FileNotFoundError(f"no split_files/ in {annotations}; give the folder vidsitu_annotations")
    if not any((found[0] / "split_files").glob("vseg_split_*_lb.json")):
        raise FileNotFoundError(f"no vseg_split_SPLIT_lb.json in {found[0] / 'split_files'}")
    return found[0]


def _segments(path: Path, seen: dict[str, str]) -> list[str]:
    content = read_json(path)
    if not isinstance(content, list) or not all(isinstance(segment, str) for segment in content):
        raise ValueError(f"{path}: not a list of segment names")
    for segment in content:
        if segment in seen:
            raise ValueError(f"{path}: segment {segment!r} is listed in {seen[segment]} already")
        seen[segment] = path.name
    return content


def _train_verbs(path: Path) -> dict[str, list[str]]:
    """Verb ids of the five events of every training segment; of a segment's annotations the first counts."""
    if not path.is_file():
        raise FileNotFoundError(f"no {path}; the verbs of the training split are in it")
    content = read_json(path)
    if not isinstance(content, list):
        raise ValueError(f"{path}: not a list")
    verbs: dict[str, list[str]] = {}
    for number, record in enumerate(content):
        try:
            events: list[Any] = [record[event] for event in EVENTS]
            segment, ids = events[0]["vid_seg_int"], [event["VerbID"] for event in events]
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path}, entry {number}: no {error} in it") from error
        if not isinstance(segment, str) or not all(isinstance(verb, str) for verb in ids):
            raise ValueError(f"{path}, entry {number}: vid_seg_int and VerbID must be text")
        verbs.setdefault(segment, ids)
    return verbs
