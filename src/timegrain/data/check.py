"""``timegrain manifest check``: decode what training would decode, before training does."""

from __future__ import annotations

import hashlib
import json as json_module
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from timegrain.data.decoding import Crop, VideoError, open_video
from timegrain.data.journal import VideoJournal
from timegrain.data.location import file_state, shown
from timegrain.data.manifest import Manifest, VideoRow
from timegrain.data.probing import TIME_LIMIT_SECONDS, check_work, seconds_to_read
from timegrain.data.scan import check_out
from timegrain.sampling import SAMPLERS, ClipSpec, frames_to_read, pair_specs

LONG, SHORT = ClipSpec(32, 4), ClipSpec(16, 2)  # the paper's clips
_SHOWN = 5


@dataclass(frozen=True)
class FramesToCheck:
    """What to decode of one video: the frames of each pair of clips, in one pass per pair as training does."""

    path: str
    num_frames: int
    passes: tuple[npt.NDArray[np.int64], ...]

    @property
    def digest(self) -> str:
        """Changes with the frames."""
        text = json_module.dumps([self.num_frames, *(frames.tolist() for frames in self.passes)])
        return hashlib.sha256(text.encode()).hexdigest()


def check(
    manifest: Path,
    *,
    num_clips: int = 1,
    out: Path | None = None,
    split: str | None = None,
    sampler: str = "long_short_contained",
    seed: int = 0,
    workers: int | None = None,
    time_limit: float = TIME_LIMIT_SECONDS,
    json: bool = False,
) -> None:
    """Decode what training would decode of every video, note what fails, and report how much can be used.

    Of each usable video the frames of NUM_CLIPS pairs of clips (32 frames 4 apart and, inside, 16 frames 2 apart) are
    decoded, at the positions that training with this seed draws in its first epochs. The reason of a failure goes into
    the column error, so that training leaves the video out. The same command continues after an interruption.

    Examples::

        timegrain manifest check m.parquet
        timegrain manifest check m.parquet --num-clips 3 --out checked.parquet

    Args:
        manifest: The manifest (.parquet).
        num_clips: Pairs of clips to decode of each video.
        out: Where to write the manifest with the failures; by default the manifest itself is replaced.
        split: Check this split only.
        sampler: How clips are placed, as in pre-training.
        seed: Seed of the training run.
        workers: Processes to decode with; all cores by default.
        time_limit: Seconds that one video may take, more if it is large; then it counts as broken.
        json: Print the report as one JSON object.

    Raises:
        FileNotFoundError: If there is no such manifest.
        ValueError: If it isn't a manifest, or has no usable video (in this split).
    """
    if num_clips < 1:
        raise ValueError(f"--num-clips {num_clips}: at least one clip is needed")
    check_work(workers, time_limit)
    if out is not None:
        check_out(out)
    if seed < 0:
        raise ValueError(f"--seed {seed}: a seed is 0 or more")
    if sampler not in SAMPLERS:
        raise ValueError(f"--sampler {sampler}: unknown; there are {', '.join(SAMPLERS)}")
    everything = Manifest.open(manifest)
    out = (out or manifest).absolute()
    chosen = frames_to_check(everything.select(split), num_clips, sampler, seed)
    with VideoJournal(out, [item.path for item in chosen], [item.digest for item in chosen]) as journal:
        failures = find_failures(chosen, journal, workers, time_limit)
        checked = everything.with_errors(failures)
        written = checked.write(out)
    report = {**coverage_report(checked.select(split, usable=False)), "manifest": str(written)}
    report["newly_broken"] = len(failures)
    if json:
        print(json_module.dumps(report))
    else:
        _print_report(report)


def frames_to_check(
    manifest: Manifest, num_clips: int = 1, sampler: str = "long_short_contained", seed: int = 0
) -> list[FramesToCheck]:
    """What training would decode of every video.

    Args:
        manifest: Usable videos, as training selects them.
        num_clips: Pairs of clips per video; pair ``e`` is the one that training draws in epoch ``e``.
        sampler: Name in :data:`timegrain.sampling.SAMPLERS`.
        seed: Seed of the training run.
    """
    return [_frames_to_check(row, index, num_clips, sampler, seed) for index, row in enumerate(manifest)]


def find_failures(
    chosen: Sequence[FramesToCheck],
    journal: VideoJournal,
    workers: int | None = None,
    time_limit_seconds: float = TIME_LIMIT_SECONDS,
) -> dict[str, str]:
    """Decode frames of many videos.

    Args:
        chosen: What to decode.
        journal: Where the videos that can be decoded are noted.
        workers: Number of processes.
        time_limit_seconds: Per video and pair of clips, more if it is large.

    Returns:
        Reasons by absolute path, of the videos that failed.
    """

    def limit(item: FramesToCheck) -> float:
        return (time_limit_seconds + seconds_to_read(item.path, _size(item.path))) * len(item.passes)

    failed = journal.run(decode, chosen, limit, workers, "checking")
    return {chosen[number].path: reason for number, reason in failed}


def _size(path: str) -> int:
    try:
        return file_state(path)[0] or 0
    except OSError:  # decoding says what is wrong
        return 0


def _frames_to_check(row: VideoRow, index: int, num_clips: int, sampler: str, seed: int) -> FramesToCheck:
    passes = []
    for epoch in range(num_clips):
        rng = np.random.default_rng([seed, epoch, index])  # the key of timegrain.data.clips
        clips = SAMPLERS[sampler](row.num_frames, pair_specs(sampler, LONG, SHORT), rng)
        passes.append(np.unique(frames_to_read(np.concatenate(clips), row.num_frames)))
    return FramesToCheck(row.path, row.num_frames, tuple(passes))


def decode(item: FramesToCheck) -> None:
    """Decode the frames of one video.

    Raises:
        VideoError: If they can't be decoded, or the video isn't as long as its manifest says.
    """
    for frames in item.passes:
        with open_video(item.path) as reader:
            if reader.num_frames != item.num_frames:
                raise VideoError(
                    item.path,
                    f"has {reader.num_frames} frames, not {item.num_frames} as when it was scanned; scan again",
                )
            # One corner of each frame: everything is decoded, little is converted, memory stays small
            reader.frames(frames, crop=Crop(0, 0, min(16, reader.info.height), min(16, reader.info.width)))


def coverage_report(manifest: Manifest) -> dict[str, Any]:
    """How much of a manifest can be used, as JSON values.

    Returns:
        ``videos``, ``usable``, ``share``; the same per split and per label; ``reasons``: how many videos failed for
        which reason (numbers in a reason replaced by N); ``errors``: reasons by path; ``changed``: usable videos whose
        file has another size or time than when it was scanned.
    """
    rows = list(manifest)
    return {
        **_share(rows),
        "splits": {name: _share(part) for name, part in _grouped(rows, "split").items()},
        "labels": {name: _share(part) for name, part in _grouped(rows, "label").items()},
        "reasons": dict(Counter(re.sub(r"\d+", "N", row.error) for row in rows if row.error).most_common()),
        "errors": {shown(row.path): row.error for row in rows if row.error},
        "changed": [shown(row.path) for row in rows if row.error is None and _has_changed(row)],
    }


def _share(rows: Sequence[VideoRow]) -> dict[str, Any]:
    usable = sum(row.error is None for row in rows)
    return {"videos": len(rows), "usable": usable, "share": usable / len(rows)}


def _grouped(rows: Iterable[VideoRow], name: str) -> dict[str, list[VideoRow]]:
    groups: dict[str, list[VideoRow]] = {}
    for row in rows:
        value = getattr(row, name)
        if value is not None:
            groups.setdefault(value, []).append(row)
    return dict(sorted(groups.items()))


def _has_changed(row: VideoRow) -> bool:
    if row.extra.get("size_bytes") is None or row.extra.get("modified_ns") is None:
        return False
    try:
        state = file_state(row.path)
    except OSError:
        return True
    return state != (row.extra["size_bytes"], row.extra["modified_ns"])


def _print_report(report: Mapping[str, Any]) -> None:
    def line(name: str, part: Mapping[str, Any]) -> None:
        print(f"{name:<24} {part['usable']:>9,} of {part['videos']:>9,}  {part['share']:7.2%}")

    line("usable", report)
    for name, part in report["splits"].items():
        line(f"  split {name}", part)
    worst = sorted(report["labels"].items(), key=lambda item: item[1]["share"])
    incomplete = [(name, part) for name, part in worst if part["share"] < 1]
    for name, part in incomplete[:_SHOWN]:
        line(f"  label {name}", part)
    if report["labels"]:
        print(f"  {len(incomplete):,} of {len(worst):,} labels lack videos")
    for reason, count in list(report["reasons"].items())[:_SHOWN]:
        print(f"{count:>9,} × {reason}")
    for path, reason in list(report["errors"].items())[:_SHOWN]:
        print(f"  {path}: {reason}")
    if report["changed"]:
        print(f"{len(report['changed']):,} files changed since they were scanned, such as {report['changed'][0]}")
    print(f"{report['newly_broken']:,} videos failed in this check")
    print(f"manifest  {report['manifest']}")
