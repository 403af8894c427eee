"""``timegrain model-info``: parameters, shapes and multiply-adds of a backbone."""

from __future__ import annotations

import json as json_format
import re
from typing import Any

import torch

from timegrain.models import table2 as paper
from timegrain.models.costs import stage_costs
from timegrain.models.heads import ProjectionHead
from timegrain.models.hub import build_backbone


def parse_clips(text: str) -> list[tuple[int, int, int]]:
    """Clips from text such as ``32x224,16x224`` or ``16x180x320``.

    Returns:
        (num_frames, height, width) of each.

    Raises:
        ValueError: A clip is not FRAMESxSIDE or FRAMESxHEIGHTxWIDTH.
    """
    clips = []
    for part in text.split(","):
        found = re.fullmatch(r"\s*([1-9]\d{0,4})x([1-9]\d{0,4})(?:x([1-9]\d{0,4}))?\s*", part)
        if not found:
            raise ValueError(
                f"cannot read the clip {part.strip()!r}: write FRAMESxSIDE or FRAMESxHEIGHTxWIDTH, such as "
                "32x224, and a comma between clips"
            )
        frames, height, width = found[1], found[2], found[3] or found[2]
        clips.append((int(frames), int(height), int(width)))
    return clips


def describe_backbone(name: str, clips: list[tuple[int, int, int]], options: dict[str, Any]) -> dict[str, Any]:
    """Parameters of a backbone, and shapes and multiply-adds for clips, as plain JSON values.

    Args:
        name: A key of `timegrain.models.hub.BACKBONES`.
        clips: (num_frames, height, width) of each.
        options: Settings of the backbone.

    Returns:
        The report; its key "counted" says what the numbers count.

    Raises:
        ValueError: The backbone or an option is unknown or impossible.
    """
    with torch.device("meta"):
        backbone = build_backbone(name, **options)
        head = ProjectionHead(backbone.num_features)
    num_parameters = sum(parameter.numel() for parameter in backbone.parameters())
    num_head = sum(parameter.numel() for parameter in head.parameters())
    reports = []
    for frames, height, width in clips:
        costs = stage_costs(backbone, frames, height, width)
        convolutions = sum(cost.multiply_adds for cost in costs)
        reports.append(
            {
                "num_frames": frames,
                "height": height,
                "width": width,
                "num_time_steps": backbone.num_time_steps(frames),
                "multiply_adds": convolutions,
                "multiply_adds_and_norm_outputs": convolutions + sum(cost.norm_outputs for cost in costs),
                "stages": [
                    {"name": cost.name, "shape": list(cost.shape), "multiply_adds": cost.multiply_adds}
                    for cost in costs
                ],
            }
        )
    return {
        "backbone": name,
        "options": options,
        "num_parameters": num_parameters,
        "num_parameters_with_head": num_parameters + num_head,
        "num_features": backbone.num_features,
        "clips": reports,
        "multiply_adds": sum(report["multiply_adds"] for report in reports),
        "multiply_adds_and_norm_outputs": sum(report["multiply_adds_and_norm_outputs"] for report in reports),
        "counted": "multiply-adds of the convolutions of the backbone, and of products in non-local blocks; one forward "
        "pass, padding included; norms, activations, pooling and heads not. The second count adds one operation for each "
        "output of a batch norm.",
    }


def model_info(
    *,
    backbone: str = "r3d50",
    clips: str = "32x224,16x224",
    options: dict[str, Any] | None = None,
    table2: bool = False,
    json: bool = False,
) -> None:
    """Print a backbone's parameters, its shapes stage by stage and its multiply-adds for one or more clips.

    Nothing is computed but shapes, so any size is quick and needs no memory.

    Examples::

        timegrain model-info
        timegrain model-info --backbone r3d18 --clips 32x112,16x112
        timegrain model-info --table2

    Args:
        backbone: r3d50 (the paper's), r3d18, r3d_tiny; slow_r50, i3d_r50, slowfast_r50, and each with non-local blocks:
            slow_r50_nl, i3d_r50_nl, slowfast_r50_nl.
        clips: FRAMESxSIDE or FRAMESxHEIGHTxWIDTH, several with commas; the total is over all. The default is the
            paper's pair: a long clip of 32 frames and a short one of 16.
        options: Settings of the backbone that differ from its own, such as '{"stem_temporal_stride": 1}'.
        table2: Print instead the FLOPs column of the paper's Table 2 as it is counted here: CVRL, ρMoCo, ρBYOL and TeG.
        json: Print one JSON object instead of text.

    Raises:
        ValueError: The backbone, an option or a clip cannot be.
    """
    if table2:
        if (backbone, clips, options or {}) != ("r3d50", "32x224,16x224", {}):
            raise ValueError(
                "--table2 has the paper's own networks and clips: leave out --backbone, --clips and --options"
            )
        rows = paper.table2()
        print(json_format.dumps({"rows": rows, "counted": paper.COUNTED}) if json else paper.as_text(rows))
        return
    report = describe_backbone(backbone, parse_clips(clips), options or {})
    print(json_format.dumps(report) if json else _as_text(report))


def _as_text(report: dict[str, Any]) -> str:
    lines = [
        f"{report['backbone']}: {report['num_parameters']:,} trainable parameters, {report['num_features']} features",
        f"with one projection head (3 x 2048, then 128): {report['num_parameters_with_head']:,}",
        "",
    ]
    for clip in report["clips"]:
        steps = clip["num_time_steps"]
        lines.append(f"clip of {clip['num_frames']} frames, {clip['height']} x {clip['width']}: {steps} time steps")
        lines.append(f"  {'':<9} {'channels x time x height x width':>32} {'multiply-adds':>14}")
        for stage in clip["stages"]:
            shape = " x ".join(map(str, stage["shape"]))
            lines.append(f"  {stage['name']:<9} {shape:>32} {_giga(stage['multiply_adds']):>14}")
        lines += [f"  {'all':<9} {'':>32} {_giga(clip['multiply_adds']):>14}", ""]
    lines += [
        f"total {_giga(report['multiply_adds'])} multiply-adds; with one operation for each batch-norm output "
        f"{_giga(report['multiply_adds_and_norm_outputs'])}",
        f"Counted: {report['counted']}",
    ]
    return "\n".join(lines)


def _giga(count: int) -> str:
    if count == 0:
        return "-"
    return f"{count / 1e9:.2f} G" if count >= 1e8 else f"{count / 1e6:.2f} M"
