"""The demo's page: what was done, what came out, and what the numbers do and do not say."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np

from timegrain.data.decoding import open_video
from timegrain.data.manifest import Manifest
from timegrain.demo.jobs import FEATURE_STRIDE, Done
from timegrain.report.figures import boundary_timelines, loss_curves, similarity_rows
from timegrain.report.page import Cell, Section, Table, render_page

SCORES = {
    "event": "event class",
    "boundary_auc": "boundary AUC",
    "boundary_f1": "boundary F1@0.05",
    "clip": "video class, one clip",
    "video": "video class, averaged",
    "knn": "video class, kNN",
}
FINE, PERSISTENT = "TeG-FG (α = 0.9)", "TeG-PS (α = 0)"


def write_page(
    out: Path,
    facts: Mapping[str, Any],
    done: Sequence[Done],
    fixed: Mapping[int, Mapping[str, Mapping[str, float]]],
    worlds: Mapping[int, Path],
    spent: Mapping[str, float],
) -> Path:
    """Write ``report.html``.

    Args:
        out: The file.
        facts: Sizes of the worlds and runs.
        done: Results of all jobs.
        fixed: Floors without features, by world seed.
        worlds: Folders by seed.
        spent: Seconds by stage.
    """
    sections = []
    if facts["quick"]:
        text = (
            "This is the quick version: one world, few videos, short training. There is no spread to judge differences "
            "by, and none should be read off this page. The full demo (without --quick) takes up to ten minutes."
        )
        sections.append(Section(paragraphs=[text], note=True))
    sections += [
        Section("What was done", _method(facts)),
        Section("What came out", _verdicts(done, facts), _table(done, fixed)),
        _losses(done),
        _similarity(done, worlds),
        _timelines(done, worlds),
        Section("Time spent", table=_times(done, spent)),
    ]
    return render_page("TimeGrain: one method, three granularities", sections, out)


def _method(facts: Mapping[str, Any]) -> list[str]:
    return [
        f"EventWorld made {facts['worlds']} world{'s' if facts['worlds'] > 1 else ''} of fresh H.264 videos, "
        f"{facts['train']} to learn from and {facts['test']} others to be tested on. Each shows a troupe of "
        "ellipses on a textured ground: the ground's texture (9 classes) lasts as long as the video, the ellipses' posture "
        "(8 classes) changes from event to event, and a video has 2 to 8 events of varying length.",
        f"The same small R3D was pre-trained without labels for {facts['steps']} steps with three weights α of the "
        "fine-grained loss: 0 (TeG-PS, persistent), 0.5, and 0.9 (TeG-FG). Linear probes on the frozen features then "
        "guess the class of every event, find the boundaries between events, and guess the class of the video, from the "
        "clip in its middle and from its mean. Probes and thresholds see training videos only.",
        "Floors: the commonest class; evenly spaced boundaries, as many as score best on the training videos; 8 x 8 raw "
        "pixels; and the same network with random weights. Ceiling: the same network trained with the labels of the "
        "events, or of the videos. The paper's finding to compare with: tasks inside a video prefer fine-grained features, "
        "tasks about the whole video persistent ones.",
    ]


def _by_name(done: Sequence[Done], score: str) -> dict[str, list[float]]:
    values: dict[str, list[float]] = {}
    for item in done:
        values.setdefault(item.job.name, []).append(item.evaluation.scores[score])
    return values


def _verdicts(done: Sequence[Done], facts: Mapping[str, Any]) -> list[str]:
    """Sentences made from the numbers, whatever they are."""
    sentences = []
    for score, expected in (("event", "FG"), ("boundary_auc", "FG"), ("clip", "PS"), ("video", "PS")):
        values = _by_name(done, score)
        differences = [f - p for f, p in zip(values[FINE], values[PERSISTENT], strict=True)]
        winner = "FG" if mean(differences) > 0 else "PS"
        agree = sum((difference > 0) == (winner == "FG") for difference in differences)
        text = f"{SCORES[score][0].upper()}{SCORES[score][1:]}: TeG-{winner} is ahead by {abs(mean(differences)):.3f}"
        if len(differences) > 1:
            text += f" on average (spread {stdev(differences):.3f}), and in {agree} of {len(differences)} worlds"
        text += ", as" if winner == expected else ", against what"
        text += " the paper finds for tasks " + ("inside a video." if expected == "FG" else "about the whole video.")
        if len(differences) > 1 and abs(mean(differences)) < stdev(differences):
            text += " The difference is smaller than its spread: it settles nothing."
        above = [name for name in ("raw pixels", "random weights") if mean(values[name]) >= max(
            mean(values[FINE]), mean(values[PERSISTENT]))]  # fmt: skip
        if above:
            text += f" Neither is above {' or '.join(above)}."
        sentences.append(text)
    return sentences


def _cell(values: Sequence[float]) -> Cell:
    if len(values) == 1:
        return f"{values[0]:.3f}", ""
    return f"{mean(values):.3f} ± {stdev(values):.3f}", " ".join(f"{value:.3f}" for value in values)


def _table(done: Sequence[Done], fixed: Mapping[int, Mapping[str, Mapping[str, float]]]) -> Table:
    names = list(dict.fromkeys(item.job.name for item in done))
    rows: list[Sequence[Cell]] = []
    for heading, part in (
        ("Pre-trained without labels", names[:3]),
        ("Ceiling: trained with labels", names[3:5]),
        ("Floors", names[5:]),
    ):
        rows.append([(heading, "")])
        rows += [[(name, ""), *(_cell(_by_name(done, score)[name]) for score in SCORES)] for name in part]
    for floor, words in (("majority", "commonest class"), ("uniform", "even cuts")):
        cells: list[Cell] = [(words, "")]
        for score in SCORES:
            values = [world[floor][score] for world in fixed.values() if score in world[floor]]
            cells.append(_cell(values) if values else ("", ""))
        rows.append(cells)
    worlds = len(fixed)
    spread = "mean ± standard deviation; below, each world's value" if worlds > 1 else "one world: no spread"
    return Table([spread, *SCORES.values()], rows)


def _losses(done: Sequence[Done]) -> Section:
    curves = {}
    for item in done:
        path = item.job.out / "metrics.csv"
        if item.job.kind != "teg" or item.job.seed != done[0].job.seed or not path.exists():
            continue
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        steps = np.array([float(row["step"]) for row in rows])
        for part in ("fine", "persistent"):
            if f"{part}/loss" in rows[0]:
                loss = np.array([float(row[f"{part}/loss"]) for row in rows])
                curves[f"{item.job.name}: {part}"] = (steps, loss, float(rows[0][f"{part}/chance_loss"]))
    caption = "Losses of the first world's runs. 1 is guessing among the batch; the two losses are shown apart."
    return Section("Learning", png=loss_curves(curves), caption=caption)


def _first(done: Sequence[Done]) -> dict[str, Done]:
    return {item.job.name: item for item in done if item.job.seed == done[0].job.seed}


def _similarity(done: Sequence[Done], worlds: Mapping[int, Path]) -> Section:
    first = _first(done)
    names = [PERSISTENT, "TeG (α = 0.5)", FINE, "random weights", "raw pixels"]
    rows = list(Manifest.open(worlds[done[0].job.seed] / "manifest.parquet").select(split="test"))
    videos = []
    for index in range(2):
        row = rows[index]
        with open_video(row.path) as reader:
            frames = reader.frames(np.arange(0, row.num_frames, FEATURE_STRIDE)).permute(0, 2, 3, 1).numpy()
        features = {name: first[name].examples[index] for name in names}
        videos.append((frames, features, list(row.extra["boundaries_seconds"]), row.duration_seconds))
    caption = (
        "How alike the moments of two test videos are to each kind of features (Fig. 3 of the paper): red alike, blue "
        "unlike, seconds along both sides, the video's frames on top, true boundaries dotted. Blocks along the "
        "diagonal are events told apart."
    )
    return Section("Similarity over time", png=similarity_rows(videos), caption=caption)


def _timelines(done: Sequence[Done], worlds: Mapping[int, Path]) -> Section:
    first = _first(done)
    rows = list(Manifest.open(worlds[done[0].job.seed] / "manifest.parquet").select(split="test"))
    videos = []
    for index in range(4):
        row = rows[index]
        methods = {}
        for name in (PERSISTENT, FINE):
            evaluation = first[name].evaluation
            probability = evaluation.probabilities[index]
            times = (np.arange(len(probability)) + 0.5) * row.duration_seconds / len(probability)
            methods[name] = (times, probability, evaluation.detections_seconds[index])
        videos.append((list(row.extra["boundaries_seconds"]), methods, row.duration_seconds))
    caption = (
        "Boundaries of four test videos: true ones in black with their tolerance in grey, each method's probability as a "
        "line, and what it reports as triangles."
    )
    return Section("Boundaries", png=boundary_timelines(videos), caption=caption)


def _times(done: Sequence[Done], spent: Mapping[str, float]) -> Table:
    rows: list[Sequence[Cell]] = [[(name, ""), (f"{seconds:.0f} s", "")] for name, seconds in spent.items()]
    rows.append([("of one job, in its own process", "")])
    for name in dict.fromkeys(item.job.name for item in done):
        items = [item for item in done if item.job.name == name]
        parts = {part: mean(item.seconds[part] for item in items) for part in items[0].seconds}
        rows.append([(name, ""), (", ".join(f"{part} {seconds:.0f} s" for part, seconds in parts.items()), "")])
    return Table(["stage", "wall time"], rows)
