"""What all tests share: videos they make themselves, and reference material where it is present."""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings
from jaxtyping import install_import_hook

# One thread here and in every process that a test starts: the tests run side by side, and a sum's last bit may depend on
# the number of threads.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)

# The time of an example says nothing on a shared machine; the same examples every time keep failures repeatable.
settings.register_profile("timegrain", deadline=None, max_examples=60, derandomize=True)
settings.load_profile("timegrain")

# Shapes in signatures are checked wherever the tests call these rooms.
install_import_hook(
    [f"timegrain.{room}" for room in ("aggregation", "losses", "distributed", "objectives", "models")],
    "beartype.beartype",
)


@contextmanager
def same_priority() -> Iterator[None]:
    """Undo what SVT-AV1, started by root, does to this thread: with real-time priority nobody else would run any more."""
    policy = os.sched_getscheduler(0) if hasattr(os, "sched_getscheduler") else None
    try:
        yield
    finally:
        if policy is not None and os.sched_getscheduler(0) != policy:
            os.sched_setscheduler(0, policy, os.sched_param(0))


def make_video(
    path: Path,
    frames: np.ndarray,
    fps: float = 25.0,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
    pts: list[int] | None = None,
    time_base: Fraction | None = None,
) -> Path:
    """Write (T, H, W, 3) uint8 RGB frames as a real video file; `pts` (in `time_base`) makes the rate irregular."""
    import av

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    rate = Fraction(fps).limit_denominator(1001)
    with same_priority(), av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options=options or {})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pix_fmt
        stream.thread_count = 1
        if time_base is not None:
            stream.codec_context.time_base = time_base
        for index, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            if pts is not None:
                frame.pts = pts[index]
                frame.time_base = time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def moving_square(num_frames: int, height: int = 48, width: int = 64, seed: int = 0) -> np.ndarray:
    """(T, H, W, 3) uint8: a bright square that wanders over a smooth coloured background; every frame differs."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    background = np.stack([60 + 60 * np.sin(x / 9 + p) + 40 * np.cos(y / 7 + p) for p in rng.uniform(0, 6, 3)], -1)
    frames = np.repeat(np.clip(background, 0, 255)[None], num_frames, 0)
    size = max(4, height // 6)
    top = ((np.sin(np.arange(num_frames) / 5 + seed) + 1) / 2 * (height - size)).astype(int)
    left = (np.arange(num_frames) * 3 + 7 * seed) % max(1, width - size)
    for t in range(num_frames):
        frames[t, top[t] : top[t] + size, left[t] : left[t] + size] = (255, 200 - t % 100, 30 + t % 200)
    return frames.astype(np.uint8)


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copies of manifests go to a folder of the tests, in this process and in those it starts."""
    folder = tmp_path_factory.mktemp("timegrain-cache")
    os.environ["TIMEGRAIN_CACHE"] = str(folder)
    return folder


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference material (golden values, real clips); the test is skipped where it is absent."""
    root = Path(os.environ.get("TIMEGRAIN_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    if not (root / "golden").is_dir():
        pytest.skip(f"reference material not found at {root} (set TIMEGRAIN_SHARED)")
    return root


@pytest.fixture(scope="session")
def video_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight small H.264 videos of two classes, `CLASS/NAME.mp4`, 40 to 75 frames."""
    root = tmp_path_factory.mktemp("videos")
    for index in range(8):
        frames = moving_square(40 + 5 * index, seed=index)
        make_video(root / ("left" if index % 2 else "right") / f"v{index}.mp4", frames, options={"g": "12"})
    return root


@pytest.fixture(scope="session")
def manifest(video_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The manifest of `video_folder`."""
    from timegrain.cli import main

    path = tmp_path_factory.mktemp("manifest") / "m.parquet"
    assert main(["manifest", "scan", str(video_folder), "--out", str(path)]) == 0
    return path


def command_name(words: list[str]) -> str:
    """The command that the words after ``timegrain`` begin with."""
    from timegrain.cli import COMMANDS

    return next(" ".join(words[:end]) for end in (2, 1) if " ".join(words[:end]) in COMMANDS)


def parse_command(words: list[str]) -> Any:
    """What a command's parser makes of the words typed after ``timegrain``; nothing is run, wrong words exit with 2."""
    from jsonargparse import capture_parser

    from timegrain.cli import COMMANDS
    from timegrain.parsing import prepare, run, takes_config

    name = command_name(words)
    module, function = COMMANDS[name].target.split(":")
    command = getattr(importlib.import_module(module), function)
    parser = capture_parser(lambda: run(command, name, ["--help"]))
    arguments = words[len(name.split()) :]
    parameters = list(inspect.signature(command).parameters.values())
    return parser.parse_args(prepare(arguments, parameters, takes_config(command)))
