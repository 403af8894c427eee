"""How all pictures look, and how they become bytes: drawn without a screen."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
from cycler import cycler

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

# Blue, orange, green, red, purple, brown of Paul Tol's "bright" and "muted" schemes: apart for colour-blind readers.
COLOURS = ("#4477AA", "#EE7733", "#228833", "#CC3311", "#AA3377", "#997700", "#33BBEE", "#666666")
RIGHT, WRONG = "#228833", "#CC3311"
INK = "#333333"
_STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": 8.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#999999",
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
    "axes.prop_cycle": cycler(color=COLOURS),
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "legend.frameon": False,
    "legend.fontsize": 8,
}


def to_png(figure: Figure) -> bytes:
    """The figure as PNG bytes; it is closed."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=130, bbox_inches="tight", pad_inches=0.06, facecolor="white")
    plt.close(figure)
    return buffer.getvalue()


@contextmanager
def style() -> Iterator[None]:
    """Inside this, figures are drawn in the house's style."""
    with mpl.rc_context(_STYLE):
        yield
