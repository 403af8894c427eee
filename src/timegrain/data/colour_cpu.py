"""The operations of :mod:`timegrain.data.colour` on the CPU: the same numbers to 1e-5, several times quicker.

One frame at a time goes through all its operations while it is in the processor's cache, in OpenCV's layout
(height, width, channels). What comes first in the order, before any change of saturation or hue, is a function of the
uint8 value and is looked up in a table of 256 entries. OpenCV's conversions to HSV and back in float32 are quicker here
than the closed form.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from timegrain.data.colour import (
    BRIGHTNESS,
    CONTRAST,
    GREY_WEIGHTS,
    HUE,
    NEUTRAL,
    SATURATION,
    Augmentation,
    blur_taps,
    gaussian_kernels,
)

Image = NDArray[np.floating]  # float32 (H, W, 3) or (H, W)
Step = tuple[int, float]  # an operation of the jitter and its factor

# A Gaussian holds less than 2^-24 of its weight, the resolution of float32 next to 1, beyond so many deviations.
_RESOLVED_DEVIATIONS = 5.42

_HSV_LIMITS = np.array([np.inf, 1, np.inf], np.float32)


def change_colours_on_cpu(clips: Tensor, augmentation: Augmentation) -> Tensor:
    """Change each clip as its augmentation says; clips are spread over as many threads as torch is set to use.

    Args:
        clips: uint8 (B, T, 3, H, W), in channels-last memory or contiguous.
        augmentation: That of the batch.

    Returns:
        float32 (B, 3, T, H, W) in [0, 1].
    """
    batch, time, channels, height, width = clips.shape
    changed = torch.empty((batch, channels, time, height, width), dtype=torch.float32)

    def change(index: int) -> None:
        _change_clip(clips[index], augmentation, index, changed[index].numpy())

    threads = min(torch.get_num_threads(), batch)
    if threads > 1:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(change, range(batch)))
    else:
        for index in range(batch):
            change(index)
    return changed


def _change_clip(frames: Tensor, augmentation: Augmentation, index: int, out: NDArray[np.float32]) -> None:
    """Change one clip uint8 (T, 3, H, W) into ``out`` (3, T, H, W)."""
    images = [_interleaved(frame) for frame in frames]
    table, steps = _look_up_first_steps(images, augmentation.factors[index], augmentation.order[index])
    finish = _Finish(augmentation, index, images[0].shape[:2])
    kinds = [kind for kind, _ in steps]
    if CONTRAST not in kinds:
        pixels = np.empty(images[0].shape, np.float32)
        for time, image in enumerate(images):
            cv2.LUT(image, table, pixels)
            finish(_jitter(pixels, steps), out[:, time])
        return
    # Contrast needs the mean over the whole clip as it is by then: all frames come that far before any goes on.
    split = kinds.index(CONTRAST)
    factor = steps[split][1]
    waiting = np.empty((len(images), *images[0].shape), np.float32)
    mean = np.zeros(3)
    for image, pixels in zip(images, waiting, strict=True):
        cv2.LUT(image, table, pixels)
        _jitter(pixels, steps[:split])
        mean += cv2.mean(pixels)[:3]
    mean /= len(images)
    turn = np.column_stack([np.eye(3) * factor, mean * (1 - factor)])
    for time, pixels in enumerate(waiting):
        cv2.transform(pixels, turn, dst=pixels)
        np.clip(pixels, 0, 1, out=pixels)
        finish(_jitter(pixels, steps[split + 1 :]), out[:, time])


def _interleaved(frame: Tensor) -> NDArray[np.uint8]:
    """A frame (3, H, W) as OpenCV wants it, (H, W, 3) contiguous; no copy if the memory is channels-last."""
    image: NDArray[np.uint8] = frame.permute(1, 2, 0).numpy()
    if image.flags.c_contiguous:
        return image
    return np.asarray(cv2.merge([np.ascontiguousarray(plane) for plane in frame.numpy()]))


def _look_up_first_steps(
    images: Sequence[NDArray[np.uint8]], factors: NDArray[np.float32], order: NDArray[np.int8]
) -> tuple[NDArray[np.float32], list[Step]]:
    """Fold the brightness and contrast that come before saturation and hue into the table from uint8 to float.

    Returns:
        The table, (1, 256, 1) or (1, 256, 3) with one for each channel, and the steps that remain, without those that
        change nothing.
    """
    steps = [(int(kind), float(factors[kind])) for kind in order if factors[kind] != NEUTRAL[kind]]
    table = np.arange(256, dtype=np.float32) / np.float32(255)
    while steps and steps[0][0] in (BRIGHTNESS, CONTRAST):
        kind, factor = steps.pop(0)
        if kind == BRIGHTNESS:
            table = np.minimum(table * np.float32(factor), np.float32(1))
        else:
            counts = np.sum([_histogram(image) for image in images], axis=0)
            mean = (counts * table[:, None]).sum(0) / counts.sum(0)
            table = np.clip((table[:, None] - mean) * factor + mean, 0, 1).astype(np.float32)
    return table.reshape(1, 256, -1), steps


def _histogram(image: NDArray[np.uint8]) -> NDArray[np.float64]:
    """How often each value occurs in each channel of (H, W, 3): (256, 3)."""
    counts = [cv2.calcHist([image], [channel], None, [256], [0, 256]).ravel() for channel in range(3)]
    return np.stack(counts, 1).astype(np.float64)


def _jitter(pixels: Image, steps: Sequence[Step]) -> Image:
    """Take (H, W, 3) through its steps, none of them contrast, in place."""
    for is_brightness, group in groupby(steps, key=lambda step: step[0] == BRIGHTNESS):
        factors = dict(group)  # saturation and hue commute: as neighbours they share one trip to HSV
        if is_brightness:
            np.multiply(pixels, np.float32(factors[BRIGHTNESS]), out=pixels)
            if factors[BRIGHTNESS] > 1:
                np.clip(pixels, 0, 1, out=pixels)
            continue
        # In float32 OpenCV's hue is in degrees from 0 to 360; it takes up to 720 on the way back.
        degrees, saturation = 360 * (factors.get(HUE, 0.0) % 1), factors.get(SATURATION, 1.0)
        cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV, dst=pixels)
        cv2.transform(pixels, np.array([[1, 0, 0, degrees], [0, saturation, 0, 0], [0, 0, 1, 0]]), dst=pixels)
        if saturation > 1:
            rows = pixels.reshape(len(pixels), -1)
            np.minimum(rows, np.tile(_HSV_LIMITS, pixels.shape[1]), out=rows)
        cv2.cvtColor(pixels, cv2.COLOR_HSV2RGB, dst=pixels)
    return pixels


class _Finish:
    """What follows the jitter in one clip: grayscale, blur, solarization, and the way into separate channels."""

    def __init__(self, augmentation: Augmentation, index: int, size: tuple[int, int]) -> None:
        self.grayscale = bool(np.asarray(augmentation.grayscale)[index])
        self.solarize = bool(np.asarray(augmentation.solarize)[index])
        sigma = np.asarray(augmentation.blur_sigma)[index : index + 1]
        taps = blur_taps(min(size))
        kernel = gaussian_kernels(sigma, taps)[0]
        surplus = taps // 2 - math.ceil(_RESOLVED_DEVIATIONS * float(sigma[0]))
        self.kernel = kernel[surplus:-surplus] if surplus > 0 else kernel
        self.blur = sigma[0] > 0 and len(self.kernel) > 1
        self.grey = np.empty(size, np.float32)
        self.blurred = np.empty(size if self.grayscale else (*size, 3), np.float32)

    def __call__(self, pixels: Image, out: NDArray[np.float32]) -> None:
        """Finish (H, W, 3), which is overwritten, into ``out`` (3, H, W)."""
        if self.grayscale:
            cv2.transform(pixels, np.array([GREY_WEIGHTS]), dst=self.grey)
            pixels = self.grey
        if self.blur:
            # A constant border is zeros here.
            cv2.sepFilter2D(pixels, -1, self.kernel, self.kernel, dst=self.blurred, borderType=cv2.BORDER_CONSTANT)
            pixels = np.clip(self.blurred, 0, 1, out=self.blurred)
        if self.solarize:
            np.minimum(pixels, 1 - pixels, out=pixels)
        if self.grayscale:
            out[:] = pixels
        else:
            cv2.split(pixels, list(out))
