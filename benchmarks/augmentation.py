"""Augmentation of one clip on the CPU beside torchvision v2, with the same boxes, factors, orders and blur taps.

    python benchmarks/augmentation.py [--rounds 15]

Every round draws one set of parameters for a clip of 16 frames of 340x256 pixels and gives it to both; what counts is
the processor time of the whole process, one thread. torchvision runs on uint8, its
quickest way here, without antialiasing, which the recipe does not have, and ends in the same float32 clip. Its
saturation and contrast are its own (a blend with grey, about the mean of each frame's grey), ours those of the
paper's family (HSV, about each channel's mean over the clip); brightness, hue, blur and crop are the same functions.
"""

from __future__ import annotations

import argparse

import cv2
import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from measure import Row, measure, row
from timegrain.data.colour import BRIGHTNESS, CONTRAST, HUE, SATURATION, blur_taps
from timegrain.data.transforms import (
    Augmentation,
    AugmentConfig,
    apply_augmentation,
    draw_augmentation,
    resize_crop,
    sample_crop,
)
from timegrain.data.video import Crop

NUM_FRAMES, HEIGHT, WIDTH, SIZE = 16, 256, 340, 224
ALL_ON = AugmentConfig(
    jitter_probability=1.0, grayscale_probability=0.0, blur_probability=(1.0, 1.0), solarize_probability=(0.0, 0.0)
)
WORKS = [  # what is measured, recipe, view, goal for ours / torchvision
    ("clip augmentation: crop, flip, jitter and blur, always", ALL_ON, 0, 0.08),
    ("clip augmentation: the recipe, view 1", AugmentConfig(), 0, 0.08),
    ("clip augmentation: the recipe, view 2", AugmentConfig(), 1, None),
]


def ours(frames: Tensor, crop: Crop, flip: bool, augmentation: Augmentation) -> Tensor:
    clip = resize_crop(frames, crop, SIZE, flip=flip)
    return apply_augmentation(clip[None], Augmentation.collate([augmentation]))[0]


def torchvision_v2(frames: Tensor, crop: Crop, flip: bool, augmentation: Augmentation) -> Tensor:
    clip = tv.resized_crop(frames, *crop, [SIZE, SIZE], InterpolationMode.BILINEAR, antialias=False)
    if flip:
        clip = tv.horizontal_flip(clip)
    operations = {
        BRIGHTNESS: tv.adjust_brightness,
        CONTRAST: tv.adjust_contrast,
        SATURATION: tv.adjust_saturation,
        HUE: tv.adjust_hue,
    }
    if not np.array_equal(augmentation.factors, Augmentation.neutral().factors):
        for kind in augmentation.order:
            clip = operations[int(kind)](clip, float(augmentation.factors[kind]))
    if augmentation.grayscale:
        clip = tv.rgb_to_grayscale(clip, num_output_channels=3)
    if augmentation.blur_sigma > 0:
        clip = tv.gaussian_blur(clip, [blur_taps(SIZE)] * 2, [float(augmentation.blur_sigma)] * 2)
    if augmentation.solarize:
        clip = tv.solarize(clip, 128)
    return tv.to_dtype(clip, torch.float32, scale=True).transpose(0, 1).contiguous()


def smooth_frames(rng: np.random.Generator) -> Tensor:
    """Frames (T, 3, H, W) uint8 with the smooth parts and edges of real pictures, in channels-last memory."""
    coarse = rng.integers(0, 256, (NUM_FRAMES, 12, 16, 3)).astype(np.uint8)
    frames = np.stack([cv2.resize(image, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC) for image in coarse])
    return torch.from_numpy(frames).permute(0, 3, 1, 2)


def run(rounds: int = 15) -> list[Row]:
    """Rows for the results table."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    return [_compare(*work, rounds) for work in WORKS]


def _compare(work: str, config: AugmentConfig, view: int, goal: float | None, rounds: int) -> Row:
    rng = np.random.default_rng(0)
    frames = smooth_frames(rng)
    planar = frames.contiguous()  # the layout in which torchvision's whole chain is quicker
    draws = []
    for _ in range(rounds + 1):
        flip = bool(rng.random() < config.flip_probability)
        draws.append((sample_crop(rng, HEIGHT, WIDTH, config), flip, draw_augmentation(rng, config, view)))
    seconds = measure(
        {
            "TimeGrain": lambda number: ours(frames, *draws[number]),
            "torchvision v2": lambda number: torchvision_v2(planar, *draws[number]),
        },
        rounds,
    )
    return row(work, seconds, "TimeGrain", "torchvision v2", goal, note="same boxes, factors, orders and taps")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    for line in run(parser.parse_args().rounds):
        print(line)
