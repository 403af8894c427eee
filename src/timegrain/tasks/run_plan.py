"""A pre-training run before it is begun: what is known about it, what it says to people, and what should be changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from timegrain.data.location import shown
from timegrain.data.transforms import AugmentConfig
from timegrain.models.hub import EncoderConfig
from timegrain.objectives.objective import Objective
from timegrain.optim import OptimConfig
from timegrain.sampling import ClipSpec
from timegrain.tasks.budget import Estimate, Loading, Range, largest_that_fits, store_seconds
from timegrain.tasks.config import DataConfig, ModelConfig, ObjectiveConfig, RunConfig, clip_specs
from timegrain.tasks.hardware import Gpu
from timegrain.tasks.objective import describe
from timegrain.tasks.setup import Schedule
from timegrain.tasks.stages import LoadCost
from timegrain.tasks.step_cost import StateBytes, StepCost, process_bytes, state_bytes, step_cost
from timegrain.tasks.step_timing import StepTime


@dataclass
class Rooms:
    """The settings of a run, completed."""

    data: DataConfig
    model: ModelConfig
    objective: ObjectiveConfig
    augment: AugmentConfig
    optim: OptimConfig
    run: RunConfig

    @property
    def specs(self) -> tuple[ClipSpec, ...]:
        """Shapes of the clips."""
        return clip_specs(self.data, self.objective)


@dataclass
class Plan:
    """All that is known about a run before it is begun."""

    rooms: Rooms
    card: Gpu | None
    schedule: Schedule
    encoder_config: EncoderConfig
    module: Objective
    state: StateBytes
    cost: StepCost
    capacity: float
    loading: Loading
    cores: float
    cores_said: bool
    estimate: Estimate
    step_time: StepTime | None
    load_cost: LoadCost | None
    resident: float  # bytes of the process beside its tensors: the program, and what libraries take on a CPU

    @property
    def processes(self) -> int:
        """Over all machines."""
        return self.rooms.run.devices * self.rooms.run.num_nodes

    @property
    def tensors(self) -> int:
        """The most bytes of tensors in a process."""
        return process_bytes(self.state, self.cost)

    def bytes_with(self, **changes: Any) -> int:
        """The same with other settings of the run, or another ``batch_size``."""
        batch_size = changes.pop("batch_size", self.rooms.data.batch_size)
        run = replace(self.rooms.run, **changes)
        state = state_bytes(self.module, self.rooms.optim, self.processes, run.precision.endswith("mixed"))
        cost = step_cost(self.encoder_config, self.rooms.objective.name, self.rooms.specs, batch_size, run)
        return process_bytes(state, cost)

    def fitting_chunk(self, batch_size: int) -> int | None:
        """The largest chunk with which a batch fits into the memory."""
        least = 4 if self.rooms.model.head_norm else 2
        if batch_size < 4 * least:
            return None
        return largest_that_fits(
            lambda chunk: self.bytes_with(batch_size=batch_size, chunk_size=chunk),
            self.capacity,
            batch_size // 2,
            least,
        )

    def advice(self, before: int) -> list[str]:
        """What to change.

        Args:
            before: Videos of a contrastive batch in the configuration, before the number of GPUs was changed.
        """
        rooms, found = self.rooms, []
        run, now = rooms.run, self.schedule.global_batch
        if self.card and not self.card.bf16 and run.precision == "bf16-mixed":
            found.append(f"--run.precision 16-mixed: a {self.card.title} has no bfloat16")
        if self.card and run.precision == "32-true" and self.card.half:
            found.append(
                "--run.precision "
                + ("bf16" if self.card.bf16 else "16")
                + "-mixed: half the activations, and the tensor "
                "cores' 16-bit rate; scores and softmax stay in float32"
            )
        if self.tensors > self.capacity:
            found += self._less_memory()
        if before != now:
            share, rest = divmod(before, self.processes)
            rate = (
                f"with the learning rate of the configuration ({rooms.optim.learning_rate:g}), which was chosen for it"
            )
            if rest == 0 and share > 0:
                is_small = self.bytes_with(batch_size=share) <= self.capacity
                chunk = None if is_small else self.fitting_chunk(share)
                chunked = f" --run.chunk_size {chunk}" if chunk else ""
                fits = "" if chunk or is_small else ", if it fitted"
                found.append(
                    f"--run.devices {run.devices} --run.num_nodes {run.num_nodes} --data.batch_size {share}{chunked}, "
                    f"instead of --gpus, keep the configuration's contrastive batch of {before:,}{fits}, {rate}; "
                    f"the batch is {now:,} else, and the rate is not changed by itself"
                )
            else:
                found.append(f"the configuration's batch of {before:,} does not divide by {self.processes} processes")
        if "loading" in self.estimate.bound and self.estimate.bound != "memory":
            found += self._quicker_loading()
        if self.card is None and run.precision.endswith("mixed"):
            found.append("--run.precision 32-true: most CPUs compute 16 bits more slowly")
        if self.estimate.bound == "compute" and self.card and not run.channels_last:
            found.append("--run.channels_last true: usually faster on GPUs (not measured here)")
        return found

    def _less_memory(self) -> list[str]:
        found = []
        batch_size = self.rooms.data.batch_size
        if self.bytes_with(checkpoint_activations=True) <= self.capacity:
            found.append("--run.checkpoint_activations true fits, for about a third more time")
        chunk = self.fitting_chunk(batch_size)
        if chunk:
            found.append(
                f"--run.chunk_size {chunk} fits with the same contrastive batch, for about a third more time; batch "
                "statistics are those of a chunk"
            )
        smaller = largest_that_fits(
            lambda size: self.bytes_with(batch_size=size, chunk_size=None), self.capacity, batch_size, 2
        )
        if smaller and smaller < batch_size:
            found.append(f"--data.batch_size {smaller} fits, with fewer negatives")
        return found or ["even two videos at a time do not fit: a smaller crop, fewer frames or a smaller backbone"]

    def _quicker_loading(self) -> list[str]:
        low, high = self.estimate.cores
        found = []
        if self.card:
            found.append(f"{low:.0f} to {high:.0f} cores (and --data.workers) for each GPU, instead of {self.cores:g}")
        elif self.rooms.data.workers == 0 and self.cores > 1:
            found.append(f"--data.workers {max(1, round(self.cores) - 1)}: decode beside the training process")
        stored = store_seconds(self.rooms.specs)
        if stored < 0.6 * self.loading.seconds[0]:
            found.append(
                "`timegrain prepare ... --frames` stores JPEG frames: about "
                f"{1000 * stored:.0f} ms of a core for a sample, at about three times the bytes"
            )
        if self.loading.seconds[1] > 0.1:
            found.append(
                "`timegrain prepare ... --short-side 256` makes videos smaller, with a key frame every 12 frames"
            )
        if self.rooms.objective.name != "moco":
            more = 2 * self.rooms.data.samples_per_visit
            found.append(
                f"--data.samples_per_visit {more}: each decoded video gives {more} samples, for as many batches"
            )
        if not self.rooms.data.cache and self.card is None:
            found.append("--data.cache true decodes every video once, if they fit on the disk as raw frames")
        return found

    def record(self) -> dict[str, Any]:
        """Plain values."""
        rooms = self.rooms
        return {
            "device": self.card.title if self.card else "cpu",
            "processes": self.processes,
            "run": {"devices": rooms.run.devices, "num_nodes": rooms.run.num_nodes, "precision": rooms.run.precision},
            "schedule": asdict(self.schedule),
            "learning_rate": rooms.optim.learning_rate,
            "flops_per_step": self.cost.flops,
            "memory": {
                **asdict(self.state),
                "kept_for_backward": self.cost.kept,
                "step": self.cost.peak,
                "tensors": self.tensors,
                "process": self.tensors + self.resident,
                "capacity": self.capacity,
            },
            "loading": asdict(self.loading),
            "cores_per_device": self.cores,
            "estimate": asdict(self.estimate),
            "step_time": asdict(self.step_time) if self.step_time else None,
            "failures": [[shown(text) for text in item] for item in self.load_cost.failures] if self.load_cost else [],
        }

    def lines(self, videos: str, before: int) -> list[str]:
        """The plan for people."""
        rooms, found, card = self.rooms, self.estimate, self.card
        per_video = self.cost.flops / rooms.data.batch_size
        title = f"{self.processes} x {card.title}" if card else f"this machine's CPU, {self.cores:g} cores"
        lines = [
            f"on              {title}, {rooms.run.precision}: --run.devices {rooms.run.devices} "
            f"--run.num_nodes {rooms.run.num_nodes}",
            describe(rooms.data, rooms.objective, rooms.optim, rooms.run, videos, self.module, self.schedule),
            "",
            f"operations      {per_video / 1e9:,.1f} GFLOP a video, {self.cost.flops / 1e9:,.0f} GFLOP a step and process "
            "(both passes; counted on shapes)",
            self._memory_line(),
        ]
        if card:
            lines.append(
                f"compute         {_range(found.step_seconds, 'g')} s a step, {_range(found.compute)} videos/s a GPU "
                f"({card.rate(rooms.run.precision)[2]}: an assumption; peak: {card.source})"
            )
        else:
            assert self.step_time is not None
            lines.append(
                f"compute         {_range(found.step_seconds, 'g')} s a step with loading, "
                f"{self.step_time.of(rooms.data.batch_size):.3g} s without (measured with "
                f"{' and '.join(map(str, self.step_time.measured))} videos)"
            )
        colour = f", {1000 * self.loading.colour_seconds:.3g} ms for its colours" if self.loading.colour_seconds else ""
        milliseconds = (1000 * self.loading.seconds[0], 1000 * self.loading.seconds[1])
        lines.append(
            f"loading         {_range(milliseconds, 'g')} ms of a core for a sample{colour} ({self.loading.source})"
        )
        if card:
            said = "" if self.cores_said else ", an assumption: --cores N"
            lines.append(
                f"cores           {_range(found.cores)} for each GPU, or it waits; with {self.cores:g}{said}: "
                f"{_range(found.loading)} videos/s"
            )
        lines.append(f"bound by        {found.bound}")
        on_top = "the monitor, checkpoints and exchange between GPUs come on top"
        lines.append(f"time            {_duration(found.seconds)} for {self.schedule.steps:,} steps; {on_top}")
        if self.load_cost and self.load_cost.failures:
            path, reason = self.load_cost.failures[0]
            number = len(self.load_cost.failures)
            lines.append(f"broken          {number} of the videos tried; the first: {shown(path)}: {shown(reason)}")
        advice = self.advice(before)
        lines += [f"{'to change' if not place else '':<16}{text}" for place, text in enumerate(advice)]
        return lines

    def _memory_line(self) -> str:
        def gib(value: float) -> str:
            return f"{value / 2**30:,.2f}" if value >= 2**30 / 10 or not value else f"{value / 2**30:.2g}"

        state, lasting = self.state, self.state.lasting
        parts = (
            f"weights {gib(state.weights)}, optimiser {gib(state.optimizer)}, gradients {gib(state.gradients)}, "
            f"activations kept {gib(self.cost.kept)}; {gib(lasting + max(self.cost.peak, state.gradients))} at most"
        )
        if self.card is None:
            whole = gib(self.tensors + self.resident)
            return f"in all          {whole} GiB with the program itself, of {gib(self.capacity)}: {parts}"
        fits = "fits" if self.tensors <= self.capacity else "does NOT fit"
        return (
            f"in all          {fits} into {self.card.memory_gib} GiB, of which about {gib(self.capacity)} are left for "
            f"tensors: {parts}"
        )


def _range(values: Sequence[float], kind: str = "whole") -> str:
    """From and to, once where they are the same."""
    texts = [f"{value:.3g}" if kind == "g" or value < 10 else f"{value:,.0f}" for value in values]
    return texts[0] if texts[0] == texts[1] else f"{texts[0]} to {texts[1]}"


def _duration(seconds: Range) -> str:
    unit, name = next(
        ((size, word) for size, word in ((86400, "days"), (3600, "hours"), (60, "minutes")) if seconds[0] >= 2 * size),
        (1, "seconds"),
    )
    return f"{_range((seconds[0] / unit, seconds[1] / unit), 'g')} {name}"
