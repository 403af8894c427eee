"""``timegrain prepare``: the official annotation files of a benchmark and the videos at hand become a manifest."""

from __future__ import annotations

import json as json_module
import os
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from timegrain.data.benchmarks.ava import read_ava_kinetics
from timegrain.data.benchmarks.gebd import GroundTruth, read_gebd
from timegrain.data.benchmarks.joining import Benchmark, VideoFiles, coverage_of, join, write_missing
from timegrain.data.benchmarks.kinetics import read_kinetics
from timegrain.data.benchmarks.ucf_hmdb import read_hmdb51, read_ucf101
from timegrain.data.benchmarks.vidsitu import read_vidsitu
from timegrain.data.coverage import coverage_lines
from timegrain.data.journal import say_done_before
from timegrain.data.manifest import Manifest
from timegrain.data.packing import pack_rows
from timegrain.data.probing import TIME_LIMIT_SECONDS, Row, check_work, forget_progress, probe_files
from timegrain.data.reencoding import Encoding, convert_files
from timegrain.data.scan import check_out
from timegrain.data.shard_commands import print_shards, shard_summary
from timegrain.files import atomic_path

Name = Literal["kinetics400", "ucf101", "hmdb51", "vidsitu", "gebd", "ava-kinetics"]
_SHOWN = 5


def prepare(
    benchmark: Name,
    videos: Path,
    *,
    annotations: Path,
    out: Path,
    fold: int = 1,
    ground_truth: GroundTruth = "official",
    short_side: int | None = None,
    gop: int = 12,
    crf: int = 23,
    frames: bool = False,
    media: Path | None = None,
    shards: bool = False,
    shard_megabytes: int = 1000,
    workers: int | None = None,
    time_limit: float = TIME_LIMIT_SECONDS,
    restart: bool = False,
    json: bool = False,
) -> None:
    """Join a benchmark's official annotation files with the videos at hand; say how much of it there is.

    Videos are found by their official names, in any sub-folder and with any ending. Each is opened, as by
    `timegrain manifest scan`. The manifest carries the labels, times in seconds and the coverage, which results print;
    the listed videos that aren't there go into a csv beside it. The same command continues after an interruption.

    Put into the folder of --annotations, by their published names:

      kinetics400   train.csv, val.csv, test.csv (label,youtube_id,time_start,time_end,split); videos
                    ID_SSSSSS_EEEEEE.mp4, start and end in seconds. Kinetics-600 and -700 have the same layout
      ucf101        classInd.txt, trainlist01.txt, testlist01.txt (02, 03); videos v_CLASS_gNN_cNN.avi
      hmdb51        CLASS_test_split1.txt (2, 3); videos by the names in them
      vidsitu       split_files/, vseg_ann_files/, vinfo_files/; videos v_ID_seg_START_END.mp4
      gebd          k400_train_raw_annotation.pkl, k400_val_raw_annotation.pkl; videos ID_SSSSSS_EEEEEE.mp4 or ID.mp4
      ava-kinetics  ava_{train,val}_v2.2.csv, their _excluded_timestamps, kinetics_{train,val}_v1.0.csv, the label map
                    (.pbtxt); videos ID.mkv of AVA (or the cut from 900 to 1800 s), ID_SSSSSS_EEEEEE.mp4 of Kinetics-700

    For fast training --short-side 256 re-encodes every video once, smaller and with a key frame every 12 frames (about
    0.4 of the decoding time at the same size); --frames stores every frame as a JPEG instead (about 0.15 of it, three
    times the bytes). Frame numbers and times stay what they were. --shards packs the videos (the re-encoded ones, if any)
    into tar shards, in the folder OUT_shards beside OUT; `timegrain manifest pack` does so later. The re-encoded files stay
    beside the shards, because how videos are spread over shards goes by their sizes: with them the same command goes on
    after an interruption, and adds videos or changes the shards' size without re-encoding. Remove them once all is packed.

    Examples:
      timegrain prepare kinetics400 /data/k400 --annotations /data/k400/annotations --out k400.parquet
      timegrain prepare ucf101 UCF-101 --annotations ucfTrainTestlist --fold 2 --out ucf2.parquet
      timegrain prepare gebd /data/k400 --annotations gebd --ground-truth corrected --out gebd.parquet
      timegrain prepare kinetics400 /data/k400 --annotations k400 --out small.parquet --short-side 256 --gop 12

    With --json, one object: benchmark, splits (listed, found and usable by split), missing_list, files, manifest,
    broken, errors (reason by path), notes, the benchmark's own facts (such as classes or label_map), and with --shards
    shards and packed_from (the folder of re-encoded files).

    Args:
        benchmark: Which one: kinetics400, ucf101, hmdb51, vidsitu, gebd or ava-kinetics.
        videos: Folder of videos; searched with all its sub-folders.
        annotations: Folder of the official annotation files, as published.
        out: The manifest to write (.parquet).
        fold: Which of the three official splits of ucf101 and hmdb51.
        ground_truth: Which boundaries the manifest of gebd holds: by the official step or the corrected one.
        short_side: Re-encode to this many pixels at the shorter side; smaller videos keep their size.
        gop: With --short-side: frames from one key frame to the next, at most.
        crf: With --short-side: x264's quality, lower is better.
        frames: Store JPEG frames instead of a video, at the shorter side SHORT_SIDE (256 if not given).
        media: Where re-encoded videos and frames go; by default a folder beside OUT.
        shards: Pack the videos into tar shards (WebDataset's format); the manifest points into them.
        shard_megabytes: With --shards: size of a shard, at most, unless a single video is larger.
        workers: Processes to work with; all cores by default.
        time_limit: Seconds that reading one file may take, more if it is large; then it counts as broken.
        restart: Do everything again instead of continuing.
        json: Print the report as one JSON object.

    Raises:
        FileNotFoundError: If a folder or an annotation file isn't there.
        ValueError: If an annotation file isn't as published, or no listed video is there.
    """
    for folder, option in ((videos, "videos"), (annotations, "--annotations")):
        if not folder.exists():
            raise FileNotFoundError(f"{option} {folder} isn't there")
    check_out(out)
    check_work(workers, time_limit)
    if shards and shard_megabytes < 1:
        raise ValueError(f"--shard-megabytes {shard_megabytes}: a shard has at least 1 MB")
    if fold != 1 and benchmark not in ("ucf101", "hmdb51"):
        raise ValueError(f"--fold {fold}: only ucf101 and hmdb51 have three official splits, {benchmark} has not")
    if ground_truth != "official" and benchmark != "gebd":
        raise ValueError(f"--ground-truth {ground_truth}: only gebd has two, {benchmark} has not")
    if media is not None and short_side is None and not frames:
        raise ValueError(f"--media {media}: it is for re-encoded videos; ask for them with --short-side or --frames")
    out = out.absolute()
    readers: Mapping[str, Callable[[], Benchmark]] = {
        "kinetics400": lambda: read_kinetics(annotations),
        "ucf101": lambda: read_ucf101(annotations, fold),
        "hmdb51": lambda: read_hmdb51(annotations, fold),
        "vidsitu": lambda: read_vidsitu(annotations),
        "gebd": lambda: read_gebd(annotations, ground_truth),
        "ava-kinetics": lambda: read_ava_kinetics(annotations),
    }
    encoding = None
    if short_side is not None or frames:
        encoding = Encoding(short_side or 256, gop, crf, "frames" if frames else "video")
    content = readers[benchmark]()
    found, missing, notes = join(content, VideoFiles(videos))
    paths = sorted({path for _, path in found}, key=lambda path: path.parts)
    if encoding is None:
        probed, num_known = probe_files(paths, out, workers, time_limit, restart)
        say_done_before(num_known, len(paths))
    else:
        media = (media or out.with_name(f"{out.stem}_{encoding.name}")).absolute()
        probed = convert_files(paths, Path(os.path.abspath(videos)), media, encoding, workers, restart)
    by_path = dict(zip(paths, probed, strict=True))
    rows: list[Row] = []
    for listed, path in found:
        row = {**by_path[path], "video_id": listed.video_id, **listed.extra}
        row.update(split=listed.split, label=listed.label, group=listed.group)
        if row["error"] is None and content.finish is not None:
            content.finish(row)
        rows.append(row)
    missing_list = out.with_name(f"{out.stem}.missing.csv")
    coverage = coverage_of(content, found, rows, missing_list if missing else None)
    written = [out.with_name(f"{out.stem}.{ending}") for ending in content.files]
    coverage["files"] = [path.name for path in written]
    for path, data in zip(written, content.files.values(), strict=True):
        with atomic_path(path) as temporary:
            temporary.write_bytes(pickle.dumps(data, protocol=4))
    if missing:
        write_missing(missing, missing_list)
    else:
        missing_list.unlink(missing_ok=True)
    if shards:
        rows = pack_rows(rows, out.with_name(f"{out.stem}_shards"), shard_megabytes, restart)
    Manifest.from_rows(rows, videos, coverage).write(out)
    if encoding is None:
        forget_progress(out)
    errors = {row["path"]: row["error"] for row in rows if row["error"] is not None}
    report = {
        **coverage,
        "manifest": str(out),
        "broken": len(errors),
        "errors": errors,
        "notes": [*content.notes, *notes],
    }
    if shards:
        report["shards"] = shard_summary(rows)
        report["packed_from"] = str(media) if encoding is not None else None
    if json:
        print(json_module.dumps(report))
    else:
        _print_report(report, out.parent)


def _print_report(report: Mapping[str, Any], folder: Path) -> None:
    for line in coverage_lines(report, folder):
        print(line)
    for path, reason in list(report["errors"].items())[:_SHOWN]:
        print(f"broken    {path}: {reason}")
    if report["broken"] > _SHOWN:
        print(f"          and {report['broken'] - _SHOWN:,} more; the manifest's column error has them all")
    for note in report["notes"]:
        print(f"note      {note}")
    for name in report["files"]:
        print(f"written   {folder / name}")
    if "shards" in report:
        print_shards(report["shards"])
        if report["packed_from"] is not None:
            print(
                f"kept      {report['packed_from']}: what the shards were packed from; remove it if no video is to come"
            )
    print(f"manifest  {report['manifest']}")
