"""Whether ``timegrain plan --gpu cpu`` foretells a training on this machine: seconds of a step, decoding, memory.

    OMP_NUM_THREADS=1 python benchmarks/plan_check.py VIDEOS_OR_MANIFEST [STEPS]

For each of a few configurations (network, size, objective, chunks) a process plans and another one trains for STEPS steps
with `timegrain pretrain`, decoding in the training process. Compared are CPU seconds of a step (loading, colours, both
passes, optimiser and all that the engine does), from one step's beginning to the next one's, median without the first two;
CPU milliseconds of making a sample; and the most memory that the process held (Linux).
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from timegrain.cli import main
from timegrain.data.clips import VideoClips
from timegrain.tasks.pretrain import PretrainTask

_SMALL_HEAD = ["--model.head_hidden=256", "--model.head_layers=2"]
CASES: dict[str, list[str]] = {
    "r3d_tiny, TeG, 8 videos of 64 pixels": ["--model.backbone=r3d_tiny", "--data.crop_size=64", "--data.batch_size=8"],
    "r3d_tiny, TeG, 12 videos of 112 pixels": [
        "--model.backbone=r3d_tiny", "--data.crop_size=112", "--data.batch_size=12",
    ],
    "r3d_tiny, CVRL, 16 videos of 64 pixels in chunks of 4": [
        "--model.backbone=r3d_tiny", "--data.crop_size=64", "--data.batch_size=16", "--objective.name=cvrl",
        "--run.chunk_size=4",
    ],
    "r3d18, TeG, 4 videos of 64 pixels": ["--model.backbone=r3d18", "--data.crop_size=64", "--data.batch_size=4"],
}  # fmt: skip


def in_a_process(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What ``work`` gives, done by a process that ends afterwards, with the most memory that it held."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        Path("/proc/self/clear_refs").write_text("5")  # forget the most that the parent held
        answer = {**work(), "peak": _status("VmHWM")}
        with os.fdopen(writing, "w") as file:
            json.dump(answer, file)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as file:
        text = file.read()
    os.waitpid(child, 0)
    found: dict[str, Any] = json.loads(text)
    return found


def _status(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return 1024 * int(line.split()[1])


def planned(options: list[str]) -> dict[str, Any]:
    """The plan's record."""
    out = StringIO()
    with redirect_stdout(out), redirect_stderr(StringIO()):
        assert main(["plan", *options, "--gpu", "cpu", "--seconds", "6", "--json"]) == 0
    record: dict[str, Any] = json.loads(out.getvalue())
    return record


def trained(options: list[str]) -> dict[str, Any]:
    """CPU seconds of each step and of each sample of a run."""
    began: list[float] = []
    samples: list[float] = []
    step, sample = PretrainTask.training_step, VideoClips.sample

    def timed_step(self: PretrainTask, *rest: Any) -> Any:
        began.append(time.process_time())
        return step(self, *rest)

    def timed_sample(self: VideoClips, *rest: Any) -> Any:
        before = time.process_time()
        made = sample(self, *rest)
        samples.append(time.process_time() - before)
        return made

    PretrainTask.training_step = timed_step  # type: ignore[method-assign]
    VideoClips.sample = timed_sample  # type: ignore[method-assign]
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        assert main(["pretrain", *options]) == 0
    steps = [later - earlier for earlier, later in pairwise(began[1:])]
    return {"step": statistics.median(steps), "sample": statistics.fmean(samples)}


def run(videos: Path, steps: int = 8) -> None:
    """Print what was foretold beside what came, a line for each configuration."""
    torch.set_num_threads(1)
    source = f"--data.folder={videos}" if videos.is_dir() else f"--data.manifest={videos}"
    columns = [
        "step, plan",
        "step, run",
        "ratio",
        "sample, plan",
        "sample, run",
        "memory, plan",
        "memory, run",
        "ratio",
    ]
    print(f"| configuration | {' | '.join(columns)} |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|--:|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, case) in enumerate(CASES.items()):
            options = [
                *case, *_SMALL_HEAD, source, "--data.workers=0", "--run.accelerator=cpu", f"--run.steps={steps}",
                "--run.monitor_every_epochs=0", "--run.tensorboard=false", f"--run.out={Path(folder) / str(number)}",
                "--run.warmup_steps=1",
            ]  # fmt: skip
            plan = in_a_process(lambda options=options: planned(options))  # type: ignore[misc]
            came = in_a_process(lambda options=options: trained(options))  # type: ignore[misc]
            step, sample = plan["estimate"]["step_seconds"][1], plan["loading"]["seconds"][1]
            memory = plan["memory"]["process"]
            print(
                f"| {name} | {step:.2f} s | {came['step']:.2f} s | {step / came['step']:.2f} | {1000 * sample:.1f} ms "
                f"| {1000 * came['sample']:.1f} ms | {memory / 2**20:,.0f} MiB | {came['peak'] / 2**20:,.0f} MiB "
                f"| {memory / came['peak']:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    run(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 8)
