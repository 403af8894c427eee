"""What every training command shares: the engine around a task, its optimiser and schedule, its files, its end."""

from __future__ import annotations

import json as json_module
import logging
import os
import signal
import sys
import time
import warnings
from abc import abstractmethod
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from torch import Tensor

from timegrain.callbacks import FailedVideos, FeatureMonitor, MetricsCsv, ProgressLine, StepSeed, run_record
from timegrain.checkpoints import (
    AtomicCheckpoints,
    BetweenSteps,
    RunStopped,
    StepCheckpoint,
    end_with_parent,
    move_checkpoint,
)
from timegrain.data.loading import ResumableLoader
from timegrain.data.location import shown
from timegrain.optim import OptimConfig, build_optimizer, schedule
from timegrain.tasks.config import TrainingConfig, launched
from timegrain.tasks.setup import Schedule, is_first_process
from timegrain.tasks.stopped import in_words, where_it_goes_on
from timegrain.tasks.switches import compile_backbones, keep_freed_memory, set_layout

_STARTED_BY = "TIMEGRAIN_STARTED_BY"  # in the environment of processes that a run starts beside itself: who did


class _Step(NamedTuple):
    """What is reported of a step whose loss turns out not to be finite."""

    number: int
    losses: dict[str, Tensor]
    videos: Tensor


class TrainingTask(LightningModule):
    """A task that trains an encoder, or something on it: optimiser, schedule, logs and weights are here.

    A subclass says where its ``encoder`` is and ends its ``training_step`` with :meth:`report`. Batches carry
    ``index`` (B,), the videos' rows in the loader's manifest, and ``failures``.

    Args:
        optim: Optimiser and its settings.
        length: Of the run; the cosine ends with it.
        weights: Where the encoder's weights are written with every checkpoint.
        channels_last: Whether clips are laid out channels-last.
    """

    def __init__(self, optim: OptimConfig, length: Schedule, weights: Path, channels_last: bool = False) -> None:
        super().__init__()
        self.optim, self.length, self.weights = optim, length, weights
        self.memory_format = torch.channels_last_3d if channels_last else torch.contiguous_format
        self._unseen: list[_Step] = []
        self._is_moved = False

    def set_switches(self, run: TrainingConfig, device: torch.device) -> None:
        """What changes how the network is computed, on this device, and not what it computes."""
        set_layout(self, run, device)
        keep_freed_memory(device)
        if run.compile:
            self.compile_network()

    def compile_network(self) -> None:
        """Compile what is called once a clip."""
        compile_backbones(self)

    def report(self, losses: dict[str, Tensor], batch: dict[str, Any]) -> Tensor:
        """Log what a step computed and give back its ``loss``; one that is not finite stops the run.

        Reading a value makes the host wait for a GPU. There, the losses of some steps are looked at together: every
        ``run.log_every_steps`` steps, before each checkpoint and at the end.
        """
        loss = losses["loss"]
        parts = {name: value.detach() for name, value in losses.items() if name.endswith("loss")}
        self._unseen.append(_Step(self.global_step, parts, batch["index"]))
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]  # the engine sets it
        if self._reads_at_once(loss) or len(self._unseen) >= every:
            self._check_losses()
        self.log_dict({name: value.detach() for name, value in losses.items()}, batch_size=len(batch["index"]))
        self.log("learning_rate", self.trainer.optimizers[0].param_groups[0]["lr"])
        return loss

    def on_train_end(self) -> None:
        """Look at the losses of the last steps."""
        self._check_losses()

    @staticmethod
    def _reads_at_once(loss: Tensor) -> bool:
        """Whether reading a value costs nothing."""
        return loss.device.type == "cpu"

    def _check_losses(self) -> None:
        """Stop at the first step whose loss is not finite; the host waits here, once for all steps since the last look."""
        steps, self._unseen = self._unseen, []
        if not steps:
            return
        finite = torch.isfinite(torch.stack([step.losses["loss"] for step in steps])).tolist()
        if not all(finite):
            self._stop_on_non_finite(steps[finite.index(False)])

    def _stop_on_non_finite(self, step: _Step) -> None:
        loader: Any = self.trainer.train_dataloader
        manifest = loader.dataset.manifest
        files = "\n  ".join(shown(manifest[int(index)].path) for index in step.videos)
        parts = ", ".join(f"{name} {float(value):g}" for name, value in step.losses.items())
        last = self.weights.parent / "checkpoints" / "last.ckpt"
        good = f"the last good checkpoint is {last}" if last.exists() else "there is no checkpoint yet"
        raise ValueError(
            f"the loss is not finite at step {step.number} ({parts}); {good}. Try a lower --optim.learning_rate "
            f"or 32-true precision. The batch's files:\n  {files}"
        )

    def configure_optimizers(self) -> Any:
        """The optimiser, and the reference's schedule: linear warm-up, cosine counted from step 0."""
        optimizer = build_optimizer(self, self.optim)
        shift = self.length.shift
        factor = schedule(warmup_steps=self.length.warmup_steps, total_steps=self.length.steps - shift)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: factor(step - shift))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Let the checkpoint go on with as many processes and as large batches as there are now."""
        world, accumulate = self.trainer.world_size, self.trainer.accumulate_grad_batches
        batches = round(self.length.steps_per_epoch * accumulate)
        self._is_moved = move_checkpoint(checkpoint, self.length.global_batch // world, world, batches, accumulate)

    def on_train_start(self) -> None:
        """With batches of another size, take the learning rate that is asked for now, at its place in the schedule."""
        if not self._is_moved:
            return
        scheduler: Any = self.lr_schedulers()
        scheduler.base_lrs = [self.optim.learning_rate] * len(scheduler.base_lrs)
        for group, factor in zip(scheduler.optimizer.param_groups, scheduler.lr_lambdas, strict=True):
            group["initial_lr"] = self.optim.learning_rate
            group["lr"] = self.optim.learning_rate * factor(scheduler.last_epoch)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the weights on disk as fresh as the checkpoint; never write weights that are not finite."""
        self._check_losses()
        bad = [name for name, tensor in self.state_dict().items() if not torch.isfinite(tensor).all()]
        if bad:
            raise ValueError(
                f"weights are not finite at step {self.global_step} (first: {bad[0]}); nothing was written"
            )
        if is_first_process():
            self.write_weights()

    @abstractmethod
    def write_weights(self) -> None:
        """Write what users load."""


def fit(
    task: TrainingTask,
    run: TrainingConfig,
    length: Schedule,
    loader: Callable[[Trainer], ResumableLoader],
    *,
    failures: FailedVideos,
    resume: Path | None = None,
    description: str = "training",
    monitor: Callable[[MetricsCsv], FeatureMonitor] | None = None,
) -> Trainer:
    """Train to the end, from the checkpoint ``resume`` on, and leave a last checkpoint.

    Args:
        task: What to train.
        run: How, and where to; ``run.out`` is set.
        length: Of the run.
        loader: Makes the loader of this process's batches once processes are joined.
        failures: Keeps the list of videos that could not be decoded.
        resume: The checkpoint to go on from.
        description: The words before the progress line.
        monitor: Makes what looks at the features; the best checkpoint by it is kept. None never looks.

    Raises:
        KeyboardInterrupt: The user stopped the run; the message says where the same command goes on.
        ValueError: A loading process was killed, or found no video that it can decode.
    """
    assert run.out is not None
    trainer = _trainer(run, run.out, length, failures, description, monitor)
    task.set_switches(run, trainer.strategy.root_device)
    task.train()  # the engine leaves modes as they are, and weights that were read come in evaluation mode
    last = run.out / "checkpoints" / "last.ckpt"
    is_alone = trainer.world_size == 1
    # The engine asks the first process at every batch whether it has got a SIGTERM, and every process waits for the
    # answer; `BetweenSteps` hears the signal and asks seldom.
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
    if isinstance(getattr(trainer.strategy, "cluster_environment", None), LightningEnvironment):
        if trainer.local_rank:
            end_with_parent(int(os.environ.get(_STARTED_BY, os.getppid())))
        else:
            os.environ[_STARTED_BY] = str(os.getpid())
    try:
        trainer.fit(task, loader(trainer), ckpt_path=resume, weights_only=True)
    except RunStopped as stopped:
        if not is_first_process():  # the first one says it
            raise SystemExit(0) from None
        raise KeyboardInterrupt(f"{stopped}; the same command continues there") from None
    except SystemExit:  # the engine's answer to a Ctrl-C that could not wait
        raise KeyboardInterrupt(f"the same command {where_it_goes_on(last)}") from None
    except Exception as error:
        if not is_alone and trainer.strategy.launcher is not None:
            # Processes that wait for this one in a GPU would not notice for long.
            trainer.strategy.launcher.kill(signal.SIGKILL)
        told = in_words(error, run.out, last, is_alone)
        if told is None:
            raise
        raise told from error
    trainer.save_checkpoint(last)
    return trainer


def _trainer(
    run: TrainingConfig,
    out: Path,
    length: Schedule,
    failures: FailedVideos,
    description: str,
    monitor: Callable[[MetricsCsv], FeatureMonitor] | None,
) -> Trainer:
    """The engine: everything around the task that Lightning does well."""
    folder = out / "checkpoints"
    csv_log = MetricsCsv(out / "metrics.csv", run.log_every_steps)
    callbacks: list[Callback] = [
        StepSeed(run.seed),
        ProgressLine(description),
        csv_log,
        failures,
        BetweenSteps(folder / "last.ckpt", None if run.checkpoint_every_steps else run.checkpoint_minutes),
    ]
    if run.checkpoint_every_steps:
        callbacks.append(
            StepCheckpoint(
                folder,
                filename="last",
                every_n_train_steps=run.checkpoint_every_steps,
                save_on_train_epoch_end=False,
                enable_version_counter=False,
            )
        )
    if run.keep_every_epochs:
        # By steps, not by epochs: a checkpoint taken after an epoch's end is not resumed exactly by the engine.
        every = run.keep_every_epochs * length.epoch_steps
        callbacks.append(
            StepCheckpoint(
                folder,
                filename="{step:08d}",
                every_n_train_steps=every,
                save_top_k=-1,
                save_on_train_epoch_end=False,
                enable_version_counter=False,
            )
        )
    if monitor is not None:
        watch = monitor(csv_log)
        callbacks += [
            watch,
            StepCheckpoint(
                folder,
                filename="best",
                monitor="monitor",
                mode="max",
                every_n_epochs=watch.every_epochs,
                save_on_train_epoch_end=True,
                enable_version_counter=False,
            ),
        ]
    loggers: list[Logger] = []
    if run.tensorboard:
        loggers.append(TensorBoardLogger(out, name="tensorboard", version=""))
    if run.wandb:
        try:
            loggers.append(WandbLogger(project=run.wandb, save_dir=out))
        except ModuleNotFoundError as error:
            raise ValueError(f"--run.wandb needs an extra: pip install 'timegrain[wandb]' ({error})") from error
    try:
        return _engine(run, out, length, callbacks, loggers)
    except MisconfigurationException as error:
        raise ValueError(f"--run.accelerator {run.accelerator}, --run.devices {run.devices}: {error}") from error


def _engine(
    run: TrainingConfig, out: Path, length: Schedule, callbacks: list[Callback], loggers: list[Logger]
) -> Trainer:
    plugins: list[Any] = [AtomicCheckpoints()]
    if SLURMEnvironment.detect() and not TorchElasticEnvironment.detect():
        # The engine's own answer to SLURM's warning would save in the middle of a step; `BetweenSteps` has another. It also
        # takes every task of the job for one that srun started, and would wait for them; and it wants to be told how many
        # there are on a machine in words that srun leaves out, or has from a job with other steps.
        if launched()[0] == "SLURM":
            os.environ["SLURM_NTASKS_PER_NODE"] = str(run.devices)
            plugins.append(SLURMEnvironment(auto_requeue=False))
        else:
            plugins.append(LightningEnvironment())
            tasks = int(os.environ.get("SLURM_NTASKS", 1))
            if tasks > run.devices and "SLURM_STEP_NUM_TASKS" not in os.environ:
                print(
                    f"SLURM gives this job {tasks} tasks, but no srun started this command: it trains with "
                    f"{run.devices} process{'es' * (run.devices > 1)}. With srun in front of it there are {tasks}",
                    file=sys.stderr,
                )
    return Trainer(
        accelerator=run.accelerator,
        devices=run.devices,
        num_nodes=run.num_nodes,
        precision=run.precision,
        max_steps=length.steps,
        accumulate_grad_batches=run.accumulate,
        sync_batchnorm=run.sync_batchnorm and run.accelerator != "cpu" and torch.cuda.is_available(),
        callbacks=callbacks,
        enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),  # never the engine's own
        logger=loggers,
        plugins=plugins,
        log_every_n_steps=run.log_every_steps,
        use_distributed_sampler=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=out,
    )


def finish(
    out: Path, trainer: Trainer, started: float, *, found: dict[str, Any], json: bool, following: Sequence[str]
) -> None:
    """Note in ``run.json`` how the run ended, and say what there is now and what to type next.

    Args:
        out: Folder of the run.
        trainer: Has finished.
        started: When the command began, in seconds.
        found: What the run made, by name: first the file that users load. Goes to ``run.json`` and to ``--json``.
        json: Print one JSON object instead of text.
        following: Lines for people after "Done".
    """
    seconds = time.time() - started
    final = {key: float(value) for key, value in trainer.callback_metrics.items()}
    facts = {"steps": trainer.global_step, "seconds": seconds}
    run_record(out, {"finished": time.time(), **facts, "final": final, **found})
    if json:
        print(json_module.dumps({**found, **facts, **final}))
    else:
        name, file = next(iter(found.items()))
        took = timedelta(seconds=round(seconds))
        print(f"\nDone: {trainer.global_step} steps in {took}. {name.capitalize()}: {file}")
        print("\n".join(following))


def quieten() -> None:
    """Leave the screen to our own lines: Lightning's hints about choices made on purpose here are switched off."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    logging.getLogger("lightning.fabric").setLevel(logging.ERROR)
    # But for the one that says which process has died before all others are ended.
    logging.getLogger("lightning.fabric.strategies.launchers.subprocess_script").setLevel(logging.INFO)
    hints = (
        "does not have many workers|No `val_dataloader`|exists and is not empty|GPU available but not used|LeafSpec"
        "|mid-epoch|in eval mode at the start of training|smaller than the logging interval"
        "|Grad strides do not match bucket view"  # of kernels of one pixel, where strides mean nothing
    )
    warnings.filterwarnings("ignore", f".*(?:{hints}).*")
