"""``timegrain report``: results of many runs as one self-contained page and one Markdown table."""

from __future__ import annotations

import json as json_module
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from timegrain.data.coverage import coverage_lines
from timegrain.files import atomic_path
from timegrain.report.figures import points
from timegrain.report.page import Cell, Section, Table, render_page, score_cell
from timegrain.report.published import PUBLISHED
from timegrain.report.results import Result, Role, Row, find_results

_ROLES: Mapping[Role, str] = {"trained": "trained", "floor": "floors", "ceiling": "ceiling"}


@dataclass(frozen=True)
class Group:
    """Results that can be compared: one benchmark, one task, one protocol.

    Args:
        results: With the file of each.
        differs: Settings that tell it from other groups of the same benchmark and task.
    """

    results: Sequence[tuple[Path, Result]]
    differs: str = ""

    @property
    def first(self) -> Result:
        """Any of them, for what all share."""
        return self.results[0][1]

    @property
    def title(self) -> str:
        """Benchmark and task, and what tells this protocol from others of the same."""
        return f"{self.first.benchmark}: {self.first.task}" + (f" ({self.differs})" if self.differs else "")

    def methods(self, role: Role) -> dict[str, list[Row]]:
        """Rows by method, in order of first appearance; what several results measured alike counts once.

        That is the same seed with the same scores, such as a floor that every run has beside it. Rows of one result are
        different things that were measured side by side, also where their seeds are not known.
        """
        found: dict[str, list[Row]] = {}
        for _, result in self.results:
            before = {method: list(rows) for method, rows in found.items()}
            for row in (row for row in result.rows if row.role == role):
                if row not in before.get(row.method, ()):
                    found.setdefault(row.method, []).append(row)
        return found

    def scores(self, rows: Sequence[Row], metric: str) -> list[float]:
        """One score per row that has it."""
        return [row.scores[metric] for row in rows if metric in row.scores]


def report(runs: list[Path], *, out: Path = Path("report"), title: str = "Results", json: bool = False) -> None:
    """Collect the results of runs into one page and one Markdown table.

    Every evaluation (`timegrain probe`, `finetune`, `boundaries` and the others) leaves a result.json in its folder. Those
    with the same benchmark, task and protocol share a table: ours beside published numbers in columns of their own, floors
    and ceilings below, means and standard deviations over seeds, how much of the benchmark was present, commit and time.
    Writes OUT/report.html (one file, opens without network), OUT/report.md and OUT/report.json.

    Examples::

        timegrain report runs/ucf101-a0-s0 runs/ucf101-a0-s1 --out runs/summary

    Args:
        runs: Folders of runs, searched with their subfolders, or result.json files.
        out: Folder of the report.
        title: At the top of the page.
        json: Print what the tables hold as one JSON object.
    """
    groups = group_results(find_results(runs))
    page = render_page(
        title,
        [section for group in groups for section in _sections(group)],
        out / "report.html",
        lead="Ours and published numbers stand in separate columns; every table names its protocol, floors and seeds.",
    )
    with atomic_path(out / "report.md") as temporary:
        temporary.write_text("\n".join(_markdown(group) for group in groups), encoding="utf-8")
    record = {"report": str(page), "tables": [_record(group) for group in groups]}
    with atomic_path(out / "report.json") as temporary:
        temporary.write_text(json_module.dumps(record, indent=1) + "\n")
    print(json_module.dumps(record) if json else page)


def group_results(results: Sequence[tuple[Path, Result]]) -> list[Group]:
    """Results by benchmark, task and protocol; results of different protocols never share a table."""
    groups: dict[str, list[tuple[Path, Result]]] = {}
    for path, result in results:
        key = json_module.dumps([result.benchmark, result.task, result.protocol], sort_keys=True)
        groups.setdefault(key, []).append((path, result))
    found = [Group(members) for members in groups.values()]
    return [replace(group, differs=_difference(group, found)) for group in found]


def _difference(group: Group, groups: Sequence[Group]) -> str:
    """The settings of a group's protocol that no other group of the same benchmark and task has; at most two."""
    others = [_flat(other.first.protocol) for other in groups if other is not group and other.title == group.title]
    own = {
        key: value
        for key, value in _flat(group.first.protocol).items()
        if isinstance(value, str | int | float) and all(other.get(key) != value for other in others)
    }
    return ", ".join(f"{key} {value}" for key, value in list(own.items())[:2]) if others else ""


def _flat(protocol: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a protocol; those of a group of them by dotted name."""
    flat: dict[str, Any] = {}
    for key, value in protocol.items():
        flat |= (
            {f"{key}.{inner}": item for inner, item in value.items()} if isinstance(value, Mapping) else {key: value}
        )
    return flat


def reading(group: Group) -> list[str]:
    """What the headline score says, computed from it: best method, its margin over the best floor, and the spread."""
    metric, name = next(iter(group.first.metrics.items()))
    trained = {m: group.scores(rows, metric) for m, rows in group.methods("trained").items()}
    floors = {m: group.scores(rows, metric) for m, rows in group.methods("floor").items()}
    trained, floors = ({m: v for m, v in part.items() if v} for part in (trained, floors))
    if not trained:
        return []
    best = max(trained, key=lambda method: mean(trained[method]))
    said = []
    if floors:
        floor = max(floors, key=lambda method: mean(floors[method]))
        margin = mean(trained[best]) - mean(floors[floor])
        text = f"{name}: {best} is {abs(margin):.3f} {'above' if margin > 0 else 'below'} the best floor ({floor})"
        said.append(f"{text}{_doubt(trained[best], floors[floor])}.")
    else:
        said.append(f"{name}: no floor was measured beside {best}, so the number cannot be judged.")
    few = [method for method, values in trained.items() if len(values) < 3]
    if few:
        said.append(f"Fewer than three seeds: {', '.join(few)}. No difference should be read off them.")
    others = [method for method in trained if method != best and len(trained[method]) >= 2 <= len(trained[best])]
    for method in others:
        gap = mean(trained[best]) - mean(trained[method])
        said.append(f"{best} minus {method}: {gap:.3f}{_doubt(trained[best], trained[method])}.")
    return said


def _doubt(one: Sequence[float], other: Sequence[float]) -> str:
    if len(one) < 2:
        return " (one seed, so its spread is not known)"
    noise = (stdev(one) ** 2 / len(one) + (stdev(other) ** 2 / len(other) if len(other) > 1 else 0.0)) ** 0.5
    gap = abs(mean(one) - mean(other))
    verdict = "more" if gap > 2 * noise else "less"
    return f", {verdict} than twice the standard error over seeds ({noise:.3f})"


def _rows(group: Group) -> list[list[Cell]]:
    published = PUBLISHED.get((group.first.benchmark, group.first.task), {})
    seen: set[str] = set()
    rows: list[list[Cell]] = []
    for role, heading in _ROLES.items():
        methods = group.methods(role)
        if methods:
            rows.append([(heading, "")])
        for method, found in methods.items():
            seen.add(method)
            rows.append([(method, _seeds(found)), *_cells(group, found, published.get(method, {}))])
    rest = {method: scores for method, scores in published.items() if method not in seen}
    if rest:
        rows.append([("published, not measured here", "")])
        rows += [[(method, ""), *_cells(group, [], scores)] for method, scores in rest.items()]
    return rows


def _cells(group: Group, rows: Sequence[Row], published: Mapping[str, float]) -> list[Cell]:
    cells: list[Cell] = []
    for metric in group.first.metrics:
        cells.append(score_cell(group.scores(rows, metric)))
        if metric in _published_metrics(group):
            cells.append((f"{published[metric]:.3f}", "") if metric in published else ("", ""))
    return cells


def _published_metrics(group: Group) -> set[str]:
    numbers = PUBLISHED.get((group.first.benchmark, group.first.task), {}).values()
    return {metric for scores in numbers for metric in scores}


def _header(group: Group) -> list[str]:
    header = ["method"]
    for metric, name in group.first.metrics.items():
        header.append(name)
        if metric in _published_metrics(group):
            header.append(f"{name}, published")
    return header


def _seeds(rows: Sequence[Row]) -> str:
    seeds = [str(row.seed) for row in rows if row.seed is not None]
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(seeds)}" if seeds else ""


def _sections(group: Group) -> list[Section]:
    metric, name = next(iter(group.first.metrics.items()))
    scores = {
        method: values
        for role in _ROLES
        for method, rows in group.methods(role).items()
        if (values := group.scores(rows, metric))
    }
    facts = [*_facts(group), *reading(group)]
    return [
        Section(
            group.title,
            bullets=facts,
            table=Table(_header(group), _rows(group)),
            png=points(scores, name) if scores else None,
            caption="Every point is a seed, the bar its mean, the grey line its standard deviation.",
        ),
        Section("Protocol", code=json_module.dumps(group.first.protocol, indent=1), collapsed=True),
        Section("Where the numbers come from", table=_origins(group), collapsed=True),
    ]


def _facts(group: Group) -> list[str]:
    facts = []
    if group.first.num_test is not None:
        facts.append(f"{group.first.num_test:,} test items.")
    present = dict.fromkeys(line for _, result in group.results for line in coverage_lines(result.coverage))
    facts += [f"Data present: {line}." for line in present] or ["Data present: the manifest does not say."]
    return facts


def _origins(group: Group) -> Table:
    rows: list[list[Cell]] = []
    for path, result in group.results:
        versions = result.provenance.get("versions") or {}
        time = str(timedelta(seconds=round(result.seconds))) if result.seconds is not None else "not noted"
        commit = str(result.provenance.get("git") or "no commit")[:19]
        rows.append([(path.parent.name, str(path)), (commit, f"torch {versions.get('torch', '?')}"), (time, "")])
    return Table(["run", "commit", "time"], rows)


def _markdown(group: Group) -> str:
    lines = [f"## {group.title}", ""]
    lines += [f"* {text}" for text in [*_facts(group), *reading(group)]]
    header = _header(group)
    lines += ["", "| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for row in _rows(group):
        cells = [f"**{row[0][0]}**", *[""] * (len(header) - 1)] if len(row) == 1 else [said for said, _ in row]
        lines.append("| " + " | ".join(cells) + " |")
    commits = sorted({str(result.provenance.get("git") or "no commit") for _, result in group.results})
    seconds = sum(result.seconds or 0.0 for _, result in group.results)
    lines += ["", f"Commit {', '.join(commits)}; {timedelta(seconds=round(seconds))} in all.", ""]
    return "\n".join(lines)


def _record(group: Group) -> dict[str, Any]:
    return {
        "benchmark": group.first.benchmark,
        "task": group.first.task,
        "protocol": group.first.protocol,
        "methods": {
            method: {
                "role": role,
                "seeds": [row.seed for row in rows],
                "scores": {metric: group.scores(rows, metric) for metric in group.first.metrics},
            }
            for role in _ROLES
            for method, rows in group.methods(role).items()
        },
        "results": [str(path) for path, _ in group.results],
    }
