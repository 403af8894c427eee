"""Scoring at the size of the real benchmarks, beside the official rules written plainly.

    python benchmarks/metrics_scale.py [--rows 1000000] [--videos 20000] [--rounds 1]

Two works, from file to score, each side in a process of its own so that its CPU time and peak memory are its own:

- AVA frame-mAP: 1,000,000 detection rows on 20,000 frames (with 50,000 boxes of ground truth) as text.
- GEBD F1: 20,000 videos x 5 annotators x 10 thresholds, as pickles.

The peer is `tests/reference/plain_metrics.py`: the official programs' rules as loops over frames, videos, annotators and
boundaries, with the standard csv and pickle modules. Both sides must give the same scores. The goals are absolute:
60 seconds each, 4 GiB for AVA. `make bench` puts the rows into benchmarks/RESULTS.md.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import pickle
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from measure import Row

THRESHOLDS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5)
NAMES = {number: f"action {number}" for number in range(1, 81)}
GOAL_SECONDS, GOAL_GIB = 60.0, 4.0


def make_ava(folder: Path, num_rows: int) -> None:
    """Detections near the true boxes and anywhere, ten classes per person box, scores without ties."""
    rng = np.random.default_rng(0)
    num_frames = max(1, num_rows // 50)
    corners = rng.uniform(0, 0.7, (num_frames, 2))
    truth_frames = rng.integers(num_frames, size=max(1, num_rows // 20))
    frames = rng.integers(num_frames, size=num_rows)
    scores = rng.permutation(num_rows) / num_rows
    with (folder / "gt.csv").open("w") as file:
        for frame in range(num_frames):
            file.write(f"v{frame // 90:04d},{902 + frame % 90}\n")
        for frame, number in zip(truth_frames, rng.integers(1, 81, len(truth_frames)), strict=True):
            x, y = corners[frame] + rng.normal(0, 0.02, 2)
            file.write(
                f"v{frame // 90:04d},{902 + frame % 90},{x:.3f},{y:.3f},{x + 0.2:.3f},{y + 0.3:.3f},{number},0\n"
            )
    with (folder / "det.csv").open("w") as file:
        numbers = rng.integers(1, 81, num_rows)
        jitter = rng.normal(0, 0.05, (num_rows, 2))
        for frame, number, score, (dx, dy) in zip(frames, numbers, scores, jitter, strict=True):
            x, y = corners[frame, 0] + dx, corners[frame, 1] + dy
            box = f"{x:.3f},{y:.3f},{x + 0.2:.3f},{y + 0.3:.3f}"
            file.write(f"v{frame // 90:04d},{902 + frame % 90:04d},{box},{number},{score:.7f}\n")
    items = "".join(f'item {{\n  name: "{name}"\n  id: {number}\n}}\n' for number, name in NAMES.items())
    (folder / "map.pbtxt").write_text(items)


def make_gebd(folder: Path, num_videos: int) -> None:
    """Five annotators of 2 to 8 boundaries, and 2 to 8 detections, per ten-second video."""
    rng = np.random.default_rng(1)

    def times() -> list[float]:
        return np.sort(rng.uniform(0.3, 9.7, rng.integers(2, 9))).round(3).tolist()

    truth = {
        f"video{index:06d}": {
            "num_frames": 300,
            "fps": 30.0,
            "video_duration": 10.0,
            "f1_consis_avg": float(rng.uniform(0.25, 1.0)),
            "substages_timestamps": [times() for _ in range(5)],
        }
        for index in range(num_videos)
    }
    (folder / "gt.pkl").write_bytes(pickle.dumps(truth))
    (folder / "pred.pkl").write_bytes(pickle.dumps({key: times() for key in truth}))


def ours_ava(folder: Path) -> dict[str, float]:
    from timegrain.metrics.frame_files import read_boxes, read_label_map
    from timegrain.metrics.frame_map import FrameMAP

    metric = FrameMAP(read_label_map(folder / "map.pbtxt"))
    metric.update(
        read_boxes(folder / "gt.csv", "ground truth").boxes, read_boxes(folder / "det.csv", "detections").boxes
    )
    return {"map": metric.compute()["map"]}


def ours_gebd(folder: Path) -> dict[str, float]:
    from timegrain.metrics.boundary_f1 import BoundaryF1
    from timegrain.metrics.inputs import read_boundaries, read_boundary_truth

    metric = BoundaryF1("challenge")
    metric.update(read_boundary_truth(folder / "gt.pkl", "challenge"), read_boundaries(folder / "pred.pkl"))
    return metric.compute()["f1"]


def plain_ava(folder: Path) -> dict[str, float]:
    import plain_metrics

    def rows(name: str):
        with (folder / name).open() as file:
            for row in csv.reader(file):
                frame = f"{row[0]},{float(row[1]):.6f}"
                if len(row) == 2:
                    yield (frame,)
                else:
                    yield frame, tuple(map(float, row[2:6])), int(row[6]), float(row[7])

    truth = [row[:3] for row in rows("gt.csv")]
    return {"map": plain_metrics.frame_map(truth, list(rows("det.csv")), NAMES)[0]}


def plain_gebd(folder: Path) -> dict[str, float]:
    import plain_metrics

    truth = pickle.loads((folder / "gt.pkl").read_bytes())
    found = pickle.loads((folder / "pred.pkl").read_bytes())
    videos = {
        key: (v["video_duration"], v["video_duration"], v["substages_timestamps"], v["f1_consis_avg"])
        for key, v in truth.items()
    }
    return {f"{t:g}": plain_metrics.boundary_f1(videos, found, "challenge", t)[2] for t in THRESHOLDS}


WORKS = {"ava": (ours_ava, plain_ava), "gebd": (ours_gebd, plain_gebd)}


def peak_gib() -> float:
    """The highest memory of this process; getrusage's would be at least that of the process it was forked from."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 2**20


def in_own_process(work: str, side: int, folder: Path) -> dict:
    """Run one side in a new process: its scores, CPU and wall seconds, and peak memory in GiB."""
    reference = Path(__file__).resolve().parents[1] / "tests" / "reference"
    path = os.pathsep.join(filter(None, (str(reference), os.environ.get("PYTHONPATH"))))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    started = time.perf_counter()
    command = [sys.executable, __file__, "--one", work, str(side), str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True)
    found = json.loads(process.stdout.read() or "{}")
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{work}, side {side}: ended with {process.returncode}")
    return {
        "scores": found["scores"],
        "cpu": usage.ru_utime + usage.ru_stime,
        "wall": time.perf_counter() - started,
        "gib": found["peak_gib"],
    }


def run(rounds: int = 1, num_rows: int = 1_000_000, num_videos: int = 20_000) -> list[Row]:
    """Rows for the results table."""
    titles = {"ava": f"AVA frame-mAP, {num_rows:,} detections", "gebd": f"GEBD F1, {num_videos:,} videos x 5 x 10"}
    result: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_ava(folder, num_rows)
        make_gebd(folder, num_videos)
        for work, title in titles.items():
            pairs = [[in_own_process(work, side, folder) for side in (0, 1)] for _ in range(rounds)]
            for mine, plain in pairs:
                for key, value in plain["scores"].items():
                    difference = abs(mine["scores"][key] - value)
                    if difference > (1e-9 if work == "ava" else 0):
                        raise AssertionError(f"{title}: {key} differs by {difference}")
            ours, peer = ([pair[side] for pair in pairs] for side in (0, 1))
            cpu, peer_cpu = (statistics.median(one["cpu"] for one in side) for side in (ours, peer))
            wall = max(one["wall"] for one in ours)
            beside = {"cpu_ms": 1000 * cpu, "peer": "official rules as loops", "peer_cpu_ms": 1000 * peer_cpu}
            ratio = statistics.median(a["cpu"] / b["cpu"] for a, b in pairs)
            mib, peer_mib = (1024 * max(one["gib"] for one in side) for side in (ours, peer))
            result += [
                Row(title, "TimeGrain", cpu, GOAL_SECONDS, unit="s", note=f"CPU, {wall:.0f} s by the clock", **beside),
                Row(title, "TimeGrain", mib, 1024 * GOAL_GIB, unit="MiB", note=f"peak memory; peer {peer_mib:.0f}"),
                Row(title, "TimeGrain", ratio, note="equal scores", **beside),
            ]
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--videos", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        work, side, folder = arguments.one
        scores = WORKS[work][int(side)](Path(folder))
        print(json.dumps({"scores": scores, "peak_gib": peak_gib()}))
    else:
        for line in run(arguments.rounds, arguments.rows, arguments.videos):
            print(line)
