"""Within-video matching: can the five predictions of a video be told apart?

A constant prediction can score well on VidSitu's verbs, because any of ten annotations counts and a few verbs are in
most events. This score asks another question: *given a video's five predictions and its five label sets in unknown
order, which belongs to which?* A prediction that is the same for all events of a video (what persistent features
give) scores exactly chance, whatever it says.

Definition. Let ``p(i, r)`` be the verb at rank r (1 to 5) of the prediction of event i (a verb named twice counts at
its better rank), and ``q(j, v)`` the share of the annotations of event j that name verb v (the first ten
annotations, as in the official metrics). The affinity of prediction i and label set j is

    A(i, j) = sum over r of q(j, p(i, r)) / r.

An assignment is a permutation s of the events. The best ones maximise ``sum over i of A(i, s(i))`` (the assignment
problem). The score of the video is the share of events with ``s(i) = i``, averaged over *all* best assignments; the
score of the data set is the mean over its videos. Affinities are whole numbers here (in units of 1/60 of the smallest
share), so a tie is a tie and nothing is sampled.

What follows from it: chance is 1/5 (one fixed point in a random permutation of any size, on average); a constant
prediction ties all 120 assignments and scores exactly 1/5; two events with equal label sets share their point; adding
the same amount to the affinities of one label set, or of one prediction, changes nothing, so a prior for frequent
verbs that is the same for all five events cannot help. Scores of predictions are not used, only their order, as in
the official metrics: scores have no common scale between models.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

NUM_ANNOTATIONS = 10
NUM_RANKS = 5
_RANK_UNIT = math.lcm(*range(1, NUM_RANKS + 1))
_MAX_EVENTS = 8  # 8! = 40,320 assignments are enumerated; VidSitu has 5


@cache
def permutations(num_events: int) -> NDArray[np.int64]:
    """All (E!, E) orders of E events."""
    if not 1 <= num_events <= _MAX_EVENTS:
        raise ValueError(f"{num_events} events in a video; assignments are enumerated for 1 to {_MAX_EVENTS}")
    orders = np.array(list(itertools.permutations(range(num_events))), np.int64)
    orders.flags.writeable = False  # it is shared by all callers
    return orders


def affinities(predicted: Sequence[Sequence[str]], annotations: Sequence[Sequence[str]]) -> NDArray[np.int64]:
    """How well each prediction of a video fits each of its label sets; see this module's text.

    Args:
        predicted: Per event, verbs from best to worst; the first five are used.
        annotations: Per event, the verb of each annotator; the first ten are used, and one is needed.

    Returns:
        (E, E) whole numbers, [prediction, label set], in a unit of their own for each video.

    Raises:
        ValueError: The numbers of events differ, or an event has no annotation.
    """
    if len(predicted) != len(annotations):
        raise ValueError(f"{len(predicted)} predictions for {len(annotations)} events")
    labels = [Counter(verbs[:NUM_ANNOTATIONS]) for verbs in annotations]
    totals = [counts.total() for counts in labels]
    if not all(totals):
        raise ValueError(f"event {totals.index(0) + 1} has no annotation")
    unit = math.lcm(*totals)
    table = np.zeros((len(predicted), len(labels)), np.int64)
    for i, verbs in enumerate(predicted):
        first_ranks: dict[str, int] = {}
        for rank, verb in enumerate(verbs[:NUM_RANKS], start=1):
            first_ranks.setdefault(verb, rank)
        for j, counts in enumerate(labels):
            gains = (_RANK_UNIT // rank * counts[verb] for verb, rank in first_ranks.items())
            table[i, j] = unit // totals[j] * sum(gains)
    return table


def best_assignments(affinity: NDArray[Any]) -> tuple[int, int]:
    """The assignments of the highest total affinity.

    Args:
        affinity: (E, E), [prediction, label set].

    Returns:
        (how many assignments are best, how many events they get right in sum).
    """
    orders = permutations(len(affinity))
    totals = affinity[np.arange(len(affinity)), orders].sum(1)
    best = orders[totals == totals.max()]
    return len(best), int((best == np.arange(len(affinity))).sum())


class WithinVideoMatching:
    """Share of events whose prediction is matched to its own label set; exact under ties, mergeable in any order."""

    def __init__(self) -> None:
        self._right: Counter[tuple[int, int]] = Counter()  # (best assignments, events) -> events right, in sum
        self._videos: Counter[tuple[int, int]] = Counter()  # the same -> videos

    def update(self, predicted: Sequence[Sequence[str]], annotations: Sequence[Sequence[str]]) -> None:
        """Add a video.

        Args:
            predicted: Per event, verbs from best to worst.
            annotations: Per event, the verb of each annotator.

        Raises:
            ValueError: As :func:`affinities`.
        """
        self.update_affinities(affinities(predicted, annotations))

    def update_affinities(self, affinity: NDArray[Any]) -> None:
        """Add a video by its (E, E) affinities, [prediction, label set], of any origin."""
        if affinity.ndim != 2 or affinity.shape[0] != affinity.shape[1] or not np.isfinite(affinity).all():
            raise ValueError(f"affinities of shape {affinity.shape}; a square table of finite numbers is needed")
        num_best, right = best_assignments(affinity)
        self._right[num_best, len(affinity)] += right
        self._videos[num_best, len(affinity)] += 1

    def merge(self, other: WithinVideoMatching) -> None:
        """Add what another process has seen."""
        self._right.update(other._right)
        self._videos.update(other._videos)

    def compute(self) -> dict[str, Any]:
        """The result so far.

        Returns:
            ``accuracy``; ``chance`` (both ``None`` without videos); ``videos``; ``tied_videos`` (more than one best
            assignment). Fractions, not percent.
        """
        videos = self._videos.total()
        if not videos:
            return {"accuracy": None, "chance": None, "videos": 0, "tied_videos": 0}
        accuracy = sum((Fraction(right, best * size) for (best, size), right in self._right.items()), Fraction())
        chance = sum((Fraction(count, size) for (_, size), count in self._videos.items()), Fraction())
        return {
            "accuracy": float(accuracy / videos),
            "chance": float(chance / videos),
            "videos": videos,
            "tied_videos": sum(count for (best, _), count in self._videos.items() if best > 1),
        }
