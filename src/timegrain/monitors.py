"""How good features are while they are being learned: measures that need no test set."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F


def same_video_retrieval(first: Float[Tensor, "videos features"], second: Float[Tensor, "videos features"]) -> float:
    """How often the nearest clip, among one other clip of every video, is the one of the same video.

    Args:
        first: Features of one clip per video.
        second: Features of another clip of the same videos.

    Returns:
        Share of the queries, both ways; chance is 1 / videos.
    """
    similarity = _centred(first) @ _centred(second).T
    own = torch.arange(len(first))
    hits = (similarity.argmax(1) == own).float().mean() + (similarity.argmax(0) == own).float().mean()
    return float(hits / 2)


def knn_leave_one_out(
    features: Float[Tensor, "videos features"],
    labels: Int[Tensor, " videos"],
    groups: Sequence[str | None] | None = None,
    num_neighbours: int = 20,
    temperature: float = 0.1,
) -> float:
    """Accuracy of guessing each video's label from the other videos, nearer ones counting more (weight exp(s / τ)).

    Args:
        features: One row per video.
        labels: Class numbers.
        groups: Videos of one group never vote for each other (clips of one recording).
        num_neighbours: How many vote.
        temperature: τ.
    """
    unit = _centred(features)
    similarity = unit @ unit.T
    similarity.fill_diagonal_(-torch.inf)
    if groups is not None:
        names = {name: number for number, name in enumerate(dict.fromkeys(groups))}
        numbers = torch.tensor([names[name] for name in groups])
        known = torch.tensor([name is not None for name in groups])
        similarity[(numbers[:, None] == numbers) & known] = -torch.inf
    nearest = similarity.topk(min(num_neighbours, len(features) - 1), dim=1)
    weights = (nearest.values / temperature).exp()
    votes = torch.zeros(len(features), int(labels.max()) + 1).scatter_add_(1, labels[nearest.indices], weights)
    return float((votes.argmax(1) == labels).float().mean())


def _centred(features: Tensor) -> Tensor:
    """Unit rows about their mean: without it, features after a ReLU all look alike."""
    return F.normalize(features - features.mean(0), dim=1)
