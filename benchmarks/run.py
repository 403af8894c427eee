"""All benchmarks that compare with a named alternative, one after another; writes benchmarks/RESULTS.md.

python benchmarks/run.py [ROUNDS] [--only NAME ...] [--out FILE]
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import platform
import sys
import time
from collections.abc import Iterable
from datetime import date
from importlib import metadata
from pathlib import Path

from measure import Row, not_measured
from same_ffmpeg import restart_with_it

# In the order of the tables; with the rounds that one takes where it needs fewer than the others.
BENCHMARKS = {
    "input_pipeline": None,
    "exactness": 1,
    "worker_memory": 1,
    "augmentation": None,
    "dense_loss": 5,
    "linear_probe": None,
    "training_step": 3,
    "metrics_scale": 1,
}
PACKAGES = (
    "torch",
    "torchvision",
    "av",
    "torchcodec",
    "decord2",
    "opencv-python-headless",
    "pytorchvideo",
    "scikit-learn",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "rounds", type=int, nargs="?", default=7, help="interleaved rounds after the warm-up (default 7)"
    )
    parser.add_argument("--only", nargs="+", choices=BENCHMARKS, default=list(BENCHMARKS), metavar="NAME")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("RESULTS.md"))
    arguments = parser.parse_args()
    rows: list[Row] = []
    for name in arguments.only:
        start = time.monotonic()
        rounds = min(arguments.rounds, BENCHMARKS[name] or arguments.rounds)
        print(f"{name}: {rounds} rounds", flush=True)
        try:
            found = importlib.import_module(name).run(rounds)
        except Exception as error:  # one that fails is a row, and takes none of the others along
            found = [not_measured(name, "TimeGrain", f"{type(error).__name__}: {error}", 0.0, True)]
        for line in found:
            print(f"  {line.work} | {line.method} | {_value(line)} | {line.reached} {line.note}", flush=True)
        print(f"  took {time.monotonic() - start:.0f} s", flush=True)
        rows += found
    arguments.out.write_text("\n".join(page(rows, arguments.rounds)) + "\n", encoding="utf-8")
    print(f"wrote {arguments.out}")


def page(rows: list[Row], rounds: int) -> list[str]:
    """The results as lines of Markdown."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    return [
        "# Speed, side by side",
        "",
        f"Written by `make bench` on {date.today()}: {platform.machine()}, {os.cpu_count()} cores (load {load:.1f} at the "
        f"end), Python {platform.python_version()}, {', '.join(_versions())}.",
        "",
        "CPU time of all threads, one thread each; every method once per round, in shuffled order, on the same sample; "
        f"median of up to {rounds} round{'s' * (rounds > 1)} after a warm-up. A ratio is the median of (method / peer in "
        "the same round): on a busy machine milliseconds grow, ratios hardly. How to read it: docs/speed.md.",
        "",
        "## Goals",
        "",
        *_table([line for line in rows if line.goal is not None]),
        "",
        "## Every method",
        "",
        *_table([line for line in rows if line.goal is None]),
    ]


def _versions() -> Iterable[str]:
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            yield f"{package} {metadata.version(package)}"
    import av

    numbers = av.library_versions["libavcodec"]
    yield f"PyAV's libavcodec {'.'.join(map(str, numbers))}"
    with contextlib.suppress(Exception):
        from torchcodec._core.ops import get_ffmpeg_library_versions

        yield f"torchcodec on libavcodec {'.'.join(map(str, get_ffmpeg_library_versions()['libavcodec']))}"


def _table(rows: list[Row]) -> list[str]:
    lines = [
        "| work | method | ms | beside | its ms | result | goal | reached | note |",
        "|---|---|--:|---|--:|--:|--:|---|---|",
    ]
    work = None
    for line in rows:
        name = f"**{line.method}**" if line.is_ours else line.method
        cells = [
            line.work if line.work != work else "″",
            name,
            "" if line.cpu_ms is None else f"{line.cpu_ms:.1f}",
            line.peer,
            "" if line.peer_cpu_ms is None else f"{line.peer_cpu_ms:.1f}",
            _value(line),
            "" if line.goal is None else f"≤ {line.goal:g}",
            line.reached,
            line.note.replace("|", "/"),
        ]
        lines.append(f"| {' | '.join(cells)} |")
        work = line.work
    return lines


def _value(line: Row) -> str:
    if line.value is None:
        return "–"
    return f"{line.value:.3f}" if not line.unit else f"{line.value:.0f} {line.unit}"


if __name__ == "__main__":
    restart_with_it()
    sys.exit(main())
