"""From (epoch, index) to a pair of clips: every draw keyed by (seed, epoch, index)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from timegrain.data.decoding import Crop, VideoError, open_video
from timegrain.data.frame_cache import FrameCache
from timegrain.data.manifest import Manifest
from timegrain.data.transforms import (
    Augmentation,
    AugmentConfig,
    center_view,
    draw_augmentation,
    resize_crop,
    sample_crop,
    stack_clips,
)
from timegrain.sampling import SAMPLERS, ClipSpec, frames_to_read

_ATTEMPTS = 5  # videos tried in place of one that cannot be decoded


class VideoClips(Dataset[dict[str, Any]]):
    """Pairs of a long and a short clip; an item is a pure function of (seed, epoch, index).

    Both clips come from one decode pass over the union of their frames. A video that cannot be decoded is never
    replaced in silence: another one, chosen by the same draws, takes its place in the batch and the item carries the
    path and the reason under ``failures``.

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
        self.manifest, self.long, self.short, self.sampler = manifest, long, short, sampler
        self.crop_size, self.seed, self.cache = crop_size, seed, cache
        self.augment = augment or AugmentConfig()

    def __len__(self) -> int:
        return len(self.manifest)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        epoch, index = key
        rng = np.random.default_rng([self.seed, epoch, index])
        failures: list[tuple[str, str]] = []
        for _ in range(_ATTEMPTS):
            try:
                return {**self._pair(index, rng), "index": index, "failures": failures}
            except VideoError as error:
                failures.append((str(error.path), error.reason))
                index = int(rng.integers(len(self)))
        path, reason = failures[-1]
        raise VideoError(path, f"{reason}; {_ATTEMPTS} videos in a row could not be decoded, this is the last of them")

    def _pair(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        row = self.manifest[index]
        long_indices, short_indices = SAMPLERS[self.sampler](row.num_frames, self.long, self.short, rng)
        crops = [sample_crop(rng, row.height, row.width, self.augment) for _ in range(2)]
        views = rng.permutation(2)
        flips = rng.random(2) < self.augment.flip_probability
        frames, box = self._read(index, row.path, row.num_frames, (long_indices, short_indices), crops)
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
        }

    def _read(
        self, index: int, path: str, num_frames: int, wanted: Sequence[np.ndarray], crops: Sequence[Crop]
    ) -> tuple[list[Tensor], Crop]:
        """Frames of several clips in one decode pass, and the part of the picture that holds all their crops."""
        top, left = min(crop.top for crop in crops), min(crop.left for crop in crops)
        bottom = max(crop.top + crop.height for crop in crops)
        right = max(crop.left + crop.width for crop in crops)
        box = Crop(top, left, bottom - top, right - left)
        union, inverse = np.unique(frames_to_read(np.concatenate(wanted), num_frames), return_inverse=True)
        if self.cache is not None:
            frames = self.cache.frames(index, union, crop=box)
        else:
            with open_video(path) as reader:
                if reader.info.num_frames != num_frames:
                    raise VideoError(
                        path,
                        f"has {reader.info.num_frames} frames where the manifest says {num_frames}; "
                        "it changed since it was scanned: run `timegrain manifest scan` again",
                    )
                frames = reader.frames(union, crop=box)
        ends = np.cumsum([len(indices) for indices in wanted])[:-1]
        return [frames[torch.from_numpy(part)] for part in np.split(inverse, ends)], box

    def view(self, index: int, start: int) -> Tensor:
        """The long clip's frames from ``start``, whole picture, centre crop: uint8 (T, C, H, W), for evaluation."""
        row = self.manifest[index]
        wanted = frames_to_read(self.long.indices(start), row.num_frames)
        whole = Crop(0, 0, row.height, row.width)
        frames, _ = self._read(index, row.path, row.num_frames, [wanted], [whole])
        return center_view(frames[0], self.crop_size)


def collate(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Stack samples to a batch: clips (B, T, C, H, W) uint8, indices (B, T), failures joined."""
    batch: dict[str, Any] = {"failures": [failure for sample in samples for failure in sample["failures"]]}
    for name in samples[0]:
        values = [sample[name] for sample in samples]
        if isinstance(values[0], Tensor):
            batch[name] = stack_clips(values) if values[0].ndim == 4 else torch.stack(values)
        elif isinstance(values[0], Augmentation):
            batch[name] = Augmentation.collate(values)
        elif name == "index":
            batch[name] = torch.tensor(values)
    return batch


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
