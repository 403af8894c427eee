"""A picture of an EventWorld: a few videos along time with their events, and every posture, motion and scene."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from timegrain.data.eventworld_render import (
    MOTIONS,
    POSTURES,
    SCENES,
    EventWorldConfig,
    Script,
    Video,
    generate,
    write_script,
)
from timegrain.files import atomic_path

NUM_COLUMNS = 16
NUM_VIDEOS = 4


def save_preview(path: Path, config: EventWorldConfig, seed: int, split: str, num_videos: int) -> None:
    """Draw the first videos of a world.

    Args:
        path: The PNG file.
        config: The world.
        seed: Of the world.
        split: Of the world.
        num_videos: Draw from the first so many videos; kinds that do not occur in them are left out.
    """
    scripts = [write_script(config, seed, split, index) for index in range(num_videos)]

    @cache
    def video(index: int) -> Video:
        return generate(config, seed, split, index)

    heights = [1.75] * min(NUM_VIDEOS, num_videos) + [1.5, 1.6, 2.1]
    figure = Figure(figsize=(15, sum(heights)), layout="constrained")
    subfigures: Any = figure.subfigures(len(heights), 1, height_ratios=heights)
    for index, part in enumerate(subfigures[:-3]):
        _timeline(part, video(index), config)
    scene_axes = _titled(subfigures[-3], "scene: one per video", SCENES)
    posture_axes = _titled(subfigures[-2], "posture: one per event", POSTURES)
    motion_axes = _titled(subfigures[-1], "motion: one per event, with the paths of the last 20 frames", MOTIONS)
    for axis, scene in zip(scene_axes, SCENES, strict=True):
        for found in [number for number, script in enumerate(scripts) if script.scene == scene][:1]:
            axis.imshow(video(found).frames[config.num_frames // 2])
    for axis, posture in zip(posture_axes, POSTURES, strict=True):
        for index, first, last in _longest(scripts, "posture", posture, config.fps):
            axis.imshow(video(index).frames[(first + last) // 2])
    for axis, motion in zip(motion_axes, MOTIONS, strict=True):
        for index, first, last in _longest(scripts, "motion", motion, config.fps):
            _paths(axis, video(index), max(first, last - 20), last)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=80)


def _timeline(part: Any, video: Video, config: EventWorldConfig) -> None:
    """One video: frames over bars that name its events."""
    frames, bars = part.subplots(2, 1, height_ratios=[2.1, 1])
    duration = config.num_frames / config.fps
    shown = ((np.arange(NUM_COLUMNS) + 0.5) * config.num_frames / NUM_COLUMNS).astype(int)
    frames.imshow(np.concatenate(list(video.frames[shown]), axis=1), extent=(0, duration, 0, duration / NUM_COLUMNS))
    frames.set_title(f"{video.scene}, {len(video.events)} events", fontsize=8, loc="left", pad=2)
    frames.set_aspect("auto")
    frames.axis("off")
    colours = colormaps["tab20"]
    for event in video.events:
        width = event.end_seconds - event.start_seconds
        rows = ((event.posture, 1, POSTURES.index(event.posture)), (event.motion, 0, 10 + MOTIONS.index(event.motion)))
        for name, level, number in rows:
            bars.barh(
                level, width, 1, event.start_seconds, color=colours(number % 20), edgecolor="black", linewidth=0.8
            )
            text = name if width > duration / 9 else name.replace("-", "\n")
            bars.text(
                event.start_seconds + width / 2,
                level,
                text,
                ha="center",
                va="center",
                fontsize=6,
                linespacing=0.85,
                clip_on=True,
            )
    bars.set(xlim=(0, duration), ylim=(-0.5, 1.5), yticks=[])
    bars.tick_params(labelsize=6, length=2, pad=1)
    for side in bars.spines.values():
        side.set_visible(False)


def _longest(scripts: list[Script], field: str, kind: str, fps: float) -> list[tuple[int, int, int]]:
    """(video, first frame, last frame) of the longest event of a kind, transitions left out; empty where there is none."""
    found = []
    for index, script in enumerate(scripts):
        for event in script.events:
            if getattr(event, field) == kind:
                start, end = round(event.start_seconds * fps), round(event.end_seconds * fps)
                edge = min(3, (end - start - 1) // 2)
                found.append((index, start + edge, end - 1 - edge))
    return sorted(found, key=lambda event: event[1] - event[2])[:1]


def _titled(part: Any, title: str, kinds: tuple[str, ...]) -> list[Any]:
    """A row of empty axes, one for each kind."""
    part.suptitle(title, fontsize=9, x=0.01, ha="left")
    axes = list(part.subplots(1, len(kinds)))
    for axis, kind in zip(axes, kinds, strict=True):
        axis.axis("off")
        axis.set_title(kind, fontsize=7, pad=2)
    return axes


def _paths(axis: Any, video: Video, first: int, last: int) -> None:
    """The frame ``last``, and where each ellipse has been since ``first``."""
    axis.imshow(video.frames[last], extent=(-0.5, 0.5, 0.5, -0.5))
    for x, y in video.places[:, :, first : last + 1]:
        axis.plot(x, y, color="tab:orange", linewidth=1.2)
        axis.plot(x[-1], y[-1], "o", color="tab:red", markersize=4)
    axis.set(xlim=(-0.5, 0.5), ylim=(0.5, -0.5))
