"""``timegrain probe``: what frozen features know about labelled videos, beside what no training knows.

Protocol: the feature of a video is the mean over its views; every encoder sees the same views. Linear probe: multinomial
logistic regression on standardised features, its penalty chosen by cross-validation on the training videos alone, groups
kept together. kNN: weighted votes of the training videos. Retrieval: CoCLR's.
"""

from __future__ import annotations

import json as json_module
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from timegrain.data.coverage import coverage_lines
from timegrain.data.manifest import Manifest
from timegrain.data.views import Views
from timegrain.features import FeatureTable, PixelFeatures, class_numbers, features_of_encoders, views_of
from timegrain.files import atomic_path
from timegrain.metrics.retrieval import RetrievalRecall
from timegrain.models.hub import EncoderConfig, VideoEncoder
from timegrain.models.weights import find_encoder, fingerprint
from timegrain.probes import LinearProbe, accuracy, grouped_folds, knn_predict, majority_accuracy, nearest
from timegrain.report.figures import Neighbours, nearest_neighbours
from timegrain.report.frames import sample_frames

RANKS = (1, 5, 10)
SCORES = {"linear": "linear probe", "knn": "kNN", "R@1": "R@1", "R@5": "R@5", "R@10": "R@10"}
TRAINED, RANDOM, PIXELS = "weights", "random weights", "raw pixels"


@dataclass(frozen=True)
class Task:
    """Labelled videos, divided.

    Attributes:
        train: (N,) which videos are for training.
        labels: (N,) class numbers.
        class_names: The classes.
        groups: (N,) groups or None.
        rule: How the videos were divided, in words.
    """

    train: Tensor
    labels: Tensor
    class_names: tuple[str, ...]
    groups: tuple[str | None, ...]
    rule: str


def probe(
    *,
    weights: str,
    manifest: Path,
    out: Path | None = None,
    split_train: str = "train",
    split_test: str = "test",
    hold_out: float | None = None,
    num_clips: int = 3,
    num_crops: Literal[1, 3] = 1,
    num_neighbours: int = 200,
    temperature: float = 0.1,
    random_seeds: int = 3,
    pixels: bool = True,
    seed: int = 0,
    device: str = "auto",
    batch_size: int = 8,
    workers: int | None = None,
    json: bool = False,
) -> None:
    """Measure what frozen features know about labelled videos: linear probe, kNN and nearest-neighbour retrieval.

    The same is measured for random weights of the same network and for raw pixels, so that a number can be judged.
    Features are kept in OUT/features; the same videos are not decoded again. Writes OUT/probe.json and
    OUT/neighbours.png. The papers' full protocol takes --num_clips 10 --num_crops 3.

    Examples::

        timegrain probe --weights runs/VIDEOS-a0.9/weights.safetensors --manifest m.parquet
        timegrain probe --weights W.safetensors --manifest m.parquet --hold-out 0.25 --json

    Args:
        weights: A .safetensors file, the folder of a pre-training run, or OWNER/NAME on the Hugging Face Hub.
        manifest: Videos with labels, from `timegrain manifest scan`.
        out: Folder for results and features; by default `probe` beside the weights.
        split_train: Split whose videos the probe learns from.
        split_test: Split that is scored.
        hold_out: For a manifest without test videos: the share of the training videos to score, whole groups at a time.
        num_clips: Clips per video, evenly spaced.
        num_crops: Crops per clip, 1 or 3.
        num_neighbours: Votes of kNN, at most the number of training videos.
        temperature: Of the votes' weights, exp(cosine similarity / temperature).
        random_seeds: How many random initialisations to measure; 0 leaves them out.
        pixels: Whether to measure raw pixels.
        seed: Of the folds and of the held-out part.
        device: auto, cpu, cuda, mps.
        batch_size: Views that go through the network at once.
        workers: Processes that decode; by default one fewer than there are cores.
        json: Print one JSON object.
    """
    encoder = find_encoder(weights)
    out = out or _beside(weights) / "probe"
    everything = Manifest.open(manifest)
    used, task_rule = choose_videos(everything, split_train, split_test, hold_out)
    views = views_of(encoder, num_clips, num_crops)
    encoders: dict[str, nn.Module] = {TRAINED: encoder}
    encoders |= {f"{RANDOM} {number}": random_encoder(encoder.config, number) for number in range(random_seeds)}
    if pixels:
        encoders[PIXELS] = PixelFeatures()
    tables = features_of_encoders(
        encoders, used, views, cache_folder=out / "features", device=device, batch_size=batch_size, workers=workers
    )
    task = divide(tables[TRAINED], everything, task_rule, split_train, hold_out, seed)
    scores: dict[str, list[dict[str, float]]] = {}
    for name, table in tables.items():
        group = RANDOM if name.startswith(RANDOM) else name
        scores.setdefault(group, []).append(
            score(table.features, task, num_neighbours=num_neighbours, temperature=temperature, seed=seed)
        )
    test_labels, train_labels = task.labels[~task.train], task.labels[task.train]
    broken = tables[TRAINED].broken
    record = {
        "weights": str(weights),
        "fingerprint": fingerprint(encoder),
        "backbone": encoder.config.backbone,
        "trained": encoder.config.extra,
        "manifest": str(manifest),
        "coverage": everything.coverage,
        "protocol": {
            "views": asdict(views),
            "division": task.rule,
            "linear": "logistic regression on standardised features, l2 by 5-fold cross-validation on training videos",
            "knn": {"num_neighbours": min(num_neighbours, len(train_labels)), "temperature": temperature},
            "retrieval": "test videos ask, training videos answer; each set centred, cosine similarity",
            "raw_pixels": str(PixelFeatures()) if pixels else None,
        },
        "num_train": len(train_labels),
        "num_test": len(test_labels),
        "num_classes": len(task.class_names),
        "broken": [{"path": path, "reason": reason} for path, reason in broken],
        "majority": majority_accuracy(test_labels, train_labels),
        "scores": scores,
    }
    with atomic_path(out / "probe.json") as temporary:
        temporary.write_text(json_module.dumps(record, indent=2) + "\n")
    _draw_neighbours(tables[TRAINED], task, out / "neighbours.png")
    for path, reason in broken:
        print(f"could not read {path}: {reason}", file=sys.stderr)
    print(json_module.dumps(record) if json else _report(record, views, out))


def choose_videos(
    manifest: Manifest, split_train: str, split_test: str, hold_out: float | None
) -> tuple[Manifest, dict[str, str]]:
    """The labelled, usable videos of the task, and of each whether it is ``train``, ``test`` or to be divided.

    Returns:
        The videos, and by path their split; empty where videos are held out.

    Raises:
        ValueError: There are no labels, only one class, or no such split; the message says what to do.
    """
    name = str(manifest.path or "the manifest")
    usable = manifest.select(usable=True)
    labels = usable.column("label").to_pylist()
    if not any(labels):
        raise ValueError(
            f"{name} has no labels, which a probe needs. `timegrain manifest scan` takes them from the folders' names "
            "or from a csv file (--labels)"
        )
    splits = usable.column("split").to_pylist()
    if hold_out is not None and not 0 < hold_out < 1:
        raise ValueError(f"hold_out is a share of the videos, between 0 and 1; got {hold_out}")
    if hold_out is not None:
        wanted = {split_train} if split_train in splits else set(splits)
    else:
        wanted = {split_train, split_test}
        for split in (split_train, split_test):
            if split not in splits:
                there = ", ".join(f"{key} ({count})" for key, count in usable.splits.items()) or "no splits"
                raise ValueError(
                    f"{name} has no usable video in split {split!r}; it has {there}. Name others with --split_train and "
                    "--split_test, or let a part of the training videos be tested on, whole groups at a time, with "
                    "--hold_out 0.25"
                )
    keep = [i for i, (label, split) in enumerate(zip(labels, splits, strict=True)) if label and split in wanted]
    found = {labels[i] for i in keep}
    if len(found) < 2:
        raise ValueError(
            f"{name} has {len(found)} class{'es' * (len(found) != 1)} among the videos of the task; a probe needs two"
        )
    paths = usable.column("path").to_pylist()
    rows = [{name: value for name, value in vars(usable[i]).items() if name != "extra"} for i in keep]
    chosen = Manifest.from_rows(rows, folder=Path(name).parent)
    return chosen, {} if hold_out is not None else {paths[i]: splits[i] for i in keep}


def divide(
    table: FeatureTable,
    manifest: Manifest,
    splits: Mapping[str, str],
    split_train: str,
    hold_out: float | None,
    seed: int,
) -> Task:
    """Training and test videos among those that could be read.

    Raises:
        ValueError: One side is empty or has a single class to learn.
    """
    class_names = tuple(name for name in manifest.class_names if name in set(table.labels))
    labels = class_numbers(table.labels, class_names)
    if hold_out is None:
        train = torch.tensor([splits[path] == split_train for path in table.paths])
        rule = "by the manifest's splits"
    else:
        rng = np.random.default_rng(seed)
        folds = grouped_folds(labels.numpy(), table.groups, max(2, round(1 / hold_out)), rng)
        train = torch.from_numpy(folds != 0)
        grouped = "whole groups" if any(table.groups) else "single videos (no groups known)"
        rule = f"{float((~train).float().mean()):.0%} held out, {grouped} drawn at random with seed {seed}"
    if not train.any() or train.all() or len(set(labels[train].tolist())) < 2:
        raise ValueError(
            f"{int(train.sum())} videos of {len(set(labels[train].tolist()))} classes to learn from and "
            f"{int((~train).sum())} to test on are not enough for a probe"
        )
    return Task(train, labels, class_names, table.groups, rule)


def score(
    features: Tensor, task: Task, *, num_neighbours: int = 200, temperature: float = 0.1, seed: int = 0
) -> dict[str, float]:
    """All scores of one encoder: shares of the test videos, and the penalty that was chosen.

    Args:
        features: (N, D) of the task's videos.
        task: Which are for training, and their classes.
        num_neighbours: Of kNN.
        temperature: Of kNN.
        seed: Of the folds.
    """
    train, test = features[task.train], features[~task.train]
    train_labels, test_labels = task.labels[task.train], task.labels[~task.train]
    groups = [group for group, chosen in zip(task.groups, task.train.tolist(), strict=True) if chosen]
    num_classes = len(task.class_names)
    linear = LinearProbe.train(train, train_labels, num_classes, groups=groups, rng=np.random.default_rng(seed))
    votes = knn_predict(test, train, train_labels, num_classes, num_neighbours=num_neighbours, temperature=temperature)
    recall = RetrievalRecall(RANKS)
    recall.update("gallery", train.numpy(), train_labels.numpy())
    recall.update("query", test.numpy(), test_labels.numpy())
    logits = linear.logits(test)
    result = {"linear": accuracy(logits, test_labels), "knn": accuracy(votes, test_labels)}
    if num_classes > 5:
        result["linear_top5"] = accuracy(logits, test_labels, top=5)
    result |= {f"R@{k}": value for k, value in recall.compute()["recall_at"].items()}
    return result | {"l2": linear.l2}


def random_encoder(config: EncoderConfig, seed: int) -> VideoEncoder:
    """The same network before any training; other draws of random numbers are left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return VideoEncoder(config).eval()


def _beside(weights: str) -> Path:
    path = Path(weights)
    return path if path.is_dir() else path.parent if path.exists() else Path()


def _report(record: Mapping[str, Any], views: Views, out: Path) -> str:
    """The table for people."""

    def cell(values: Sequence[float]) -> str:
        spread = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
        return f"{mean(values):.3f}{spread}"

    lines = [
        f"{record['num_train']:,} training videos, {record['num_test']:,} test videos, {record['num_classes']} classes, "
        f"{record['protocol']['division']}",
        *coverage_lines(record["coverage"], Path(record["manifest"]).parent),
        f"{views}",
        "",
        f"{'':<22}" + "".join(f"{name:>16}" for name in SCORES.values()),
    ]
    for name, runs in record["scores"].items():
        title = f"{name} ({len(runs)} seeds)" if len(runs) > 1 else name
        lines.append(f"{title:<22}" + "".join(f"{cell([run[key] for run in runs]):>16}" for key in SCORES))
    lines.append(f"{'commonest class':<22}{record['majority']:>16.3f}")
    share = record["scores"][TRAINED][0]["linear"]
    doubt = 2 * (max(share * (1 - share), 0.01) / record["num_test"]) ** 0.5
    lines += [
        "",
        f"With {record['num_test']:,} test videos, shares are known to about ± {doubt:.2f}.",
        f"{out / 'probe.json'}",
    ]
    if record["broken"]:
        lines.append(f"{len(record['broken'])} videos could not be read and are left out")
    return "\n".join(lines)


def _draw_neighbours(table: FeatureTable, task: Task, path: Path, num_queries: int = 5, num_found: int = 5) -> None:
    """A picture of some test videos, spread over the classes, and their nearest training videos."""
    train, test = (torch.nonzero(mask).flatten() for mask in (task.train, ~task.train))
    by_class = test[task.labels[test].argsort(stable=True)]
    spread = torch.linspace(0, len(by_class) - 1, min(num_queries, len(by_class))).round().long()
    queries = by_class[spread]
    # Centred by all test videos, not by the few that are drawn.
    found, _ = nearest(table.features[test], table.features[train], num_found)
    position = {int(video): place for place, video in enumerate(test.tolist())}

    def shown(video: int) -> tuple[np.ndarray, str]:
        return sample_frames(table.paths[video], 1, 120)[0][0], str(table.labels[video])

    rows = [
        Neighbours(shown(query), [shown(int(train[place])) for place in found[position[query]].tolist()])
        for query in queries.tolist()
    ]
    with atomic_path(path) as temporary:
        temporary.write_bytes(nearest_neighbours(rows))
