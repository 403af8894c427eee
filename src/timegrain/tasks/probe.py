"""``timegrain probe``: what frozen features know about labelled videos, beside what no training knows.

Protocol: the feature of a video is the mean over its views; every encoder sees the same views. Linear probe: multinomial
logistic regression on standardised features, its penalty chosen by cross-validation on the training videos alone, groups
kept together. kNN: weighted votes of the training videos. Retrieval: CoCLR's.
"""

from __future__ import annotations

import json as json_module
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Literal

import numpy as np
import torch
import yaml
from torch import Tensor, nn

from timegrain.data.coverage import coverage_lines
from timegrain.data.manifest import Manifest
from timegrain.data.views import Views
from timegrain.features import FeatureTable, PixelFeatures, features_of_encoders, views_of
from timegrain.files import atomic_path
from timegrain.metrics.retrieval import RetrievalRecall
from timegrain.models.hub import EncoderConfig, VideoEncoder
from timegrain.models.weights import find_encoder, fingerprint
from timegrain.probes import LinearProbe, accuracy, knn_predict, majority_accuracy, nearest
from timegrain.report.figures import Neighbours, nearest_neighbours
from timegrain.report.frames import sample_frames
from timegrain.report.results import Result, Role, Row, method_name, write_result
from timegrain.tasks.division import Task, choose_videos, divide

RANKS = (1, 5, 10)
SCORES = {"linear": "linear probe", "knn": "kNN", "R@1": "R@1", "R@5": "R@5", "R@10": "R@10"}
RANDOM, PIXELS, COMMONEST = "random weights", "raw pixels", "commonest class"
_RESULT_KEYS = {"linear": "top1", "linear_top5": "top5"}


@dataclass(frozen=True)
class Candidate:
    """One encoder of the table.

    Args:
        method: What tables call it; the seeds of one method share a row.
        role: Whether it was trained or is a floor.
        seed: Of its training or of its random weights.
        encoder: From clips to features.
    """

    method: str
    role: Role
    seed: int | None
    encoder: nn.Module


def probe(
    *,
    weights: list[str] | str,
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
    Weights of several runs make one table: runs of one method are its seeds, shown as mean and standard deviation.
    Features are kept in OUT/features; the same videos are not decoded again. Writes OUT/result.json (what `timegrain
    report` reads), OUT/probe.json (everything, also the penalties chosen) and OUT/neighbours.png (of the first weights).
    The papers' full protocol takes --num_clips 10 --num_crops 3; their classifier, trained on augmented clips by SGD, is
    `timegrain probe linear`, a learned query on the time steps `timegrain probe attentive`.

    Examples::

        timegrain probe --weights runs/VIDEOS-a0.9/weights.safetensors --manifest m.parquet
        timegrain probe --weights W.safetensors --manifest m.parquet --hold-out 0.25 --json
        timegrain probe --weights runs/ps-0 runs/ps-1 runs/ps-2 --manifest m.parquet --out runs/probe

    Args:
        weights: One or several: .safetensors files, folders of pre-training runs, or OWNER/NAME on the Hugging Face Hub.
        manifest: Videos with labels, from `timegrain manifest scan`.
        out: Folder for results and features; by default `probe` beside the (first) weights.
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
    started = time.perf_counter()
    if min(num_neighbours, batch_size) < 1 or not temperature > 0:
        raise ValueError(
            "--num-neighbours and --batch-size must be at least 1 and --temperature above 0, got "
            f"{num_neighbours}, {batch_size} and {temperature:g}"
        )
    sources = [weights] if isinstance(weights, str) else list(weights)
    trained = find_encoders(sources)
    config = trained[0].config
    out = out or _beside(sources[0]) / "probe"
    everything = Manifest.open(manifest)
    used, task_rule = choose_videos(everything, split_train, split_test, hold_out)
    views = views_of(trained[0], num_clips, num_crops)
    candidates = [
        Candidate(method_name(encoder.config.extra), _role(encoder), seed_of_run(source), encoder)
        for source, encoder in zip(sources, trained, strict=True)
    ]
    candidates += [Candidate(RANDOM, "floor", s, random_encoder(config, s)) for s in range(random_seeds)]
    if pixels:
        candidates.append(Candidate(PIXELS, "floor", None, PixelFeatures()))
    found = features_of_encoders(
        {str(place): candidate.encoder for place, candidate in enumerate(candidates)},
        used, views, cache_folder=out / "features", device=device, batch_size=batch_size, workers=workers,
    )  # fmt: skip
    tables = list(found.values())
    task = divide(tables[0], everything, task_rule, split_train, hold_out, seed)
    scores = [
        score(table.features, task, num_neighbours=num_neighbours, temperature=temperature, seed=seed)
        for table in tables
    ]
    by_method: dict[str, list[dict[str, float]]] = {}
    for candidate, values in zip(candidates, scores, strict=True):
        by_method.setdefault(candidate.method, []).append(values)
    test_labels, train_labels = task.labels[~task.train], task.labels[task.train]
    broken = tables[0].broken
    majority = majority_accuracy(test_labels, train_labels)
    protocol = {
        "views": asdict(views),
        "division": task.rule,
        "linear": "logistic regression on standardised features, l2 by 5-fold cross-validation on training videos",
        "knn": {"num_neighbours": min(num_neighbours, len(train_labels)), "temperature": temperature},
        "retrieval": "test videos ask, training videos answer; each set centred, cosine similarity",
        "raw_pixels": str(PixelFeatures()) if pixels else None,
    }
    record = {
        "encoders": [
            {
                "weights": source,
                "method": candidate.method,
                "seed": candidate.seed,
                "fingerprint": fingerprint(encoder),
                "backbone": encoder.config.backbone,
                "trained": encoder.config.extra,
            }
            for source, candidate, encoder in zip(sources, candidates[: len(sources)], trained, strict=True)
        ],
        "manifest": str(manifest),
        "coverage": everything.coverage,
        "protocol": protocol,
        "num_train": len(train_labels),
        "num_test": len(test_labels),
        "num_classes": len(task.class_names),
        "broken": [{"path": path, "reason": reason} for path, reason in broken],
        "majority": majority,
        "scores": by_method,
    }
    with atomic_path(out / "probe.json") as temporary:
        temporary.write_text(json_module.dumps(record, indent=2) + "\n")
    rows = [
        Row(candidate.method, _for_result(values), candidate.role, candidate.seed)
        for candidate, values in zip(candidates, scores, strict=True)
    ]
    rows.append(Row(COMMONEST, {"top1": majority}, "floor"))
    benchmark = (everything.coverage or {}).get("benchmark", manifest.stem)
    metrics = {_RESULT_KEYS.get(key, key): title for key, title in SCORES.items()}
    write_result(
        out,
        Result(benchmark, "linear probe", metrics, rows, protocol, everything.coverage, len(test_labels),
               seconds=time.perf_counter() - started),
    )  # fmt: skip
    _draw_neighbours(tables[0], task, out / "neighbours.png")
    for path, reason in broken:
        print(f"could not read {path}: {reason}", file=sys.stderr)
    print(json_module.dumps(record) if json else _report(record, views, out))


def find_encoders(sources: Sequence[str]) -> list[VideoEncoder]:
    """Read encoders that can stand in one table: of one network, trained on clips of one shape.

    Raises:
        ValueError: There are none, or two of them differ; the message says in what.
    """
    if not sources:
        raise ValueError("name at least one file or folder of weights")
    encoders = [find_encoder(source) for source in sources]
    shared = ("backbone", "backbone_options", "clip_num_frames", "clip_stride", "crop_size")
    for source, encoder in zip(sources, encoders, strict=True):
        for name in shared:
            here, there = getattr(encoder.config, name), getattr(encoders[0].config, name)
            if here != there:
                raise ValueError(
                    f"{source} has {name} {here}, {sources[0]} has {there}; weights in one table share the network, so "
                    "that its random weights are the floor of all, and the shape of the clips. Probe them apart"
                )
    return encoders


def _role(encoder: VideoEncoder) -> Role:
    """Trained with labels is a ceiling, not what is asked about."""
    return "ceiling" if encoder.config.extra.get("objective") == "supervised" else "trained"


def seed_of_run(source: str) -> int | None:
    """The seed that the config.yaml beside the weights of a run names; None where there is no such file."""
    config = _beside(source) / "config.yaml"
    if not Path(source).exists() or not config.exists():
        return None
    try:
        seed = (yaml.safe_load(config.read_text()) or {}).get("run", {}).get("seed")
    except (yaml.YAMLError, UnicodeDecodeError, AttributeError) as error:
        raise ValueError(f"{config}, beside the weights, is damaged: {' '.join(str(error).split())}") from error
    return int(seed) if seed is not None else None


def _for_result(scores: Mapping[str, float]) -> dict[str, float]:
    """Scores under the keys that results of all tasks share."""
    return {_RESULT_KEYS.get(key, key): value for key, value in scores.items() if key != "l2"}


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
    lines.append(f"{COMMONEST:<22}{record['majority']:>16.3f}")
    share = next(iter(record["scores"].values()))[0]["linear"]
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
