"""Colour and blur of the pre-training clips, batched on the device: each clip has factors and an order of its own.

The operations and their exact form are those of the code base that the paper builds on (TensorFlow Model Garden,
``official/projects/video_ssl``): brightness is a product, contrast turns about the mean of each channel over the
whole clip, saturation and hue act in HSV, every operation clips to [0, 1], the blur is a separable Gaussian with
zeros around the picture.

There is no trip to HSV and back (on the CPU, :mod:`timegrain.data.colour_cpu` makes one). With V = max(R, G, B),
m = min(R, G, B) and chroma C = V - m, a change of saturation moves each channel along the line to V, and a turn of the
hue leaves V and C as they are: each channel is m + C·p, with p a trapezoid of the hue. Both follow from the definition
of HSV and agree with it to 1e-6.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

GREY_WEIGHTS = (0.2989, 0.5870, 0.1140)  # of R, G and B; they sum to 0.9999, as in the reference
_TINY = 1e-12  # stands for a chroma of zero; the quotient is multiplied by that chroma afterwards

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)  # the operations of the colour jitter, as Augmentation.order has them
NEUTRAL = np.array([1, 1, 1, 0], np.float32)  # the factors that change nothing


@dataclass(frozen=True)
class Augmentation:
    """What happens to the colours of one clip, or, collated, of each clip of a batch (B,).

    The values stay in NumPy on the host, also in a batch: they decide which operations are started for which clip,
    and reading them back from a device would make it wait.

    Attributes:
        factors: float32 (4,) or (B, 4): brightness, contrast and saturation factors, hue in turns.
        order: int8 (4,) or (B, 4): the operations by index into `factors`, first one first.
        grayscale: bool, () or (B,).
        blur_sigma: float32, () or (B,): standard deviation in pixels; 0 is no blur.
        solarize: bool, () or (B,).
    """

    factors: NDArray[np.float32]
    order: NDArray[np.int8]
    grayscale: NDArray[np.bool_] | np.bool_
    blur_sigma: NDArray[np.float32] | np.float32
    solarize: NDArray[np.bool_] | np.bool_

    @classmethod
    def neutral(cls) -> Augmentation:
        """The augmentation of one clip that changes nothing."""
        return cls(NEUTRAL, np.arange(4, dtype=np.int8), np.False_, np.float32(0), np.False_)

    @classmethod
    def collate(cls, augmentations: Sequence[Augmentation]) -> Augmentation:
        """Join those of single clips to those of a batch."""
        return cls(*(np.stack([getattr(one, name) for one in augmentations]) for name in cls.__dataclass_fields__))

    def __getitem__(self, rows: slice) -> Augmentation:
        """Those of some clips of a batch."""
        return Augmentation(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))

    def __len__(self) -> int:
        if self.factors.ndim != 2:
            raise TypeError("the augmentation of a single clip has no length; join several with Augmentation.collate")
        return len(self.factors)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Augmentation:
        """Itself: moving a batch to a device leaves the plan of its augmentation on the host (see above)."""
        return self


def change_colours(pixels: Tensor, augmentation: Augmentation) -> Tensor:
    """Change each clip of ``pixels`` (B, 3, T, H, W) float in [0, 1] as its augmentation says; in place where it can.

    Clips that have the same operation at the same place of their order go through it together, so a batch starts
    at most 16 operations for its jitter, whatever its size.
    """
    factors = torch.from_numpy(augmentation.factors).to(pixels.device, pixels.dtype, non_blocking=True)
    active = augmentation.factors != NEUTRAL
    for step in range(4):
        for index, operation in enumerate((brightness, contrast, saturation, hue)):
            chosen = active[:, index] & (augmentation.order[:, step] == index)
            pixels = _change(pixels, chosen, operation, factors[:, index])
    pixels = _change(pixels, augmentation.grayscale, grayscale)
    taps = blur_taps(min(pixels.shape[-2:]))
    chosen = augmentation.blur_sigma > 0
    kernels = torch.from_numpy(gaussian_kernels(augmentation.blur_sigma, taps)).to(pixels.dtype).to(pixels.device)
    pixels = _change(pixels, chosen, blur, kernels)
    return _change(pixels, augmentation.solarize, solarize)


def _change(
    pixels: Tensor, chosen: NDArray[np.bool_] | np.bool_, operation: Callable[..., Tensor], *values: Tensor
) -> Tensor:
    """Put the chosen clips of a batch through an operation with their values."""
    indices = np.flatnonzero(chosen)
    if len(indices) == 0:
        return pixels
    if len(indices) == len(pixels):
        return operation(pixels, *values)
    where = torch.from_numpy(indices).to(pixels.device, non_blocking=True)
    return pixels.index_copy_(0, where, operation(pixels[where], *(of_clip[where] for of_clip in values)))


def brightness(clips: Tensor, factor: Tensor) -> Tensor:
    """Scale the pixels: ``x · factor``, clipped. ``clips`` (B, 3, ...) in [0, 1], ``factor`` (B,)."""
    return (clips * _per_clip(factor, clips)).clamp_(0, 1)


def contrast(clips: Tensor, factor: Tensor) -> Tensor:
    """Scale the distance to the channel's mean over the whole clip. ``clips`` (B, 3, ...), ``factor`` (B,)."""
    mean = clips.mean(dim=tuple(range(2, clips.ndim)), keepdim=True)
    return torch.lerp(mean, clips, _per_clip(factor, clips)).clamp_(0, 1)


def saturation(clips: Tensor, factor: Tensor) -> Tensor:
    """Scale the S of HSV, clipped at 1. ``clips`` (B, 3, ...) in [0, 1], ``factor`` (B,)."""
    value = clips.amax(1, keepdim=True)
    chroma = value - clips.amin(1, keepdim=True)
    # New saturation over old: the factor, or 1 / S where that would pass a saturation of 1.
    gain = torch.minimum(_per_clip(factor, clips), value / chroma.clamp_(min=_TINY))
    return torch.lerp(value, clips, gain).clamp_(0, 1)


def hue(clips: Tensor, shift: Tensor) -> Tensor:
    """Turn the H of HSV by ``shift`` (B,) in turns. ``clips`` (B, 3, ...) in [0, 1]."""
    red, green, blue = clips.unbind(1)
    value, lowest = clips.amax(1), clips.amin(1)
    chroma = value - lowest
    sixths = torch.where(
        value == red,
        green - blue,
        torch.where(value == green, blue - red + 2 * chroma, red - green + 4 * chroma),
    )
    sixths /= chroma.clamp(min=_TINY)  # hue in sixths of a turn, from -1 to 5
    turn = _per_clip(6 * shift, sixths)
    channels = []
    for centre in (0.0, 2.0, 4.0):  # where red, green and blue are at their full
        # With u in [-1, 11] no modulo is needed: |u - 6| folds the second turn onto the first.
        distance = ((sixths + (turn - centre) % 6 - 6).abs_() - 3).abs_()
        channels.append(lowest + chroma * (distance - 1).clamp_(0, 1))
    return torch.stack(channels, 1).clamp_(0, 1)


def grayscale(clips: Tensor) -> Tensor:
    """Replace the channels of ``clips`` (B, 3, ...) by their luma."""
    weights = torch.tensor(GREY_WEIGHTS, dtype=clips.dtype, device=clips.device)
    grey = (clips * weights.view(1, 3, *[1] * (clips.ndim - 2))).sum(1, keepdim=True)
    return grey.repeat_interleave(3, 1)


def solarize(clips: Tensor) -> Tensor:
    """Turn the pixels from one half on to their negative: ``x`` if ``x < 0.5`` else ``1 - x``."""
    return torch.where(clips < 0.5, clips, 1 - clips)


def blur_taps(size: int) -> int:
    """Number of taps of the Gaussian for pictures of ``size`` pixels: a tenth of the size, made odd (224: 23)."""
    return 2 * (size // 10 // 2) + 1


def gaussian_kernels(sigma: NDArray[np.float32] | np.float32, taps: int) -> NDArray[np.float64]:
    """Normalised Gaussians: standard deviations (B,) in pixels, 0 for none -> (B, taps)."""
    position = np.arange(taps) - taps // 2
    spread = 2.0 * np.maximum(np.square(sigma, dtype=np.float64), 1e-6)[:, None]
    kernels = np.exp(-(position**2) / spread)
    return np.asarray(kernels / kernels.sum(1, keepdims=True))


def blur(clips: Tensor, kernels: Tensor) -> Tensor:
    """Blur every frame with zeros around it, so that borders darken.

    Args:
        clips: (B, C, T, H, W) in [0, 1].
        kernels: (B, taps), each the same along both axes; an odd number of taps.
    """
    batch, channels, time, height, width = clips.shape
    planes, radius = channels * time, kernels.shape[1] // 2
    weights = kernels.repeat_interleave(planes, 0)[:, None]  # (planes of the batch, 1, taps): one kernel a plane
    with torch.autocast(clips.device.type, enabled=False):
        images = clips.reshape(1, batch * planes, height, width)
        images = F.conv2d(images, weights[:, :, :, None], padding=(radius, 0), groups=batch * planes)
        images = F.conv2d(images, weights[:, :, None, :], padding=(0, radius), groups=batch * planes)
    return images.view(clips.shape).clamp_(0, 1)


def _per_clip(values: Tensor, clips: Tensor) -> Tensor:
    """(B,) -> (B, 1, 1, ...), to broadcast over ``clips``."""
    return values.view(-1, *[1] * (clips.ndim - 1))
