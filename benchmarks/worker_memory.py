"""Does a loading worker grow? 2,000 clips read by one, and what its memory did.

    python benchmarks/worker_memory.py

Twelve made videos of different sizes and codecs, read in turn as pre-training reads them, in a process of its own; its
resident memory after the last clip against that after the first 200. Linux only.
"""

from __future__ import annotations

import multiprocessing
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import torch

import media
from measure import Row, not_measured
from timegrain.data.clips import collate, cut_clips, draw_clips
from timegrain.data.decoding import open_video
from timegrain.data.transforms import AugmentConfig
from timegrain.sampling import ClipSpec, contained

NUM_CLIPS, WARM_UP, GOAL_MB = 2000, 200, 50
WORK = f"growth of a worker's memory over {NUM_CLIPS:,} clips"


def resident_mb() -> float:
    """Resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


def grow(paths: list[str]) -> float:
    """Read all clips; by how many MB this process then is larger than after the warm-up."""
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    rng = np.random.default_rng(0)
    start = 0.0
    for pair in range(NUM_CLIPS // 2):
        if 2 * pair == WARM_UP:
            start = resident_mb()
        with open_video(paths[pair % len(paths)]) as reader:
            info = reader.info
            plan = draw_clips(
                rng,
                contained,
                info.num_frames,
                info.height,
                info.width,
                (ClipSpec(8, 4), ClipSpec(4, 2)),
                AugmentConfig(),
            )
            clips = cut_clips(reader, plan, info.num_frames, 112)
        collate([{"clips": tuple(clips), "failures": []}])
    return resident_mb() - start


def run(rounds: int = 1) -> list[Row]:
    """Row for the results table."""
    del rounds
    if not sys.platform.startswith("linux"):
        return [not_measured(WORK, "TimeGrain", "needs Linux", GOAL_MB, True)]
    with tempfile.TemporaryDirectory() as name:
        paths = []
        kinds = (("mp4", "libx264", {"g": "12"}), ("avi", "mpeg4", {"bf": "2"}), ("mkv", "libx264", {"g": "50"}))
        for number in range(12):
            suffix, codec, options = kinds[number % len(kinds)]
            frames = media.moving_scene(40 + number, 96 + 4 * number, 128 + 4 * number, seed=number)
            paths.append(str(media.write_video(Path(name) / f"{number}.{suffix}", frames, options, codec)))
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as worker:
            growth = worker.submit(grow, paths).result()
    return [Row(WORK, "TimeGrain", growth, GOAL_MB, unit="MB", note="beyond that after the first 200 clips")]


if __name__ == "__main__":
    print(run())
