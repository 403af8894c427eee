"""``timegrain plan``: what will bound a pre-training run, and how long it takes, before it is begun.

The settings go through the same functions as the run's own (:mod:`timegrain.tasks.setup`,
:mod:`timegrain.tasks.objective`), so batch, steps and learning rate are those that the run prints.
"""

from __future__ import annotations

import json as json_module
import resource
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from timegrain.data.location import shown
from timegrain.data.manifest import Manifest
from timegrain.data.transforms import AugmentConfig
from timegrain.machine import memory_bytes, num_cores
from timegrain.optim import OptimConfig
from timegrain.tasks.budget import Loading, Range, cpu_batch_seconds, estimate, gpu_step_seconds, stated_loading
from timegrain.tasks.config import DataConfig, ModelConfig, ObjectiveConfig, RunConfig
from timegrain.tasks.hardware import Gpu, find_gpu
from timegrain.tasks.pretrain import build_objective
from timegrain.tasks.run_plan import Plan, Rooms
from timegrain.tasks.setup import build_clips, check_batch, fill_in, resolve, with_queue
from timegrain.tasks.setup import plan as schedule_of
from timegrain.tasks.stages import LoadCost, augment_samples, make_samples
from timegrain.tasks.step_cost import process_bytes, state_bytes, step_cost
from timegrain.tasks.step_timing import TrainingStep, fit_step_time

ASSUMED_VIDEOS = 240_000  # about as many as Kinetics-400 trains on
ASSUMED_CORES = 16  # for each GPU; servers with eight H100s or A100s have 12 to 26


def plan(
    *,
    gpu: str | None = None,
    gpus: int | None = None,
    cores: int | None = None,
    num_videos: int | None = None,
    seconds: float = 30.0,
    data: DataConfig = DataConfig(),  # noqa: B008  (jsonargparse shows the defaults; never mutated)
    model: ModelConfig = ModelConfig(),  # noqa: B008
    objective: ObjectiveConfig = ObjectiveConfig(),  # noqa: B008
    augment: AugmentConfig = AugmentConfig(),  # noqa: B008
    optim: OptimConfig = OptimConfig(name="adamw", learning_rate=1e-3, weight_decay=1e-4),  # noqa: B008
    run: RunConfig = RunConfig(),  # noqa: B008
    json: bool = False,
) -> None:
    """Say what will bound a pre-training run, how long it takes and what to change, before it is begun.

    Takes the configuration and every option of `timegrain pretrain`. Batch, steps, learning rate and memory are those of
    the run itself; operations and bytes are counted on its shapes. How much of a GPU's peak such a network reaches is an
    assumption, so times on GPUs are ranges. What a sample costs to decode is measured here, on your videos, if any are
    named (`--data.manifest` or `--data.folder`); else numbers of the project's own benchmarks stand for it. With
    `--gpu cpu` the training step is measured, too.

    Examples::

        timegrain plan configs/pretrain/k400_teg_fg_200ep.yaml --gpus 8 --gpu h100
        timegrain plan configs/tiny/teg_fg.yaml --data.manifest m.parquet --gpu cpu --seconds 10
        timegrain plan --data.folder VIDEOS --gpu rtx4090 --cores 12

    Args:
        gpu: h200, h100, h100-pcie, a100-80, a100-40, l40s, l4, a10, rtx4090, rtx3090, v100, v100-16, t4, or cpu for this
            machine; by default the GPU that is here, else cpu.
        gpus: How many; by default those of the configuration (`run.devices` x `run.num_nodes`). With cpu, one process.
        cores: CPU cores that each GPU has for loading; by default 16 (an assumption), with cpu those of this machine.
        num_videos: Videos to train on, where none are named; by default 240,000, as in Kinetics-400.
        seconds: How long to measure, about.
        data: Which videos and clips.
        model: Which network.
        objective: What is learned, and how finely it resolves time.
        augment: How clips are augmented.
        optim: Optimiser.
        run: How long, on what, where to.
        json: Print one JSON object.
    """
    for name, value in (("gpus", gpus), ("cores", cores), ("num-videos", num_videos)):
        if value is not None and value < 1:
            raise ValueError(f"--{name} must be at least 1, got {value}")
    if not seconds > 0:
        raise ValueError(f"--seconds {seconds:g}: more than 0 are needed")
    card = _card(gpu)
    before = run.devices * run.num_nodes * data.batch_size
    if card is None and gpus is not None and gpus > 1:
        raise ValueError(f"--gpus {gpus}: a plan for a CPU is one of a single process; name the GPU with --gpu")
    run = replace(_spread(run, gpus if card else 1), accelerator="cuda" if card else "cpu")
    rooms = Rooms(data, model, objective, augment, optim, run)
    rooms, manifest, videos = _complete(rooms, num_videos)
    number = num_videos or (len(manifest) if manifest is not None else ASSUMED_VIDEOS)
    planned = make_plan(rooms, card, cores, manifest, number, seconds)
    if json:
        print(json_module.dumps(planned.record(), indent=2))
    else:
        print("\n".join(planned.lines(videos, before)))


plan.config_first = True  # type: ignore[attr-defined]  # `plan CONFIG` for `plan --config CONFIG`: see parsing.prepare


def _card(name: str | None) -> Gpu | None:
    """The GPU asked for, or the one that is here; None is this machine's CPU."""
    if name == "cpu" or (name is None and not torch.cuda.is_available()):
        return None
    if name is not None:
        return find_gpu(name)
    here = torch.cuda.get_device_properties(0)
    words = here.name.lower().replace("geforce ", "").replace("rtx ", "rtx").split()
    for word in (word.split("-")[0] for word in words):
        try:
            return replace(find_gpu(word), title=here.name, memory_gib=round(here.total_memory / 2**30))
        except ValueError:
            continue
    raise ValueError(f"{here.name} is not in the table of GPUs; name the one that is most like it with --gpu")


def _spread(run: RunConfig, gpus: int | None) -> RunConfig:
    """So many processes, at most eight on a machine."""
    if gpus is None:
        return run
    devices = gpus if gpus <= 8 else next((d for d in range(8, 0, -1) if gpus % d == 0), 1)
    if gpus == run.devices * run.num_nodes:
        return run
    return replace(run, devices=devices, num_nodes=gpus // devices)


def _complete(rooms: Rooms, num_videos: int | None) -> tuple[Rooms, Manifest | None, str]:
    """Every setting left open, the videos if any are named, and both in words."""
    data, model, objective, run = rooms.data, rooms.model, rooms.objective, rooms.run
    if data.folder is None and data.manifest is None:
        data, model, objective, run = fill_in(data, model, objective, run)
        number = num_videos or ASSUMED_VIDEOS
        objective = with_queue(objective, data, run, number)
        words = "as said" if num_videos else "assumed, as in Kinetics-400; --num-videos N or --data.manifest says yours"
        return Rooms(data, model, objective, rooms.augment, rooms.optim, run), None, f"{number:,} ({words})"
    data, model, objective, run, manifest = resolve(data, model, objective, run)
    words = f"{len(manifest):,} usable ({manifest.path})"
    if num_videos:
        words += f"; counted as {num_videos:,}"
    return Rooms(data, model, objective, rooms.augment, rooms.optim, run), manifest, words


def make_plan(
    rooms: Rooms, card: Gpu | None, cores: int | None, manifest: Manifest | None, num_videos: int, seconds: float
) -> Plan:
    """Count, measure what is there to be measured, and weigh.

    Args:
        rooms: Completed settings.
        card: The GPU; None measures this machine.
        cores: For each device; None is the default.
        manifest: The videos, if there are any.
        num_videos: How many count.
        seconds: How long to measure.

    Raises:
        ValueError: If the run itself would be refused.
    """
    data, run = rooms.data, rooms.run
    schedule = schedule_of(data, run, num_videos, data.samples_per_visit)
    check_batch(data.batch_size, schedule.global_batch, run.chunk_size, rooms.model.head_norm)
    # For a GPU only shapes are asked about; MoCo draws its queue by a generator that knows no meta device, and weights
    # have to be read to see whether they fit.
    shapes_only = card is not None and rooms.objective.name != "moco" and rooms.model.weights is None
    with torch.device("meta" if shapes_only else "cpu"):
        module = build_objective(data, rooms.model, rooms.objective, run.chunk_size)
    encoder = module.encoder
    state = state_bytes(module, rooms.optim, run.devices * run.num_nodes, run.precision.endswith("mixed"))
    cost = step_cost(encoder.config, rooms.objective.name, rooms.specs, data.batch_size, run)
    resident = float(resident_bytes())
    load_cost = None
    contained = data.sampler is not None and data.sampler.endswith(("contained", "same"))
    loading = stated_loading(rooms.specs, contained, data.samples_per_visit)
    if manifest is not None:
        loading, load_cost = measured_loading(rooms, manifest, seconds / 3, on_cpu=card is None)
    here = num_cores()
    step_time = None
    if card is None:
        width = float(cores or here)
        step = TrainingStep(module, rooms.specs, data.crop_size or 0, rooms.optim, run, torch.device("cpu"))
        print("measuring the training step ...", file=sys.stderr)
        step_time = fit_step_time(step, data.batch_size, seconds * (2 / 3 if manifest else 1))
        # What the CPU's libraries took beside the tensors while that ran, they will take in the run.
        seen = step_cost(encoder.config, rooms.objective.name, rooms.specs, step_time.measured[-1], run)
        resident += max(0.0, most_resident_bytes() - resident - process_bytes(state, seen))
        computing: Range = (step_time.of(data.batch_size),) * 2
        together = cpu_batch_seconds(computing[0], loading, data.batch_size, round(width), data.workers or 0)
        loaders = min(width, data.workers) if data.workers else 1.0
        found = estimate(computing, loading, loaders, schedule, data.batch_size, run.accumulate, fits=True)
        batches = schedule.steps * run.accumulate
        found = replace(found, step_seconds=together, seconds=(batches * together[0], batches * together[1]))
        capacity = memory_bytes()
    else:
        width = float(cores or ASSUMED_CORES)
        capacity = card.usable_bytes()
        fits = process_bytes(state, cost) <= capacity
        computing = gpu_step_seconds(cost.flops, card, run.precision)
        found = estimate(computing, loading, width, schedule, data.batch_size, run.accumulate, fits)
    return Plan(
        rooms, card, schedule, encoder.config, module, state, cost, capacity, loading, width, cores is not None, found,
        step_time, load_cost, resident,
    )  # fmt: skip


def measured_loading(rooms: Rooms, manifest: Manifest, seconds: float, on_cpu: bool) -> tuple[Loading, LoadCost]:
    """What a sample costs on this machine, on the run's own videos.

    Raises:
        ValueError: If none of the videos tried can be decoded.
    """
    with tempfile.TemporaryDirectory() as folder:  # a frame cache is the run's to make
        data = replace(rooms.data, cache=False)
        clips = build_clips(data, rooms.specs, rooms.augment, manifest, rooms.run.seed, Path(folder))
    print("measuring what a sample costs to load ...", file=sys.stderr)
    cost = make_samples(clips, seconds)
    if not cost.samples:
        path, reason = cost.failures[0]
        raise ValueError(
            f"none of {len(cost.failures)} videos could be decoded; the first: {shown(path)}: {shown(reason)}"
        )
    colour = augment_samples(cost.samples, torch.device("cpu"), min(2.0, seconds / 3)).mean_cpu if on_cpu else 0.0
    each = cost.whole.mean_cpu
    tried = len(cost.by_video)
    return Loading((each, each), f"measured on {tried} of your videos with a core of this machine", colour), cost


def resident_bytes() -> int:
    """Bytes of memory that this process holds now."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:  # not Linux
        return most_resident_bytes()


def most_resident_bytes() -> int:
    """The most bytes of memory that this process has held so far."""
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
