"""Find out what many video files hold: in parallel, whatever they are, and never twice."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from timegrain.data.decoding import probe
from timegrain.data.isolated import Failure, run_isolated
from timegrain.data.journal import Journal
from timegrain.data.location import file_state, is_url
from timegrain.data.manifest import Manifest
from timegrain.progress import track

Row = dict[str, Any]

TIME_LIMIT_SECONDS = 20.0
_SLOW_DISK = 20e6  # bytes/s: a large file has longer than the time limit
_SLOW_NETWORK = 1e6

_PROBED = ("path", "num_frames", "fps", "duration_seconds", "width", "height", "codec", "error")
_STATE = ("size_bytes", "modified_ns")  # columns that tell whether a file is still the one that was probed

# Endings of video files, for folders that hold other files too. What a file holds is found from its content alone.
_ENDINGS = """
    .3g2 .3gp .amv .asf .avi .divx .dv .f4v .flv .gif .m2p .m4v .mj2 .mkv .mov .mp4 .mpe .mpeg .mpg .mpv .mxf .m2t .m2ts
    .mts .nut .ogm .ogv .qt .rm .rmvb .swf .ts .vob .webm .wmv .y4m
    .264 .265 .av1 .h261 .h263 .h264 .h265 .hevc .ivf .m1v .m2v .mjpeg .mjpg .obu .vc1 .vp8 .vp9
"""
VIDEO_EXTENSIONS = frozenset(_ENDINGS.split())


def check_work(workers: int | None, time_limit_seconds: float) -> None:
    """Refuse what no work can be done with, before any is done.

    Raises:
        ValueError: There are no workers, or there is no time for a file.
    """
    if workers is not None and workers < 1:
        raise ValueError(f"--workers {workers}: at least one process is needed")
    if not time_limit_seconds > 0:
        raise ValueError(f"--time-limit {time_limit_seconds:g}: no file can be read in that time; give seconds above 0")


def seconds_to_read(path: str, size: int) -> float:
    """How long a slow disk or network takes for a file of ``size`` bytes, which has to be read to its end."""
    return size / (_SLOW_NETWORK if is_url(path) else _SLOW_DISK)


def find_files(folder: Path, all_files: bool = False) -> list[Path]:
    """Video files below a folder, by their ending, sorted by their path.

    Hidden files and folders (names that start with a dot) are left out; linked folders are followed, each once.

    Args:
        folder: Where to look.
        all_files: Take files of any ending.

    Returns:
        Absolute paths.
    """
    found: list[Path] = []
    seen: set[str] = set()
    for parent, folders, names in os.walk(os.path.abspath(folder), followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))  # which of two links is first met
        visible = (name for name in names if not name.startswith("."))
        found += [Path(parent, n) for n in visible if all_files or Path(n).suffix.lower() in VIDEO_EXTENSIONS]
    return sorted(found, key=lambda path: path.parts)


def probe_file(path: str) -> Row:
    """The row of one video file.

    Raises:
        VideoError: If the file can't be read as a video.
    """
    info = probe(path)
    return {
        "path": path,
        "num_frames": info.num_frames,
        "fps": info.fps,
        "duration_seconds": info.duration_seconds,
        "width": info.width,
        "height": info.height,
        "codec": info.codec,
        "error": None,
    }


def probe_files(
    paths: Sequence[Path | str],
    out: Path,
    workers: int | None = None,
    time_limit_seconds: float = TIME_LIMIT_SECONDS,
    restart: bool = False,
) -> tuple[list[Row], int]:
    """Probe files, each once: good rows of an interrupted run and of an older ``out`` are used again.

    A file counts as the one probed before when its size and its time of modification are the same (behind a URL, when its
    part of a shard is the same). Rows are kept in a journal beside ``out``; remove it with :func:`forget_progress` when
    ``out`` is written.

    Args:
        paths: Absolute paths and other locations.
        out: The manifest that is being made.
        workers: Number of processes; the number of cores by default.
        time_limit_seconds: The longest that a file may take (more for a file of over 20 MB), before its row says so.
        restart: Probe everything anew.

    Returns:
        One row per path, in the order given, and how many of them were known before.
    """
    with Journal(_progress_path(out), "path", restart) as journal:
        known = {} if restart else _known_rows(out, journal)
        rows: dict[str, Row] = {}
        todo: list[tuple[str, int]] = []
        for path in paths:
            text = str(path)
            try:
                text.encode()
                size, modified = file_state(text)
            except UnicodeEncodeError:
                shown = os.fsencode(text).decode(errors="backslashreplace")
                rows[text] = {"path": shown, "error": "the file's name isn't valid UTF-8; rename it"}
                continue
            except OSError as error:
                rows[text] = {"path": text, "error": f"can't be read: {error.strerror}"}
                continue
            row = known.get(text)
            if row is not None and (row["size_bytes"], row["modified_ns"]) == (size, modified):
                rows[text] = row
            else:
                rows[text] = {"path": text, "size_bytes": size, "modified_ns": modified}
                todo.append((text, size or 0))
        if todo:
            _probe_and_note([text for text, _ in todo], dict(todo), rows, journal, workers, time_limit_seconds)
    return [rows[str(path)] for path in paths], len(paths) - len(todo)


def _probe_and_note(
    todo: Sequence[str],
    sizes: dict[str, int],
    rows: dict[str, Row],
    journal: Journal,
    workers: int | None,
    time_limit_seconds: float,
) -> None:
    def limit(path: str) -> float:
        return time_limit_seconds + seconds_to_read(path, sizes[path])

    for position, outcome in track(run_isolated(probe_file, todo, limit, workers), "scanning", len(todo)):
        row = rows[todo[position]]
        if isinstance(outcome, Failure):
            row["error"] = outcome.reason
        else:
            row.update(outcome)
            journal.add(row)


def forget_progress(out: Path) -> None:
    """Remove the rows kept for the continuation of an interrupted run."""
    _progress_path(out).unlink(missing_ok=True)


def _progress_path(out: Path) -> Path:
    return out.with_name(out.name + ".rows.jsonl")


def _known_rows(out: Path, journal: Journal) -> dict[str, Row]:
    """Good rows by path: of a finished manifest, then of an interrupted run."""
    known: dict[str, Row] = {}
    if out.is_file():
        with contextlib.suppress(ValueError):  # something else stands there; it is about to be replaced
            manifest = Manifest.open(out)
            if set(_STATE) <= set(manifest.column_names):
                table = pa.table({name: manifest.column(name) for name in (*_PROBED, *_STATE)})
                known = {row["path"]: row for row in table.to_pylist() if row["error"] is None}
    noted = {path: row for path, row in journal.known.items() if {"error", *_STATE} <= row.keys()}
    return known | {path: row for path, row in noted.items() if row["error"] is None}
