"""What changes how a network is computed and not what it computes: layout, kept activations, compilation."""

from __future__ import annotations

import torch
from torch import nn

from timegrain.models.blocks import Backbone
from timegrain.tasks.config import TrainingConfig


def set_layout(module: nn.Module, run: TrainingConfig) -> None:
    """Lay out the kernels of every backbone as the clips will be, and say whether its activations are kept."""
    for backbone in (part for part in module.modules() if isinstance(part, Backbone)):
        backbone.checkpoint_stages |= run.checkpoint_activations
        if run.channels_last:  # else every step would turn the kernels to the clips' layout
            for kernel in backbone.parameters():
                if kernel.ndim == 5:
                    kernel.data = kernel.data.contiguous(memory_format=torch.channels_last_3d)


def compile_backbones(module: nn.Module) -> None:
    """Compile every backbone; it happens at the first call."""
    for part in module.modules():
        if isinstance(part, Backbone):
            part.compile()
