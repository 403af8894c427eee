"""``timegrain.find_boundaries("a.mp4", model=...)``: where events begin and end in a video of any length.

With the weights of a trained detector (``timegrain boundaries train``) its scores and its threshold are used. With the
weights of an encoder nothing was trained for boundaries: a boundary is then where the features change most, compared with
how much they change elsewhere *in the same video*. That finds changes of what the encoder tells apart; it does not know
what people call an event, marks the little that happens in a quiet video, and may mark nothing in one that never rests.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from timegrain.boundaries import GAP_SECONDS, Picking, change_curve, prominent_peaks
from timegrain.boundary_inference import score_videos
from timegrain.boundary_layout import Mode
from timegrain.data.decoding import VideoError
from timegrain.feature_tables import VideoFeatures
from timegrain.inference import Embedder, load
from timegrain.models.boundary import BoundaryDetector, is_detector, load_detector
from timegrain.models.hub import VideoEncoder
from timegrain.models.weights import choose_device, fingerprint_of

Array = npt.NDArray[np.float64]
Model = str | os.PathLike[str] | VideoEncoder | BoundaryDetector | Embedder


@dataclass(frozen=True)
class FoundBoundaries:
    """The boundaries of one video.

    Attributes:
        path: The file.
        seconds: (K,) boundaries, ascending.
        strengths: (K,) how strong each is: the detector's score, or how far the features' change stands out.
        curve: (N,) the score or change that they were picked from.
        curve_seconds: (N,) its times.
        duration_seconds: Of the video.
        trained: Whether a trained detector found them.
    """

    path: str
    seconds: Array
    strengths: Array
    curve: Array
    curve_seconds: Array
    duration_seconds: float
    trained: bool

    @property
    def segments(self) -> list[tuple[float, float]]:
        """Start and end in seconds of the stretches between boundaries; they cover the video."""
        ends = [0.0, *map(float, self.seconds), self.duration_seconds]
        return list(itertools.pairwise(ends))


@dataclass(frozen=True)
class FindSettings:
    """How boundaries are found.

    Args:
        threshold: Of a trained detector, instead of the one chosen in its training; lower finds more.
        window_seconds: Without training: how much before and after each moment is compared.
        prominence: Without training: how far a change must stand out, in standard deviations over the video; lower finds
            more.
        overlap: Without training: share of a window that the next one covers again; higher is finer and slower.
        gap_seconds: No two boundaries are nearer than this; a trained detector keeps its own rule unless it is given.
        end_seconds: Without training: no boundary is this near to an end of the video.
        fps: Without training: watch videos as if they had this frame rate.
        mode: Of a trained detector: windows (exact) or dense (shares work between windows).
        batch_size: Windows that go through the network at once.
        workers: Of a trained detector: processes that decode.
    """

    threshold: float | None = None
    window_seconds: float = 1.0
    prominence: float = 1.0
    overlap: float = 0.5
    gap_seconds: float | None = None
    end_seconds: float = 0.3
    fps: float | None = None
    mode: Mode = "windows"
    batch_size: int = 8
    workers: int = 0

    def __post_init__(self) -> None:
        if not self.window_seconds > 0:
            raise ValueError(f"window_seconds must be above 0, got {self.window_seconds}")
        for name in ("prominence", "end_seconds", "gap_seconds"):
            if getattr(self, name) is not None and not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")


# Settings that say nothing to the other kind of model.
_OF_DETECTORS = ("threshold", "mode")
_OF_FEATURES = ("window_seconds", "prominence", "overlap", "end_seconds", "fps")


class BoundaryFinder:
    """A detector or an encoder, ready to find boundaries in many videos.

    Args:
        model: See :func:`find_boundaries`.
        device: ``auto`` takes a GPU where there is one.
        settings: How boundaries are found.

    Raises:
        ValueError: A setting says nothing to this kind of model.
    """

    def __init__(self, model: Model, device: str = "auto", settings: FindSettings | None = None) -> None:
        self.settings = settings or FindSettings()
        self.embedder: Embedder | None = None
        self.detector: BoundaryDetector | None = None
        if isinstance(model, str | os.PathLike):
            file = Path(model) / "weights.safetensors" if Path(model).is_dir() else Path(model)
            if is_detector(file):
                model = load_detector(file)
        if isinstance(model, BoundaryDetector):
            self.detector = model.to(choose_device(device)).eval()
        elif isinstance(model, Embedder):
            self.embedder = model
        else:
            self.embedder = load(model, device, self.settings.batch_size)
        self._refuse_ignored()

    def _refuse_ignored(self) -> None:
        """Say so rather than ignore what this kind of model cannot be told."""
        kinds = ("an encoder", _OF_FEATURES), ("a trained detector", _OF_DETECTORS)
        (other, theirs), (this, ours) = kinds if self.trained else kinds[::-1]
        ignored = [name for name in theirs if getattr(self.settings, name) != getattr(FindSettings(), name)]
        if ignored:
            raise ValueError(
                f"{', '.join(ignored)}: only {other} can be told that, and the model is {this}, which has {', '.join(ours)}"
            )

    @property
    def trained(self) -> bool:
        """Whether a trained detector does it."""
        return self.detector is not None

    def describe(self) -> str:
        """How boundaries are found, in one line."""
        if self.detector is None:
            s = self.settings
            return (
                f"no trained detector in these weights: changes of the features between {s.window_seconds:g} s before "
                f"and after, standing out by {s.prominence:g} standard deviations of their own video"
            )
        picking = self.picking()
        chosen = "chosen in training" if self.settings.threshold is None and self.detector.config.picking else "given"
        if self.settings.threshold is None and not self.detector.config.picking:
            chosen = "the default: its training did not end"
        return (
            f"trained detector ({self.detector.config.method}), {picking.rule} from {picking.threshold:.3g} ({chosen})"
        )

    def picking(self) -> Picking:
        """How a trained detector's scores become boundaries."""
        assert self.detector is not None
        values: Mapping[str, Any] = self.detector.config.picking
        changes: dict[str, Any] = {}
        if self.settings.threshold is not None:
            changes["threshold"] = self.settings.threshold
        if self.settings.gap_seconds is not None:
            changes |= {"gap_seconds": self.settings.gap_seconds, "rule": "peaks"}
        return Picking(**{**values, **changes})

    @property
    def facts(self) -> dict[str, Any]:
        """All that decides about what is found in a video: the model, by its weights, and settings; JSON values."""
        if self.detector is not None:
            config = asdict(self.detector.config) | {"extra": None}  # how it was trained does not change what it does
            model = fingerprint_of(self.detector, config)
        else:
            assert self.embedder is not None
            model = self.embedder.fingerprint
        return {"model": model, **asdict(self.settings), "batch_size": None, "workers": None}

    def find(self, path: str | os.PathLike[str], progress: bool = False) -> FoundBoundaries:
        """The boundaries of one video.

        Args:
            path: The file.
            progress: Show a progress line.

        Raises:
            VideoError: The file cannot be read as a video.
        """
        name = os.fspath(path)
        if self.detector is not None:
            s = self.settings
            ((_, found),) = score_videos(
                self.detector, [name], mode=s.mode, batch_size=s.batch_size, workers=s.workers, progress=progress
            )
            if isinstance(found, str):
                raise VideoError(name, found)
            seconds = np.array(found.boundaries(self.picking()))
            strengths = found.scores[np.searchsorted(found.seconds, seconds - 1e-9)]
            return FoundBoundaries(
                name, seconds, strengths, found.scores, found.seconds, found.duration_seconds, trained=True
            )
        return self._from_features(name, progress)

    def _from_features(self, name: str, progress: bool) -> FoundBoundaries:
        assert self.embedder is not None
        s = self.settings
        return boundaries_of(self.embedder.embed(name, overlap=s.overlap, fps=s.fps, progress=progress), s)


def boundaries_of(seen: VideoFeatures, settings: FindSettings | None = None) -> FoundBoundaries:
    """Where a video's features change most, without training; its first and last time step count as their neighbours.

    Args:
        seen: Of one video, from its beginning to its end.
        settings: Which changes count; how the video was watched is ``seen``'s.
    """
    s = settings or FindSettings()
    features = seen.features
    if len(features) > 2:
        # The network's padding stands for what lies beyond the video. Left in, the first time step differed from the second
        # more than events do from each other: most of the boundaries found were that one.
        features = np.concatenate([features[1:2], features[1:-1], features[-2:-1]])
    curve = change_curve(features, seen.timestamps_seconds, s.window_seconds)
    gap = GAP_SECONDS if s.gap_seconds is None else s.gap_seconds
    # The curve at a time step compares what is before it with what is from it on: the boundary is where it begins.
    peaks = prominent_peaks(curve, seen.start_seconds, seen.duration_seconds, s.prominence, gap, s.end_seconds)
    return FoundBoundaries(
        seen.path, seen.start_seconds[peaks], curve[peaks], curve, seen.timestamps_seconds, seen.duration_seconds, False
    )


def find_boundaries(
    path: str | os.PathLike[str], model: Model, *, device: str = "auto", progress: bool = False, **settings: Any
) -> FoundBoundaries:
    """Where events begin and end in a video; for several videos make one :class:`BoundaryFinder`.

    Args:
        path: The video.
        model: Weights of a boundary detector (a ``.safetensors`` file or the folder of its training), whose threshold was
            chosen in training; or weights of an encoder, or an encoder, whose features are compared without training
            (see this module's text for what that can and cannot tell).
        device: ``auto`` takes a GPU where there is one.
        progress: Show a progress line.
        **settings: Of :class:`FindSettings`.

    Raises:
        FileNotFoundError: There are no such weights.
        ValueError: A setting is impossible, or the weights are damaged.
        VideoError: The file cannot be read as a video.

    Example:
        >>> timegrain.find_boundaries("a.mp4", model="weights.safetensors").seconds  # doctest: +SKIP
        array([1.92, 4.48, 7.04])
    """
    return BoundaryFinder(model, device, FindSettings(**settings)).find(path, progress)
