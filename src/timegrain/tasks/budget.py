"""The arithmetic of ``timegrain plan``: what bounds a run, how long it takes, what would fit. No measuring, no printing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from timegrain.sampling import ClipSpec
from timegrain.tasks.hardware import Gpu
from timegrain.tasks.setup import Schedule

Range = tuple[float, float]

# CPU time of one sample to uint8 clips, milliseconds on one core of an AMD EPYC (Zen 3): benchmarks/RESULTS.md, "sample to
# uint8", TimeGrain's rows, a TeG sample (32 x 4 and 16 x 2) at 224 pixels from 340 x 256 H.264.
SOURCE = "benchmarks/RESULTS.md, 340 x 256 H.264 on a core of an AMD EPYC (Zen 3)"
_OFTEN_MS, _OFTEN_FRAMES = 86.3, 125 + 6  # key frames every 12: half a group is decoded in front of the span
_RARE_MS, _RARE_FRAMES = 145.9, 125 + 75  # key frames every 150
FRAME_STORE_MS = 20.7  # of 48 JPEGs
_STORE_FRAMES = 48


@dataclass(frozen=True)
class Loading:
    """What a sample costs before it reaches the training process.

    Args:
        seconds: Of one core's CPU, from and to.
        source: Where the numbers come from.
        colour_seconds: Of CPU for colour and blur, where the training process does them on the CPU.
    """

    seconds: Range
    source: str
    colour_seconds: float = 0.0


def stated_loading(specs: Sequence[ClipSpec], contained: bool, samples_per_visit: int = 1) -> Loading:
    """The cost of a sample where there is no video to measure on: the project's own numbers, by frames decoded.

    Args:
        specs: Shapes of the clips.
        contained: Whether the clips lie inside the longest one, so that one span is decoded for all.
        samples_per_visit: That a decoded video gives: at best all of one span, at worst of as many.
    """
    spans = [spec.span for spec in specs]
    low, high = 0.0, 0.0
    for span in [max(spans)] if contained else spans:
        low += 1e-3 * _OFTEN_MS * (span + 6) / _OFTEN_FRAMES
        high += 1e-3 * _RARE_MS * (span + 75) / _RARE_FRAMES
    low /= samples_per_visit
    return Loading((low, high), f"{SOURCE}; from key frames every 12 frames to every 150; name videos to measure yours")


def store_seconds(specs: Sequence[ClipSpec]) -> float:
    """CPU seconds of a sample from stored JPEG frames (`timegrain prepare --frames`)."""
    return 1e-3 * FRAME_STORE_MS * sum(spec.num_frames for spec in specs) / _STORE_FRAMES


@dataclass(frozen=True)
class Estimate:
    """What a run will be like. Ranges are from and to.

    Args:
        step_seconds: Of one batch on one device, computing alone.
        compute: Videos per second and device that computing allows.
        loading: Videos per second and device that its cores can make.
        cores: That one device needs so that it never waits.
        bound: "loading", "compute", "loading or compute" or "memory".
        seconds: Of the whole run.
    """

    step_seconds: Range
    compute: Range
    loading: Range
    cores: Range
    bound: str
    seconds: Range


def estimate(
    step_seconds: Range,
    loading: Loading,
    cores: float,
    schedule: Schedule,
    batch_size: int,
    accumulate: int,
    fits: bool,
) -> Estimate:
    """Weigh computing against loading.

    Args:
        step_seconds: Of one batch on one device, from and to.
        loading: CPU cost of a sample.
        cores: That each device has for loading.
        schedule: Of the run.
        batch_size: Videos of a batch on one device.
        accumulate: Batches of an optimiser step.
        fits: Whether the memory suffices.
    """
    compute = (batch_size / step_seconds[1], batch_size / step_seconds[0])
    loaded = (cores / loading.seconds[1], cores / loading.seconds[0])
    needed = (compute[0] * loading.seconds[0], compute[1] * loading.seconds[1])
    if not fits:
        bound = "memory"
    elif loaded[1] < compute[0]:
        bound = "loading"
    elif compute[1] < loaded[0]:
        bound = "compute"
    else:
        bound = "loading or compute"
    batches = schedule.steps * accumulate
    slow, fast = min(compute[0], loaded[0]), min(compute[1], loaded[1])
    return Estimate(
        step_seconds, compute, loaded, needed, bound, (batches * batch_size / fast, batches * batch_size / slow)
    )


def gpu_step_seconds(flops: float, gpu: Gpu, precision: str) -> Range:
    """Seconds of a step of so many operations at the assumed shares of the peak, from and to."""
    low, high, _ = gpu.rate(precision)
    return flops / high, flops / low


def cpu_batch_seconds(step: float, loading: Loading, batch_size: int, cores: int, workers: int) -> Range:
    """Seconds of a batch where training and loading share the cores of one machine.

    Without workers they take turns. With workers, the batch takes at least as long as each part does on what it may
    use, and at most as if nothing overlapped.

    Args:
        step: Seconds of the step by the clock.
        loading: CPU cost of a sample.
        batch_size: Videos of a batch.
        cores: Of the machine.
        workers: That load.
    """
    colour = batch_size * loading.colour_seconds
    found = []
    for each in loading.seconds:
        load = batch_size * each
        in_turn = load + colour + step
        if workers == 0:
            found.append(in_turn)
        else:
            found.append(max(colour + step, load / min(workers, cores), in_turn / cores))
    return found[0], found[1]


def largest_that_fits(bytes_of: Callable[[int], float], capacity: float, most: int, least: int) -> int | None:
    """The largest power of two from ``least`` to ``most`` whose memory fits; None if even ``least`` does not.

    Memory grows by the same amount with each, so two sizes tell about where to look; what is given out was counted.
    """
    first, second = bytes_of(least), bytes_of(2 * least)
    if first > capacity:
        return None
    slope = max((second - first) / least, 1.0)
    size = least
    while 2 * size <= min(most, least + (capacity - first) / slope):
        size *= 2
    while size > least and bytes_of(size) > capacity:
        size //= 2
    return size
