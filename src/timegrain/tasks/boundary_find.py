"""``timegrain boundaries find``: event boundaries of the user's own videos, as a table."""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from json import dumps
from pathlib import Path
from typing import Any

from timegrain.boundary_finding import BoundaryFinder, FindSettings, FoundBoundaries
from timegrain.boundary_layout import Mode
from timegrain.data.decoding import VideoError
from timegrain.data.journal import VideoJournal
from timegrain.data.location import shown
from timegrain.feature_files import list_videos
from timegrain.files import atomic_path
from timegrain.progress import track


def find(
    videos: list[str],
    *,
    weights: str,
    out: Path,
    threshold: float | None = None,
    window_seconds: float = 1.0,
    prominence: float = 1.0,
    overlap: float = 0.5,
    gap_seconds: float | None = None,
    fps: float | None = None,
    mode: Mode = "windows",
    device: str = "auto",
    batch_size: int = 8,
    workers: int = 0,
    json: bool = False,
) -> None:
    """Find event boundaries in videos, without labels: times in seconds, as a csv or JSON file.

    With the weights of `timegrain boundaries train` the trained detector and the threshold of its training are used. With
    the weights of an encoder nothing was trained for boundaries: they are the moments where its features change most,
    compared with the rest of the same video. That marks changes of what the encoder sees, which need not be what people
    call events; in a quiet video it marks the little that happens. Look at a few results before trusting them, and adapt
    --prominence (lower finds more) and --window-seconds (longer finds longer events).

    Videos that cannot be read are named with the reason and do not stop the others. The same command continues after an
    interruption.

    Examples::

        timegrain boundaries find VIDEOS --weights runs/VIDEOS-a0.9/weights.safetensors --out boundaries.csv
        timegrain boundaries find a.mp4 b.mp4 --weights runs/gebd-detector --out boundaries.json --threshold 0.4

    Args:
        videos: Videos, folders with videos, manifests (.parquet), tar shards, and URLs of videos and shards.
        weights: A .safetensors file, the folder of a run, or OWNER/NAME on the Hugging Face Hub.
        out: The file to write: .csv (path, seconds, strength; one line per boundary) or .json (by path: boundaries,
            strengths, segments, duration_seconds).
        threshold: Of a trained detector, instead of its own; lower finds more.
        window_seconds: Without training: how much before and after each moment is compared.
        prominence: Without training: how far a change must stand out, in standard deviations over the video.
        overlap: Without training: share of a window that the next one covers again; higher is finer and slower.
        gap_seconds: No two boundaries are nearer than this; 0.6 without training, else the detector's own rule.
        fps: Without training: watch videos as if they had this frame rate.
        mode: Of a trained detector: windows, or dense, which is faster and a little different.
        device: auto, cpu, cuda, mps.
        batch_size: Windows that go through the network at once.
        workers: Of a trained detector: processes that decode.
        json: Print one JSON object.

    Raises:
        ValueError: The output's ending is another, or no video can be read.
    """
    if out.suffix not in (".csv", ".json"):
        raise ValueError(f"--out {out}: boundaries are written as .csv or .json")
    settings = FindSettings(
        threshold, window_seconds, prominence, overlap, gap_seconds, fps=fps, mode=mode, batch_size=batch_size,
        workers=workers,
    )  # fmt: skip
    paths = list_videos(videos)
    finder = BoundaryFinder(weights, device, settings)
    print(finder.describe(), file=sys.stderr)
    broken: dict[str, str] = {}
    with VideoJournal(out, paths, [finder.facts] * len(paths)) as journal:
        for video in track(journal.left, "videos") if len(journal.left) > 1 else journal.left:
            try:
                journal.finish(video, as_values(finder.find(paths[video])))
            except VideoError as error:
                broken[shown(paths[video])] = error.reason
                print(f"could not read {shown(paths[video])}: {error.reason}", file=sys.stderr)
        if not journal.results:
            raise ValueError(f"none of the {len(paths)} videos could be read; the first: {next(iter(broken.values()))}")
        found = [(shown(paths[video]), journal.results[video]) for video in sorted(journal.results)]
        write_found(out, found)
    number = sum(len(video["seconds"]) for _, video in found)
    if json:
        print(dumps({"out": str(out), "videos": len(found), "boundaries": number, "trained": finder.trained,
                     "broken": broken}))  # fmt: skip
    else:
        lost = f"; {len(broken):,} could not be read" if broken else ""
        print(f"{out}: {number:,} boundaries in {len(found):,} of {len(paths):,} videos{lost}")


def as_values(found: FoundBoundaries) -> dict[str, Any]:
    """What is written of a video, as JSON values."""
    return {
        "seconds": found.seconds.tolist(),
        "strengths": [float(strength) for strength in found.strengths],
        "segments": found.segments,
        "duration_seconds": found.duration_seconds,
    }


def write_found(out: Path, found: Sequence[tuple[str, dict[str, Any]]]) -> None:
    """Write boundaries as csv or JSON, by the file's ending.

    Args:
        out: The file.
        found: Path and :func:`as_values` of each video.
    """
    with atomic_path(out) as temporary:
        if out.suffix == ".json":
            content = {
                path: {
                    "boundaries": [round(t, 4) for t in video["seconds"]],
                    "strengths": [round(s, 4) for s in video["strengths"]],
                    "segments": [[round(start, 4), round(end, 4)] for start, end in video["segments"]],
                    "duration_seconds": video["duration_seconds"],
                }
                for path, video in found
            }
            temporary.write_text(dumps(content, indent=1) + "\n")
            return
        with temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["path", "seconds", "strength"])
            for path, video in found:
                writer.writerows(
                    [path, f"{t:.4f}", f"{s:.4f}"] for t, s in zip(video["seconds"], video["strengths"], strict=True)
                )
