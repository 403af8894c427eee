"""Features of videos of any length: ``timegrain.load(weights).embed("a.mp4")``.

A window of the encoder's clip length slides over the video; frames are decoded once, one after the other, and only
those of the windows in the present batch are in memory. Every time step keeps its place in the video's time.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from timegrain.data.decoding import VideoError, VideoReader, open_video
from timegrain.data.location import file_name
from timegrain.data.transforms import center_view, three_crops, to_model_input
from timegrain.data.video import indices_at
from timegrain.feature_files import EmbeddedFiles, embed_files
from timegrain.feature_tables import VideoFeatures
from timegrain.models.hub import VideoEncoder
from timegrain.models.weights import choose_device, find_encoder, fingerprint
from timegrain.progress import track
from timegrain.sampling import ClipSpec
from timegrain.windows import WindowPlan, plan_windows

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ViewSettings:
    """How videos are looked at.

    Args:
        head: ``fine`` or ``persistent`` gives L2-normalised embeddings of that projection head; None the features.
        overlap: Share of a window that the next one covers again; time steps seen twice are averaged, those from the
            middle of a window weighing more.
        num_crops: 1 is the square in the middle of the picture; 3 averages squares along its longer side.
        fps: Watch every video as if it had this frame rate (for videos whose rate differs from the training videos');
            None takes its own frames.
        stride: Frames from one clip frame to the next; None takes that of the training.
        num_frames: Frames in a window; None takes that of the training.
    """

    head: str | None = None
    overlap: float = 0.0
    num_crops: int = 1
    fps: float | None = None
    stride: int | None = None
    num_frames: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.overlap < 1:
            raise ValueError(f"overlap must be at least 0 and below 1, got {self.overlap}")
        if self.num_crops not in (1, 3):
            raise ValueError(f"num_crops must be 1 or 3, got {self.num_crops}")
        if self.fps is not None and not 0 < self.fps < np.inf:
            raise ValueError(f"fps must be a number above 0, got {self.fps}")


class Embedder:
    """An encoder on a device, ready for videos.

    Args:
        encoder: The encoder; it is put into evaluation mode and moved.
        device: Where it runs.
        batch_size: Windows that go through it at once.
    """

    def __init__(self, encoder: VideoEncoder, device: torch.device, batch_size: int = 4) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.encoder = encoder.to(device).eval()
        self.device, self.batch_size = device, batch_size
        self._fingerprint: str | None = None

    @property
    def fingerprint(self) -> str:
        """A short name of the weights; equal weights, equal name."""
        if self._fingerprint is None:
            self._fingerprint = fingerprint(self.encoder)
        return self._fingerprint

    def embed(
        self,
        path: str | os.PathLike[str],
        *,
        head: str | None = None,
        overlap: float = 0.0,
        num_crops: int = 1,
        fps: float | None = None,
        stride: int | None = None,
        num_frames: int | None = None,
        progress: bool = False,
    ) -> VideoFeatures:
        """Features of one video, per time step, per window and for all of it.

        Args:
            path: The file.
            head: See :class:`ViewSettings`, for this and the next five.
            overlap: Share of a window that the next one covers again.
            num_crops: 1 or 3.
            fps: Frame rate to watch the video at.
            stride: Instead of the training's.
            num_frames: Instead of the training's.
            progress: Show a progress line.

        Raises:
            VideoError: The video cannot be read.
            ValueError: A setting is impossible, or the encoder has no such head.
        """
        return self.embed_with(path, ViewSettings(head, overlap, num_crops, fps, stride, num_frames), progress)

    def embed_with(self, path: str | os.PathLike[str], settings: ViewSettings, progress: bool = False) -> VideoFeatures:
        """As :meth:`embed`, with the settings in one object."""
        if settings.head is not None and settings.head not in self.encoder.heads:
            known = ", ".join(self.encoder.heads) or "no projection heads"
            raise ValueError(f"these weights have no head {settings.head!r}; they have {known}")
        clip, num_steps = self.clip_shape(settings)
        with open_video(path) as reader:
            timestamps, duration = reader.timestamps, reader.info.duration_seconds
            plan = plan_windows(_frames_of(reader, settings.fps), clip, num_steps, settings.overlap)
            batches = _batches(_windows(reader, plan, self.encoder.config.crop_size, settings.num_crops), self)
            if progress:
                batches = track(batches, file_name(os.fspath(path)), total=-(-len(plan.starts) // self.batch_size))
            starts, outputs = [], []
            for batch_starts, features in batches:
                starts += batch_starts
                outputs.append(self._project(features, settings.head))
        return _assemble(os.fspath(path), plan, starts, torch.cat(outputs), timestamps, duration, settings.head)

    def embed_files(
        self,
        inputs: Iterable[str | os.PathLike[str]],
        out: str | os.PathLike[str],
        settings: ViewSettings | None = None,
    ) -> EmbeddedFiles:
        """Features of many videos in one Parquet or npz file; see :mod:`timegrain.feature_tables` for its layout.

        Args:
            inputs: Videos and folders of videos.
            out: The file to write.
            settings: How videos are looked at.
        """
        return embed_files(self, inputs, out, settings or ViewSettings())

    def clip_shape(self, settings: ViewSettings) -> tuple[ClipSpec, int]:
        """Shape of a window, its frames rounded up to whole time steps, and its number of time steps."""
        config = self.encoder.config
        stride = settings.stride if settings.stride is not None else config.clip_stride
        wanted = settings.num_frames if settings.num_frames is not None else config.clip_num_frames
        clip = ClipSpec(wanted, stride)  # complains about impossible numbers
        num_steps = self.encoder.backbone.num_time_steps(clip.num_frames)
        per_step = -(-clip.num_frames // num_steps)
        return ClipSpec(per_step * num_steps, stride), num_steps

    @torch.inference_mode()
    def encode(self, clips: Tensor) -> Tensor:
        """Features (B, T', D) on the CPU, float32, of clips (B, T, C, H, W) uint8."""
        features: Tensor = self.encoder(to_model_input(clips.to(self.device)))
        return features.float().cpu()

    @torch.inference_mode()
    def _project(self, features: Tensor, head: str | None) -> Tensor:
        """One head's output, not normalised: (B, T', D) -> (B, T', C)."""
        if head is None:
            return features
        return self.encoder.embed(features.to(self.device), head).float().cpu()


def _frames_of(reader: VideoReader, fps: float | None) -> npt.NDArray[np.int64]:
    """The video's frames, or those shown at the ticks of another frame rate."""
    if fps is None:
        return np.arange(reader.num_frames)
    duration = reader.info.duration_seconds
    ticks = np.arange(max(1, int(np.ceil(duration * fps - 1e-6)))) / fps
    return indices_at(ticks, reader.timestamps, duration)


def _windows(reader: VideoReader, plan: WindowPlan, size: int, num_crops: int) -> Iterator[tuple[int, Tensor]]:
    """Each window's start and its views, uint8 (crops, T, C, size, size); a frame is kept only while it is needed."""
    wanted = np.unique(plan.frames)
    strides = np.diff(wanted)
    step = int(strides[0]) if len(strides) and (strides == strides[0]).all() else 1
    stream = reader.stream(int(wanted[0]), int(wanted[-1]) + 1, step)
    numbers = iter(range(int(wanted[0]), int(wanted[-1]) + 1, step))
    needed = set(wanted.tolist())
    views: dict[int, Tensor] = {}
    newest = -1
    order: deque[int] = deque()
    for start in plan.starts.tolist():
        frames = plan.window_frames(start)
        while order and len(plan.starts) > 1 and order[0] < frames[0]:
            del views[order.popleft()]
        while newest < frames.max():
            newest, frame = next(numbers), next(stream, None)
            if frame is None:
                raise VideoError(reader.info.path, f"ends before frame {newest} of {reader.num_frames}")
            if newest in needed:
                views[newest] = _views(frame, size, num_crops)
                order.append(newest)
        yield start, torch.stack([views[frame] for frame in frames.tolist()], 1)


def _views(frame: Tensor, size: int, num_crops: int) -> Tensor:
    """One frame (C, H, W) as uint8 (crops, C, size, size)."""
    if num_crops == 1:
        return center_view(frame[None], size, rounding="nearest").clone()
    return three_crops(frame[None], size, rounding="nearest")[:, 0]


def _batches(windows: Iterator[tuple[int, Tensor]], embedder: Embedder) -> Iterator[tuple[list[int], Tensor]]:
    """Windows through the encoder, ``batch_size`` at once: their starts and features (B, T', D), crops averaged."""
    starts: list[int] = []
    clips: list[Tensor] = []

    def encode() -> Tensor:
        features = [embedder.encode(torch.stack(crops)) for crops in zip(*clips, strict=True)]
        return torch.stack(features).mean(0)

    for start, views in windows:
        starts.append(start)
        clips.append(views)
        if len(clips) == embedder.batch_size:
            yield starts, encode()
            starts, clips = [], []
    if clips:
        yield starts, encode()


def _assemble(
    path: str,
    plan: WindowPlan,
    starts: list[int],
    outputs: Tensor,
    timestamps: Array,
    duration_seconds: float,
    head: str | None,
) -> VideoFeatures:
    """Average what several windows say of one time step, and put times to everything.

    A window knows least at its ends, where the network's padding stands for what came before and comes after, so its
    time steps weigh by their distance from the nearer end.
    """
    sums = outputs.new_zeros(plan.num_time_steps, outputs.shape[-1])
    weights = outputs.new_zeros(plan.num_time_steps, 1)
    places = torch.arange(outputs.shape[1])
    weight = torch.minimum(places + 1, len(places) - places).to(outputs)[:, None]
    for start, features in zip(starts, outputs, strict=True):
        steps = torch.from_numpy(plan.time_steps(start))
        inside = steps < plan.num_time_steps
        sums.index_add_(0, steps[inside], (features * weight)[inside])
        weights.index_add_(0, steps[inside], weight[inside])
    step_features, clip_features = sums / weights, outputs.mean(1)
    video_feature = clip_features.mean(0)
    if head is not None:
        step_features, clip_features = F.normalize(step_features, dim=1), F.normalize(clip_features, dim=1)
        video_feature = F.normalize(video_feature, dim=0)
    start_seconds, end_seconds = plan.step_spans(timestamps, duration_seconds)
    clip_start_seconds, clip_end_seconds = plan.clip_spans(timestamps, duration_seconds)
    return VideoFeatures(
        path=path,
        features=step_features.numpy(),
        timestamps_seconds=plan.step_seconds(timestamps),
        start_seconds=start_seconds,
        end_seconds=end_seconds,
        duration_seconds=duration_seconds,
        clip_features=clip_features.numpy(),
        clip_start_seconds=clip_start_seconds,
        clip_end_seconds=clip_end_seconds,
        video_feature=video_feature.numpy(),
        head=head,
    )


def load(
    weights: str | os.PathLike[str] | VideoEncoder, device: str | torch.device = "auto", batch_size: int = 4
) -> Embedder:
    """Load weights, ready to embed videos.

    Args:
        weights: A ``.safetensors`` file, the folder of a run, ``OWNER/NAME`` on the Hugging Face Hub, or an encoder.
        device: ``auto`` takes a GPU where there is one.
        batch_size: Windows that go through the network at once; memory grows with it.

    Raises:
        FileNotFoundError: There are no such weights.
        ValueError: The file is damaged or not TimeGrain's, or the device cannot be used.

    Example:
        >>> features = timegrain.load("weights.safetensors").embed("a.mp4")  # doctest: +SKIP
        >>> features.features.shape, features.timestamps_seconds[:2]  # doctest: +SKIP
        ((75, 2048), array([0.08, 0.4 ]))
    """
    encoder = weights if isinstance(weights, VideoEncoder) else find_encoder(weights)
    return Embedder(encoder, choose_device(device), batch_size)


def embed(
    path: str | os.PathLike[str],
    weights: str | os.PathLike[str] | VideoEncoder,
    *,
    device: str = "auto",
    **settings: Any,
) -> VideoFeatures:
    """Features of one video; for several, load the weights once with :func:`load`.

    Args:
        path: The video.
        weights: See :func:`load`.
        device: See :func:`load`.
        **settings: Of :meth:`Embedder.embed`.
    """
    return load(weights, device).embed(path, **settings)


def self_similarity(
    video: str | os.PathLike[str] | VideoFeatures,
    weights: str | os.PathLike[str] | VideoEncoder | None = None,
    *,
    device: str = "auto",
    **settings: Any,
) -> npt.NDArray[np.float32]:
    """(N, N) cosine similarity between all time steps of a video.

    Args:
        video: A file, or features that were computed before.
        weights: See :func:`load`; needed for a file.
        device: See :func:`load`.
        **settings: Of :meth:`Embedder.embed`.

    Raises:
        ValueError: A file without weights.
    """
    if isinstance(video, VideoFeatures):
        return video.self_similarity()
    if weights is None:
        raise ValueError(f"weights are needed to look at {video}")
    return embed(video, weights, device=device, **settings).self_similarity()
