"""A boundary score for every candidate of a video of any length, and the features behind it.

Two ways that give a window its features:

``windows``  every window goes through the backbone by itself, as in training. Exact; neighbouring windows are computed
             again and again. Each frame is still decoded and resized once.
``dense``    the backbone, convolutional in time, goes over long chunks; windows then take their time steps from there.
             A window at stride s begins at one of ``temporal stride · s`` offsets, so the chunk is run once per offset
             that the candidates have: the saving grows with the overlap of windows, and with ``every``.

The two agree on every time step whose receptive field lies inside its window. Nearer to a window's ends the backbone's
padding stands for what is beyond in ``windows``, and the neighbouring frames themselves in ``dense``; with R3D-50 (20 clip
frames either way) that is every time step of a window of 16 frames, so the two are different functions there. A dense
value does not depend on how the video is cut into chunks: chunks carry a margin as long as the receptive field. Beyond
the ends of a video the end frame stands still, in both.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from einops import rearrange
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from timegrain.boundaries import Picking
from timegrain.boundary_layout import Layout, Mode, Span
from timegrain.data.boundaries import Picture, picture
from timegrain.data.decoding import VideoError, VideoReader, open_video
from timegrain.data.transforms import to_model_input
from timegrain.models.boundary import BoundaryConfig, BoundaryDetector
from timegrain.models.boundary_heads import BoundaryMatching
from timegrain.progress import track


@dataclass(frozen=True)
class VideoScores:
    """What a detector says of one video.

    Attributes:
        frames: (N,) source frames of the candidates.
        seconds: (N,) when they appear.
        scores: (N,) from 0 to 1; how sure the detector is of a boundary there.
        duration_seconds: Of the video.
    """

    frames: npt.NDArray[np.int64]
    seconds: npt.NDArray[np.float64]
    scores: npt.NDArray[np.float64]
    duration_seconds: float

    def boundaries(self, picking: Picking) -> list[float]:
        """Seconds of the boundaries."""
        return picking.boundaries(self.scores, self.seconds)


def read_spans(reader: VideoReader, spans: Sequence[Span], size: int, how: Picture) -> Iterator[Tensor]:
    """Frames of each span, uint8 (frames, C, size, size); decoded and resized once, kept only while needed."""
    last = reader.num_frames - 1
    stream = reader.stream()
    kept: deque[Tensor] = deque()
    first = 0  # number of kept[0]
    for span in spans:
        wanted = np.clip(np.arange(span.begin, span.end), 0, last)
        while first + len(kept) <= wanted[-1]:
            frame = next(stream, None)
            if frame is None:
                raise VideoError(reader.info.path, f"ends before frame {first + len(kept)} of {reader.num_frames}")
            kept.append(picture(frame[None], size, how)[0].contiguous())
        while first < wanted[0]:
            kept.popleft()
            first += 1
        yield torch.stack([kept[number - first] for number in wanted.tolist()])


class _SpanData(IterableDataset[tuple[int, Any]]):
    """Every span's frames of many videos, video by video; a broken one gives its reason instead of the rest.

    Items are (video, (timestamps, duration)) when a video is opened, (video, frames) per span, (video, reason) on failure.
    """

    def __init__(self, paths: Sequence[str], layout: Layout, mode: Mode, size: int, how: Picture) -> None:
        self.paths, self.layout, self.mode, self.size, self.how = list(paths), layout, mode, size, how

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        worker = get_worker_info()
        begin, hop = (worker.id, worker.num_workers) if worker is not None else (0, 1)
        for video in range(begin, len(self.paths), hop):
            try:
                with open_video(self.paths[video]) as reader:
                    yield video, (reader.timestamps, reader.info.duration_seconds)
                    spans = self.layout.spans(reader.num_frames, self.mode)
                    for frames in read_spans(reader, spans, self.size, self.how):
                        yield video, frames
            except VideoError as error:
                yield video, error.reason


class SpanComputer:
    """Features or scores of spans.

    Args:
        detector: On its device, in evaluation mode.
        layout: Where things lie.
        mode: See this module's text.
        batch_size: Windows that go through the backbone at once; for ``dense``, chunks of as many frames in sum.
    """

    def __init__(self, detector: BoundaryDetector, layout: Layout, mode: Mode, batch_size: int) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.detector, self.layout, self.mode, self.batch_size = detector, layout, mode, batch_size
        self.device = next(detector.head.parameters()).device

    @torch.inference_mode()
    def window_scores(self, span: Span, frames: Tensor) -> Tensor:
        """(count,) scores of a span's candidates, each window by itself."""
        layout = self.layout
        begins = torch.arange(span.count) * layout.every
        places = begins[:, None] + torch.arange(layout.num_frames) * layout.stride
        logits = [
            self.detector(to_model_input(frames[part].to(self.device))).float().cpu()
            for part in torch.split(places, self.batch_size)
        ]
        return torch.cat(logits).softmax(1)[:, 1]

    @torch.inference_mode()
    def entries(self, span: Span, frames: Tensor) -> Tensor:
        """(count, D) features of a span's entries, float32, on the CPU."""
        layout = self.layout
        steps, margin = span.count // layout.phases, layout.margin_steps
        clip_frames = (steps + 2 * margin) * layout.temporal_stride
        begins = torch.arange(layout.phases) * layout.hop
        places = begins[:, None] + torch.arange(clip_frames) * layout.stride
        at_once = max(1, self.batch_size * layout.num_frames // clip_frames)
        chunks = [
            self.detector.features(to_model_input(frames[part].to(self.device))).float().cpu()
            for part in torch.split(places, at_once)
        ]
        return rearrange(torch.cat(chunks)[:, margin : margin + steps], "p k d -> (k p) d")


class Scorer:
    """Scores of one video from the values of its spans, given in order; keeps no more than what is still needed.

    Windows are scored as soon as all their entries are there. What scores stretches waits for the video's end and keeps
    one entry per candidate: about 300 MB for an hour of 30 frames a second, every third a candidate, 2048 features.

    Args:
        detector: On its device, in evaluation mode.
        layout: Where things lie.
        mode: Whether values are window scores or entries.
        num_frames: Of the video.
    """

    def __init__(self, detector: BoundaryDetector, layout: Layout, mode: Mode, num_frames: int) -> None:
        self.detector, self.layout, self.mode = detector, layout, mode
        self.total = layout.num_candidates(num_frames)
        self.device = next(detector.head.parameters()).device
        self.parts: list[Tensor] = []
        self.done = 0  # candidates scored, or whose entry is kept
        self.entries: Tensor | None = None
        self.first = 0  # number of the first of these entries

    def add(self, values: Tensor) -> None:
        """Take the values of the next span: scores of candidates (count,), or entries (count, D)."""
        if self.mode == "windows":
            self.parts.append(values)
            return
        self.entries = values if self.entries is None else torch.cat([self.entries, values])
        available = self.first + len(self.entries)
        rows = self.layout.entries_of(np.arange(self.done, self.total))
        ready = int((rows[:, -1] < available).sum())
        if ready:
            windows = self.entries[torch.from_numpy(rows[:ready] - self.first)]
            self.parts.append(self._score(windows) if self.detector.config.is_windowed else windows[:, 0])
            self.done += ready
        keep = min(int(rows[ready, 0]), available) if ready < len(rows) else available
        self.entries, self.first = self.entries[keep - self.first :].clone(), keep

    @torch.inference_mode()
    def _score(self, windows: Tensor) -> Tensor:
        return torch.cat(
            [
                self.detector.head(part.to(self.device)).float().softmax(1)[:, 1].cpu()
                for part in torch.split(windows, 512)
            ]
        )

    @torch.inference_mode()
    def scores(self) -> Tensor:
        """(N,) of all candidates, once every span was added."""
        values = torch.cat(self.parts)
        assert len(values) == self.total
        if self.mode == "windows" or self.detector.config.is_windowed:
            return values
        head = self.detector.head
        if not isinstance(head, BoundaryMatching):
            return self.detector.stretch_scores(values[None].to(self.device))[0].float().cpu()
        # Stretches of one length that overlap by half; the last moment stands still where a video is shorter.
        length = head.num_moments
        found = torch.zeros(self.total)
        for begin in range(0, max(1, self.total - length // 2), length // 2):
            part = torch.arange(begin, begin + length).clamp(max=self.total - 1)
            new = self.detector.stretch_scores(values[part][None].to(self.device))[0].float().cpu()
            inside = slice(begin, min(begin + length, self.total))
            found[inside] = torch.maximum(found[inside], new[: self.total - begin])
        return found


def score_videos(
    detector: BoundaryDetector,
    paths: Sequence[str],
    *,
    mode: Mode = "windows",
    every: int | None = None,
    batch_size: int = 16,
    workers: int = 0,
    progress: bool = True,
) -> Iterator[tuple[int, VideoScores | str]]:
    """Scores of videos, as each is finished.

    Args:
        detector: On the device to use; evaluated, and its mode restored.
        paths: The videos.
        mode: See this module's text. A detector with a frozen backbone was trained on dense features and uses them.
        every: Source frames from one candidate to the next, if not as in training.
        batch_size: Windows that go through the network at once.
        workers: Processes that decode; 0 decodes here.
        progress: Show a progress line.

    Yields:
        The video's number, and its scores or the reason why there are none; every video once.

    Raises:
        ValueError: The backbone cannot be run densely.
    """
    mode = "dense" if detector.config.frozen else mode
    layout = Layout.of(detector, every, dense=mode == "dense")
    opened: dict[int, tuple[Opened, Scorer]] = {}
    for video, event in span_values(detector, paths, layout, mode, batch_size, workers, progress):
        if isinstance(event, str):
            opened.pop(video, None)
            yield video, event
        elif isinstance(event, Opened):
            opened[video] = event, Scorer(detector, layout, mode, len(event.timestamps))
        elif isinstance(event, Tensor):
            opened[video][1].add(event)
        else:
            facts, scorer = opened.pop(video)
            frames = np.arange(0, len(facts.timestamps), layout.every)
            scores = scorer.scores().double().numpy()
            yield video, VideoScores(frames, facts.timestamps[frames], scores, facts.duration_seconds)


@dataclass(frozen=True)
class Opened:
    """What is known of a video once it is open: (F,) when its frames appear, and its duration."""

    timestamps: npt.NDArray[np.float64]
    duration_seconds: float


def span_values(
    detector: BoundaryDetector,
    paths: Sequence[str],
    layout: Layout,
    mode: Mode,
    batch_size: int,
    workers: int,
    progress: bool,
    description: str = "looking for boundaries",
) -> Iterator[tuple[int, Opened | Tensor | str | None]]:
    """What the backbone makes of videos, span by span; spans of one video in order, videos of several workers mixed.

    Yields:
        The video's number with: what is known once it is open; the values of each span (see :class:`SpanComputer`);
        None at its end; or, at any time, the reason of a failure, which ends it.

    Raises:
        ValueError: The backbone cannot be run densely.
    """
    if mode == "dense":
        _ = layout.margin_steps  # complains before any video is opened
    was_training = detector.training
    detector.eval()
    config: BoundaryConfig = detector.config
    computer = SpanComputer(detector, layout, mode, batch_size)
    data = _SpanData(paths, layout, mode, config.crop_size, config.picture)
    workers = min(workers, len(paths))
    loader = DataLoader(data, batch_size=None, num_workers=workers, prefetch_factor=1 if workers else None)
    left: dict[int, deque[Span]] = {}
    bar = iter(track(range(len(paths)), description, len(paths))) if progress else iter(range(len(paths)))
    next(bar, None)
    try:
        for video, item in loader:
            if isinstance(item, str):
                yield video, item
                next(bar, None)
            elif isinstance(item, Tensor):
                span = left[video].popleft()
                yield video, computer.entries(span, item) if mode == "dense" else computer.window_scores(span, item)
                if not left[video]:
                    del left[video]
                    yield video, None
                    next(bar, None)
            else:
                left[video] = deque(layout.spans(len(item[0]), mode))
                yield video, Opened(np.asarray(item[0]), float(item[1]))
    finally:
        detector.train(was_training)
