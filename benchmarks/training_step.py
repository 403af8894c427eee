"""One TeG pre-training step of R3D-50 on the CPU, beside the same step with pytorchvideo's network.

    python benchmarks/training_step.py [ROUNDS]

A step is: both clips through the backbone, both heads, both losses (α = 0.9), gradients, SGD with momentum. Clips of 8
and 16 frames at 112x112, two videos: an eighth of the paper's frames and pixels, so that it fits a CPU. pytorchvideo's
network is built to the same plan (stem 5x7x7 with strides 2, temporal kernels 1, 1, 3, 3, time kept; 31.67 M
parameters) and has the same heads, loss and optimiser. Eager, float32, one thread.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable

import torch
from einops import reduce
from torch import Tensor, nn

from measure import Row, measure, not_measured, row
from timegrain.losses import levels_for_alpha
from timegrain.models.heads import ProjectionHead
from timegrain.models.resnet3d import r3d50
from timegrain.objectives.teg import TeG
from timegrain.optim import parameter_groups
from timegrain.tasks.config import RunConfig
from timegrain.tasks.switches import set_layout

VIDEOS, LONG, SHORT, SIZE = 2, 16, 8, 112
WORK = f"R3D-50 TeG step, {VIDEOS} videos, {SHORT}+{LONG} frames at {SIZE}x{SIZE}"
PEER = "pytorchvideo's network, eager"


class PyTorchVideoBackbone(nn.Module):
    """pytorchvideo's ResNet with R3D-50's plan and without its classifier: (B, C, T, H, W) -> (B, T', D)."""

    def __init__(self) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from pytorchvideo.models.resnet import create_resnet
        self.net = create_resnet(stem_conv_kernel_size=(5, 7, 7), stem_conv_stride=(2, 2, 2), head=None, dropout_rate=0)
        self.num_features = 2048

    def forward(self, x: Tensor) -> Tensor:
        """Features of each time step."""
        return reduce(self.net(x), "b d t h w -> b t d", "mean")


class _Encoder(nn.Module):
    """A backbone with the two heads, in the form that the objective asks for."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.heads = nn.ModuleDict({name: ProjectionHead(2048) for name in ("fine", "persistent")})

    def forward(self, clips: Tensor) -> Tensor:
        """Features (B, T', D) of clips (B, C, T, H, W)."""
        return self.backbone(clips)

    def embed(self, features: Tensor, head: str) -> Tensor:
        """Projections of features by one head."""
        return self.heads[head](features)


def step_of(backbone: nn.Module, *, fused: bool | None = None, foreach: bool | None = None) -> Callable[[int], float]:
    """One step of training as a function."""
    torch.manual_seed(0)
    objective: nn.Module = TeG(_Encoder(backbone), levels_for_alpha(0.9))  # type: ignore[arg-type]
    set_layout(objective, RunConfig(), torch.device("cpu"))  # as `timegrain pretrain` does; nothing to do on a peer
    optimizer = torch.optim.SGD(parameter_groups(objective, 1e-6), lr=0.01, momentum=0.9, fused=fused, foreach=foreach)
    long = torch.rand(VIDEOS, 3, LONG, SIZE, SIZE)
    short = torch.rand(VIDEOS, 3, SHORT, SIZE, SIZE)
    long_indices = 4 * torch.arange(LONG).expand(VIDEOS, -1)
    short_indices = 10 + 2 * torch.arange(SHORT).expand(VIDEOS, -1)

    def step(_: int) -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = objective((long, short), (long_indices, short_indices))["loss"]
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step


def run(rounds: int = 4) -> list[Row]:
    """Rows for the results table."""
    torch.set_num_threads(1)
    steps = {
        "TimeGrain, fused optimiser": step_of(r3d50(), fused=True),
        "TimeGrain, optimiser not fused": step_of(r3d50(), fused=False, foreach=False),
        "TimeGrain, activations checkpointed": step_of(r3d50(checkpoint_stages=True), fused=True),
    }
    ours = next(iter(steps))
    try:
        peer = PyTorchVideoBackbone()
    except Exception as error:  # whatever keeps it from loading is the reason in the table
        seconds = measure(steps, rounds)
        rows = [row(WORK, seconds, name, ours) for name in steps if name != ours]
        return [not_measured(WORK, ours, f"pytorchvideo: {error}", 0.80, True), *rows]
    found, expected = (sum(p.numel() for p in net.parameters()) for net in (peer, r3d50()))
    assert found == expected, f"pytorchvideo's network has {found:,} parameters, R3D-50 {expected:,}"
    steps[PEER] = step_of(peer, foreach=False)
    seconds = measure(steps, rounds)
    return [row(WORK, seconds, name, PEER, 0.80 if name == ours else None) for name in steps if name != PEER]


if __name__ == "__main__":
    for line in run(int(sys.argv[1]) if len(sys.argv) > 1 else 4):
        print(line)
