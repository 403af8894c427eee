"""``timegrain explore``: features, event boundaries and pictures of a folder of videos, and one page about them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from json import dumps
from pathlib import Path

import numpy as np
import numpy.typing as npt

from timegrain.boundary_finding import FindSettings, FoundBoundaries, boundaries_of
from timegrain.data.decoding import VideoError
from timegrain.data.location import absolute, file_name, shown
from timegrain.feature_files import EmbeddedFiles, list_videos
from timegrain.feature_tables import VideoFeatures, read_videos
from timegrain.files import atomic_path
from timegrain.inference import ViewSettings, load
from timegrain.progress import track
from timegrain.report.figures import Neighbours, nearest_neighbours
from timegrain.report.frames import Picture, frames_at
from timegrain.report.page import Cell, Section, Table, render_page
from timegrain.tasks.boundary_find import as_values, write_found
from timegrain.tasks.embed import draw_similarity

_QUERIES, _NEAREST = 6, 5  # of the picture of neighbours
_ROWS = 1000  # of the page's table


@dataclass(frozen=True)
class _Seen:
    """One video: what the page says of it."""

    path: str  # as it is opened
    found: FoundBoundaries
    feature: npt.NDArray[np.float32]

    @property
    def name(self) -> str:
        return file_name(self.path)


def explore(
    videos: list[str],
    *,
    weights: str,
    out: Path = Path("explored"),
    window_seconds: float = 1.0,
    prominence: float = 1.0,
    overlap: float = 0.5,
    fps: float | None = None,
    num_pictures: int = 12,
    device: str = "auto",
    batch_size: int = 4,
    json: bool = False,
) -> None:
    """Look at videos with an encoder: features, event boundaries and pictures, and one page that shows them.

    Each video is decoded once for its features; boundaries are the moments where these change most, compared with the rest
    of the same video, as `timegrain boundaries find` has them. The folder OUT gets

        index.html            start here: every video with its boundaries, pictures, which videos are alike
        features.parquet      as `timegrain embed` writes it
        boundaries.csv        path, seconds, strength; one line per boundary
        pictures/             each shown video's self-similarity under its frames

    The same command again continues after an interruption, and embeds only what is new. Videos that cannot be read are
    listed on the page and in features.broken.csv.

    Example::

        timegrain explore VIDEOS --weights runs/VIDEOS-a0.9/weights.safetensors --out explored

    Args:
        videos: Videos, folders with videos, manifests (.parquet), tar shards, and URLs of videos and shards.
        weights: A .safetensors file, the folder of a pre-training run, or OWNER/NAME on the Hugging Face Hub.
        out: The folder to write.
        window_seconds: How much before and after each moment is compared; longer finds longer events.
        prominence: How far a change must stand out, in standard deviations over the video; lower finds more boundaries.
        overlap: Share of a window that the next one covers again; higher is finer and slower.
        fps: Watch every video as if it had this frame rate; give the training videos' rate when yours differs.
        num_pictures: Videos that are shown with a picture, evenly spread over the list; the others are in the table.
        device: auto, cpu, cuda, mps.
        batch_size: Windows that go through the network at once.
        json: Print one JSON object.

    Raises:
        ValueError: No video can be read, or the weights are no encoder's.
    """
    if num_pictures < 0:
        raise ValueError(f"num_pictures must be 0 or more, got {num_pictures}")
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out}: a file is there; give a folder")
    finding = FindSettings(window_seconds=window_seconds, prominence=prominence)
    settings = ViewSettings(overlap=overlap, fps=fps)
    paths = list_videos(videos)
    done = load(weights, device, batch_size).embed_files(paths, out / "features.parquet", settings)
    for path, reason in done.broken:
        print(f"could not read {path}: {reason}", file=sys.stderr)
    opened = {shown(absolute(path)): path for path in paths}
    shown_ones = _spread(done.num_videos, num_pictures)
    seen: list[_Seen] = []
    sections: list[Section] = []
    for earlier in (out / "pictures").glob("[0-9]" * 5 + "-*.png"):  # of another list of videos, perhaps
        earlier.unlink()
    for number, features in enumerate(track(read_videos(done.out), "pictures", total=done.num_videos)):
        video = _Seen(
            opened.get(features.path, features.path), boundaries_of(features, finding), features.video_feature
        )
        seen.append(video)
        if number in shown_ones:
            sections.append(_shown(video, features, out / "pictures", number))
    write_found(out / "boundaries.csv", [(shown(video.path), as_values(video.found)) for video in seen])
    page = _page(done, seen, sections, str(weights), finding, out / "index.html")
    num_boundaries = sum(len(video.found.seconds) for video in seen)
    if json:
        broken = [{"path": path, "reason": reason} for path, reason in done.broken]
        counts = {"videos": done.num_videos, "reused": done.num_reused, "boundaries": num_boundaries}
        print(dumps({"out": str(page), **counts, "pictures": len(sections), "broken": broken}))
        return
    lost = f"; {len(done.broken):,} could not be read" if done.broken else ""
    print(f"{page}: {_count(done.num_videos, 'video')}, {num_boundaries:,} boundaries{lost}")


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _spread(count: int, chosen: int) -> set[int]:
    """``chosen`` of ``count`` numbers from 0 on, evenly spread; all, if there are no more."""
    return set(np.linspace(0, count - 1, min(count, chosen)).round().astype(int).tolist())


def _shown(video: _Seen, features: VideoFeatures, folder: Path, number: int) -> Section:
    """A video's part of the page; its picture is also written as a file."""
    found = video.found
    try:
        png = draw_similarity(features, video.path, boundaries_seconds=found.seconds.tolist())
    except VideoError as error:  # it was there for its features: gone since, or its end cannot be jumped to
        return Section(video.name, [f"No picture: {error.reason}."], level=3)
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(folder / f"{number:05d}-{Path(video.name).stem[:100]}.png") as temporary:
        temporary.write_bytes(png)
    times = ", ".join(f"{time:.1f}" for time in found.seconds)
    caption = f"Boundaries (dotted) at {times} s." if times else "No change stands out."
    return Section(video.name, png=png, caption=caption, level=3)


def _page(
    done: EmbeddedFiles,
    seen: Sequence[_Seen],
    shown_ones: list[Section],
    weights: str,
    finding: FindSettings,
    out: Path,
) -> Path:
    total = sum(video.found.duration_seconds for video in seen)
    number = sum(len(video.found.seconds) for video in seen)
    sections = [
        Section(
            "How to read it",
            bullets=[
                "A square along the diagonal of a picture is a stretch that the encoder takes for one event. Bright "
                "patches away from it are moments that look alike to it.",
                f"A boundary is where the features of the {finding.window_seconds:g} s before and after a moment differ "
                f"most, standing out by {finding.prominence:g} standard deviations of their own video. Nobody has told the "
                "encoder what an event is: look at a few before you trust them. --prominence and --window_seconds set how "
                "many there are.",
                "Beside this page: features.parquet (one row per moment, window and video), boundaries.csv, pictures/.",
            ],
        )
    ]
    if len(seen) > 2:
        alike = _neighbours(seen)
        if alike is not None:
            sections.append(alike)
    sections.append(_table(seen))
    if done.broken:
        broken: list[list[Cell]] = [[(path, ""), (reason, "")] for path, reason in done.broken[:_ROWS]]
        rest = _first(done.broken, "features.broken.csv")
        sections.append(Section("Could not be read", rest, Table(["video", "why"], broken)))
    if shown_ones:
        some = [f"{len(shown_ones)} of {len(seen):,} videos, evenly spread over the list."]
        sections += [Section("Pictures", some if len(shown_ones) < len(seen) else []), *shown_ones]
    hours, minutes = divmod(round(total / 60), 60)
    length = f"{hours} h {minutes:02d} min" if hours else f"{minutes} min" if total >= 90 else f"{total:.0f} s"
    lead = f"{_count(len(seen), 'video')}, {length} in all, {number:,} boundaries; {done.num_features} features per moment."
    return render_page("What is in these videos", sections, out, lead=lead, footer=f"Weights: {weights}")


def _first(items: Sequence[object], file: str) -> list[str]:
    return [f"The first {_ROWS:,} of {len(items):,}; all are in {file}."] if len(items) > _ROWS else []


def _table(seen: Sequence[_Seen]) -> Section:
    rows: list[list[Cell]] = []
    for video in seen[:_ROWS]:
        times = [f"{time:.1f}" for time in video.found.seconds]
        more = f" and {len(times) - 12} more" if len(times) > 12 else ""
        rows.append(
            [
                (video.name, ""),
                (f"{video.found.duration_seconds:.1f} s", ""),
                (f"{len(times)}", ""),
                (", ".join(times[:12]) + more, ""),
            ]
        )
    return Section(
        "Videos", _first(seen, "boundaries.csv"), Table(["video", "length", "boundaries", "at (seconds)"], rows)
    )


def _neighbours(seen: Sequence[_Seen]) -> Section | None:
    """Some videos beside those whose features are nearest, or None where their pictures cannot be had."""
    features = np.stack([video.feature for video in seen])
    unit = features - features.mean(0)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True) + 1e-12
    rows = []
    for query in sorted(_spread(len(seen), _QUERIES)):  # a matrix of all pairs might not fit in memory
        similarity = unit @ unit[query]
        similarity[query] = -np.inf
        nearest = np.argsort(-similarity, kind="stable")[:_NEAREST]
        try:
            rows.append(Neighbours(_thumbnail(seen[query]), [_thumbnail(seen[place]) for place in nearest]))
        except VideoError:
            continue
    if not rows:
        return None
    caption = "Videos (left) and those with the nearest features about the mean of all; frames from the middle."
    return Section("Alike", png=nearest_neighbours(rows, labelled=False), caption=caption)


def _thumbnail(video: _Seen) -> tuple[Picture, str]:
    """A frame from the middle, and the name, cut to what fits under it."""
    (picture,) = frames_at(video.path, [video.found.duration_seconds / 2], height=120)
    name = Path(video.name).stem
    return picture, name if len(name) <= 14 else f"{name[:5]}…{name[-8:]}"
