"""The dense loss against masked cross-entropy as usually written: value and both gradients."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from measure import Row, measure, row
from timegrain.losses import Level, level_loss


def usual(short, long, matches, temperature=0.1):
    """The loss as one would write it first: the whole score matrix, a mask, cross-entropy."""
    batch, n, _ = short.shape
    m = long.shape[1]
    logits = short.flatten(0, 1) @ long.flatten(0, 1).T / temperature
    video = torch.arange(batch)
    target = (video[:, None] * m + matches).flatten()
    same = video.repeat_interleave(n)[:, None] == video.repeat_interleave(m)[None]
    same[torch.arange(batch * n), target] = False
    return F.cross_entropy(logits.masked_fill(same, float("-inf")), target)


def run(rounds: int = 5, batch: int = 512, m: int = 16, n: int = 8) -> list[Row]:
    """Rows for the results table."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    short = F.normalize(torch.randn(batch, n, 128, generator=generator), dim=-1).requires_grad_()
    long = F.normalize(torch.randn(batch, m, 128, generator=generator), dim=-1).requires_grad_()
    short_positions = torch.linspace(0, 1, n).expand(batch, n).double()
    long_positions = torch.linspace(0, 1, m).expand(batch, m).double()
    level = Level(n, m)
    matches = (short_positions[:, :, None] - long_positions[:, None]).abs().argmin(2)
    torch.testing.assert_close(
        level_loss(short, long, short_positions, long_positions, level)[0], usual(short, long, matches)
    )
    seconds = measure(
        {
            "TimeGrain": lambda _: level_loss(short, long, short_positions, long_positions, level)[0].backward(),
            "masked cross-entropy": lambda _: usual(short, long, matches).backward(),
        },
        rounds,
    )
    work = f"dense loss, {batch} videos, m={m}, n={n}, value and gradients"
    return [row(work, seconds, "TimeGrain", "masked cross-entropy", 0.33)]


if __name__ == "__main__":
    print(run())
