"""What a training run can be told: one small dataclass per room, shown by the commands' ``--help``."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from timegrain.losses import Level, levels_for_alpha
from timegrain.sampling import ClipSpec, pair_specs

ObjectiveName = Literal["teg", "cvrl", "simclr", "moco", "byol"]
SamplerName = Literal[
    "long_short_contained", "long_short_random", "short_short_contained", "short_short_random", "cvrl_interval",
    "random", "same",
]  # fmt: skip


def check_smallest(config: Any, group: str, smallest: Mapping[str, int]) -> None:
    """Refuse numbers that are too small to mean anything; None is left alone.

    Raises:
        ValueError: One is; the message names the option.
    """
    for name, least in smallest.items():
        value = getattr(config, name)
        if value is not None and not value >= least:
            raise ValueError(f"--{group}.{name} must be at least {least}, got {value}")


def refuse_ignored(room: str, config: Any, names: Iterable[str], because: str, default: Any = None) -> None:
    """Refuse settings that mean nothing here, instead of ignoring them; what is left as it was is nobody's wish.

    Args:
        room: Name of the dataclass's option, such as ``classifier``.
        config: The dataclass.
        names: Its fields that mean nothing here.
        because: Why, for people.
        default: What the command has where nothing is said; by default the dataclass's own.

    Raises:
        ValueError: One of them was set.
    """
    default = type(config)() if default is None else default
    if ignored := [f"--{room}.{name}" for name in names if getattr(config, name) != getattr(default, name)]:
        raise ValueError(f"{' and '.join(ignored)} cannot be given here: {because}")


@dataclass
class DataConfig:
    """Which videos, and which clips of them.

    Args:
        folder: Folder of videos, searched with its subfolders; no labels needed. Either this or `manifest`.
        manifest: Manifest made by `timegrain manifest scan` or `timegrain prepare`.
        split: Rows to train on; by default the split `train` where the manifest has one, else all rows.
        sampler: How the clips of a video are drawn. teg: long_short_contained (the paper's), the others of its
            Fig. 5(a), cvrl_interval. Others: cvrl_interval (two clips, near ones likelier; default of cvrl), random
            (each anywhere; default of moco and byol), same (one clip, augmented anew; default of simclr).
        long_frames: teg: frames of the long clip (32).
        long_stride: teg: source frames from one frame of the long clip to the next (4).
        short_frames: teg: frames of the short clip (16).
        short_stride: teg: source frames from one frame of the short clip to the next (2).
        num_frames: Other objectives: frames of every clip (cvrl 16, simclr 1, moco and byol 8).
        stride: Other objectives: source frames from one frame of a clip to the next (cvrl 2, moco and byol 8).
        crop_size: Height and width of the clips in pixels; null is 224, and 112 for the small backbones.
        batch_size: Videos per step and process.
        samples_per_visit: How many samples (teg: pairs of a long and a short clip) are drawn of a video each time it is
            decoded. An epoch still decodes every video once, and has so many times more steps: the samples of a visit
            go to batches that follow each other, never to one, so no clip is contrasted with its own video. Cheaper
            per sample where decoding is what takes the time; each worker holds so many batches at once.
        workers: Processes that decode; null is one per free core, 0 decodes in the training process.
        cache: Decode every video once and keep the frames, uncompressed, on disk: for small data sets.
        cache_folder: Where they are kept; by default in the run's folder. Runs on the same videos can share it: one
            decodes, those that start meanwhile wait for it.
        max_failure_share: Stop when more than this share of the videos failed to decode during training.
    """

    folder: Path | None = None
    manifest: Path | None = None
    split: str | None = None
    sampler: SamplerName | None = None
    long_frames: int | None = None
    long_stride: int | None = None
    short_frames: int | None = None
    short_stride: int | None = None
    num_frames: int | None = None
    stride: int | None = None
    crop_size: int | None = None
    batch_size: int = 32
    samples_per_visit: int = 1
    workers: int | None = None
    cache: bool = False
    cache_folder: Path | None = None
    max_failure_share: float = 0.01

    def __post_init__(self) -> None:
        check_smallest(
            self,
            "data",
            {"crop_size": 1, "batch_size": 1, "samples_per_visit": 1, "workers": 0, "max_failure_share": 0},
        )


@dataclass
class ModelConfig:
    """Which network.

    Args:
        backbone: r3d50 (the paper's), r3d18, r3d_tiny, or another that `timegrain model-info --help` lists, such as
            slow_r50; auto is r3d50 with a GPU and r3d_tiny without.
        options: Options of the backbone, such as `{padding: symmetric}`.
        head_hidden: Width of the projection heads' hidden layers.
        head_layers: Hidden layers of a projection head.
        head_out: Size of an embedding.
        head_norm: Batch norms in the heads' hidden layers.
        weights: Start from these weights (backbone, and heads where they fit) instead of random ones.
    """

    backbone: str = "auto"
    options: dict[str, Any] = field(default_factory=dict)
    head_hidden: int = 2048
    head_layers: int = 3
    head_out: int = 128
    head_norm: bool = True
    weights: Path | None = None


@dataclass
class ObjectiveConfig:
    """What is learned, and how finely it resolves time.

    An option is for the objectives named before its colon; with another objective it is refused. null is the default
    of the objective.

    Args:
        name: teg: long and short clip at chosen granularities, the paper's. Those it is compared with: cvrl (two clips,
            every other clip is a negative), simclr (two views of one frame), moco (ρMoCo: momentum encoder and queue),
            byol (ρBYOL: momentum encoder, no negatives).
        alpha: teg: weight of the fine-grained loss: 0 is TeG-PS (persistent), 0.9 (default) the paper's TeG-FG (Eq. 3).
        num_short: teg: n, embeddings of the short clip in the fine-grained loss (1).
        num_long: teg: m, embeddings of the long clip in the fine-grained loss (4).
        same_video_negatives: teg: contrast against other times of the same video, too (not in Eq. 1).
        symmetric: teg: average both directions (not in Eq. 1).
        levels: teg: any list of granularity levels, instead of the two that the options above make.
        temperature: teg, cvrl, simclr, moco: τ of all losses (0.1).
        num_clips: moco, byol: ρ, clips of each video (2).
        momentum: moco, byol: how slowly the momentum encoder follows at the start (moco 0.994, byol 0.996); it rises
            to 1 along half a cosine.
        queue_size: moco: negatives; by default 65,536, or less where the videos of half an epoch fill fewer.
    """

    name: ObjectiveName = "teg"
    alpha: float | None = None
    num_short: int | None = None
    num_long: int | None = None
    same_video_negatives: bool | None = None
    symmetric: bool | None = None
    levels: list[Level] | None = None
    temperature: float | None = None
    num_clips: int | None = None
    momentum: float | None = None
    queue_size: int | None = None

    def resolved_levels(self) -> tuple[Level, ...]:
        """TeG's levels to train, weights of 0 left out; settings left open have their defaults."""
        if self.levels is not None:
            return tuple(level for level in self.levels if level.weight > 0)
        values = _OPTIONS["teg"] | {name: value for name, value in vars(self).items() if value is not None}
        switches = {name: values[name] for name in ("same_video_negatives", "symmetric")}
        levels = levels_for_alpha(values["alpha"], values["num_short"], values["num_long"])
        return tuple(replace(level, **switches) for level in levels)


# What belongs to each objective, and its value where it is left open.
_OPTIONS: dict[str, dict[str, Any]] = {
    "teg": {
        "alpha": 0.9, "num_short": 1, "num_long": 4, "same_video_negatives": False, "symmetric": False, "levels": None,
        "temperature": 0.1,
    },
    "cvrl": {"temperature": 0.1},
    "simclr": {"temperature": 0.1},
    "moco": {"temperature": 0.1, "num_clips": 2, "momentum": 0.994, "queue_size": None},
    "byol": {"num_clips": 2, "momentum": 0.996},
}  # fmt: skip
_CLIPS: dict[str, dict[str, Any]] = {
    "teg": {
        "sampler": "long_short_contained", "long_frames": 32, "long_stride": 4, "short_frames": 16, "short_stride": 2,
    },
    "cvrl": {"sampler": "cvrl_interval", "num_frames": 16, "stride": 2},
    "simclr": {"sampler": "same", "num_frames": 1, "stride": 1},
    "moco": {"sampler": "random", "num_frames": 8, "stride": 8},
    "byol": {"sampler": "random", "num_frames": 8, "stride": 8},
}  # fmt: skip
_SHAPES = ("long_frames", "long_stride", "short_frames", "short_stride", "num_frames", "stride")


def with_defaults(data: DataConfig, objective: ObjectiveConfig) -> tuple[DataConfig, ObjectiveConfig]:
    """Fill in what the objective decides, and refuse what does not belong to it.

    Raises:
        ValueError: If an option belongs to another objective, or a sampler does not suit this one.
    """
    name = objective.name
    own, clips = _OPTIONS[name], _CLIPS[name]
    given = [("objective", option) for option in vars(objective) if option != "name"]
    given += [("data", option) for option in _SHAPES]
    for room, option in given:
        value = getattr(objective if room == "objective" else data, option)
        if value is not None and option not in own and option not in clips:
            users = [other for other in _OPTIONS if option in _OPTIONS[other] or option in _CLIPS[other]]
            raise ValueError(
                f"--{room}.{option} does not belong to --objective.name {name} (it is for {', '.join(users)}); leave "
                f"it out, or choose another objective. {name} takes "
                f"{', '.join([f'--objective.{key}' for key in own] + [f'--data.{key}' for key in clips])}"
            )
    for option in ("alpha", "num_short", "num_long", "same_video_negatives", "symmetric"):
        # What is filled in by itself stands in every run's config.yaml, so it may be given with levels, too.
        if objective.levels is not None and getattr(objective, option) not in (None, own[option]):
            raise ValueError(
                f"--objective.{option} and --objective.levels exclude each other: levels say by themselves what is trained"
            )
    if name == "moco" and data.samples_per_visit > 1:
        raise ValueError(
            f"--data.samples_per_visit {data.samples_per_visit} does not go with --objective.name moco: its queue of "
            "negatives would hold other samples of the same video"
        )
    sampler = data.sampler or clips["sampler"]
    suits = "cvrl_interval" if sampler == "cvrl_interval" else "pair" if "short" in sampler else "equal"
    num_clips = own.get("num_clips", 2) if objective.num_clips is None else objective.num_clips
    if num_clips < 2:
        raise ValueError(f"--objective.num_clips {num_clips}: at least 2 clips of a video are compared")
    if suits == ("equal" if name == "teg" else "pair") or (suits == "cvrl_interval" and num_clips != 2):
        fitting = ["random", "same"] if name != "teg" else [key for key in get_args(SamplerName) if "short" in key]
        fitting += ["cvrl_interval"] if num_clips == 2 else []
        raise ValueError(
            f"--data.sampler {sampler} does not suit --objective.name {name} with {num_clips} clips a video; there "
            f"are {', '.join(fitting)}"
        )

    def filled(config: Any, defaults: dict[str, Any]) -> Any:
        return replace(config, **{key: value for key, value in defaults.items() if getattr(config, key) is None})

    return filled(data, clips), filled(objective, own)


def clip_specs(data: DataConfig, objective: ObjectiveConfig) -> tuple[ClipSpec, ...]:
    """Shapes of the clips of a video, from settings that :func:`with_defaults` has completed."""

    def spec(num_frames: int | None, stride: int | None) -> ClipSpec:
        assert num_frames is not None
        assert stride is not None
        return ClipSpec(num_frames, stride)

    if objective.name == "teg":
        assert data.sampler is not None
        long, short = spec(data.long_frames, data.long_stride), spec(data.short_frames, data.short_stride)
        return pair_specs(data.sampler, long, short)
    return (spec(data.num_frames, data.stride),) * (objective.num_clips or 2)


def launched() -> tuple[str, tuple[int, int]]:
    """Who started this process as one of several, and how many it started: on each machine, and machines.

    Raises:
        ValueError: srun started processes that cannot train together.
    """
    known = os.environ
    if "TORCHELASTIC_RUN_ID" in known:
        local = int(known["LOCAL_WORLD_SIZE"])
        return "torchrun", (local, int(known["WORLD_SIZE"]) // local)
    # Only srun says how many tasks its step has: a script or a shell of a job with many tasks is one process.
    tasks = int(known.get("SLURM_STEP_NUM_TASKS", 1))
    if tasks == 1:
        return "", (1, 1)
    # As the engine finds out: a SLURM job named so is one that somebody types in.
    if known.get("SLURM_JOB_NAME") in ("bash", "interactive"):
        if known.get("SLURM_PROCID", "0") != "0":
            raise ValueError(
                f"srun started {tasks} processes in a job named {known['SLURM_JOB_NAME']!r}, which stands for a shell: "
                "each would train by itself, in one folder. Give another name: SLURM_JOB_NAME=train srun ..."
            )
        return "", (1, 1)
    machines = int(known.get("SLURM_STEP_NUM_NODES", known.get("SLURM_NNODES", 1)))
    shares = known.get("SLURM_STEP_TASKS_PER_NODE", "")
    if tasks % machines or "," in shares:
        raise ValueError(
            f"srun started {tasks} processes on {machines} machines, not the same number on each ({shares or 'unknown'}): "
            "give srun --nodes and --ntasks-per-node"
        )
    return "SLURM", (tasks // machines, machines)


@dataclass
class TrainingConfig:
    """How long, on what, and where the results go.

    Args:
        out: Folder of the run; the same command again continues it. By default one under `runs`.
        epochs: Passes over the videos. Not used when `steps` is given.
        steps: Optimiser steps, instead of `epochs`.
        warmup_epochs: Length of the linear warm-up, in epochs.
        warmup_steps: Length of the linear warm-up in steps, instead of `warmup_epochs`.
        seed: Of the weights, the order, the clips and the augmentation.
        accelerator: auto, cpu, cuda or mps.
        devices: Processes per machine, one device each; under torchrun and srun as many as they started.
        num_nodes: Machines; under torchrun and srun as many as there are.
        precision: 32-true, bf16-mixed or 16-mixed; scores and softmax stay in float32.
        accumulate: Batches per optimiser step. Negatives come from one batch: this is not a larger contrastive batch.
        sync_batchnorm: Batch statistics over all processes, as the reference does; without effect
            on one process and on CPUs, where PyTorch has no such statistics.
        channels_last: Channels-last memory layout of clips and kernels, faster on most GPUs; CPUs always compute so.
        compile: Compile the network's training passes with torch.compile; the first step then takes a minute or more.
        checkpoint_activations: Keep only the input of each stage of the backbone for the backward pass, which computes the
            rest again: less memory for about a third more time, the same gradients.
        checkpoint_minutes: Time between checkpoints.
        checkpoint_every_steps: Steps between checkpoints, instead of `checkpoint_minutes`.
        keep_every_epochs: Also keep a checkpoint for good every so many epochs; 0 keeps none.
        log_every_steps: Steps between lines of metrics.csv.
        tensorboard: Write TensorBoard event files.
        wandb: Log to this Weights & Biases project (needs the extra `wandb`).
        restart: Begin anew even if `out` holds a run; what it held is moved aside.
    """

    out: Path | None = None
    epochs: int = 100
    steps: int | None = None
    warmup_epochs: float = 5.0
    warmup_steps: int | None = None
    seed: int = 0
    accelerator: str = "auto"
    devices: int = 1
    num_nodes: int = 1
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    accumulate: int = 1
    sync_batchnorm: bool = True
    channels_last: bool = False
    compile: bool = False
    checkpoint_activations: bool = False
    checkpoint_minutes: float = 10.0
    checkpoint_every_steps: int | None = None
    keep_every_epochs: int = 0
    log_every_steps: int = 10
    tensorboard: bool = True
    wandb: str | None = None
    restart: bool = False

    def __post_init__(self) -> None:
        launcher, started = launched()
        if (self.devices, self.num_nodes) == (1, 1):
            self.devices, self.num_nodes = started
        elif launcher and (self.devices, self.num_nodes) != started:
            raise ValueError(
                f"--run.devices {self.devices} and --run.num_nodes {self.num_nodes} do not fit what {launcher} started, "
                f"{started[0]} processes on each of {started[1]} machines; leave both out, or give --run.devices "
                f"{started[0]} --run.num_nodes {started[1]}"
            )
        at_least_one = ("epochs", "steps", "devices", "num_nodes", "accumulate", "checkpoint_every_steps")
        at_least_zero = ("warmup_epochs", "warmup_steps", "seed", "checkpoint_minutes", "keep_every_epochs")
        check_smallest(
            self, "run", dict.fromkeys((*at_least_one, "log_every_steps"), 1) | dict.fromkeys(at_least_zero, 0)
        )


@dataclass
class RunConfig(TrainingConfig):
    """How long, on what, where to, and how the features are watched on the way.

    Args:
        monitor_every_epochs: Epochs between looks at the features (kNN where there are labels, else retrieval of the
            same video among those longer than a clip); 0 never looks. The best checkpoint by it is kept as best.ckpt, to
            take weights from.
        monitor_videos: Videos that the monitor uses at most.
        chunk_size: Videos of which a clip (cvrl, simclr: both) goes through the network at once; null is the whole batch.
            By gradient caching the contrastive batch stays `data.batch_size` on each device while memory goes by the
            chunk, for about a third more time (the backward pass runs the network again). Batch norms take their
            statistics of each chunk by itself ("ghost batches"), as on many small GPUs; without norms, gradients are
            those of the whole batch.
    """

    monitor_every_epochs: int = 10
    monitor_videos: int = 256
    chunk_size: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_smallest(self, "run", {"chunk_size": 1, "monitor_every_epochs": 0, "monitor_videos": 2})
