"""``timegrain boundaries train``: train a detector of event boundaries, choose its threshold, score it.

The way to the loss: this file → ``models/boundary.py`` → ``models/boundary_heads.py``.
"""

from __future__ import annotations

import sys
import time
from dataclasses import asdict, replace
from json import dumps
from pathlib import Path
from typing import Any, Literal

import torch
from lightning import seed_everything
from torch import Tensor
from torch.nn import functional as F

from timegrain.boundary_layout import Layout
from timegrain.callbacks import FailedVideos, run_record
from timegrain.data.boundaries import BoundaryTruth
from timegrain.data.transforms import AugmentConfig, apply_augmentation
from timegrain.files import atomic_path
from timegrain.models.boundary import BoundaryDetector, Method, save_detector
from timegrain.models.boundary_heads import BoundaryMatching, balanced_loss
from timegrain.models.weights import choose_device
from timegrain.optim import OptimConfig, build_optimizer
from timegrain.tasks.boundary_config import (
    BoundaryDataConfig,
    BoundaryEvaluationConfig,
    DecayConfig,
    DetectorConfig,
    PickingConfig,
)
from timegrain.tasks.boundary_evaluation import choose_on, score_and_write, score_truth, scores_journal
from timegrain.tasks.boundary_setup import (
    AS_IT_IS,
    Batches,
    Training,
    build_detector,
    build_store,
    choose_split,
    divide,
    open_manifest,
    resolve_detector,
    with_defaults,
)
from timegrain.tasks.config import TrainingConfig
from timegrain.tasks.resuming import go_on
from timegrain.tasks.run_folder import Scoring, open_run
from timegrain.tasks.setup import Schedule, build_cache, is_first_process
from timegrain.tasks.switches import compiled
from timegrain.tasks.training import TrainingTask, finish, fit, quieten

SCORING = Scoring(
    frozenset({"evaluation", "picking"}),
    ("threshold.json", "predictions.pkl", "predictions.json", "scores.pkl", "ground_truth.pkl", "result.json"),
)


class BoundaryTask(TrainingTask):
    """Wires a detector to the engine.

    Args:
        detector: What is trained; a frozen backbone in it is not.
        optim: Optimiser and its settings.
        length: Of the run.
        weights: Where the detector is written with every checkpoint.
        decay: How the learning rate falls after the warm-up.
        channels_last: Whether clips are laid out channels-last.
    """

    def __init__(
        self,
        detector: BoundaryDetector,
        optim: OptimConfig,
        length: Schedule,
        weights: Path,
        decay: DecayConfig,
        channels_last: bool = False,
    ) -> None:
        super().__init__(optim, length, weights, channels_last)
        self.detector, self.decay = detector, decay

    def compile_network(self) -> None:
        """Compile what turns clips into features, unless they are read from the disk."""
        if not self.detector.config.frozen:
            self.detector.features.forward = compiled(self.detector.features.forward)

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """Colour and blur on the device: uint8 (B, T, C, H, W) to float (B, C, T, H, W)."""
        if "clip" in batch:
            clips = apply_augmentation(batch["clip"], batch.pop("augmentation"))
            batch["clip"] = clips.to(self.dtype, memory_format=self.memory_format)
        return batch

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Loss of one batch of windows or stretches."""
        head = self.detector.head
        if isinstance(head, BoundaryMatching):
            losses = head.loss(batch["features"], batch["starts"], batch["ends"], batch["overlap"], batch["inside"])
        elif self.detector.config.is_windowed:
            logits = self.detector(batch["clip"]) if "clip" in batch else head(batch["features"])
            accuracy = (logits.argmax(1) == batch["target"]).float().mean()
            losses = {"loss": F.cross_entropy(logits, batch["target"]), "accuracy": accuracy}
        else:
            logits = head(batch["features"])
            losses = {"loss": balanced_loss(logits[..., 1] - logits[..., 0], batch["near"], batch["inside"])}
        return self.report(losses, batch)

    def configure_optimizers(self) -> Any:
        """The optimiser, a linear warm-up, and steps down."""
        optimizer = build_optimizer(self.detector, self.optim)
        warmup, per_epoch, decay = self.length.warmup_steps, self.length.epoch_steps, self.decay

        def factor(step: int) -> float:
            step -= self.length.shift
            drops = int(step / per_epoch / decay.every_epochs) if decay.every_epochs else 0
            return min(1.0, (step + 1) / (warmup + 1)) * decay.factor**drops

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def write_weights(self) -> None:
        """Write the detector; it has no threshold yet."""
        save_detector(self.detector, self.weights)


def train(
    *,
    method: Method = "window",
    backbone: Training = "finetune",
    data: BoundaryDataConfig = BoundaryDataConfig(),  # noqa: B008  (jsonargparse shows the defaults; never mutated)
    model: DetectorConfig = DetectorConfig(),  # noqa: B008
    augment: AugmentConfig = AS_IT_IS,
    picking: PickingConfig = PickingConfig(),  # noqa: B008
    optim: OptimConfig = OptimConfig(name="sgd", learning_rate=0.01, weight_decay=1e-4),  # noqa: B008
    decay: DecayConfig = DecayConfig(),  # noqa: B008
    evaluation: BoundaryEvaluationConfig = BoundaryEvaluationConfig(),  # noqa: B008
    run: TrainingConfig = TrainingConfig(epochs=30, warmup_epochs=0.0),  # noqa: B008
    json: bool = False,
) -> None:
    """Train a detector of event boundaries, choose its threshold, score it.

    The same command again continues a run that was stopped, bit for bit; with other settings of evaluation or picking it
    scores a finished one anew and keeps the earlier scores in OUT/scored-TIME. The run's folder gets weights.safetensors
    (which `timegrain boundaries find` and `evaluate` take), threshold.json (how rule and threshold were chosen, on training
    videos set aside), predictions.pkl and .json (the official submission), scores.pkl (the official score sequences),
    ground_truth.pkl (which `timegrain score gebd` reads) and result.json.

    Examples::

        timegrain boundaries train --data.manifest gebd.parquet --model.weights runs/gebd-fg/weights.safetensors
        timegrain boundaries train --config configs/boundaries/gebd_teg_fg.yaml --data.manifest gebd.parquet

    Args:
        method: window scores the window around each candidate moment (the paper's rows TeG-PS, TeG-FG, CVRL); pc is the
            pairwise baseline, frames before against frames after; tcn scores every moment of a stretch by temporal
            convolutions; bmn scores spans of time, whose starts and ends are boundaries (BMN-SE).
        backbone: finetune trains the backbone with the classifier; frozen computes its features once. tcn and bmn read
            long stretches, so theirs stays frozen.
        data: Which videos and windows.
        model: Which network.
        augment: How windows are changed in training; not at all by default, as in the PC baseline.
        picking: How scores become boundaries.
        optim: Optimiser; weight decay spares biases and normalisation.
        decay: How the learning rate falls.
        evaluation: How the test videos are scored.
        run: How long, on what, where to.
        json: Print one JSON object about the finished run on standard output.
    """
    quieten()
    started = time.time()
    manifest = open_manifest(data.manifest)
    data = with_defaults(data)
    config, source = resolve_detector(method, backbone, data, model, augment, run)
    assert data.manifest is not None
    run = replace(run, out=run.out or Path("runs") / f"{data.manifest.stem}-boundaries-{method}")
    out = run.out
    assert out is not None
    everything = BoundaryTruth.of(manifest.select(data.split))
    learned, aside = divide(everything, data.held_out)
    test_split = choose_split(manifest, evaluation.split)
    test = BoundaryTruth.of(manifest.select(test_split)) if test_split is not None else None
    settings = {
        "method": method, "backbone": backbone, "data": data, "model": model, "augment": augment, "picking": picking,
        "optim": optim, "decay": decay, "evaluation": evaluation, "run": run,
    }  # fmt: skip
    resume = open_run(out, settings, "boundaries train", [SCORING])
    seed_everything(run.seed, verbose=False)
    detector = build_detector(config, source, model.weights)
    if evaluation.mode == "dense":
        _ = Layout.of(detector).margin_steps  # what cannot be scored so is refused before the training, not after it
    device = _device(run)
    store, cache = None, None
    failures = FailedVideos(out / "failed_videos.csv", len(learned), data.max_failure_share)
    if config.frozen:
        folder, workers = data.cache_folder or out / "features", data.workers or 0
        store, learned = build_store(detector.to(device), learned, folder, evaluation.batch_size, workers, failures)
    else:
        cache = build_cache(data, learned.manifest, out)
    batches = Batches(detector, learned, data, augment, run, store, cache)
    length = go_on(batches.schedule(), run, resume)
    if is_first_process():
        print(_describe(detector, learned, aside, test, batches, length, optim, run), file=sys.stderr)
        run_record(out, {"started": started, "schedule": length.__dict__})
    task = BoundaryTask(detector, optim, length, out / "weights.safetensors", decay, run.channels_last)
    trainer = fit(
        task,
        run,
        length,
        batches.loader,
        failures=failures,
        resume=resume,
        description="boundaries",
    )
    if not is_first_process():
        return
    detector.to(device)
    _choose(detector, aside, picking, evaluation, data.workers or 0, out)
    found: dict[str, Any] = {"weights": str(task.weights)}
    lines = [f"Next: timegrain boundaries find VIDEOS --weights {task.weights} --out boundaries.csv"]
    if test is not None:
        scored, shown = score_and_write(
            detector, test, everything, out, evaluation, data.workers or 0, run.seed, test_split
        )
        found |= scored
        lines = [*shown, *lines]
    finish(out, trainer, started, found=found, json=json, following=lines)


def _device(run: TrainingConfig) -> torch.device:
    return choose_device({"gpu": "cuda"}.get(run.accelerator, run.accelerator))


def _choose(
    detector: BoundaryDetector,
    aside: BoundaryTruth,
    picking: PickingConfig,
    evaluation: BoundaryEvaluationConfig,
    workers: int,
    out: Path,
) -> None:
    """Choose rule and threshold on the videos set aside, and write them into the weights and beside them."""
    print(f"choosing rule and threshold on {len(aside)} training videos set aside", file=sys.stderr)
    file = out / "threshold.json"
    with scores_journal(file, detector, aside, evaluation.mode, evaluation.every) as journal:
        scored = score_truth(
            detector, aside, journal, mode=evaluation.mode, every=evaluation.every, batch_size=evaluation.batch_size,
            workers=workers,
        )  # fmt: skip
        rules: tuple[Literal["runs", "peaks"], ...] = ("runs", "peaks") if picking.rule == "auto" else (picking.rule,)
        choice = choose_on(scored, aside, rules, picking.gap_seconds)
        extra = {**detector.config.extra, "picked": {"mode": evaluation.mode, "every": evaluation.every}}
        detector.config = replace(detector.config, picking=asdict(choice.picking), extra=extra)
        save_detector(detector, out / "weights.safetensors")
        record = {
            **asdict(choice.picking), "f1": choice.f1, "mode": evaluation.mode, "num_videos": len(scored.scores),
            "videos": list(scored.scores), "curve": list(choice.curve),
        }  # fmt: skip
        with atomic_path(file) as temporary:
            temporary.write_text(dumps(record, indent=1) + "\n")


def _describe(
    detector: BoundaryDetector,
    learned: BoundaryTruth,
    aside: BoundaryTruth,
    test: BoundaryTruth | None,
    batches: Batches,
    length: Schedule,
    optim: OptimConfig,
    run: TrainingConfig,
) -> str:
    """What is about to happen, in numbers: said before the first step."""
    config = detector.config
    trained = sum(p.numel() for p in detector.parameters() if p.requires_grad)
    total = sum(p.numel() for p in detector.parameters())
    layout = Layout.of(detector, dense=False)
    frames = int(sum(learned.manifest.column("num_frames").to_pylist()) / len(learned))
    unit = "windows, half of them near a boundary" if config.is_windowed else "stretches of video"
    return "\n".join(
        [
            f"videos          {len(learned):,} to train on, {len(aside):,} set aside for the threshold, "
            f"{len(test) if test is not None else 0:,} to score",
            f"method          {config.method}, {config.pooling if config.is_windowed else config.head or 'defaults'}; "
            f"{config.backbone} {'frozen' if config.frozen else 'fine-tuned'}, {trained / 1e6:.2f} of {total / 1e6:.2f} M "
            "parameters are trained",
            f"windows         {layout.num_frames} frames x stride {config.stride}, {config.crop_size}x{config.crop_size} "
            f"pixels, a candidate every {config.every} frames ({layout.num_candidates(frames)} in a video of {frames})",
            f"batch           {length.global_batch} {unit}",
            f"optimiser       {optim.name}, learning rate {optim.learning_rate:g}",
            f"length          {length.steps:,} steps ({length.epochs:.1f} epochs of {length.epoch_steps})",
            f"out             {run.out}",
        ]
    )
