"""``timegrain probe vidsitu`` and ``finetune vidsitu``: the verbs of five events per video (Table 1a).

The way: :mod:`timegrain.data.event_clips` → an encoder with a classifier → :mod:`timegrain.tasks.verb_scoring`.
"""

from __future__ import annotations

import json as json_module
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning import Trainer, seed_everything
from torch import Tensor

from timegrain.callbacks import FailedVideos, run_record
from timegrain.data.clip_dataset import collate
from timegrain.data.coverage import coverage_lines
from timegrain.data.decoding import VideoError
from timegrain.data.event_clips import VideoEvents
from timegrain.data.labelled_clips import CROP_AND_FLIP, LabelledClips
from timegrain.data.location import shown
from timegrain.data.manifest import Manifest
from timegrain.data.transforms import AugmentConfig
from timegrain.features import PixelFeatures
from timegrain.inference import Embedder
from timegrain.models.classifiers import LinearClassifier
from timegrain.models.hub import EncoderConfig, VideoEncoder
from timegrain.models.weights import choose_device, find_encoder
from timegrain.optim import OptimConfig
from timegrain.probes import LinearProbe
from timegrain.progress import track
from timegrain.report.results import Result, Row, method_name, write_result
from timegrain.sampling import ClipSpec
from timegrain.tasks.classification import TRAINED, ClassificationTask, bare_encoder
from timegrain.tasks.classifier_config import BackboneConfig, EventData
from timegrain.tasks.config import TrainingConfig, refuse_ignored
from timegrain.tasks.labelled_runs import SCRATCH_NAMES, check_backbone
from timegrain.tasks.resuming import go_on
from timegrain.tasks.run_folder import Scoring, open_run
from timegrain.tasks.setup import build_loader, free_workers, is_first_process, plan
from timegrain.tasks.training import fit, quieten
from timegrain.tasks.verb_scoring import (
    METRICS,
    check_annotators,
    event_outputs,
    score_verbs,
    verb_floors,
    write_predictions,
)

SCORING = Scoring(frozenset({"data.split_test", "data.num_crops"}), ("predictions.pkl", "result.json"))
_PROBE_OPTIM = OptimConfig(name="reference_sgd", learning_rate=0.5, weight_decay=0.0)
_PROBE_RUN = TrainingConfig(epochs=100)
Table = np.ndarray[Any, np.dtype[np.float32]]


def probe_vidsitu(
    *,
    weights: str,
    data: EventData,
    features: Literal["centred", "dense"] = "centred",
    mode: Literal["exact", "sgd"] = "exact",
    random_seeds: int = 1,
    pixels: bool = True,
    augment: AugmentConfig = CROP_AND_FLIP,
    optim: OptimConfig = _PROBE_OPTIM,
    run: TrainingConfig = _PROBE_RUN,
    json: bool = False,
) -> None:
    """Score VidSitu's verbs by a linear layer on frozen features of each event, beside floors.

    By default features are computed once and the linear layer is found exactly, its penalty chosen by cross-validation on
    training videos. `--mode sgd` is the paper's way: 100 epochs of SGD on augmented clips (its rate of 4.0 is 0.5 here per
    16 events, if its batch was 128). Writes OUT/predictions.pkl in the official form and result.json.

    Examples::

        timegrain probe vidsitu --weights runs/vidsitu-a0.9 --data.manifest vidsitu.parquet
        timegrain probe vidsitu --weights W --data.manifest vidsitu.parquet --features dense

    Args:
        weights: A .safetensors file, the folder of a pre-training run, or OWNER/NAME on the Hugging Face Hub.
        data: Which events, and how they are seen.
        features: Of a clip centred on the event, or the mean of those time steps of one dense pass over the video that lie
            in the event.
        mode: exact, or sgd as in the paper.
        random_seeds: Random initialisations of the network to measure beside it (exact mode).
        pixels: Whether to measure raw pixels, too (exact mode).
        augment: How training clips are changed (sgd mode).
        optim: Optimiser (sgd mode).
        run: How long, on what, where to.
        json: Print one JSON object.
    """
    encoder = find_encoder(weights)
    if mode == "sgd":
        if features == "dense":
            raise ValueError("--mode sgd trains on augmented clips of each event; --features dense needs --mode exact")
        if random_seeds > 1:
            raise ValueError(
                "--random-seeds is for --mode exact; --mode sgd trains no random networks beside the weights"
            )
        options = {"weights": weights, "mode": mode}
        _train(encoder, data, options, 0.0, True, augment, optim, run, "linear probe", weights, json)
        return
    because = "--mode exact trains nothing by steps; --mode sgd does"
    refuse_ignored("augment", augment, vars(augment), because, CROP_AND_FLIP)
    refuse_ignored("optim", optim, vars(optim), because, _PROBE_OPTIM)
    refuse_ignored("run", run, ["steps", "epochs", "warmup_steps", "warmup_epochs", "accumulate"], because, _PROBE_RUN)
    started = time.time()
    data, out, train, tested = _open(data, encoder.config, run)
    events = VideoEvents.of(train), VideoEvents.of(tested)
    check_annotators(events[1])
    verbs = sorted({verb for video in events[0].verbs for verb in video})
    models: dict[str, torch.nn.Module] = {TRAINED: encoder}
    seeds: dict[str, int] = {}
    with torch.random.fork_rng(devices=[]):
        for seed in range(run.seed, run.seed + random_seeds):
            torch.manual_seed(seed)
            models[f"random weights {seed}"] = VideoEncoder(replace(encoder.config, heads=()))
            seeds[f"random weights {seed}"] = seed
    if pixels and features == "centred":
        models["raw pixels"] = PixelFeatures()
    device = choose_device("cpu" if run.accelerator == "cpu" else "auto")
    read = _dense if features == "dense" else _centred
    parts = [read(models, part, found, data, device) for part, found in zip((train, tested), events, strict=True)]
    (trained_on, broken_train), (scored_on, broken_test) = parts
    labels = events[0].targets({verb: place for place, verb in enumerate(verbs)})
    kept = [video for video in range(len(train)) if video not in broken_train]
    rows: list[Row] = []
    for name in models:
        table = torch.from_numpy(trained_on[name][kept]).flatten(0, 1)
        groups = [train[video].group for video in kept for _ in range(labels.shape[1])]
        fitted = LinearProbe.train(table, labels[kept].flatten(), len(verbs), groups=groups)
        said = fitted.logits(torch.from_numpy(scored_on[name]).flatten(0, 1)).softmax(1).numpy()
        logits = said.reshape(len(tested), -1, len(verbs))
        scores = score_verbs(logits, verbs, events[1])
        if name == TRAINED:
            write_predictions(out / "predictions.pkl", logits, verbs, events[1].index_in_split)
            rows.append(Row(method_name(encoder.config.extra), scores, seed=run.seed))
        else:
            rows.append(Row(name.rstrip("0123456789 "), scores, "floor", seeds.get(name)))
    protocol = {"features": features, "classifier": "exact logistic regression, l2 by 5-fold cross-validation"}
    _finish("linear probe", rows, events, protocol, data, tested, broken_test, out, started, json)


def finetune_vidsitu(
    *,
    data: EventData,
    weights: str | None = None,
    model: BackboneConfig = BackboneConfig(),  # noqa: B008
    dropout: float = 0.5,
    augment: AugmentConfig = CROP_AND_FLIP,
    optim: OptimConfig = OptimConfig(name="adamw", learning_rate=1e-4, weight_decay=0.0),  # noqa: B008
    run: TrainingConfig = TrainingConfig(epochs=10, warmup_epochs=0.0),  # noqa: B008
    json: bool = False,
) -> None:
    """Train a whole network on VidSitu's verbs, from weights or from scratch, and score it.

    Without --weights this is a supervised row of the paper's Table 1a: I3D, I3D + NL, Slow R50 + NL, SlowFast + NL, trained
    from scratch. Writes OUT/predictions.pkl in the official form and result.json. The same command again continues.

    Examples::

        timegrain finetune vidsitu --config configs/finetune/vidsitu_slow_r50_nl.yaml --data.manifest vidsitu.parquet

    Args:
        data: Which events, and how they are seen.
        weights: A .safetensors file, the folder of a pre-training run, or OWNER/NAME on the Hub; none trains from scratch.
        model: Which network, without weights.
        dropout: Before the classifier.
        augment: How training clips are changed.
        optim: Optimiser; learning rates are in the mean-loss convention.
        run: How long, on what, where to.
        json: Print one JSON object.
    """
    weights = None if weights in (None, "none") else weights
    if weights:
        encoder = find_encoder(weights)
        check_backbone(weights, encoder.config, model)
    else:
        name = model.backbone if model.backbone != "auto" else ("r3d50" if torch.cuda.is_available() else "r3d_tiny")
        torch.manual_seed(run.seed)
        encoder = VideoEncoder(
            EncoderConfig(name, dict(model.options), heads=(), clip_num_frames=16, extra={"objective": "supervised"})
        )
    task: Literal["fine-tune", "from scratch"] = "fine-tune" if weights else "from scratch"
    options = {"weights": weights, "model": model, "dropout": dropout}
    _train(encoder, data, options, dropout, False, augment, optim, run, task, weights, json)


def _train(
    encoder: VideoEncoder,
    data: EventData,
    options: Mapping[str, Any],
    dropout: float,
    frozen: bool,
    augment: AugmentConfig,
    optim: OptimConfig,
    run: TrainingConfig,
    task: Literal["linear probe", "fine-tune", "from scratch"],
    weights: str | None,
    json: bool,
) -> None:
    """Train on single events, then score the test split's events."""
    quieten()
    started = time.time()
    data, out, train, tested = _open(data, encoder.config, run)
    run = replace(run, out=out)
    assert data.num_frames is not None
    assert data.stride is not None
    assert data.crop_size is not None
    command = "probe vidsitu" if frozen else "finetune vidsitu"
    resume = open_run(
        out, {"data": data, **options, "augment": augment, "optim": optim, "run": run}, command, [SCORING]
    )
    seed_everything(run.seed, verbose=False)
    events = VideoEvents.of(train), VideoEvents.of(tested)
    check_annotators(events[1])
    verbs = sorted({verb for video in events[0].verbs for verb in video})
    encoder = bare_encoder(
        encoder, num_frames=data.num_frames, stride=data.stride, crop_size=data.crop_size, training=task
    )
    draw = events[0].training_clips(train, ClipSpec(data.num_frames, data.stride), verbs)
    clips = LabelledClips(train, len(draw.videos), draw, data.crop_size, augment, run.seed)
    length = go_on(plan(data, run, len(clips)), run, resume)
    classifier = LinearClassifier(encoder.backbone.num_features, len(verbs), normalise=frozen, dropout=dropout)
    module = ClassificationTask(
        {TRAINED: encoder}, {TRAINED: classifier}, frozen, optim, length, out, tuple(verbs),
        {"kind": "linear", "normalise": frozen, "dropout": dropout}, run.channels_last,
    )  # fmt: skip
    if is_first_process():
        run_record(out, {"started": started, "schedule": length.__dict__})

    def loader(trainer: Trainer) -> Any:
        return build_loader(clips, collate, data, run, trainer)

    failures = FailedVideos(out / "failed_videos.csv", len(train), data.max_failure_share)
    trainer = fit(module, run, length, loader, failures=failures, resume=resume, description=f"VidSitu, {task}")
    if not trainer.is_global_zero:
        return
    device = choose_device(trainer.strategy.root_device)
    module.to(device).eval()

    def probabilities(clips: Tensor) -> Tensor:
        return module.logits(TRAINED, clips).softmax(1)

    found, broken = _outputs({TRAINED: probabilities}, tested, events[1], data, device)
    write_predictions(out / "predictions.pkl", found[TRAINED], verbs, events[1].index_in_split)
    name = method_name(encoder.config.extra) if weights else SCRATCH_NAMES.get(encoder.config.backbone)
    rows = [Row(name or encoder.config.backbone, score_verbs(found[TRAINED], verbs, events[1]), seed=run.seed)]
    classifies = "SGD on augmented clips of L2-normalised features" if frozen else f"whole network, {optim.name}"
    protocol = {"features": "centred", "classifier": classifies, "epochs": run.epochs, "steps": run.steps}
    _finish(task, rows, events, protocol, data, tested, broken, out, started, json)


def _open(data: EventData, config: EncoderConfig, run: TrainingConfig) -> tuple[EventData, Path, Manifest, Manifest]:
    everything = Manifest.open(data.manifest)
    data = replace(
        data,
        workers=free_workers(data.workers),
        num_frames=data.num_frames or config.clip_num_frames,
        stride=data.stride or config.clip_stride,
        crop_size=data.crop_size or config.crop_size,
    )
    out = run.out or Path("runs") / f"{data.manifest.stem}-verbs"
    return data, out, everything.select(split=data.split_train), everything.select(split=data.split_test)


def _outputs(
    models: Mapping[str, Callable[[Tensor], Tensor]],
    manifest: Manifest,
    events: VideoEvents,
    data: EventData,
    device: torch.device,
) -> tuple[dict[str, Table], dict[int, str]]:
    assert data.num_frames is not None
    assert data.stride is not None
    assert data.crop_size is not None
    spec = ClipSpec(data.num_frames, data.stride)
    return event_outputs(
        models, manifest, events, spec, data.crop_size, num_crops=data.num_crops, device=device,
        batch_size=data.batch_size, workers=data.workers,
    )  # fmt: skip


def _centred(
    models: Mapping[str, torch.nn.Module],
    manifest: Manifest,
    events: VideoEvents,
    data: EventData,
    device: torch.device,
) -> tuple[dict[str, Table], dict[int, str]]:
    """Features of a clip around each event: the mean over its time steps."""

    def pooled(model: torch.nn.Module) -> Callable[[Tensor], Tensor]:
        model.to(device).eval()
        return lambda clips: model(clips).mean(1)

    return _outputs({name: pooled(model) for name, model in models.items()}, manifest, events, data, device)


def _dense(
    models: Mapping[str, torch.nn.Module],
    manifest: Manifest,
    events: VideoEvents,
    data: EventData,
    device: torch.device,
) -> tuple[dict[str, Table], dict[int, str]]:
    """Features of each event from one pass over the whole video: the mean of the time steps nearest to its centre."""
    found: dict[str, Table] = {}
    broken: dict[int, str] = {}
    for name, model in models.items():
        assert isinstance(model, VideoEncoder)
        embedder = Embedder(model, device, data.batch_size)
        for video in track(range(len(manifest)), f"dense pass, {name}"):
            row = manifest[video]
            try:
                seen = embedder.embed(
                    row.path, num_crops=data.num_crops, num_frames=data.num_frames, stride=data.stride
                )
            except VideoError as error:
                broken[video] = error.reason
                continue
            centres = np.array(row.extra["event_centre_seconds"])
            nearest = np.abs(seen.timestamps_seconds[:, None] - centres).argmin(1)
            pooled = [
                seen.features[nearest == e].mean(0)
                if (nearest == e).any()
                else seen.features[np.abs(seen.timestamps_seconds - centre).argmin()]
                for e, centre in enumerate(centres)
            ]
            found.setdefault(name, np.zeros((len(manifest), len(centres), len(pooled[0])), np.float32))[video] = pooled
    if not found:
        raise ValueError(f"none of the {len(manifest)} videos could be read; the first: {broken[0]}")
    return found, broken


def _finish(
    task: str,
    rows: Sequence[Row],
    events: tuple[VideoEvents, VideoEvents],
    protocol: Mapping[str, Any],
    data: EventData,
    tested: Manifest,
    broken: Mapping[int, str],
    out: Path,
    started: float,
    json: bool,
) -> None:
    """Write the result and say it."""
    keys = ("num_frames", "stride", "crop_size", "num_crops", "split_train", "split_test")
    protocol = {**protocol, **{key: value for key, value in asdict(data).items() if key in keys}}
    rows = [*rows, *verb_floors(*events)]
    coverage = tested.coverage
    seconds = time.time() - started
    benchmark = str((coverage or {}).get("benchmark", data.manifest.stem))
    benchmark += "" if benchmark == "vidsitu" else ", events"  # its videos may have other labels, too
    result = Result(benchmark, task, METRICS, rows, protocol, coverage, 5 * len(tested), seconds=seconds)
    file = write_result(out, result)
    if json:
        record = {"result": str(file), "scores": [asdict(row) for row in rows], "broken": list(broken.values())}
        print(json_module.dumps(record))
        return
    width = max(len(row.method) for row in rows) + 2
    lines = [f"{benchmark}, {task}: {len(tested):,} videos", *coverage_lines(coverage, data.manifest.parent)]
    lines.append(" " * width + "".join(f"{name:>23}" for name in METRICS.values()))
    for row in rows:
        cells = "".join(f"{row.scores[key]:>23.4f}" if key in row.scores else f"{'-':>23}" for key in METRICS)
        lines.append(f"{row.method:<{width}}{cells}")
    lines += [f"could not read {shown(tested[video].path)}: {reason}" for video, reason in broken.items()]
    print("\n".join([*lines, f"{file}; {out / 'predictions.pkl'} for `timegrain score vidsitu`"]))
