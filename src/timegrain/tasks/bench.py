"""``timegrain bench``: which stage between disk and weights is the limit on this machine, with these videos."""

from __future__ import annotations

import json as json_module
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from timegrain.data.clips import VideoClips
from timegrain.data.isolated import Failure, run_isolated
from timegrain.data.location import shown
from timegrain.data.manifest import Manifest
from timegrain.data.probing import TIME_LIMIT_SECONDS, find_files, probe_file
from timegrain.data.transforms import AugmentConfig
from timegrain.machine import num_cores
from timegrain.models.weights import choose_device
from timegrain.optim import OptimConfig
from timegrain.progress import track
from timegrain.tasks.config import DataConfig, ModelConfig, ObjectiveConfig, RunConfig, clip_specs
from timegrain.tasks.pretrain import build_objective
from timegrain.tasks.setup import fill_in, with_queue
from timegrain.tasks.stages import DiskSpeed, LoadCost, Timing, augment_samples, hand_over, make_samples, read_files
from timegrain.tasks.step_timing import StepTime, Together, TrainingStep, fit_step_time, train_for_a_while

_FILES = 64  # of a folder, drawn at random, that are looked at
# Shares of the time, in the order in which the stages are measured.
_SHARES = {"disk": 0.1, "samples": 0.25, "hand-over": 0.1, "colour and blur": 0.1, "step": 0.2, "together": 0.25}
_SHOWN = 3


@dataclass
class Measured:
    """What every stage gave.

    Attributes:
        disk: Reading whole files.
        load: Making samples on one core.
        handed: Samples per second from workers to the device.
        colour: Seconds of one sample's colour and blur on the device.
        step: Seconds of a training step.
        together: All of it at once.
    """

    disk: DiskSpeed
    load: LoadCost
    handed: float
    colour: Timing
    step: StepTime
    together: Together | None


def bench(
    videos: Path,
    *,
    seconds: float = 60.0,
    data: DataConfig = DataConfig(),  # noqa: B008  (jsonargparse shows the defaults; never mutated)
    model: ModelConfig = ModelConfig(),  # noqa: B008
    objective: ObjectiveConfig = ObjectiveConfig(),  # noqa: B008
    augment: AugmentConfig = AugmentConfig(),  # noqa: B008
    optim: OptimConfig = OptimConfig(name="adamw", learning_rate=1e-3, weight_decay=1e-4),  # noqa: B008
    run: RunConfig = RunConfig(),  # noqa: B008
    json: bool = False,
) -> None:
    """Measure disk, decoding, hand-over, augmentation and training step here, and say which one is the limit.

    Takes the configuration and every option of `timegrain pretrain`, so that what is measured is what would be trained;
    nothing is written. Each stage is measured by itself, then all together. Work of one core is counted in CPU time,
    which other programs hardly disturb; disk, hand-over, step and all together go by the clock, so let nothing else run.

    Examples::

        timegrain bench VIDEOS
        timegrain bench m.parquet --config configs/tiny/teg_fg.yaml --seconds 20
        timegrain bench m.parquet --model.backbone r3d18 --data.workers 4 --json

    Args:
        videos: Folder of videos (64 of them are looked at, drawn at random) or manifest (.parquet).
        seconds: How long to measure, about.
        data: Which clips; batch size and workers.
        model: Which network.
        objective: What is learned.
        augment: How clips are augmented.
        optim: Optimiser.
        run: Device, precision and layout.
        json: Print one JSON object.

    Raises:
        ValueError: If there is no video that can be decoded.
    """
    if not seconds > 0:
        raise ValueError(f"--seconds {seconds:g}: more than 0 are needed")
    data, model, objective, run = fill_in(data, model, objective, run)
    device = choose_device({"gpu": "cuda"}.get(run.accelerator, run.accelerator))
    manifest, broken = open_videos(videos, data)
    batch_size = max(2, min(data.batch_size, len(manifest)))
    data = replace(data, batch_size=batch_size, workers=data.workers or 0)
    objective = with_queue(objective, data, run, len(manifest))
    specs = clip_specs(data, objective)
    assert data.sampler is not None
    assert data.crop_size is not None
    clips = VideoClips(
        manifest, specs, data.sampler, data.crop_size, augment, run.seed, samples_per_visit=data.samples_per_visit
    )
    module = build_objective(data, model, objective, run.chunk_size)
    step = TrainingStep(module, specs, data.crop_size, optim, run, device)
    found = measure(clips, step, data, device, seconds)
    report = summarise(found, data, device, num_cores(), broken)
    if json:
        print(json_module.dumps(report, indent=2))
    else:
        print("\n".join(_lines(report, found, data)))


def open_videos(videos: Path, data: DataConfig) -> tuple[Manifest, list[tuple[str, str]]]:
    """The usable videos of a manifest, or some of a folder, and those of the latter that can't be used.

    Raises:
        FileNotFoundError: There is nothing at ``videos``.
        ValueError: There is no usable video.
    """
    if not videos.exists():
        raise FileNotFoundError(f"{videos} does not exist; name a folder of videos or a manifest (.parquet)")
    if not videos.is_dir():
        everything = Manifest.open(videos)
        split = data.split or ("train" if "train" in everything.splits else None)
        return everything.select(split=split), []
    paths = [str(path) for path in find_files(videos)]
    if not paths:
        raise ValueError(f"no video in {videos} and its sub-folders")
    chosen = [paths[place] for place in np.random.default_rng(0).permutation(len(paths))[:_FILES]]
    outcomes = run_isolated(probe_file, chosen, lambda path: TIME_LIMIT_SECONDS)
    rows, broken = [], []
    for place, outcome in track(outcomes, "looking at files", len(chosen)):
        if isinstance(outcome, Failure):
            broken.append((chosen[place], outcome.reason))
        else:
            rows.append(outcome)
    if not rows:
        path, reason = broken[0]
        raise ValueError(
            f"none of {len(chosen)} videos in {videos} can be used; the first: {shown(path)}: {shown(reason)}"
        )
    return Manifest.from_rows(sorted(rows, key=lambda row: str(row["path"])), videos), broken


def measure(clips: VideoClips, step: TrainingStep, data: DataConfig, device: torch.device, seconds: float) -> Measured:
    """Every stage, in about ``seconds``, with a progress line.

    Raises:
        ValueError: If no sample could be made.
    """
    budget = {name: share * seconds for name, share in _SHARES.items()}
    batch_size, workers = data.batch_size, data.workers or 0
    done: dict[str, Any] = {}

    def stages() -> Iterator[str]:
        order = np.random.default_rng(1).permutation(len(clips.manifest))
        done["disk"] = read_files([clips.manifest[int(i)].path for i in order], budget["disk"])
        yield "disk"
        load = done["load"] = make_samples(clips, budget["samples"])
        if not load.samples:
            path, reason = load.failures[0]
            raise ValueError(
                f"none of {len(load.failures)} videos could be decoded; the first: {shown(path)}: {shown(reason)}"
            )
        yield "samples"
        done["handed"] = hand_over(load.samples, batch_size, workers, device, budget["hand-over"])
        yield "hand-over"
        done["colour"] = augment_samples(load.samples, device, budget["colour and blur"])
        yield "colour and blur"
        done["step"] = fit_step_time(step, batch_size, budget["step"])
        yield "step"
        each = load.whole.mean_cpu + statistics.median(done["colour"].of_training(device)) + done["step"].per_video
        size = batch_size
        while not step.is_compiled and size > 2 and 3 * (size * each + done["step"].fixed) > 2 * budget["together"]:
            size = max(2, size // 2)
        done["together"] = None
        if len(clips) >= size:
            done["together"] = train_for_a_while(clips, size, workers, step, budget["together"])
        yield "together"

    for _ in track(stages(), "measuring", len(_SHARES)):
        pass
    return Measured(**done)


def summarise(
    found: Measured, data: DataConfig, device: torch.device, cores: int, broken: Sequence[tuple[str, str]]
) -> dict[str, Any]:
    """Samples per second of each stage, by core and as set up here; the slowest; and what to do about it."""
    workers, batch_size = data.workers or 0, data.batch_size
    load, disk = found.load, found.disk
    loaders = min(workers, cores) or 1
    file_bytes = disk.bytes / max(disk.files, 1)
    decode, whole = load.decode.mean_cpu, max(load.whole.mean_cpu, 1e-9)
    colour = statistics.median(found.colour.of_training(device))
    step = found.step.of(batch_size) / batch_size
    rates = {
        "disk": disk.bytes / max(disk.seconds, 1e-9) / max(file_bytes, 1.0),
        "loading": loaders / whole,
        "hand-over": found.handed,
        "training": 1 / max(colour + step, 1e-9),
    }
    if not disk.files:  # videos behind URLs: the network is part of loading
        del rates["disk"]
    limit = min(rates, key=lambda name: rates[name])
    failures = [*broken, *load.failures]
    slowest = sorted(((shown(path), cost) for path, cost in load.by_video.items()), key=lambda item: -item[1])[:_SHOWN]
    return {
        "device": str(device),
        "cores": cores,
        "workers": workers,
        "batch_size": batch_size,
        "disk": {
            **asdict(disk),
            "bytes_per_second": disk.bytes / max(disk.seconds, 1e-9),
            "mean_file_bytes": file_bytes,
        },
        "sample_ms": {
            "decode": 1000 * decode,
            "cut_and_resize": 1000 * max(whole - decode, 0.0),
            "colour_and_blur": 1000 * colour,
            "step": 1000 * step,
        },
        "videos_tried": len(load.by_video),
        "slowest_videos_ms": dict(slowest),
        "samples_per_second": rates,
        "by_core": {"loading": 1 / whole},
        "together": asdict(found.together) if found.together else None,
        "limit": limit,
        "advice": advise(limit, rates, workers, cores, device),
        "failures": [[shown(text) for text in item] for item in failures],
    }


def advise(limit: str, rates: dict[str, float], workers: int, cores: int, device: torch.device) -> list[str]:
    """What helps where a stage is the slowest."""
    if limit == "disk":
        return [
            "put the videos on a faster disk, or make them smaller: `timegrain prepare ... --short-side 256`",
            "one large file is read faster than many small ones where the disk is far away",
        ]
    if limit == "hand-over":
        return ["the way from worker to training process is the limit: a smaller crop or fewer frames, larger /dev/shm"]
    if limit == "loading":
        needed = rates["training"] / rates["loading"] * max(min(workers, cores), 1)
        found = []
        if workers < cores:
            found.append(f"--data.workers {cores}: there are {cores} cores, and {workers} workers")
        found.append(f"about {needed:.0f} cores would keep the training step busy")
        found.append(
            "`timegrain prepare ... --frames` stores JPEG frames, `--short-side 256` smaller videos with more key frames"
        )
        return [*found, "--data.cache true keeps raw frames on the disk, for small data sets"]
    found = ["the training step is the limit, as it should be: loading keeps up"]
    if device.type == "cuda":
        return [
            *found,
            "--run.precision bf16-mixed, --run.channels_last true and --run.compile true may make it faster",
        ]
    return [*found, "a GPU, a smaller backbone, crop or number of frames makes it faster"]


def _lines(report: dict[str, Any], found: Measured, data: DataConfig) -> list[str]:
    """The report for people."""
    disk, each, rates = report["disk"], report["sample_ms"], report["samples_per_second"]
    workers, device = report["workers"], report["device"]
    with_workers = f"{workers} workers" if workers else "the training process"
    by_core = report["by_core"]["loading"]
    warm = "" if disk["cold"] else "; the system may have had them in memory"
    rows = [
        ("stage", "a sample", "by core", "here", ""),
        ("disk", f"{disk['mean_file_bytes'] / 1e6:.2f} MB", "", _rate(rates.get("disk", 0.0)),
         f"{disk['bytes_per_second'] / 1e6:,.0f} MB/s, {disk['files']} whole videos{warm}"),
        ("decoding", f"{each['decode']:.1f} ms", _rate(1000 / max(each["decode"], 1e-6)), "",
         f"{report['videos_tried']} videos, both clips of a sample in one pass"),
        ("cutting", f"{each['cut_and_resize']:.1f} ms", _rate(1000 / max(each["cut_and_resize"], 1e-6)), "",
         f"to {data.crop_size} x {data.crop_size} pixels"),
        ("loading", f"{each['decode'] + each['cut_and_resize']:.1f} ms", _rate(by_core), _rate(rates["loading"]),
         f"both, in {with_workers}; cores: {report['cores']}"),
        ("hand-over", "", "", _rate(rates["hand-over"]), f"worker to {device}, nothing decoded"),
        ("colour, blur", f"{each['colour_and_blur']:.1f} ms", "", _rate(1000 / max(each["colour_and_blur"], 1e-6)),
         f"on {device}"),
        ("step", f"{each['step']:.1f} ms", "", _rate(1000 / max(each["step"], 1e-6)),
         f"{report['batch_size']} videos; measured with {' and '.join(map(str, found.step.measured))}"),
        ("training", f"{each['colour_and_blur'] + each['step']:.1f} ms", "", _rate(rates["training"]), "both"),
    ]  # fmt: skip
    if found.together:
        waiting = f"{found.together.steps} steps; {found.together.waiting:.0%} of the time waiting for samples"
        rows.append(("together", "", "", _rate(found.together.samples_per_second), waiting))
    widths = [max(len(row[place]) for row in rows) for place in range(4)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(row[i].rjust(widths[i]) for i in (1, 2, 3)), row[4]]).rstrip()
        for row in rows
    ]
    expected = min(rates["loading"], rates["training"])
    if workers == 0 or device == "cpu":
        expected = 1 / (1 / rates["loading"] + 1 / rates["training"])
    if found.together and found.together.samples_per_second < expected / 2:
        lines.append(f"together is far below the {_rate(expected)} that its parts allow: do other programs run?")
    if device == "cpu":
        lines.append("(on a CPU loading and training share the cores, so together they are slower than either)")
    lines += ["", f"limit: {report['limit']}", *(f"  -> {text}" for text in report["advice"])]
    if report["slowest_videos_ms"]:
        lines.append("most expensive videos:")
        lines += [f"  {value:8.1f} ms  {path}" for path, value in report["slowest_videos_ms"].items()]
    if report["failures"]:
        lines.append(f"broken: {len(report['failures'])}")
        lines += [f"  {path}: {reason}" for path, reason in report["failures"][:_SHOWN]]
    return lines


def _rate(value: float) -> str:
    return f"{value:,.0f}/s" if value >= 10 else f"{value:.2g}/s"
