"""All benchmarks that compare with a named alternative, one after another; writes benchmarks/RESULTS.md.

Usage: python benchmarks/run.py [ROUNDS]
"""

from __future__ import annotations

import platform
import sys
from datetime import date
from pathlib import Path

import torch

import augmentation
import dense_loss
import linear_probe


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    lines = [
        "# Speed, side by side",
        "",
        f"{date.today()}, {platform.machine()}, torch {torch.__version__}, one thread, {rounds} interleaved rounds.",
        "CPU time; the ratio is the median of ours / theirs in the same round.",
        "",
        "| work | ours, ms | alternative | its ms | ratio | goal | reached |",
        "|---|--:|---|--:|--:|--:|---|",
    ]
    for module in (augmentation, dense_loss, linear_probe):
        for row in module.run(rounds):
            goal = row["goal"]
            reached = "" if goal is None else "yes" if row["ratio"] <= goal else "no"
            lines.append(
                f"| {row['work']} | {row['cpu_ms']:.1f} | {row['peer']} | {row['peer_cpu_ms']:.1f} | {row['ratio']:.3f} "
                f"| {'' if goal is None else goal} | {reached} |"
            )
            print(lines[-1], flush=True)
    Path(__file__).with_name("RESULTS.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
