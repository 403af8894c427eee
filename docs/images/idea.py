"""Draws idea.png, the picture of README: `python docs/images/idea.py`."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

LONG, SHORT, FINE, PERSISTENT, INK = "#3b6ea5", "#d9822b", "#2e8b6f", "#8a5a9e", "#222222"
figure, axes = plt.subplots(figsize=(10, 5.2), dpi=130)
axes.set(xlim=(0, 100), ylim=(-2, 52))
axes.axis("off")


def box(x, y, width, height, text, colour):
    axes.add_patch(FancyBboxPatch((x, y), width, height, boxstyle="round,pad=0.4", fc=colour, ec="none", alpha=0.16))
    axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=9, color=INK)


def arrow(start, end, colour=INK, **style):
    axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=11, color=colour, lw=1.2, **style))


def cells(x, y, count, width, colour, height=2.6):
    for index in range(count):
        shade = 0.35 + 0.5 * index / max(1, count - 1)
        axes.add_patch(Rectangle((x + index * width, y), width * 0.8, height, fc=colour, alpha=shade))


# The video, and the two clips of it
times = np.arange(0, 96, 1.5)
for x in times:
    axes.add_patch(Rectangle((2 + x, 46), 1.2, 4, fc="#c9ced6"))
for x in times[8:56:3]:
    axes.add_patch(Rectangle((2 + x, 46), 1.2, 4, fc=LONG))
for x in times[26:42:2]:
    axes.add_patch(Rectangle((2 + x, 46), 1.2, 2, fc=SHORT))
axes.text(0, 51, "one video", fontsize=9, color=INK)
axes.text(98, 51, "long clip: 32 frames, stride 4", ha="right", fontsize=9, color=LONG)
axes.text(98, 43.6, "short clip inside it: 16 frames, stride 2", ha="right", fontsize=9, color=SHORT)
arrow((24, 45.4), (24, 41.4), LONG)
arrow((54, 45.4), (54, 41.4), SHORT)

box(14, 37.4, 62, 3.2, "R3D backbone that keeps time", INK)
arrow((24, 36.6), (24, 34.4), LONG)
arrow((54, 36.6), (54, 34.4), SHORT)
cells(14, 31, 16, 1.3, LONG)
cells(48.8, 31, 8, 1.3, SHORT)
axes.text(61, 31.4, "features: one per time step", fontsize=9, color=INK)

# Two heads
arrow((30, 30.4), (22, 27.4), FINE)
arrow((50, 30.4), (73, 27.4), PERSISTENT)
box(6, 22, 30, 4.6, "fine head, per time step,\npooled to m = 4 (long), n = 1 (short)", FINE)
box(59, 22, 32, 4.6, "persistent head, on the mean over time\nn = m = 1", PERSISTENT)
cells(8, 16.4, 4, 7, LONG, 3)
cells(18.5, 10.4, 1, 7, SHORT, 3)
arrow((21.3, 13.6), (24.2, 16.2), FINE)
axes.text(27.5, 13.9, "matched: nearest mean frame", fontsize=8.5, color=FINE)
cells(72, 16.4, 1, 7, LONG, 3)
cells(72, 10.4, 1, 7, SHORT, 3)
arrow((74.8, 13.6), (74.8, 16.2), PERSISTENT)
axes.text(21, 6.6, "L$_f$  (what happens, and when)", ha="center", fontsize=10, color=FINE)
axes.text(75, 6.6, "L$_p$  (what the video is)", ha="center", fontsize=10, color=PERSISTENT)
axes.text(50, 0.6, r"L  =  $\alpha$ L$_f$ + (1 $-$ $\alpha$) L$_p$", ha="center", fontsize=13, color=INK)
axes.text(50, -2, r"$\alpha$ = 0: TeG-PS        $\alpha$ = 0.9: TeG-FG", ha="center", fontsize=9, color=INK)
figure.savefig(Path(__file__).with_suffix(".png"), bbox_inches="tight", facecolor="white")
