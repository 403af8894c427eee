"""Pre-training by several processes: the run of one process on the joined batch, however they were started."""

from __future__ import annotations

import csv
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch.nn.modules.batchnorm import _BatchNorm

from processes import free_port, run_as_launched, run_in_processes
from timegrain import checkpoints
from timegrain.callbacks import FailedVideos
from timegrain.checkpoints import BetweenSteps, RunStopped
from timegrain.cli import main
from timegrain.data.loading import epoch_order
from timegrain.optim import schedule
from timegrain.report.results import read_result
from timegrain.tasks.config import RunConfig

TINY = [
    "--model.backbone=r3d_tiny", "--model.head_hidden=16", "--model.head_layers=1", "--model.head_out=8",
    "--model.head_norm=false", "--data.long_frames=8", "--data.long_stride=2", "--data.short_frames=4",
    "--data.crop_size=16", "--data.workers=0", "--objective.num_long=2", "--run.tensorboard=false",
    "--run.log_every_steps=1", "--run.accelerator=cpu", "--run.epochs=3", "--run.monitor_every_epochs=0",
    "--optim.name=sgd", "--optim.learning_rate=0.05",
]  # fmt: skip


def pretrain(out: Path, options: list[str], asks: int | None = None, number: int = signal.SIGTERM) -> None:
    """Pre-train in this process, which may be one of several, batch norms left out (they are as in evaluation).

    Args:
        out: Gets the run, and the videos of each batch in a file of each process.
        options: Of the command.
        asks: Step at whose beginning the last process is asked to stop; None asks nobody.
        number: The signal that asks.
    """
    known = os.environ
    rank = int(known.get("RANK", known.get("SLURM_PROCID", 0)))
    last = int(known.get("WORLD_SIZE", known.get("SLURM_NTASKS", 1))) - 1

    def note(self: FailedVideos, trainer: Any, task: Any, batch: Any, index: int) -> None:
        with (out / f"seen-{rank}.txt").open("a") as file:
            file.write(json.dumps(batch["index"].tolist()) + "\n")
        if asks == trainer.global_step and rank == last:
            os.kill(os.getpid(), number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FailedVideos, "on_train_batch_start", note)
        patch.setattr(_BatchNorm, "train", lambda self, mode=True: setattr(self, "training", False) or self)
        out.mkdir(exist_ok=True)
        code = main(["pretrain", *TINY, f"--run.out={out}", *options])
    assert code == (0 if asks is None else 130)


def seen(out: Path) -> list[list[int]]:
    """Videos of each global batch, in order of the processes."""
    parts = []
    for file in sorted(out.glob("seen-*.txt")):
        parts.append([json.loads(line) for line in file.read_text().splitlines()])
        file.unlink()
    return [[video for share in shares for video in share] for shares in zip(*parts, strict=True)]


def rows(out: Path) -> list[dict[str, float]]:
    with (out / "metrics.csv").open(newline="") as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def assert_close(first: Path, second: Path) -> None:
    """Weights, losses and learning rates of every step."""
    one, other = load_file(first / "weights.safetensors"), load_file(second / "weights.safetensors")
    start = max(float(value.abs().max()) for value in one.values())
    assert start > 0
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=1e-6, msg=lambda text, n=name: f"{n}: {text}")
    for row, same in zip(rows(first), rows(second), strict=True):
        for key in ("step", "learning_rate"):
            assert row[key] == pytest.approx(same[key], abs=1e-12)


@pytest.fixture(scope="module")
def whole(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[list[int]]]:
    """One process with batches of four: three epochs of two steps."""
    out = tmp_path_factory.mktemp("whole") / "run"
    pretrain(out, [f"--data.manifest={manifest}", "--data.batch_size=4"])
    return out, seen(out)


@pytest.mark.multiprocess
@pytest.mark.parametrize(
    ("world", "by", "more"),
    [(4, "torchrun", []), (2, "srun", []), (2, "torchrun", ["--run.chunk_size=1"])],
    ids=["four", "two, by SLURM", "two, in chunks"],
)
def test_processes_train_as_one_on_the_joined_batch(world, by, more, whole, manifest: Path, tmp_path: Path):
    out = tmp_path / "run"
    run_as_launched(
        world, pretrain, out, [f"--data.manifest={manifest}", f"--data.batch_size={4 // world}", *more], by=by
    )
    assert seen(out) == whole[1]
    assert yaml.safe_load((out / "config.yaml").read_text())["run"]["devices"] == world
    assert_close(whole[0], out)
    assert rows(out)[-1]["fine/num_negatives"] == 6  # (4 - 1) videos x m = 2


@pytest.fixture(scope="module")
def stopped(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[list[int]]]:
    """Two processes with batches of two, stopped after the third step because one of them was asked to."""
    out = tmp_path_factory.mktemp("stopped") / "run"
    run_as_launched(2, pretrain, out, [f"--data.manifest={manifest}", "--data.batch_size=2"], 2)
    return out, seen(out)


@pytest.mark.multiprocess
def test_one_process_goes_on_with_the_batches_of_two(whole, stopped, manifest: Path, tmp_path: Path, capsys):
    out = shutil.copytree(stopped[0], tmp_path / "run")
    assert torch.load(out / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 3
    assert stopped[1] == whole[1][:3]
    pretrain(out, [f"--data.manifest={manifest}", "--data.batch_size=4"])
    said = capsys.readouterr().err
    assert "going on        at step 3 with 1 x 4 videos, before 2 x 2" in said
    assert "still 4 videos: the order and the members of every further batch stay as they were" in said
    assert seen(out) == whole[1][3:]
    assert_close(whole[0], out)


@pytest.mark.multiprocess
def test_another_batch_goes_on_behind_the_videos_that_were_seen(stopped, manifest: Path, tmp_path: Path, capsys):
    out = shutil.copytree(stopped[0], tmp_path / "run")
    pretrain(out, [f"--data.manifest={manifest}", "--data.batch_size=2", "--optim.learning_rate=0.025"])
    said = capsys.readouterr().err
    for words in (
        "batch           2 videos instead of 4: other negatives",
        "4 videos of epoch 2 were seen and do not come again in it. --data.batch_size 4 would keep the batch of 4",
        "0.5 times as much is customary",
        "6 more steps; the epochs stay 3",
    ):
        assert words in said
    expected = [*epoch_order(0, 1, 8)[4:], *epoch_order(0, 2, 8)]
    assert seen(out) == [[int(v) for v in expected[i : i + 2]] for i in range(0, 12, 2)]
    factor = schedule(warmup_steps=6, total_steps=12)
    rates = [row["learning_rate"] for row in rows(out)[3:]]
    assert rates == pytest.approx([0.025 * factor(step) for step in range(6, 12)], rel=1e-6)
    # Given again, the finished run is left alone.
    pretrain(out, [f"--data.manifest={manifest}", "--data.batch_size=2", "--optim.learning_rate=0.025"])
    assert len(rows(out)) == 9
    assert seen(out) == []


@pytest.mark.multiprocess
def test_what_does_not_come_with_the_processes_is_refused(stopped, manifest: Path, tmp_path: Path, capsys):
    out = shutil.copytree(stopped[0], tmp_path / "run")
    options = [f"--data.manifest={manifest}", "--data.batch_size=4", "--run.seed=1", f"--run.out={out}"]
    assert main(["pretrain", *TINY, *options, "--data.samples_per_visit=2"]) == 2
    said = capsys.readouterr().err
    assert "run.seed: 0 there, 1 asked for" in said
    assert "data.samples_per_visit: 1 there, 2 asked for" in said
    assert "batch_size" not in said
    options = [f"--data.manifest={manifest}", "--data.batch_size=4", "--run.devices=2", f"--run.out={out}"]
    assert main(["pretrain", *TINY, *options]) == 2
    assert "data.batch_size: 2 there, 4 asked for" in capsys.readouterr().err


def finetune(manifest: Path, out: Path, batch_size: int) -> None:
    options = [
        "--model.backbone=r3d_tiny", "--data.num_frames=4", "--data.crop_size=16", "--data.workers=0",
        "--test.num_clips=2", "--test.num_crops=1", "--classifier.dropout=0",
        "--run.accelerator=cpu", "--run.epochs=2", "--run.tensorboard=false",
    ]  # fmt: skip
    files = [f"--data.manifest={manifest}", f"--run.out={out}", f"--data.batch_size={batch_size}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_BatchNorm, "train", lambda self, mode=True: setattr(self, "training", False) or self)
        assert main(["finetune", *options, *files]) == 0


@pytest.mark.multiprocess
def test_numbers_that_do_not_divide_lose_no_test_video(manifest: Path, tmp_path: Path):
    """Five videos to train on with batches of two on two processes; three to test, which each process sees or none."""
    table = pq.read_table(manifest)
    index = table.schema.get_field_index("split")
    path = tmp_path / "m.parquet"
    pq.write_table(table.set_column(index, "split", pa.array(["train"] * 5 + ["test"] * 3)), path)
    one, two = tmp_path / "one", tmp_path / "two"
    finetune(path, one, 4)
    run_as_launched(2, finetune, path, two, 2)
    found = [pickle.loads((out / "clips.pkl").read_bytes()) for out in (one, two)]
    for scores in found:
        assert scores["clip_ids"].tolist() == list(range(6))
        assert len(scores["labels"]) == 3
    np.testing.assert_allclose(found[1]["logits_by_clip_id"], found[0]["logits_by_clip_id"], atol=1e-5)
    assert read_result(two / "result.json").num_test == 3
    assert read_result(two / "result.json").rows == read_result(one / "result.json").rows


@pytest.mark.slow
@pytest.mark.multiprocess
def test_torchrun_starts_a_run(manifest: Path, tmp_path: Path):
    out = tmp_path / "run"
    command = [
        "-m",
        "torch.distributed.run",
        "--nproc_per_node=2",
        f"--master_port={free_port()}",
        "-m",
        "timegrain.cli",
    ]
    options = [f"--data.manifest={manifest}", "--data.batch_size=2", "--run.steps=2", f"--run.out={out}", "--json"]
    done = subprocess.run(
        [sys.executable, *command, "pretrain", *TINY, *options], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout)["steps"] == 2  # one process speaks
    assert [row["fine/num_negatives"] for row in rows(out)] == [6.0, 6.0]


SLURM = {"SLURM_NTASKS": "8", "SLURM_NNODES": "2", "SLURM_JOB_NAME": "pretrain", "SLURM_PROCID": "0"}
STEP = {"SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_TASKS_PER_NODE": "4(x2)"}  # srun's own
TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "LOCAL_WORLD_SIZE": "4", "WORLD_SIZE": "12"}


def set_environment(monkeypatch: pytest.MonkeyPatch, known: dict[str, str]) -> None:
    for name in [*SLURM, *STEP, *TORCHRUN, "SLURM_NTASKS_PER_NODE"]:
        monkeypatch.delenv(name, raising=False)
    for name, value in known.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("known", "devices", "num_nodes"),
    [
        (TORCHRUN, 4, 3),
        (SLURM | STEP, 4, 2),
        (SLURM | STEP | {"SLURM_NTASKS_PER_NODE": "4"}, 4, 2),
        (SLURM | STEP | {"SLURM_JOB_NAME": "interactive"}, 1, 1),
        (SLURM | {"SLURM_NTASKS_PER_NODE": "4"}, 1, 1),
        (SLURM | STEP | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_NUM_NODES": "1"}, 1, 1),
        ({"SLURM_NTASKS": "1", "SLURM_JOB_NAME": "sweep"}, 1, 1),
        ({"WORLD_SIZE": "8"}, 1, 1),
    ],
    ids=[
        "torchrun", "srun", "srun, tasks per node", "a shell under SLURM", "a batch script without srun",
        "salloc's shell in a job with a name", "one task", "something else",
    ],
)  # fmt: skip
def test_a_launcher_says_how_many_processes_there_are(monkeypatch, known, devices, num_nodes):
    set_environment(monkeypatch, known)
    config = RunConfig()
    assert (config.devices, config.num_nodes) == (devices, num_nodes)
    assert RunConfig(devices=devices, num_nodes=num_nodes) == config
    if devices > 1:
        with pytest.raises(
            ValueError, match=f"leave both out, or give --run.devices {devices} --run.num_nodes {num_nodes}"
        ):
            RunConfig(devices=3)


@pytest.mark.parametrize(
    ("known", "message"),
    [
        ({"SLURM_STEP_NUM_TASKS": "5", "SLURM_STEP_TASKS_PER_NODE": "3,2"}, "srun --nodes and --ntasks-per-node"),
        ({"SLURM_STEP_TASKS_PER_NODE": "5,3"}, r"not the same number on each \(5,3\)"),
        ({"SLURM_JOB_NAME": "bash", "SLURM_PROCID": "3"}, "SLURM_JOB_NAME=train srun"),
    ],
)
def test_processes_of_srun_that_cannot_train_together_are_refused(monkeypatch, known, message):
    set_environment(monkeypatch, SLURM | STEP | known)
    with pytest.raises(ValueError, match=message):
        RunConfig()


def test_a_batch_script_without_srun_trains_alone_and_says_so(manifest: Path, tmp_path: Path, monkeypatch, capsys):
    """The engine would take the job's tasks for processes that it has to wait for."""
    set_environment(monkeypatch, SLURM | {"SLURM_NTASKS_PER_NODE": "4", "SLURM_JOB_ID": "4711"})
    pretrain(tmp_path / "run", [f"--data.manifest={manifest}", "--data.batch_size=4", "--run.steps=1"])
    assert "it trains with 1 process. With srun in front of it there are 8" in capsys.readouterr().err


def test_a_warning_of_slurm_stops_the_run_and_queues_the_job_again(whole, manifest: Path, tmp_path: Path, monkeypatch):
    program = tmp_path / "bin" / "scontrol"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    for name, value in {"SLURM_NTASKS": "1", "SLURM_JOB_ID": "4711", "SLURM_JOB_NAME": "pretrain"}.items():
        monkeypatch.setenv(name, value)
    out, options = tmp_path / "run", [f"--data.manifest={manifest}", "--data.batch_size=4"]
    pretrain(out, options, 2, signal.SIGUSR1)
    assert (tmp_path / "asked").read_text() == "requeue 4711\n"
    assert not list(tmp_path.rglob("hpc_ckpt*"))
    pretrain(out, options)
    assert seen(out) == whole[1]
    one, other = (load_file(folder / "weights.safetensors") for folder in (whole[0], out))
    assert all(torch.equal(one[name], other[name]) for name in one)


class Peer:
    """As much of the engine as a meeting needs."""

    def __init__(self, is_first: bool) -> None:
        self.is_global_zero, self.global_step, self.world_size = is_first, 0, 2
        self.strategy = SimpleNamespace(root_device=torch.device("cpu"))
        self.saved: list[int] = []

    def save_checkpoint(self, path: Path) -> None:
        self.saved.append(self.global_step)


def meet(rank: int, steps: int, seconds_per_step: float, minutes: float, asks: int) -> dict[str, Any]:
    """A run of two processes whose clocks differ; steps of known length without waiting for them."""
    trainer, now = Peer(rank == 0), [1000.0 * rank]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints.time, "monotonic", lambda: now[0])
        watch = BetweenSteps(Path("last.ckpt"), minutes, every_seconds=5.0)
        watch.on_train_start(trainer, None)
        try:
            for step in range(1, steps + 1):
                watch.on_train_batch_start(trainer, None, None, step)
                now[0] += seconds_per_step * (1 + rank)
                if step == asks and rank == 1:
                    os.kill(os.getpid(), signal.SIGTERM)
                trainer.global_step = step
                watch.on_train_batch_end(trainer, None, None, None, step)
        except RunStopped:
            pass
        finally:
            watch.on_train_end(trainer, None)
    return {"saved": trainer.saved, "meetings": watch.meetings, "stopped": trainer.global_step}


@pytest.mark.multiprocess
def test_processes_agree_on_checkpoints_and_stops_and_ask_seldom(tmp_path: Path):
    """Half a second a step, a checkpoint every 100 s, the second process asked to stop in step 903."""
    first, second = run_in_processes(2, meet, tmp_path, 2000, 0.5, 100 / 60, 903)
    assert first == second
    # Every ten steps once it is known how long they take; without knowing, after 1, 2, 4 and 8 more.
    assert first["meetings"] == pytest.approx(90, abs=3)
    gaps = [b - a for a, b in pairwise([0, *first["saved"]])]
    assert all(200 <= gap <= 210 for gap in gaps[:-1])
    assert first["stopped"] == first["saved"][-1]
    assert 903 <= first["stopped"] <= 913


@pytest.mark.multiprocess
def test_every_step_where_a_checkpoint_is_wanted_after_every_step(tmp_path: Path):
    first, second = run_in_processes(2, meet, tmp_path, 5, 0.5, 0.0, 0)
    assert first == second
    assert first["saved"] == [1, 2, 3, 4, 5]
