"""Which source frames make a clip: pure functions of a video's length, the clip's shape and a random generator.

All positions are source-frame indices as ``int64``. A video shorter than a clip is looped: positions keep counting up
(so that time still runs forward for the matching of embeddings) and the frame read is ``position % num_frames``
(:func:`frames_to_read`). Written in numpy because it runs in the loading workers.

Source: section 3 of the paper ("temporal sampling"), Fig. 5(a); the interval sampler is CVRL's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from jaxtyping import Int64

FrameIndices: TypeAlias = Int64[np.ndarray, "frames"]
ClipSampler: TypeAlias = Callable[[int, Sequence["ClipSpec"], np.random.Generator], tuple[FrameIndices, ...]]


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


def contained(num_frames: int, specs: Sequence[ClipSpec], rng: np.random.Generator) -> tuple[FrameIndices, ...]:
    """TeG's sampler: the first (long) clip uniform over the video, the others uniform inside its span.

    Args:
        num_frames: Frames in the video.
        specs: Shapes of the clips; the spans of all must fit into that of the first.
        rng: Source of one draw per clip.

    Returns:
        Positions of the frames of each clip.

    Raises:
        ValueError: If a clip's span is longer than the first one's.
    """
    long, *others = specs
    for short in others:
        if short.span > long.span:
            raise ValueError(
                f"the short clip ({short.num_frames} frames, stride {short.stride}: {short.span} source frames) does "
                f"not fit inside the long clip ({long.num_frames} frames, stride {long.stride}: {long.span} source "
                "frames); make it shorter, or choose a sampler ending in 'random'"
            )
    first = sample_clip(num_frames, long, rng)
    offsets = [int(rng.integers(long.span - short.span + 1)) for short in others]
    return first, *(short.indices(int(first[0]) + offset) for short, offset in zip(others, offsets, strict=True))


def independent(num_frames: int, specs: Sequence[ClipSpec], rng: np.random.Generator) -> tuple[FrameIndices, ...]:
    """Every clip uniform over the video by itself (Fig. 5a, "random"; the ρ clips of ρMoCo and ρBYOL)."""
    return tuple(sample_clip(num_frames, spec, rng) for spec in specs)


def same(num_frames: int, specs: Sequence[ClipSpec], rng: np.random.Generator) -> tuple[FrameIndices, ...]:
    """One clip, as many times as there are shapes: the views differ by augmentation alone.

    It is Fig. 5(a)'s "short-short, contained", which the paper does not define (a clip contained in one of its own length
    is the same clip), and how objectives for pictures make their two views.

    Raises:
        ValueError: If the shapes are not all one.
    """
    if len(set(specs)) > 1:
        raise ValueError(f"the same clip cannot have several shapes, got {', '.join(map(str, specs))}")
    clip = sample_clip(num_frames, specs[0], rng)
    return tuple(clip.copy() for _ in specs)


def interval_probabilities(num_offsets: int) -> np.ndarray:
    """CVRL's distribution of the distance between two clips: P(d) = (2 (M - d) - 1) / M², d = 0 … M - 1.

    Args:
        num_offsets: M, the number of clip starts.

    Returns:
        Probabilities of the M distances, (M,) float64; they fall linearly.
    """
    distance = np.arange(num_offsets)
    return (2 * (num_offsets - distance) - 1) / num_offsets**2


def cvrl_interval(num_frames: int, specs: Sequence[ClipSpec], rng: np.random.Generator) -> tuple[FrameIndices, ...]:
    """CVRL's sampler: two clips of one shape, near distances likelier, in random order.

    The distance follows :func:`interval_probabilities`; the earlier clip is uniform over what then fits. In a video too
    short for one clip both starts are independent and uniform.

    Raises:
        ValueError: If the clips are not two, or of two shapes.
    """
    if len(specs) != 2 or specs[0] != specs[1]:
        raise ValueError(f"the sampler cvrl_interval draws two clips of one shape, got {', '.join(map(str, specs))}")
    spec = specs[0]
    starts = num_starts(num_frames, spec)
    if num_frames < spec.span:
        first, second = (int(value) for value in rng.integers(starts, size=2))
    else:
        # The inverse of F(k) = 1 - (1 - k/M)², rounded down: the reference finds the same integer by bisection.
        distance = min(int(starts * (1.0 - np.sqrt(1.0 - rng.random()))), starts - 1)
        first = int(rng.integers(starts - distance))
        second = first + distance
    if rng.random() < 0.5:
        first, second = second, first
    return spec.indices(first), spec.indices(second)


SAMPLERS: dict[str, ClipSampler] = {
    "long_short_contained": contained,
    "long_short_random": independent,
    "short_short_contained": same,
    "short_short_random": independent,
    "cvrl_interval": cvrl_interval,
    "random": independent,
    "same": same,
}


def pair_specs(sampler: str, long: ClipSpec, short: ClipSpec) -> tuple[ClipSpec, ClipSpec]:
    """Shapes of the two clips of Fig. 5(a)'s samplers: long and short where the name begins so, else short twice."""
    return (long, short) if sampler.startswith("long_short") else (short, short)


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
