"""The objectives that TeG is compared with, as slow loops over plain numbers, to be read beside their papers.

Nothing here is shared with the package. Embeddings are (clips, videos, channels) and need not be normalised.
"""

from __future__ import annotations

import math

import numpy as np
from plain_teg import cross_entropy, normalize, similarity


def nt_xent(embeddings: np.ndarray, temperature: float) -> tuple[float, float]:
    """SimCLR: each of the 2N views finds its partner among the other 2N - 1; the mean over all of them.

    Also the share of first views whose partner scores highest among the second views.
    """
    first, second = ([normalize(z) for z in view] for view in embeddings)
    views = first + second
    num = len(first)
    losses, hits = [], []
    for i, query in enumerate(views):
        partner = i + num if i < num else i - num
        positive = similarity(query, views[partner], temperature)
        negatives = [similarity(query, views[k], temperature) for k in range(2 * num) if k not in (i, partner)]
        losses.append(cross_entropy(positive, negatives))
    for i, query in enumerate(first):
        scores = [similarity(query, key, temperature) for key in second]
        hits.append(all(scores[i] > score for k, score in enumerate(scores) if k != i))
    return sum(losses) / len(losses), sum(hits) / len(hits)


def cvrl(embeddings: np.ndarray, temperature: float) -> float:
    """CVRL: the same contrast, the mean of each direction, and the two directions added."""
    return 2 * nt_xent(embeddings, temperature)[0]


def moco(queries: np.ndarray, keys: np.ndarray, queue: np.ndarray, temperature: float) -> tuple[float, float]:
    """ρMoCo: every clip is a query once; its positives are the other clips' keys, its negatives the queue's."""
    losses, hits = [], []
    for c in range(len(queries)):  # for every clip
        for i in range(len(queries[c])):  # of every video
            query = normalize(queries[c][i])
            negatives = [similarity(query, normalize(key), temperature) for key in queue]
            for d in range(len(keys)):  # against every other clip of that video
                if d != c:
                    positive = similarity(query, normalize(keys[d][i]), temperature)
                    losses.append(cross_entropy(positive, negatives))
                    hits.append(all(positive > negative for negative in negatives))
    return sum(losses) / len(losses), sum(hits) / len(hits)


def byol(predictions: np.ndarray, targets: np.ndarray) -> float:
    """ρBYOL: the squared distance of each unit prediction to the unit targets of the other clips of its video."""
    losses = []
    for c in range(len(predictions)):
        for i in range(len(predictions[c])):
            for d in range(len(targets)):
                if d != c:
                    difference = normalize(predictions[c][i]) - normalize(targets[d][i])
                    losses.append(sum(float(x) ** 2 for x in difference))
    return sum(losses) / len(losses)


class Ring:
    """MoCo's queue: a list of keys of which the oldest are written over."""

    def __init__(self, keys: list[np.ndarray]) -> None:
        self.keys, self.next = list(keys), 0

    def put(self, new: list[np.ndarray]) -> None:
        for key in new:
            self.keys[self.next] = key
            self.next = (self.next + 1) % len(self.keys)


def momentum(start: float, step: int, total_steps: int) -> float:
    """The coefficient after a step: half a cosine from ``start`` to 1."""
    return 1 - (1 - start) * (math.cos(math.pi * step / total_steps) + 1) / 2
