"""What a backbone costs, counted on shapes alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from timegrain.models.blocks import Backbone
from timegrain.models.non_local import NonLocalBlock


@dataclass(frozen=True)
class StageCost:
    """A part of the backbone for one clip.

    Args:
        name: Such as "stem", "pool" or "stage 2" to "stage 5".
        shape: Its output (C, T, H, W).
        multiply_adds: Of its convolutions, and of the products between places in non-local blocks.
        norm_outputs: Values that its batch norms put out.
    """

    name: str
    shape: tuple[int, ...]
    multiply_adds: int
    norm_outputs: int


def stage_costs(backbone: Backbone, num_frames: int, height: int, width: int) -> list[StageCost]:
    """Shapes and multiply-adds of each part for one clip.

    Args:
        backbone: A backbone on the meta device; nothing is computed.
        num_frames: Frames of the clip.
        height: Its height in pixels.
        width: Its width in pixels.

    Returns:
        The backbone's parts, in order.
    """
    counts = {"convolutions": 0, "norms": 0}
    costs: list[StageCost] = []

    def count_convolution(module: nn.Module, inputs: Any, output: Tensor) -> None:
        assert isinstance(module, nn.Conv3d)
        counts["convolutions"] += output.numel() * module.weight[0].numel()

    def count_products(module: nn.Module, inputs: Any, output: Tensor) -> None:
        assert isinstance(module, NonLocalBlock)
        counts["convolutions"] += module.num_products(*output.shape[2:])

    def count_norm(module: nn.Module, inputs: Any, output: Tensor) -> None:
        counts["norms"] += output.numel()

    def close(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            costs.append(StageCost(name, tuple(output.shape[1:]), counts["convolutions"], counts["norms"]))
            counts["convolutions"] = counts["norms"] = 0

        return hook

    handles = []
    for module in backbone.modules():
        if isinstance(module, nn.Conv3d):
            handles.append(module.register_forward_hook(count_convolution))
        elif isinstance(module, NonLocalBlock):
            handles.append(module.register_forward_hook(count_products))
        elif isinstance(module, nn.BatchNorm3d):
            handles.append(module.register_forward_hook(count_norm))
    handles += [module.register_forward_hook(close(name)) for name, module in backbone.parts().items()]
    channels = next(m.in_channels for m in backbone.modules() if isinstance(m, nn.Conv3d))
    try:
        with torch.no_grad():
            backbone(torch.empty(1, channels, num_frames, height, width, device="meta"))
    finally:
        for handle in handles:
            handle.remove()
    return costs
