"""One self-contained HTML page: words, tables and pictures, no script and no network; for screens, phones and paper."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev

from jinja2 import Environment, PackageLoader, StrictUndefined

from timegrain.files import atomic_path

Cell = tuple[str, str]


@dataclass
class Table:
    """A table; a row of one cell is a heading inside it.

    Args:
        header: Names of the columns.
        rows: Cells: what is said, and in small print what it rests on. The first cell of a row names it.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) not in (1, len(self.header)):
                raise ValueError(f"a row of {len(row)} cells under {len(self.header)} columns: {row[0][0]!r}")


@dataclass
class Section:
    """A part of the page.

    Args:
        heading: Above it; what is clicked on where it is collapsed.
        paragraphs: Text.
        table: After the text.
        png: A picture, after the table.
        caption: What one sees in the picture.
        note: Whether the text is a warning.
        bullets: Points, after the text.
        code: Commands or settings, at the end.
        collapsed: Show only the heading until the reader opens it; for details.
        level: 2 for a part of the page, 3 for a part of the part above.
    """

    heading: str = ""
    paragraphs: Sequence[str] = field(default_factory=list)
    table: Table | None = None
    png: bytes | None = None
    caption: str = ""
    note: bool = False
    bullets: Sequence[str] = field(default_factory=list)
    code: str = ""
    collapsed: bool = False
    level: int = 2

    @property
    def image(self) -> str:
        """The picture, as a data URI holds it."""
        return base64.b64encode(self.png).decode() if self.png else ""

    @property
    def anchor(self) -> str:
        """Where links in the page lead."""
        return re.sub(r"\W+", "-", self.heading.lower()).strip("-")


def score_cell(values: Sequence[float], digits: int = 3) -> Cell:
    """Mean ± standard deviation, and in small print the value of each seed; one value stands alone."""
    if not values:
        return "", ""
    if len(values) == 1:
        return f"{values[0]:.{digits}f}", ""
    spread = f"{mean(values):.{digits}f} ± {stdev(values):.{digits}f}"
    return spread, " ".join(f"{value:.{digits}f}" for value in values)


def render_page(title: str, sections: Sequence[Section], out: Path, *, lead: str = "", footer: str = "") -> Path:
    """Write the page.

    Args:
        title: At the top.
        sections: In order.
        out: The file.
        lead: A sentence under the title.
        footer: Small print at the end.

    Returns:
        ``out``.
    """
    environment = Environment(loader=PackageLoader("timegrain", "report"), autoescape=True, undefined=StrictUndefined)
    contents = [section for section in sections if section.heading and not section.collapsed and section.level == 2]
    template = environment.get_template("page.html")
    page = template.render(title=title, sections=sections, contents=contents, lead=lead, footer=footer)
    with atomic_path(out) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return out
