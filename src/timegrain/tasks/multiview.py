"""Testing a classifier on whole videos: evenly spaced clips and crops, softmax averaged, every video decoded once."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from timegrain.data.location import shown
from timegrain.data.manifest import Manifest
from timegrain.data.transforms import Rounding, to_model_input
from timegrain.data.views import VideoViews, Views, load_views
from timegrain.files import atomic_path
from timegrain.metrics.topk import TopKAccuracy
from timegrain.progress import track

Model = Callable[[Tensor], Tensor]


@torch.inference_mode()
def view_logits(
    models: Mapping[str, Model],
    manifest: Manifest,
    views: Views,
    *,
    device: torch.device,
    rounding: Rounding = "truncate",
    batch_size: int = 8,
    workers: int | None = None,
) -> tuple[dict[str, npt.NDArray[np.float32]], npt.NDArray[np.int64], list[tuple[str, str]]]:
    """Logits of every view of every video, of several models in one decode pass.

    Args:
        models: From clips (B, C, T, H, W) in [0, 1] to logits (B, K), by name; in evaluation mode.
        manifest: Videos.
        views: How they are seen.
        device: Where the models are.
        rounding: Of resized pixels.
        batch_size: Views that go through a model at once.
        workers: Processes that decode.

    Returns:
        Logits (videos · views, K) by name, the numbers of the clips that were seen (clip c is view ``c % views`` of
        video ``c // views``), and path and reason of each video that could not be read; its rows are 0.
    """
    paths = manifest.column("path").to_pylist()
    seen: list[int] = []
    broken: list[tuple[str, str]] = []
    logits: dict[str, npt.NDArray[np.float32]] = {}
    data = VideoViews.of(paths, range(len(paths)), views, rounding)
    for video, clips in track(load_views(data, workers), "testing", len(paths)):
        if isinstance(clips, str):
            broken.append((shown(paths[video]), clips))
            continue
        first = video * views.count
        seen += range(first, first + views.count)
        for name, model in models.items():
            pieces = [model(to_model_input(piece.to(device))).float().cpu() for piece in clips.split(batch_size)]  # type: ignore[no-untyped-call]
            found = torch.cat(pieces).numpy()
            if name not in logits:
                logits[name] = np.zeros((len(paths) * views.count, found.shape[1]), np.float32)
            logits[name][first : first + views.count] = found
    if not seen:
        path, reason = broken[0]
        raise ValueError(f"none of the {len(paths)} test videos could be read; the first: {path}: {reason}")
    return logits, np.array(seen, np.int64), broken


def score_views(
    labels: Sequence[int] | npt.NDArray[np.int64],
    logits: npt.NDArray[np.float32],
    clip_ids: npt.NDArray[np.int64],
    num_views: int,
) -> dict[str, float]:
    """Shares of right videos: ``top1``, ``top5`` (where there are more than five classes), ``mean_class_accuracy``."""
    metric = TopKAccuracy(labels, logits.shape[1], num_views)
    metric.update(clip_ids, logits[clip_ids])
    found = metric.compute()
    scores = {"top1": found["top1"] / 100, "mean_class_accuracy": found["mean_class_accuracy"]}
    return scores | ({"top5": found["top5"] / 100} if logits.shape[1] > 5 else {})


def write_view_logits(
    path: Path,
    labels: npt.NDArray[np.int64],
    logits: npt.NDArray[np.float32],
    clip_ids: npt.NDArray[np.int64],
    num_views: int,
) -> None:
    """Write what `timegrain score topk` reads: a pickled dict of arrays, whole or not at all."""
    values = {"labels": labels, "clip_ids": clip_ids, "logits_by_clip_id": logits, "views_per_video": num_views}
    with atomic_path(path) as temporary:
        temporary.write_bytes(pickle.dumps(values, protocol=4))
