"""Disks that take no more, files that vanish, processes that are killed: one message, nothing lost, and it goes on."""

from __future__ import annotations

import csv
import io
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from timegrain import callbacks
from timegrain.boundary_finding import BoundaryFinder
from timegrain.callbacks import FailedVideos
from timegrain.cli import main
from timegrain.data.eventworld import world_config, write_world
from timegrain.models.hub import EncoderConfig, VideoEncoder, save_weights
from timegrain.tasks.stopped import in_words

TINY = [
    "--model.backbone=r3d_tiny", "--model.head_hidden=16", "--model.head_layers=1", "--model.head_out=8",
    "--data.long_frames=8", "--data.long_stride=2", "--data.short_frames=4", "--data.crop_size=16",
    "--data.batch_size=4", "--data.workers=0", "--objective.num_long=2", "--run.tensorboard=false",
    "--run.log_every_steps=1", "--run.accelerator=cpu", "--run.steps=4", "--run.checkpoint_every_steps=1",
    "--run.monitor_every_epochs=0",
]  # fmt: skip


@pytest.fixture(scope="module")
def videos(video_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos that a test may change as long as it puts them back."""
    return shutil.copytree(video_folder, tmp_path_factory.mktemp("own") / "videos")


@pytest.fixture(scope="module")
def manifest(videos: Path) -> Path:
    path = videos.parent / "m.parquet"
    assert main(["manifest", "scan", str(videos), "--out", str(path)]) == 0
    return path


@pytest.fixture(scope="module")
def whole(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    assert pretrain(out, manifest) == 0
    return out


def pretrain(out: Path, manifest: Path, *options: str) -> int:
    return main(["pretrain", f"--run.out={out}", f"--data.manifest={manifest}", *TINY, *options])


def assert_the_same(one: Path, other: Path) -> None:
    for file in one.glob("*.safetensors"):
        first, second = load_file(file), load_file(other / file.name)
        assert all(torch.equal(first[name], second[name]) for name in first)
    assert steps(one) == steps(other)
    assert not list(other.rglob(".*.part*"))


def steps(out: Path) -> list[str]:
    with (out / "metrics.csv").open(newline="") as file:
        return [row["step"] for row in csv.DictReader(file)]


def last_step(out: Path) -> int:
    return int(torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)["global_step"])


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file may grow beyond ``size`` bytes: to a program this is a full disk under another number."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def in_step(number: int, happens: Callable[[], Any]) -> Iterator[None]:
    """Let something happen once, at the beginning of a step."""
    open_ones = [happens]

    def at(self: FailedVideos, trainer: Any, *rest: Any) -> None:
        if trainer.global_step == number and open_ones:
            open_ones.pop()()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FailedVideos, "on_train_batch_start", at)
        yield


def one_message(capsys: pytest.CaptureFixture[str], *words: str) -> None:
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert said.count("error: ") == 1
    for word in words:
        assert word in said


@pytest.mark.parametrize("what", ["checkpoint", "metrics.csv"])
def test_a_disk_that_is_full_in_the_third_step(what: str, whole: Path, manifest: Path, tmp_path: Path, capsys):
    out = tmp_path / "run"
    limits = []

    def fill() -> None:
        # Room for half a row of the metrics, or for none of the checkpoint.
        size = (out / "metrics.csv").stat().st_size + 20 if what == "metrics.csv" else 20_000
        limits.append(largest_file(size))
        limits[0].__enter__()

    with in_step(2, fill):
        try:
            assert pretrain(out, manifest) == 2
        finally:
            limits[0].__exit__(None, None, None)
    file = out / "metrics.csv" if what == "metrics.csv" else out / "weights.safetensors"
    one_message(capsys, f"{file} could not be written: File too large", "the same command goes on")
    assert last_step(out) == 2
    assert len(steps(out)) == 3
    assert pretrain(out, manifest) == 0
    assert_the_same(whole, out)


def test_no_room_for_the_settings(whole: Path, manifest: Path, tmp_path: Path, capsys):
    out = tmp_path / "run"
    with largest_file(300):
        assert pretrain(out, manifest) == 2
    one_message(capsys, f"{out / 'config.yaml'} could not be written: File too large")
    assert list(out.rglob("*")) == []
    assert pretrain(out, manifest) == 0
    assert_the_same(whole, out)
    before = (out / "config.yaml").read_bytes()
    with largest_file(300):
        assert pretrain(out, manifest) == 2
    assert (out / "config.yaml").read_bytes() == before


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Callable[[str], None]]:
    """A disk of its own where the system lets us have one; it can be given other options."""
    folder.mkdir()

    def mount(options: str) -> bool:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, check=False
        )
        return done.returncode == 0

    try:
        allowed = mount(f"size={megabytes}m")
    except FileNotFoundError:
        allowed = False
    if not allowed:
        pytest.skip("mounting a disk is not permitted here")
    try:
        yield lambda options: subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True)
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def test_a_real_disk_that_fills_up_and_one_that_turns_read_only(whole: Path, manifest: Path, tmp_path: Path, capsys):
    with small_disk(tmp_path / "disk", 16) as change:
        out = tmp_path / "disk" / "run"
        ballast = tmp_path / "disk" / "ballast"
        size = (whole / "checkpoints" / "last.ckpt").stat().st_size
        with in_step(2, lambda: ballast.write_bytes(bytes(free(out) - size // 2))):
            assert pretrain(out, manifest) == 2
        one_message(capsys, f"{out}", "could not be written: ", "the same command goes on")
        assert last_step(out) == 2
        ballast.unlink()
        change("ro")
        assert pretrain(out, manifest) == 2
        one_message(capsys, f"{out / 'config.yaml'} could not be written: Read-only file system")
        change("rw")
        assert pretrain(out, manifest) == 0
        assert_the_same(whole, out)


def free(folder: Path) -> int:
    return shutil.disk_usage(folder).free


def test_a_folder_that_cannot_be_made(manifest: Path, tmp_path: Path, capsys):
    (tmp_path / "file").write_text("")
    assert pretrain(tmp_path / "file" / "run", manifest) == 2
    one_message(capsys, "file/run/config.yaml cannot be written: Not a directory")


@pytest.mark.parametrize("workers", [0, 1])
def test_videos_that_vanish_during_training(
    workers: int, whole: Path, videos: Path, manifest: Path, tmp_path: Path, capsys
):
    """One is listed and stops a run that allows none; all are said in one line; once they are back it goes on."""
    out, away = tmp_path / "run", tmp_path / "away"
    chosen = [f"--data.workers={workers}"]
    with in_step(1, lambda: videos.rename(away)):
        try:
            assert pretrain(out, manifest, *chosen) == 2
        finally:
            away.rename(videos)
    one_message(capsys, str(videos), "5 videos in a row could not be decoded")
    assert last_step(out) >= 1
    assert pretrain(out, manifest, *chosen) == 0
    assert_the_same(whole, out)


def test_the_news_of_a_killed_worker_may_come_wrapped(tmp_path: Path):
    """It is raised by a signal, and what ran just then may have caught it and raised an error of its own."""
    wrapped = TypeError("a check of types failed")
    wrapped.__cause__ = RuntimeError("DataLoader worker (pid 1) is killed by signal: Killed. \nmore")
    told = in_words(wrapped, tmp_path, tmp_path / "last.ckpt", True)
    assert "was ended from outside (DataLoader worker (pid 1) is killed by signal: Killed. )" in str(told)


def test_a_worker_that_is_killed(manifest: Path, tmp_path: Path, capsys):
    out = tmp_path / "run"

    before = set(multiprocessing.active_children())

    def kill() -> None:
        (worker,) = set(multiprocessing.active_children()) - before
        os.kill(worker.pid, signal.SIGKILL)

    options = ["--data.workers=1", "--run.steps=6"]
    with in_step(2, kill):
        assert pretrain(out, manifest, *options) == 2
    last = out / "checkpoints" / "last.ckpt"
    one_message(capsys, "ended from outside", "/dev/shm", "--data.workers", f"The same command continues from {last}")
    assert last_step(out) >= 2
    assert pretrain(out, manifest, *options) == 0
    assert last_step(out) == 6
    assert steps(out) == [f"{number}.0" for number in range(1, 7)]


def test_frames_kept_on_disk_that_are_damaged_are_decoded_again(whole: Path, manifest: Path, tmp_path: Path, capsys):
    out, cached = tmp_path / "run", ["--data.cache=true"]
    with in_step(0, lambda: os.kill(os.getpid(), signal.SIGINT)):
        assert pretrain(out, manifest, *cached) == 130
    (frames,) = (out / "frames").rglob("frames.npy")
    (frames.parent / ".frames.1@elsewhere.part.npy").write_bytes(b"of another machine, now")
    (frames.parent / f".frames.4194305@{os.uname().nodename[:16]}.part.npy").write_bytes(b"of a killed run")
    for step, kept in ((1, frames.stat().st_size - 1000), (2, 0)):
        os.truncate(frames, kept)
        capsys.readouterr()
        with in_step(step, lambda: os.kill(os.getpid(), signal.SIGINT)):
            assert pretrain(out, manifest, *cached) == 130
        said = capsys.readouterr().err
        assert f"the decoded frames in {frames.parent} are damaged" in said
        assert "decoding again" in said
    left = list((out / "frames").rglob(".*.part*"))
    assert [path.name for path in left] == [".frames.1@elsewhere.part.npy"]
    left[0].unlink()
    assert pretrain(out, manifest, *cached) == 0
    assert_the_same(whole, out)


def test_a_row_of_the_metrics_that_was_cut_does_no_harm(whole: Path, manifest: Path, tmp_path: Path):
    out = tmp_path / "run"
    with in_step(2, lambda: os.kill(os.getpid(), signal.SIGINT)):
        assert pretrain(out, manifest) == 130
    text = (out / "metrics.csv").read_text()
    for cut in (text[:-5], text + "3,1,0.", text + "\0\0\0\n", text + "3,one,2\n"):
        (out / "metrics.csv").write_text(cut)
        copy = shutil.copytree(out, tmp_path / "copy")
        assert callbacks._whole_rows(copy / "metrics.csv")[-1]["step"] in (2, 3)
        shutil.rmtree(copy)
    assert pretrain(out, manifest) == 0
    assert set(steps(out)) <= set(steps(whole))


def test_what_killed_runs_left_is_removed_on_the_next_start(whole: Path, manifest: Path, tmp_path: Path):
    out = shutil.copytree(whole, tmp_path / "run")
    node = os.uname().nodename[:16]
    gone = subprocess.Popen(["true"])
    gone.wait()
    left = [
        out / "checkpoints" / f".last.{gone.pid}@{node}.part.ckpt",
        out / f".weights.{gone.pid}@{node}.part.safetensors",
    ]
    kept = [out / f".weights.1@{node}.part.safetensors", out / ".a.7@elsewhere.part.csv", out / ".of the user.part"]
    for path in (*left, *kept):
        path.write_bytes(b"half")
    assert pretrain(out, manifest) == 0
    assert not any(path.exists() for path in left)
    assert all(path.exists() for path in kept)  # of a process that runs, of another machine, of somebody else


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(5)
    path = tmp_path_factory.mktemp("weights") / "weights.safetensors"
    config = EncoderConfig(
        "r3d_tiny", head_hidden=16, head_num_hidden=1, clip_num_frames=8, clip_stride=2, crop_size=16
    )
    save_weights(VideoEncoder(config), path)
    return path


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    config = world_config("easy", num_frames=60, min_events=2, max_events=4)
    write_world(folder, 10, 0, config=config, num_test_videos=4, workers=1, preview=False)
    return folder / "manifest.parquet"


@pytest.mark.parametrize("command", ["finetune", pytest.param("boundaries train", marks=pytest.mark.slow)])
def test_other_training_goes_on_after_a_full_disk(command: str, world: Path, weights: Path, tmp_path: Path, capsys):
    common = [
        f"--data.manifest={world}", "--data.num_frames=8", "--data.stride=2", "--data.crop_size=16",
        "--data.batch_size=4", "--data.workers=0", "--run.accelerator=cpu", "--run.tensorboard=false",
        "--run.log_every_steps=1", "--run.steps=3", "--run.checkpoint_every_steps=1",
    ]  # fmt: skip
    common += {
        "finetune": [f"--weights={weights}", "--test.num_clips=1", "--test.num_crops=1"],
        "boundaries train": [
            "--data.every=4", "--data.held_out=0.3", f"--model.weights={weights}", "--evaluation.video_floors=false"
        ],
    }[command]  # fmt: skip
    if command == "finetune":
        table = pq.read_table(world)
        path = world.parent / "labelled.parquet"
        labels = [f"class {number % 2}" for number in range(len(table))]
        index = table.schema.get_field_index("label")
        pq.write_table(table.set_column(index, "label", [labels]), path)
        common[0] = f"--data.manifest={path}"
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert main([*command.split(), *common, f"--run.out={whole}"]) == 0
    capsys.readouterr()
    limit = largest_file(20_000)
    with in_step(1, limit.__enter__):
        try:
            assert main([*command.split(), *common, f"--run.out={broken}"]) == 2
        finally:
            limit.__exit__(None, None, None)
    one_message(capsys, f"{broken}", "could not be written: ", "the same command goes on")
    assert last_step(broken) == 1
    assert main([*command.split(), *common, f"--run.out={broken}"]) == 0
    assert_the_same(whole, broken)


def test_embedding_goes_on_after_a_full_disk(video_folder: Path, weights: Path, tmp_path: Path, capsys):
    out = tmp_path / "features.parquet"
    command = ["embed", str(video_folder), "--weights", str(weights), "--out", str(out)]
    with largest_file(15_000):
        assert main(command) == 2
    one_message(capsys, "could not be written: File too large", "the same command goes on")
    assert not out.exists()
    assert not list(tmp_path.rglob(".*@*.part*"))
    assert main(command) == 0
    first = out.read_bytes()
    out.unlink()
    assert main(command) == 0
    assert pq.read_table(out).equals(pq.read_table(io.BytesIO(first)))


def find_boundaries(folder: Path, weights: Path, out: Path) -> int:
    return main(["boundaries", "find", str(folder), "--weights", str(weights), "--device=cpu", "--out", str(out)])


def test_finding_boundaries_goes_on_after_a_full_disk(video_folder: Path, weights: Path, tmp_path: Path, capsys):
    out = tmp_path / "b.json"
    with largest_file(1_000):  # room for some videos' results
        assert find_boundaries(video_folder, weights, out) == 2
    one_message(capsys, ".b.json.done.jsonl could not be written: File too large", "the same command goes on")
    assert not out.exists()
    assert find_boundaries(video_folder, weights, out) == 0
    assert "of 8 videos were done before" in capsys.readouterr().err
    first = out.read_bytes()
    assert list(tmp_path.iterdir()) == [out]
    assert find_boundaries(video_folder, weights, out) == 0
    assert out.read_bytes() == first


def test_a_folder_that_cannot_be_written_to_is_told_before_the_work(
    video_folder: Path, weights: Path, tmp_path: Path, capsys, monkeypatch
):
    monkeypatch.setattr(BoundaryFinder, "find", None)
    with small_disk(tmp_path / "disk", 1) as change:
        change("ro")
        assert find_boundaries(video_folder, weights, tmp_path / "disk" / "b.json") == 2
        one_message(capsys, ".b.json.done.jsonl cannot be written: Read-only file system")
