"""Which frames a sliding window reads, and which moment each time step stands for. Pure numpy.

A video is read at the positions 0, stride, 2·stride, …; a window is a run of ``num_frames`` of them, just as in
training. Windows begin at whole time steps, so that the time steps of windows that overlap are the same moments and can
be averaged. A video shorter than a window is looped as in training, but only the time steps that begin inside the video
are kept; the end of a longer one is covered by a last window that reaches back.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from timegrain.sampling import ClipSpec, frames_to_read


@dataclass(frozen=True)
class WindowPlan:
    """The windows of one video.

    Attributes:
        frames: (P,) source frame of every position; never decreasing, except where a short video begins anew.
        num_inside: Positions before a short video begins anew; P for one that is not looped.
        starts: (K,) position at which each window begins, increasing.
        window: Positions in a window.
        step: Positions that one time step covers.
    """

    frames: npt.NDArray[np.int64]
    num_inside: int
    starts: npt.NDArray[np.int64]
    window: int
    step: int

    @property
    def num_time_steps(self) -> int:
        """Time steps of the whole video, N."""
        return -(-self.num_inside // self.step)

    def window_frames(self, start: int) -> npt.NDArray[np.int64]:
        """(window,) source frames that the window beginning at position ``start`` reads.

        At the very end, where a time step is not filled, the last frame stands still for its rest.
        """
        return self.frames[np.minimum(np.arange(start, start + self.window), len(self.frames) - 1)]

    def time_steps(self, start: int) -> npt.NDArray[np.int64]:
        """Numbers of the time steps that the window beginning at ``start`` gives; those that count are below N."""
        return start // self.step + np.arange(self.window // self.step)

    def step_seconds(self, timestamps: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """(N,) mean time of the frames that each time step covers."""
        times = timestamps[self.frames[: self.num_inside]]
        begins = np.arange(0, len(times), self.step)
        counts = np.diff(np.append(begins, len(times)))
        means: npt.NDArray[np.float64] = np.add.reduceat(times, begins) / counts
        return means

    def step_spans(
        self, timestamps: npt.NDArray[np.float64], duration_seconds: float
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """(N,) first and last moment of each time step: one ends where the next begins, the last with the video."""
        begins = timestamps[self.frames[: self.num_inside : self.step]]
        return begins, np.append(begins[1:], duration_seconds)

    def clip_spans(
        self, timestamps: npt.NDArray[np.float64], duration_seconds: float
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """(K,) when the first frame of each window appears, and when its last one ends."""
        last = self.frames[np.minimum(self.starts + self.window, self.num_inside) - 1]
        ends = np.append(timestamps[1:], duration_seconds)
        return timestamps[self.frames[self.starts]], ends[last]


def plan_windows(
    frames: npt.NDArray[np.int64], clip: ClipSpec, num_time_steps: int, overlap: float = 0.0
) -> WindowPlan:
    """Lay windows over a video.

    Args:
        frames: (F,) the video's frames, before the stride: 0 … F-1, or for a stated frame rate the frame shown at each
            tick.
        clip: Shape of a window; its number of frames a multiple of ``num_time_steps``.
        num_time_steps: Time steps that the backbone leaves of a window.
        overlap: Share of a window that the next one covers again, from 0 up to below 1; rounded to whole time steps.

    Raises:
        ValueError: The overlap is outside [0, 1), or the video has no frame.
    """
    if not 0 <= overlap < 1:
        raise ValueError(f"overlap must be at least 0 and below 1, got {overlap}")
    if not len(frames):
        raise ValueError("the video has no frame")
    window, step = clip.num_frames, clip.num_frames // num_time_steps
    assert step * num_time_steps == window
    read = frames[:: clip.stride]
    if len(read) < window:
        looped = frames[frames_to_read(clip.indices(0), len(frames))]
        return WindowPlan(looped, len(read), np.zeros(1, np.int64), window, step)
    hop = max(step, round(window * (1 - overlap) / step) * step)
    starts = np.arange(0, len(read) - window + 1, hop)
    last = -(-(len(read) - window) // step) * step
    if starts[-1] < last:
        starts = np.append(starts, last)
    return WindowPlan(read, len(read), starts, window, step)
