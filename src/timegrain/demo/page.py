"""The demo's page: what was done, what came out, and what the numbers do and do not say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from timegrain.data.decoding import open_video
from timegrain.data.manifest import Manifest, VideoRow
from timegrain.demo.figures import paired_differences, score_panels, similarity_panels, video_strips
from timegrain.demo.jobs import FEATURE_STRIDE, Done
from timegrain.demo.reading import (
    CEILINGS,
    FINE,
    FLOORS,
    LEARNED,
    MIDDLE,
    PERSISTENT,
    PIXELS,
    PYRAMID,
    RANDOM,
    SCORES,
    comparisons,
    cuts_sentence,
    pyramid_sentence,
    summary,
)
from timegrain.report.figures import boundary_timelines, loss_curves, run_losses
from timegrain.report.page import Cell, Section, Table, render_page, score_cell

Floors = Mapping[int, Mapping[str, Mapping[str, float]]]
"""Floors that look at no pixel: by world seed, ``majority`` or ``uniform``, and score."""


def write_page(
    out: Path,
    facts: Mapping[str, Any],
    done: Sequence[Done],
    fixed: Floors,
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
    results = by_score(done)
    first = {item.job.name: item for item in done if item.job.seed == done[0].job.seed}
    rows = list(Manifest.open(worlds[done[0].job.seed] / "manifest.parquet").select(split="test"))
    sections = []
    if facts["quick"]:
        text = (
            "This is the quick version: one world, few videos, short training. There is no spread to judge differences "
            "by, and none should be read off this page. The full demo (without --quick) takes up to ten minutes."
        )
        sections.append(Section(paragraphs=[text], note=True))
    cuts = [world["uniform"]["boundary_f1"] for world in fixed.values()]
    bullets = [*comparisons(results), cuts_sentence(results, cuts), pyramid_sentence(results)]
    sections += [
        Section(
            "What came out",
            _how_to_read(facts),
            png=paired_differences(results),
            caption="Fine-grained minus persistent features: a point for each world, the bar their mean.",
        ),
        Section("In numbers", bullets=[text for text in bullets if text]),
        Section("What was done", _method(facts), png=_strips(rows), caption=_STRIPS),
        Section(
            "Between floor and ceiling",
            png=score_panels(results, _without_looking(fixed), ("event", "boundary_auc", "clip", "video")),
            caption="Means over the worlds as bars and numbers, each world as a point. What learns without labels should "
            "lie between the floors in grey and the network in green that was trained with this task's own labels; the "
            "other green one was trained for the other task.",
        ),
        Section("All scores", table=_table(results, fixed)),
        _similarity(first, rows),
        _timelines(first, rows),
        _losses(done),
        Section("Time spent", table=_times(done, spent)),
    ]
    footer = "Written by timegrain demo. All numbers of this page, unrounded, are in results.json beside it."
    return render_page("One method, several granularities", sections, out, lead=summary(results), footer=footer)


def by_score(done: Sequence[Done]) -> dict[str, dict[str, list[float]]]:
    """Scores by name and method, one value per world, in the order of the jobs."""
    results: dict[str, dict[str, list[float]]] = {score.key: {} for score in SCORES}
    for item in done:
        for key, methods in results.items():
            methods.setdefault(item.job.name, []).append(item.scores[key])
    return results


def _how_to_read(facts: Mapping[str, Any]) -> list[str]:
    text = (
        "The paper's finding to compare with: tasks inside a video (which event is this, where does it end) prefer "
        "fine-grained features, tasks about the whole video persistent ones. So its points would lie to the right in "
        "the upper half of this picture, and to the left in the lower half."
    )
    if facts["worlds"] == 1:
        return [text]
    noise = np.sqrt(2 * 0.4 * 0.6 / facts["test"])
    return [
        text,
        f"A difference counts as clear here if all {facts['worlds']} worlds agree in its sign and their mean is larger "
        f"than their standard deviation. Chance alone moves a difference of two accuracies over {facts['test']} test "
        f"videos by about ±{noise:.2f} in one world.",
    ]


def _method(facts: Mapping[str, Any]) -> list[str]:
    several = facts["worlds"] > 1
    pyramid = ", and as a pyramid of four levels at once (m = 1, 2, 4, 8)" if facts["pyramid"] else ""
    return [
        f"EventWorld made {facts['worlds']} world{'s' if several else ''} of fresh H.264 videos, "
        f"{facts['train']} to learn from and {facts['test']} others to be tested on{' in each' if several else ''}. Each "
        "video shows a troupe of ellipses on a textured ground: the ground's texture (9 classes) lasts as long as the "
        "video, the ellipses' posture (8 classes) changes from event to event, and a video has 2 to 8 events of varying "
        "length. Light, gain, position and direction of the texture wander a little and mean nothing.",
        f"The same small R3D was pre-trained without labels for {facts['steps']} steps with three weights α of the "
        f"fine-grained loss: 0 (TeG-PS, persistent), 0.5, and 0.9 (TeG-FG){pyramid}. Linear probes on the frozen features "
        "then guess the class of every event, find the boundaries between events, and guess the class of the video, from "
        "the clip in its middle and from its mean. Probes and thresholds see training videos only.",
        "Floors: the commonest class; evenly spaced boundaries, as many as score best on the training videos; 8 x 8 raw "
        "pixels; and the same network with random weights. Ceiling: the same network trained with the labels of the "
        "events, or of the videos, for as many steps, under the same probes.",
    ]


def _without_looking(fixed: Floors) -> dict[str, list[float]]:
    """By score: the commonest class, or even cuts."""
    found: dict[str, list[float]] = {}
    for world in fixed.values():
        for floor in world.values():
            for score, value in floor.items():
                found.setdefault(score, []).append(value)
    return found


def _table(results: Mapping[str, Mapping[str, Sequence[float]]], fixed: Floors) -> Table:
    rows: list[Sequence[Cell]] = []
    groups = (
        ("Learned without labels", LEARNED),
        ("Ceiling: trained with labels", CEILINGS),
        ("Floors", FLOORS),
    )
    for heading, names in groups:
        rows.append([(heading, "")])
        known = [name for name in names if name in results["event"]]
        rows += [[(name, ""), *(score_cell(results[score.key][name]) for score in SCORES)] for name in known]
    blind = _without_looking(fixed)
    rows.append([("commonest class / even cuts", ""), *(score_cell(blind.get(score.key, [])) for score in SCORES)])
    several = len(fixed) > 1
    spread = "mean ± standard deviation; below, each world's value" if several else "one world: no spread"
    return Table([spread, *(score.name for score in SCORES)], rows)


def _frames(row: VideoRow) -> np.ndarray:
    with open_video(row.path) as reader:
        frames: np.ndarray = reader.frames(np.arange(0, row.num_frames, FEATURE_STRIDE)).permute(0, 2, 3, 1).numpy()
    return frames


_STRIPS = "Three test videos along time, and under each its events: the direction and the build of the ellipses."


def _strips(rows: Sequence[VideoRow]) -> bytes:
    videos = []
    for row in rows[:3]:
        events = [(event["start_seconds"], event["end_seconds"], event["posture"]) for event in row.extra["events"]]
        videos.append((_frames(row), events, row.duration_seconds, str(row.label)))
    return video_strips(videos)


def _similarity(first: Mapping[str, Done], rows: Sequence[VideoRow]) -> Section:
    names = [name for name in (PERSISTENT, MIDDLE, FINE, PYRAMID, RANDOM, PIXELS) if name in first]
    row = max(rows[:4], key=lambda row: len(row.extra["boundaries_seconds"]))
    index = rows.index(row)
    features = {name: first[name].examples[index].features for name in names}
    png = similarity_panels(_frames(row), features, list(row.extra["boundaries_seconds"]), row.duration_seconds)
    caption = (
        "How alike the moments of one test video are to each kind of features (Fig. 3 of the paper): red alike, blue "
        "unlike, seconds below, the video's frames on top, true boundaries dotted. Blocks along the diagonal, from one "
        "dotted line to the next, are events told apart. Of the first four test videos this one has the most events."
    )
    return Section("Similarity over time", png=png, caption=caption)


def _timelines(first: Mapping[str, Done], rows: Sequence[VideoRow]) -> Section:
    videos = []
    for index, row in enumerate(rows[:4]):
        methods = {}
        for name in (PERSISTENT, FINE):
            seen = first[name].examples[index]
            methods[name] = (seen.timestamps_seconds, seen.probabilities, seen.detections_seconds.tolist())
        videos.append((list(row.extra["boundaries_seconds"]), methods, row.duration_seconds))
    caption = (
        "Boundaries of the first four test videos: true ones in black with their tolerance in grey, each method's "
        "probability as a line, and what it reports as triangles."
    )
    return Section("Boundaries", png=boundary_timelines(videos), caption=caption)


def _losses(done: Sequence[Done]) -> Section:
    seed = done[0].job.seed
    runs = {item.job.name: item.job.out for item in done if item.job.kind == "teg" and item.job.seed == seed}
    caption = (
        "Losses of the first world's runs as a share of the loss of guessing among the batch; the fine-grained and the "
        "persistent loss of one run are shown apart."
    )
    return Section("Learning", png=loss_curves(run_losses(runs)), caption=caption)


def _times(done: Sequence[Done], spent: Mapping[str, float]) -> Table:
    rows: list[Sequence[Cell]] = [[(name, ""), (f"{seconds:.0f} s", "")] for name, seconds in spent.items()]
    rows.append([("of one job, in its own process", "")])
    for name in dict.fromkeys(item.job.name for item in done):
        items = [item for item in done if item.job.name == name]
        parts = {part: mean(item.seconds[part] for item in items) for part in items[0].seconds}
        rows.append([(name, ""), (", ".join(f"{part} {seconds:.0f} s" for part, seconds in parts.items()), "")])
    return Table(["stage", "wall time"], rows)
