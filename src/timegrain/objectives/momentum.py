"""The slowly moving copy of the encoder that MoCo takes its keys from and BYOL its targets.

Source: Feichtenhofer et al., "A Large-Scale Study on Unsupervised Spatiotemporal Representation Learning" (CVPR 2021),
section 3, and its released code: the copy's weights follow the encoder's by an exponential moving average whose
coefficient rises to 1 along half a cosine. Running statistics of its norms are its own: it sees its batches in training
mode and no average is taken of them.
"""

from __future__ import annotations

import copy
import math

import torch

from timegrain.models.hub import VideoEncoder


def frozen_copy(encoder: VideoEncoder) -> VideoEncoder:
    """A copy with the same weights that no optimiser moves."""
    return copy.deepcopy(encoder).requires_grad_(False)


def momentum_at(progress: float, start: float) -> float:
    """Coefficient m after a share of the run: 1 - (1 - start)·(1 + cos(π·progress)) / 2.

    Example:
        >>> [round(momentum_at(progress, 0.9), 3) for progress in (0.0, 0.5, 1.0)]
        [0.9, 0.95, 1.0]
    """
    return 1.0 - (1.0 - start) * (1.0 + math.cos(math.pi * progress)) / 2.0


def check_momentum(momentum: float) -> None:
    """Raise a ValueError for a coefficient outside 0 … 1."""
    if not 0.0 <= momentum <= 1.0:
        raise ValueError(f"momentum must be between 0 (the encoder itself) and 1 (never moves), got {momentum}")


@torch.no_grad()
def follow(moving: VideoEncoder, encoder: VideoEncoder, momentum: float) -> None:
    """Move the copy's weights: w ← m·w + (1 - m)·encoder's."""
    torch._foreach_lerp_(tuple(moving.parameters()), tuple(encoder.parameters()), 1.0 - momentum)
