"""Which source frames make a clip: pure functions of a video's length, the clip's shape and a random generator.

All positions are source-frame indices as ``int64``. A video shorter than a clip is looped: positions keep counting up
(so that time still runs forward for the matching of embeddings) and the frame read is ``position % num_frames``
(:func:`frames_to_read`). Written in numpy because it runs in the loading workers.

Source: section 3 of the paper ("temporal sampling"), Fig. 5(a); the interval sampler is CVRL's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from jaxtyping import Int64

FrameIndices: TypeAlias = Int64[np.ndarray, "frames"]
PairSampler: TypeAlias = Callable[[int, "ClipSpec", "ClipSpec", np.random.Generator], tuple[FrameIndices, FrameIndices]]


@dataclass(frozen=True)
class ClipSpec:
    """The shape of a clip in time.

    Args:
        num_frames: Frames in the clip.
        stride: Source frames from one clip frame to the next.
    """

    num_frames: int
    stride: int

    def __post_init__(self) -> None:
        if self.num_frames < 1 or self.stride < 1:
            raise ValueError(f"a clip needs at least one frame and a stride of at least 1, got {self}")

    @property
    def span(self) -> int:
        """Source frames from the first to the last frame of the clip, both counted."""
        return (self.num_frames - 1) * self.stride + 1

    def indices(self, start: int) -> FrameIndices:
        """Positions of the clip's frames when the first one is ``start``."""
        return start + self.stride * np.arange(self.num_frames, dtype=np.int64)


def num_starts(num_frames: int, spec: ClipSpec) -> int:
    """How many first frames a clip can have in a video of ``num_frames`` frames.

    A video that is shorter than the clip is looped, and then every frame can be the first.
    """
    if num_frames < 1:
        raise ValueError(f"a video needs at least one frame to sample from, got {num_frames}")
    return num_frames - spec.span + 1 if num_frames >= spec.span else num_frames


def frames_to_read(positions: FrameIndices, num_frames: int) -> FrameIndices:
    """Source frames at ``positions`` of a looped video of ``num_frames`` frames."""
    return positions % num_frames


def sample_clip(num_frames: int, spec: ClipSpec, rng: np.random.Generator) -> FrameIndices:
    """A clip whose start is uniform over the video."""
    return spec.indices(int(rng.integers(num_starts(num_frames, spec))))


def long_short_contained(
    num_frames: int, long: ClipSpec, short: ClipSpec, rng: np.random.Generator
) -> tuple[FrameIndices, FrameIndices]:
    """TeG's sampler: a long clip uniform over the video, a short clip uniform inside its span.

    Args:
        num_frames: Frames in the video.
        long: Shape of the long clip.
        short: Shape of the short clip; its span must fit into the long clip's.
        rng: Source of the two draws.

    Returns:
        Positions of the long and of the short clip's frames.

    Raises:
        ValueError: If the short clip's span is longer than the long clip's.
    """
    if short.span > long.span:
        raise ValueError(
            f"the short clip ({short.num_frames} frames, stride {short.stride}: {short.span} source frames) does not "
            f"fit inside the long clip ({long.num_frames} frames, stride {long.stride}: {long.span} source frames); "
            "make it shorter, or choose a sampler ending in 'random'"
        )
    long_indices = sample_clip(num_frames, long, rng)
    offset = int(rng.integers(long.span - short.span + 1))
    return long_indices, short.indices(int(long_indices[0]) + offset)


def long_short_random(
    num_frames: int, long: ClipSpec, short: ClipSpec, rng: np.random.Generator
) -> tuple[FrameIndices, FrameIndices]:
    """Both clips uniform over the video, independently (Fig. 5a, "long-short, random")."""
    return sample_clip(num_frames, long, rng), sample_clip(num_frames, short, rng)


def short_short_random(
    num_frames: int, long: ClipSpec, short: ClipSpec, rng: np.random.Generator
) -> tuple[FrameIndices, FrameIndices]:
    """Two clips of the short shape, independently uniform (Fig. 5a, "short-short, random"); ``long`` is not used."""
    return sample_clip(num_frames, short, rng), sample_clip(num_frames, short, rng)


def short_short_contained(
    num_frames: int, long: ClipSpec, short: ClipSpec, rng: np.random.Generator
) -> tuple[FrameIndices, FrameIndices]:
    """Two clips of the short shape inside one span (Fig. 5a, "short-short, contained"); ``long`` is not used.

    The paper does not define it; a clip contained in one of its own length is the same clip, so both share their frames
    and differ by augmentation alone.
    """
    clip = sample_clip(num_frames, short, rng)
    return clip, clip.copy()


def interval_probabilities(num_offsets: int) -> np.ndarray:
    """CVRL's distribution of the distance between two clips: P(d) = (2 (M - d) - 1) / M², d = 0 … M - 1.

    Args:
        num_offsets: M, the number of clip starts.

    Returns:
        Probabilities of the M distances, (M,) float64; they fall linearly.
    """
    distance = np.arange(num_offsets)
    return (2 * (num_offsets - distance) - 1) / num_offsets**2


def cvrl_interval(
    num_frames: int, long: ClipSpec, short: ClipSpec, rng: np.random.Generator
) -> tuple[FrameIndices, FrameIndices]:
    """CVRL's sampler: two clips of the short shape, near distances likelier, in random order; ``long`` is not used.

    The distance follows :func:`interval_probabilities`; the earlier clip is uniform over what then fits. In a video too
    short for one clip both starts are independent and uniform.
    """
    starts = num_starts(num_frames, short)
    if num_frames < short.span:
        first, second = (int(value) for value in rng.integers(starts, size=2))
    else:
        # The inverse of F(k) = 1 - (1 - k/M)², rounded down: the reference finds the same integer by bisection.
        distance = min(int(starts * (1.0 - np.sqrt(1.0 - rng.random()))), starts - 1)
        first = int(rng.integers(starts - distance))
        second = first + distance
    if rng.random() < 0.5:
        first, second = second, first
    return short.indices(first), short.indices(second)


SAMPLERS: dict[str, PairSampler] = {
    "long_short_contained": long_short_contained,
    "long_short_random": long_short_random,
    "short_short_contained": short_short_contained,
    "short_short_random": short_short_random,
    "cvrl_interval": cvrl_interval,
}


def linspace_clips(num_frames: int, spec: ClipSpec, num_clips: int) -> list[FrameIndices]:
    """Evenly spaced clips for testing, as the reference family takes them.

    Starts are ``linspace(0, max(0, L - T·s), num_clips)`` rounded down; note T·s, not (T - 1)·s. One clip is the middle
    one: ``(L - T·s) // 2``.

    Args:
        num_frames: L, frames in the video.
        spec: T and s.
        num_clips: How many clips.
    """
    last = max(0, num_frames - spec.num_frames * spec.stride)
    if num_clips == 1:
        return [spec.indices(last // 2)]
    return [spec.indices(int(start)) for start in np.linspace(0, last, num_clips)]


def centred_clip(num_frames: int, spec: ClipSpec, centre: int) -> FrameIndices:
    """The clip around a frame, for events, key frames and boundaries: ``centre - T·s // 2 + s·i``, i = 0 … T - 1.

    Positions before the beginning or behind the end of the video become its first or last frame, as in the programs
    of AVA and VidSitu: a window around a moment must not show another one, as looping would.

    Args:
        num_frames: Frames in the video.
        spec: T and s.
        centre: The frame in the middle.
    """
    positions = spec.indices(centre - spec.num_frames * spec.stride // 2)
    return positions.clip(0, num_frames - 1)
