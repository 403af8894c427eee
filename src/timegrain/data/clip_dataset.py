"""What every data set of random training clips does alike: keyed draws, one decode pass, broken videos told of."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from timegrain.data.decoding import Crop, VideoError, VideoReader, open_video
from timegrain.data.frame_cache import CachedVideo, FrameCache
from timegrain.data.loading import epoch_order
from timegrain.data.manifest import Manifest
from timegrain.data.transforms import Augmentation, AugmentConfig, stack_clips
from timegrain.data.video import box_around
from timegrain.sampling import frames_to_read

_ATTEMPTS = 5  # samples tried in place of one whose video cannot be decoded


class ClipDataset(Dataset[dict[str, Any]]):
    """Samples that are a pure function of (seed, epoch, index).

    A video that cannot be decoded is never replaced in silence: a sample of another batch of the epoch takes its place
    and carries the path and the reason under ``failures``. No video is thus in a batch twice, where it would be its own
    negative (unless there are hardly more samples than one batch has).

    Args:
        manifest: Usable videos.
        crop_size: Height and width of the clips.
        augment: How clips are augmented.
        seed: Of the run.
        cache: Decoded frames of the same manifest, instead of decoding.
    """

    def __init__(
        self,
        manifest: Manifest,
        crop_size: int = 224,
        augment: AugmentConfig | None = None,
        seed: int = 0,
        cache: FrameCache | None = None,
    ) -> None:
        self.manifest, self.crop_size, self.seed, self.cache = manifest, crop_size, seed, cache
        self.augment = augment or AugmentConfig()
        self.global_batch = 1  # samples of a batch, over all processes; who makes the loader sets it

    samples_per_visit = 1  # samples that an item holds

    @abstractmethod
    def __len__(self) -> int:
        """Number of items."""

    @abstractmethod
    def sample(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """One sample, every draw from ``rng``; its ``index`` is a row of the manifest."""

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        epoch, index = key
        rng = np.random.default_rng([self.seed, epoch, index])
        failures: list[tuple[str, str]] = []
        for attempt in range(_ATTEMPTS):
            try:
                return {**self.sample(index, rng), "failures": failures}
            except VideoError as error:
                failures.append((str(error.path), error.reason))
                index = self._substitute(key, attempt)
        path, reason = failures[-1]
        raise VideoError(path, f"{reason}; {_ATTEMPTS} videos in a row could not be decoded, this is the last of them")

    def _substitute(self, key: tuple[int, int], attempt: int) -> int:
        """What takes the place of a sample: the one at the same place of a batch further on, the last go on at the front.

        A function of the epoch's order alone, so that two samples of a batch never get the same substitute.
        """
        epoch, index = key
        order = epoch_order(self.seed, epoch, len(self))
        place = int(np.flatnonzero(order == index)[0])
        first = place - place % self.global_batch
        others = np.concatenate([order[first + self.global_batch :], order[:first]])
        if len(others) == 0:  # one batch is all there is
            others = np.roll(order, -1 - place)
        step = self.global_batch if len(others) >= _ATTEMPTS * self.global_batch else 1
        return int(others[(place - first + attempt * step) % len(others)])

    @contextmanager
    def opened(self, video: int) -> Iterator[VideoReader | CachedVideo]:
        """A video to read frames from, checked to have as many of them as the manifest says.

        Args:
            video: Row of the manifest.

        Raises:
            VideoError: The video cannot be opened, or is not the one that was scanned.
        """
        if self.cache is not None:
            yield self.cache.video(video)
            return
        row = self.manifest[video]
        with open_video(row.path) as reader:
            if reader.num_frames != row.num_frames:  # the cheapest fact: `info` decodes a frame
                raise VideoError(
                    row.path,
                    f"has {reader.num_frames} frames where the manifest says {row.num_frames}; "
                    "it changed since it was scanned: run `timegrain manifest scan` again",
                )
            yield reader

    def read(self, video: int, wanted: Sequence[np.ndarray], crops: Sequence[Crop]) -> tuple[list[Tensor], Crop]:
        """Frames of several clips of a video in one decode pass.

        Args:
            video: Row of the manifest.
            wanted: Positions of each clip's frames; those beyond the end are looped.
            crops: What is needed of the pictures.

        Returns:
            Frames uint8 (T, C, H, W) of each clip, cut to the part of the picture that holds all crops, and that part.

        Raises:
            VideoError: The video cannot be decoded, or is not the one that was scanned.
        """
        num_frames = self.manifest[video].num_frames
        box = box_around(crops)
        union, inverse = np.unique(frames_to_read(np.concatenate(wanted), num_frames), return_inverse=True)
        with self.opened(video) as source:
            frames = source.frames(union, crop=box)
        ends = np.cumsum([len(indices) for indices in wanted])[:-1]
        # Picked in the pictures' own layout: torch would walk the permuted one, at ten times the cost.
        pictures = frames.permute(0, 2, 3, 1).numpy()
        return [torch.from_numpy(pictures[part]).permute(0, 3, 1, 2) for part in np.split(inverse, ends)], box


def collate(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Stack samples to a batch: clips (B, T, C, H, W) uint8, other tensors (B, ...), numbers (B,), failures joined.

    A tuple of such values, one per clip, becomes a tuple of what they are in a batch.
    """
    batch: dict[str, Any] = {"failures": [failure for sample in samples for failure in sample["failures"]]}
    return batch | {name: _join([sample[name] for sample in samples]) for name in samples[0] if name != "failures"}


def _join(values: Sequence[Any]) -> Any:
    if isinstance(values[0], tuple):
        return tuple(_join(of_clip) for of_clip in zip(*values, strict=True))
    if isinstance(values[0], Tensor):
        return stack_clips(values) if values[0].ndim == 4 else torch.stack(list(values))
    if isinstance(values[0], Augmentation):
        return Augmentation.collate(values)
    return torch.tensor(values)
