"""From decoded frames to the network's input: crops and views in the worker, the random recipe, the one permutation.

Frames are (T, C, H, W) uint8 with channels-last memory; models take (B, C, T, H, W) float in [0, 1]. Every random
draw is made once per clip and shared by its frames. The recipe is that of the code base the paper builds on
(TensorFlow Model Garden, ``official/projects/video_ssl``); the paper itself names only cropping, colour jittering
and blurring.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

import cv2
import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import default_collate

from timegrain.data.colour import NEUTRAL, Augmentation, change_colours
from timegrain.data.colour_cpu import change_colours_on_cpu
from timegrain.data.video import Crop

__all__ = [
    "AugmentConfig",
    "Augmentation",
    "Rounding",
    "apply_augmentation",
    "center_view",
    "cut_center",
    "cut_three",
    "draw_augmentation",
    "resize_crop",
    "resize_pictures",
    "resize_smallest",
    "sample_crop",
    "stack_clips",
    "three_crops",
    "to_model_input",
]

Rounding = Literal["nearest", "truncate"]


@dataclass(frozen=True)
class AugmentConfig:
    """How the clips of pre-training are changed; the defaults are the recipe of the paper's family.

    Of the two clips of a video one gets view 1 and the other view 2, by chance; where two values are given they are
    for view 1 and view 2. A strength or probability of 0 turns its operation off.

    Args:
        crop_sampler: How the box is drawn: reference has a uniform aspect ratio, then a uniform height; torchvision a
            uniform area, then a log-uniform aspect ratio; center takes the largest square in the middle, always.
        crop_area: Smallest and largest share of the picture that a box covers.
        crop_aspect: Smallest and largest width / height of a box.
        rounding: How the resized crop becomes uint8: nearest is fast and within one level of exact; truncate is what
            the reference does, to the bit, at about four times the cost.
        flip_probability: Chance of a left-right flip.
        jitter_probability: Chance of the colour jitter (brightness, contrast, saturation, hue in random order).
        brightness: Pixels are multiplied by a number in 1 ± this.
        contrast: Distances to the clip's mean are multiplied by a number in 1 ± this.
        saturation: The saturation is multiplied by a number in 1 ± this.
        hue: The hue is turned by up to this many turns, either way.
        grayscale_probability: Chance of losing all colour.
        blur_probability: Chance of a Gaussian blur, for view 1 and view 2.
        blur_sigma: Smallest and largest standard deviation of the blur in pixels.
        solarize_probability: Chance that pixels from one half on become their negative, for view 1 and view 2.
    """

    crop_sampler: Literal["reference", "torchvision", "center", "whole"] = "reference"
    crop_area: tuple[float, float] = (0.3, 1.0)
    crop_aspect: tuple[float, float] = (0.5, 2.0)
    rounding: Rounding = "nearest"
    flip_probability: float = 0.5
    jitter_probability: float = 0.8
    brightness: float = 0.8
    contrast: float = 0.8
    saturation: float = 0.8
    hue: float = 0.2
    grayscale_probability: float = 0.2
    blur_probability: tuple[float, float] = (1.0, 0.1)
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    solarize_probability: tuple[float, float] = (0.0, 0.2)

    def __post_init__(self) -> None:
        for name in ("flip", "jitter", "grayscale", "blur", "solarize"):
            chances = getattr(self, f"{name}_probability")
            for chance in chances if isinstance(chances, tuple) else (chances,):
                if not 0 <= chance <= 1:
                    raise ValueError(f"{name}_probability is {chance}; a probability lies between 0 and 1")
        for name in ("brightness", "contrast", "saturation"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; a strength of the jitter lies between 0 and 1")
        if not 0 <= self.hue <= 0.5:
            raise ValueError(f"hue is {self.hue}; it is counted in turns and lies between 0 and 0.5")
        for name in ("crop_area", "crop_aspect", "blur_sigma"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name} is ({low}, {high}); it needs two numbers above 0, the smaller one first")
        if self.crop_area[1] > 1:
            raise ValueError(f"crop_area ends at {self.crop_area[1]}; a box covers at most the whole picture, 1.0")


def sample_crop(rng: np.random.Generator, height: int, width: int, config: AugmentConfig) -> Crop:
    """Draw the box of a clip inside a picture of ``height`` x ``width`` pixels, as ``config.crop_sampler`` says."""
    if height < 1 or width < 1:
        raise ValueError(f"cannot crop a picture of {height} x {width} pixels")
    if config.crop_sampler == "reference":
        return _reference_crop(rng, height, width, config.crop_area, config.crop_aspect)
    if config.crop_sampler == "torchvision":
        return _torchvision_crop(rng, height, width, config.crop_area, config.crop_aspect)
    if config.crop_sampler == "whole":
        return Crop(0, 0, height, width)
    side = min(height, width)
    return Crop((height - side) // 2, (width - side) // 2, side, side)


def _reference_crop(
    rng: np.random.Generator, height: int, width: int, area: tuple[float, float], aspect: tuple[float, float]
) -> Crop:
    """TensorFlow's distorted bounding box: uniform aspect, uniform height; the whole picture after 100 misses."""
    smallest, largest = area[0] * height * width, area[1] * height * width
    for _ in range(100):
        ratio = rng.uniform(*aspect)
        low, high = round(math.sqrt(smallest / ratio)), round(math.sqrt(largest / ratio))
        if round(high * ratio) > width:
            high = int((width + 0.5 - 1e-7) / ratio)
            high -= round(high * ratio) > width
        high = min(high, height)
        h = int(rng.integers(low, high + 1)) if low < high else high
        w = round(h * ratio)
        if h * w < smallest:  # the rounding of h lost some area: one row more
            h += 1
            w = round(h * ratio)
        if h * w > largest:
            h -= 1
            w = round(h * ratio)
        if smallest <= h * w <= largest and 0 < h <= height and 0 < w <= width:
            # The last offset is never drawn, as in the reference.
            top = int(rng.integers(height - h)) if h < height else 0
            left = int(rng.integers(width - w)) if w < width else 0
            return Crop(top, left, h, w)
    return Crop(0, 0, height, width)


def _torchvision_crop(
    rng: np.random.Generator, height: int, width: int, area: tuple[float, float], aspect: tuple[float, float]
) -> Crop:
    """Uniform area, log-uniform aspect; after ten misses the largest box in the middle of an allowed aspect."""
    for _ in range(10):
        target = height * width * rng.uniform(*area)
        ratio = math.exp(rng.uniform(math.log(aspect[0]), math.log(aspect[1])))
        h, w = round(math.sqrt(target / ratio)), round(math.sqrt(target * ratio))
        if 0 < h <= height and 0 < w <= width:
            return Crop(int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w)
    ratio = min(max(width / height, aspect[0]), aspect[1])
    h, w = min(height, max(1, round(width / ratio))), min(width, max(1, round(height * ratio)))
    return Crop((height - h) // 2, (width - w) // 2, h, w)


def resize_crop(
    frames: Tensor,
    crop: Crop | None,
    size: int | tuple[int, int],
    *,
    flip: bool = False,
    rounding: Rounding = "nearest",
) -> Tensor:
    """Cut the same box out of every frame and resize it: bilinear, half-pixel centres, no antialiasing.

    Args:
        frames: uint8 (T, C, H, W); quick when the memory is channels-last, as decoders give it.
        crop: The box; None is the whole frame.
        size: Height and width of the result, or one number for both.
        flip: Mirror left and right.
        rounding: "truncate" cuts the fraction off after computing in float32, bit for bit as the reference does;
            "nearest" uses OpenCV's fixed-point numbers, within one level (of 255) of exact, at a quarter of the cost.

    Returns:
        uint8 (T, C, h, w), channels-last memory.

    Raises:
        ValueError: The box does not lie inside the frames.
    """
    num_frames, channels, height, width = frames.shape
    top, left, h, w = crop if crop is not None else (0, 0, height, width)
    if top < 0 or left < 0 or h < 1 or w < 1 or top + h > height or left + w > width:
        raise ValueError(f"{crop} does not lie inside frames of {height} x {width} pixels")
    out_height, out_width = (size, size) if isinstance(size, int) else size
    source = _channels_last(frames)[:, top : top + h, left : left + w]
    resized = np.empty((num_frames, out_height, out_width, channels), np.uint8)
    resize_pictures(source, resized, flip=flip, rounding=rounding)
    return torch.from_numpy(resized).permute(0, 3, 1, 2)


def resize_pictures(
    pictures: NDArray[np.uint8], out: NDArray[np.uint8], *, flip: bool = False, rounding: Rounding = "nearest"
) -> None:
    """What :func:`resize_crop` does, from (T, H, W, C) into (T, h, w, C).

    Args:
        pictures: The boxes, cut out; only the last two axes need lie together in memory.
        out: Where they go, contiguous.
        flip: As in :func:`resize_crop`.
        rounding: As in :func:`resize_crop`.
    """
    height, width = out.shape[1:3]
    if pictures.shape[1:3] == (height, width):
        out[:] = pictures
    elif rounding == "truncate":
        _resize_exactly(pictures, out)
    else:
        for picture, resized in zip(pictures, out, strict=True):
            cv2.resize(picture, (width, height), dst=resized, interpolation=cv2.INTER_LINEAR)
    if flip:
        for resized in out:
            cv2.flip(resized, 1, dst=resized)


def _channels_last(frames: Tensor) -> NDArray[np.uint8]:
    """The frames as an array (T, H, W, C) whose last axis is contiguous; no copy if the memory is channels-last."""
    images: NDArray[np.uint8] = frames.permute(0, 2, 3, 1).numpy()
    return images if images.strides[-1] == 1 and images.strides[-2] == images.shape[-1] else images.copy(order="C")


def _resize_exactly(images: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
    """Bilinear resize of (T, H, W, C) into (T, h, w, C) in float32, in the reference's order of operations.

    First along the rows, then along the columns; both work on whole rows of memory, with a transposition between.
    """
    height, width, channels = images.shape[1:]
    out_height, out_width = out.shape[1:3]
    left, right, across = _neighbours(width, out_width)
    upper, lower, down = _neighbours(height, out_height)
    narrow = np.empty((out_width, height * channels), np.float32)  # transposed: one row per column of the picture
    upright = np.empty((height, out_width, channels), np.float32)
    first = np.empty((out_height, out_width * channels), np.float32)
    second = np.empty_like(first)
    for image, resized in zip(images, out, strict=True):
        columns = cv2.transpose(image).reshape(width, -1)
        start = columns.take(left, 0)
        np.subtract(columns.take(right, 0), start, out=narrow, dtype=np.float32)
        np.multiply(narrow, across[:, None], out=narrow)
        np.add(start, narrow, out=narrow)
        cv2.transpose(narrow.reshape(out_width, height, channels), dst=upright)
        rows = upright.reshape(height, -1)
        rows.take(upper, 0, out=first, mode="clip")  # with the default mode NumPy would go through a copy
        rows.take(lower, 0, out=second, mode="clip")
        np.subtract(second, first, out=second)
        np.multiply(second, down[:, None], out=second)
        np.add(first, second, out=second)
        np.copyto(resized, second.reshape(resized.shape), casting="unsafe")  # cuts the fraction off


def _neighbours(length: int, out_length: int) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]:
    """For each output pixel of one axis the source pixels on both sides and the weight of the second."""
    scale = np.float32(length) / np.float32(out_length)
    position = (np.arange(out_length, dtype=np.float32) + np.float32(0.5)) * scale - np.float32(0.5)
    floor = np.floor(position)
    low = np.maximum(floor, 0).astype(np.intp)
    high = np.minimum(np.ceil(position), length - 1).astype(np.intp)
    return low, high, position - floor


def resize_smallest(frames: Tensor, size: int, *, rounding: Rounding = "truncate") -> Tensor:
    """Resize uint8 (T, C, H, W) so that the shorter side is ``size``; the longer one is cut to whole pixels."""
    height, width = frames.shape[-2:]
    shorter = min(height, width)
    return resize_crop(frames, None, (height * size // shorter, width * size // shorter), rounding=rounding)


def center_view(frames: Tensor, size: int, *, rounding: Rounding = "truncate") -> Tensor:
    """One evaluation view: shorter side to ``size``, then the square in the middle; uint8 (T, C, size, size)."""
    return cut_center(resize_smallest(frames, size, rounding=rounding), size)


def three_crops(frames: Tensor, size: int, *, rounding: Rounding = "truncate") -> Tensor:
    """Three evaluation views: shorter side to ``size``, then squares at the start, middle and end of the longer side.

    Args:
        frames: uint8 (T, C, H, W).
        size: Height and width of the views.
        rounding: As in :func:`resize_crop`.

    Returns:
        uint8 (3, T, C, size, size).
    """
    return torch.stack(cut_three(resize_smallest(frames, size, rounding=rounding), size))


def cut_center(frames: Tensor, size: int) -> Tensor:
    """The square in the middle, offsets rounded down: (..., H, W) -> (..., size, size), without a copy."""
    top, left = ((length - size) // 2 for length in frames.shape[-2:])
    return frames[..., top : top + size, left : left + size]


def cut_three(frames: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Squares at the start, middle and end of the longer side, at the start of the shorter; without a copy.

    The offset in the middle is len / 2 - size // 2, rounded half to even. Frames as high as wide are cut from top to
    bottom.

    Args:
        frames: (..., H, W).
        size: Height and width of the squares.
    """
    height, width = frames.shape[-2:]
    longer = max(height, width)
    offsets = (0, round(longer / 2 - size // 2), longer - size)
    if height >= width:
        first, middle, last = (frames[..., start : start + size, :size] for start in offsets)
    else:
        first, middle, last = (frames[..., :size, start : start + size] for start in offsets)
    return first, middle, last


def draw_augmentation(rng: np.random.Generator, config: AugmentConfig, view: int) -> Augmentation:
    """Draw what happens to the colours of one clip.

    Every value is drawn whether it is used or not, so the draws that follow do not depend on the outcome.

    Args:
        rng: Source of the draws.
        config: The recipe.
        view: 0 for view 1, 1 for view 2; they differ in blur and solarization.
    """
    if view not in (0, 1):
        raise ValueError(f"view is {view}; there are 0 (view 1) and 1 (view 2)")
    jitter, grayscale, blur, solarize = rng.random(4) < (
        config.jitter_probability,
        config.grayscale_probability,
        config.blur_probability[view],
        config.solarize_probability[view],
    )
    strengths = np.array([config.brightness, config.contrast, config.saturation, config.hue])
    factors = NEUTRAL + strengths * rng.uniform(-1, 1, 4)
    order = rng.permutation(4).astype(np.int8)
    sigma = rng.uniform(*config.blur_sigma)
    return Augmentation(
        factors=factors.astype(np.float32) if jitter else NEUTRAL,
        order=order,
        grayscale=grayscale,
        blur_sigma=np.float32(sigma if blur else 0),
        solarize=solarize,
    )


_SMALL_PICTURE = 28 * 28
"""Pixels of a frame up to which calling OpenCV frame by frame costs more than it saves: at 24 x 24 the tensor code takes
a third of its time for brightness and contrast and three quarters for the whole recipe, at 32 x 32 they are even."""


@torch.no_grad()
def apply_augmentation(clips: Tensor, augmentation: Augmentation) -> Tensor:
    """Change the colours of each clip as its augmentation says, on the device where the clips are.

    Order: colour jitter, grayscale, blur, solarization; each clips to [0, 1]. The result is a function of the
    arguments alone. An operation with its neutral value is left out, so it changes no bit.

    Args:
        clips: uint8 (B, T, 3, H, W).
        augmentation: That of the batch, from :meth:`Augmentation.collate`.

    Returns:
        float32 (B, 3, T, H, W) in [0, 1], without any normalisation by mean or spread.
    """
    if len(augmentation) != len(clips):
        raise ValueError(f"{len(clips)} clips, but augmentations for {len(augmentation)}")
    if clips.device.type == "cpu" and clips.shape[-2] * clips.shape[-1] > _SMALL_PICTURE:
        return change_colours_on_cpu(clips, augmentation)
    return change_colours(to_model_input(clips), augmentation)


def stack_clips(clips: Sequence[Tensor]) -> Tensor:
    """Clips uint8 (T, C, H, W) -> (B, T, C, H, W), channels-last memory kept; a fifth of the time of torch.stack.

    In a loading worker they go straight into memory that is shared with the training process.
    """
    return cast(Tensor, default_collate([clip.permute(0, 2, 3, 1) for clip in clips])).permute(0, 1, 4, 2, 3)


def to_model_input(clips: Tensor) -> Tensor:
    """uint8 (B, T, C, H, W) -> float32 (B, C, T, H, W) in [0, 1], contiguous. The project's one permutation."""
    pixels = rearrange(clips, "b t c h w -> b c t h w")
    return pixels.to(torch.float32, memory_format=torch.contiguous_format).div_(255)
