"""``timegrain pretrain``: learn features from videos without labels.

The way to the loss: this file → ``objectives/teg.py`` → ``losses.py``.
"""

from __future__ import annotations

import logging
import sys
import time
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from torch import Tensor

from timegrain.callbacks import AtomicCheckpoints, FailedVideos, FeatureMonitor, MetricsCsv, ProgressLine, run_record
from timegrain.data.clips import VideoClips
from timegrain.data.transforms import AugmentConfig, apply_augmentation
from timegrain.models.hub import save_weights
from timegrain.objectives.teg import TeG
from timegrain.optim import OptimConfig, build_optimizer, schedule
from timegrain.tasks.config import DataConfig, ModelConfig, ObjectiveConfig, RunConfig
from timegrain.tasks.setup import (
    Schedule,
    build_clips,
    build_encoder,
    build_loader,
    describe,
    is_first_process,
    open_run,
    plan,
    resolve,
)


class PretrainTask(LightningModule):
    """Wires the objective to the Trainer: augmentation on the device, schedule, logs, weights.

    Args:
        objective: Encoder and loss.
        optim: Optimiser and its settings.
        warmup_steps: Steps of the linear warm-up.
        total_steps: Steps of the whole run; the cosine ends there.
        weights: Where the encoder's weights are written with every checkpoint.
        channels_last: Whether clips are laid out channels-last.
    """

    def __init__(
        self,
        objective: TeG,
        optim: OptimConfig,
        warmup_steps: int,
        total_steps: int,
        weights: Path,
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        self.objective = objective
        self.optim, self.warmup_steps, self.total_steps = optim, warmup_steps, total_steps
        self.weights, self.memory_format = weights, torch.channels_last_3d if channels_last else torch.contiguous_format

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """Colour and blur on the device: uint8 (B, T, C, H, W) to float (B, C, T, H, W)."""
        for name in ("long", "short"):
            clips = apply_augmentation(batch[f"{name}_clip"], batch.pop(f"{name}_augmentation"))
            batch[f"{name}_clip"] = clips.to(self.dtype, memory_format=self.memory_format)
        return batch

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Loss of one batch; a loss that is not finite stops the run."""
        losses: dict[str, Tensor] = self.objective(
            batch["long_clip"], batch["short_clip"], batch["long_indices"], batch["short_indices"]
        )
        loss = losses["loss"]
        if not torch.isfinite(loss):
            self._stop_on_non_finite(batch, losses)
        self.log_dict({name: value.detach() for name, value in losses.items()}, batch_size=len(batch["index"]))
        self.log("learning_rate", self.trainer.optimizers[0].param_groups[0]["lr"])
        return loss

    def _stop_on_non_finite(self, batch: dict[str, Any], losses: dict[str, Tensor]) -> None:
        loader: Any = self.trainer.train_dataloader
        manifest = loader.dataset.manifest
        files = "\n  ".join(manifest[int(index)].path for index in batch["index"])
        parts = ", ".join(
            f"{name} {float(value.detach()):g}" for name, value in losses.items() if name.endswith("loss")
        )
        last = self.weights.parent / "checkpoints" / "last.ckpt"
        good = f"the last good checkpoint is {last}" if last.exists() else "there is no checkpoint yet"
        raise ValueError(
            f"the loss is not finite at step {self.global_step} ({parts}); {good}. Try a lower --optim.learning_rate "
            f"or 32-true precision. The batch's files:\n  {files}"
        )

    def configure_optimizers(self) -> Any:
        """The optimiser, and the reference's schedule: linear warm-up, cosine counted from step 0."""
        optimizer = build_optimizer(self.objective, self.optim)
        factor = schedule(warmup_steps=self.warmup_steps, total_steps=self.total_steps)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep ``weights.safetensors`` as fresh as the checkpoint; never write weights that are not finite."""
        encoder = self.objective.encoder
        bad = [name for name, tensor in encoder.state_dict().items() if not torch.isfinite(tensor).all()]
        if bad:
            raise ValueError(
                f"weights are not finite at step {self.global_step} (first: {bad[0]}); nothing was written"
            )
        if is_first_process():
            save_weights(encoder, self.weights)


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
    """Pre-train TeG on videos without labels.

    The shortest form is `timegrain pretrain --data.folder VIDEOS`. The same command again continues a run that was
    stopped, bit for bit. The run's folder gets weights.safetensors (what `timegrain embed` and `timegrain probe` take),
    config.yaml (every setting; `--config` takes it), metrics.csv, run.json and checkpoints.

    Examples::

        timegrain pretrain --data.folder VIDEOS --objective.alpha 0.9
        timegrain pretrain --config configs/pretrain/k400_teg_fg_200ep.yaml --data.manifest k400.parquet

    Args:
        data: Which videos and clips.
        model: Which network.
        objective: How finely the features resolve time.
        augment: How clips are augmented.
        optim: Optimiser; learning rates are in the mean-loss convention.
        run: How long, on what, where to.
        json: Print one JSON object about the finished run on standard output.
    """
    _quieten()
    started = time.time()
    data, model, run, manifest = resolve(data, model, objective, run)
    out = run.out
    assert out is not None
    resume = open_run(
        out, {"data": data, "model": model, "objective": objective, "augment": augment, "optim": optim, "run": run}
    )
    seed_everything(run.seed, verbose=False)
    encoder = build_encoder(data, model, objective)
    teg = TeG(encoder, objective.resolved_levels(), objective.temperature)
    clips = build_clips(data, augment, manifest, run.seed, out)
    length = plan(data, run, len(clips))
    teg.loss.check_steps(
        encoder.backbone.num_time_steps(data.short_frames), encoder.backbone.num_time_steps(data.long_frames)
    )
    if is_first_process():
        print(describe(data, objective, optim, run, manifest, encoder, length), file=sys.stderr)
        run_record(out, {"started": started, "schedule": length.__dict__})
    task = PretrainTask(teg, optim, length.warmup_steps, length.steps, out / "weights.safetensors", run.channels_last)
    if run.compile:
        encoder.backbone.compile()
    trainer = _trainer(run, out, clips, data, length)
    loader = build_loader(clips, data, run, trainer)
    trainer.fit(task, loader, ckpt_path=resume, weights_only=True)
    if trainer.interrupted:
        raise KeyboardInterrupt
    trainer.save_checkpoint(out / "checkpoints" / "last.ckpt")
    if is_first_process():
        _finish(out, trainer, started, json)


def _trainer(run: RunConfig, out: Path, clips: VideoClips, data: DataConfig, length: Schedule) -> Trainer:
    """The engine: everything around the objective that Lightning does well."""
    folder = out / "checkpoints"
    when: dict[str, Any] = (
        {"every_n_train_steps": run.checkpoint_every_steps}
        if run.checkpoint_every_steps
        else {"train_time_interval": timedelta(minutes=run.checkpoint_minutes)}
    )
    csv_log = MetricsCsv(out / "metrics.csv", run.log_every_steps)
    callbacks: list[Any] = [
        ProgressLine(),
        csv_log,
        FailedVideos(out / "failed_videos.csv", len(clips), data.max_failure_share),
        ModelCheckpoint(folder, filename="last", enable_version_counter=False, save_on_train_epoch_end=False, **when),
    ]
    if run.keep_every_epochs:
        # By steps, not by epochs: a checkpoint taken after an epoch's end is not resumed exactly by the engine.
        every = max(1, round(run.keep_every_epochs * length.steps_per_epoch))
        callbacks.append(
            ModelCheckpoint(
                folder,
                filename="{step:08d}",
                every_n_train_steps=every,
                save_top_k=-1,
                save_on_train_epoch_end=False,
                enable_version_counter=False,
            )
        )
    if run.monitor_every_epochs:
        callbacks += [
            FeatureMonitor(clips, run.monitor_every_epochs, run.monitor_videos, csv_log),
            ModelCheckpoint(
                folder,
                filename="best",
                monitor="monitor",
                mode="max",
                every_n_epochs=run.monitor_every_epochs,
                save_on_train_epoch_end=True,
                enable_version_counter=False,
            ),
        ]
    loggers: list[Logger] = []
    if run.tensorboard:
        loggers.append(TensorBoardLogger(out, name="tensorboard", version=""))
    if run.wandb:
        loggers.append(WandbLogger(project=run.wandb, save_dir=out))
    return Trainer(
        accelerator=run.accelerator,
        devices=run.devices,
        num_nodes=run.num_nodes,
        precision=run.precision,
        max_steps=length.steps,
        accumulate_grad_batches=run.accumulate,
        sync_batchnorm=run.sync_batchnorm and run.accelerator != "cpu" and torch.cuda.is_available(),
        callbacks=callbacks,
        logger=loggers,
        plugins=[AtomicCheckpoints()],
        log_every_n_steps=run.log_every_steps,
        use_distributed_sampler=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=out,
    )


def _finish(out: Path, trainer: Trainer, started: float, json: bool) -> None:
    """Say what there is now and what to type next."""
    seconds = time.time() - started
    final = {key: float(value) for key, value in trainer.callback_metrics.items()}
    run_record(out, {"finished": time.time(), "steps": trainer.global_step, "seconds": seconds, "final": final})
    weights = out / "weights.safetensors"
    if json:
        import json as json_module

        print(json_module.dumps({"weights": str(weights), "steps": trainer.global_step, "seconds": seconds, **final}))
    else:
        print(f"\nDone: {trainer.global_step} steps in {timedelta(seconds=round(seconds))}. Weights: {weights}")
        print(f"Next: timegrain embed VIDEOS --weights {weights} --out features.parquet")


def _quieten() -> None:
    """Leave the screen to our own lines: Lightning's hints about choices made on purpose here are switched off."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    logging.getLogger("lightning.fabric").setLevel(logging.ERROR)
    for hint in (
        ".*does not have many workers.*",
        ".*No `val_dataloader`.*",
        ".*exists and is not empty.*",
        ".*GPU available but not used.*",
        ".*LeafSpec.*",
        ".*mid-epoch.*",
    ):
        warnings.filterwarnings("ignore", hint)
