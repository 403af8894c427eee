"""Multi-view top-k accuracy of a classifier: softmax per clip, sum over the clips of a video, k best classes.

The protocol of the Kinetics papers (SlowFast's test loop): a video is seen as temporal clips x spatial crops, clip id
``c`` belongs to video ``c // views``, and ``top1`` and ``top5`` are percent of all videos. ``mean_class_accuracy`` is
mmaction2's: the mean of the per-class recalls over the classes that occur in labels or predictions, as a fraction.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

# Probabilities are summed as whole numbers of this unit: sums are exact, so neither the order of the clips nor the
# number of processes can change a result.
_UNIT = 2.0**-40


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Softmax of (N, C) logits over the classes, in float64."""
    shifted = np.exp(logits - logits.max(1, keepdims=True))
    probabilities: NDArray[np.float64] = shifted / shifted.sum(1, keepdims=True)
    return probabilities


class TopKAccuracy:
    """Top-1 and top-5 of videos seen in several views.

    Args:
        labels: (V,) class of each video.
        num_classes: Number of classes C.
        views_per_video: Clips of each video.

    Raises:
        ValueError: A label is not in 0 ... C - 1, or there is no video.
    """

    def __init__(self, labels: ArrayLike, num_classes: int, views_per_video: int = 1) -> None:
        self.labels = np.asarray(labels, np.int64).reshape(-1)
        self.num_classes = num_classes
        self.views_per_video = views_per_video
        if not len(self.labels) or views_per_video < 1:
            raise ValueError("top-k accuracy needs at least one video and one view")
        outside = np.flatnonzero((self.labels < 0) | (self.labels >= num_classes))
        if len(outside):
            video = int(outside[0])
            raise ValueError(f"video {video} has label {self.labels[video]}; labels are 0 to {num_classes - 1}")
        self._sums = np.zeros((len(self.labels), num_classes), np.int64)
        self._seen = np.zeros(len(self.labels) * views_per_video, bool)

    def update(self, clip_ids: ArrayLike, logits: ArrayLike) -> None:
        """Add clips.

        Args:
            clip_ids: (N,) numbers; clip c is view ``c % views`` of video ``c // views``.
            logits: (N, C) classifier outputs before the softmax.

        Raises:
            ValueError: A clip is unknown or given twice, a logit is not finite, or the shapes do not fit.
        """
        ids = np.asarray(clip_ids, np.int64).reshape(-1)
        values = np.asarray(logits, np.float64)
        if values.shape != (len(ids), self.num_classes):
            raise ValueError(f"logits of shape {values.shape}; ({len(ids)}, {self.num_classes}) is needed")
        unknown = np.flatnonzero((ids < 0) | (ids >= len(self._seen)))
        if len(unknown):
            raise ValueError(f"unknown clip id {ids[unknown[0]]}; ids are 0 to {len(self._seen) - 1}")
        unique, counts = np.unique(ids, return_counts=True)
        twice = unique[(counts > 1) | self._seen[unique]]
        if len(twice):
            raise ValueError(f"clip id {twice[0]} is given twice")
        bad = np.flatnonzero(~np.isfinite(values).all(1))
        if len(bad):
            raise ValueError(f"clip id {ids[bad[0]]}: a logit is not a finite number")
        if len(ids):
            np.add.at(self._sums, ids // self.views_per_video, np.rint(softmax(values) / _UNIT).astype(np.int64))
            self._seen[ids] = True

    def merge(self, other: TopKAccuracy) -> None:
        """Add the clips that another process has seen.

        Raises:
            ValueError: The videos differ, or a clip was seen by both.
        """
        same = (self.num_classes, self.views_per_video) == (other.num_classes, other.views_per_video)
        if not same or not np.array_equal(self.labels, other.labels):
            raise ValueError("scores of different videos, classes or views cannot be merged")
        twice = np.flatnonzero(self._seen & other._seen)
        if len(twice):
            raise ValueError(f"clip id {twice[0]} was seen by both processes")
        self._sums += other._sums
        self._seen |= other._seen

    def compute(self) -> dict[str, Any]:
        """The result so far; a video of which no clip was seen is wrong.

        Returns:
            ``top1``, ``top5`` in percent; ``mean_class_accuracy`` as a fraction; ``top1_correct``, ``top5_correct``,
            ``num_videos``, ``num_classes``, ``views_per_video``, ``missing_clips``, ``videos_without_clips``.
            Among equal sums the lower class number comes first.
        """
        num_videos = len(self.labels)
        seen = self._seen.reshape(num_videos, self.views_per_video).any(1)
        own = np.take_along_axis(self._sums, self.labels[:, None], 1)
        before = np.arange(self.num_classes) < self.labels[:, None]
        rank = ((self._sums > own) | ((self._sums == own) & before)).sum(1)
        correct = {k: int(((rank < k) & seen).sum()) for k in (1, 5)}
        predicted = self._sums.argmax(1)[seen]
        classes = np.union1d(self.labels, predicted)
        labelled = np.bincount(self.labels, minlength=self.num_classes)
        recalled = np.bincount(self.labels[(rank == 0) & seen], minlength=self.num_classes)
        return {
            "top1": 100 * correct[1] / num_videos,
            "top5": 100 * correct[5] / num_videos,
            "mean_class_accuracy": float(np.mean(recalled[classes] / np.maximum(labelled[classes], 1))),
            "top1_correct": correct[1],
            "top5_correct": correct[5],
            "num_videos": num_videos,
            "num_classes": self.num_classes,
            "views_per_video": self.views_per_video,
            "missing_clips": int((~self._seen).sum()),
            "videos_without_clips": int((~seen).sum()),
        }
