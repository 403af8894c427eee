"""Where candidates, windows and time steps of a video lie, and which frames they need. Positions are source frames."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from timegrain.models.boundary import BoundaryDetector, FrameBackbone

Mode = Literal["windows", "dense"]

CHUNK_STEPS = 64  # time steps of a chunk without its margins: bounds memory
_PROBE_FRAMES = 64
_PROBE_SIZE = 16
_MANY_FRAMES = 720_720  # a multiple of every number up to 16


def temporal_radius(backbone: nn.Module) -> int | None:
    """How many clip frames before and after a time step's own ones its features depend on, measured by gradients.

    Args:
        backbone: Clips to features of time steps; left as it is.

    Returns:
        The number of frames, or None for a backbone that sees all of a clip from everywhere.
    """
    if isinstance(backbone, FrameBackbone):
        return 0
    stride = _temporal_stride(backbone)
    middle = _PROBE_FRAMES // stride // 2
    probe = copy.deepcopy(backbone).eval().requires_grad_(False).float()
    for module in probe.modules():
        if isinstance(module, _BatchNorm):  # gains of 0, as some networks begin with, would hide what is behind them
            module.reset_running_stats()
            torch.nn.init.ones_(module.weight)
    clip = torch.rand(1, 3, _PROBE_FRAMES, _PROBE_SIZE, _PROBE_SIZE, generator=torch.Generator().manual_seed(0))
    clip = clip.to(next(probe.parameters()).device).requires_grad_(True)
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(probe(clip)[:, middle].sum(), clip)
    used = torch.nonzero(gradient.abs().amax((0, 1, 3, 4))).flatten()
    if not len(used):
        return None
    first, last = int(used[0]), int(used[-1])
    if first == 0 or last == _PROBE_FRAMES - 1:
        return None
    return max(middle * stride - first, last - (middle + 1) * stride + 1, 0)


def _temporal_stride(backbone: nn.Module) -> int:
    """Clip frames of a time step."""
    return _MANY_FRAMES // int(cast(Any, backbone).num_time_steps(_MANY_FRAMES))


@dataclass(frozen=True)
class Layout:
    """Where the candidates of a video and the time steps of their windows lie. Positions are source frames.

    Candidate k is frame ``k · every``. Its window begins ``lead`` frames before it and has ``num_steps`` time steps,
    ``step`` frames apart. *Entries* are all time steps that any candidate may need: entry m begins at ``m · hop - lead``,
    and the i-th time step of candidate k is entry ``(k · every + i · step) / hop``.

    Args:
        num_frames: Clip frames of a window.
        stride: Source frames from one to the next.
        every: Source frames from one candidate to the next.
        temporal_stride: Clip frames of a time step.
        radius: Clip frames around a time step that it depends on; None where that is all of a clip.
    """

    num_frames: int
    stride: int
    every: int
    temporal_stride: int
    radius: int | None

    @classmethod
    def of(cls, detector: BoundaryDetector, every: int | None = None, dense: bool = True) -> Layout:
        """The layout of a detector; ``every`` may differ from the one it was trained with.

        Args:
            detector: Whose windows.
            every: Frames from one candidate to the next.
            dense: Whether the receptive field has to be known.

        Raises:
            ValueError: ``every`` is below 1.
        """
        config, every = detector.config, detector.config.every if every is None else every
        if every < 1:
            raise ValueError(f"every must be at least 1 frame, got {every}")
        temporal_stride = _temporal_stride(detector.features)
        num_frames = config.num_frames if config.is_windowed else temporal_stride
        radius = temporal_radius(detector.features) if dense else None
        return cls(num_frames, config.stride, every, temporal_stride, radius)

    @property
    def lead(self) -> int:
        """Source frames of a window before its candidate."""
        return self.num_frames * self.stride // 2

    @property
    def step(self) -> int:
        """Source frames from one time step to the next."""
        return self.temporal_stride * self.stride

    @property
    def hop(self) -> int:
        """Source frames from one entry to the next."""
        return math.gcd(self.step, self.every)

    @property
    def num_steps(self) -> int:
        """Time steps of a window."""
        return -(-self.num_frames // self.temporal_stride)

    @property
    def phases(self) -> int:
        """How often a dense pass goes over the video."""
        return self.step // self.hop

    @property
    def margin_steps(self) -> int:
        """Time steps that a chunk has on either side beyond those it gives."""
        if self.radius is None:
            raise ValueError(
                "this backbone sees all of a clip from everywhere, so windows cannot share its work; use --mode windows"
            )
        if self.num_frames % self.temporal_stride:
            raise ValueError(
                f"windows of {self.num_frames} frames do not fill time steps of {self.temporal_stride}; use an even number "
                "of frames, or --mode windows"
            )
        return -(-self.radius // self.temporal_stride)

    def num_candidates(self, num_frames: int) -> int:
        """Candidates of a video."""
        return -(-num_frames // self.every)

    def num_entries(self, num_frames: int) -> int:
        """Entries of a video: up to the last time step of its last candidate."""
        last = (self.num_candidates(num_frames) - 1) * self.every + (self.num_steps - 1) * self.step
        return last // self.hop + 1

    def entries_of(self, candidates: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """(K, num_steps) entries of candidates (K,)."""
        begins = candidates * (self.every // self.hop)
        rows: npt.NDArray[np.int64] = begins[:, None] + np.arange(self.num_steps) * self.phases
        return rows

    def frames_computed(self, num_frames: int, mode: Mode) -> int:
        """Clip frames that go through the backbone for a video of ``num_frames`` frames: the cost of a mode."""
        if mode == "windows":
            return self.num_candidates(num_frames) * self.num_frames
        steps = [span.count // self.phases + 2 * self.margin_steps for span in self.spans(num_frames, "dense")]
        return sum(steps) * self.phases * self.temporal_stride

    def spans(self, num_frames: int, mode: Mode) -> list[Span]:
        """The pieces that a video is worked off in, in order."""
        if mode == "windows":
            size, total = CHUNK_STEPS, self.num_candidates(num_frames)
            return [
                Span(first, count, first * self.every - self.lead,
                     (first + count - 1) * self.every - self.lead + (self.num_frames - 1) * self.stride + 1)
                for first, count in ((k, min(size, total - k)) for k in range(0, total, size))
            ]  # fmt: skip
        size, total = CHUNK_STEPS * self.phases, self.num_entries(num_frames)
        margin = self.margin_steps * self.step
        spans = []
        for first in range(0, total, size):
            steps = -(-min(size, total - first) // self.phases)
            begin = first * self.hop - self.lead - margin
            end = (first + self.phases - 1) * self.hop - self.lead + steps * self.step + margin
            spans.append(Span(first, steps * self.phases, begin, end))
        return spans


@dataclass(frozen=True)
class Span:
    """A piece of a video: ``count`` candidates or entries from ``first`` on, which need frames ``begin`` to ``end``.

    The frames may lie outside the video; there its end frames stand still.
    """

    first: int
    count: int
    begin: int
    end: int
