"""From time steps to n embeddings per clip, and which short embedding belongs to which long one.

Source: section 3 of the paper, "temporal aggregation": embeddings are average-pooled to n (short clip) and m (long
clip), and each short embedding is matched with the long one whose mean source-frame index is nearest.
"""

from __future__ import annotations

import torch
from einops import rearrange
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.nn import functional as F


def check_num(num: int, num_steps: int, name: str = "num") -> None:
    """Raise a ValueError unless ``num`` embeddings can be pooled from ``num_steps`` time steps."""
    if not 1 <= num <= num_steps:
        raise ValueError(
            f"{name} = {num} is not possible: the backbone leaves {num_steps} time steps of this clip, so {name} must "
            f"be between 1 and {num_steps}. Use more frames per clip, or a smaller {name}."
        )


def aggregate(features: Float[Tensor, "batch steps channels"], num: int) -> Float[Tensor, "batch {num} channels"]:
    """Average-pool time steps to ``num`` embeddings.

    Where ``num`` does not divide the number of steps, neighbouring segments share a step (as adaptive pooling does), so
    that every segment covers whole steps and none is empty.

    Args:
        features: One row per time step.
        num: n or m of the paper, 1 … steps.

    Raises:
        ValueError: If ``num`` is beyond the number of steps.

    Example:
        >>> aggregate(torch.arange(4.0).reshape(1, 4, 1), 2).flatten().tolist()
        [0.5, 2.5]
    """
    steps = features.shape[1]
    check_num(num, steps)
    if num == steps:
        return features
    if steps % num == 0:
        return rearrange(features, "b (n t) c -> b n t c", n=num).mean(2)
    return F.adaptive_avg_pool1d(features.transpose(1, 2), num).transpose(1, 2)


def time_step_positions(
    frame_indices: Shaped[Tensor, "batch frames"], num_steps: int
) -> Float[Tensor, "batch {num_steps}"]:
    """Mean source-frame index of the clip frames that each time step covers.

    Args:
        frame_indices: Source-frame position of every clip frame.
        num_steps: Time steps that the backbone leaves of the clip.

    Returns:
        Positions in source frames, float64 (exact for any video length).
    """
    return aggregate(frame_indices.double().unsqueeze(-1), num_steps).squeeze(-1)


def match_nearest(
    short_positions: Float[Tensor, "batch n"], long_positions: Float[Tensor, "batch m"]
) -> Int[Tensor, "batch n"]:
    """For each short embedding, the long embedding of the same video with the nearest position; ties to the earlier.

    Args:
        short_positions: Mean source-frame index of each short embedding.
        long_positions: The same of each long embedding, increasing.
    """
    distance = (short_positions.unsqueeze(2) - long_positions.unsqueeze(1)).abs()
    # argmin may return any of equal minima; the first one is asked for.
    nearest = distance == distance.amin(2, keepdim=True)
    return nearest.to(torch.uint8).argmax(2)
