"""Pictures for reports: PNG bytes, drawn without a screen."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
import numpy.typing as npt

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

Array = npt.NDArray[np.floating]


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110, bbox_inches="tight", facecolor="white")
    plt.close(figure)
    return buffer.getvalue()


def cosine_matrix(features: Array) -> Array:
    """Cosine of every pair of time steps about their mean: (T, D) to (T, T)."""
    centred = features - features.mean(0)
    unit = centred / (np.linalg.norm(centred, axis=1, keepdims=True) + 1e-12)
    product: Array = unit @ unit.T
    return product


def similarity_rows(
    videos: Sequence[tuple[npt.NDArray[np.uint8], Mapping[str, Array], Sequence[float], float]],
) -> bytes:
    """Self-similarity matrices under their frames, one row per video, one column per kind of features (Fig. 3).

    Args:
        videos: Per video: frames (T, H, W, 3), features (steps, D) by name, true boundaries in seconds, duration.
    """
    columns = len(videos[0][1])
    figure, axes = plt.subplots(
        2 * len(videos), columns, figsize=(2.7 * columns, 3.2 * len(videos)),
        gridspec_kw={"height_ratios": [1, 5] * len(videos), "hspace": 0.08, "wspace": 0.1}, squeeze=False,
    )  # fmt: skip
    for row, (frames, features, boundaries, duration) in enumerate(videos):
        strip = np.concatenate(list(frames[np.linspace(0, len(frames) - 1, 8).round().astype(int)]), 1)
        for column, (name, values) in enumerate(features.items()):
            top, main = axes[2 * row, column], axes[2 * row + 1, column]
            top.imshow(strip, aspect="auto", extent=(0, duration, 0, 1))
            top.set_xlim(0, duration)
            top.axis("off")
            if row == 0:
                top.set_title(name, fontsize=9)
            main.imshow(
                cosine_matrix(values), vmin=-1, vmax=1, cmap="RdBu_r", extent=(0, duration, duration, 0), aspect="auto"
            )
            for boundary in boundaries:
                main.axvline(boundary, color="black", lw=0.6, ls=":")
                main.axhline(boundary, color="black", lw=0.6, ls=":")
            main.tick_params(labelsize=7)
            if column:
                main.set_yticklabels([])
    return _png(figure)


def loss_curves(curves: Mapping[str, tuple[Array, Array, float]]) -> bytes:
    """Training losses as a share of the loss of guessing, so that different numbers of negatives compare.

    Args:
        curves: By name: steps, loss, chance loss.
    """
    figure, axis = plt.subplots(figsize=(6.4, 3))
    for name, (steps, loss, chance) in curves.items():
        axis.plot(steps, np.asarray(loss) / chance, label=name, lw=1.2)
    axis.axhline(1, color="grey", lw=0.8, ls=":")
    axis.set_xlabel("step")
    axis.set_ylabel("loss / loss of guessing")
    axis.legend(fontsize=8, frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    return _png(figure)


def boundary_timelines(
    videos: Sequence[tuple[Sequence[float], Mapping[str, tuple[Array, Array, Sequence[float]]], float]],
) -> bytes:
    """True boundaries, probabilities and detections, one panel per video.

    Args:
        videos: Per video: true boundaries, then by method (times, probabilities, detections), then the duration.
    """
    figure, axes = plt.subplots(len(videos), 1, figsize=(7.4, 1.5 * len(videos)), squeeze=False)
    colours = [f"C{i}" for i in range(10)]
    for axis, (truth, methods, duration) in zip(axes[:, 0], videos, strict=True):
        for boundary in truth:
            axis.axvspan(boundary - 0.05 * duration, boundary + 0.05 * duration, color="0.9", lw=0)
            axis.axvline(boundary, color="black", lw=1)
        for position, (name, (times, probability, found)) in enumerate(methods.items()):
            axis.plot(times, probability, color=colours[position], lw=1, label=name)
            axis.plot(found, [1.08 + 0.12 * position] * len(found), "v", color=colours[position], ms=4)
        axis.set_xlim(0, duration)
        axis.set_ylim(0, 1.1 + 0.12 * len(methods))
        axis.set_yticks([0, 1])
        axis.tick_params(labelsize=7)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].legend(fontsize=7, frameon=False, loc="lower right", ncols=4, bbox_to_anchor=(1, 1))
    axes[-1, 0].set_xlabel("seconds", fontsize=8)
    figure.tight_layout()
    return _png(figure)
