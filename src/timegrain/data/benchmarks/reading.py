"""Rows of the official annotation files, with the line that each came from."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Sequence
from pathlib import Path


def read_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Rows of a comma-separated file that aren't empty, with their line numbers; any mixture of line ends.

    Raises:
        ValueError: If it isn't text.
    """
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file)
        try:
            for row in reader:
                if any(cell.strip() for cell in row):
                    yield reader.line_num, [cell.strip() for cell in row]
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{path}, after line {reader.line_num}: not a text file of rows: {error}") from error


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines of a text file that aren't empty, with their numbers; any mixture of line ends.

    Raises:
        ValueError: If it isn't text.
    """
    try:
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text file: {error}") from error
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            yield number, line.strip()


def as_number(text: str, name: str, path: Path, line: int) -> float:
    """A finite number.

    Raises:
        ValueError: If the text isn't one; the message names file, line and column.
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{path}, line {line}: {name} {text!r:.60} is not a finite number")
    return value


def check_new(key: object, line: int, lines: dict[object, int], path: Path) -> None:
    """Note that ``key`` stands in this line.

    Raises:
        ValueError: If it stood in an earlier one.
    """
    if key in lines:
        raise ValueError(f"{path}, line {line}: {key} is listed in line {lines[key]} already")
    lines[key] = line


def find_one(folder: Path, patterns: Sequence[str], what: str) -> Path:
    """The only file below a folder that fits one of the patterns; earlier patterns are preferred.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If several fit the same pattern.
    """
    for pattern in patterns:
        found = sorted(folder.rglob(pattern))
        if len(found) > 1:
            raise ValueError(
                f"{folder} holds {len(found)} files of {what}: {found[0]} and {found[1]}; keep one of them there"
            )
        if found:
            return found[0]
    raise FileNotFoundError(f"no {what} in {folder}: looked for {' or '.join(patterns)}")
