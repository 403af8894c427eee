"""From (epoch, index) to a pair of clips: every draw keyed by (seed, epoch, index)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from timegrain.data.clip_dataset import ClipDataset, collate
from timegrain.data.decoding import Crop
from timegrain.data.frame_cache import FrameCache
from timegrain.data.manifest import Manifest
from timegrain.data.transforms import (
    AugmentConfig,
    center_view,
    draw_augmentation,
    resize_crop,
    sample_crop,
    stack_clips,
)
from timegrain.sampling import SAMPLERS, ClipSpec, frames_to_read

__all__ = ["VideoClips", "collate", "view_batches"]


class VideoClips(ClipDataset):
    """Pairs of a long and a short clip; an item is a pure function of (seed, epoch, index).

    Both clips come from one decode pass over the union of their frames.

    Args:
        manifest: Usable videos.
        long: Shape of the long clip.
        short: Shape of the short clip.
        sampler: Name in :data:`timegrain.sampling.SAMPLERS`.
        crop_size: Height and width of the clips.
        augment: How clips are augmented.
        seed: Of the run.
        cache: Decoded frames of the same manifest, instead of decoding.
    """

    def __init__(
        self,
        manifest: Manifest,
        long: ClipSpec,
        short: ClipSpec,
        sampler: str = "long_short_contained",
        crop_size: int = 224,
        augment: AugmentConfig | None = None,
        seed: int = 0,
        cache: FrameCache | None = None,
    ) -> None:
        if sampler not in SAMPLERS:
            raise ValueError(f"unknown sampler {sampler!r}; there are {', '.join(SAMPLERS)}")
        super().__init__(manifest, crop_size, augment, seed, cache)
        self.long, self.short, self.sampler = long, short, sampler

    def __len__(self) -> int:
        return len(self.manifest)

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """A long and a short clip, their frames' positions and what shall happen to their colours."""
        row = self.manifest[index]
        long_indices, short_indices = SAMPLERS[self.sampler](row.num_frames, self.long, self.short, rng)
        crops = [sample_crop(rng, row.height, row.width, self.augment) for _ in range(2)]
        views = rng.permutation(2)
        flips = rng.random(2) < self.augment.flip_probability
        frames, box = self.read(index, (long_indices, short_indices), crops)
        clips = []
        for position, crop, flip in zip(frames, crops, flips, strict=True):
            inside = Crop(crop.top - box.top, crop.left - box.left, crop.height, crop.width)
            clips.append(resize_crop(position, inside, self.crop_size, flip=bool(flip), rounding=self.augment.rounding))
        long_augmentation, short_augmentation = (draw_augmentation(rng, self.augment, int(view)) for view in views)
        return {
            "long_clip": clips[0],
            "short_clip": clips[1],
            "long_indices": torch.from_numpy(long_indices),
            "short_indices": torch.from_numpy(short_indices),
            "long_augmentation": long_augmentation,
            "short_augmentation": short_augmentation,
            "index": index,
        }

    def view(self, index: int, start: int) -> Tensor:
        """The long clip's frames from ``start``, whole picture, centre crop: uint8 (T, C, H, W), for evaluation."""
        row = self.manifest[index]
        wanted = frames_to_read(self.long.indices(start), row.num_frames)
        whole = Crop(0, 0, row.height, row.width)
        frames, _ = self.read(index, [wanted], [whole])
        return center_view(frames[0], self.crop_size)


def view_batches(clips: VideoClips, videos: Sequence[int], batch_size: int) -> Iterator[Tensor]:
    """Two clips of each video, one from each half of it, in batches of uint8 (B, T, C, H, W).

    Args:
        clips: Where they come from.
        videos: Which videos; a video that cannot be decoded raises a VideoError.
        batch_size: Clips per batch, even, so that a video's two clips stay together.
    """
    pending: list[Tensor] = []
    for video in videos:
        last = max(0, clips.manifest[video].num_frames - clips.long.span)
        pending += [clips.view(video, last // 4), clips.view(video, last - last // 4)]
        if len(pending) >= batch_size:
            yield stack_clips(pending)
            pending = []
    if pending:
        yield stack_clips(pending)
