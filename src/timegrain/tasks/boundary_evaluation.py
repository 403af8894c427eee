"""``timegrain boundaries evaluate``: scores of detections beside their floors, and the files that the benchmark reads."""

from __future__ import annotations

import json as json_module
import pickle
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from timegrain.boundaries import Choice, Picking, choose_picking
from timegrain.boundary_inference import VideoScores, score_videos
from timegrain.boundary_layout import Mode
from timegrain.data.boundaries import BoundaryTruth
from timegrain.data.coverage import coverage_lines
from timegrain.data.journal import VideoJournal
from timegrain.data.location import shown
from timegrain.data.manifest import Manifest
from timegrain.data.probing import TIME_LIMIT_SECONDS
from timegrain.files import atomic_path
from timegrain.metrics.boundary_f1 import BoundaryF1, BoundaryVideo
from timegrain.metrics.floors import EVALUATED
from timegrain.models.boundary import BoundaryDetector, load_detector
from timegrain.models.weights import choose_device, fingerprint_of
from timegrain.report.results import Result, Row, method_name, write_result
from timegrain.tasks.boundary_config import BoundaryEvaluationConfig
from timegrain.tasks.boundary_setup import choose_split
from timegrain.tasks.floor_rows import GEBD_COLUMNS, gebd_row, gebd_rows
from timegrain.tasks.setup import free_workers
from timegrain.tasks.video_floors import Changes, Cuts

METRICS = {name: name.replace("mean_f1", "mean F1").replace("f1@", "F1@") for name in GEBD_COLUMNS}
VIDEO_FLOORS: dict[str, Callable[[str], list[float]]] = {"change detector": Changes(), "SceneDet": Cuts()}


@dataclass(frozen=True)
class Scored:
    """What a detector says of some videos.

    Attributes:
        scores: By the videos' ids.
        failures: Reason by id, of videos that could not be read.
    """

    scores: dict[str, VideoScores]
    failures: dict[str, str]

    def boundaries(self, picking: Picking) -> dict[str, list[float]]:
        """Seconds of the boundaries by id."""
        return {key: found.boundaries(picking) for key, found in self.scores.items()}


def scores_journal(
    out: Path, detector: BoundaryDetector, truth: BoundaryTruth, mode: Mode, every: int | None
) -> VideoJournal:
    """Where :func:`score_truth` keeps the videos' scores until ``out``, which is made of them, is written."""
    config = asdict(detector.config) | {"extra": None, "picking": None}  # which change no score
    facts = [fingerprint_of(detector, config), mode, every]
    paths = truth.manifest.column("path").to_pylist()
    return VideoJournal(out, paths, [facts] * len(paths))


def score_truth(
    detector: BoundaryDetector,
    truth: BoundaryTruth,
    journal: VideoJournal,
    *,
    mode: Mode,
    every: int | None,
    batch_size: int,
    workers: int,
) -> Scored:
    """Scores of all candidates of the videos; those that cannot be read are named on standard error.

    Raises:
        ValueError: None can be read.
    """
    paths = truth.manifest.column("path").to_pylist()
    failures: dict[str, str] = {}
    left = [paths[video] for video in journal.left]
    outcomes = score_videos(detector, left, mode=mode, every=every, batch_size=batch_size, workers=workers)
    for place, found in outcomes if left else ():
        video = journal.left[place]
        if isinstance(found, str):
            failures[truth.ids[video]] = found
            print(f"{shown(paths[video])}: {found}", file=sys.stderr)
        else:
            arrays = (found.frames.tolist(), found.seconds.tolist(), found.scores.tolist())
            journal.finish(video, [*arrays, found.duration_seconds])
    if not journal.results:
        raise ValueError(f"none of the {len(paths)} videos could be read; the first: {next(iter(failures.values()))}")
    scores = {
        truth.ids[video]: VideoScores(np.array(frames, np.int64), np.array(seconds), np.array(values), duration)
        for video, (frames, seconds, values, duration) in sorted(journal.results.items())
    }
    return Scored(scores, failures)


def choose_on(scored: Scored, truth: BoundaryTruth, rules: Sequence[Any], gap_seconds: float) -> Choice:
    """The rule and threshold that do best on videos set aside from training."""
    videos = truth.videos()
    keys = [key for key in scored.scores if key in videos]
    return choose_picking(
        [scored.scores[key].scores for key in keys],
        [scored.scores[key].seconds for key in keys],
        [videos[key] for key in keys],
        rules,
        gap_seconds,
    )


def write_submission(out: Path, boundaries: Mapping[str, Sequence[float]]) -> tuple[Path, Path]:
    """Write the official submission, a pickled dict from id to seconds, and the same as JSON beside it.

    Returns:
        The two files, ``OUT.pkl`` and ``OUT.json``.
    """
    plain = {key: [float(time) for time in times] for key, times in boundaries.items()}
    files = (out.with_suffix(".pkl"), out.with_suffix(".json"))
    with atomic_path(files[0]) as temporary:
        temporary.write_bytes(pickle.dumps(plain, protocol=4))
    with atomic_path(files[1]) as temporary:
        temporary.write_text(json_module.dumps(plain))
    return files


def write_truth(out: Path, truth: BoundaryTruth) -> None:
    """Write the ground truth in the benchmark's layout, so that ``timegrain score gebd`` can score against it."""
    with atomic_path(out) as temporary:
        temporary.write_bytes(pickle.dumps(truth.records(), protocol=4))


def write_scores(out: Path, scored: Scored) -> Path:
    """Write the benchmark's score sequences, a pickled dict from id to ``frame_idx`` (counted from 1) and ``scores``."""
    content = {
        key: {"frame_idx": (found.frames + 1).tolist(), "scores": found.scores.tolist()}
        for key, found in scored.scores.items()
    }
    with atomic_path(out) as temporary:
        temporary.write_bytes(pickle.dumps(content, protocol=4))
    return out


def headline(videos: Mapping[str, BoundaryVideo], boundaries: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The scores of :data:`METRICS`, by the challenge's program: seconds, a missing video counts as missed."""
    metric = BoundaryF1("challenge")
    metric.update(videos, boundaries)
    return _shown(gebd_row("", "", metric.compute()))


def _shown(row: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(row[name]) for name in METRICS}


def annotation_floors(truth: BoundaryTruth, train: BoundaryTruth | None) -> list[Row]:
    """Rows that look at no picture: even spacing, and annotators against each other where there are several.

    Args:
        truth: The videos scored.
        train: Videos to find the best spacing on; without them it is found on the scored ones, an upper bound.
    """
    rows = gebd_rows(truth.videos(), "challenge", None if train is None else train.videos())
    return [
        Row(
            row["name"] + (f" (chosen on {EVALUATED})" if row["chosen_on"] == EVALUATED else ""),
            _shown(row),
            "ceiling" if row["name"].startswith("human") else "floor",
        )
        for row in rows
    ]


def score_video_floors(truth: BoundaryTruth, folder: Path, workers: int | None = None) -> list[Row]:
    """Rows of detectors that learn nothing, on the videos themselves; their predictions are kept and used again.

    Args:
        truth: The videos scored.
        folder: Where predictions are kept, ``floor_NAME.json``.
        workers: Processes; all cores by default.
    """
    rows = []
    paths = dict(zip(truth.ids, truth.manifest.column("path").to_pylist(), strict=True))
    for name, detect in VIDEO_FLOORS.items():
        file = folder / f"floor_{name.split()[0].lower()}.json"
        known = json_module.loads(file.read_text()) if file.is_file() else {}
        todo = [key for key in paths if key not in known]
        files = [paths[key] for key in todo]
        if files:
            with VideoJournal(file, files, [repr(detect)] * len(files)) as journal:
                for _ in journal.run(detect, files, lambda _: TIME_LIMIT_SECONDS, workers, name):
                    pass  # a video that cannot be read counts as missed
                known.update((todo[video], journal.results[video]) for video in sorted(journal.results))
                with atomic_path(file) as temporary:
                    temporary.write_text(json_module.dumps(known))
        rows.append(Row(name, headline(truth.videos(), {k: known[k] for k in paths if k in known}), "floor"))
    return rows


def table(rows: Sequence[Row]) -> str:
    """The rows for people, in percent."""
    cells = [["", *METRICS.values()]]
    cells += [[row.method, *(f"{100 * row.scores[key]:.2f}" for key in METRICS)] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    lines = []
    for name, *numbers in cells:
        padded = [number.rjust(width) for number, width in zip(numbers, widths[1:], strict=True)]
        lines.append("  ".join([name.ljust(widths[0]), *padded]))
    return "\n".join(lines)


def score_and_write(
    detector: BoundaryDetector,
    truth: BoundaryTruth,
    train_truth: BoundaryTruth | None,
    out: Path,
    settings: BoundaryEvaluationConfig,
    workers: int,
    seed: int | None,
    split: str | None,
) -> tuple[dict[str, Any], list[str]]:
    """Score test videos, write everything, and give what was found as values and as lines for people."""
    began = time.time()
    out.mkdir(parents=True, exist_ok=True)
    config = detector.config
    picking = Picking(**config.picking)
    with scores_journal(out / "scores.pkl", detector, truth, settings.mode, settings.every) as journal:
        scored = score_truth(
            detector, truth, journal, mode=settings.mode, every=settings.every, batch_size=settings.batch_size,
            workers=workers,
        )  # fmt: skip
        boundaries = scored.boundaries(picking)
        submission, twin = write_submission(out / "predictions.pkl", boundaries)
        write_scores(out / "scores.pkl", scored)
    write_truth(out / "ground_truth.pkl", truth)
    kept = "frozen" if config.frozen else "fine-tuned"
    name = f"{config.method}, {kept}, {method_name(config.extra.get('started_from', {}))}"
    rows = [Row(name, headline(truth.videos(), boundaries), "trained", seed), *annotation_floors(truth, train_truth)]
    if settings.video_floors:
        rows += score_video_floors(truth, out, max(1, workers))
    coverage = truth.manifest.coverage
    stem = str(truth.manifest.path.stem) if truth.manifest.path is not None else "videos"
    benchmark = str((coverage or {}).get("benchmark", stem))
    protocol = {
        "program": "challenge (seconds; a missing video counts as missed)",
        "split": split,
        "mode": "dense" if config.frozen else settings.mode,
        "every": settings.every or config.every,
        "window": f"{config.num_frames} frames x stride {config.stride}",
        # What was chosen is each detector's own (it is in its weights); how, is the protocol.
        "picking": f"rule and threshold from training videos set aside, {picking.gap_seconds:g} s between boundaries",
    }
    seconds = time.time() - began
    write_result(out, Result(benchmark, "boundaries", METRICS, rows, protocol, coverage, len(truth), seconds=seconds))
    folder = truth.manifest.path.parent if truth.manifest.path is not None else None
    missing = f"; {len(scored.failures)} could not be read and count as missed" if scored.failures else ""
    lines = [
        f"{benchmark} {split or ''}: {len(truth)} videos{missing}. {picking.rule}, threshold {picking.threshold:.3g}",
        *coverage_lines(coverage, folder),
        table(rows),
        f"submission: {submission} (and {twin.name})",
    ]
    found = {
        "scores": dict(rows[0].scores), "floors": {row.method: dict(row.scores) for row in rows[1:]},
        "videos": len(truth), "failures": scored.failures, "predictions": str(submission),
        "ground_truth": str(out / "ground_truth.pkl"), "coverage": coverage,
    }  # fmt: skip
    return found, lines


def evaluate(
    manifest: Path,
    *,
    weights: Path,
    out: Path,
    split: str | None = None,
    mode: Mode = "windows",
    every: int | None = None,
    batch_size: int = 16,
    workers: int | None = None,
    device: str = "auto",
    video_floors: bool = True,
    seed: int | None = None,
    json: bool = False,
) -> None:
    """Score a trained detector on the videos of a manifest: submission file, F1 beside its floors, coverage.

    The same command continues after an interruption.

    Examples::

        timegrain boundaries evaluate gebd.parquet --weights runs/gebd-detector --out runs/gebd-detector/test --split val

    Args:
        manifest: Made by `timegrain prepare gebd` or `timegrain eventworld`.
        weights: Of `timegrain boundaries train`: the file, or the run's folder.
        out: Folder for predictions.pkl and .json, scores.pkl, ground_truth.pkl and result.json.
        split: Rows to score; by default the first of val, valnew, test that the manifest has.
        mode: windows as in training, or dense, which shares the work between windows.
        every: Source frames from one candidate to the next, if not as in training.
        batch_size: Windows that go through the backbone at once.
        workers: Processes that decode; one per free core by default.
        device: auto, cpu, cuda, mps.
        video_floors: Also score a change detector and PySceneDetect.
        seed: Of the training, noted in the result.
        json: Print one JSON object.
    """
    videos = Manifest.open(manifest)
    chosen = choose_split(videos, split)
    if chosen is None and videos.splits:  # else the videos that were trained on would be scored, too
        there = ", ".join(f"{name} ({count})" for name, count in videos.splits.items())
        raise ValueError(
            f"{manifest} has none of the splits that are scored by default; it has {there}: name one (--split)"
        )
    truth = BoundaryTruth.of(videos.select(chosen))
    trained_on = BoundaryTruth.of(videos.select("train")) if "train" in videos.splits and chosen != "train" else None
    detector = load_detector(weights).to(choose_device(device))
    if not detector.config.picking:
        print("warning: no threshold was chosen for these weights; 0.5 is used", file=sys.stderr)
    picked = detector.config.extra.get("picked", {})
    if picked and not detector.config.frozen and picked != {"mode": mode, "every": every}:
        print(
            f"warning: rule and threshold were chosen on scores of mode {picked['mode']}, every "
            f"{picked['every'] or detector.config.every} frames; other scores may want another threshold",
            file=sys.stderr,
        )
    settings = BoundaryEvaluationConfig(chosen, mode, every, batch_size, video_floors)
    found, lines = score_and_write(detector, truth, trained_on, out, settings, free_workers(workers), seed, chosen)
    print(json_module.dumps(found) if json else "\n".join(lines))
