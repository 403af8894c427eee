"""Kinetics: ``label,youtube_id,time_start,time_end,split`` as published, one csv per split or one for all."""

from __future__ import annotations

from pathlib import Path

from timegrain.data.benchmarks.joining import Benchmark, Listed
from timegrain.data.benchmarks.reading import as_number, check_new, read_rows
from timegrain.data.probing import Row

COLUMNS = ("label", "youtube_id", "time_start", "time_end", "split")
_OPTIONAL = "label"  # the published test files of some versions lack it
_SPLITS = {"train": "train", "val": "val", "validate": "val", "validation": "val", "test": "test"}


def read_kinetics(annotations: Path, name: str = "kinetics400") -> Benchmark:
    """Read Kinetics' annotation files.

    Args:
        annotations: The csv, or a folder of csv files; files with another header are left alone, and noted.
        name: Of the benchmark.

    Returns:
        The clips; their files are ``YOUTUBEID_SSSSSS_EEEEEE`` (start and end in seconds), or ``YOUTUBEID``.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a line isn't as published; the message names it.
    """
    paths = sorted(annotations.rglob("*.csv")) if annotations.is_dir() else [annotations]
    listed: list[Listed] = []
    lines: dict[object, int] = {}
    used: list[str] = []
    others: list[str] = []
    for path in paths:
        rows = read_rows(path)
        first_line, header = next(rows, (1, []))
        missing = [column for column in COLUMNS if column not in header and column != _OPTIONAL]
        if missing and annotations.is_dir():
            others.append(f"{path.name} is left alone: its header lacks {', '.join(missing)}")
            continue
        if missing:
            has = ", ".join(header) or "nothing"
            raise ValueError(f"{path}, line {first_line}: the header lacks {', '.join(missing)}; it has {has}")
        used.append(path.name)
        for line, row in rows:
            if len(row) != len(header):
                raise ValueError(f"{path}, line {line}: {len(row)} values for {len(header)} columns")
            values = dict(zip(header, row, strict=True))
            split = _SPLITS.get(values["split"].lower())
            if split is None:
                raise ValueError(f"{path}, line {line}: unknown split {values['split']!r}; known: {', '.join(_SPLITS)}")
            label = values.get(_OPTIONAL, "").strip('"') or None
            if label is None and split != "test":
                raise ValueError(f"{path}, line {line}: no label")
            start = as_number(values["time_start"], "time_start", path, line)
            end = as_number(values["time_end"], "time_end", path, line)
            if not 0 <= start < end:
                raise ValueError(f"{path}, line {line}: the clip runs from {start:g} to {end:g} s")
            youtube_id = values["youtube_id"]
            video_id = f"{youtube_id}_{int(start):06d}_{int(end):06d}"
            check_new(video_id, line, lines, path)
            times = {"start_in_original_seconds": start, "end_in_original_seconds": end}
            listed.append(Listed(video_id, split, label, youtube_id, (video_id, youtube_id), extra=times))
    if not used:
        raise FileNotFoundError(f"no csv with the columns {','.join(COLUMNS)} in {annotations}")
    if not listed:
        raise ValueError(f"{', '.join(used)} in {annotations}: no row after the header")
    classes = sorted({video.label for video in listed if video.label is not None})
    facts = {"annotation_files": used, "classes": classes}
    return Benchmark(name, listed, facts, notes=[f"{len(classes)} classes", *others], finish=_check_length)


def _check_length(row: Row) -> None:
    """A file much longer than its clip is the whole video, most of which shows something else than the label says."""
    length = row["end_in_original_seconds"] - row["start_in_original_seconds"]
    if row["duration_seconds"] > length + 5:
        row["error"] = f"lasts {row['duration_seconds']:.0f} s, but the clip {length:.0f} s; is it the uncut video?"
