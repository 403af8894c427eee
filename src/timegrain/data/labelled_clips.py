"""Training clips with something to learn about each: one clip per sample, anywhere in a video or around a moment."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from timegrain.data.clip_dataset import ClipDataset
from timegrain.data.decoding import Crop
from timegrain.data.frame_cache import FrameCache
from timegrain.data.location import shown
from timegrain.data.manifest import Manifest
from timegrain.data.transforms import AugmentConfig, draw_augmentation, resize_crop, sample_crop
from timegrain.sampling import ClipSpec, FrameIndices, centred_clip, sample_clip

# The reference family's supervised recipe: crop and flip, colours as they are.
CROP_AND_FLIP = AugmentConfig(
    jitter_probability=0.0, grayscale_probability=0.0, blur_probability=(0.0, 0.0), solarize_probability=(0.0, 0.0)
)


class Sample(NamedTuple):
    """What a sample is made of.

    Attributes:
        video: Row of the manifest.
        frame_indices: (T,) positions of the clip's frames; those beyond the end are looped.
        target: What is to be learned: a class number (), or any tensor.
    """

    video: int
    frame_indices: FrameIndices
    target: Tensor


Draw: TypeAlias = Callable[[int, np.random.Generator], Sample]


class LabelledClips(ClipDataset):
    """One clip with its target per sample; an item is a pure function of (seed, epoch, index).

    An item holds ``clip`` uint8 (T, C, H, W), ``augmentation`` of its colours, ``target``, ``frame_indices`` (T,),
    ``crop`` (4,): top, left, height and width of the box that was cut out, ``flipped``, ``index`` (row of the
    manifest) and ``sample`` (number of the sample).

    Args:
        manifest: Usable videos.
        num_samples: Samples per epoch.
        draw: From (number of the sample, generator) to what it is made of: :class:`AnywhereInVideo`,
            :class:`AroundMoments`, or any function that can be pickled and draws from that generator only.
        crop_size: Height and width of the clips.
        augment: How clips are changed; crop and flip by default. Colours follow its view 1.
        seed: Of the run.
        cache: Decoded frames of the same manifest, instead of decoding.
    """

    def __init__(
        self,
        manifest: Manifest,
        num_samples: int,
        draw: Draw,
        crop_size: int = 224,
        augment: AugmentConfig = CROP_AND_FLIP,
        seed: int = 0,
        cache: FrameCache | None = None,
    ) -> None:
        super().__init__(manifest, crop_size, augment, seed, cache)
        self.num_samples, self.draw = num_samples, draw

    def __len__(self) -> int:
        return self.num_samples

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """A clip, its target, where it was cut out and what shall happen to its colours."""
        video, frame_indices, target = self.draw(index, rng)
        row = self.manifest[video]
        crop = sample_crop(rng, row.height, row.width, self.augment)
        flip = bool(rng.random() < self.augment.flip_probability)
        (frames,), box = self.read(video, [frame_indices], [crop])
        inside = Crop(crop.top - box.top, crop.left - box.left, crop.height, crop.width)
        return {
            "clip": resize_crop(frames, inside, self.crop_size, flip=flip, rounding=self.augment.rounding),
            "augmentation": draw_augmentation(rng, self.augment, 0),
            "target": target,
            "frame_indices": torch.from_numpy(frame_indices),
            "crop": torch.tensor(crop),
            "flipped": flip,
            "index": video,
            "sample": index,
        }


@dataclass(frozen=True)
class AnywhereInVideo:
    """A clip whose start is uniform over its video; sample i belongs to video i.

    Args:
        manifest: The data set's.
        spec: Shape of the clips.
        targets: (videos, ...) what is to be learned of each.
    """

    manifest: Manifest
    spec: ClipSpec
    targets: Tensor

    def __post_init__(self) -> None:
        if len(self.targets) != len(self.manifest):
            raise ValueError(f"{len(self.targets)} targets for {len(self.manifest)} videos")

    def __call__(self, index: int, rng: np.random.Generator) -> Sample:
        """Draw the clip of video ``index``."""
        return Sample(index, sample_clip(self.manifest[index].num_frames, self.spec, rng), self.targets[index])


@dataclass(frozen=True)
class AroundMoments:
    """Clips around given frames: centres of events, key frames, candidates of boundaries.

    Args:
        manifest: The data set's.
        spec: Shape of the clips.
        videos: (N,) row of each moment's video.
        centres: (N,) frame in the middle of each clip; :func:`frames_at` finds frames by time.
        targets: (N, ...) what is to be learned of each.
        jitter: The middle is moved by up to so many frames, either way.
    """

    manifest: Manifest
    spec: ClipSpec
    videos: npt.NDArray[np.int64]
    centres: npt.NDArray[np.int64]
    targets: Tensor
    jitter: int = 0

    def __post_init__(self) -> None:
        if not len(self.videos) == len(self.centres) == len(self.targets):
            raise ValueError(
                f"{len(self.videos)} videos, {len(self.centres)} moments and {len(self.targets)} targets; there must "
                "be equally many"
            )

    def __call__(self, index: int, rng: np.random.Generator) -> Sample:
        """Draw the clip around moment ``index``."""
        video = int(self.videos[index])
        centre = int(self.centres[index]) + int(rng.integers(-self.jitter, self.jitter + 1))
        return Sample(video, centred_clip(self.manifest[video].num_frames, self.spec, centre), self.targets[index])


def frames_at(manifest: Manifest, videos: Sequence[int], seconds: Sequence[float]) -> npt.NDArray[np.int64]:
    """The frames shown at given times, by each video's mean frame rate.

    Args:
        manifest: Rows with ``fps`` and ``num_frames``.
        videos: (N,) rows.
        seconds: (N,) times from the first frame.

    Returns:
        (N,) frame numbers inside the videos.

    Raises:
        ValueError: A time lies before the beginning, or more than half a second behind the end of its video.
    """
    frames = np.empty(len(videos), np.int64)
    rates, lengths = manifest.column("fps").to_pylist(), manifest.column("num_frames").to_pylist()
    for position, (video, time) in enumerate(zip(videos, seconds, strict=True)):
        rate, length = float(rates[video]), int(lengths[video])
        if not 0 <= time <= length / rate + 0.5:
            raise ValueError(f"{shown(manifest[video].path)}: {time:g} s is outside the video of {length / rate:.6g} s")
        frames[position] = min(int(time * rate + 1e-6), length - 1)
    return frames
