"""From settings to the network of an objective, and what is said about both before training starts."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from timegrain.losses import TeGLoss
from timegrain.models.hub import EncoderConfig, VideoEncoder, load_encoder
from timegrain.objectives.objective import Objective
from timegrain.optim import OptimConfig
from timegrain.sampling import ClipSpec
from timegrain.tasks.config import DataConfig, ModelConfig, ObjectiveConfig, RunConfig, clip_specs
from timegrain.tasks.setup import Schedule
from timegrain.tasks.step_cost import process_bytes, state_bytes, step_cost


def _trained(objective: ObjectiveConfig) -> dict[str, Any]:
    """What weights say about their training."""
    if objective.name == "teg":
        return {
            "objective": "TeG",
            "alpha": objective.alpha if objective.levels is None else None,
            "levels": [dataclasses.asdict(level) for level in objective.resolved_levels()],
        }
    rho = f" (ρ = {objective.num_clips})"
    names = {"cvrl": "CVRL", "simclr": "SimCLR", "moco": f"ρMoCo{rho}", "byol": f"ρBYOL{rho}"}
    options = {key: value for key, value in dataclasses.asdict(objective).items() if value is not None}
    return {"objective": names[objective.name], "options": options}


def build_encoder(data: DataConfig, model: ModelConfig, objective: ObjectiveConfig) -> VideoEncoder:
    """The network with the heads that the objective uses, and nothing else."""
    assert data.crop_size is not None
    specs = clip_specs(data, objective)
    num_frames, stride = specs[0].num_frames, specs[0].stride
    heads: tuple[str, ...] = ("persistent",)
    if objective.name == "teg":  # whatever the sampler, features are meant for the long clip
        num_frames, stride = data.long_frames or num_frames, data.long_stride or stride
        heads = TeGLoss(objective.resolved_levels(), objective.temperature or 0.0).heads
    encoder = VideoEncoder(
        EncoderConfig(
            backbone=model.backbone,
            backbone_options=dict(model.options),
            heads=heads,
            head_hidden=model.head_hidden,
            head_num_hidden=model.head_layers,
            head_out=model.head_out,
            head_norm=model.head_norm,
            clip_num_frames=num_frames,
            clip_stride=stride,
            crop_size=data.crop_size,
            extra=_trained(objective),
        )
    )
    if model.weights is not None:
        source = load_encoder(model.weights)
        try:
            encoder.backbone.load_state_dict(source.backbone.state_dict())
        except RuntimeError as error:
            raise ValueError(f"{model.weights} does not fit the backbone {model.backbone}: {error}") from error
        for name, head in encoder.heads.items():
            if name in source.heads and _shape(source.config) == _shape(encoder.config):
                head.load_state_dict(source.heads[name].state_dict())
    return encoder


def _shape(config: EncoderConfig) -> tuple[int, int, int, bool]:
    return config.head_hidden, config.head_num_hidden, config.head_out, config.head_norm


def describe(
    data: DataConfig,
    objective: ObjectiveConfig,
    optim: OptimConfig,
    run: RunConfig,
    videos: str,
    module: Objective,
    schedule: Schedule,
) -> str:
    """What is about to happen, in numbers: said before the first step. ``videos`` says how many there are, and where."""
    encoder = module.encoder
    trained = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
    specs = clip_specs(data, objective)
    state = state_bytes(module, optim, run.devices * run.num_nodes, run.precision.endswith("mixed"))
    cost = step_cost(encoder.config, objective.name, specs, data.batch_size, run)
    memory = process_bytes(state, cost) / 2**30
    accumulated = f" x {run.accumulate} accumulated" if run.accumulate > 1 else ""
    chunks = []
    if run.chunk_size is not None and run.chunk_size < data.batch_size:
        chunks = [
            f"chunks          {run.chunk_size} videos go through the network at once and the backward pass runs it again; "
            "batch statistics are those of a chunk"
        ]
    return "\n".join(
        [
            f"videos          {videos}",
            f"clips           {_clips(data, specs, objective)}, {data.crop_size}x{data.crop_size} pixels, {data.sampler}",
            f"model           {encoder.config.backbone}, {trained / 1e6:.2f} M trained parameters with heads",
            f"objective       {_negatives(objective, schedule.global_batch)}",
            f"batch           {schedule.global_batch} videos in one contrastive batch{accumulated}",
            *chunks,
            f"optimiser       {optim.name}, learning rate {optim.learning_rate:g} for the mean loss over the batch "
            f"(the reference family's 0.32 is for a sum over its replicas)",
            f"length          {schedule.steps:,} steps ({schedule.epochs:.1f} epochs of "
            f"{schedule.epoch_steps}), warm-up {schedule.warmup_steps:,} steps; {schedule.samples:,} samples"
            f"{_visits(data)}",
            f"memory          {memory:.1f} GiB of tensors per process (weights, optimiser, activations), counted on shapes",
            *([f"out             {run.out}"] if run.out else []),
        ]
    )


def _visits(data: DataConfig) -> str:
    if data.samples_per_visit == 1:
        return ""
    return f", {data.samples_per_visit} of a video each time it is decoded, in as many batches"


def _clips(data: DataConfig, specs: Sequence[ClipSpec], objective: ObjectiveConfig) -> str:
    """Number and shapes of the clips of a video."""
    shapes = [f"{spec.num_frames} frames x stride {spec.stride}" for spec in specs]
    if objective.name == "teg" and data.sampler is not None and data.sampler.startswith("long_short"):
        return f"long {shapes[0]}, short {shapes[1]}"
    return f"{len(specs)} of {shapes[0]}"


def _negatives(objective: ObjectiveConfig, global_batch: int) -> str:
    """The loss in words: what each query is contrasted with."""
    temperature = f"; temperature {objective.temperature:g}" if objective.temperature is not None else ""
    if objective.name == "teg":
        levels = objective.resolved_levels()
        words = ", ".join(
            f"{name} n={level.num_short} m={level.num_long} weight {level.weight:g}: "
            f"{level.num_negatives(global_batch):,} negatives"
            for name, level in zip(TeGLoss(levels).names(), levels, strict=True)
        )
        return words + temperature
    name = _trained(objective)["objective"]
    if objective.momentum is not None:
        queue = f"{objective.queue_size:,} negatives in a queue" if objective.queue_size else "no negatives"
        return f"{name}: {queue}; momentum {objective.momentum:g} rising to 1{temperature}"
    return f"{name}: {2 * global_batch - 2:,} negatives{temperature}"
