"""One TeG pre-training step of R3D-50 on the CPU, beside the same step with pytorchvideo's network.

    python benchmarks/training_step.py [ROUNDS]
    python benchmarks/training_step.py ROUNDS --compiled     # `--run.compile true` beside eager, nothing else

A step is: both clips through the backbone, both heads, both losses (α = 0.9), gradients, SGD with momentum. Clips of 8
and 16 frames at 112x112, two videos: an eighth of the paper's frames and pixels, so that it fits a CPU. pytorchvideo's
network is built to the same plan (stem 5x7x7 with strides 2, temporal kernels 1, 1, 3, 3, time kept; 31.67 M
parameters) and has the same heads, loss and optimiser. Eager, float32, one thread.

Each method has a process of its own, because ours begins as `timegrain pretrain` does: kernels are laid out for the CPU,
and glibc keeps the memory that a step gives back (:mod:`timegrain.tasks.switches`). The peer's has neither, as its users
have it; MALLOC_TRIM_THRESHOLD_ and MALLOC_MMAP_MAX_ in the environment would give it the second, too. All of them hold
their memory at once: 9 GB.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Sequence

import torch
from einops import reduce
from torch import Tensor, nn

from measure import Row, cpu_seconds, measure_apart, not_measured, row
from timegrain.losses import levels_for_alpha
from timegrain.models.heads import ProjectionHead
from timegrain.models.resnet3d import r3d50
from timegrain.objectives.teg import TeG
from timegrain.optim import parameter_groups
from timegrain.tasks.config import RunConfig
from timegrain.tasks.switches import compile_backbones, keep_freed_memory, set_layout

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

    def embed_each(self, features: Sequence[Tensor], head: str) -> list[Tensor]:
        """Projections of both clips' features by one head."""
        return self.heads[head].project_each(features)  # type: ignore[operator]


def step_of(
    backbone: nn.Module,
    *,
    is_ours: bool = True,
    fused: bool | None = None,
    foreach: bool | None = None,
    run: RunConfig | None = None,
) -> Callable[[int], float]:
    """One step of training as a function; ours with the switches of ``run``."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    objective: nn.Module = TeG(_Encoder(backbone), levels_for_alpha(0.9))  # type: ignore[arg-type]
    run = run or RunConfig()
    if is_ours:
        set_layout(objective, run, torch.device("cpu"))
        keep_freed_memory(torch.device("cpu"))
    if run.compile:
        compile_backbones(objective)
    optimizer = torch.optim.SGD(parameter_groups(objective, 1e-6), lr=0.01, momentum=0.9, fused=fused, foreach=foreach)
    long, short = torch.rand(VIDEOS, 3, LONG, SIZE, SIZE), torch.rand(VIDEOS, 3, SHORT, SIZE, SIZE)
    long_indices = 4 * torch.arange(LONG).expand(VIDEOS, -1)
    short_indices = 10 + 2 * torch.arange(SHORT).expand(VIDEOS, -1)

    def step(_: int) -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = objective((long, short), (long_indices, short_indices))["loss"]
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step


def fused() -> Callable[[int], float]:
    """A step as `timegrain pretrain` makes it."""
    return step_of(r3d50(), fused=True)


def not_fused() -> Callable[[int], float]:
    """The same with an optimiser that updates weight by weight."""
    return step_of(r3d50(), fused=False, foreach=False)


def checkpointed() -> Callable[[int], float]:
    """The same with `--run.checkpoint_activations true`."""
    return step_of(r3d50(checkpoint_stages=True), fused=True)


def compiled(channels_last: bool = False) -> Callable[[int], float]:
    """The same with `--run.compile true`; says what the compiler takes beside a step."""
    step = step_of(r3d50(), fused=True, run=RunConfig(compile=True, channels_last=channels_last))
    before, started = cpu_seconds(), time.monotonic()
    step(0)
    print(f"first step: {cpu_seconds() - before:.0f} s of CPU time, {time.monotonic() - started:.0f} s", flush=True)
    return step


def compiled_channels_last() -> Callable[[int], float]:
    """The same with `--run.channels_last true`, too."""
    return compiled(channels_last=True)


def peer() -> Callable[[int], float]:
    """A step with pytorchvideo's network, in memory as its users have it."""
    return step_of(PyTorchVideoBackbone(), is_ours=False, foreach=False)


STEPS = {
    "TimeGrain, fused optimiser": fused,
    "TimeGrain, optimiser not fused": not_fused,
    "TimeGrain, activations checkpointed": checkpointed,
}
COMPILED_STEPS = {
    "TimeGrain, compiled": compiled,
    "TimeGrain, compiled, channels-last": compiled_channels_last,
}


def run_compiled(rounds: int) -> list[Row]:
    """Rows of the compiler, which `make bench` does without: it takes minutes."""
    ours = next(iter(STEPS))
    seconds = measure_apart({ours: STEPS[ours], **COMPILED_STEPS}, rounds)
    return [row(WORK, seconds, name, ours) for name in COMPILED_STEPS]


def run(rounds: int = 4) -> list[Row]:
    """Rows for the results table."""
    ours = next(iter(STEPS))
    try:
        found, expected = (sum(p.numel() for p in net.parameters()) for net in (PyTorchVideoBackbone(), r3d50()))
    except Exception as error:  # whatever keeps it from loading is the reason in the table
        seconds = measure_apart(STEPS, rounds)
        rows = [row(WORK, seconds, name, ours) for name in STEPS if name != ours]
        return [not_measured(WORK, ours, f"pytorchvideo: {error}", 0.80, True), *rows]
    assert found == expected, f"pytorchvideo's network has {found:,} parameters, R3D-50 {expected:,}"
    seconds = measure_apart({**STEPS, PEER: peer}, rounds)
    return [row(WORK, seconds, name, PEER, 0.80 if name == ours else None) for name in STEPS]


if __name__ == "__main__":
    measured = run_compiled if "--compiled" in sys.argv else run
    for line in measured(int(sys.argv[1]) if len(sys.argv) > 1 else 4):
        print(line)
