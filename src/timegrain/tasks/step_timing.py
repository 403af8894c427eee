"""The training step measured by itself, and together with loading: for ``timegrain bench`` and ``timegrain plan``."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from timegrain.data.clips import VideoClips
from timegrain.data.loading import EpochBatchSampler, ResumableLoader
from timegrain.data.transforms import apply_augmentation
from timegrain.objectives.objective import Objective
from timegrain.optim import OptimConfig, build_optimizer
from timegrain.sampling import ClipSpec
from timegrain.tasks.config import RunConfig
from timegrain.tasks.stages import Timing, synchronise
from timegrain.tasks.switches import compile_backbones, keep_freed_memory, set_layout


class TrainingStep:
    """One step of training as the run makes it: both passes under its precision, and the optimiser.

    Args:
        objective: Encoder and loss; moved to the device.
        specs: Shapes of the clips.
        size: Height and width of the clips.
        optim: The optimiser's settings.
        run: Precision, layout, activation checkpointing and compilation.
        device: Where.
    """

    def __init__(
        self,
        objective: Objective,
        specs: Sequence[ClipSpec],
        size: int,
        optim: OptimConfig,
        run: RunConfig,
        device: torch.device,
    ) -> None:
        self.objective, self.specs, self.size, self.device = objective.to(device).train(), tuple(specs), size, device
        set_layout(objective, run, device)
        keep_freed_memory(device)
        self.is_compiled = run.compile  # for each batch size anew
        if run.compile:
            compile_backbones(objective)
        self.layout = torch.channels_last_3d if run.channels_last else torch.contiguous_format
        self.optimizer = build_optimizer(objective, optim)
        self.mixed = run.precision.endswith("mixed")
        self.width = torch.float16 if run.precision.startswith("16") else torch.bfloat16
        self.scaler = torch.amp.GradScaler(device.type, enabled=run.precision == "16-mixed")

    def __call__(self, clips: Sequence[Tensor], indices: Sequence[Tensor]) -> None:
        """Do a step on clips (B, 3, T, H, W) in [0, 1] on the device."""
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, self.width, enabled=self.mixed):
            loss = self.objective([clip.contiguous(memory_format=self.layout) for clip in clips], indices)["loss"]
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def of_noise(self, batch_size: int) -> tuple[list[Tensor], list[Tensor]]:
        """Clips of random pixels, and their frames' positions."""
        clips = [
            torch.rand(batch_size, 3, spec.num_frames, self.size, self.size, device=self.device) for spec in self.specs
        ]
        indices = [
            torch.arange(spec.num_frames, device=self.device).expand(batch_size, -1) * spec.stride
            for spec in self.specs
        ]
        return clips, indices


def time_steps(step: TrainingStep, batch_size: int, seconds: float, at_least: int = 2) -> Timing:
    """Steps on random pixels, for about ``seconds`` after one that warms up; a single one where it alone takes longer."""
    first, timing = Timing(), Timing()
    clips, indices = step.of_noise(batch_size)
    if step.is_compiled:
        step(clips, indices)  # the compiler's time is no part of a step
    with first.once(step.device):
        step(clips, indices)
    if first.of_training(step.device)[0] > seconds:
        return first
    while len(timing.wall) < at_least or sum(timing.of_training(step.device)) < seconds:
        with timing.once(step.device):
            step(clips, indices)
    return timing


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step as a line over the number of videos: what it costs anyway, and what each video costs.

    Args:
        fixed: Seconds by the clock.
        per_video: Seconds by the clock.
        measured: Numbers of videos that were measured.
    """

    fixed: float
    per_video: float
    measured: tuple[int, ...]

    def of(self, batch_size: int) -> float:
        """Seconds of a step on so many videos."""
        return self.fixed + self.per_video * batch_size


def fit_step_time(step: TrainingStep, batch_size: int, seconds: float) -> StepTime:
    """Measure steps on few videos and lay a line through them; the whole batch is measured where time allows.

    A compiled step is measured on the whole batch alone: another size would wait for the compiler again.

    Args:
        step: What is measured.
        batch_size: Of the run.
        seconds: How long this should take at most, about.
    """

    def time_of(videos: int, share: float) -> float:
        return statistics.median(time_steps(step, videos, share * seconds).of_training(step.device))

    few = batch_size if step.is_compiled else min(batch_size, 2 * max(step.objective.chunk_size or 1, 2))
    short = time_of(few, 0.2)
    # A step that warms up and two more of the larger batch should fit into what is left.
    more = min(batch_size, int(few * 0.8 * seconds / max(3 * short, 1e-9)))
    if more < 2 * few and more < batch_size:
        return StepTime(0.0, short / few, (few,))
    if batch_size == few:
        return StepTime(0.0, short / few, (few,))
    long = time_of(more, 0.4)
    per_video = max(long - short, 0.0) / (more - few) or long / more
    return StepTime(max(long - more * per_video, 0.0), per_video, (few, more))


@dataclass(frozen=True)
class Together:
    """A loader and a training process side by side.

    Args:
        samples_per_second: That were trained on.
        waiting: Share of the time that the training process waited for samples.
        seconds: By the clock, start of the workers not included.
        steps: That were done.
    """

    samples_per_second: float
    waiting: float
    seconds: float
    steps: int


def train_for_a_while(clips: VideoClips, batch_size: int, workers: int, step: TrainingStep, seconds: float) -> Together:
    """Real batches through real steps, for about ``seconds`` after a first one that warms up."""
    loader = ResumableLoader(
        clips, EpochBatchSampler(len(clips), batch_size, clips.seed), clips.collate, workers,
        pin_memory=step.device.type == "cuda", batches_per_visit=clips.samples_per_visit,
    )  # fmt: skip
    waited, steps, started = 0.0, 0, 0.0
    while True:
        asked = time.perf_counter()
        for batch in loader:
            if started:
                waited += time.perf_counter() - asked
            pairs = zip(batch["clips"], batch["augmentations"], strict=True)
            coloured = [apply_augmentation(clip.to(step.device), augmentation) for clip, augmentation in pairs]
            step(coloured, [positions.to(step.device) for positions in batch["indices"]])
            synchronise(step.device)
            asked = time.perf_counter()
            if not started:
                started = asked
                continue
            steps += 1
            if asked - started > seconds:
                return Together(
                    steps * batch_size / (asked - started), waited / (asked - started), asked - started, steps
                )
