"""The operations of :mod:`timegrain.data.colour` on the CPU: the same numbers to 1e-5, several times quicker.

One frame at a time goes through all its operations while it is in the processor's cache, in OpenCV's layout
(height, width, channels). What comes first in the order, before any change of saturation or hue, is a function of the
uint8 value and is looked up in a table of 256 entries. OpenCV's conversions to HSV and back in float32 are quicker here
than the closed form.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
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

_UNSEEN = 2.0**-24  # half of float32's resolution next to 1: the weight of the outer taps that a blur leaves out
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
    split = kinds.index(CONTRAST) if CONTRAST in kinds else len(steps)
    before, after = (_operations(part, images[0].shape[1]) for part in (steps[:split], steps[split + 1 :]))
    if CONTRAST not in kinds:
        pixels = np.empty(images[0].shape, np.float32)
        for time, image in enumerate(images):
            cv2.LUT(image, table, pixels)
            for operation in before:
                operation(pixels)
            finish(pixels, out[:, time])
        return
    # Contrast needs the mean over the whole clip as it is by then: all frames come that far before any goes on.
    waiting = np.empty((len(images), *images[0].shape), np.float32)
    mean = np.zeros(3)
    for image, pixels in zip(images, waiting, strict=True):
        cv2.LUT(image, table, pixels)
        for operation in before:
            operation(pixels)
        mean += cv2.mean(pixels)[:3]
    mean /= len(images)
    factor = steps[split][1]
    turn = np.column_stack([np.eye(3) * factor, mean * (1 - factor)])
    for time, pixels in enumerate(waiting):
        cv2.transform(pixels, turn, dst=pixels)
        np.clip(pixels, 0, 1, out=pixels)
        for operation in after:
            operation(pixels)
        finish(pixels, out[:, time])


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
            mean = _mean_through(table, images)
            table = np.clip((table[:, None] - mean) * factor + mean, 0, 1).astype(np.float32)
    return table.reshape(1, 256, -1), steps


def _mean_through(table: NDArray[np.float32], images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float64]:
    """Mean of each channel over all images (H, W, 3) after they went through the table (256,)."""
    if abs(table[255] - 255 * table[1]) < 1e-6:  # nothing is clipped: the table is linear, the mean goes through it
        return np.asarray(np.mean([cv2.mean(image)[:3] for image in images], axis=0) * float(table[255]) / 255)
    counts = np.zeros((256, 3))
    for image in images:
        for channel in range(3):
            counts[:, channel] += cv2.calcHist([image], [channel], None, [256], [0, 256]).ravel()
    return np.asarray(table @ counts / counts.sum(0))


def _operations(steps: Sequence[Step], width: int) -> list[Callable[[Image], None]]:
    """The steps of a jitter, none of them contrast, as functions that change a frame (H, width, 3) in place."""
    operations: list[Callable[[Image], None]] = []
    for is_brightness, group in groupby(steps, key=lambda step: step[0] == BRIGHTNESS):
        factors = dict(group)  # saturation and hue commute: as neighbours they share one trip to HSV
        if is_brightness:
            operations.append(partial(_brighten, factor=np.float32(factors[BRIGHTNESS])))
            continue
        # In float32 OpenCV's hue is in degrees from 0 to 360; it takes up to 720 on the way back.
        degrees, saturation = 360 * (factors.get(HUE, 0.0) % 1), factors.get(SATURATION, 1.0)
        turn = np.array([[1, 0, 0, degrees], [0, saturation, 0, 0], [0, 0, 1, 0]])
        limits = np.tile(_HSV_LIMITS, width) if saturation > 1 else None
        operations.append(partial(_change_hsv, turn=turn, limits=limits))
    return operations


def _brighten(pixels: Image, factor: np.float32) -> None:
    np.multiply(pixels, factor, out=pixels)
    if factor > 1:
        _cut_above_one(pixels)


def _cut_above_one(pixels: Image) -> None:
    """Clip to [0, 1] what is nowhere below 0; quicker than np.clip."""
    cv2.threshold(pixels, 1, 1, cv2.THRESH_TRUNC, dst=pixels)


def _change_hsv(pixels: Image, turn: NDArray[np.float64], limits: NDArray[np.float32] | None) -> None:
    cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV, dst=pixels)
    cv2.transform(pixels, turn, dst=pixels)
    if limits is not None:
        rows = pixels.reshape(len(pixels), -1)
        np.minimum(rows, limits, out=rows)
    cv2.cvtColor(pixels, cv2.COLOR_HSV2RGB, dst=pixels)


class _Finish:
    """What follows the jitter in one clip: grayscale, blur, solarization, and the way into separate channels."""

    def __init__(self, augmentation: Augmentation, index: int, size: tuple[int, int]) -> None:
        self.grayscale = bool(np.asarray(augmentation.grayscale)[index])
        self.solarize = bool(np.asarray(augmentation.solarize)[index])
        sigma = np.asarray(augmentation.blur_sigma)[index : index + 1]
        taps = blur_taps(min(size))
        kernel = gaussian_kernels(sigma, taps)[0]
        surplus = int(np.searchsorted(2 * np.cumsum(kernel[: taps // 2]), _UNSEEN))  # on each side
        self.kernel = kernel[surplus : taps - surplus]
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
            pixels = self.blurred
            _cut_above_one(pixels)
        if self.solarize:
            np.minimum(pixels, 1 - pixels, out=pixels)
        if self.grayscale:
            out[:] = pixels
        else:
            cv2.split(pixels, list(out))
