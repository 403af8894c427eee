"""UCF101 and HMDB51: text files of three official splits ("folds") into training and test videos."""

from __future__ import annotations

import re
from pathlib import Path

from timegrain.data.benchmarks.joining import Benchmark, Listed
from timegrain.data.benchmarks.reading import check_new, read_lines

FOLDS = (1, 2, 3)
_HMDB_SPLITS = {"0": None, "1": "train", "2": "test"}
_UCF_NAME = re.compile(r"(v_\w+_g\d+)_c\d+")


def read_ucf101(annotations: Path, fold: int = 1) -> Benchmark:
    """Read UCF101's ``classInd.txt``, ``trainlist0N.txt`` and ``testlist0N.txt``.

    Args:
        annotations: The folder that holds them (``ucfTrainTestlist``).
        fold: Which of the three official splits becomes the column ``split``; all that are there become the columns
            ``split1`` to ``split3``.

    Returns:
        The videos; ``group`` is the recording that clips were cut from.

    Raises:
        FileNotFoundError: If a file isn't there.
        ValueError: If a line isn't as published; the message names it.
    """
    _check_fold(fold)
    names_path = annotations / "classInd.txt"
    if not names_path.is_file():
        raise FileNotFoundError(f"no {names_path}; give the folder that holds classInd.txt and trainlist01.txt")
    numbers: dict[str, str] = {}
    class_lines: dict[object, int] = {}
    for line, text in read_lines(names_path):
        parts = text.split()
        if len(parts) != 2 or not parts[0].isdigit():
            raise ValueError(f"{names_path}, line {line}: {text!r:.60} isn't a number and a class")
        check_new(parts[1], line, class_lines, names_path)
        numbers[parts[1]] = parts[0]
    splits: dict[str, dict[int, str]] = {}
    for number in FOLDS:
        paths = {kind: annotations / f"{kind}list0{number}.txt" for kind in ("train", "test")}
        there = [path for path in paths.values() if path.is_file()]
        if not there and number != fold:
            continue
        for kind, path in paths.items():
            if not path.is_file():
                raise FileNotFoundError(f"no {path}")
            lines: dict[object, int] = {}
            for line, text in read_lines(path):
                parts = text.split()
                label = parts[0].partition("/")[0]
                if label not in numbers or len(parts) > 2 or "/" not in parts[0]:
                    raise ValueError(f"{path}, line {line}: {text!r:.80} isn't a video of a class in classInd.txt")
                if len(parts) == 2 and parts[1] != numbers[label]:
                    raise ValueError(f"{path}, line {line}: {label} is class {numbers[label]}, not {parts[1]}")
                check_new(parts[0], line, lines, path)
                if number in splits.setdefault(parts[0], {}):
                    raise ValueError(f"{path}, line {line}: {parts[0]} is in the other list of split {number} too")
                splits[parts[0]][number] = kind
    listed = []
    for video, split in splits.items():
        stem = Path(video).stem
        group = _UCF_NAME.fullmatch(stem)
        extra = {f"split{number}": split.get(number) for number in FOLDS}
        name = video.partition("/")[0]
        listed.append(Listed(video, split.get(fold), name, group[1] if group else None, (stem,), extra=extra))
    return _benchmark("ucf101", listed, fold, sorted(numbers))


def read_hmdb51(annotations: Path, fold: int = 1) -> Benchmark:
    """Read HMDB51's ``CLASS_test_splitN.txt`` (``name.avi 1|2|0``: training, test, not used).

    Args:
        annotations: The folder that holds them (``testTrainMulti_7030_splits``).
        fold: Which of the three official splits becomes the column ``split``; all that are there become the columns
            ``split1`` to ``split3``. Videos that the split doesn't use have no split.

    Raises:
        FileNotFoundError: If there are no files of the fold.
        ValueError: If a line isn't as published, or a class lacks its file; the message names it.
    """
    _check_fold(fold)
    splits: dict[tuple[str, str], dict[int, str | None]] = {}
    classes: dict[int, set[str]] = {}
    for number in FOLDS:
        paths = sorted(annotations.rglob(f"*_test_split{number}.txt"))
        if not paths and number == fold:
            raise FileNotFoundError(f"no CLASS_test_split{fold}.txt in {annotations}")
        for path in paths:
            label = path.name.removesuffix(f"_test_split{number}.txt")
            classes.setdefault(number, set()).add(label)
            lines: dict[object, int] = {}
            for line, text in read_lines(path):
                video, _, code = text.rpartition(" ")
                if code not in _HMDB_SPLITS or not video:
                    raise ValueError(f"{path}, line {line}: {text!r:.80} isn't a video and 0, 1 or 2")
                check_new(video.strip(), line, lines, path)
                splits.setdefault((label, video.strip()), {})[number] = _HMDB_SPLITS[code]
    everywhere = set.union(*classes.values())
    for number, names in classes.items():
        if names != everywhere:
            raise ValueError(f"{annotations}: split {number} lacks the file of {sorted(everywhere - names)[0]}")
    listed = []
    for (label, video), split in splits.items():
        extra = {f"split{number}": split.get(number) for number in FOLDS}
        listed.append(Listed(video, split.get(fold), label, None, (Path(video).stem,), extra=extra))
    return _benchmark("hmdb51", listed, fold, sorted(everywhere))


def _benchmark(name: str, listed: list[Listed], fold: int, classes: list[str]) -> Benchmark:
    if not any(video.split for video in listed):
        raise ValueError(f"{name}: split {fold} lists no video")
    facts = {"official_split": fold, "classes": classes}
    return Benchmark(name, listed, facts, notes=[f"official split {fold}, {len(classes)} classes"])


def _check_fold(fold: int) -> None:
    if fold not in FOLDS:
        raise ValueError(f"--fold {fold}: the official splits are 1, 2 and 3")
