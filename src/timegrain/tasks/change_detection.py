"""Boundaries of events without learning: shot cuts, and changes of picture or motion.

Two detectors that need no weights, as rows to compare learned boundaries with:

- :func:`shot_cuts`: PySceneDetect's ContentDetector, the "SceneDet" row of the boundary papers, on this package's own
  frames (so that every file that can be trained on can be scored, and times are those of the frames).
- :class:`ChangeDetector`: how much the picture, the motion or both differ between the half second before a time and
  the half second after it; boundaries are the peaks. Nothing in it is fitted to a benchmark.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d
from scipy.signal import find_peaks

from timegrain.data.decoding import VideoReader, open_video

FloatArray = NDArray[np.float64]
Image = NDArray[np.uint8]
Method = Literal["pixels", "flow", "both"]

_CUT_WIDTH = 256  # PySceneDetect shrinks wider frames to this
_STILL = 1e-3  # spread of a curve that is rounding only: nothing happens in this video
_END_SECONDS = 0.3  # the benchmark's ground truth has no boundary nearer to an end ...
_GAP_SECONDS = 0.6  # ... nor two within this (Kinetics-GEBD, the step from raw annotations)


def shot_cuts(
    path: str | os.PathLike[str], threshold: float = 27.0, min_scene_frames: int = 15
) -> tuple[NDArray[np.int64], FloatArray]:
    """Cuts between shots, as PySceneDetect's ``ContentDetector`` finds them.

    Args:
        path: A video.
        threshold: Mean change of hue, saturation and brightness between two frames that makes a cut.
        min_scene_frames: Shortest scene; nearer cuts are merged.

    Returns:
        (frames, seconds): the first frame of each new scene, and when it appears.

    Raises:
        VideoError: The file cannot be read as a video.
    """
    from scenedetect import ContentDetector, FrameTimecode

    with open_video(path) as reader:
        detector = ContentDetector(threshold=threshold, min_scene_len=min_scene_frames)
        fps = reader.info.fps
        cuts: list[int] = []
        last = None
        for index, image in enumerate(_images(reader)):
            shrink = max(image.shape[:2]) / _CUT_WIDTH
            if shrink > 1:
                size = (max(1, round(image.shape[1] / shrink)), max(1, round(image.shape[0] / shrink)))
                image = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_LINEAR), np.uint8)
            last = FrameTimecode(index, fps)
            cuts += [cut.frame_num for cut in detector.process_frame(last, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))]
        if last is not None:
            cuts += [cut.frame_num for cut in detector.post_process(last)]
        frames = np.unique(np.array(cuts, np.int64))
        return frames, reader.timestamps[frames]


def _images(reader: VideoReader) -> Iterator[Image]:
    """Frames (H, W, 3), RGB."""
    for frame in reader.stream():
        yield np.ascontiguousarray(frame.permute(1, 2, 0).numpy())


@dataclass(frozen=True)
class ChangeDetector:
    """Peaks of the difference between what comes before a time and what comes after it.

    At ``rate`` frames per second each frame becomes a small description: its colours on a coarse grid (``pixels``), or
    the optical flow from the frame before on that grid and how strong it is (``flow``). The change at a time is the
    mean absolute difference between the means of the descriptions in the windows before and after it, divided by its
    standard deviation over the video; ``both`` adds the two. Means over a window make a repeated motion look constant.
    After smoothing, boundaries are the peaks that stand out by ``prominence``. It is measured against the video itself:
    of a video in which little happens, the little is marked.

    Attributes:
        method: What is described.
        rate: Frames per second that are looked at; all frames of a slower video.
        window_seconds: Length of each of the two windows.
        smooth_seconds: Standard deviation of the smoothing.
        prominence: How far a peak must rise above the higher of the valleys beside it, in standard deviations.
        grid: Cells of the descriptions along each side.
    """

    method: Method = "both"
    rate: float = 10.0
    window_seconds: float = 0.5
    smooth_seconds: float = 0.1
    prominence: float = 0.5
    grid: int = 8

    def __post_init__(self) -> None:
        if self.method not in ("pixels", "flow", "both"):
            raise ValueError(f"method is 'pixels', 'flow' or 'both', not {self.method!r}")
        if min(self.rate, self.window_seconds, self.grid) <= 0 or min(self.smooth_seconds, self.prominence) < 0:
            raise ValueError("rate, window and grid must be positive, smoothing and prominence not negative")

    def boundaries(self, path: str | os.PathLike[str]) -> FloatArray:
        """Times of the boundaries of a video in seconds, ascending.

        Raises:
            VideoError: The file cannot be read as a video.
        """
        with open_video(path) as reader:
            seconds, duration = reader.timestamps, reader.info.duration_seconds
            wanted = np.arange(0.0, float(seconds[-1]) + 1e-9, 1 / self.rate)
            indices = np.unique(np.searchsorted(seconds, wanted + 1e-9, "right") - 1)
            chosen = set(indices.tolist())
            images = (image for index, image in enumerate(_images(reader)) if index in chosen)
            times = seconds[indices]
            change = self.change(images, times)
        return self._peaks(change, times, duration)

    def change(self, images: Iterable[Image], times: FloatArray) -> FloatArray:
        """How much changes at each frame, in standard deviations over the video (for ``both``, of each kind).

        Args:
            images: N frames (H, W, 3), RGB; read one by one.
            times: (N,) seconds.

        Returns:
            (N,) values.
        """
        descriptions: dict[str, list[FloatArray]] = {"pixels": [], "flow": []}
        before: Image | None = None
        side = 8 * self.grid
        for image in images:
            small = np.asarray(cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA), np.uint8)
            if self.method != "flow":
                descriptions["pixels"].append(self._on_grid(small))
            if self.method != "pixels":
                grey = np.asarray(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY), np.uint8)
                descriptions["flow"].append(self._flow(grey if before is None else before, grey))
                before = grey
        total = np.zeros(len(times))
        for rows in descriptions.values():
            curve = self._before_and_after(np.stack(rows), times) if rows else total
            spread = float(curve.std())
            if rows and spread > _STILL:
                total = total + curve / spread
        return total

    def _on_grid(self, image: NDArray[Any]) -> FloatArray:
        """(H, W, C) -> its mean on each cell of the grid, flat."""
        return np.asarray(cv2.resize(image, (self.grid, self.grid), interpolation=cv2.INTER_AREA), np.float64).reshape(
            -1
        )

    def _flow(self, before: Image, after: Image) -> FloatArray:
        flow: Any = np.zeros((*after.shape, 2), np.float32)
        flow = cv2.calcOpticalFlowFarneback(before, after, flow, 0.5, 3, 13, 3, 5, 1.1, 0)
        return self._on_grid(np.concatenate([flow, np.linalg.norm(flow, axis=2, keepdims=True)], 2))

    def _before_and_after(self, descriptions: FloatArray, times: FloatArray) -> FloatArray:
        """(N, D) descriptions -> (N,) mean absolute difference between the window before a frame and that from it on."""
        sums = np.concatenate([np.zeros((1, descriptions.shape[1])), np.cumsum(descriptions, 0)])
        here = np.arange(len(times))
        first = np.searchsorted(times, times - self.window_seconds - 1e-9)
        stop = np.searchsorted(times, times + self.window_seconds - 1e-9)
        before = (sums[here] - sums[first]) / np.maximum(here - first, 1)[:, None]
        after = (sums[stop] - sums[here]) / np.maximum(stop - here, 1)[:, None]
        difference: FloatArray = np.abs(after - before).mean(1)
        difference[0] = 0.0
        return difference

    def _peaks(self, change: FloatArray, times: FloatArray, duration: float) -> FloatArray:
        if len(times) < 3:
            return np.empty(0)
        spacing = max(float(np.median(np.diff(times))), 1e-6)
        smooth = gaussian_filter1d(change, self.smooth_seconds / spacing) if self.smooth_seconds else change
        found, _ = find_peaks(smooth, prominence=self.prominence, distance=max(1, round(_GAP_SECONDS / spacing)))
        inside = (times[found] >= _END_SECONDS) & (times[found] <= duration - _END_SECONDS)
        boundaries: FloatArray = times[found[inside]]
        return boundaries
