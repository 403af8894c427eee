"""``result.json``: what an evaluation found, in one form for all tasks, so that results of many runs make one table.

A result is one benchmark scored by one protocol. Its rows are what was measured side by side: the weights asked about, and
floors and ceilings beside them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

from timegrain.data.coverage import coverage_lines
from timegrain.files import atomic_path
from timegrain.provenance import provenance

NAME = "result.json"
_FORM = "timegrain-result/1"
# Folders in a run's folder for what was moved aside: of a run that was begun anew, of a scoring with other settings.
REPLACED, SCORED = "before-", "scored-"

Role = Literal["trained", "floor", "ceiling"]


@dataclass(frozen=True)
class Row:
    """One method under one seed.

    Args:
        method: What tables call it, such as ``TeG-FG``, ``random weights``; equal methods are averaged over seeds.
        scores: By key of the result's metrics.
        role: ``trained`` for what is being asked about, ``floor`` for what needs no training, ``ceiling`` for labels.
        seed: Of the training or of the random weights; None where there is nothing random.
    """

    method: str
    scores: Mapping[str, float]
    role: Role = "trained"
    seed: int | None = None


@dataclass(frozen=True)
class Result:
    """One evaluation.

    Args:
        benchmark: Such as ``ucf101``; for other videos the manifest's name.
        task: Such as ``linear probe``.
        metrics: Key of a score to its name in tables; the first is the headline.
        rows: What was measured.
        protocol: Everything that two results must share to be compared, as JSON values.
        coverage: How much of the benchmark was present (``Manifest.coverage``).
        num_test: Videos or events scored.
        provenance: Commit, versions, machine; filled in by :func:`write_result`.
        seconds: Time it took.
    """

    benchmark: str
    task: str
    metrics: Mapping[str, str]
    rows: Sequence[Row]
    protocol: Mapping[str, Any] = field(default_factory=dict)
    coverage: Mapping[str, Any] | None = None
    num_test: int | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    seconds: float | None = None


def write_result(out: Path, result: Result) -> Path:
    """Write ``OUT/result.json`` with the present commit, versions and machine.

    Returns:
        The file.
    """
    path = out / NAME
    record = {"form": _FORM, **asdict(result), "provenance": dict(result.provenance) or provenance()}
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n")
    return path


def read_result(path: Path) -> Result:
    """Read a result.

    Raises:
        ValueError: The file is not one; the message says which and why.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"))
        if not isinstance(values, dict) or values.pop("form", None) != _FORM:
            raise ValueError(f"it does not say that it is a {_FORM}")
        rows = [Row(**row) for row in values.pop("rows")]
        result = Result(**values, rows=rows)
        _check(result)
        for row in rows:
            if bad := [f"{key}: {value!r}" for key, value in row.scores.items() if not isinstance(value, int | float)]:
                raise ValueError(f"a score is not a number ({bad[0]})")
        coverage_lines(result.coverage)
    except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError, RecursionError) as error:
        raise ValueError(f"{path} is not a result of TimeGrain: {str(error)[:500]}") from error
    return result


def _check(result: Result) -> None:
    """Refuse values of other kinds than the report's tables can hold."""
    kinds: list[tuple[str, Any, Any]] = [
        ("benchmark", result.benchmark, str),
        ("task", result.task, str),
        ("metrics", result.metrics, Mapping),
        ("protocol", result.protocol, Mapping),
        ("provenance", result.provenance, Mapping),
        ("coverage", result.coverage, Mapping | None),
        ("num_test", result.num_test, int | None),
        ("seconds", result.seconds, int | float | None),
        *(("the name of a metric", name, str) for name in dict(result.metrics).values()),
        *(("the method of a row", row.method, str) for row in result.rows),
        *(("the scores of a row", row.scores, Mapping) for row in result.rows),
        *(("the seed of a row", row.seed, int | None) for row in result.rows),
    ]
    for name, value, kind in kinds:
        if not isinstance(value, kind):
            raise ValueError(f"{name} is {value!r:.80}")
    if not result.metrics or not result.rows:
        raise ValueError("it has no metric, or no row")
    if roles := {str(row.role) for row in result.rows} - set(get_args(Role)):
        raise ValueError(f"a row is {min(roles)!r:.80}, which is none of {', '.join(get_args(Role))}")


def find_results(runs: Sequence[Path]) -> list[tuple[Path, Result]]:
    """All results in some runs' folders, sorted by path.

    What a run moved aside counts only where it is named itself: it is another state of the same run.

    Args:
        runs: Folders, searched with their subfolders, or ``result.json`` files.

    Raises:
        ValueError: A run does not exist or holds no result.
    """
    found: list[Path] = []
    for run in runs:
        if not run.exists():
            raise ValueError(f"{run} does not exist; name folders of runs, or {NAME} files")
        there = sorted(filter(partial(_is_present, run), run.rglob(NAME))) if run.is_dir() else [run]
        if not there:
            raise ValueError(
                f"{run} holds no {NAME}; `timegrain probe`, `finetune`, `boundaries` and the others write one each"
            )
        found += there
    return [(path, read_result(path)) for path in dict.fromkeys(path.resolve() for path in found)]


def _is_present(run: Path, file: Path) -> bool:
    return not any(part.startswith((REPLACED, SCORED)) for part in file.relative_to(run).parts)


def method_name(trained: Mapping[str, Any]) -> str:
    """What tables call an encoder, from what its weights say about their training (``EncoderConfig.extra``)."""
    objective, alpha = trained.get("objective"), trained.get("alpha")
    if objective == "TeG" and alpha is not None:
        return {0.0: "TeG-PS", 0.9: "TeG-FG"}.get(float(alpha), f"TeG (α = {alpha:g})")
    if objective == "TeG":
        levels = trained.get("levels") or []
        sizes = ", ".join(f"{level['num_short']}x{level['num_long']}" for level in levels)
        return f"TeG levels {sizes}" if sizes else "TeG"
    return str(objective) if objective else "weights"
