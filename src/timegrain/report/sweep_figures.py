"""Figures of sweeps: a score against a setting (Fig. 4, Fig. 5a), or over a grid of two (Fig. 5b)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from timegrain.report.drawing import COLOURS, INK, style, to_png

Series = Mapping[str, Mapping[str, Sequence[float]]]


def sweep_lines(
    series: Series,
    numbers: Mapping[str, float] | None,
    label: str,
    title: str,
    floors: Mapping[str, Mapping[str, float]] | None = None,
    published: Mapping[str, float] | None = None,
) -> bytes:
    """Scores against a setting: every seed a point, means joined, one standard deviation shaded.

    Args:
        series: By score, by setting, one value per seed.
        numbers: Where each setting stands on the axis; None spaces them evenly under their names.
        label: Of the axis.
        title: Above the picture.
        floors: By score, by floor, its mean: dotted lines.
        published: By setting, numbers of others: drawn as crosses in the first panel.
    """
    num_columns = min(3, len(series))
    num_rows = -(-len(series) // num_columns)
    with style():
        figure, grid = plt.subplots(num_rows, num_columns, figsize=(4.6 * num_columns, 3.1 * num_rows), squeeze=False)
        axes = grid.ravel()
        for axis in axes[len(series) :]:
            axis.remove()
        for axis, (score, settings) in zip(axes, series.items(), strict=False):
            places = numbers or {name: float(i) for i, name in enumerate(settings)}
            _panel(axis, settings, places, joined=numbers is not None)
            _floors(axis, (floors or {}).get(score, {}))
            if published and axis is axes[0]:
                there = {name: value for name, value in published.items() if name in places}
                axis.plot(
                    [places[name] for name in there], list(there.values()), "x", color=COLOURS[3], label="published"
                )
                axis.legend()
            if numbers is None:
                axis.set_xticks(list(places.values()), list(places), rotation=20, ha="right")
                axis.margins(x=0.15)
            axis.set_xlabel(label)
            axis.set_ylabel(score)
        figure.suptitle(title, fontsize=9.5, x=0.02, ha="left")
        figure.tight_layout()
        return to_png(figure)


def _floors(axis: Axes, floors: Mapping[str, float]) -> None:
    """A dotted line for each floor; of several that lie close together the highest is named."""
    named = np.inf
    for floor, value in sorted(floors.items(), key=lambda item: -item[1]):
        axis.axhline(value, color="#999999", lw=0.9, ls=":", zorder=0)
        low, high = axis.get_ylim()
        if named - value > 0.06 * (high - low):
            named = value
            axis.annotate(floor, (0.995, value), xycoords=("axes fraction", "data"), ha="right", va="bottom",
                          fontsize=7, color="#777777")  # fmt: skip


def _panel(axis: Axes, settings: Mapping[str, Sequence[float]], places: Mapping[str, float], joined: bool) -> None:
    names = sorted(settings, key=lambda name: places[name])
    x = np.array([places[name] for name in names])
    means = np.array([np.mean(settings[name]) for name in names])
    spread = np.array([np.std(settings[name], ddof=1) if len(settings[name]) > 1 else 0.0 for name in names])
    if joined:
        axis.fill_between(x, means - spread, means + spread, color=COLOURS[0], alpha=0.15, lw=0)
        axis.plot(x, means, color=COLOURS[0], lw=1.5)
    else:
        axis.errorbar(x, means, spread, fmt="_", color=INK, ms=16, elinewidth=4, ecolor="#cccccc", zorder=1)
    for place, name in zip(x, names, strict=True):
        axis.plot([place] * len(settings[name]), settings[name], "o", color=COLOURS[0], ms=4, mew=0, alpha=0.85)
    axis.grid(axis="y", color="#eeeeee", lw=0.7)
    axis.set_axisbelow(True)


def sweep_grid(series: Series, places: Mapping[str, tuple[float, float]], labels: tuple[str, str], title: str) -> bytes:
    """Scores over a grid of two settings: mean and standard deviation in each cell; cells without a run stay white.

    Args:
        series: By score, by setting, one value per seed.
        places: Column and row of each setting.
        labels: Of the columns' and the rows' axis.
        title: Above the picture.
    """
    columns, rows = (sorted({place[i] for place in places.values()}) for i in (0, 1))
    with style():
        size = (1.6 + 0.85 * len(columns)) * len(series), 1.4 + 0.55 * len(rows)
        figure, axes = plt.subplots(1, len(series), figsize=size, squeeze=False)
        for axis, (score, settings) in zip(axes[0], series.items(), strict=True):
            grid = np.full((len(rows), len(columns)), np.nan)
            for name, values in settings.items():
                column, row = columns.index(places[name][0]), rows.index(places[name][1])
                grid[row, column] = np.mean(values)
            axis.imshow(grid, cmap="Blues", aspect="auto", origin="lower", alpha=0.5)
            for name, values in settings.items():
                spot = columns.index(places[name][0]), rows.index(places[name][1])
                spread = f"\n± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
                axis.text(*spot, f"{np.mean(values):.3f}{spread}", ha="center", va="center", fontsize=7, color=INK)
            axis.set_xticks(range(len(columns)), [f"{value:g}" for value in columns])
            axis.set_yticks(range(len(rows)), [f"{value:g}" for value in rows])
            axis.set_xlabel(labels[0])
            axis.set_ylabel(labels[1])
            axis.set_title(score)
        figure.suptitle(title, fontsize=9.5, x=0.02, ha="left")
        figure.tight_layout()
        return to_png(figure)
