"""Granularity is a list of levels: TeG has two, a pyramid has more. No videos needed.

python examples/granularity_levels.py
"""

import torch

from timegrain.losses import Level
from timegrain.models.hub import EncoderConfig, VideoEncoder
from timegrain.objectives.teg import TeG

PYRAMID = [
    Level(num_short=1, num_long=1, weight=0.2, head="persistent"),  # what the video is
    Level(num_short=1, num_long=4, weight=0.4, head="fine"),  # the paper's fine-grained level
    Level(num_short=4, num_long=8, weight=0.4, head="fine"),  # finer still, with the same head
]


def one_step(levels: list[Level], num_videos: int = 4, size: int = 32) -> dict[str, float]:
    """Losses of one random batch after a backward pass, by level."""
    torch.manual_seed(0)
    config = EncoderConfig(backbone="r3d_tiny", heads=("fine", "persistent"), head_hidden=64, head_num_hidden=1)
    objective = TeG(VideoEncoder(config), levels, temperature=0.1)
    # A long clip of 32 frames 4 apart, and a short one of 16 frames 2 apart that begins at its frame 40.
    long_indices = (torch.arange(32) * 4).repeat(num_videos, 1)
    short_indices = (40 + torch.arange(16) * 2).repeat(num_videos, 1)
    long_clip = torch.rand(num_videos, 3, 32, size, size)
    short_clip = torch.rand(num_videos, 3, 16, size, size)
    losses = objective([long_clip, short_clip], [long_indices, short_indices])
    losses["loss"].backward()
    return {name: float(value.detach()) for name, value in losses.items()}


if __name__ == "__main__":
    for name, value in one_step(PYRAMID).items():
        print(f"{name:<28} {value:.3f}")
