"""What frozen features know: a linear probe and nearest neighbours. Pure functions of tensors.

Everything takes one row of features per video (the mean over its views). Protocols and their sources stand at each
function; a number from here should be quoted with the name of its protocol. Retrieval's score is in
:mod:`timegrain.metrics.retrieval`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from timegrain.logistic import LogisticFit, LogisticProblem

_SIMILARITIES = 2**26  # numbers at once: 256 MiB
L2_GRID = tuple(10.0**power for power in range(-5, 2))


@dataclass(frozen=True)
class LinearProbe:
    """A linear classifier on standardised features.

    Attributes:
        mean: (D,) of the training features.
        scale: (D,) standard deviation of the training features; 1 where it is zero.
        fit: Weights and bias for standardised features.
        l2: Strength of the penalty on the weights.
        l2_scores: Held-out accuracy of every strength tried, empty where none was held out.
    """

    mean: Float[Tensor, " features"]
    scale: Float[Tensor, " features"]
    fit: LogisticFit
    l2: float
    l2_scores: dict[float, float] = field(default_factory=dict)

    @classmethod
    def train(
        cls,
        features: Float[Tensor, "videos features"],
        labels: Int[Tensor, " videos"],
        num_classes: int,
        *,
        groups: Sequence[str | None] | None = None,
        l2_grid: Sequence[float] = L2_GRID,
        num_folds: int = 5,
        rng: np.random.Generator | None = None,
    ) -> LinearProbe:
        """Choose the penalty on held-out parts of the training videos, then fit on all of them.

        The strength with the best held-out accuracy wins; among equals the one with the lowest cross-entropy. Groups
        (clips of one recording) are never split between the parts. Where nothing can be held out, as of a single group, the
        strength in the middle is taken.

        Args:
            features: Training features.
            labels: Class numbers.
            num_classes: How many classes there are.
            groups: Group of each video, None for a video alone.
            l2_grid: Strengths to try; one value skips the choice.
            num_folds: Parts of which each is held out once.
            rng: Draws the parts; seed 0 by default.

        Raises:
            ValueError: There is no strength to try, or the features or labels are impossible.
        """
        strengths = sorted(l2_grid, reverse=True)
        if not strengths:
            raise ValueError("at least one strength of the penalty is needed")
        scores: dict[float, float] = {}
        best = strengths[len(strengths) // 2]
        folds = np.zeros(len(labels), np.int64)
        if len(strengths) > 1:  # dividing many rows takes longer than the fit
            folds = grouped_folds(labels.cpu().numpy(), groups, num_folds, rng or np.random.default_rng(0))
        if folds.max() > 0:
            hits, losses = np.zeros(len(strengths)), np.zeros(len(strengths))
            for fold in range(folds.max() + 1):
                held_out = torch.from_numpy(folds == fold).to(features.device)
                inside = _Standardised(features[~held_out], labels[~held_out], num_classes)
                outside, targets = features[held_out], labels[held_out].to(features.device)
                start: LogisticFit | None = None
                for position, strength in enumerate(strengths):
                    start = inside.problem.solve(strength, start=start, tolerance=1e-4, max_iterations=300)
                    logits = cls(inside.mean, inside.scale, start, strength).logits(outside)
                    hits[position] += float((logits.argmax(1) == targets).sum())
                    losses[position] += float(F.cross_entropy(logits, targets, reduction="sum"))
            scores = {strength: float(hit) / len(labels) for strength, hit in zip(strengths, hits, strict=True)}
            best = strengths[min(range(len(strengths)), key=lambda i: (-hits[i], losses[i]))]
        everything = _Standardised(features, labels, num_classes)
        return cls(everything.mean, everything.scale, everything.problem.solve(best, tolerance=5e-5), best, scores)

    def logits(self, features: Float[Tensor, "videos features"]) -> Float[Tensor, "videos classes"]:
        """Class scores (N, C) of features that have not been standardised."""
        return torch.addmm(self.fit.bias, (features - self.mean) / self.scale, self.fit.weight.T)


class _Standardised:
    def __init__(self, features: Tensor, labels: Tensor, num_classes: int) -> None:
        self.mean = features.mean(0)
        spread = features.std(0, correction=0)
        # A feature that is always the same spreads by rounding alone, which goes by its own size and not by the others'.
        lowest, highest = torch.aminmax(features, dim=0)
        self.scale = torch.where(spread > 1e-6 * torch.maximum(-lowest, highest), spread, torch.ones_like(spread))
        self.problem = LogisticProblem((features - self.mean) / self.scale, labels, num_classes)


def grouped_folds(
    labels: np.ndarray, groups: Sequence[str | None] | None, num_folds: int, rng: np.random.Generator
) -> np.ndarray:
    """Divide videos into parts of about equal size and class shares, keeping groups together.

    Whole groups, in random order and larger ones first, go to the part that so far has the fewest videos of their
    classes.

    Args:
        labels: (N,) class numbers.
        groups: Group of each video; None for a video that stands alone.
        num_folds: Parts wanted; fewer if there are fewer groups.
        rng: Draws the order.

    Returns:
        (N,) part of each video, 0 … parts-1.
    """
    if num_folds < 1:
        raise ValueError(f"the number of folds must be at least 1, got {num_folds}")
    names = [(0, name) if name is not None else (1, str(i)) for i, name in enumerate(groups or [None] * len(labels))]
    members: dict[tuple[int, str], list[int]] = {}
    for index, name in enumerate(names):
        members.setdefault(name, []).append(index)
    order = [list(members.values())[i] for i in rng.permutation(len(members))]
    order.sort(key=len, reverse=True)
    num_folds = min(num_folds, len(order))
    counts = np.zeros((num_folds, int(labels.max()) + 1))
    folds = np.zeros(len(labels), dtype=np.int64)
    for videos in order:
        classes = np.bincount(labels[videos], minlength=counts.shape[1])
        fold = min(range(num_folds), key=lambda f: (float(counts[f] @ classes), float(counts[f].sum())))
        folds[videos] = fold
        counts[fold] += classes
    return folds


def knn_predict(
    queries: Float[Tensor, "queries features"],
    bank: Float[Tensor, "videos features"],
    bank_labels: Int[Tensor, " videos"],
    num_classes: int,
    *,
    num_neighbours: int = 200,
    temperature: float = 0.1,
    centre: bool = True,
    chunk: int = 4096,
) -> Float[Tensor, "queries classes"]:
    """Class scores by weighted votes of the nearest training videos.

    The weight of a neighbour is exp(cosine similarity / temperature); 200 neighbours and 0.1 are the published
    setting (kNN evaluation of SlowFast's self-supervised models). A smaller bank votes as a whole.

    Args:
        queries: Features to classify.
        bank: Training features.
        bank_labels: Their class numbers.
        num_classes: How many classes there are.
        num_neighbours: How many vote.
        temperature: τ.
        centre: Subtract the bank's mean from both first; features after a ReLU all point the same way without it.
        chunk: Queries compared at once, at most; fewer with many videos to compare with.

    Returns:
        (Q, C) shares of the votes; each row sums to 1.
    """
    if num_neighbours < 1 or temperature <= 0:
        raise ValueError(f"need at least 1 neighbour and τ above 0, got {num_neighbours} and {temperature}")
    mean = bank.mean(0) if centre else torch.zeros_like(bank[0])
    unit_bank = F.normalize(bank - mean, dim=1)
    labels = bank_labels.to(bank.device)
    scores = []
    for part in torch.split(queries, _rows_at_once(chunk, len(bank))):
        nearest = (F.normalize(part - mean, dim=1) @ unit_bank.T).topk(min(num_neighbours, len(bank)), dim=1)
        weights = torch.softmax(nearest.values / temperature, 1)
        scores.append(weights.new_zeros(len(part), num_classes).scatter_add_(1, labels[nearest.indices], weights))
    return torch.cat(scores)


def nearest(
    queries: Float[Tensor, "queries features"],
    gallery: Float[Tensor, "videos features"],
    num_neighbours: int,
    *,
    centre: bool = True,
    chunk: int = 4096,
) -> tuple[Int[Tensor, "queries neighbours"], Float[Tensor, "queries neighbours"]]:
    """The gallery videos with the highest cosine similarity to each query, nearest first.

    Args:
        queries: Features of the queries.
        gallery: Features to search.
        num_neighbours: How many to return; at most the size of the gallery.
        centre: Subtract from each set its own mean first, as CoCLR's retrieval does.
        chunk: Queries compared at once, at most; fewer with many videos to compare with.

    Returns:
        Positions in the gallery (Q, K) and similarities (Q, K).
    """
    unit_gallery = F.normalize(gallery - gallery.mean(0) if centre else gallery, dim=1)
    unit_queries = F.normalize(queries - queries.mean(0) if centre else queries, dim=1)
    count, rows = min(num_neighbours, len(gallery)), _rows_at_once(chunk, len(gallery))
    found = [(part @ unit_gallery.T).topk(count, dim=1) for part in torch.split(unit_queries, rows)]
    return torch.cat([f.indices for f in found]), torch.cat([f.values for f in found])


def _rows_at_once(chunk: int, width: int) -> int:
    """How many rows of similarities are made at once: with Kinetics' 240,000 videos 4,096 of them would take 4 GB."""
    return max(1, min(chunk, _SIMILARITIES // max(width, 1)))


def accuracy(scores: Float[Tensor, "videos classes"], labels: Int[Tensor, " videos"], top: int = 1) -> float:
    """Share of videos whose class is among the ``top`` highest scores."""
    best = scores.topk(min(top, scores.shape[1]), dim=1).indices
    return float((best == labels.to(best.device)[:, None]).any(1).double().mean())


def majority_accuracy(labels: Int[Tensor, " videos"], train_labels: Int[Tensor, " train"]) -> float:
    """Accuracy of always answering the most frequent training class (the first of equally frequent ones)."""
    return float((labels == torch.bincount(train_labels).argmax().to(labels.device)).double().mean())
