"""Frames and features that several processes want at once: whole, the same, and made once where the system has locks."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from processes import start_process
from timegrain import boundary_inference, files
from timegrain.boundary_features import FeatureStore
from timegrain.data import frame_cache, views
from timegrain.data.frame_cache import FrameCache
from timegrain.data.manifest import Manifest
from timegrain.data.shard_commands import plain_rows
from timegrain.data.video import VideoError
from timegrain.features import features_for_manifest
from timegrain.models.boundary import BoundaryConfig, BoundaryDetector
from timegrain.models.hub import EncoderConfig, VideoEncoder

pytestmark = pytest.mark.multiprocess
NUM_VIDEOS = 8


def frames(manifest: Manifest, folder: Path) -> torch.Tensor:
    cache = FrameCache.build(manifest, folder)
    return torch.stack([cache.frames(video, np.array([0, 17, 39])) for video in range(len(manifest))])


def pooled(manifest: Manifest, folder: Path) -> torch.Tensor:
    torch.manual_seed(0)
    encoder = VideoEncoder(EncoderConfig("r3d_tiny", heads=(), clip_num_frames=8, clip_stride=2, crop_size=16))
    return features_for_manifest(encoder, manifest, cache_folder=folder, device="cpu", workers=0).features


def windows(manifest: Manifest, folder: Path) -> torch.Tensor:
    torch.manual_seed(0)
    config = BoundaryConfig(backbone="r3d_tiny", num_frames=8, stride=2, every=4, crop_size=16, frozen=True)
    paths = manifest.column("path").to_pylist()
    store = FeatureStore.build(BoundaryDetector(config), paths, folder)
    return torch.stack([store.windows(path, np.array([0, 3, 8])) for path in paths])


MAKERS: dict[str, tuple[Callable[[Manifest, Path], torch.Tensor], Any]] = {
    "frames": (frames, frame_cache), "features": (pooled, views), "dense features": (windows, boundary_inference),
}  # fmt: skip


def make(
    kind: str,
    manifest: Path,
    folder: Path,
    out: Path,
    stop_at: int | None = None,
    locks: bool = True,
    meets: bool = False,
) -> None:
    """In a process of its own: build a cache and save what it holds, with the number of videos that were opened for it.

    One that ``meets`` opens its first video when another process is about to do so, too.
    """
    torch.set_num_threads(1)
    function, module = MAKERS[kind]
    open_video, opened = module.open_video, 0

    def slowly(path: str, *rest: Any, **options: Any) -> Any:
        nonlocal opened
        while opened == stop_at:
            out.with_suffix(".stopped").touch()
            time.sleep(0.1)
        if meets and opened == 0:
            out.with_suffix(".arrived").touch()
            while len(list(out.parent.glob("*.arrived"))) < 2:
                time.sleep(0.05)
        time.sleep(0.1)  # the other process comes while this one is at it
        opened += 1
        return open_video(path, *rest, **options)

    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    module.open_video = slowly
    if not locks:
        files.fcntl.flock = no_locks
    values = function(Manifest.open(manifest).select(), folder)
    torch.save({"values": values, "opened": opened}, out)


@pytest.fixture
def started() -> Iterator[Callable[..., BaseProcess]]:
    """Starts processes, of which none is left at the end."""
    running = []

    def start(*arguments: Any) -> BaseProcess:
        running.append(start_process(make, *arguments))
        return running[-1]

    yield start
    for process in running:
        process.kill()


def results(processes: list[BaseProcess], outs: list[Path]) -> tuple[list[torch.Tensor], list[int]]:
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    saved = [torch.load(out, weights_only=True) for out in outs]
    return [one["values"] for one in saved], sorted(one["opened"] for one in saved)


def left_over(folder: Path) -> list[Path]:
    return list(folder.rglob(".*.part*"))


@pytest.mark.parametrize(
    ("kind", "locks"), [("frames", True), ("frames", False), ("features", True), ("dense features", True)]
)
def test_two_processes_fill_one_cache(kind, locks, manifest, tmp_path, started):
    outs = [tmp_path / f"{number}.pt" for number in range(2)]
    # Of pooled features each makes its own: they are small, and whose comes last doesn't matter.
    waits = locks and kind != "features"
    processes = [started(kind, manifest, tmp_path / "cache", out, None, locks, not waits) for out in outs]
    (one, other), opened = results(processes, outs)
    assert torch.equal(one, other)
    assert opened == ([0, NUM_VIDEOS] if waits else [NUM_VIDEOS, NUM_VIDEOS])
    assert not left_over(tmp_path / "cache")
    third = tmp_path / "third.pt"
    (again,), opened = results([started(kind, manifest, tmp_path / "cache", third)], [third])
    assert torch.equal(one, again)
    assert opened == [0]


@pytest.mark.parametrize("kind", ["frames", "dense features"])
def test_who_waits_takes_over_from_one_that_is_killed(kind, manifest, tmp_path, started):
    first, second = tmp_path / "first.pt", tmp_path / "second.pt"
    killed = started(kind, manifest, tmp_path / "cache", first, 3)
    while not first.with_suffix(".stopped").exists():
        assert killed.is_alive()
        time.sleep(0.05)
    waiting = started(kind, manifest, tmp_path / "cache", second)
    waiting.join(2)
    assert waiting.is_alive()
    os.kill(killed.pid, signal.SIGKILL)
    (values,), (opened,) = results([waiting], [second])
    assert opened == (NUM_VIDEOS if kind == "frames" else NUM_VIDEOS - 3)
    assert torch.equal(values, MAKERS[kind][0](Manifest.open(manifest).select(), tmp_path / "alone"))
    assert not left_over(tmp_path / "cache")


def test_a_disk_that_is_too_small_is_a_message_and_not_a_dead_process(manifest, tmp_path, monkeypatch):
    """Writing to a mapped file beyond the disk's room would kill the process, so the room is taken first."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match=r"frames\.npy could not be written: No space left on device"):
        FrameCache.build(Manifest.open(manifest).select(), tmp_path / "cache")
    assert [path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()] == [".lock"]


def test_kept_frames_are_those_of_the_videos_that_were_scanned(manifest, tmp_path):
    rows = plain_rows(Manifest.open(manifest))
    rows[1]["num_frames"] -= 1
    other = Manifest.from_rows(rows, tmp_path)
    with pytest.raises(VideoError, match="changed since it was scanned"):
        FrameCache.build(other, tmp_path / "cache")
