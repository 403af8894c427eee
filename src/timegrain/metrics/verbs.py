"""VidSitu's verb metrics, as the official program computes them.

Per event: five ranked verbs against the verbs of up to ten annotators. ``acc@k``: any of the first k is among the
annotated verbs (not agreement with the most frequent one). ``vid@k``: that holds for all five events of a video.
``rec@5``: for each verb that at least two annotators of an event name, whether it is among the five predictions; mean
per verb over such events, then mean over the verbs with more than nine of them. Fractions, not percent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from timegrain.metrics.matching import NUM_ANNOTATIONS, permutations

NUM_EVENTS = 5
NUM_RANKS = 5
_MIN_NAMED = 2  # annotators who must name a verb for it to count in the recall
_RECALL_LIMITS = range(10)  # rec@5 is the last: verbs with more than nine such events


class VerbScores:
    """Acc@k, Vid@k and macro-averaged recall of ranked verbs; exact counts, so parts merge in any order.

    The same scores are kept for the video's predictions in random order (``shuffled``): the exact expectation over
    all orders of its five events. What is left of a score there does not come from telling events apart.
    """

    def __init__(self) -> None:
        self.num_videos = 0
        self.event_hits = np.zeros(NUM_RANKS, np.int64)
        self.video_hits = np.zeros(NUM_RANKS, np.int64)
        self.shuffled_event_hits = np.zeros(NUM_RANKS, np.int64)  # in fifths of an event
        self.shuffled_video_hits = np.zeros(NUM_RANKS, np.int64)  # in 120ths of a video
        self.verb_events: Counter[str] = Counter()
        self.verb_hits: Counter[str] = Counter()
        self.shuffled_verb_hits: Counter[str] = Counter()  # in fifths of an event

    def update(self, predicted: Sequence[Sequence[str]], annotations: Sequence[Sequence[str]]) -> None:
        """Add a video.

        Args:
            predicted: Five lists of verbs, from best to worst; the first five of each are used (fewer may be given).
            annotations: Five lists of annotated verbs; the first ten of each are used.

        Raises:
            ValueError: There are not five events, or an event has no annotation.
        """
        if len(predicted) != NUM_EVENTS or len(annotations) != NUM_EVENTS:
            raise ValueError(f"{len(predicted)} predictions and {len(annotations)} label sets; five each are needed")
        labels = [Counter(verbs[:NUM_ANNOTATIONS]) for verbs in annotations]
        if not all(labels):
            raise ValueError(f"event {labels.index(Counter()) + 1} has no annotation")
        hits = np.zeros((NUM_EVENTS, NUM_EVENTS, NUM_RANKS), np.int64)  # [prediction, label set, k - 1]
        for i, verbs in enumerate(predicted):
            for rank, verb in enumerate(verbs[:NUM_RANKS]):
                for j in range(NUM_EVENTS):
                    if verb in labels[j]:
                        hits[i, j, rank:] = 1
        orders = permutations(NUM_EVENTS)
        events = np.arange(NUM_EVENTS)
        self.num_videos += 1
        self.event_hits += hits[events, events].sum(0)
        self.video_hits += hits[events, events].all(0)
        self.shuffled_event_hits += hits.sum((0, 1))
        self.shuffled_video_hits += hits[orders, events].all(1).sum(0)
        tops = [set(verbs[:NUM_RANKS]) for verbs in predicted]
        for j, counts in enumerate(labels):
            for verb, count in counts.items():
                if count >= _MIN_NAMED:
                    self.verb_events[verb] += 1
                    self.verb_hits[verb] += verb in tops[j]
                    self.shuffled_verb_hits[verb] += sum(verb in top for top in tops)

    def merge(self, other: VerbScores) -> None:
        """Add what another process has counted."""
        self.num_videos += other.num_videos
        self.event_hits += other.event_hits
        self.video_hits += other.video_hits
        self.shuffled_event_hits += other.shuffled_event_hits
        self.shuffled_video_hits += other.shuffled_video_hits
        self.verb_events.update(other.verb_events)
        self.verb_hits.update(other.verb_hits)
        self.shuffled_verb_hits.update(other.shuffled_verb_hits)

    def compute(self) -> dict[str, Any]:
        """The result so far.

        Returns:
            ``acc@1`` ... ``acc@5``, ``vid@1`` ... ``vid@5``, ``rec@5``; ``recall_macro`` and ``num_verbs``: the mean
            recall and the number of verbs with more than t such events, keyed "0" ... "9" (``rec@5`` is "9");
            ``num_videos``, ``num_events``; ``shuffled``: ``acc@k``, ``vid@k`` and ``rec@5`` expected for each video's
            predictions in random order.

        Raises:
            ValueError: No video was added.
        """
        if not self.num_videos:
            raise ValueError("no video to score")
        num_events = self.num_videos * NUM_EVENTS
        recalls, counts = self._recalls(self.verb_hits, 1)
        return {
            **_by_rank("acc", self.event_hits, num_events),
            **_by_rank("vid", self.video_hits, self.num_videos),
            "rec@5": recalls["9"],
            "recall_macro": recalls,
            "num_verbs": counts,
            "num_videos": self.num_videos,
            "num_events": num_events,
            "shuffled": {
                **_by_rank("acc", self.shuffled_event_hits, num_events * NUM_EVENTS),
                **_by_rank("vid", self.shuffled_video_hits, self.num_videos * len(permutations(NUM_EVENTS))),
                "rec@5": self._recalls(self.shuffled_verb_hits, NUM_EVENTS)[0]["9"],
            },
        }

    def _recalls(self, hits: Counter[str], unit: int) -> tuple[dict[str, float], dict[str, int]]:
        recalls: dict[str, float] = {}
        counts: dict[str, int] = {}
        for limit in _RECALL_LIMITS:
            verbs = [verb for verb, events in self.verb_events.items() if events > limit]
            total = sum((Fraction(hits[verb], self.verb_events[verb]) for verb in verbs), Fraction())
            recalls[str(limit)] = float(total / (len(verbs) * unit)) if verbs else 0.0
            counts[str(limit)] = len(verbs)
        return recalls, counts


def _by_rank(name: str, hits: np.ndarray, total: int) -> dict[str, float]:
    return {f"{name}@{k}": float(count / total) for k, count in enumerate(hits, start=1)}
