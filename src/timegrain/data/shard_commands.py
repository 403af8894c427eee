"""``timegrain manifest shards``, ``pack`` and ``move``: a manifest from tar shards, shards from a manifest, a new place."""

from __future__ import annotations

import itertools
import json as json_module
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow as pa

from timegrain.data.byte_ranges import open_bytes
from timegrain.data.journal import VideoJournal
from timegrain.data.location import Location, absolute, is_url, shown
from timegrain.data.manifest import Manifest
from timegrain.data.manifest_table import SCHEMA
from timegrain.data.packing import pack_rows
from timegrain.data.probing import TIME_LIMIT_SECONDS, Row, check_work, forget_progress, probe_files
from timegrain.data.scan import check_out, print_summary, summarise
from timegrain.data.shards import find_shards, read_shard
from timegrain.data.video import VideoError
from timegrain.progress import track

_READERS = 8  # shards whose headers are read at once: each header is waited for before the next is asked for
_SHOWN = 5


def scan_shards(
    shards: list[str],
    *,
    out: Path,
    split: str | None = None,
    probe: bool = False,
    workers: int | None = None,
    time_limit: float = TIME_LIMIT_SECONDS,
    restart: bool = False,
    json: bool = False,
) -> Manifest:
    """List the videos of tar shards (WebDataset's format) into a manifest that points into them.

    Only the headers of a shard are read, and the JSON and .cls files beside the videos: they give label, split, group and
    further columns. Videos whose JSON was written by `timegrain prepare --shards` or `timegrain manifest pack` are known
    then; others are read once, for their exact number of frames. Nothing is unpacked. The same command continues after an
    interruption.

    Shards are files, folders of them, URLs (http, s3 and all that fsspec knows; some need a package, which the message
    names), and patterns with * and {000..099}. Credentials belong where the file system looks for them (AWS_PROFILE and
    such); a URL that carries them is kept in the manifest as it is, but never printed in full.

    Examples::

        timegrain manifest shards k400_shards --out k400.parquet
        timegrain manifest shards "https://host/k400/train-{000000..000241}.tar" --split train --out k400.parquet

    Args:
        shards: Tar files, folders of them, URLs and patterns.
        out: The manifest to write (.parquet).
        split: Split of the videos whose JSON names none.
        probe: Read every video, also those that their JSON describes.
        workers: Processes to read with; all cores by default.
        time_limit: Seconds that reading one video may take, more if it is large; then it counts as broken.
        restart: Read every video again instead of continuing.
        json: Print the summary as one JSON object.

    Returns:
        The manifest (all its rows), for calls from Python.

    Raises:
        ValueError: If there is no shard, none can be read, or there is no video in them.
    """
    check_out(out)
    check_work(workers, time_limit)
    out = out.absolute()
    files = find_shards(shards)
    with VideoJournal(out, files, [None] * len(files), "shards", restart) as journal:
        rows = _rows_of(files, journal)
        for row in rows:
            row["split"] = row.get("split") or split
        unknown = [row for row in rows if row.get("error") is None and (probe or row.get("num_frames") is None)]
        paths = [row["path"] for row in unknown]
        num_known = 0
        if paths:
            probed, num_known = probe_files(paths, out, workers, time_limit, restart)
            for row, found in zip(unknown, probed, strict=True):
                row.update(found)
        _give_state(rows)
        manifest = Manifest.from_rows(_consistent(rows), out.parent)
        manifest.write(out)
    forget_progress(out)
    complete = [{"error": None, "label": None, "split": None, **row} for row in rows]
    summary = {**summarise(complete), "manifest": str(out), "read_before": num_known}
    if json:
        print(json_module.dumps(summary))
    else:
        print_summary(summary)
    return Manifest.open(out)


def _rows_of(shards: Sequence[str], journal: VideoJournal) -> list[Row]:
    """The rows of every shard, in order; one row with the reason for a shard that cannot be read."""
    rows_of = dict(journal.results)
    reasons = []
    left = [shards[number] for number in journal.left]
    pool = ThreadPoolExecutor(_READERS)
    try:
        read = track(pool.map(_try_shard, left), "headers", len(left)) if left else ()
        for number, found in zip(journal.left, read, strict=True):
            if isinstance(found, VideoError):
                reasons.append(str(found))
                rows_of[number] = [{"path": shards[number], "error": f"the shard can't be read: {found.reason}"}]
            else:
                rows_of[number] = found
                if found and all(row.get("error") is None for row in found):  # else it is looked at again
                    journal.finish(number, found)
    finally:
        pool.shutdown(cancel_futures=True)  # whoever interrupts does not wait for all that are left
    rows: list[Row] = [row for number in range(len(shards)) for row in rows_of[number]]
    if len(reasons) == len(shards):
        raise ValueError(f"none of {len(shards)} shards can be read: {'; '.join(reasons[:3])}")
    for reason in reasons[:_SHOWN]:
        print(f"could not read {reason}", file=sys.stderr)
    if not any("#" in row["path"] for row in rows):
        problems = "; ".join(f"{shown(row['path'])}: {row['error']}" for row in rows[:3])
        raise ValueError(
            f"no member of {len(shards)} shards has the ending of a video{f' ({problems})' * bool(problems)}"
        )
    return rows


def _try_shard(source: str) -> list[Row] | VideoError:
    try:
        return read_shard(source)
    except VideoError as error:
        return error


def _give_state(rows: Sequence[Row]) -> None:
    for row in rows:
        row.setdefault("size_bytes", Location.parse(row["path"]).size)
        row.setdefault("modified_ns", None)


def _consistent(rows: Sequence[Row]) -> list[Row]:
    """The rows without further columns whose values are of several kinds, or larger than numbers of 64 bits."""
    names = {name: None for row in rows for name in row if name not in SCHEMA.names}
    dropped = []
    for name in names:
        try:
            pa.array([row.get(name) for row in rows])
        except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError, UnicodeEncodeError):
            dropped.append(name)
    if dropped:
        print(f"left out, as a table cannot hold their values: {', '.join(dropped)}", file=sys.stderr)
    return [{name: value for name, value in row.items() if name not in dropped} for row in rows]


def pack(
    manifest: Path,
    *,
    out: Path,
    shard_megabytes: int = 1000,
    split: str | None = None,
    restart: bool = False,
    json: bool = False,
) -> None:
    """Pack the videos of a manifest into tar shards, and write a manifest that points into them.

    The shards (WebDataset's format: a video and its JSON by one key) go into the folder OUT_shards beside OUT, those of
    each split by its name: train-000000.tar. The videos' bytes stay what they are; labels and all other columns are kept.
    The same command continues after an interruption, and writes only shards whose videos changed.

    Examples::

        timegrain manifest pack m.parquet --out packed.parquet
        timegrain manifest pack m.parquet --out small.parquet --shard-megabytes 200

    Args:
        manifest: The manifest (.parquet).
        out: The manifest to write (.parquet).
        shard_megabytes: Size of a shard, at most, unless a single video is larger.
        split: Pack this split only; the others are left out.
        restart: Write every shard again.
        json: Print the summary as one JSON object.

    Raises:
        FileNotFoundError: If there is no such manifest.
        ValueError: If it isn't a manifest, or no video in it is usable.
    """
    check_out(out)
    if out.absolute() == manifest.absolute():
        raise ValueError(
            f"--out {out} is the manifest itself; its videos would be lost from sight. Choose another name"
        )
    chosen = Manifest.open(manifest).select(split, usable=False)
    folder = out.absolute().with_name(f"{out.stem}_shards")
    rows = pack_rows(plain_rows(chosen), folder, shard_megabytes, restart)
    Manifest.from_rows(rows, folder.parent, chosen.coverage).write(out)
    report = {"manifest": str(out.absolute()), **shard_summary(rows)}
    if json:
        print(json_module.dumps(report))
        return
    print_shards(report)
    print(f"manifest  {report['manifest']}")


def plain_rows(manifest: Manifest) -> list[Row]:
    """All columns of the selected rows, paths absolute."""
    columns = {name: manifest.column(name).to_pylist() for name in manifest.column_names}
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def shard_summary(rows: Sequence[Row]) -> dict[str, Any]:
    """How many shards packed rows lie in, and how large they are."""
    places = [Location.parse(row["path"]) for row in rows]
    files = sorted({place.source for place in places if place.member is not None})
    return {
        "shards": len(files),
        "packed": sum(place.member is not None for place in places),
        "not_packed": sum(place.member is None for place in places),
        "shard_bytes": sum(os.path.getsize(file) for file in files),
        "folder": os.path.dirname(files[0]),
    }


def print_shards(report: dict[str, Any]) -> None:
    """Print what :func:`shard_summary` counted, for people."""
    left = f"; {report['not_packed']:,} broken ones stay where they are" if report["not_packed"] else ""
    print(f"packed    {report['packed']:,} rows{left}")
    print(f"shards    {report['shards']:,} of {report['shard_bytes'] / 1e6:,.1f} MB in {report['folder']}")


def move(manifest: Path, *, to: str, out: Path, of: str | None = None, json: bool = False) -> None:
    """Write a manifest for videos or shards that were copied elsewhere: to a bucket, a web server, another folder.

    The beginning of every path (--of) is replaced by --to; the rest stays. Everything else of the manifest is kept. The
    first video is opened at its new place, so that a wrong address is noticed now.

    Examples::

        timegrain manifest move packed.parquet --to s3://bucket/packed_shards --out remote.parquet
        timegrain manifest move remote.parquet --to /data/packed_shards --out local.parquet

    Args:
        manifest: The manifest (.parquet).
        to: A URL or a folder.
        out: The manifest to write (.parquet).
        of: What is replaced; by default the folder that holds all files of the manifest.
        json: Print the summary as one JSON object.

    Raises:
        FileNotFoundError: If there is no such manifest.
        ValueError: If a path doesn't begin with ``of``, or the first video isn't at its new place.
    """
    check_out(out)
    if out.absolute() == manifest.absolute():
        raise ValueError(f"--out {out} is the manifest itself. Choose another name")
    everything = Manifest.open(manifest)
    places = [Location.parse(path) for path in everything.column("path").to_pylist()]
    before = _beginning(places) if of is None else absolute(of)
    sources = {place.source: _moved(place.source, before, to) for place in places}
    rows = plain_rows(everything)
    for row, place in zip(rows, places, strict=True):
        row["path"] = str(Location(sources[place.source], place.member, place.offset, place.size))
        row.update({"modified_ns": None} if "modified_ns" in row else {})
    first = next((row["path"] for row in rows if row["error"] is None), None)
    if first is not None:
        with open_bytes(first) as file:
            file.read(1)
    Manifest.from_rows(rows, out.absolute().parent, everything.coverage).write(out)
    report = {
        "manifest": str(out.absolute()),
        "rows": len(rows),
        "files": len(sources),
        "from": shown(before),
        "to": shown(to),
    }
    if json:
        print(json_module.dumps(report))
    else:
        print(f"moved     {len(rows):,} rows in {len(sources):,} files, from {shown(before)} to {shown(to)}")
        print(f"manifest  {report['manifest']}")


def _beginning(places: Sequence[Location]) -> str:
    folders = {place.source.split("?")[0].rpartition("/")[0] for place in places}
    if len({is_url(folder) for folder in folders}) > 1:
        raise ValueError("the manifest has paths and URLs; say with --of which of them moved")
    if not is_url(next(iter(folders))):
        return os.path.commonpath(folders)
    parts = [folder.split("/") for folder in folders]
    shared = list(itertools.takewhile(lambda level: len(set(level)) == 1, zip(*parts, strict=False)))
    if len(shared) < 3:  # the protocol alone
        raise ValueError("the manifest's URLs have no folder in common; say with --of which of them moved")
    return "/".join(level[0] for level in shared)


def _moved(source: str, before: str, to: str) -> str:
    file = source.split("?")[0] if is_url(source) else source
    if not file.startswith(before.rstrip("/") + "/"):
        raise ValueError(f"{shown(source)} is not in {shown(before)}; choose another --of")
    rest = file[len(before.rstrip("/")) + 1 :]
    if not is_url(to):
        return f"{absolute(to)}/{rest}"
    base, mark, query = to.partition("?")
    is_web = to.startswith(("http://", "https://")) and not is_url(source)
    return f"{base.rstrip('/')}/{quote(rest) if is_web else rest}{mark}{query}"
