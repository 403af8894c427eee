"""EventWorld: generated videos with known events, as real H.264 files with a manifest.

The picture is described in :mod:`timegrain.data.eventworld_render`. A world is a folder:

=====================  ==========================================================================================
``manifest.parquet``   one row per video; written last, so its presence means that the world is complete
``SPLIT/00000.mp4`` …  the videos
``world.json``         the arguments that the world was made from
``people.csv``         with ``individual_postures``: boxes as a fair detector would find them, for `timegrain localize`
``preview.png``        what it looks like
=====================  ==========================================================================================

In the manifest ``label`` is the video's scene and ``group`` its identity. Further columns: ``events``, a list of
``{start_seconds, end_seconds, label, posture, motion}`` (``label`` is the posture), ``boundaries_seconds``, ``seed``,
``index`` and ``difficulty``; and those by which the benchmarks' commands know their data, so that each can be tried on
a world: ``event_centre_seconds``, ``verbs``, ``verb_sets``, ``index_in_split`` of VidSitu (postures as verbs, one
annotator) and, where ellipses have postures of their own, ``key_frame_seconds``, ``boxes``, ``time_offset_seconds`` of AVA.
"""

from __future__ import annotations

import csv
import json as json_module
import multiprocessing
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from timegrain.data.eventworld_files import Job, render_files
from timegrain.data.eventworld_preview import save_preview
from timegrain.data.eventworld_render import (
    DIFFICULTIES,
    GENERATOR,
    MOTIONS,
    POSTURES,
    SCENES,
    Event,
    EventWorldConfig,
    Video,
    boxes_around,
    generate,
    identity,
    write_script,
)
from timegrain.data.manifest import Manifest
from timegrain.files import atomic_path
from timegrain.machine import num_cores
from timegrain.progress import track

__all__ = [
    "DIFFICULTIES",
    "MOTIONS",
    "POSTURES",
    "SCENES",
    "Event",
    "EventWorldConfig",
    "Video",
    "eventworld",
    "generate",
    "identity",
    "world_config",
    "write_world",
]


def world_config(difficulty: str = "medium", **changes: Any) -> EventWorldConfig:
    """The settings of a difficulty, some of them changed.

    Args:
        difficulty: ``calm``, ``easy``, ``medium`` or ``hard``: contrast of actors and texture, strength of the nuisances.
        **changes: Fields of ``EventWorldConfig``.

    Raises:
        ValueError: If there is no such difficulty, or the settings contradict each other.
    """
    if difficulty not in DIFFICULTIES:
        raise ValueError(f"no difficulty {difficulty!r}; choose one of {', '.join(DIFFICULTIES)}")
    return EventWorldConfig(**{**DIFFICULTIES[difficulty], **changes})


def write_world(
    out: str | os.PathLike[str],
    num_videos: int,
    seed: int,
    split: str = "train",
    *,
    config: EventWorldConfig | None = None,
    num_test_videos: int = 0,
    workers: int | None = None,
    overwrite: bool = False,
    preview: bool = True,
) -> Manifest:
    """Generate videos into a folder, with their manifest.

    The same call again does nothing; after an interruption it goes on where it stopped. Each video depends on (seed,
    split, index) alone, so the first videos of a larger world are those of a smaller one, and two splits share none.
    Worker processes are started afresh: a script calls this under ``if __name__ == "__main__":`` or with ``workers=1``.

    Args:
        out: The folder; made if needed.
        num_videos: Videos of ``split``.
        seed: The world's seed.
        split: Name of the split.
        config: What the world looks like; difficulty "medium" by default.
        num_test_videos: Videos of the split "test" in the same manifest, for evaluations that need both.
        workers: Processes; all cores by default, 0 for none beside this one.
        overwrite: Replace the world that is in the folder. Files that are not a world's are left alone.
        preview: Write ``preview.png``.

    Returns:
        The manifest, all splits.

    Raises:
        ValueError: If an argument is out of range, or the folder holds something else and ``overwrite`` is off.
    """
    config = EventWorldConfig() if config is None else config
    splits = _splits(num_videos, split, num_test_videos)
    out = Path(out)
    record = {"generator": GENERATOR, "seed": seed, "splits": splits, **asdict(config)}
    _claim(out, record, overwrite)
    manifest_path = out / "manifest.parquet"
    files = [(name, index, f"{name}/{index:05d}.mp4") for name, count in splits.items() for index in range(count)]

    missing = [file for file in files if not (out / file[2]).is_file()]
    if missing or not manifest_path.is_file():
        with atomic_path(out / "world.json") as temporary:
            temporary.write_text(json_module.dumps(record, indent=1) + "\n")
        manifest_path.unlink(missing_ok=True)
        jobs = [(config, seed, name, index, out / path) for name, index, path in missing]
        for _ in track(_run(jobs, num_cores() if workers is None else workers), "videos", len(jobs)):
            pass
    if preview and not (out / "preview.png").is_file():
        save_preview(out / "preview.png", config, seed, next(iter(splits)), min(num_videos, 100))
    if not manifest_path.is_file():
        rows = [_row(config, seed, name, index, path) for name, index, path in files]
        assert len({row["group"] for row in rows}) == len(rows), "two videos of one identity"
        actions = {str(number): posture for number, posture in enumerate(POSTURES, 1)}
        there = {name: dict.fromkeys(("listed", "found", "usable"), count) for name, count in splits.items()}
        coverage = {"benchmark": "eventworld", "splits": there, "label_map": actions}
        if config.individual_postures:
            _write_people(out / "people.csv", rows)
        Manifest.from_rows(rows, out, coverage).write(manifest_path)
    return Manifest.open(manifest_path)


def _splits(num_videos: int, split: str, num_test_videos: int) -> dict[str, int]:
    """Number of videos by split, checked."""
    if num_videos < 1:
        raise ValueError(f"num_videos must be at least 1, got {num_videos}")
    if num_test_videos < 0:
        raise ValueError(f"num_test_videos must not be negative, got {num_test_videos}")
    if not split.isidentifier():
        raise ValueError(f"split must be one word of letters, digits and underscores, got {split!r}")
    if split == "test" and num_test_videos:
        raise ValueError("split is already 'test'; leave out num_test_videos, or choose another split")
    return {split: num_videos, **({"test": num_test_videos} if num_test_videos else {})}


def _claim(out: Path, record: dict[str, Any], overwrite: bool) -> None:
    """Make sure that the folder is free for this world, or holds it already; with ``overwrite`` remove another one."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; --out needs a folder")
    try:
        # what a world of an earlier version does not name has its default
        there = asdict(EventWorldConfig()) | json_module.loads((out / "world.json").read_text())
    except FileNotFoundError:
        there = None
        if out.is_dir() and any(out.iterdir()) and not overwrite:
            raise ValueError(f"{out} holds other files and no world; choose an empty folder, or --overwrite") from None
    except json_module.JSONDecodeError:
        there = {}
        if not overwrite:
            raise ValueError(f"{out / 'world.json'} is not readable; choose another folder, or --overwrite") from None
    if there == record:
        return
    if there and not overwrite:
        names = [name for name in record if there.get(name) != record[name]]
        changes = ", ".join(f"{name} {there.get(name)} (asked for: {record[name]})" for name in names)
        changes = changes or "other settings"
        raise ValueError(f"{out} holds another world: {changes}. Choose another folder, or --overwrite")
    if there is not None or overwrite:
        for name in ("manifest.parquet", "world.json", "people.csv", "preview.png"):
            (out / name).unlink(missing_ok=True)
        for name in {**(there or {}).get("splits", {}), **record["splits"]}:
            for video in (out / name).glob("[0-9][0-9][0-9][0-9][0-9]*.mp4"):
                if video.stem.isdigit():
                    video.unlink()


def _run(jobs: list[Job], workers: int) -> Iterator[int]:
    """Do the jobs and yield each video's bytes as it gets done."""
    if min(workers, len(jobs) // 4) <= 1:  # starting processes takes longer than a few videos
        for job in jobs:
            yield from render_files([job])
        return
    # spawn: a fork of a process with threads (torch, Arrow) may hang
    pool = ProcessPoolExecutor(min(workers, len(jobs)), mp_context=multiprocessing.get_context("spawn"))
    try:
        futures: list[Future[list[int]]] = [pool.submit(render_files, jobs[i : i + 8]) for i in range(0, len(jobs), 8)]
        for future in as_completed(futures):
            yield from future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _row(config: EventWorldConfig, seed: int, split: str, index: int, path: str) -> dict[str, Any]:
    """A video's row of the manifest."""
    script = write_script(config, seed, split, index)
    row = {
        "path": path,
        "num_frames": config.num_frames,
        "fps": config.fps,
        "duration_seconds": config.num_frames / config.fps,
        "width": config.size,
        "height": config.size,
        "codec": "h264",
        "split": split,
        "label": script.scene,
        "group": script.identity,
        "events": [{**asdict(event), "label": event.posture} for event in script.events],
        "boundaries_seconds": list(script.boundaries_seconds),
        "seed": seed,
        "index": index,
        "difficulty": _difficulty(config),
        "event_centre_seconds": [(event.start_seconds + event.end_seconds) / 2 for event in script.events],
        "verbs": [event.posture for event in script.events],
        "verb_sets": [[event.posture] for event in script.events],
        "index_in_split": index,
    }
    return row | _who_does_what(generate(config, seed, split, index), config.fps) if config.individual_postures else row


def _who_does_what(video: Video, fps: float) -> dict[str, Any]:
    """AVA's columns: in the middle of each event a box around each ellipse, its posture the action."""
    frames = [round((event.start_seconds + event.end_seconds) / 2 * fps) for event in video.events]
    boxes = [  # of an ellipse that has left the picture there is none
        {"key_frame": number, **dict(zip(("x1", "y1", "x2", "y2"), box, strict=True)), "action": int(posture) + 1}
        for number, frame in enumerate(frames)
        for posture, box in zip(video.postures[number], boxes_around(video, number, frame).tolist(), strict=True)
        if min(box[2] - box[0], box[3] - box[1]) > 1 / video.frames.shape[1]
    ]
    times = [frame / fps for frame in frames]
    return {"video_id": video.identity, "key_frame_seconds": times, "time_offset_seconds": 0.0, "boxes": boxes}


def _write_people(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Detections in AVA's form: true boxes, their sides moved by about a tenth of the size; one in ten is elsewhere."""
    with atomic_path(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        for row in rows:
            rng = np.random.default_rng(int(row["group"], 16))
            for box in row["boxes"]:
                true = np.array([box[side] for side in ("x1", "y1", "x2", "y2")])
                width, height = true[2:] - true[:2]
                found = true + 0.1 * rng.standard_normal(4) * [width, height, width, height]
                score = rng.uniform(0.6, 1.0)
                if rng.random() < 0.1:  # somewhere else, of the same size
                    centre = rng.uniform(0.2, 0.8, 2)
                    found, score = (
                        np.r_[centre - true[2:] / 2 + true[:2] / 2, centre + true[2:] / 2 - true[:2] / 2],
                        0.5,
                    )
                found = np.clip(found, 0, 1).round(4)
                if (found[2:] > found[:2]).all():
                    seconds = row["key_frame_seconds"][box["key_frame"]]
                    writer.writerow([row["video_id"], f"{seconds:g}", *found, round(score, 3)])


def _difficulty(config: EventWorldConfig) -> str:
    """The name of a configuration's contrasts, or "custom"."""
    for name, contrasts in DIFFICULTIES.items():
        if all(getattr(config, field) == value for field, value in contrasts.items()):
            return name
    return "custom"


def eventworld(
    *,
    out: Path,
    num_videos: int,
    seed: int = 0,
    split: str = "train",
    num_test_videos: int = 0,
    difficulty: str = "medium",
    size: int = 32,
    num_frames: int = 120,
    fps: float = 25.0,
    min_events: int = 2,
    max_events: int = 8,
    individual_postures: bool = False,
    workers: int | None = None,
    overwrite: bool = False,
    preview: bool = True,
    json: bool = False,
) -> None:
    """Generate videos with known events: H.264 files, a manifest, and a picture of what they look like.

    In each video a troupe of ellipses takes postures and moves, on a textured ground under changing light. The scene (9
    textures) is the video's class; posture (8) and motion (6) change together at every boundary between two events. The
    same command again does nothing, or goes on where it was interrupted. `probe`, `finetune`, `boundaries` and
    `localize` read such a manifest; the events of `probe vidsitu` and `finetune vidsitu` must be five.

    Examples::

        timegrain eventworld --out worlds/a --num-videos 800 --num-test-videos 600 --seed 1
        timegrain eventworld --out worlds/five --num-videos 400 --num-test-videos 600 --min-events 5 --max-events 5

    Args:
        out: The folder to fill.
        num_videos: Number of videos.
        seed: Another seed gives other videos.
        split: Name of the split; videos of two splits never agree, whatever their seeds.
        num_test_videos: Also generate this many videos of the split "test", in the same manifest.
        difficulty: calm, easy, medium or hard: contrast of the actors and of the ground, and how much else than the events
            changes inside a video (in calm, little).
        size: Height and width in pixels, even.
        num_frames: Frames of every video.
        fps: Frames per second.
        min_events: Fewest events of a video.
        max_events: Most events of a video; the number is uniform between the two.
        individual_postures: Give each ellipse a posture of its own, and the manifest a box around each, so that `timegrain
            localize` can learn who does what; people.csv holds boxes as a fair detector would find them.
        workers: Processes; all cores by default, 0 for none beside this one.
        overwrite: Replace another world in the folder.
        preview: Write preview.png.
        json: Print the summary as one JSON object.
    """
    began = time.perf_counter()
    config = world_config(
        difficulty, size=size, num_frames=num_frames, fps=fps, min_events=min_events, max_events=max_events,
        individual_postures=individual_postures,
    )  # fmt: skip
    manifest = write_world(
        out,
        num_videos,
        seed,
        split,
        config=config,
        num_test_videos=num_test_videos,
        workers=workers,
        overwrite=overwrite,
        preview=preview,
    )
    summary = _summary(manifest, difficulty, out, time.perf_counter() - began)
    if json:
        print(json_module.dumps(summary))
        return
    splits = ", ".join(f"{count} {name}" for name, count in summary["splits"].items())
    print(f"videos      {splits}: {num_frames} frames of {size}x{size} at {fps:g} fps, {summary['megabytes']:.1f} MB")
    print(f"events      {summary['num_events']} ({summary['events_per_video']:.1f} a video)")
    for name, unit in (("scenes", "videos"), ("postures", "events"), ("motions", "events")):
        counts = summary[name].values()
        print(f"{name:<11} {len(counts)}, of {min(counts)} to {max(counts)} {unit} each")
    print(f"difficulty  {difficulty}, seed {seed}, {summary['seconds']:.1f} s")
    print(f"manifest    {summary['manifest']}")
    if summary["preview"]:
        print(f"preview     {summary['preview']}")


def _summary(manifest: Manifest, difficulty: str, out: Path, seconds: float) -> dict[str, Any]:
    """What was made, for the printed summary and ``--json``."""
    rows = list(manifest)
    events = [event for row in rows for event in row.extra["events"]]
    return {
        "manifest": str(manifest.path),
        "preview": str(out / "preview.png") if (out / "preview.png").is_file() else None,
        "splits": manifest.splits,
        "num_events": len(events),
        "events_per_video": len(events) / len(rows),
        "scenes": dict(sorted(Counter(row.label or "" for row in rows).items())),
        "postures": dict(sorted(Counter(event["posture"] for event in events).items())),
        "motions": dict(sorted(Counter(event["motion"] for event in events).items())),
        "difficulty": difficulty,
        "megabytes": sum(os.path.getsize(row.path) for row in rows) / 1e6,
        "seconds": seconds,
    }
