"""Nearest-neighbour retrieval: does one of the k nearest training videos share the query's class?

The protocol of the video retrieval papers (VCOP; code of CoCLR): UCF101 or HMDB51, split 1, test videos as queries,
training videos as gallery; the feature of a video is the mean over its clips. CoCLR's code subtracts from each set its
own mean, normalises to unit length and compares by dot product; ``centre=False`` leaves the subtraction out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

RANKS = (1, 5, 10, 20, 50)
_CHUNK_ELEMENTS = 4_000_000
_DECIMALS = 12  # of a cosine: equal videos must stay equal whatever order a matrix product adds in


class RetrievalRecall:
    """Recall at k of queries in a gallery; parts of both sets can be added and merged in any order.

    Equally near gallery videos are counted as if in random order (the exact expectation), so that features which do
    not tell videos apart score what chance gives, not what their place in the file gives.

    Args:
        ranks: The k.
        centre: Subtract from each set its own mean first.
    """

    def __init__(self, ranks: Sequence[int] = RANKS, centre: bool = True) -> None:
        self.ranks = tuple(ranks)
        self.centre = centre
        self._sets: dict[str, list[tuple[NDArray[np.float64], NDArray[np.int64]]]] = {"gallery": [], "query": []}

    def update(self, name: str, features: ArrayLike, labels: ArrayLike) -> None:
        """Add videos to one of the two sets.

        Args:
            name: ``"gallery"`` or ``"query"``.
            features: (N, D) one feature per video.
            labels: (N,) class of each.

        Raises:
            ValueError: The shapes do not fit, or a number is not finite.
        """
        values, classes = np.asarray(features, np.float64), np.asarray(labels, np.int64).reshape(-1)
        if name not in self._sets:
            raise ValueError(f"the sets are 'gallery' and 'query', not {name!r}")
        if values.ndim != 2 or len(values) != len(classes):
            raise ValueError(f"{name}: features of shape {values.shape} for {len(classes)} labels; (N, D) is needed")
        bad = np.flatnonzero(~np.isfinite(values).all(1))
        if len(bad):
            raise ValueError(f"{name}: row {bad[0]} holds a number that is not finite")
        known = [part.shape[1] for parts in self._sets.values() for part, _ in parts]
        if known and known[0] != values.shape[1]:
            raise ValueError(f"{name}: features of size {values.shape[1]} among features of size {known[0]}")
        self._sets[name].append((values, classes))

    def merge(self, other: RetrievalRecall) -> None:
        """Add the videos that another process holds.

        Raises:
            ValueError: The ranks or the centring differ.
        """
        if (self.ranks, self.centre) != (other.ranks, other.centre):
            raise ValueError("retrieval scores of different ranks or centring cannot be merged")
        for name, parts in other._sets.items():
            for values, classes in parts:
                self.update(name, values, classes)

    def compute(self) -> dict[str, Any]:
        """The result so far.

        Returns:
            ``recall_at``: dict keyed by k as text, fractions; ``num_queries``, ``num_gallery``; ``tied_queries``:
            queries whose best video of their class is as near as a video of another class; ``centred``.

        Raises:
            ValueError: One of the sets is empty.
        """
        query, query_labels = self._prepared("query")
        gallery, gallery_labels = self._prepared("gallery")
        found = np.zeros(len(self.ranks))
        tied = 0
        step = max(1, _CHUNK_ELEMENTS // len(gallery))
        for start in range(0, len(query), step):
            nearness = np.round(query[start : start + step] @ gallery.T, _DECIMALS)
            same = query_labels[start : start + step, None] == gallery_labels
            best = np.where(same, nearness, -np.inf).max(1, keepdims=True)
            nearer = (nearness > best).sum(1)
            equal = nearness == best
            num_equal, num_right = equal.sum(1), (equal & same).sum(1)
            has_class = same.any(1)
            tied += int((has_class & (num_equal > num_right)).sum())
            for column, k in enumerate(self.ranks):
                # of the places up to k, some are left for the equally near: the chance that none is of the class
                found[column] += (has_class * (1 - _none_right(num_equal, num_right, k - nearer))).sum()
        return {
            "recall_at": {str(k): float(count / len(query)) for k, count in zip(self.ranks, found, strict=True)},
            "num_queries": len(query),
            "num_gallery": len(gallery),
            "tied_queries": tied,
            "centred": self.centre,
        }

    def _prepared(self, name: str) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        parts = self._sets[name]
        if not parts or not sum(len(values) for values, _ in parts):
            raise ValueError(f"the {name} set is empty")
        values = np.concatenate([part for part, _ in parts])
        labels = np.concatenate([classes for _, classes in parts])
        order = np.lexsort((*values.T[::-1], labels))  # sums below do not depend on how the set was cut into parts
        values, labels = values[order], labels[order]
        if self.centre:
            values = values - values.mean(0)
        length = np.linalg.norm(values, axis=1, keepdims=True)
        return values / np.where(length > 0, length, 1.0), labels


def _none_right(total: NDArray[np.int64], right: NDArray[np.int64], drawn: NDArray[np.int64]) -> NDArray[np.float64]:
    """Chance that ``drawn`` of ``total`` things in random order hold none of the ``right`` ones, elementwise."""
    drawn = np.clip(drawn, 0, total)
    chance = np.ones(len(total))
    for place in range(int(drawn.max(initial=0))):
        left = total - place
        chance *= np.where(place < drawn, np.maximum(left - right, 0) / np.maximum(left, 1), 1.0)
    return chance
