"""The demo's own pictures, narrow enough to be read on a phone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from timegrain.demo.reading import CEILINGS, FINE, FLOORS, LEARNED, PERSISTENT, SCORES, Results, difference
from timegrain.report.drawing import COLOURS, INK, style, to_png
from timegrain.report.figures import cosine_matrix

WIDTH = 5.4  # inches; text of 8 points is then some 8 pixels on a phone, and 11 on a screen
BLUE, ORANGE, GREY, LIGHT = COLOURS[0], COLOURS[1], "#9a9a9a", "#bbbbbb"
OF_GROUP = {"learned without labels": BLUE, "trained with labels (ceiling)": COLOURS[2], "floor": GREY}

Frames = npt.NDArray[np.uint8]


def paired_differences(results: Results) -> bytes:
    """FG minus PS, one point per world and score, with the mean: to the right FG is ahead, to the left PS.

    Args:
        results: By score and method, one value per world.
    """
    with style():
        figure, axis = plt.subplots(figsize=(WIDTH, 2.9))
        found = [difference(results, score.key, FINE, PERSISTENT) for score in SCORES]
        # a gap between the scores inside a video and those about the whole
        rows = [index + 0.9 * (not score.inside) for index, score in enumerate(SCORES)]
        for row, gap, score in zip(rows, found, SCORES, strict=True):
            colour = ORANGE if score.inside else BLUE
            axis.plot([0, gap.mean], [row, row], color=colour, lw=6, alpha=0.25, solid_capstyle="butt")
            axis.plot([gap.mean] * 2, [row - 0.3, row + 0.3], color=colour, lw=2)
            axis.plot(gap.values, [row] * len(gap.values), "o", color=colour, ms=5, mew=0.8, mec="white")
        reach = 1.15 * max(0.02, *(abs(value) for gap in found for value in gap.values))
        axis.axvline(0, color=INK, lw=0.9)
        axis.set_xlim(-reach, reach)
        axis.set_ylim(rows[-1] + 0.6, -0.9)
        axis.set_yticks(rows, [score.name for score in SCORES])
        for row, text in ((-0.6, "inside the video"), (rows[3] - 0.6, "the video as a whole")):
            axis.text(-reach, row, text, fontsize=7.5, color="#777777", va="center", style="italic")
        axis.set_xlabel("←  persistent (PS) ahead        TeG-FG minus TeG-PS        fine-grained (FG) ahead  →")
        axis.spines["left"].set_visible(False)
        axis.tick_params(axis="y", left=False)
        axis.grid(axis="x", color="#eeeeee", lw=0.7)
        axis.set_axisbelow(True)
        return to_png(figure)


def score_panels(results: Results, fixed: Mapping[str, Sequence[float]], keys: Sequence[str]) -> bytes:
    """Scores of all methods, a panel each: worlds as points, their mean as a bar; floors and ceilings set apart.

    Args:
        results: By score and method, one value per world.
        fixed: By score, what an answer that looks at no pixel reaches, one value per world.
        keys: Which scores, from top to bottom.
    """
    names = {score.key: score.name for score in SCORES}
    methods = [[name for name in group if name in results[keys[0]]] for group in (LEARNED, CEILINGS, FLOORS)]
    rows: dict[str, float] = {}
    for number, group in enumerate(methods):
        for name in group:
            rows[name] = len(rows) + 0.6 * number
    height = 0.42 + 0.2 * len(rows)
    with style():
        figure, axes = plt.subplots(len(keys), 1, figsize=(WIDTH, (height + 0.42) * len(keys)), squeeze=False)
        for axis, key in zip(axes[:, 0], keys, strict=True):
            for colour, group in zip(OF_GROUP.values(), methods, strict=True):
                for name in group:
                    values = results[key][name]
                    axis.barh(rows[name], np.mean(values), 0.72, color=colour, alpha=0.3, lw=0)
                    axis.plot(values, [rows[name]] * len(values), "o", color=colour, ms=4, mew=0.6, mec="white")
                    label = f"{np.mean(values):.2f}".lstrip("0")
                    axis.text(max(values) + 0.012, rows[name], label, va="center", fontsize=7.5, color=INK)
            if key in fixed:
                value = float(np.mean(fixed[key]))
                axis.axvline(value, color=INK, lw=0.8, ls=":")
                axis.text(value, -0.75, "without looking", ha="center", va="bottom", fontsize=7, color="#777777")
            axis.set_yticks(list(rows.values()), list(rows))
            axis.set_ylim(max(rows.values()) + 0.5, -0.6)
            axis.set_xlim(0, 1.04)
            axis.set_title(names[key], loc="left", fontweight="bold", pad=12)
            axis.spines["left"].set_visible(False)
            axis.tick_params(axis="y", left=False)
            axis.grid(axis="x", color="#eeeeee", lw=0.7)
            axis.set_axisbelow(True)
        handles = [Patch(color=colour, alpha=0.5, lw=0, label=name) for name, colour in OF_GROUP.items()]
        figure.legend(handles=handles, loc="lower center", ncols=3, bbox_to_anchor=(0.5, 1.0), fontsize=7.5)
        figure.tight_layout(h_pad=1.2)
        return to_png(figure)


def video_strips(videos: Sequence[tuple[Frames, Sequence[tuple[float, float, str]], float, str]]) -> bytes:
    """Videos along time, with the names of their events under the frames.

    Args:
        videos: Per video: frames (T, H, W, 3), events (start, end, name) in seconds, duration, and the video's class.
    """
    kinds = sorted({name for _, events, _, _ in videos for _, _, name in events})
    colours = dict(zip(kinds, plt.get_cmap("Pastel2")(np.arange(len(kinds)) % 8), strict=True))
    with style():
        figure, axes = plt.subplots(
            2 * len(videos), 1, figsize=(WIDTH, 0.98 * len(videos)), squeeze=False,
            gridspec_kw={"height_ratios": [2.3, 1] * len(videos), "hspace": 0.5},
        )  # fmt: skip
        for (frames, events, duration, scene), top, bar in zip(videos, axes[::2, 0], axes[1::2, 0], strict=True):
            _strip(top, frames, duration, 10)
            top.set_title(f"video class: {scene}", loc="left", fontsize=7.5, pad=2)
            for start, end, name in events:
                bar.barh(0, end - start, 1, start, color=colours[name], edgecolor="white", lw=1.2)
                text = name.replace("-", "\n")
                bar.text(
                    (start + end) / 2, 0, text, ha="center", va="center", fontsize=5.6, linespacing=0.9, clip_on=True
                )
            bar.set_xlim(0, duration)
            bar.axis("off")
            box, above = bar.get_position(), top.get_position()  # the bar touches its frames
            bar.set_position((box.x0, above.y0 - box.height, box.width, box.height))
        return to_png(figure)


def similarity_panels(
    frames: Frames, features: Mapping[str, npt.NDArray[np.floating]], boundaries: Sequence[float], duration: float
) -> bytes:
    """One video's self-similarity matrices under its frames, three in a row (the paper's Fig. 3).

    Args:
        frames: (T, H, W, 3) uint8.
        features: (steps, D) by name.
        boundaries: True boundaries, in seconds.
        duration: In seconds.
    """
    lines = -(-len(features) // 3)
    with style():
        figure, axes = plt.subplots(
            2 * lines, 3, figsize=(WIDTH, 2.22 * lines), squeeze=False,
            gridspec_kw={"height_ratios": [1, 5] * lines, "hspace": 0.3, "wspace": 0.09},
        )  # fmt: skip
        for axis in axes.flat:
            axis.axis("off")
        for number, (name, values) in enumerate(features.items()):
            line, column = divmod(number, 3)
            top, main = axes[2 * line, column], axes[2 * line + 1, column]
            top.set_title(name, fontsize=8, pad=3)
            _strip(top, frames, duration, 5)
            main.axis("on")
            extent = (0, duration, duration, 0)
            main.imshow(cosine_matrix(values), vmin=-1, vmax=1, cmap="RdBu_r", extent=extent, aspect="auto")
            for boundary in boundaries:
                main.axvline(boundary, color="black", lw=0.6, ls=":")
                main.axhline(boundary, color="black", lw=0.6, ls=":")
            main.set_yticks([])
            main.set_xticks(range(int(duration) + 1))
            box, above = main.get_position(), top.get_position()  # the frames touch their matrix
            main.set_position((box.x0, above.y0 - box.height, box.width, box.height))
        return to_png(figure)


def _strip(axis: Axes, frames: Frames, duration: float, count: int) -> None:
    """Evenly spaced frames side by side, each in the middle of the time it stands for."""
    shown = ((np.arange(count) + 0.5) / count * len(frames)).astype(int)
    axis.imshow(np.concatenate(list(frames[shown]), 1), aspect="auto", extent=(0, duration, 0, 1))
    axis.set_xlim(0, duration)
    axis.axis("off")
