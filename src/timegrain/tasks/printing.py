"""What the commands ``score`` and ``floors`` print: one JSON object, or lines and tables to read."""

from __future__ import annotations

import json as json_module
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from timegrain.data.coverage import coverage_lines


def report(result: dict[str, Any], lines: Iterable[str], json: bool) -> None:
    """Print a result: as one JSON object, or as lines to read.

    Args:
        result: Plain values; no NaN.
        lines: What a reader wants to see of it.
        json: Which of the two.
    """
    print(json_module.dumps(result, indent=2, allow_nan=False) if json else "\n".join(lines))


def warn(message: str) -> None:
    """Print a warning on standard error."""
    print(f"warning: {message}", file=sys.stderr)


def table(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> list[str]:
    """Lines of a table: the name of each row, some of its values, and on which labels its constants were chosen."""

    def text(value: Any) -> str:
        return "-" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)

    cells = [["", *columns, "chosen on"]]
    cells += [[row["name"], *(text(row.get(name)) for name in columns), row.get("chosen_on", "-")] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]


def coverage_text(coverage: dict[str, Any] | None, manifest: Path | None) -> list[str]:
    """The lines of :func:`timegrain.data.coverage.coverage_lines` for the manifest at a path; none without one."""
    return coverage_lines(coverage, manifest.parent if manifest is not None else None)
