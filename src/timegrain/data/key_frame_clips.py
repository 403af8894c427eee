"""Clips around AVA's key frames: cropped at random for training, the whole picture for testing; the boxes go along."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import Dataset

from timegrain.data.decoding import VideoError, open_video
from timegrain.data.key_frames import KeyFrame
from timegrain.data.labelled_clips import Sample
from timegrain.data.manifest import Manifest
from timegrain.data.transforms import resize_smallest
from timegrain.sampling import ClipSpec, centred_clip, frames_to_read

_MIN_VISIBLE = 0.25  # share of a box that a crop must keep for it to be learned from


@dataclass(frozen=True)
class AroundKeyFrames:
    """Draws the clip of a key frame; its target is (people, 4 + C): the box in pixels of the picture, then the actions.

    People beyond ``max_people`` are left out by chance; rows of fewer people are filled with NaN.

    Args:
        manifest: The data set's.
        spec: Shape of the clips.
        frames: Key frames with at least one person.
        max_people: Rows of a target.
    """

    manifest: Manifest
    spec: ClipSpec
    frames: Sequence[KeyFrame]
    max_people: int = 32

    def __call__(self, index: int, rng: np.random.Generator) -> Sample:
        """Draw the clip of key frame ``index``."""
        frame = self.frames[index]
        row = self.manifest[frame.video]
        pixels = frame.boxes * [row.width, row.height, row.width, row.height]
        rows = np.concatenate([pixels, frame.actions], axis=1).astype(np.float32)
        if len(rows) > self.max_people:
            rows = rows[np.sort(rng.permutation(len(rows))[: self.max_people])]
        target = np.full((self.max_people, rows.shape[1]), np.nan, np.float32)
        target[: len(rows)] = rows
        return Sample(frame.video, centred_clip(row.num_frames, self.spec, frame.frame), torch.from_numpy(target))


def boxes_in_crops(
    targets: Float[Tensor, "b people values"],
    crops: Float[Tensor, "b 4"],
    flipped: Float[Tensor, " b"],
    size: int,
) -> tuple[list[Float[Tensor, "_ 4"]], Float[Tensor, "kept classes"]]:
    """Where people are in cropped, resized and flipped clips.

    Args:
        targets: As :class:`AroundKeyFrames` makes them.
        crops: Top, left, height and width of each clip's crop, in pixels of the picture.
        flipped: 1 where the crop was flipped.
        size: Height and width of the clips.

    Returns:
        Per clip (K, 4) boxes in its pixels, cut to it, and the actions of all people, the first clip's first. People of
        whom the crop shows less than a quarter are left out.
    """
    boxes, actions = [], []
    for target, (top, left, height, width), flip in zip(targets, crops.tolist(), flipped.tolist(), strict=True):
        people = target[~target[:, 0].isnan()]
        whole = people[:, :4]
        offset = whole.new_tensor([left, top, left, top])
        scale = whole.new_tensor([size / width, size / height, size / width, size / height])
        placed = (whole - offset) * scale
        cut = placed.clamp(0, size)
        if flip:
            cut = torch.stack([size - cut[:, 2], cut[:, 1], size - cut[:, 0], cut[:, 3]], 1)
        kept = _area(cut) >= _MIN_VISIBLE * _area(placed).clamp_min(1e-6)
        boxes.append(cut[kept])
        actions.append(people[kept, 4:])
    return boxes, torch.cat(actions)


def _area(boxes: Tensor) -> Tensor:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


class KeyFramePictures(Dataset[tuple[int, Tensor | str]]):
    """Of each key frame its clip, whole, the shorter side resized; or the reason why it cannot be had.

    Item i is (i, uint8 (T, C, H, W)) or (i, reason).

    Args:
        manifest: The videos.
        frames: Key frames of them.
        spec: Shape of the clips.
        short_side: In pixels.
    """

    def __init__(self, manifest: Manifest, frames: Sequence[KeyFrame], spec: ClipSpec, short_side: int) -> None:
        self.manifest, self.frames, self.spec, self.short_side = manifest, frames, spec, short_side

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> tuple[int, Tensor | str]:
        frame = self.frames[index]
        try:
            with open_video(self.manifest[frame.video].path) as reader:
                wanted = frames_to_read(centred_clip(reader.num_frames, self.spec, frame.frame), reader.num_frames)
                union, inverse = np.unique(wanted, return_inverse=True)
                pictures = resize_smallest(reader.frames(union), self.short_side)
        except VideoError as error:
            return index, error.reason
        return index, pictures[torch.from_numpy(inverse)]
