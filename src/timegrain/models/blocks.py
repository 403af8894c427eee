"""What 3-D residual networks are built of: padded convolutions, residual blocks, stages; and what a backbone is.

Axes: B videos, C channels, T time, H W space, D feature size; T' = time steps that are left.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from einops import reduce
from jaxtyping import Float
from torch import Tensor, nn

from timegrain.distributed import recomputed
from timegrain.models.cpu_convolution import LAYOUT, convolve_on_cpu, suits_cpu
from timegrain.models.cpu_norm import Norm3d
from timegrain.models.non_local import Affinity, NonLocalBlock

Padding = Literal["same", "symmetric"]

NORM_MOMENTUM = 0.1  # Keras writes the same number as 0.9
NORM_EPS = 1e-5
_TRUNCATED_STD = 0.87962566103423978  # standard deviation of a unit normal cut at two sigma


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """TensorFlow's SAME padding of one axis, which gives ceil(size / stride) outputs.

    The odd one out goes after the data: 224 pixels, kernel 7, stride 2 get (2, 3), where PyTorch's usual padding
    would be (3, 3) and shift every window by one pixel.

    Args:
        size: Length of the axis.
        kernel: Kernel length on it.
        stride: Stride on it.

    Returns:
        How much to pad before and after.
    """
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


class Conv3d(nn.Conv3d):
    """A 3-D convolution without bias, padded so that an axis of n keeps ceil(n / stride) positions.

    Kernels are odd. With ``padding="same"`` and a stride the amount depends on the input's size; where it is the same
    on both sides the convolution does it, and only an uneven axis is padded by a copy.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: (T, H, W).
        stride: (T, H, W).
        padding: "same" as TensorFlow pads, "symmetric" for kernel // 2 on both sides.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: tuple[int, int, int],
        stride: tuple[int, int, int] = (1, 1, 1),
        padding: Padding = "same",
    ) -> None:
        half = (kernel_size[0] // 2, kernel_size[1] // 2, kernel_size[2] // 2)
        super().__init__(in_channels, out_channels, kernel_size, stride, half, bias=False)
        # With stride 1 an odd kernel's SAME padding is kernel // 2 on both sides: nothing to decide per input.
        self.depends_on_size = padding == "same" and max(stride) > 1

    def reset_parameters(self) -> None:
        """Draw the kernel as Keras' VarianceScaling does: truncated normal of variance 1 / fan_in."""
        std = math.sqrt(1 / self.weight[0].numel()) / _TRUNCATED_STD
        nn.init.trunc_normal_(self.weight, std=std, a=-2 * std, b=2 * std)

    def forward(self, input: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b d t2 h2 w2"]:
        """Convolve.

        Args:
            input: (B, C, T, H, W).

        Returns:
            (B, D, T', H', W'), each axis ceil(n / stride) long.
        """
        is_ours = suits_cpu(input)
        if is_ours:
            input = input.contiguous(memory_format=LAYOUT)
        padding: Sequence[int] = self.padding  # type: ignore[assignment]  # a string where it is given as one
        if self.depends_on_size:
            kernel = zip(input.shape[2:], self.kernel_size, self.stride, strict=True)
            sides = [same_padding(n, k, s) for n, k, s in kernel]
            padding = [before if before == after else 0 for before, after in sides]
            if any(before != after for before, after in sides):
                uneven = [(0, 0) if before == after else (before, after) for before, after in sides]
                input = F.pad(input, [amount for pair in reversed(uneven) for amount in pair])
        if is_ours:
            return convolve_on_cpu(input, self.weight, self.stride, padding)
        return F.conv3d(input, self.weight, None, self.stride, padding)


class SpatialMaxPool(nn.Module):
    """Max over 3 x 3 pixels with stride 2, each frame by itself; n pixels become ceil(n / 2).

    Args:
        padding: As in `Conv3d`. Padded places never win (they count as minus infinity).
    """

    def __init__(self, padding: Padding = "same") -> None:
        super().__init__()
        self.padding = padding

    def forward(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b c t h2 w2"]:
        """Pool (B, C, T, H, W) to (B, C, T, H', W')."""
        if self.padding == "symmetric":
            return F.max_pool3d(x, (1, 3, 3), (1, 2, 2), (0, 1, 1))
        # `ceil_mode` lets the last window reach over the edge, which is what SAME pads after the data, without a copy.
        before = [same_padding(n, 3, 2)[0] for n in x.shape[3:]]
        return F.max_pool3d(x, (1, 3, 3), (1, 2, 2), [0, *before], ceil_mode=True)


def norm3d(channels: int) -> Norm3d:
    """The batch norm of all networks here."""
    return Norm3d(channels, eps=NORM_EPS, momentum=NORM_MOMENTUM)


class _Block(nn.Module, ABC):
    """What both residual blocks share: relu(branch(x) + shortcut(x))."""

    expansion: int
    last_norm: str

    def __init__(self, in_channels: int, width: int, spatial_stride: int, padding: Padding) -> None:
        super().__init__()
        self.has_shortcut = in_channels != width * self.expansion or spatial_stride != 1
        if self.has_shortcut:
            stride = (1, spatial_stride, spatial_stride)
            self.shortcut_conv = Conv3d(in_channels, width * self.expansion, (1, 1, 1), stride, padding)
            self.shortcut_norm = norm3d(width * self.expansion)

    @abstractmethod
    def _branch(self, x: Tensor) -> Tensor: ...

    def forward(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b d t h2 w2"]:
        """(B, C, T, H, W) -> (B, D, T, H', W')."""
        shortcut = self.shortcut_norm(self.shortcut_conv(x)) if self.has_shortcut else x
        return self._branch(x).add_(shortcut).relu_()


class BottleneckBlock(_Block):
    """[k,1,1] - [1,3,3] with the spatial stride - [1,1,1] to four times the width; a norm after each.

    Args:
        in_channels: Channels of the input.
        width: Channels inside; four times as many come out.
        temporal_kernel: k.
        spatial_stride: Stride of the 1 x 3 x 3 convolution on H and W.
        padding: As in `Conv3d`.
    """

    expansion = 4
    last_norm = "expand_norm"

    def __init__(
        self, in_channels: int, width: int, temporal_kernel: int, spatial_stride: int, padding: Padding
    ) -> None:
        super().__init__(in_channels, width, spatial_stride, padding)
        stride = (1, spatial_stride, spatial_stride)
        self.temporal_conv = Conv3d(in_channels, width, (temporal_kernel, 1, 1), padding=padding)
        self.temporal_norm = norm3d(width)
        self.spatial_conv = Conv3d(width, width, (1, 3, 3), stride, padding)
        self.spatial_norm = norm3d(width)
        self.expand_conv = Conv3d(width, width * self.expansion, (1, 1, 1), padding=padding)
        self.expand_norm = norm3d(width * self.expansion)

    def _branch(self, x: Tensor) -> Tensor:
        x = self.temporal_norm(self.temporal_conv(x)).relu_()
        x = self.spatial_norm(self.spatial_conv(x)).relu_()
        out: Tensor = self.expand_norm(self.expand_conv(x))
        return out


class BasicBlock(_Block):
    """[k,3,3] with the spatial stride - [1,3,3]; a norm after each.

    Args:
        in_channels: Channels of the input.
        width: Channels of the output.
        temporal_kernel: k.
        spatial_stride: Stride of the first convolution on H and W.
        padding: As in `Conv3d`.
    """

    expansion = 1
    last_norm = "second_norm"

    def __init__(
        self, in_channels: int, width: int, temporal_kernel: int, spatial_stride: int, padding: Padding
    ) -> None:
        super().__init__(in_channels, width, spatial_stride, padding)
        stride = (1, spatial_stride, spatial_stride)
        self.first_conv = Conv3d(in_channels, width, (temporal_kernel, 3, 3), stride, padding)
        self.first_norm = norm3d(width)
        self.second_conv = Conv3d(width, width, (1, 3, 3), padding=padding)
        self.second_norm = norm3d(width)

    def _branch(self, x: Tensor) -> Tensor:
        x = self.first_norm(self.first_conv(x)).relu_()
        out: Tensor = self.second_norm(self.second_conv(x))
        return out


BLOCKS: dict[str, type[BottleneckBlock] | type[BasicBlock]] = {"bottleneck": BottleneckBlock, "basic": BasicBlock}


def residual_stage(
    block: Literal["bottleneck", "basic"],
    in_channels: int,
    width: int,
    temporal_kernels: Sequence[int],
    spatial_stride: int,
    padding: Padding,
    *,
    non_local: Sequence[int] = (),
    affinity: Affinity = "softmax",
    zero_init_residual: bool = False,
) -> nn.Sequential:
    """Residual blocks one after the other, the first with the stride.

    Args:
        block: "bottleneck" or "basic".
        in_channels: Channels of the input.
        width: As the block has it.
        temporal_kernels: One for each block.
        spatial_stride: Of the first block.
        padding: As in `Conv3d`.
        non_local: Positions of the blocks that a non-local block follows, counted from 0.
        affinity: Of the non-local blocks.
        zero_init_residual: Start each block as its shortcut: the gain of its last norm is 0.
    """
    stage = nn.Sequential()
    channels = in_channels
    for position, temporal_kernel in enumerate(temporal_kernels):
        made = BLOCKS[block](channels, width, temporal_kernel, spatial_stride if position == 0 else 1, padding)
        if zero_init_residual:
            nn.init.zeros_(getattr(made, made.last_norm).weight)
        stage.append(made)
        channels = width * made.expansion
        if position in non_local:
            stage.append(NonLocalBlock(channels, affinity=affinity))
    return stage


class Backbone(nn.Module, ABC):
    """A network from clips to features that keeps time.

    Attributes:
        num_features: D.
        checkpoint_stages: Keep only the input of each stage for the backward pass and compute the rest again.
    """

    num_features: int
    checkpoint_stages: bool

    @abstractmethod
    def num_time_steps(self, num_frames: int) -> int:
        """How many time steps T' a clip of ``num_frames`` frames leaves.

        Raises:
            ValueError: There is no frame.
        """

    @abstractmethod
    def feature_maps(self, x: Float[Tensor, "b c t h w"]) -> dict[str, Float[Tensor, "b _ t2 _ _"]]:
        """The output of every stage.

        Args:
            x: Clips (B, C, T, H, W), values in [0, 1].

        Returns:
            "2", "3", "4", "5" -> (B, C', T', H', W'), the names that the reference gives its endpoints. "5" has D
            channels and the time steps of :meth:`forward`.
        """

    @abstractmethod
    def parts(self) -> Mapping[str, nn.Module]:
        """Where the network's costs are, in the order of the forward pass: each part ends with the module named."""

    def forward(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b t2 d"]:
        """Features of each time step: the last stage, averaged over space only.

        Args:
            x: Clips (B, C, T, H, W), values in [0, 1].

        Returns:
            (B, T', D) with T' = ``num_time_steps(T)`` and D = ``num_features``.
        """
        return reduce(self.feature_maps(x)["5"], "b d t h w -> b t d", "mean")

    def _run_stage(self, stage: nn.Module, x: Tensor) -> Tensor:
        if self.checkpoint_stages and self.training and torch.is_grad_enabled():
            out: Tensor = recomputed(stage, stage, x)
            return out
        out = stage(x)
        return out


def divided(num_frames: int, stride: int) -> int:
    """Time steps that a temporal stride leaves of ``num_frames`` frames, the last one perhaps of fewer frames.

    Raises:
        ValueError: There is no frame.
    """
    if num_frames < 1:
        raise ValueError(f"a clip needs at least one frame; got {num_frames}")
    return -(-num_frames // stride)


def check_integers(name: str, values: Sequence[int], length: int, *, odd: bool = False, most: int = 2**20) -> None:
    """Refuse a setting that is not ``length`` whole numbers from 1 on, in a message that names it."""
    fits = [isinstance(v, int) and 1 <= v <= most and (v % 2 == 1 or not odd) for v in values]
    if len(values) != length or not all(fits):
        kind = "odd number" if odd else "whole number"
        what = f"a {kind}" if length == 1 else f"{length} {kind}s"
        found = values[0] if length == 1 else tuple(values)
        raise ValueError(f"{name} must be {what} from 1 to {most:,}; got {found}")
