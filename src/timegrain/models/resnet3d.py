"""R3D: the 3-D residual network of the CVRL family, which keeps time to its end.

One class, three sizes: `r3d50` is the backbone of the paper (TeG section 4; CVRL's R3D-50), `r3d18` and `r3d_tiny`
are smaller ones of the same plan. Time is halved at most once, by the stem; space is reduced stage by stage.

Axes: B videos, C channels, T time, H W space, D feature size; T' = time steps that are left.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import reduce
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

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
        if not self.depends_on_size:
            return super().forward(input)
        sides = [same_padding(n, k, s) for n, k, s in zip(input.shape[2:], self.kernel_size, self.stride, strict=True)]
        even = [before if before == after else 0 for before, after in sides]
        if any(before != after for before, after in sides):
            uneven = [(0, 0) if before == after else (before, after) for before, after in sides]
            input = F.pad(input, [amount for pair in reversed(uneven) for amount in pair])
        return F.conv3d(input, self.weight, None, self.stride, even)


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


def _norm(channels: int) -> nn.BatchNorm3d:
    return nn.BatchNorm3d(channels, eps=NORM_EPS, momentum=NORM_MOMENTUM)


class _Block(nn.Module, ABC):
    """What both residual blocks share: relu(branch(x) + shortcut(x))."""

    expansion: int

    def __init__(self, in_channels: int, width: int, spatial_stride: int, padding: Padding) -> None:
        super().__init__()
        self.has_shortcut = in_channels != width * self.expansion or spatial_stride != 1
        if self.has_shortcut:
            stride = (1, spatial_stride, spatial_stride)
            self.shortcut_conv = Conv3d(in_channels, width * self.expansion, (1, 1, 1), stride, padding)
            self.shortcut_norm = _norm(width * self.expansion)

    @abstractmethod
    def _branch(self, x: Tensor) -> Tensor: ...

    def forward(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b d t h2 w2"]:
        """(B, C, T, H, W) -> (B, D, T, H', W')."""
        shortcut = self.shortcut_norm(self.shortcut_conv(x)) if self.has_shortcut else x
        return F.relu(self._branch(x) + shortcut)


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

    def __init__(
        self, in_channels: int, width: int, temporal_kernel: int, spatial_stride: int, padding: Padding
    ) -> None:
        super().__init__(in_channels, width, spatial_stride, padding)
        stride = (1, spatial_stride, spatial_stride)
        self.temporal_conv = Conv3d(in_channels, width, (temporal_kernel, 1, 1), padding=padding)
        self.temporal_norm = _norm(width)
        self.spatial_conv = Conv3d(width, width, (1, 3, 3), stride, padding)
        self.spatial_norm = _norm(width)
        self.expand_conv = Conv3d(width, width * self.expansion, (1, 1, 1), padding=padding)
        self.expand_norm = _norm(width * self.expansion)

    def _branch(self, x: Tensor) -> Tensor:
        x = F.relu(self.temporal_norm(self.temporal_conv(x)))
        x = F.relu(self.spatial_norm(self.spatial_conv(x)))
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

    def __init__(
        self, in_channels: int, width: int, temporal_kernel: int, spatial_stride: int, padding: Padding
    ) -> None:
        super().__init__(in_channels, width, spatial_stride, padding)
        stride = (1, spatial_stride, spatial_stride)
        self.first_conv = Conv3d(in_channels, width, (temporal_kernel, 3, 3), stride, padding)
        self.first_norm = _norm(width)
        self.second_conv = Conv3d(width, width, (1, 3, 3), padding=padding)
        self.second_norm = _norm(width)

    def _branch(self, x: Tensor) -> Tensor:
        x = F.relu(self.first_norm(self.first_conv(x)))
        out: Tensor = self.second_norm(self.second_conv(x))
        return out


_BLOCKS: dict[str, type[BottleneckBlock] | type[BasicBlock]] = {"bottleneck": BottleneckBlock, "basic": BasicBlock}


@contextmanager
def _running_statistics_kept(module: nn.Module) -> Iterator[None]:
    """Inside, batch norms in training mode leave their running statistics as they are."""
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm)]
    before = [(m.momentum, None if m.num_batches_tracked is None else m.num_batches_tracked.clone()) for m in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum = momentum
            if norm.num_batches_tracked is not None and count is not None:
                norm.num_batches_tracked.copy_(count)


def _checkpoint_contexts(stage: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    # The backward pass runs the stage a second time; its batch has been counted already.
    return nullcontext(), _running_statistics_kept(stage)


def _checkpointed(stage: nn.Module, x: Tensor) -> Tensor:
    if torch.compiler.is_compiling():  # the compiler recomputes values, not the update of the running statistics
        out: Tensor = checkpoint(stage, x, use_reentrant=False, preserve_rng_state=False)
        return out
    contexts = partial(_checkpoint_contexts, stage)
    out = checkpoint(stage, x, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)
    return out


class ResNet3D(nn.Module):
    """A 3-D residual network whose only temporal stride is the stem's.

    Layout of R3D-50 (the default): stem 5x7x7 stride 2,2,2, 64 channels - norm - ReLU - max-pool 1x3x3 stride 1,2,2 -
    stages "2" to "5" of 3, 4, 6, 3 bottlenecks with temporal kernels 1, 1, 3, 3 and spatial strides 1, 2, 2, 2. No
    bias in a convolution; every norm's gain starts at 1, the last of a block too. Source: TensorFlow Model Garden,
    official/projects/video_ssl, R3D-50 as its CVRL pre-training configuration sets it.

    Args:
        blocks: Number of residual blocks in each of the four stages.
        block: "bottleneck" or "basic".
        width: Inner channels of the first stage; each next stage has twice as many.
        stem_width: Channels of the stem.
        stem_kernel: (T, H, W), odd.
        stem_temporal_stride: 2 leaves half the frames as time steps, 1 keeps them all.
        stem_spatial_stride: Stride of the stem on H and W.
        stem_pool: Whether the 1x3x3 max-pool follows the stem.
        temporal_kernels: Temporal kernel of the first convolution of the blocks, one for each stage, odd.
        padding: "same" pads as TensorFlow does (needed by weights from there), "symmetric" as PyTorch users do. They
            are different functions at even sizes.
        checkpoint_stages: Keep only the input of each stage for the backward pass and compute the rest again: less
            memory for about a third more time.
        in_channels: Channels of the video.

    Raises:
        ValueError: A setting is not possible; the message names it.
    """

    def __init__(
        self,
        *,
        blocks: Sequence[int] = (3, 4, 6, 3),
        block: Literal["bottleneck", "basic"] = "bottleneck",
        width: int = 64,
        stem_width: int = 64,
        stem_kernel: Sequence[int] = (5, 7, 7),
        stem_temporal_stride: int = 2,
        stem_spatial_stride: int = 2,
        stem_pool: bool = True,
        temporal_kernels: Sequence[int] = (1, 1, 3, 3),
        padding: Padding = "same",
        checkpoint_stages: bool = False,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        if block not in _BLOCKS:
            raise ValueError(f"block must be one of {', '.join(_BLOCKS)}; got {block!r}")
        if padding not in ("same", "symmetric"):
            raise ValueError(f"padding must be 'same' or 'symmetric'; got {padding!r}")
        _check_integers("blocks", blocks, 4, most=1000)
        _check_integers("temporal_kernels", temporal_kernels, 4, odd=True)
        _check_integers("stem_kernel", stem_kernel, 3, odd=True)
        for name, value in (
            ("width", width),
            ("stem_width", stem_width),
            ("stem_temporal_stride", stem_temporal_stride),
            ("stem_spatial_stride", stem_spatial_stride),
            ("in_channels", in_channels),
        ):
            _check_integers(name, [value], 1)
        self.stem_temporal_stride = stem_temporal_stride
        self.checkpoint_stages = checkpoint_stages

        kernel_t, kernel_h, kernel_w = stem_kernel
        strides = (stem_temporal_stride, stem_spatial_stride, stem_spatial_stride)
        self.stem_conv = Conv3d(in_channels, stem_width, (kernel_t, kernel_h, kernel_w), strides, padding)
        self.stem_norm = _norm(stem_width)
        self.stem_pool = SpatialMaxPool(padding) if stem_pool else nn.Identity()

        make_block = _BLOCKS[block]
        channels = stem_width
        self.stages = nn.ModuleDict()
        for index, (num_blocks, temporal_kernel) in enumerate(zip(blocks, temporal_kernels, strict=True)):
            stage_width = width * 2**index
            stage = nn.Sequential()
            for position in range(num_blocks):
                spatial_stride = 2 if index > 0 and position == 0 else 1
                stage.append(make_block(channels, stage_width, temporal_kernel, spatial_stride, padding))
                channels = stage_width * make_block.expansion
            self.stages[str(index + 2)] = stage
        self.num_features = channels

    def num_time_steps(self, num_frames: int) -> int:
        """How many time steps T' a clip of ``num_frames`` frames leaves: ceil(num_frames / stem_temporal_stride).

        Raises:
            ValueError: There is no frame.
        """
        if num_frames < 1:
            raise ValueError(f"a clip needs at least one frame; got {num_frames}")
        return -(-num_frames // self.stem_temporal_stride)

    def _stem(self, x: Tensor) -> Tensor:
        out: Tensor = self.stem_pool(F.relu(self.stem_norm(self.stem_conv(x))))
        return out

    def _run_stage(self, stage: nn.Module, x: Tensor) -> Tensor:
        if self.checkpoint_stages and self.training and torch.is_grad_enabled():
            return _checkpointed(stage, x)
        out: Tensor = stage(x)
        return out

    def feature_maps(self, x: Float[Tensor, "b c t h w"]) -> dict[str, Float[Tensor, "b _ t2 _ _"]]:
        """The output of every stage.

        Args:
            x: Clips (B, C, T, H, W), values in [0, 1].

        Returns:
            "2", "3", "4", "5" -> (B, C', T', H', W'), the names that the reference gives its endpoints.
        """
        x = self._stem(x)
        maps = {}
        for name, stage in self.stages.items():
            x = self._run_stage(stage, x)
            maps[name] = x
        return maps

    def forward(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b t2 d"]:
        """Features of each time step: the last stage, averaged over space only.

        Args:
            x: Clips (B, C, T, H, W), values in [0, 1].

        Returns:
            (B, T', D) with T' = ``num_time_steps(T)`` and D = ``num_features``.
        """
        x = self._stem(x)
        for stage in self.stages.values():
            x = self._run_stage(stage, x)
        return reduce(x, "b d t h w -> b t d", "mean")


def _check_integers(name: str, values: Sequence[int], length: int, *, odd: bool = False, most: int = 2**20) -> None:
    fits = [isinstance(v, int) and 1 <= v <= most and (v % 2 == 1 or not odd) for v in values]
    if len(values) != length or not all(fits):
        kind = "odd number" if odd else "whole number"
        what = f"a {kind}" if length == 1 else f"{length} {kind}s"
        found = values[0] if length == 1 else tuple(values)
        raise ValueError(f"{name} must be {what} from 1 to {most:,}; got {found}")


def r3d50(**options: Any) -> ResNet3D:
    """The paper's backbone: 31,672,128 parameters, 2048 features; options as in `ResNet3D`."""
    return ResNet3D(**options)


def r3d18(**options: Any) -> ResNet3D:
    """Two basic blocks a stage, 512 features; options as in `ResNet3D`, symmetric padding by default."""
    defaults: dict[str, Any] = {"blocks": (2, 2, 2, 2), "block": "basic", "padding": "symmetric"}
    return ResNet3D(**(defaults | options))


def r3d_tiny(**options: Any) -> ResNet3D:
    """A small one for a CPU and videos of 24 to 112 pixels; half the frames are time steps, as in R3D-50.

    Options as in `ResNet3D`; the defaults here are one basic block a stage, widths 12 to 96 (so 96 features).
    """
    defaults: dict[str, Any] = {
        "blocks": (1, 1, 1, 1),
        "block": "basic",
        "width": 12,
        "stem_width": 12,
        "stem_kernel": (3, 3, 3),
        "stem_pool": True,
        "padding": "symmetric",
    }
    return ResNet3D(**(defaults | options))
