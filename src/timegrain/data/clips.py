"""From (epoch, index) to the clips of a video: every draw keyed by (seed, epoch, index)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from timegrain.data.clip_dataset import ClipDataset, collate
from timegrain.data.decoding import Crop, VideoReader
from timegrain.data.frame_cache import CachedVideo, FrameCache
from timegrain.data.manifest import Manifest
from timegrain.data.transforms import (
    Augmentation,
    AugmentConfig,
    Rounding,
    center_view,
    draw_augmentation,
    resize_pictures,
    sample_crop,
)
from timegrain.data.video import as_frames, box_around
from timegrain.sampling import SAMPLERS, ClipSampler, ClipSpec, FrameIndices, frames_to_read

__all__ = ["ClipsPlan", "VideoClips", "collate", "cut_clips", "draw_clips", "half_views", "what_to_read"]


@dataclass(frozen=True)
class ClipsPlan:
    """All that is drawn for the clips of a video, clip by clip.

    Attributes:
        indices: Positions of the frames in the video, looped.
        crops: The box of each clip.
        flips: Whether it is mirrored left and right.
        augmentations: What happens to its colours.
    """

    indices: tuple[FrameIndices, ...]
    crops: tuple[Crop, ...]
    flips: tuple[bool, ...]
    augmentations: tuple[Augmentation, ...]


class VideoClips(ClipDataset):
    """Several clips of each video; an item is a pure function of (seed, epoch, index).

    All clips come from one decode pass over the union of their frames. An item holds ``clips``, uint8 (T, C, H, W) each,
    ``indices``, the positions (T,) of their frames, and ``augmentations`` of their colours: tuples in the order of
    ``specs``; and ``index``, its row of the manifest. With several samples per visit an item holds ``samples``, a tuple of
    such, all from one decode pass; :meth:`collate` puts each into a batch of its own.

    Args:
        manifest: Usable videos.
        specs: Shape of each clip; TeG's are the long and the short one.
        sampler: Name in :data:`timegrain.sampling.SAMPLERS`.
        crop_size: Height and width of the clips.
        augment: How clips are augmented; by chance one half of them gets view 1 and the other half view 2.
        seed: Of the run.
        cache: Decoded frames of the same manifest, instead of decoding.
        samples_per_visit: How many samples are drawn of a video each time it is decoded. The first is the one that would
            be drawn alone.
    """

    def __init__(
        self,
        manifest: Manifest,
        specs: Sequence[ClipSpec],
        sampler: str = "long_short_contained",
        crop_size: int = 224,
        augment: AugmentConfig | None = None,
        seed: int = 0,
        cache: FrameCache | None = None,
        samples_per_visit: int = 1,
    ) -> None:
        if sampler not in SAMPLERS:
            raise ValueError(f"unknown sampler {sampler!r}; there are {', '.join(SAMPLERS)}")
        super().__init__(manifest, crop_size, augment, seed, cache)
        self.specs, self.sampler, self.samples_per_visit = tuple(specs), sampler, samples_per_visit

    def __len__(self) -> int:
        return len(self.manifest)

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """The clips, their frames' positions and what shall happen to their colours."""
        row = self.manifest[index]
        sampler, size = SAMPLERS[self.sampler], (row.height, row.width)
        plans = [
            draw_clips(rng, sampler, row.num_frames, *size, self.specs, self.augment)
            for _ in range(self.samples_per_visit)
        ]
        with self.opened(index) as source:
            clips = iter(cut_clips(source, joined(plans), row.num_frames, self.crop_size, self.augment.rounding))
        samples = tuple(
            {
                "clips": tuple(islice(clips, len(plan.indices))),
                "indices": tuple(torch.from_numpy(positions) for positions in plan.indices),
                "augmentations": plan.augmentations,
                "index": index,
            }
            for plan in plans
        )
        return samples[0] if len(samples) == 1 else {"samples": samples}

    def collate(self, items: Sequence[dict[str, Any]]) -> dict[str, Any] | list[dict[str, Any]]:
        """The batch of some items; a list of as many as an item has samples, where it has several.

        Batch s holds sample s of every video, so no batch holds a video twice. What failed to decode is told with the
        first.
        """
        if self.samples_per_visit == 1:
            return collate(items)
        samples = zip(*(item["samples"] for item in items), strict=True)
        batches = [collate([{**sample, "failures": []} for sample in of_each]) for of_each in samples]
        batches[0]["failures"] = [failure for item in items for failure in item["failures"]]
        return batches

    def view(self, index: int, start: int) -> Tensor:
        """The first clip's frames from ``start``, whole picture, centre crop: uint8 (T, C, H, W), for evaluation."""
        with self.opened(index) as source:
            frames = source.frames(frames_to_read(self.specs[0].indices(start), self.manifest[index].num_frames))
        return center_view(frames, self.crop_size)


def draw_clips(
    rng: np.random.Generator,
    sampler: ClipSampler,
    num_frames: int,
    height: int,
    width: int,
    specs: Sequence[ClipSpec],
    augment: AugmentConfig,
) -> ClipsPlan:
    """Draw clips of a video of ``num_frames`` frames of ``height`` x ``width`` pixels, one for each shape."""
    indices = sampler(num_frames, specs, rng)
    crops = tuple(sample_crop(rng, height, width, augment) for _ in specs)
    views = rng.permutation(len(specs)) % 2
    flips = tuple((rng.random(len(specs)) < augment.flip_probability).tolist())
    return ClipsPlan(indices, crops, flips, tuple(draw_augmentation(rng, augment, int(view)) for view in views))


def joined(plans: Sequence[ClipsPlan]) -> ClipsPlan:
    """One plan of the clips of all."""

    def of_all(name: str) -> Any:
        return tuple(chain.from_iterable(getattr(plan, name) for plan in plans))

    return ClipsPlan(of_all("indices"), of_all("crops"), of_all("flips"), of_all("augmentations"))


def cut_clips(
    source: VideoReader | CachedVideo, plan: ClipsPlan, num_frames: int, size: int, rounding: Rounding = "nearest"
) -> list[Tensor]:
    """Read all clips of a plan in one decoding pass; each picture is cut and resized as soon as it is decoded.

    Args:
        source: The video.
        plan: What to read.
        num_frames: Frames of the video.
        size: Height and width of the clips.
        rounding: As in :func:`timegrain.data.transforms.resize_crop`.

    Returns:
        The clips, uint8 (T, C, size, size), channels-last memory.
    """
    targets, boxes = what_to_read(plan, num_frames)
    frames = list(targets)
    clips = [np.empty((len(positions), size, size, 3), np.uint8) for positions in plan.indices]
    for number, picture in source.pictures(frames, crop=boxes):
        box = boxes[number]
        for clip, place in targets[frames[number]]:
            crop = plan.crops[clip]
            part = picture[crop.top - box.top :, crop.left - box.left :][: crop.height, : crop.width]
            resize_pictures(part[None], clips[clip][place, None], flip=plan.flips[clip], rounding=rounding)
        del picture, part  # so that the next one comes to lie where this one was, in the cache
    return [as_frames(clip) for clip in clips]


def what_to_read(plan: ClipsPlan, num_frames: int) -> tuple[dict[int, list[tuple[int, int]]], list[Crop]]:
    """The frames of all clips of a plan, and what is needed of each.

    Args:
        plan: What was drawn.
        num_frames: Frames of the video.

    Returns:
        Frame -> where it goes, clips and places in them, by growing numbers of the frames; and for each frame the box that
        holds those of all clips that it goes to.
    """
    targets: dict[int, list[tuple[int, int]]] = {}
    for clip, positions in enumerate(plan.indices):
        for place, frame in enumerate(frames_to_read(positions, num_frames).tolist()):
            targets.setdefault(frame, []).append((clip, place))
    targets = dict(sorted(targets.items()))
    known: dict[tuple[int, ...], Crop] = {}
    boxes = []
    for goals in targets.values():
        clips = tuple(clip for clip, _ in goals)
        if clips not in known:
            known[clips] = box_around([plan.crops[clip] for clip in clips])
        boxes.append(known[clips])
    return targets, boxes


def half_views(clips: VideoClips, video: int) -> list[Tensor]:
    """A clip from each half of a video, uint8 (T, C, H, W) each; a single one where both would be the same.

    Args:
        clips: Where they come from.
        video: Which video; one that cannot be decoded raises a VideoError.
    """
    last = max(0, clips.manifest[video].num_frames - clips.specs[0].span)
    return [clips.view(video, start) for start in sorted({last // 4, last - last // 4})]
