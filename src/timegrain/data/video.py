"""What a video reader is: the words, the error, and the checks that every reader shares.

:mod:`timegrain.data.decoding` opens readers; import these names from there.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import NamedTuple, Protocol, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from timegrain.data.location import masked, shown


class Crop(NamedTuple):
    """A rectangle of a frame, in pixels of the displayed picture."""

    top: int
    left: int
    height: int
    width: int


class VideoError(ValueError):
    """A video that cannot be read.

    Attributes:
        path: The file, as it may be printed: of a URL without its credentials.
        reason: Why, in one line.
    """

    def __init__(self, path: str | os.PathLike[str], reason: str) -> None:
        self.path = shown(os.fspath(path))
        self.reason = masked(" ".join(reason.split()))
        super().__init__(f"{self.path}: {self.reason}")

    def __reduce__(self) -> tuple[type[VideoError], tuple[str, str]]:
        return type(self), (self.path, self.reason)


def short_reason(error: BaseException) -> str:
    """Why something failed, in one line without the path: what a manifest's ``error`` column holds."""
    if isinstance(error, VideoError):
        return error.reason
    text = str(getattr(error, "strerror", None) or error)
    text = masked(" ".join(text.split())) or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."


@dataclass(frozen=True)
class VideoInfo:
    """What a video file holds.

    Attributes:
        path: The file.
        num_frames: Number of frames that are shown; exact.
        fps: Mean frame rate, ``num_frames / duration_seconds``.
        duration_seconds: From the first frame's appearance to the last one's end.
        width: Of the displayed frames, after rotation, in pixels.
        height: Of the displayed frames, after rotation, in pixels.
        codec: Name of the codec, such as ``h264``.
        rotation: By how many degrees clockwise the stored pictures are turned to be displayed: 0, 90, 180 or 270.
    """

    path: str
    num_frames: int
    fps: float
    duration_seconds: float
    width: int
    height: int
    codec: str
    rotation: int


class VideoReader(Protocol):
    """Frames of one open video. A context manager; not to be shared between threads or processes."""

    @property
    def info(self) -> VideoInfo:
        """What the file holds (decodes the first frame, the first time)."""

    @property
    def num_frames(self) -> int:
        """Number of frames; the cheapest fact about a video, where the file's packets tell it."""

    @property
    def timestamps(self) -> npt.NDArray[np.float64]:
        """When each frame appears: (num_frames,) seconds from the first frame, in presentation order."""

    def frames(self, indices: Sequence[int] | npt.NDArray[np.integer], *, crop: Crop | None = None) -> Tensor:
        """Frames by index, in one decoding pass.

        Args:
            indices: (T,) frame numbers in any order, duplicates allowed.
            crop: What to cut out of each frame; all of it by default.

        Returns:
            (T, C, H, W) uint8 RGB; a permuted view of a contiguous (T, H, W, C) array.

        Raises:
            ValueError: If an index is outside the video, or the crop outside the frame.
            VideoError: If the video cannot be decoded up to the frames asked for.
        """

    def pictures(
        self,
        indices: Sequence[int] | npt.NDArray[np.integer],
        *,
        crop: Crop | Sequence[Crop] | None = None,
    ) -> Iterator[tuple[int, npt.NDArray[np.uint8]]]:
        """Frames by index, in one decoding pass, given out one by one so that each is used while it is in the cache.

        Args:
            indices: As in :meth:`frames`.
            crop: As in :meth:`frames`, or one for each of ``indices``: what is not needed may cost nothing.

        Yields:
            A place in ``indices``, and its frame (H, W, 3) uint8 RGB, to be read before the next one is asked for. Places
            come in any order. A reader that finds it must decode again gives all places again: the last one counts.

        Raises:
            ValueError: As :meth:`frames`; or if there are not as many crops as indices.
            VideoError: As :meth:`frames`.
        """

    def frames_at(self, seconds: float | Sequence[float] | npt.NDArray[np.floating]) -> Tensor:
        """The frames shown at the given times, as :meth:`frames` returns them.

        Args:
            seconds: (T,) times from the first frame, within [0, duration].

        Raises:
            ValueError: If a time is outside the video.
        """

    def stream(self, start: int = 0, stop: int | None = None, step: int = 1) -> Iterator[Tensor]:
        """Every ``step``-th frame from ``start`` up to ``stop``, one after the other, in bounded memory.

        Yields:
            (C, H, W) uint8 RGB.
        """

    def close(self) -> None:
        """Give the file back. Closing twice is harmless."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class KnownFramesReader(ABC):
    """What readers do alike that know a video's facts and time stamps as soon as it is open."""

    _info: VideoInfo
    _timestamps: npt.NDArray[np.float64]

    @property
    def info(self) -> VideoInfo:
        """What the file holds."""
        return self._info

    @property
    def num_frames(self) -> int:
        """Number of frames."""
        return self._info.num_frames

    @property
    def timestamps(self) -> npt.NDArray[np.float64]:
        """When each frame appears: (num_frames,) seconds from the first."""
        return self._timestamps

    @abstractmethod
    def frames(self, indices: Sequence[int] | npt.NDArray[np.integer], *, crop: Crop | None = None) -> Tensor:
        """Frames by index; see :meth:`VideoReader.frames`."""

    def pictures(
        self,
        indices: Sequence[int] | npt.NDArray[np.integer],
        *,
        crop: Crop | Sequence[Crop] | None = None,
    ) -> Iterator[tuple[int, npt.NDArray[np.uint8]]]:
        """Frames one by one; see :meth:`VideoReader.pictures`."""
        crops = [check_crop(each, self._info.height, self._info.width) for each in spread(crop, len(indices))]
        frames = self.frames(indices).permute(0, 2, 3, 1).numpy()
        for place, (picture, (top, left, height, width)) in enumerate(zip(frames, crops, strict=True)):
            yield place, picture[top : top + height, left : left + width]

    def frames_at(self, seconds: float | Sequence[float] | npt.NDArray[np.floating]) -> Tensor:
        """Frames by time; see :meth:`VideoReader.frames_at`."""
        return self.frames(indices_at(seconds, self._timestamps, self._info.duration_seconds))

    @abstractmethod
    def close(self) -> None:
        """Give the file back."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


# ---- what every reader does the same way --------------------------------------------------------------------------


def check_indices(indices: Sequence[int] | npt.NDArray[np.integer], num_frames: int) -> npt.NDArray[np.int64]:
    """(T,) indices as int64, or a ValueError that names the first one outside [0, num_frames)."""
    array = np.asarray(indices)
    if array.ndim != 1 or (array.size and not np.issubdtype(array.dtype, np.integer)):
        raise ValueError(f"frame indices must be a list of whole numbers, not {array.dtype} of shape {array.shape}")
    outside = array[(array < 0) | (array >= num_frames)]
    if outside.size:
        raise ValueError(f"frame index {int(outside[0])} is outside the video, which has frames 0 to {num_frames - 1}")
    return array.astype(np.int64)


def check_crop(crop: Crop | None, height: int, width: int) -> Crop:
    """The crop, or the whole frame for None; a ValueError if it is empty or reaches outside the frame."""
    if crop is None:
        return Crop(0, 0, height, width)
    crop = Crop(*(int(value) for value in crop))
    inside = crop.top >= 0 and crop.left >= 0 and crop.height > 0 and crop.width > 0
    if not (inside and crop.top + crop.height <= height and crop.left + crop.width <= width):
        raise ValueError(f"{crop} does not fit into frames of {height} rows and {width} columns")
    return crop


def box_around(crops: Sequence[Crop]) -> Crop:
    """The smallest box that holds all."""
    top, left = min(crop.top for crop in crops), min(crop.left for crop in crops)
    bottom = max(crop.top + crop.height for crop in crops)
    right = max(crop.left + crop.width for crop in crops)
    return Crop(top, left, bottom - top, right - left)


def spread(crop: Crop | Sequence[Crop] | None, count: int) -> Sequence[Crop | None]:
    """One crop for each of ``count`` frames; a ValueError if there are not as many."""
    if crop is None or isinstance(crop, Crop):
        return [crop] * count
    if len(crop) != count:
        raise ValueError(f"{len(crop)} crops for {count} frames; give one for all or one for each")
    return crop


def indices_at(
    seconds: float | Sequence[float] | npt.NDArray[np.floating],
    timestamps: npt.NDArray[np.float64],
    duration_seconds: float,
) -> npt.NDArray[np.int64]:
    """(T,) indices of the frames shown at the given times: the last frame whose time has come."""
    times = np.atleast_1d(np.asarray(seconds, dtype=np.float64))
    outside = times[~((times >= 0) & (times <= duration_seconds + 1e-6))]
    if outside.size:
        raise ValueError(f"time {outside[0]} s is outside the video, which lasts {duration_seconds:.6g} s")
    # Half a microsecond: a time computed from a time stamp must find that very frame.
    return np.searchsorted(timestamps, times + 5e-7, side="right").astype(np.int64) - 1


def as_frames(array: npt.NDArray[np.uint8]) -> Tensor:
    """(T, H, W, C) array as (T, C, H, W) tensor without copying."""
    return torch.from_numpy(array).permute(0, 3, 1, 2)
