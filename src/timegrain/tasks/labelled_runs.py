"""One run on labelled videos from its settings to its numbers: training, test, floors, files; for one split or several."""

from __future__ import annotations

import json as json_module
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Literal

import numpy as np
import torch
from lightning import Trainer, seed_everything
from torch import Tensor, nn

from timegrain.callbacks import FailedVideos, run_record
from timegrain.data.clip_dataset import collate
from timegrain.data.coverage import coverage_lines
from timegrain.data.labelled_clips import AnywhereInVideo, LabelledClips
from timegrain.data.location import shown
from timegrain.data.manifest import Manifest
from timegrain.data.transforms import AugmentConfig
from timegrain.data.views import Views
from timegrain.models.classifiers import AttentiveClassifier, LinearClassifier
from timegrain.models.hub import EncoderConfig, VideoEncoder
from timegrain.models.weights import choose_device, find_encoder
from timegrain.optim import OptimConfig
from timegrain.report.results import Result, Row, method_name, write_result
from timegrain.sampling import ClipSpec
from timegrain.tasks.classification import TRAINED, ClassificationTask, bare_encoder
from timegrain.tasks.classifier_config import BackboneConfig, ClassifierConfig, EvaluationConfig, LabelledDataConfig
from timegrain.tasks.config import TrainingConfig, refuse_ignored
from timegrain.tasks.multiview import score_views, view_logits, write_view_logits
from timegrain.tasks.resuming import go_on
from timegrain.tasks.run_folder import Scoring, open_run, set_aside_result
from timegrain.tasks.setup import Schedule, build_cache, build_loader, free_workers, is_first_process, plan
from timegrain.tasks.training import fit, quieten

Task = Literal["fine-tune", "from scratch", "linear probe", "attentive probe"]
COMMANDS: Mapping[Task, str] = {
    "fine-tune": "finetune",
    "from scratch": "finetune",
    "linear probe": "probe linear",
    "attentive probe": "probe attentive",
}
SCORING = Scoring(frozenset({"test", "data.split_test"}), ("clips.pkl", "result.json"))
METRICS = {"top1": "top-1", "top5": "top-5", "mean_class_accuracy": "mean class accuracy"}
SCRATCH_NAMES = {
    "i3d_r50": "I3D",
    "i3d_r50_nl": "I3D + NL",
    "slow_r50": "Slow R50",
    "slow_r50_nl": "Slow R50 + NL",
    "slowfast_r50": "SlowFast",
    "slowfast_r50_nl": "SlowFast + NL",
}


@dataclass(frozen=True)
class Settings:
    """Everything that a command of this kind is told.

    Attributes:
        weights: As :func:`timegrain.models.weights.find_encoder` takes them; None or "none" trains from scratch.
        model: Which network from scratch.
        data: Which videos and clips.
        classifier: What stands on the features.
        augment: How training clips are changed.
        optim: Optimiser.
        run: How long, on what, where to.
        test: How test videos are seen.
        split: Numbers of the benchmark's own divisions into training and test videos; None takes the manifest's.
    """

    weights: str | None
    model: BackboneConfig
    data: LabelledDataConfig
    classifier: ClassifierConfig
    augment: AugmentConfig
    optim: OptimConfig
    run: TrainingConfig
    test: EvaluationConfig
    split: list[int] | None = None


def run_splits(task: Task, settings: Settings, json: bool) -> None:
    """Train and test on each split, print scores, floors and their mean, and write ``result.json``.

    Raises:
        ValueError: The manifest has no such videos, or a setting does not fit; the message says what to do.
    """
    quieten()
    started = time.time()
    source = settings.data.manifest
    if source is None:
        raise ValueError("name the videos: --data.manifest FILE.parquet (`timegrain manifest scan FOLDER` makes one)")
    settings = replace(settings, weights=None if settings.weights in (None, "none") else settings.weights)
    if settings.weights is None and task != "fine-tune":
        raise ValueError(f"a {task} needs --weights; random weights are probed beside them anyway")
    task = "from scratch" if settings.weights is None else task
    _refuse_ignored(task, settings.classifier)
    everything = Manifest.open(source)
    out = settings.run.out or Path("runs") / f"{source.stem}-{COMMANDS[task].replace(' ', '-')}"
    numbers: list[int | None] = list(settings.split) if settings.split else [None]
    manifests = [everything if number is None else everything.with_split(f"split{number}") for number in numbers]
    runs = []
    for number, manifest in zip(numbers, manifests, strict=True):
        place = out if len(numbers) == 1 else out / f"split{number}"
        chosen = replace(settings, run=replace(settings.run, out=place), split=None if number is None else [number])
        runs.append(_train_and_test(task, chosen, manifest))
    if not is_first_process():
        return
    rows = _rows([run.rows for run in runs])
    views = runs[0].views
    protocol = {
        "task": task,
        "split": settings.split,
        "split_test": runs[0].settings.data.split_test,
        "test": f"{views}, softmax averaged",
        "rounding": settings.test.rounding,
        "clips": f"{runs[0].settings.data.num_frames} frames x stride {runs[0].settings.data.stride}",
        "epochs": settings.run.epochs if settings.run.steps is None else None,
        "steps": settings.run.steps,
    }
    if len(runs) > 1:
        set_aside_result(out, protocol)
    seconds = time.time() - started
    coverage = everything.coverage
    benchmark = str((coverage or {}).get("benchmark", source.stem))
    metrics = {key: name for key, name in METRICS.items() if key in rows[0].scores}
    num_test = sum(run.num_test for run in runs)
    file = write_result(out, Result(benchmark, task, metrics, rows, protocol, coverage, num_test, seconds=seconds))
    broken = [item for run in runs for item in run.broken]
    record = {
        "result": str(file), "task": task, "num_test": num_test, "seconds": seconds, "broken": broken,
        "scores": [{"method": row.method, "role": row.role, "seed": row.seed, **row.scores} for row in rows],
        "splits": [[asdict(row) for row in run.rows] for run in runs] if len(runs) > 1 else None,
    }  # fmt: skip
    lines = [
        f"{num_test:,} test videos, {views}, softmax averaged",
        *coverage_lines(coverage, source.parent),
        "",
        *_table(rows, [run.rows for run in runs], numbers),
        "",
        f"{file}; clip scores for `timegrain score topk` beside it",
    ]
    lines += (
        [f"{len(broken)} test videos could not be read and count as wrong; the first: {broken[0]}"] if broken else []
    )
    print(json_module.dumps(record) if json else "\n".join(lines))


@dataclass(frozen=True)
class _Finished:
    rows: list[Row]
    views: Views
    num_test: int
    broken: list[tuple[str, str]]
    settings: Settings


def _train_and_test(task: Task, settings: Settings, manifest: Manifest) -> _Finished:
    """One run on one split."""
    started = time.time()
    settings, encoder = _resolve(task, settings, manifest)
    data, run, test = settings.data, settings.run, settings.test
    out = run.out
    assert out is not None
    assert data.num_frames is not None
    assert data.stride is not None
    assert data.crop_size is not None
    train, train_labels = _labelled(manifest, data.split_train)
    tested, test_labels = _labelled(manifest, str(data.split_test))
    length = plan(data, run, len(train))
    resume = open_run(out, _values(task, settings), COMMANDS[task], [SCORING])
    length = go_on(length, run, resume)
    seed_everything(run.seed, verbose=False)
    frozen = task.endswith("probe")
    encoder = bare_encoder(
        encoder, num_frames=data.num_frames, stride=data.stride, crop_size=data.crop_size, training=task
    )
    encoders = {TRAINED: encoder}
    if frozen:
        for number in range(settings.classifier.random_weights):
            torch.manual_seed(run.seed + number)
            encoders[f"random_{number}"] = VideoEncoder(encoder.config)
        torch.manual_seed(run.seed)
    classes = manifest.class_names
    kind = "attentive" if task == "attentive probe" else "linear"
    heads = {name: _classifier(kind, encoder.backbone.num_features, len(classes), settings) for name in encoders}
    draw = AnywhereInVideo(train, ClipSpec(data.num_frames, data.stride), train_labels)
    clips = LabelledClips(
        train, len(train), draw, data.crop_size, settings.augment, run.seed, build_cache(data, train, out)
    )
    module = ClassificationTask(
        encoders, heads, frozen, settings.optim, length, out, classes,
        {"kind": kind, **asdict(settings.classifier)}, run.channels_last,
    )  # fmt: skip
    if is_first_process():
        print(_describe(task, settings, train, tested, encoder, len(classes), length), file=sys.stderr)
        run_record(out, {"started": started, "schedule": length.__dict__})
    failures = FailedVideos(out / "failed_videos.csv", len(train), data.max_failure_share)

    def loader(trainer: Trainer) -> Any:
        return build_loader(clips, collate, data, run, trainer)

    trainer = fit(module, run, length, loader, failures=failures, resume=resume, description=task)
    crop = test.crop_size or round(data.crop_size * 8 / 7)
    views = Views(data.num_frames, data.stride, crop, test.num_clips, test.num_crops)
    if not is_first_process():
        return _Finished([], views, 0, [], settings)
    # On the device that the run trained on, in evaluation mode; other processes have nothing left to do.
    device = choose_device(trainer.strategy.root_device)
    module.to(device).eval()
    models = {name: lambda clips, name=name: module.logits(name, clips) for name in encoders}
    logits, clip_ids, broken = view_logits(
        models, tested, views, device=device, rounding=test.rounding, batch_size=test.batch_size, workers=data.workers
    )
    scores = {name: score_views(test_labels.numpy(), found, clip_ids, views.count) for name, found in logits.items()}
    write_view_logits(out / "clips.pkl", test_labels.numpy(), logits[TRAINED], clip_ids, views.count)
    run_record(out, {"finished": time.time(), "steps": trainer.global_step, "scores": scores})
    name = (
        method_name(encoder.config.extra)
        if settings.weights
        else SCRATCH_NAMES.get(encoder.config.backbone, encoder.config.backbone)
    )
    rows = [Row(name, scores.pop(TRAINED), seed=run.seed)]
    rows += [Row("random weights", found, "floor", run.seed + i) for i, found in enumerate(scores.values())]
    rows.append(Row("majority class", _majority(train_labels, test_labels, len(classes)), "floor"))
    return _Finished(rows, views, len(tested), broken, settings)


def _resolve(task: Task, settings: Settings, manifest: Manifest) -> tuple[Settings, VideoEncoder]:
    """Every setting left open, from the weights where there are some; and the encoder to begin with."""
    data, run = settings.data, settings.run
    splits = manifest.splits
    split_test = data.split_test or ("test" if "test" in splits else "val")
    for name, split in (("split_train", data.split_train), ("split_test", split_test)):
        if split not in splits:
            there = ", ".join(f"{key} ({count})" for key, count in splits.items()) or "none"
            raise ValueError(f"{data.manifest} has no split {split!r}; it has {there}. Name one with --data.{name}")
    if settings.weights is not None:
        encoder = find_encoder(settings.weights)
        config = encoder.config
        check_backbone(settings.weights, config, settings.model)
        model = replace(settings.model, backbone=config.backbone, options=dict(config.backbone_options))
    else:
        gpu = run.accelerator in ("cuda", "gpu") or (run.accelerator == "auto" and torch.cuda.is_available())
        backbone = settings.model.backbone if settings.model.backbone != "auto" else ("r3d50" if gpu else "r3d_tiny")
        model = replace(settings.model, backbone=backbone)
        size = 112 if backbone in ("r3d18", "r3d_tiny") else 224
        config = EncoderConfig(
            backbone=backbone, backbone_options=dict(model.options), heads=(), clip_num_frames=32, clip_stride=2,
            crop_size=size, extra={"objective": "supervised"},
        )  # fmt: skip
        torch.manual_seed(run.seed)
        encoder = VideoEncoder(config)
    data = replace(
        data,
        split_test=split_test,
        workers=free_workers(data.workers),
        num_frames=data.num_frames or config.clip_num_frames,
        stride=data.stride or config.clip_stride,
        crop_size=data.crop_size or config.crop_size,
    )
    return replace(settings, data=data, model=model), encoder


def _refuse_ignored(task: Task, classifier: ClassifierConfig) -> None:
    if task == "attentive probe":
        refuse_ignored("classifier", classifier, ["normalise"], "an attentive probe normalises its tokens by itself")
        return
    of_attention = ["num_blocks", "num_heads"]
    refuse_ignored("classifier", classifier, of_attention, "only `timegrain probe attentive` has attention")
    if task != "linear probe":
        because = "random weights stand beside frozen ones, and here the whole network is trained"
        refuse_ignored("classifier", classifier, ["random_weights"], because)


def check_backbone(weights: str, config: EncoderConfig, model: BackboneConfig) -> None:
    """Refuse a network that is asked for beside weights of another."""
    if model.backbone not in ("auto", config.backbone):
        raise ValueError(
            f"{weights} has the backbone {config.backbone}, not {model.backbone}: leave out --model.backbone, or --weights "
            "to train that network from scratch"
        )
    check_options(weights, config, model.options, "--model.options")


def check_options(weights: str, config: EncoderConfig, options: Mapping[str, Any], option: str) -> None:
    """Refuse options of a network that are asked for beside weights of a network with others."""
    theirs = config.backbone_options
    other = [f"{key}: {theirs.get(key, 'not set')}" for key, value in options.items() if theirs.get(key) != value]
    if other:
        raise ValueError(
            f"{option} is for a network from scratch; that of {weights} has {', '.join(other)}. Leave the option out"
        )


def _values(task: Task, settings: Settings) -> dict[str, Any]:
    """The command's options by name: a probe has none about the network, which is that of its weights."""
    values = {name: getattr(settings, name) for name in settings.__dataclass_fields__}
    return values if COMMANDS[task] == "finetune" else {k: v for k, v in values.items() if k != "model"}


def _labelled(manifest: Manifest, split: str) -> tuple[Manifest, Tensor]:
    """The usable videos of a split and their class numbers."""
    chosen = manifest.select(split=split)
    labels = chosen.class_indices()
    if (labels < 0).any():
        path = shown(chosen[int(np.flatnonzero(labels < 0)[0])].path)
        raise ValueError(f"{path} in split {split!r} has no label; training and testing need one for each video")
    if len(manifest.class_names) < 2:
        raise ValueError(f"{manifest.path} has a single class, {manifest.class_names[0]!r}; there is nothing to learn")
    return chosen, torch.from_numpy(labels)


def _classifier(kind: str, num_features: int, num_classes: int, settings: Settings) -> nn.Module:
    options = settings.classifier
    if kind == "attentive":
        return AttentiveClassifier(num_features, num_classes, options.num_blocks, options.num_heads, options.dropout)
    return LinearClassifier(num_features, num_classes, options.normalise, options.dropout)


def _majority(train_labels: Tensor, test_labels: Tensor, num_classes: int) -> dict[str, float]:
    """Scores of always ranking the classes by how often they are in training."""
    counts = torch.bincount(train_labels, minlength=num_classes).numpy().astype(np.float32)
    logits = np.tile(np.log(counts + 1), (len(test_labels), 1))
    return score_views(test_labels.numpy(), logits, np.arange(len(test_labels)), 1)


def _describe(
    task: Task,
    settings: Settings,
    train: Manifest,
    tested: Manifest,
    encoder: VideoEncoder,
    classes: int,
    length: Schedule,
) -> str:
    data, optim = settings.data, settings.optim
    parameters = sum(parameter.numel() for parameter in encoder.parameters())
    frozen = ", frozen" if task.endswith("probe") else ""
    return "\n".join(
        [
            f"task            {task} of {settings.weights or 'a new network'}",
            f"videos          {len(train):,} to learn from, {len(tested):,} to test on, {classes} classes",
            f"clips           {data.num_frames} frames x stride {data.stride}, {data.crop_size}x{data.crop_size} pixels",
            f"model           {encoder.config.backbone}, {parameters / 1e6:.2f} M parameters{frozen}",
            f"optimiser       {optim.name}, learning rate {optim.learning_rate:g} for the mean loss, batch "
            f"{length.global_batch}",
            f"length          {length.steps:,} steps ({length.epochs:.1f} epochs of "
            f"{length.epoch_steps}), warm-up {length.warmup_steps:,} steps",
            f"out             {settings.run.out}",
        ]
    )


def _rows(runs: list[list[Row]]) -> list[Row]:
    """Rows of several splits as their means; those of one split as they are."""
    return [
        replace(same[0], scores={key: mean(row.scores[key] for row in same) for key in same[0].scores})
        for same in zip(*runs, strict=True)
    ]


def _table(rows: list[Row], runs: list[list[Row]], numbers: list[int | None]) -> list[str]:
    """Scores in percent: a line for each row, with its spread and parts where there are several splits."""
    keys = [key for key in METRICS if key in rows[0].scores]
    width = max(len(row.method) for row in rows) + 2
    lines = [" " * width + "".join(f"{METRICS[key]:>22}" for key in keys)]
    for place, row in enumerate(rows):
        cells = []
        for key in keys:
            values = [run[place].scores[key] for run in runs]
            spread = f" ± {100 * stdev(values):.2f}" if len(values) > 1 else ""
            cells.append(f"{100 * row.scores[key]:.2f}{spread} %")
        lines.append(f"{row.method:<{width}}" + "".join(f"{cell:>22}" for cell in cells))
    if len(runs) > 1:
        parts = ", ".join(
            f"split {n} {100 * run[0].scores['top1']:.2f} %" for n, run in zip(numbers, runs, strict=True)
        )
        lines += ["", f"mean and standard deviation over {len(runs)} splits; top-1: {parts}"]
    return lines
