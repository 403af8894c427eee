"""The dense loss against masked cross-entropy as usually written: value and both gradients, and the memory they take.

    python benchmarks/dense_loss.py [ROUNDS]

The paper's global batch of 1,024 videos with m = 16 and n = 8: 8,192 queries against 16,384 keys of 128 numbers.
"""

from __future__ import annotations

import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from measure import Row, measure, not_measured, row
from timegrain.losses import Level, level_loss

BATCH, M, N = 1024, 16, 8
GOAL, GOAL_MB = 0.33, 300


def usual(short: Tensor, long: Tensor, matches: Tensor, temperature: float = 0.1) -> Tensor:
    """The loss as one would write it first: the whole score matrix, a mask, cross-entropy."""
    batch, n, _ = short.shape
    m = long.shape[1]
    logits = short.flatten(0, 1) @ long.flatten(0, 1).T / temperature
    video = torch.arange(batch)
    target = (video[:, None] * m + matches).flatten()
    same = video.repeat_interleave(n)[:, None] == video.repeat_interleave(m)[None]
    same[torch.arange(batch * n), target] = False
    return F.cross_entropy(logits.masked_fill(same, float("-inf")), target)


def problem(batch: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Embeddings and their positions: short, long, short's, long's."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    short = F.normalize(torch.randn(batch, N, 128, generator=generator), dim=-1).requires_grad_()
    long = F.normalize(torch.randn(batch, M, 128, generator=generator), dim=-1).requires_grad_()
    places = (torch.linspace(0, 1, num).expand(batch, num).double() for num in (N, M))
    return short, long, *places


def ours(short: Tensor, long: Tensor, short_positions: Tensor, long_positions: Tensor) -> Tensor:
    return level_loss(short, long, short_positions, long_positions, Level(N, M))[0]


def peak_mb(batch: int) -> float:
    """By how much a step raises the memory of this process at its highest; Linux only."""
    ours(*problem(16)).backward()
    given = problem(batch)
    Path("/proc/self/clear_refs").write_text("5")  # the highest mark begins anew (getrusage's would be the parent's)
    before = _status_mb("VmRSS")
    ours(*given).backward()
    return _status_mb("VmHWM") - before


def _status_mb(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024 / 1e6


def run(rounds: int = 5, batch: int = BATCH) -> list[Row]:
    """Rows for the results table."""
    given = problem(batch)
    short, long, short_positions, long_positions = given
    matches = (short_positions[:, :, None] - long_positions[:, None]).abs().argmin(2)
    torch.testing.assert_close(ours(*given), usual(short, long, matches))
    seconds = measure(
        {
            "TimeGrain": lambda _: ours(*given).backward(),
            "masked cross-entropy": lambda _: usual(short, long, matches).backward(),
        },
        rounds,
    )
    work = f"dense loss, {batch:,} videos, m={M}, n={N}"
    speed = row(f"{work}: value and gradients", seconds, "TimeGrain", "masked cross-entropy", GOAL)
    work = f"{work}: memory beyond the inputs"
    if not sys.platform.startswith("linux"):
        return [speed, not_measured(work, "TimeGrain", "needs Linux", GOAL_MB, True)]
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        memory = process.submit(peak_mb, batch).result()
    return [speed, Row(work, "TimeGrain", memory, GOAL_MB, unit="MB")]


if __name__ == "__main__":
    for line in run(int(sys.argv[1]) if len(sys.argv) > 1 else 5):
        print(line)
