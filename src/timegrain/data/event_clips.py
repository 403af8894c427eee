"""VidSitu's events as clips: five moments of a video, each with its verb."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from timegrain.data.labelled_clips import AroundMoments, frames_at
from timegrain.data.location import shown
from timegrain.data.manifest import Manifest
from timegrain.metrics.inputs import EVENTS
from timegrain.sampling import ClipSpec, FrameIndices, centred_clip


@dataclass(frozen=True)
class VideoEvents:
    """The events of a manifest's videos.

    Attributes:
        centres: (videos, 5) frame in the middle of each event.
        verbs: Per video its five verbs; empty where they are not published.
        verb_sets: Per video the annotators' verbs of each event; empty outside validation.
        index_in_split: Per video the number by which official predictions name it.
    """

    centres: npt.NDArray[np.int64]
    verbs: Sequence[Sequence[str]]
    verb_sets: Sequence[Sequence[Sequence[str]]]
    index_in_split: Sequence[int]

    @classmethod
    def of(cls, manifest: Manifest) -> VideoEvents:
        """Read them from a manifest of ``timegrain prepare vidsitu``.

        Raises:
            ValueError: It is another manifest, a video has not five events, or is too short for them.
        """
        rows = [manifest[video].extra for video in range(len(manifest))]
        missing = [name for name in ("event_centre_seconds", "verbs", "index_in_split") if name not in rows[0]]
        if missing:
            raise ValueError(
                f"{manifest.path} has no column {missing[0]!r}; `timegrain prepare vidsitu` makes manifests of events"
            )
        seconds = [row["event_centre_seconds"] for row in rows]
        other = next((video for video, times in enumerate(seconds) if len(times) != len(EVENTS)), None)
        if other is not None:
            raise ValueError(
                f"{shown(manifest[other].path)} has {len(seconds[other])} events; every video needs {len(EVENTS)} (of "
                "`timegrain eventworld`: --min-events 5 --max-events 5)"
            )
        videos = np.repeat(np.arange(len(rows)), [len(times) for times in seconds])
        frames = frames_at(manifest, videos.tolist(), [time for times in seconds for time in times])
        return cls(
            frames.reshape(len(rows), -1),
            [row["verbs"] or [] for row in rows],
            [row.get("verb_sets") or [] for row in rows],
            [row["index_in_split"] for row in rows],
        )

    def training_clips(self, manifest: Manifest, spec: ClipSpec, verbs: Sequence[str]) -> AroundMoments:
        """A sample per event, its target the place of its verb among ``verbs``."""
        place = {verb: number for number, verb in enumerate(verbs)}
        videos = np.repeat(np.arange(len(self.centres)), self.centres.shape[1])
        return AroundMoments(manifest, spec, videos, self.centres.ravel(), self.targets(place).ravel())

    def targets(self, place: dict[str, int]) -> Tensor:
        """(videos, 5) number of each event's verb."""
        return torch.tensor([[place[verb] for verb in verbs] for verbs in self.verbs])


@dataclass(frozen=True)
class ClipsAroundEvents:
    """The clips of a video's events, for :class:`timegrain.data.views.VideoViews`.

    Args:
        centres: As :class:`VideoEvents` has them.
        spec: Shape of a clip.
    """

    centres: npt.NDArray[np.int64]
    spec: ClipSpec

    def __call__(self, video: int, num_frames: int) -> Sequence[FrameIndices]:
        """One clip per event."""
        return [centred_clip(num_frames, self.spec, int(centre)) for centre in self.centres[video]]
