"""R3D: the 3-D residual network of the CVRL family, which keeps time to its end; and Slow and I3D, its relatives.

One class, several plans: `r3d50` is the backbone of the paper (TeG section 4; CVRL's R3D-50), `r3d18` and `r3d_tiny`
are smaller ones of the same plan. `slow_r50` keeps every frame as a time step; `i3d_r50` has temporal kernels in more
places and halves time after its first stage. Space is reduced stage by stage.

Axes: B videos, C channels, T time, H W space, D feature size; T' = time steps that are left.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from timegrain.models.blocks import (
    BLOCKS,
    NORM_EPS,
    NORM_MOMENTUM,
    Backbone,
    BasicBlock,
    BottleneckBlock,
    Conv3d,
    Padding,
    SpatialMaxPool,
    check_integers,
    divided,
    norm3d,
    residual_stage,
    same_padding,
)
from timegrain.models.non_local import Affinity

__all__ = [
    "NORM_EPS",
    "NORM_MOMENTUM",
    "BasicBlock",
    "BottleneckBlock",
    "Conv3d",
    "Padding",
    "ResNet3D",
    "SpatialMaxPool",
    "i3d_r50",
    "i3d_r50_nl",
    "r3d18",
    "r3d50",
    "r3d_tiny",
    "same_padding",
    "slow_r50",
    "slow_r50_nl",
]

# Blocks that a non-local block follows in the five-block networks: every second one of stages 3 and 4.
FIVE_NON_LOCAL = ((), (1, 3), (1, 3, 5), ())


class ResNet3D(Backbone):
    """A 3-D residual network with bottleneck or basic blocks, and time kept but for the stem's stride and one pool.

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
        temporal_kernels: Temporal kernel of the first convolution of the blocks, odd; for each stage one, or a list
            that its blocks take in turn.
        time_pool: Whether a max-pool halves time after the first stage, as I3D does.
        non_local: For each stage the positions of the blocks, from 0, that a non-local block follows.
        affinity: Of the non-local blocks: "softmax" or "dot_product".
        zero_init_residual: Start each block as its shortcut, as Slow, I3D and SlowFast are trained from scratch.
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
        temporal_kernels: Sequence[int | Sequence[int]] = (1, 1, 3, 3),
        time_pool: bool = False,
        non_local: Sequence[Sequence[int]] = ((), (), (), ()),
        affinity: Affinity = "softmax",
        zero_init_residual: bool = False,
        padding: Padding = "same",
        checkpoint_stages: bool = False,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        if block not in BLOCKS:
            raise ValueError(f"block must be one of {', '.join(BLOCKS)}; got {block!r}")
        if padding not in ("same", "symmetric"):
            raise ValueError(f"padding must be 'same' or 'symmetric'; got {padding!r}")
        check_integers("blocks", blocks, 4, most=1000)
        kernels = [[kernel] if isinstance(kernel, int) else list(kernel) for kernel in temporal_kernels]
        check_integers("temporal_kernels", [k for stage in kernels for k in stage], sum(map(len, kernels)), odd=True)
        if len(kernels) != 4 or not all(kernels):
            raise ValueError(f"temporal_kernels must be 4 odd numbers or lists of them; got {tuple(temporal_kernels)}")
        if len(non_local) != 4 or any(
            p not in range(n) for n, places in zip(blocks, non_local, strict=False) for p in places
        ):
            raise ValueError(f"non_local must name blocks that there are, for 4 stages; got {tuple(non_local)}")
        check_integers("stem_kernel", stem_kernel, 3, odd=True)
        for name, value in (
            ("width", width),
            ("stem_width", stem_width),
            ("stem_temporal_stride", stem_temporal_stride),
            ("stem_spatial_stride", stem_spatial_stride),
            ("in_channels", in_channels),
        ):
            check_integers(name, [value], 1)
        self.stem_temporal_stride = stem_temporal_stride
        self.checkpoint_stages = checkpoint_stages

        kernel_t, kernel_h, kernel_w = stem_kernel
        strides = (stem_temporal_stride, stem_spatial_stride, stem_spatial_stride)
        self.stem_conv = Conv3d(in_channels, stem_width, (kernel_t, kernel_h, kernel_w), strides, padding)
        self.stem_norm = norm3d(stem_width)
        self.stem_pool = SpatialMaxPool(padding) if stem_pool else nn.Identity()

        self.time_pool = nn.MaxPool3d((2, 1, 1), ceil_mode=True) if time_pool else nn.Identity()
        channels = stem_width
        self.stages = nn.ModuleDict()
        for index, num_blocks in enumerate(blocks):
            stage = residual_stage(
                block,
                channels,
                width * 2**index,
                [kernels[index][position % len(kernels[index])] for position in range(num_blocks)],
                2 if index > 0 else 1,
                padding,
                non_local=non_local[index],
                affinity=affinity,
                zero_init_residual=zero_init_residual,
            )
            channels = width * 2**index * BLOCKS[block].expansion
            self.stages[str(index + 2)] = stage
        self.num_features = channels

    def num_time_steps(self, num_frames: int) -> int:
        """How many time steps T' a clip leaves: its frames, divided by the stem's temporal stride and the pool's."""
        steps = divided(num_frames, self.stem_temporal_stride)
        return steps if isinstance(self.time_pool, nn.Identity) else divided(steps, 2)

    def parts(self) -> dict[str, nn.Module]:
        """Stem, pool (if there is one) and stages."""
        pool = {} if isinstance(self.stem_pool, nn.Identity) else {"pool": self.stem_pool}
        return {"stem": self.stem_norm, **pool, **{f"stage {name}": stage for name, stage in self.stages.items()}}

    def _stem(self, x: Tensor) -> Tensor:
        out: Tensor = self.stem_pool(F.relu(self.stem_norm(self.stem_conv(x))))
        return out

    def feature_maps(self, x: Float[Tensor, "b c t h w"]) -> dict[str, Float[Tensor, "b _ t2 _ _"]]:
        """The output of every stage, as `Backbone.feature_maps` says."""
        x = self._stem(x)
        maps = {}
        for name, stage in self.stages.items():
            x = self._run_stage(stage, x)
            maps[name] = x
            if name == "2":
                x = self.time_pool(x)
        return maps


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


def slow_r50(**options: Any) -> ResNet3D:
    """SlowFast's slow pathway alone, the backbone of the rho family: every frame is a time step, 31,634,496 parameters.

    Meant for 8 frames with stride 8: 41.74 G multiply-adds at 224 pixels. Options as in `ResNet3D`.
    """
    defaults: dict[str, Any] = {
        "stem_kernel": (1, 7, 7),
        "stem_temporal_stride": 1,
        "padding": "symmetric",
        "zero_init_residual": True,
    }
    return ResNet3D(**(defaults | options))


def slow_r50_nl(**options: Any) -> ResNet3D:
    """`slow_r50` with five non-local blocks."""
    return slow_r50(**({"non_local": FIVE_NON_LOCAL} | options))


def i3d_r50(**options: Any) -> ResNet3D:
    """Inflated ResNet-50 (Carreira and Zisserman, CVPR 2017, in Wang et al.'s plan); half the frames are time steps.

    Meant for 8 frames with stride 8. Options as in `ResNet3D`.
    """
    defaults: dict[str, Any] = {
        "stem_temporal_stride": 1,
        "temporal_kernels": (3, (3, 1), (3, 1), (1, 3)),
        "time_pool": True,
        "padding": "symmetric",
        "zero_init_residual": True,
    }
    return ResNet3D(**(defaults | options))


def i3d_r50_nl(**options: Any) -> ResNet3D:
    """`i3d_r50` with five non-local blocks."""
    return i3d_r50(**({"non_local": FIVE_NON_LOCAL} | options))
