"""The FLOPs column of the paper's Table 2, computed: what one video costs each objective in the forward pass.

**Counted**: multiply-adds of the convolutions of the trained backbone, one forward pass per clip of the video, at 224 x
224 pixels. Not counted: norms, heads, the backward pass, and the forward pass of a momentum encoder.

This is the one convention that gives all five printed numbers within 0.3 %. Counting the momentum encoder, too, would give
167.0 for ρ = 2 and 334.0 for ρ = 4 with clips of 8 frames, which the column also holds, but then nothing gives 83.5. So
the row of 334.0 is read as ρ = 4 with clips of 16 frames, the largest pre-training of Feichtenhofer et al. (an inference).
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import Any

import torch

from timegrain.models.costs import stage_costs
from timegrain.models.hub import build_backbone

SIDE = 224
COUNTED = (
    f"convolutions of the trained backbone, one forward pass per clip at {SIDE} x {SIDE}; not norms, heads, the backward "
    "pass or the momentum encoder, whose forward pass the last column adds. Training costs three times the count, and once "
    "more what the momentum encoder adds."
)


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Args:
        method: Objective.
        backbone: A key of `timegrain.models.hub.BACKBONES`.
        num_frames: Of each clip of a video.
        momentum_encoder: Whether a second network sees every clip, too.
        printed: The paper's number, in units of 10^9.
    """

    method: str
    backbone: str
    num_frames: tuple[int, ...]
    momentum_encoder: bool
    printed: float


ROWS = (
    Row("CVRL", "r3d50", (16, 16), False, 91.2),
    Row("ρMoCo, ρBYOL, ρ = 2", "slow_r50", (8, 8), True, 83.5),
    Row("ρMoCo, ρBYOL, ρ = 4", "slow_r50", (8, 8, 8, 8), True, 167.0),
    Row("ρBYOL, ρ = 4, 16 frames", "slow_r50", (16, 16, 16, 16), True, 334.0),
    Row("TeG", "r3d50", (32, 16), False, 136.4),
)


def multiply_adds(backbone: str, num_frames: int, side: int = SIDE) -> int:
    """Of a backbone's convolutions for one clip, forward."""
    with torch.device("meta"):
        network = build_backbone(backbone)
    return sum(cost.multiply_adds for cost in stage_costs(network, num_frames, side, side))


def table2() -> list[dict[str, Any]]:
    """Every row with its count, the paper's number, and the count with the momentum encoder's forward pass."""
    rows: list[dict[str, Any]] = []
    for row in ROWS:
        count = sum(multiply_adds(row.backbone, frames) for frames in row.num_frames)
        rows.append(
            {
                "method": row.method,
                "backbone": row.backbone,
                "num_frames": list(row.num_frames),
                "multiply_adds": count,
                "printed": row.printed,
                "difference_percent": 100 * (count / 1e9 / row.printed - 1),
                "multiply_adds_with_momentum_encoder": 2 * count if row.momentum_encoder else count,
            }
        )
    return rows


def as_text(rows: list[dict[str, Any]]) -> str:
    """The table for people, and what is counted."""
    lines = [
        "Table 2, FLOPs of the forward pass per video (10^9 multiply-adds)",
        f"{'method':<24} {'backbone':<9} {'frames':<10} {'counted':>8} {'paper':>7} {'diff':>7} {'+ momentum enc.':>16}",
    ]
    for row in rows:
        frames = "+".join(map(str, row["num_frames"]))
        count, whole = row["multiply_adds"] / 1e9, row["multiply_adds_with_momentum_encoder"] / 1e9
        lines.append(
            f"{row['method']:<24} {row['backbone']:<9} {frames:<11} {count:>7.2f} {row['printed']:>7} "
            f"{row['difference_percent']:>+6.2f}% {whole:>16.2f}"
        )
    return "\n".join([*lines, *textwrap.wrap(f"Counted: {COUNTED}", 100)])
