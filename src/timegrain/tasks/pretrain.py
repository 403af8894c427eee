"""``timegrain pretrain``: learn features from videos without labels.

The way to the loss: this file → ``objectives/teg.py`` (or another objective) → ``losses.py``.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning import seed_everything
from torch import Tensor

from timegrain.callbacks import FailedVideos, FeatureMonitor, MetricsCsv, can_be_monitored, run_record
from timegrain.data.colour import Augmentation
from timegrain.data.transforms import AugmentConfig, apply_augmentation
from timegrain.distributed import RowsOnDemand
from timegrain.models.hub import VideoEncoder, save_weights
from timegrain.objectives.byol import BYOL
from timegrain.objectives.cvrl import CVRL
from timegrain.objectives.moco import MoCo
from timegrain.objectives.objective import Objective
from timegrain.objectives.simclr import SimCLR
from timegrain.objectives.teg import TeG
from timegrain.optim import OptimConfig
from timegrain.sampling import ClipSpec
from timegrain.tasks.config import DataConfig, ModelConfig, ObjectiveConfig, RunConfig, clip_specs
from timegrain.tasks.objective import build_encoder, describe
from timegrain.tasks.resuming import go_on
from timegrain.tasks.run_folder import open_run
from timegrain.tasks.setup import (
    Schedule,
    build_clips,
    build_loader,
    check_batch,
    is_first_process,
    plan,
    resolve,
)
from timegrain.tasks.training import TrainingTask, finish, fit, quieten


def build_objective(
    data: DataConfig, model: ModelConfig, objective: ObjectiveConfig, chunk_size: int | None
) -> Objective:
    """The loss around its encoder, from settings that :func:`timegrain.tasks.setup.fill_in` has completed.

    Args:
        data: Which clips.
        model: Which network.
        objective: Which loss.
        chunk_size: Videos that go through the network at once; None is the whole batch.

    Raises:
        ValueError: If a setting is impossible.
    """
    encoder = build_encoder(data, model, objective)
    module = _around(encoder, objective, clip_specs(data, objective))
    module.chunk_size = chunk_size
    return module


def _around(encoder: VideoEncoder, objective: ObjectiveConfig, specs: Sequence[ClipSpec]) -> Objective:
    temperature, momentum = objective.temperature or 0.0, objective.momentum or 0.0
    if objective.name == "teg":
        teg = TeG(encoder, objective.resolved_levels(), temperature)
        long_steps, short_steps = (encoder.backbone.num_time_steps(spec.num_frames) for spec in specs)
        teg.loss.check_steps(short_steps, long_steps)
        return teg
    if objective.name == "cvrl":
        return CVRL(encoder, temperature=temperature)
    if objective.name == "simclr":
        return SimCLR(encoder, temperature=temperature)
    if objective.name == "moco":
        return MoCo(encoder, temperature=temperature, queue_size=objective.queue_size or 0, momentum=momentum)
    return BYOL(encoder, momentum=momentum)


class PretrainTask(TrainingTask):
    """Wires the objective to the engine: augmentation on the device, then the loss.

    Args:
        objective: Encoder and loss.
        optim: Optimiser and its settings.
        length: Of the run.
        weights: Where the encoder's weights are written with every checkpoint.
        channels_last: Whether clips are laid out channels-last.
    """

    def __init__(
        self, objective: Objective, optim: OptimConfig, length: Schedule, weights: Path, channels_last: bool = False
    ) -> None:
        super().__init__(optim, length, weights, channels_last)
        self.objective = objective

    @property
    def encoder(self) -> VideoEncoder:
        """The objective's encoder."""
        return self.objective.encoder

    def write_weights(self) -> None:
        """Write the encoder."""
        save_weights(self.encoder, self.weights)

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """Colour and blur on the device: uint8 (B, T, C, H, W) to float (B, C, T, H, W).

        With a chunk size, chunk by chunk when the network takes them: as floats, the clips of a batch of 1,024 would fill
        a GPU by themselves.
        """

        def augmented(clips: Tensor, augmentation: Augmentation) -> Tensor | RowsOnDemand:
            def rows(chosen: slice) -> Tensor:
                coloured = apply_augmentation(clips[chosen], augmentation[chosen])
                return coloured.to(self.dtype, memory_format=self.memory_format)

            return rows(slice(None)) if self.objective.chunk_size is None else RowsOnDemand(len(clips), rows)

        pairs = zip(batch["clips"], batch.pop("augmentations"), strict=True)
        batch["clips"] = tuple(augmented(clips, augmentation) for clips, augmentation in pairs)
        return batch

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Loss of one batch."""
        losses: dict[str, Tensor] = self.objective(batch["clips"], batch["indices"])
        return self.report(losses, batch)

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """One step; then the objective's own, such as letting a momentum encoder follow."""
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        done, steps = self.global_step + 1 - self.length.shift, self.length.steps - self.length.shift
        self.objective.after_step(min(1.0, done / steps))


def pretrain(
    *,
    data: DataConfig = DataConfig(),  # noqa: B008  (jsonargparse shows the defaults; never mutated)
    model: ModelConfig = ModelConfig(),  # noqa: B008
    objective: ObjectiveConfig = ObjectiveConfig(),  # noqa: B008
    augment: AugmentConfig = AugmentConfig(),  # noqa: B008
    optim: OptimConfig = OptimConfig(name="adamw", learning_rate=1e-3, weight_decay=1e-4),  # noqa: B008
    run: RunConfig = RunConfig(),  # noqa: B008
    json: bool = False,
) -> None:
    """Pre-train on videos without labels: TeG, or an objective that it is compared with.

    The shortest form is `timegrain pretrain --data.folder VIDEOS`. The same command again continues a run that was
    stopped, bit for bit. The run's folder gets weights.safetensors (what `timegrain embed` and `timegrain probe` take),
    config.yaml (every setting; `--config` takes it), metrics.csv, run.json and checkpoints.

    Examples::

        timegrain pretrain --data.folder VIDEOS --objective.alpha 0.9
        timegrain pretrain --data.folder VIDEOS --objective.name byol --objective.num_clips 4
        timegrain pretrain --config configs/pretrain/k400_teg_fg_200ep.yaml --data.manifest k400.parquet

    Args:
        data: Which videos and clips.
        model: Which network.
        objective: What is learned, and how finely it resolves time.
        augment: How clips are augmented.
        optim: Optimiser; learning rates are in the mean-loss convention.
        run: How long, on what, where to.
        json: Print one JSON object about the finished run on standard output.
    """
    quieten()
    started = time.time()
    data, model, objective, run, manifest = resolve(data, model, objective, run)
    out = run.out
    assert out is not None
    resume = open_run(
        out, {"data": data, "model": model, "objective": objective, "augment": augment, "optim": optim, "run": run}
    )
    seed_everything(run.seed, verbose=False)
    module = build_objective(data, model, objective, run.chunk_size)
    clips = build_clips(data, clip_specs(data, objective), augment, manifest, run.seed, out)
    length = go_on(plan(data, run, len(clips), clips.samples_per_visit), run, resume)
    check_batch(data.batch_size, length.global_batch, run.chunk_size, model.head_norm)
    if is_first_process():
        videos = f"{len(manifest):,} usable ({manifest.path})"
        print(describe(data, objective, optim, run, videos, module, length), file=sys.stderr)
        run_record(out, {"started": started, "schedule": length.__dict__})
    task = PretrainTask(module, optim, length, out / "weights.safetensors", run.channels_last)

    watched = run.monitor_every_epochs > 0 and can_be_monitored(clips, run.monitor_videos)
    if run.monitor_every_epochs and not watched and is_first_process():
        print(
            f"monitor         none: the videos have no labels to guess, and are not longer than a clip of "
            f"{clips.specs[0].span} frames, so two clips of one would be the same",
            file=sys.stderr,
        )

    def monitor(csv_log: MetricsCsv) -> FeatureMonitor:
        return FeatureMonitor(clips, run.monitor_every_epochs, run.monitor_videos, csv_log)

    trainer = fit(
        task,
        run,
        length,
        lambda trainer: build_loader(clips, clips.collate, data, run, trainer),
        failures=FailedVideos(out / "failed_videos.csv", len(clips), data.max_failure_share),
        resume=resume,
        description="pre-training",
        monitor=monitor if watched else None,
    )
    if is_first_process():
        following = f"Next: timegrain embed VIDEOS --weights {task.weights} --out features.parquet"
        finish(out, trainer, started, found={"weights": str(task.weights)}, json=json, following=[following])
