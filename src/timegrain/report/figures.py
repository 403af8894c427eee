"""Pictures for reports: PNG bytes, drawn without a screen."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from timegrain.report.drawing import COLOURS, INK, RIGHT, WRONG, style, to_png

Array = npt.NDArray[np.floating]
Picture = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Neighbours:
    """A query and what was found for it.

    Attributes:
        query: Its picture (h, w, 3) and its class, or its name where there are no classes.
        found: Picture and class or name of each neighbour, nearest first.
    """

    query: tuple[Picture, str]
    found: Sequence[tuple[Picture, str]]


def cosine_matrix(features: Array) -> Array:
    """Cosine of every pair of time steps about their mean: (T, D) to (T, T)."""
    centred = features - features.mean(0)
    unit = centred / (np.linalg.norm(centred, axis=1, keepdims=True) + 1e-12)
    product: Array = unit @ unit.T
    return product


def self_similarity(
    matrix: Array,
    start_seconds: Array,
    duration_seconds: float,
    frames: Sequence[Picture] = (),
    *,
    boundaries_seconds: Sequence[float] = (),
    title: str = "",
) -> bytes:
    """One video's self-similarity matrix, its frames along both sides, time in seconds (the paper's Fig. 3).

    Args:
        matrix: (N, N) similarity of time steps; colours span its values off the diagonal.
        start_seconds: (N,) when each time step begins.
        duration_seconds: Of the video.
        frames: Evenly spaced frames, each standing for an equal part of the video.
        boundaries_seconds: Times to mark.
        title: Above the picture.

    Raises:
        ValueError: The matrix does not fit the times.
    """
    if matrix.shape != (len(start_seconds), len(start_seconds)):
        raise ValueError(f"a matrix of shape {matrix.shape} does not fit {len(start_seconds)} time steps")
    edges = np.append(start_seconds, duration_seconds)
    apart = matrix[~np.eye(len(matrix), dtype=bool)] if len(matrix) > 1 else matrix
    low, high = np.percentile(apart, [1, 99])
    side = 5.0
    cell = side / max(1, len(frames))
    aspect = frames[0].shape[1] / frames[0].shape[0] if frames else 1.0
    across, down = (cell / aspect, min(1.2, cell * aspect)) if frames else (0.0, 0.0)
    with style():
        figure = plt.figure(figsize=(down + side + 0.6, across + side))
        width, height = figure.get_size_inches()
        box = (down / width, 0.0, side / width, side / height)
        main = figure.add_axes(box)
        mesh = main.pcolormesh(edges, edges, matrix, cmap="viridis", vmin=low, vmax=max(high, low + 1e-6))
        main.set_xlim(0, duration_seconds)
        main.set_ylim(duration_seconds, 0)
        main.set_xlabel("seconds")
        for boundary in boundaries_seconds:
            main.axvline(boundary, color="white", lw=0.8, ls=":")
            main.axhline(boundary, color="white", lw=0.8, ls=":")
        if frames:
            top = figure.add_axes((box[0], side / height, box[2], across / height), sharex=main)
            left = figure.add_axes((0.0, 0.0, down / width, side / height), sharey=main)
            part = duration_seconds / len(frames)
            for number, frame in enumerate(frames):
                begin, end = number * part, (number + 1) * part
                top.imshow(frame, extent=(begin, end, 0, 1), aspect="auto")
                left.imshow(frame, extent=(0, 1, end, begin), aspect="auto")
            top.set_xlim(0, duration_seconds)
            left.set_ylim(duration_seconds, 0)
            top.axis("off")
            left.axis("off")
            main.tick_params(labelleft=False, left=False)
        else:
            main.set_ylabel("seconds")
        bar = figure.colorbar(mesh, cax=figure.add_axes(((down + side + 0.12) / width, 0.0, 0.12 / width, box[3])))
        bar.outline.set_visible(False)
        bar.set_label("cosine similarity of the time steps")
        if title:
            figure.text(box[0], 1.0 + 0.05 / height, title, fontsize=10, ha="left", va="bottom")
        return to_png(figure)


def run_losses(runs: Mapping[str, Path]) -> dict[str, tuple[Array, Array, float]]:
    """The losses that pre-training runs wrote to their ``metrics.csv``, as :func:`loss_curves` takes them.

    Args:
        runs: By name, the folder of a run or its ``metrics.csv``.

    Returns:
        By ``name: loss`` (one entry for each loss of a run's objective): steps, loss, chance loss.

    Raises:
        FileNotFoundError: A run has no ``metrics.csv``.
        ValueError: The file holds no loss.
    """
    curves: dict[str, tuple[Array, Array, float]] = {}
    for name, path in runs.items():
        path = path / "metrics.csv" if path.is_dir() else path
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        parts = [column[: -len("/loss")] for column in (rows[0] if rows else {}) if column.endswith("/loss")]
        if not parts:
            raise ValueError(f"{path} holds no loss yet")
        for part in parts:
            known = [row for row in rows if row[f"{part}/loss"]]
            steps, loss = (np.array([float(row[column]) for row in known]) for column in ("step", f"{part}/loss"))
            curves[f"{name}: {part}"] = (steps, loss, float(known[0][f"{part}/chance_loss"]))
    return curves


def loss_curves(curves: Mapping[str, tuple[Array, Array, float]]) -> bytes:
    """Training losses as a share of the loss of guessing, so that different numbers of negatives compare.

    Args:
        curves: By name: steps, loss, chance loss.
    """
    with style():
        figure, axis = plt.subplots(figsize=(5.4, 2.5))
        for name, (steps, loss, chance) in curves.items():
            values = np.asarray(loss) / chance
            (line,) = axis.plot(steps, _smooth(values), label=name, lw=1.4)
            if len(values) > 40:
                axis.plot(steps, values, color=line.get_color(), lw=0.5, alpha=0.3)
        axis.axhline(1, color="#999999", lw=0.8, ls=":")
        axis.set_xlabel("step")
        axis.set_ylabel("loss / loss of guessing")
        axis.set_ylim(bottom=0)
        axis.legend(loc="upper left", bbox_to_anchor=(-0.02, -0.2), ncols=2)
        return to_png(figure)


def _smooth(values: Array) -> Array:
    """Moving average over a fortieth of a long curve; as it is where it is short."""
    width = len(values) // 40
    if width < 2:
        return values
    padded = np.pad(values, (width // 2, width - 1 - width // 2), mode="edge")
    smoothed: Array = np.convolve(padded, np.full(width, 1 / width), mode="valid")
    return smoothed


def boundary_timelines(
    videos: Sequence[tuple[Sequence[float], Mapping[str, tuple[Array, Array, Sequence[float]]], float]],
) -> bytes:
    """True boundaries, probabilities and detections, one panel per video.

    Args:
        videos: Per video: true boundaries, then by method (times, probabilities, detections), then the duration.
    """
    with style():
        figure, axes = plt.subplots(len(videos), 1, figsize=(5.4, 1.1 * len(videos)), squeeze=False)
        for axis, (truth, methods, duration) in zip(axes[:, 0], videos, strict=True):
            for boundary in truth:
                axis.axvspan(boundary - 0.05 * duration, boundary + 0.05 * duration, color="#eeeeee", lw=0)
                axis.axvline(boundary, color=INK, lw=1)
            for position, (name, (times, probability, found)) in enumerate(methods.items()):
                colour = COLOURS[position % len(COLOURS)]
                axis.plot(times, probability, color=colour, lw=1.2, label=name)
                axis.plot(found, [1.1 + 0.16 * position] * len(found), "v", color=colour, ms=4.5, mew=0)
            axis.set_xlim(0, duration)
            axis.set_ylim(0, 1.1 + 0.16 * len(methods))
            axis.set_yticks([0, 1])
        axes[0, 0].legend(loc="lower left", ncols=4, bbox_to_anchor=(0, 1.0))
        axes[-1, 0].set_xlabel("seconds")
        figure.tight_layout()
        return to_png(figure)


def nearest_neighbours(rows: Sequence[Neighbours], labelled: bool = True) -> bytes:
    """Queries with their nearest neighbours: a green frame and a tick for the query's class, red and a cross for another.

    Args:
        rows: One per query, all with the same number of neighbours.
        labelled: Whether classes are told; else frames and names are plain.
    """
    columns = 2 + max(len(row.found) for row in rows)  # the query, a gap, the neighbours
    shape = rows[0].query[0].shape
    cell_width, cell_height = 1.25, 1.25 * shape[0] / shape[1]
    with style():
        figure, axes = plt.subplots(
            len(rows), columns, figsize=(cell_width * columns - 1, (cell_height + 0.24) * len(rows)), squeeze=False,
            gridspec_kw={"width_ratios": [1, 0.1] + [1] * (columns - 2), "wspace": 0.06, "hspace": 0.26},
        )  # fmt: skip
        for line, row in zip(axes, rows, strict=True):
            picture, label = row.query
            _thumbnail(line[0], picture, label, INK)
            for axis, (picture, found) in zip(line[2:], row.found, strict=False):
                right = found == label
                text = f"{'✓' if right else '✗'} {found}" if labelled else found
                _thumbnail(axis, picture, text, (RIGHT if right else WRONG) if labelled else INK)
            for axis in (line[1], *line[2 + len(row.found) :]):
                axis.axis("off")
        for axis, text in zip(axes[0], ["query", "", "nearest", *(f"{i}." for i in range(2, columns))], strict=False):
            axis.set_title(text, fontsize=8.5, color="#777777", pad=5)
        return to_png(figure)


def _thumbnail(axis: Axes, picture: Picture, text: str, colour: str) -> None:
    height, width = picture.shape[:2]
    axis.imshow(picture)
    axis.add_patch(Rectangle((-0.5, -0.5), width, height, fill=False, ec=colour, lw=2.4, clip_on=False))
    axis.set_xlabel(text, fontsize=7.5, color=colour, labelpad=3)
    axis.set_xticks([])
    axis.set_yticks([])
    axis.spines[:].set_visible(False)


def points(scores: Mapping[str, Sequence[float]], label: str, references: Mapping[str, float] | None = None) -> bytes:
    """Scores by method: every seed a point, their mean a bar across, their standard deviation a line.

    Args:
        scores: By method, one score per seed; drawn from top to bottom.
        label: What is measured, for the axis.
        references: Values to mark by a dotted line, such as that of guessing.
    """
    with style():
        figure, axis = plt.subplots(figsize=(6.4, 0.55 + 0.34 * len(scores)))
        for position, values in enumerate(scores.values()):
            mean = float(np.mean(values))
            if len(values) > 1:
                spread = float(np.std(values, ddof=1))
                axis.plot([mean - spread, mean + spread], [position] * 2, color="#bbbbbb", lw=5, solid_capstyle="butt")
            axis.plot([mean] * 2, [position - 0.28, position + 0.28], color=INK, lw=1.6)
            axis.plot(values, [position] * len(values), "o", color=COLOURS[0], ms=4.5, mew=0, alpha=0.85)
        for name, value in (references or {}).items():
            axis.axvline(value, color="#999999", lw=0.8, ls=":", zorder=0)
            axis.text(value, -0.75, name, ha="center", va="bottom", fontsize=7, color="#777777")
        axis.set_yticks(range(len(scores)), list(scores))
        axis.set_ylim(len(scores) - 0.5, -0.6)
        axis.set_xlabel(label)
        axis.spines["left"].set_visible(False)
        axis.tick_params(left=False)
        axis.grid(axis="x", color="#eeeeee", lw=0.7)
        axis.set_axisbelow(True)
        return to_png(figure)
