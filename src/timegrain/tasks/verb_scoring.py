"""Predicting VidSitu's verbs: what models say of the five events of each video, in the official form, with its scores."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from timegrain.data.event_clips import ClipsAroundEvents, VideoEvents
from timegrain.data.location import shown
from timegrain.data.manifest import Manifest
from timegrain.data.transforms import to_model_input
from timegrain.data.views import VideoViews, load_views
from timegrain.files import atomic_path
from timegrain.metrics.matching import WithinVideoMatching
from timegrain.metrics.verbs import NUM_EVENTS, NUM_RANKS, VerbScores
from timegrain.progress import track
from timegrain.report.results import Row
from timegrain.sampling import ClipSpec
from timegrain.tasks.floor_rows import vidsitu_rows

METRICS = {"acc@1": "Acc@1", "acc@5": "Acc@5", "rec@5": "Rec@5", "vid@1": "Vid@1", "matching": "within-video matching"}
FloatArray = npt.NDArray[np.float32]


@torch.inference_mode()
def event_outputs(
    models: Mapping[str, Callable[[Tensor], Tensor]],
    manifest: Manifest,
    events: VideoEvents,
    spec: ClipSpec,
    crop_size: int,
    *,
    num_crops: int = 1,
    device: torch.device,
    batch_size: int = 8,
    workers: int | None = None,
    description: str = "events",
) -> tuple[dict[str, FloatArray], dict[int, str]]:
    """What models give for the clip around each event, every video decoded once.

    Args:
        models: From clips (B, C, T, H, W) in [0, 1] to (B, D), by name; on ``device``, in evaluation mode.
        manifest: Videos.
        events: Of these videos.
        spec: Shape of the clips.
        crop_size: The shorter side, and the crops' height and width.
        num_crops: 1 or 3; outputs are averaged over them.
        device: Where the models are.
        batch_size: Clips that go through a model at once.
        workers: Processes that decode.
        description: The words before the progress line.

    Returns:
        By name (videos, 5, D), zero where a video could not be read, and the reason by number of such a video.
    """
    paths = manifest.column("path").to_pylist()
    data = VideoViews(paths, range(len(paths)), ClipsAroundEvents(events.centres, spec), crop_size, num_crops)
    found: dict[str, FloatArray] = {}
    broken: dict[int, str] = {}
    for video, clips in track(load_views(data, workers), description, len(paths)):
        if isinstance(clips, str):
            broken[video] = clips
            continue
        for name, model in models.items():
            pieces = [model(to_model_input(piece.to(device))).float().cpu() for piece in clips.split(batch_size)]  # type: ignore[no-untyped-call]
            outputs = torch.cat(pieces).numpy()
            outputs = outputs.reshape(-1, num_crops, outputs.shape[1]).mean(1)
            found.setdefault(name, np.zeros((len(paths), *outputs.shape), np.float32))[video] = outputs
    if len(broken) == len(paths):
        raise ValueError(f"none of the {len(paths)} videos could be read; the first: {shown(paths[0])}: {broken[0]}")
    return found, broken


def ranked_verbs(scores: FloatArray, verbs: Sequence[str]) -> tuple[list[list[list[str]]], list[list[list[float]]]]:
    """The five best verbs of every event with their scores, best first; ties to the earlier verb.

    Args:
        scores: (videos, 5, K).
        verbs: K names.
    """
    best = np.argsort(-scores, axis=-1, kind="stable")[..., :NUM_RANKS]
    names = np.array(verbs, dtype=object)[best]
    values = np.take_along_axis(scores, best, -1)
    return names.tolist(), values.astype(float).tolist()


def write_predictions(path: Path, scores: FloatArray, verbs: Sequence[str], index_in_split: Sequence[int]) -> None:
    """Write the official prediction file: a pickled list of ``ann_idx``, ``pred_vbs_ev`` and ``pred_scores_ev``."""
    names, values = ranked_verbs(scores, verbs)
    entries = [
        {"pred_vbs_ev": n, "pred_scores_ev": v, "ann_idx": int(index)}
        for n, v, index in zip(names, values, index_in_split, strict=True)
    ]
    with atomic_path(path) as temporary:
        temporary.write_bytes(pickle.dumps(entries, protocol=4))


def check_annotators(events: VideoEvents) -> None:
    """Raise a ValueError where the annotators' verbs of a video are not known: only validation can be scored."""
    without = [number for number, sets in enumerate(events.verb_sets) if len(sets) != NUM_EVENTS]
    if without:
        raise ValueError(
            f"the annotators' verbs of {len(without)} of {len(events.verb_sets)} videos are not in the manifest; they are "
            "published for the validation split (--data.split_test val)"
        )


def score_verbs(scores: FloatArray, verbs: Sequence[str], events: VideoEvents) -> dict[str, float]:
    """The scores of :data:`METRICS`, as shares."""
    metric, matching = VerbScores(), WithinVideoMatching()
    for named, sets in zip(ranked_verbs(scores, verbs)[0], events.verb_sets, strict=True):
        metric.update(named, sets)
        matching.update(named, sets)
    found = metric.compute() | {"matching": matching.compute()["accuracy"]}
    return {key: float(found[key]) for key in METRICS}


def verb_floors(train: VideoEvents, tested: VideoEvents) -> list[Row]:
    """Rows that look at no video: constant verbs as floors; what knows the labels, or people, as ceilings."""
    labels = {str(number): tuple(map(tuple, sets)) for number, sets in enumerate(tested.verb_sets)}
    rows: list[Row] = []
    found: list[dict[str, Any]] = vidsitu_rows(labels, [tuple(verbs) for verbs in train.verbs])
    for row in found:
        scores = {key: float(row[key]) for key in METRICS if row.get(key) is not None}
        if not scores:  # one annotator: there is nobody to compare people with
            continue
        knows_labels = any(word in str(row["name"]) for word in ("oracle", "shuffle", "human"))
        rows.append(Row(str(row["name"]), scores, "ceiling" if knows_labels else "floor"))
    return rows
