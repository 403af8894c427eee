"""``timegrain manifest scan``: a folder of videos becomes a manifest."""

from __future__ import annotations

import json as json_module
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from timegrain.data.labels import VideoLabels, labels_from_folders, read_label_file
from timegrain.data.location import shown
from timegrain.data.manifest import Manifest
from timegrain.data.probing import TIME_LIMIT_SECONDS, Row, check_work, find_files, forget_progress, probe_files

_SHOWN = 5  # broken files and labels that the summary names


def scan(
    folder: Path,
    *,
    out: Path,
    labels: Path | None = None,
    split: str | None = None,
    workers: int | None = None,
    time_limit: float = TIME_LIMIT_SECONDS,
    all_files: bool = False,
    missing_ok: bool = False,
    restart: bool = False,
    json: bool = False,
) -> Manifest:
    """List a folder of videos into a manifest: one row per video, with its exact length, label and split.

    Every file is opened and its frames are counted; one that can't be used gets a row with the reason, and does not
    stop the scan. Labels come from the folders (FOLDER/LABEL/video or FOLDER/{train,val,test}/LABEL/video) or from a
    csv. The same command continues after an interruption, and reads only new and changed files when OUT exists.

    Examples::

        timegrain manifest scan VIDEOS --out m.parquet
        timegrain manifest scan VIDEOS --labels labels.csv --out m.parquet

    Args:
        folder: Folder of videos; searched with all its sub-folders.
        out: The manifest to write (.parquet).
        labels: A csv with the columns path,label and if wanted group,split; paths are relative to FOLDER.
        split: Split of the videos that get none from the csv or the folders.
        workers: Processes to read with; all cores by default.
        time_limit: Seconds that one file may take, more if it is large; then it counts as broken.
        all_files: Try every file, whatever its ending, instead of files with the endings of videos.
        missing_ok: Go on when the csv names videos that aren't in FOLDER.
        restart: Read every file again instead of continuing.
        json: Print the summary as one JSON object.

    Returns:
        The manifest (all its rows), for calls from Python.

    Raises:
        FileNotFoundError: If the folder or the csv isn't there.
        ValueError: If there is no video, or the csv doesn't fit.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder")
    check_out(out)
    check_work(workers, time_limit)
    folder, out = folder.absolute(), out.absolute()
    videos = [path for path in find_files(folder, all_files) if path.name not in (out.name, f"{out.name}.rows.jsonl")]
    if not videos:
        kind = "file" if all_files else "video (a file with the ending of one; --all-files tries every file)"
        tars = next(folder.rglob("*.tar"), None)
        hint = (
            ""
            if tars is None
            else f". It has {tars.name}: `timegrain manifest shards {folder}` lists what is in tar files"
        )
        raise ValueError(f"no {kind} in {folder} and its sub-folders{hint}")
    known = _labels(folder, videos, labels, missing_ok)
    rows, num_known = probe_files(videos, out, workers, time_limit, restart)
    for video, row in zip(videos, rows, strict=True):
        said = known.get(str(video), VideoLabels())
        row.update(label=said.label, group=said.group, split=said.split or split)
    manifest = Manifest.from_rows(rows, folder)
    manifest.write(out)
    forget_progress(out)
    summary = {**summarise(rows), "manifest": str(out), "read_before": num_known}
    if json:
        print(json_module.dumps(summary))
    else:
        print_summary(summary)
    return Manifest.open(out)


def check_out(out: Path) -> None:
    """Refuse what a manifest cannot be called.

    Raises:
        ValueError: It is a folder, or other commands would not take it for a manifest.
    """
    if out.is_dir():
        raise ValueError(f"--out {out} is a folder; name the manifest file, such as {out / 'm.parquet'}")
    if out.suffix != ".parquet":
        raise ValueError(f"--out {out}: a manifest's name ends in .parquet, such as {out.with_suffix('.parquet')}")


def _labels(folder: Path, videos: Sequence[Path], labels: Path | None, missing_ok: bool) -> Mapping[str, VideoLabels]:
    if labels is None:
        return labels_from_folders(folder, videos)
    content = read_label_file(labels, folder, videos)
    if content.ignored_columns:
        print(f"{labels}: columns not used: {', '.join(content.ignored_columns)}", file=sys.stderr)
    if content.absent:
        line, path = content.absent[0]
        more = f", nor are {len(content.absent) - 1} others" if len(content.absent) > 1 else ""
        message = f"{labels} line {line}: {path} isn't among the videos in {folder}{more}"
        if not missing_ok:
            raise ValueError(f"{message}. Paths start at FOLDER; --missing-ok goes on without them")
        print(message, file=sys.stderr)
    return content.labels


def summarise(rows: Sequence[Row]) -> dict[str, Any]:
    """Counts of a manifest's rows, as JSON values: videos, usable, broken, hours, labels, splits, errors by path."""
    usable = [row for row in rows if row["error"] is None]
    return {
        "videos": len(rows),
        "usable": len(usable),
        "broken": len(rows) - len(usable),
        "hours": sum(row["duration_seconds"] for row in usable) / 3600,
        "labels": dict(sorted(Counter(row["label"] for row in usable if row["label"] is not None).items())),
        "unlabelled": sum(row["label"] is None for row in usable),
        "splits": dict(sorted(Counter(row["split"] for row in usable if row["split"] is not None).items())),
        "errors": {shown(row["path"]): row["error"] for row in rows if row["error"] is not None},
    }


def print_summary(summary: Mapping[str, Any]) -> None:
    """Print what :func:`summarise` counted, for people."""
    seconds = summary["hours"] * 3600
    long = f"{summary['hours']:,.1f} hours" if seconds >= 7200 else f"{seconds / 60:,.1f} minutes"
    known = f" ({summary['read_before']:,} of them read before)" if summary["read_before"] else ""
    print(f"videos    {summary['videos']:,}{known}: {summary['usable']:,} usable, {long}")
    labels = summary["labels"]
    if labels:
        shown = ", ".join(f"{name} ({count})" for name, count in list(labels.items())[:_SHOWN])
        print(f"labels    {len(labels):,}: {shown}{', …' if len(labels) > _SHOWN else ''}")
    if labels and summary["unlabelled"]:
        print(f"          {summary['unlabelled']:,} videos without a label")
    if summary["splits"]:
        print(f"splits    {', '.join(f'{name} ({count:,})' for name, count in summary['splits'].items())}")
    print(f"broken    {summary['broken']:,}")
    for path, reason in list(summary["errors"].items())[:_SHOWN]:
        print(f"          {path}: {reason}")
    if summary["broken"] > _SHOWN:
        print(f"          and {summary['broken'] - _SHOWN:,} more; the manifest's column error has them all")
    print(f"manifest  {summary['manifest']}")
