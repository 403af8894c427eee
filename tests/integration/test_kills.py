"""Runs that are killed at any moment, also while a checkpoint is written: the same command ends in the same weights."""

from __future__ import annotations

import csv
import os
import random
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from processes import run_as_launched, start_process
from timegrain import checkpoints
from timegrain.cli import main

# Large enough heads for writing a checkpoint to take time in which it can be killed.
OPTIONS = [
    "--model.backbone=r3d_tiny", "--model.head_hidden=512", "--model.head_layers=2", "--model.head_out=16",
    "--data.long_frames=8", "--data.long_stride=2", "--data.short_frames=4", "--data.crop_size=16",
    "--data.batch_size=4", "--objective.num_long=2", "--run.tensorboard=false", "--run.log_every_steps=1",
    "--run.accelerator=cpu", "--run.checkpoint_every_steps=1", "--run.monitor_every_epochs=2",
]  # fmt: skip


def assert_the_same_run(whole: Path, broken: Path) -> None:
    """Everything that a run leaves is bit for bit that of the other, and nothing else lies about."""
    one, other = (load_file(out / "weights.safetensors") for out in (whole, broken))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    last = [torch.load(out / "checkpoints" / "last.ckpt", weights_only=True) for out in (whole, broken)]
    assert last[0]["global_step"] == last[1]["global_step"]
    for part in ("state_dict", "optimizer_states", "lr_schedulers"):
        assert last[0][part]
        assert is_equal(last[0][part], last[1][part]), part
    tables = []
    for out in (whole, broken):
        with (out / "metrics.csv").open(newline="") as file:
            rows = [{k: v for k, v in row.items() if k != "data_wait_percent"} for row in csv.DictReader(file)]
        # A look at the features comes behind the last checkpoint of its epoch: a kill in between leaves it out.
        tables.append([{k: v for k, v in row.items() if "monitor" not in k} for row in rows if row["loss"]])
    assert tables[0] == tables[1]
    assert sorted(path.name for path in whole.rglob("*")) == sorted(path.name for path in broken.rglob("*"))


def pretrain(options: list[str]) -> None:
    """The command as a process of its own, which has two cores whatever the machine lets it have."""
    warnings.filterwarnings("ignore", "This DataLoader will create")
    torch.set_num_threads(1)
    # As in a command: a loading process whose parent is a fork server never notices that its run was killed.
    torch.multiprocessing.set_start_method("fork", force=True)
    sys.exit(main(["pretrain", *options]))


def is_equal(one: Any, other: Any) -> bool:
    """Whether two trees of dicts and lists have the same leaves, tensors to the last bit."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(is_equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(is_equal, one, other))
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


@dataclass
class Killer:
    """Starts a command again and again and kills it, at random moments or as soon as a file is being written.

    Args:
        options: Of the command.
        out: The run's folder.
    """

    options: list[str]
    out: Path
    steps: list[int] = field(default_factory=list)  # of the last checkpoint when the run was killed
    left_files: list[list[str]] = field(default_factory=list)  # unfinished ones that a kill left

    def kill(self, when: str, draw: random.Random) -> bool:
        """One start and one kill; False if the run was over first.

        Args:
            when: ``start`` is soon after the start, ``steps`` somewhere in the steps, ``writing`` when a temporary file
                appears.
            draw: Of the moment.
        """
        process = start_process(pretrain, self.options)
        last, changes = self.out / "checkpoints" / "last.ckpt", 0
        wanted = draw.randint(0, 2) if when == "writing" else draw.randint(1, 3)
        more_seconds = draw.uniform(0.0, 1.0 if when == "start" else 0.2)
        before = last.stat().st_mtime_ns if last.exists() else 0
        while when != "start" and changes < wanted and process.exitcode is None:
            now = last.stat().st_mtime_ns if last.exists() else 0
            changes, before = changes + (now != before), now
            time.sleep(0.005)
        while when == "writing" and not self.unfinished() and process.exitcode is None:
            time.sleep(0.0005)
        if when != "writing":
            time.sleep(more_seconds)
        process.kill()
        process.join()
        if process.exitcode == 0:
            return False
        assert process.exitcode == -signal.SIGKILL
        self.left_files.append(self.unfinished())
        step = torch.load(last, weights_only=True)["global_step"] if last.exists() else 0  # whole, or not there
        self.steps.append(int(step))
        return True

    def unfinished(self) -> list[str]:
        return [path.name for folder in (self.out, self.out / "checkpoints") for path in folder.glob(".*.part*")]


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.multiprocess
def test_twenty_kills_change_nothing(manifest: Path, tmp_path: Path, capsys):
    """Of twenty kills eight are meant for the writing of a file and two for the start."""
    options = [*OPTIONS, f"--data.manifest={manifest}", "--run.steps=50", "--data.workers=1"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    process = start_process(pretrain, [*options, f"--run.out={whole}"])
    process.join()
    assert process.exitcode == 0
    killer, draw = Killer([*options, f"--run.out={broken}"], broken), random.Random(0)
    moments = ["start"] * 2 + ["writing"] * 8 + ["steps"] * 10
    draw.shuffle(moments)
    for moment in moments:
        assert killer.kill(moment, draw), f"the run was over after {len(killer.steps)} kills at {killer.steps}"
    process = start_process(pretrain, killer.options)
    process.join()
    assert process.exitcode == 0
    inside = [files for files in killer.left_files if files]
    with capsys.disabled():
        print(f"\nkilled behind steps {killer.steps}; {len(inside)} of 20 while a file was written: {inside}")
    assert_the_same_run(whole, broken)
    assert len(inside) >= 4
    assert killer.steps == sorted(killer.steps)


def killed_while(what: str, step: int, options: list[str]) -> None:
    """Run a command that kills itself in one of its steps."""
    if what == "a checkpoint is written":
        save = torch.save

        def half(state: dict[str, Any], file: Any, *rest: Any) -> None:
            if state["global_step"] == step:
                file.write(b"half of a checkpoint")
                file.flush()
                os.kill(os.getpid(), signal.SIGKILL)
            save(state, file, *rest)

        checkpoints.torch.save = half
    else:
        replace = os.replace

        def before(source: Any, target: Any) -> None:
            replace(source, target)
            if Path(target).name == "weights.safetensors" and before.calls == step:
                os.kill(os.getpid(), signal.SIGKILL)
            before.calls += Path(target).name == "weights.safetensors"

        before.calls = 0
        os.replace = before
    main(["pretrain", *options])


@pytest.mark.multiprocess
def test_kills_while_files_are_written_change_nothing(manifest: Path, tmp_path: Path):
    """Half a checkpoint; weights that are newer than the checkpoint; the first step."""
    options = [*OPTIONS, f"--data.manifest={manifest}", "--run.steps=5", "--data.workers=0"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert main(["pretrain", *options, f"--run.out={whole}"]) == 0
    options.append(f"--run.out={broken}")
    last = broken / "checkpoints" / "last.ckpt"
    for what, step, kept in (
        ("a checkpoint is written", 1, 0),
        ("a checkpoint is written", 3, 2),
        ("weights are newer", 1, 3),
    ):
        with pytest.raises(torch.multiprocessing.ProcessExitedException, match="SIGKILL"):
            run_as_launched(1, killed_while, what, step, options)
        assert (torch.load(last, weights_only=True)["global_step"] if last.exists() else 0) == kept
        assert bool(list(broken.rglob(".last*.part.ckpt"))) == (what == "a checkpoint is written")
    assert main(["pretrain", *options]) == 0
    assert_the_same_run(whole, broken)


def children(process: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def wait_until(is_so: Callable[[], bool], seconds: float, what: str) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, what
        time.sleep(0.02)


def is_alive(process: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.multiprocess
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for processes as Linux shows them")
def test_a_killed_process_of_two_ends_the_other(manifest: Path, tmp_path: Path):
    """First the second process, then the one that started it; then that is asked to stop; each time it goes on."""
    options = [*OPTIONS, f"--data.manifest={manifest}", "--run.steps=40", "--data.workers=0", "--run.devices=2"]
    command = [sys.executable, "-m", "timegrain.cli", "pretrain", *options, "--data.batch_size=2"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    subprocess.run([*command, f"--run.out={whole}"], check=True, capture_output=True)
    last = broken / "checkpoints" / "last.ckpt"
    steps = [0]
    for victim in ("second", "first", "asked"):
        with (tmp_path / "said.txt").open("w+") as said:
            process = subprocess.Popen([*command, f"--run.out={broken}"], stdout=subprocess.DEVNULL, stderr=said)
            before = last.stat().st_mtime_ns if last.exists() else 0
            wait_until(
                lambda before=before: last.exists() and last.stat().st_mtime_ns != before, 300, "no step was made"
            )
            (second,) = children(process.pid)
            number = signal.SIGTERM if victim == "asked" else signal.SIGKILL
            os.kill(second if victim == "second" else process.pid, number)
            wait_until(lambda p=process: p.poll() is not None, 120, "the launcher hangs")
            wait_until(lambda s=second: not is_alive(s), 120, "the second process hangs")
            said.seek(0)
            codes = {"second": (2, -signal.SIGKILL), "first": (-signal.SIGKILL,), "asked": (130,)}[victim]
            assert process.returncode in codes, said.read()[-3000:]
        steps.append(torch.load(last, weights_only=True)["global_step"])
    assert steps == sorted(set(steps)), "each start makes a step"
    assert steps[-1] < 40
    subprocess.run([*command, f"--run.out={broken}"], check=True, capture_output=True)
    assert_the_same_run(whole, broken)
