"""Join what an official annotation file lists with the videos that are there."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from timegrain.data.probing import Row, find_files
from timegrain.files import atomic_path

_YOUTUBE_NAME = re.compile(r"([\w-]{11})(?:_(\d{6})_(\d{6}))?")


@dataclass(frozen=True)
class Listed:
    """One video that an annotation file names.

    Attributes:
        video_id: As the benchmark calls it.
        split: Split.
        label: Class, if it has one.
        group: What belongs to one recording, if known.
        stems: Names without ending that its file may have, best first.
        youtube_id: Id of the original video, if a file named after it or cut from it serves too.
        at_seconds: A time of the original video that the file must hold, if it is cut from it.
        extra: Further columns of the manifest.
    """

    video_id: str
    split: str | None
    label: str | None = None
    group: str | None = None
    stems: tuple[str, ...] = ()
    youtube_id: str | None = None
    at_seconds: float | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Benchmark:
    """What the annotation files of a benchmark say.

    Attributes:
        name: Of the benchmark.
        listed: The videos, in the order of the files.
        facts: Further entries of the coverage (JSON values), such as class names.
        notes: Lines for the report.
        files: Data to write beside the manifest as a pickle, by the end of the file's name.
        finish: Called with every row whose file could be read, to add what depends on the file.
    """

    name: str
    listed: Sequence[Listed]
    facts: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()
    files: Mapping[str, Any] = field(default_factory=dict)
    finish: Callable[[Row], None] | None = None


def youtube_clip(name: str) -> tuple[str, float, float] | None:
    """YouTube id, start and end in seconds of a file name without ending; None if it isn't named so.

    ``ID_SSSSSS_EEEEEE`` is a clip, ``ID`` alone the whole video (0 to infinity).
    """
    match = _YOUTUBE_NAME.fullmatch(name)
    if match is None:
        return None
    return match[1], float(match[2] or 0), float(match[3] or "inf")


class VideoFiles:
    """The video files below a folder, by name.

    Args:
        folder: Where to look.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.all = find_files(folder)
        self._by_stem: dict[str, list[Path]] = {}
        self._by_youtube_id: dict[str, list[Path]] = {}
        for path in self.all:
            self._by_stem.setdefault(path.stem, []).append(path)
            clip = youtube_clip(path.stem)
            if clip is not None:
                self._by_youtube_id.setdefault(clip[0], []).append(path)

    def of(self, listed: Listed) -> list[Path]:
        """The files that may be a listed video, best first.

        Files that carry one of its names come first, of these the ones in a folder named after its class or split.
        """
        found = next((self._by_stem[stem] for stem in listed.stems if stem in self._by_stem), [])
        if not found and listed.youtube_id is not None:
            clips = [(path, youtube_clip(path.stem)) for path in self._by_youtube_id.get(listed.youtube_id, [])]
            time = listed.at_seconds
            found = [path for path, clip in clips if clip and (time is None or clip[1] <= time <= clip[2])]
            if time is None:  # another part of the same video isn't the video listed
                found = [path for path in found if path.stem == listed.youtube_id]
        names = {_plain(name) for name in (listed.label, listed.split) if name}
        return sorted(found, key=lambda path: -len(names & {_plain(part) for part in path.parts}))


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "", name.lower())


def join(benchmark: Benchmark, files: VideoFiles) -> tuple[list[tuple[Listed, Path]], list[Listed], list[str]]:
    """Find the file of every listed video.

    Returns:
        The listed videos with their files; the ones without; and lines for the report.

    Raises:
        ValueError: If none is found.
    """
    found: list[tuple[Listed, Path]] = []
    missing: list[Listed] = []
    several: list[tuple[Listed, list[Path]]] = []
    for listed in benchmark.listed:
        candidates = files.of(listed)
        if not candidates:
            missing.append(listed)
            continue
        found.append((listed, candidates[0]))
        if len(candidates) > 1:
            several.append((listed, candidates))
    if not found:
        first = benchmark.listed[0]
        there = f"it holds {len(files.all):,} videos, such as {files.all[0]}" if files.all else "it holds no video"
        wanted = first.stems[0] if first.stems else first.youtube_id
        raise ValueError(
            f"none of the {len(missing):,} videos of {benchmark.name} is in {files.folder}: {there}; "
            f"looked for names such as {wanted}.mp4, in any sub-folder, with any ending of a video"
        )
    notes = []
    if several:
        listed, candidates = several[0]
        notes.append(
            f"{len(several):,} videos are there more than once; for {listed.video_id} {candidates[0]} is used, "
            f"not {candidates[1]}"
        )
    unused = len(set(files.all)) - len({path for _, path in found})
    if unused:
        notes.append(f"{unused:,} videos in {files.folder} aren't listed and left out")
    return found, missing, notes


def coverage_of(
    benchmark: Benchmark, found: Sequence[tuple[Listed, Path]], rows: Sequence[Row], missing_list: Path | None
) -> dict[str, Any]:
    """How much of a benchmark there is, as the manifest carries it.

    Returns:
        ``benchmark``; ``splits``: for each split the number of videos listed, found and usable; ``missing_list``: name
        of the file that names the missing ones, beside the manifest; and the benchmark's own facts.
    """
    listed = Counter(video.split or "unused" for video in benchmark.listed)
    there = Counter(video.split or "unused" for video, _ in found)
    usable = Counter(
        video.split or "unused" for (video, _), row in zip(found, rows, strict=True) if row["error"] is None
    )
    splits = {name: {"listed": listed[name], "found": there[name], "usable": usable[name]} for name in sorted(listed)}
    return {
        "benchmark": benchmark.name,
        "splits": splits,
        "missing_list": None if missing_list is None else missing_list.name,
        **benchmark.facts,
    }


def write_missing(missing: Sequence[Listed], path: Path) -> None:
    """Write the listed videos that aren't there: a csv of split, video, label."""
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["split", "video", "label"])
        writer.writerows([video.split or "", video.video_id, video.label or ""] for video in missing)
