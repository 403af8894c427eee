"""Batch norm in training on CPUs: PyTorch's kernels for channels-last, with statistics that do not lose digits.

PyTorch adds the values of a channel one after the other in their own precision there: with a million of them the variance
is off by a few ten-thousandths. Here it adds over videos and frames for each place of a picture, and those sums are
added by halves.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from timegrain.models.cpu_convolution import LAYOUT, suits_cpu


class Norm3d(nn.BatchNorm3d):
    """``nn.BatchNorm3d``, but for rounding."""

    def forward(self, input: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b c t h w"]:
        """Normalise (B, C, T, H, W); in training over all axes but C."""
        is_plain = self.affine and self.track_running_stats and self.momentum is not None
        is_long = input.numel() > input.shape[1]  # of one value a channel PyTorch says that it is too few
        if not (self.training and is_plain and is_long and suits_cpu(input)):
            return super().forward(input)
        if not input.is_contiguous(memory_format=LAYOUT):
            return super().forward(input)
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        running = self.running_mean, self.running_var, self.momentum
        out: Tensor = _Norm.apply(input, self.weight, self.bias, running, self.eps)
        return out


class _Norm(torch.autograd.Function):
    """Normalise by the batch's own statistics, and move the running ones by them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, running: Any, eps: float) -> Tensor:
        mean, variance = _statistics(x)
        running_mean, running_variance, momentum = running
        count = x.numel() // x.shape[1]
        running_mean.lerp_(mean, momentum)
        running_variance.lerp_(variance * (count / (count - 1)), momentum)
        ctx.save_for_backward(x, weight, mean, (variance + eps).rsqrt())
        ctx.eps = eps
        out: Tensor = torch.native_batch_norm(x, weight, bias, mean, variance, False, 0.0, eps)[0]
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, scale = ctx.saved_tensors
        gradient, asked = gradients[0].contiguous(memory_format=LAYOUT), list(ctx.needs_input_grad[:3])
        found = torch.ops.aten.native_batch_norm_backward(
            gradient, x, weight, None, None, mean, scale, True, ctx.eps, asked
        )
        return (*(part if is_asked else None for part, is_asked in zip(found, asked, strict=True)), None, None)


def _statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance (C,) of channels-last (B, C, T, H, W)."""
    videos, channels, steps, height, width = x.shape
    frames = x.permute(0, 2, 3, 4, 1).view(videos * steps, height * width * channels)
    means, variances = (part.view(-1, channels) for part in torch.batch_norm_update_stats(frames, None, None, 0.0))
    mean = means.mean(0)
    return mean, variances.mean(0) + (means - mean).square_().mean(0)
