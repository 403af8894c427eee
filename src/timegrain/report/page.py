"""One self-contained HTML page: words, tables and pictures, no script and no network."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from timegrain.files import atomic_path

Cell = tuple[str, str]


@dataclass
class Table:
    """A table; a row of one cell is a heading inside it.

    Args:
        header: Names of the columns.
        rows: Cells: what is said, and in small print what it rests on.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]


@dataclass
class Section:
    """A part of the page.

    Args:
        heading: Above it.
        paragraphs: Text.
        table: After the text.
        png: A picture, after the table.
        caption: What one sees in the picture.
        note: Whether the text is a warning.
    """

    heading: str = ""
    paragraphs: Sequence[str] = field(default_factory=list)
    table: Table | None = None
    png: bytes | None = None
    caption: str = ""
    note: bool = False

    @property
    def image(self) -> str:
        """The picture, as a data URI holds it."""
        return base64.b64encode(self.png).decode() if self.png else ""


def render_page(title: str, sections: Sequence[Section], out: Path) -> Path:
    """Write the page.

    Args:
        title: At the top.
        sections: In order.
        out: The file.

    Returns:
        ``out``.
    """
    environment = Environment(loader=PackageLoader("timegrain", "report"), autoescape=True, undefined=StrictUndefined)
    page = environment.get_template("page.html").render(title=title, sections=sections)
    with atomic_path(out) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return out
