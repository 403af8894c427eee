"""Small pictures of videos, for figures."""

from __future__ import annotations

import os
from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt

from timegrain.data.decoding import open_video

Picture = npt.NDArray[np.uint8]


def frames_at(
    path: str | os.PathLike[str], seconds: Sequence[float] | npt.NDArray[np.float64], height: int = 160
) -> list[Picture]:
    """The frames shown at the given times, (h, w, 3) uint8 RGB, those higher than ``height`` reduced to it.

    Args:
        path: The video.
        seconds: Times within the video.
        height: In pixels.

    Raises:
        VideoError: The video cannot be read.
    """
    with open_video(path) as reader:
        frames = reader.frames_at(np.asarray(seconds, np.float64))
    pictures = list(frames.permute(0, 2, 3, 1).numpy())
    return [_reduced(picture, height) for picture in pictures]


def sample_frames(
    path: str | os.PathLike[str], num_frames: int, height: int = 160
) -> tuple[list[Picture], npt.NDArray[np.float64]]:
    """Evenly spaced frames of a video: one from the middle of each of ``num_frames`` equal parts.

    Returns:
        The frames, as :func:`frames_at` gives them, and their times in seconds.
    """
    with open_video(path) as reader:
        duration = reader.info.duration_seconds
    seconds = (np.arange(num_frames) + 0.5) / num_frames * duration
    return frames_at(path, seconds, height), seconds


def _reduced(picture: Picture, height: int) -> Picture:
    if picture.shape[0] <= height:
        return np.ascontiguousarray(picture)
    width = max(1, round(picture.shape[1] * height / picture.shape[0]))
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)
