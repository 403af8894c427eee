"""SlowFast: a slow pathway of few frames and many channels, a fast one of many frames and few channels.

Feichtenhofer et al., ICCV 2019. Both pathways keep time; the fast one's features are averaged to the slow one's time
steps, so that this backbone gives (B, T', D) like the others.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from timegrain.models.blocks import Backbone, Conv3d, SpatialMaxPool, check_integers, divided, norm3d, residual_stage
from timegrain.models.non_local import Affinity
from timegrain.models.resnet3d import FIVE_NON_LOCAL

_STAGES = ("2", "3", "4", "5")


class _Stem(nn.Module):
    """[k,7,7] with spatial stride 2 - norm - ReLU - max-pool 1x3x3 with spatial stride 2."""

    def __init__(self, in_channels: int, width: int, temporal_kernel: int) -> None:
        super().__init__()
        self.conv = Conv3d(in_channels, width, (temporal_kernel, 7, 7), (1, 2, 2), "symmetric")
        self.norm = norm3d(width)
        self.pool = SpatialMaxPool("symmetric")

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.pool(F.relu(self.norm(self.conv(x))))
        return out


class _Fusion(nn.Module):
    """Fast features at the slow pathway's times: [k,1,1] with temporal stride alpha to twice the channels."""

    def __init__(self, channels: int, kernel: int, alpha: int) -> None:
        super().__init__()
        self.conv = Conv3d(channels, 2 * channels, (kernel, 1, 1), (alpha, 1, 1), "symmetric")
        self.norm = norm3d(2 * channels)

    def forward(self, slow: Tensor, fast: Tensor) -> Tensor:
        return torch.cat([slow, F.relu(self.norm(self.conv(fast)))], 1)


class SlowFast(Backbone):
    """SlowFast with bottleneck blocks.

    The clip's frames are the fast pathway's; the slow one sees every ``alpha``-th of them, from the first on. Temporal
    kernels: slow 1, 1, 1, 3, 3 from the stem to stage 5, fast 5, 3, 3, 3, 3.

    Args:
        blocks: Number of residual blocks in each of the four stages.
        alpha: Fast frames per slow frame.
        beta: Slow channels per fast channel.
        fusion_kernel: Temporal kernel of the fusions, odd.
        width: Inner channels of the slow pathway's first stage, and its stem's.
        non_local: For each stage the positions of the slow pathway's blocks that a non-local block follows.
        affinity: Of the non-local blocks: "softmax" or "dot_product".
        zero_init_residual: Start each block as its shortcut, as the network is trained from scratch.
        checkpoint_stages: Keep only the input of each stage for the backward pass and compute the rest again.
        in_channels: Channels of the video.

    Raises:
        ValueError: A setting is not possible; the message names it.
    """

    def __init__(
        self,
        *,
        blocks: tuple[int, int, int, int] | list[int] = (3, 4, 6, 3),
        alpha: int = 4,
        beta: int = 8,
        fusion_kernel: int = 7,
        width: int = 64,
        non_local: Any = ((), (), (), ()),
        affinity: Affinity = "softmax",
        zero_init_residual: bool = True,
        checkpoint_stages: bool = False,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        check_integers("blocks", blocks, 4, most=1000)
        for name, value in (("alpha", alpha), ("beta", beta), ("width", width), ("in_channels", in_channels)):
            check_integers(name, [value], 1)
        check_integers("fusion_kernel", [fusion_kernel], 1, odd=True)
        if width % beta:
            raise ValueError(f"width must be a multiple of beta; got {width} and {beta}")
        if len(non_local) != 4 or any(
            p not in range(n) for n, places in zip(blocks, non_local, strict=False) for p in places
        ):
            raise ValueError(f"non_local must name blocks that there are, for 4 stages; got {tuple(non_local)}")
        self.alpha, self.checkpoint_stages = alpha, checkpoint_stages
        slow_channels, fast_channels = width, width // beta
        self.slow_stem = _Stem(in_channels, slow_channels, 1)
        self.fast_stem = _Stem(in_channels, fast_channels, 5)
        self.slow_stages, self.fast_stages, self.fusions = nn.ModuleDict(), nn.ModuleDict(), nn.ModuleDict()
        for index, name in enumerate(_STAGES):
            stride = 2 if index > 0 else 1
            self.fusions[name] = _Fusion(fast_channels, fusion_kernel, alpha)
            self.slow_stages[name] = residual_stage(
                "bottleneck",
                slow_channels + 2 * fast_channels,
                width * 2**index,
                [1 if index < 2 else 3] * blocks[index],
                stride,
                "symmetric",
                non_local=non_local[index],
                affinity=affinity,
                zero_init_residual=zero_init_residual,
            )
            self.fast_stages[name] = residual_stage(
                "bottleneck",
                fast_channels,
                width // beta * 2**index,
                [3] * blocks[index],
                stride,
                "symmetric",
                zero_init_residual=zero_init_residual,
            )
            slow_channels, fast_channels = 4 * width * 2**index, 4 * (width // beta) * 2**index
        self.num_features = slow_channels + fast_channels

    def num_time_steps(self, num_frames: int) -> int:
        """How many time steps T' a clip leaves: those of the slow pathway, ceil(num_frames / alpha)."""
        return divided(num_frames, self.alpha)

    def parts(self) -> dict[str, nn.Module]:
        """Both stems; then of each stage the fusion before it, the slow and the fast pathway."""
        parts: dict[str, nn.Module] = {"slow stem": self.slow_stem, "fast stem": self.fast_stem}
        for name in _STAGES:
            parts[f"fusion {name}"] = self.fusions[name]
            parts[f"slow {name}"], parts[f"fast {name}"] = self.slow_stages[name], self.fast_stages[name]
        return parts

    def feature_maps(self, x: Float[Tensor, "b c t h w"]) -> dict[str, Float[Tensor, "b _ t2 _ _"]]:
        """The output of every stage: the slow pathway's channels, then the fast one's, averaged to its time steps."""
        slow, fast = self.slow_stem(x[:, :, :: self.alpha]), self.fast_stem(x)
        maps = {}
        for name in _STAGES:
            slow = self._run_stage(self.slow_stages[name], self.fusions[name](slow, fast))
            fast = self._run_stage(self.fast_stages[name], fast)
            averaged = F.avg_pool3d(fast, (min(self.alpha, fast.shape[2]), 1, 1), ceil_mode=True)
            maps[name] = torch.cat([slow, averaged], 1)
        return maps


def slowfast_r50(**options: Any) -> SlowFast:
    """SlowFast 8x8 with ResNet-50: 32 frames with stride 2, of which every fourth is the slow pathway's; 2304 features.

    Options as in `SlowFast`.
    """
    return SlowFast(**options)


def slowfast_r50_nl(**options: Any) -> SlowFast:
    """`slowfast_r50` with five non-local blocks in the slow pathway and fusions of kernel 5, as published."""
    defaults: dict[str, Any] = {"non_local": FIVE_NON_LOCAL, "affinity": "dot_product", "fusion_kernel": 5}
    return SlowFast(**(defaults | options))
