"""How much of a benchmark a manifest covers, in words: the lines that every result of it prints."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_WORDS = {"train": "training", "val": "validation"}


def coverage_lines(coverage: Mapping[str, Any] | None, folder: Path | None = None) -> list[str]:
    """What ``Manifest.coverage`` says, a line per split: how many of the listed videos can be used.

    Args:
        coverage: As ``timegrain prepare`` records it: ``benchmark``, ``splits`` (for each split ``listed``, ``found``
            and ``usable``), ``missing_list``.
        folder: Of the manifest, put before the name of the list of missing videos.

    Returns:
        Lines such as "kinetics400: 19,404 of 19,906 validation videos (97.47 %); missing list in m.missing.csv"; none
        for a manifest that was not made from a benchmark's annotation files.
    """
    if not coverage or not isinstance(coverage.get("splits"), Mapping):
        return []
    lines = []
    for name, counts in coverage["splits"].items():
        share = math.floor(10_000 * counts["usable"] / counts["listed"]) / 100  # what is not whole is never 100
        line = f"{coverage.get('benchmark', 'videos')}: {counts['usable']:,} of {counts['listed']:,} "
        line += f"{_WORDS.get(name, name)} videos ({share:.2f} %)"
        broken = counts["found"] - counts["usable"]
        if broken:
            line += f", {broken:,} more {'is' if broken == 1 else 'are'} broken"
        if counts["found"] < counts["listed"] and coverage.get("missing_list"):
            missing = coverage["missing_list"]
            line += f"; missing list in {missing if folder is None else folder / missing}"
        lines.append(line)
    return lines
