"""Labels of a folder of videos: from the names of its folders, or from a csv file."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

SPLIT_FOLDERS = ("train", "val", "test")
_COLUMNS = ("label", "group", "split")


@dataclass(frozen=True)
class VideoLabels:
    """What is said about one video; None where nothing is."""

    label: str | None = None
    group: str | None = None
    split: str | None = None


@dataclass
class LabelFile:
    """The content of a csv of labels.

    Attributes:
        labels: By absolute path of the video.
        absent: Paths that the file names and that aren't there, as written, with their line numbers.
        ignored_columns: Columns that mean nothing here.
    """

    labels: dict[str, VideoLabels] = field(default_factory=dict)
    absent: list[tuple[int, str]] = field(default_factory=list)
    ignored_columns: list[str] = field(default_factory=list)


def labels_from_folders(folder: Path, videos: Sequence[Path]) -> dict[str, VideoLabels]:
    """Labels from ``FOLDER/LABEL/video`` or ``FOLDER/{train,val,test}/LABEL/video``.

    The first folder is the split when every video lies in a folder train, val or test; the next one is the label.
    Deeper folders and videos beside the label folders say nothing.

    Args:
        folder: Absolute path.
        videos: Absolute paths inside it.

    Returns:
        Labels by absolute path.
    """
    parts = {str(video): video.relative_to(folder).parts[:-1] for video in videos}
    has_splits = all(names and names[0] in SPLIT_FOLDERS for names in parts.values())
    labels = {}
    for video, names in parts.items():
        split, names = (names[0], names[1:]) if has_splits else (None, names)
        labels[video] = VideoLabels(label=names[0] if names else None, split=split)
    return labels


def read_label_file(path: Path, folder: Path, videos: Sequence[Path]) -> LabelFile:
    """Read a csv with a header and the columns ``path``, ``label``, and if wanted ``group`` and ``split``.

    Args:
        path: The csv; separated by commas.
        folder: Where its paths start, unless they are absolute.
        videos: Absolute paths of the videos there are.

    Returns:
        Labels of the videos that are there, and what is not.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a column or a value is missing, or a video is named twice; with the line number.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no label file at {path}")
    there = {str(video) for video in videos}
    lines: dict[str, int] = {}
    content = LabelFile()
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            header = [name.strip() for name in next(reader, [])]
            missing = [name for name in ("path", "label") if name not in header]
            if missing:
                found = ", ".join(header) or "nothing"
                raise ValueError(
                    f"{path} line 1: the header lacks the column {' and '.join(missing)}; it has {found}. "
                    "The first line names the columns: path,label and if wanted group,split"
                )
            content.ignored_columns = [name for name in header if name not in ("path", *_COLUMNS)]
            for cells in reader:
                if not any(cell.strip() for cell in cells):
                    continue
                if len(cells) != len(header):
                    raise ValueError(f"{path} line {reader.line_num}: {len(cells)} values for {len(header)} columns")
                values = {name: cell.strip() or None for name, cell in zip(header, cells, strict=True)}
                written = values["path"]
                if written is None or values["label"] is None:
                    what = "path" if written is None else "label"
                    raise ValueError(f"{path} line {reader.line_num}: no {what}")
                video = os.path.normpath(folder / written)
                if video in lines:
                    raise ValueError(f"{path} line {reader.line_num}: {written} is named in line {lines[video]} too")
                lines[video] = reader.line_num
                if video in there:
                    content.labels[video] = VideoLabels(**{name: values.get(name) for name in _COLUMNS})
                else:
                    content.absent.append((reader.line_num, written))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} isn't UTF-8 text: {error.reason} at byte {error.start}") from error
    except csv.Error as error:
        raise ValueError(f"{path} line {reader.line_num}: {error}") from error
    if not lines:
        raise ValueError(f"{path} names no video; it holds its header only")
    return content
