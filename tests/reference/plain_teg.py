"""TeG's section 3 and Eq. 1-3 as slow loops over plain numbers, to be read beside the paper.

Nothing here is shared with the package: positions are exact fractions, every sum is written out, and the scores of a
loss are listed one by one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np


def segment(k: int, num_segments: int, length: int) -> range:
    """Items of a row of ``length`` that belong to its k-th segment; neighbours share an item where it does not divide."""
    return range(k * length // num_segments, -(-(k + 1) * length // num_segments))


def mean(values: list) -> object:
    return sum(values[1:], start=values[0]) / len(values)


def aggregate(row: list, num: int) -> list:
    """Average-pool a row of numbers or vectors to ``num``."""
    return [mean([row[t] for t in segment(k, num, len(row))]) for k in range(num)]


def positions(frame_indices: list[int], num_steps: int, num: int) -> list[Fraction]:
    """I(.): the average source-frame index of each of ``num`` embeddings, by way of the backbone's time steps."""
    steps = aggregate([Fraction(int(index)) for index in frame_indices], num_steps)
    return aggregate(steps, num)


def nearest(position: Fraction, others: list[Fraction]) -> int:
    """argmin over distances in source frames; the earlier of two that are equally near."""
    best = 0
    for index, other in enumerate(others):
        if abs(other - position) < abs(others[best] - position):
            best = index
    return best


def normalize(vector: np.ndarray) -> np.ndarray:
    return vector / math.sqrt(sum(float(x) ** 2 for x in vector))


def similarity(query: np.ndarray, key: np.ndarray, temperature: float) -> float:
    return sum(float(q) * float(k) for q, k in zip(query, key, strict=True)) / temperature


def cross_entropy(positive: float, negatives: list[float]) -> float:
    """-log( exp(positive) / (exp(positive) + sum of exp(negative)) )."""
    highest = max([positive, *negatives])
    total = math.exp(positive - highest) + sum(math.exp(negative - highest) for negative in negatives)
    return -(positive - highest - math.log(total))


@dataclass
class Result:
    """A level's loss, the share of queries that rank their positive first, and the negatives of one query."""

    loss: float
    accuracy: float
    num_negatives: int


def contrast(
    queries: list[list[np.ndarray]],
    keys: list[list[np.ndarray]],
    query_positions: list[list[Fraction]],
    key_positions: list[list[Fraction]],
    temperature: float,
    same_video_negatives: bool,
) -> Result:
    """Eq. 1: each query against its match in the same video, and against the keys of the other videos."""
    losses, hits, num_negatives = [], [], 0
    for i in range(len(queries)):  # for every video
        for j, query in enumerate(queries[i]):  # for every embedding of its query clip
            match = nearest(query_positions[i][j], key_positions[i])
            positive = similarity(query, keys[i][match], temperature)
            negatives = []
            for k in range(len(keys)):  # against every embedding of every video's key clip
                for m, key in enumerate(keys[k]):
                    if k != i or (same_video_negatives and m != match):
                        negatives.append(similarity(query, key, temperature))
            losses.append(cross_entropy(positive, negatives))
            hits.append(all(positive > negative for negative in negatives))
            num_negatives = len(negatives)
    return Result(sum(losses) / len(losses), sum(hits) / len(hits), num_negatives)


def level_loss(
    short_steps: np.ndarray,
    long_steps: np.ndarray,
    short_indices: np.ndarray,
    long_indices: np.ndarray,
    num_short: int,
    num_long: int,
    temperature: float,
    same_video_negatives: bool = False,
    symmetric: bool = False,
) -> Result:
    """Eq. 1 for one n and m; Eq. 2 when both are 1.

    ``*_steps`` are projected time steps (videos, steps, channels), ``*_indices`` source-frame positions (videos, frames).
    """
    shorts = [[normalize(z) for z in aggregate(list(row), num_short)] for row in short_steps]
    longs = [[normalize(z) for z in aggregate(list(row), num_long)] for row in long_steps]
    short_positions = [positions(list(row), short_steps.shape[1], num_short) for row in short_indices]
    long_positions = [positions(list(row), long_steps.shape[1], num_long) for row in long_indices]
    result = contrast(shorts, longs, short_positions, long_positions, temperature, same_video_negatives)
    if symmetric:
        other = contrast(longs, shorts, long_positions, short_positions, temperature, same_video_negatives)
        result.loss = (result.loss + other.loss) / 2
    return result
