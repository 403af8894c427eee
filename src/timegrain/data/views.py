"""How videos are seen in evaluation: fixed clips, fixed crops, every video decoded once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from timegrain.data.decoding import VideoError, VideoReader, open_video
from timegrain.data.transforms import Rounding, cut_center, cut_three, resize_pictures
from timegrain.data.video import as_frames
from timegrain.machine import num_cores
from timegrain.sampling import ClipSpec, FrameIndices, frames_to_read, linspace_clips

ClipsOf: TypeAlias = Callable[[int, int], Sequence[FrameIndices]]


@dataclass(frozen=True)
class Views:
    """How each video is seen.

    Args:
        num_frames: Frames of a clip.
        stride: Source frames from one to the next.
        crop_size: Height and width in pixels; the shorter side is resized to it.
        num_clips: Clips, evenly spaced from the video's beginning to its end; a single one is in the middle.
        num_crops: 1 is the square in the middle, 3 are squares along the longer side.
    """

    num_frames: int
    stride: int
    crop_size: int
    num_clips: int = 1
    num_crops: int = 1

    def __post_init__(self) -> None:
        ClipSpec(self.num_frames, self.stride)
        if self.num_clips < 1 or self.crop_size < 1 or self.num_crops not in (1, 3):
            raise ValueError(
                f"views need at least 1 clip and 1 pixel, and 1 or 3 crops; got num_clips {self.num_clips}, "
                f"crop_size {self.crop_size}, num_crops {self.num_crops}"
            )

    @property
    def count(self) -> int:
        """Views of a video."""
        return self.num_clips * self.num_crops

    def clips(self, num_frames: int) -> list[FrameIndices]:
        """Frames of each clip in a video of ``num_frames`` frames, as the reference family takes them."""
        return linspace_clips(num_frames, ClipSpec(self.num_frames, self.stride), self.num_clips)

    def __str__(self) -> str:
        views = f"{self.num_clips} clip{'s' * (self.num_clips > 1)} x {self.num_crops} crop{'s' * (self.num_crops > 1)}"
        return f"{views} of {self.num_frames} frames x stride {self.stride}, {self.crop_size} x {self.crop_size} pixels"


def read_clips(
    path: str,
    clips: Callable[[int], Sequence[FrameIndices]],
    crop_size: int,
    num_crops: int = 1,
    *,
    rounding: Rounding = "nearest",
) -> Tensor:
    """Several clips of a video in one decode pass, the shorter side resized and squares cut out.

    Args:
        path: The video.
        clips: From its number of frames to the (T,) positions of each clip; those beyond the end are looped.
        crop_size: Height and width.
        num_crops: 1 is the square in the middle, 3 are squares along the longer side.
        rounding: As in :func:`timegrain.data.transforms.resize_crop`; the reference truncates.

    Returns:
        uint8 (clips · num_crops, T, C, size, size), the crops of a clip one after the other; channels-last memory.

    Raises:
        VideoError: The video cannot be read.
    """
    with open_video(path) as reader:
        wanted = [frames_to_read(indices, reader.num_frames) for indices in clips(reader.num_frames)]
        union, inverse = np.unique(np.concatenate(wanted), return_inverse=True)
        small = _small_frames(reader, union, crop_size, rounding)
    crops = [cut_center(small, crop_size)] if num_crops == 1 else list(cut_three(small, crop_size))
    # Picked in the pictures' own layout: torch would walk the permuted one.
    pictures = [crop.permute(0, 2, 3, 1).numpy() for crop in crops]
    picked = np.stack([crop[places] for places in inverse.reshape(len(wanted), -1) for crop in pictures])
    return torch.from_numpy(picked).permute(0, 1, 4, 2, 3)


def _small_frames(reader: VideoReader, indices: FrameIndices, crop_size: int, rounding: Rounding) -> Tensor:
    """Frames with their shorter side resized, each as soon as it is decoded: large ones are never together in memory."""
    small: npt.NDArray[np.uint8] | None = None
    for place, picture in reader.pictures(indices):
        if small is None:
            height, width = picture.shape[:2]
            shorter = min(height, width)
            small = np.empty((len(indices), height * crop_size // shorter, width * crop_size // shorter, 3), np.uint8)
        resize_pictures(picture[None], small[place, None], rounding=rounding)
    assert small is not None
    return as_frames(small)


class VideoViews(Dataset[tuple[int, Tensor | str]]):
    """Of each video its clips, decoded once, or the reason why they cannot be had.

    Item i is (``videos[i]``, uint8 (views, T, C, size, size)) or (``videos[i]``, reason).

    Args:
        paths: Of all videos.
        videos: Which of them, by position.
        clips: From (position, number of frames) to the positions of each clip's frames: evenly spaced ones
            (:meth:`of`), windows around events or key frames, a window at every candidate.
        crop_size: Height and width.
        num_crops: As in :func:`read_clips`.
        rounding: As in :func:`read_clips`.
    """

    def __init__(
        self,
        paths: Sequence[str],
        videos: Sequence[int],
        clips: ClipsOf,
        crop_size: int,
        num_crops: int = 1,
        rounding: Rounding = "nearest",
    ) -> None:
        self.paths, self.videos = {video: paths[video] for video in videos}, list(videos)
        self.clips, self.crop_size, self.num_crops, self.rounding = clips, crop_size, num_crops, rounding

    @classmethod
    def of(
        cls, paths: Sequence[str], videos: Sequence[int], views: Views, rounding: Rounding = "nearest"
    ) -> VideoViews:
        """The same evenly spaced views of every video."""
        return cls(paths, videos, _Even(views), views.crop_size, views.num_crops, rounding)

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, item: int) -> tuple[int, Tensor | str]:
        video = self.videos[item]

        def clips(num_frames: int) -> Sequence[FrameIndices]:
            return self.clips(video, num_frames)

        try:
            return video, read_clips(self.paths[video], clips, self.crop_size, self.num_crops, rounding=self.rounding)
        except VideoError as error:
            return video, error.reason


@dataclass(frozen=True)
class _Even:
    views: Views

    def __call__(self, video: int, num_frames: int) -> Sequence[FrameIndices]:
        return self.views.clips(num_frames)


def load_views(data: VideoViews, workers: int | None = None) -> Iterator[tuple[int, Tensor | str]]:
    """The items of ``data`` in order, decoded in other processes where that pays.

    Args:
        data: The videos.
        workers: Processes; by default one fewer than there are cores, 0 decodes here.
    """
    if workers is None:
        workers = num_cores() - 1
    workers = min(workers, len(data) // 8)  # a process costs seconds to start
    loader: DataLoader[tuple[int, Tensor | str]] = DataLoader(
        data, batch_size=None, num_workers=workers, prefetch_factor=2 if workers else None
    )
    return iter(loader)
