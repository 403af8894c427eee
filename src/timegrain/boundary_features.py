"""Features of frozen backbones for boundary detectors: computed once per video, kept on disk, read window by window.

One ``.npy`` file per video holds its entries (see :class:`timegrain.boundary_layout.Layout`) as float16, in a folder
named after the weights and the layout. An interrupted run goes on with the videos that are missing. 300 frames with an
entry at every third take 0.4 MB at 2048 features.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from timegrain.boundaries import TOLERANCE_SECONDS, near_boundary
from timegrain.boundary_inference import Opened, span_values
from timegrain.boundary_layout import Layout
from timegrain.data.boundaries import BoundaryTruth, CandidateSampler
from timegrain.data.loading import Key
from timegrain.data.location import cache_key, file_state, shown
from timegrain.files import alone_in, atomic_path
from timegrain.models.boundary import BoundaryDetector
from timegrain.models.weights import fingerprint_of


class FeatureStore:
    """Entries of videos on disk. Use :meth:`build`.

    Attributes:
        layout: Where entries lie.
        files: By path of the video.
        broken: Reason by path, of videos that could not be read.
    """

    def __init__(self, layout: Layout, files: dict[str, Path], broken: dict[str, str]) -> None:
        self.layout, self.files, self.broken = layout, files, broken

    @classmethod
    def build(
        cls,
        detector: BoundaryDetector,
        paths: Sequence[str],
        folder: Path,
        *,
        batch_size: int = 16,
        workers: int = 0,
        progress: bool = True,
    ) -> FeatureStore:
        """Compute what is missing; of several processes that share a store one does, and the others wait for it.

        Args:
            detector: Whose backbone, on the device to use.
            paths: The videos.
            folder: Of all stores; this one's sub-folder is named after weights and layout.
            batch_size: Windows that go through the backbone at once.
            workers: Processes that decode.
            progress: Show a progress line.
        """
        layout = Layout.of(detector)
        config = detector.config
        facts = [asdict(layout), config.crop_size, config.picture, config.backbone, config.backbone_options]
        target = folder / fingerprint_of(detector.features, facts)
        files = {path: target / f"{_state(path)}.npy" for path in paths}
        broken: dict[str, str] = {}
        if not all(file.is_file() for file in files.values()):
            with alone_in(target):
                todo = [path for path in paths if not files[path].is_file()]
                events = span_values(detector, todo, layout, "dense", batch_size, workers, progress, "features, once")
                failed = _write(events if todo else (), [files[path] for path in todo])
                broken = {todo[video]: reason for video, reason in failed.items()}
        if broken and len(broken) == len(paths):
            path, reason = next(iter(broken.items()))
            raise ValueError(f"none of the {len(paths)} videos could be read; the first: {shown(path)}: {reason}")
        return cls(layout, {path: file for path, file in files.items() if path not in broken}, broken)

    def holds(self, path: str, num_frames: int) -> bool:
        """Whether a video's entries are those of one with so many frames."""
        count = sum(span.count for span in self.layout.spans(num_frames, "dense"))
        return len(_mapped(self.files[path])) == count

    def windows(self, path: str, candidates: npt.NDArray[np.int64]) -> Tensor:
        """(K, steps, D) float32: time steps of the windows of a video's candidates (K,)."""
        rows = np.asarray(_mapped(self.files[path])[self.layout.entries_of(candidates)], np.float32)
        return torch.from_numpy(rows)


def _write(events: Iterable[tuple[int, Opened | Tensor | str | None]], files: Sequence[Path]) -> dict[int, str]:
    """Write a file per video from what :func:`span_values` gives; the reasons of those that could not be read."""
    parts: dict[int, list[npt.NDArray[np.float16]]] = {}
    broken: dict[int, str] = {}
    for video, event in events:
        if isinstance(event, str):
            broken[video] = event
        elif isinstance(event, Tensor):
            parts.setdefault(video, []).append(event.half().numpy())
        elif not isinstance(event, Opened):
            with atomic_path(files[video]) as temporary, temporary.open("wb") as file:
                np.save(file, np.concatenate(parts.pop(video)))
    return broken


@lru_cache(maxsize=128)  # each holds a file descriptor, of which some systems give a process 256
def _mapped(file: Path) -> npt.NDArray[np.float16]:
    """A video's entries, mapped and not read; opening a file costs more than reading a window from it."""
    try:
        entries: npt.NDArray[np.float16] = np.load(file, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(
            f"the stored features {file} are damaged ({error}); remove that file, the same command makes it again"
        ) from error
    return entries


def _state(path: str) -> str:
    """A name for a video file as it is now."""
    try:
        size, modified = file_state(path)
    except OSError:
        size = modified = 0
    text = f"{cache_key(path)}\0{size}\0{modified}"
    return hashlib.sha256(text.encode()).hexdigest()[:24]


class StoredWindows(Dataset[dict[str, Any]]):
    """Features of the windows that a :class:`CandidateSampler`'s places stand for, with their targets.

    Items hold ``features`` (steps, D), ``target``, ``index`` (row of the manifest) and ``failures``, which is empty.

    Args:
        truth: The sampler's videos, all in the store.
        sampler: Without random starts: features lie on the grid of the candidates.
        store: Their features.
    """

    def __init__(self, truth: BoundaryTruth, sampler: CandidateSampler, store: FeatureStore) -> None:
        self.manifest, self.sampler, self.store = truth.manifest, sampler, store
        self.paths: list[str] = truth.manifest.column("path").to_pylist()

    def __len__(self) -> int:
        return len(self.sampler.is_near)

    def __getitem__(self, key: Key) -> dict[str, Any]:
        _, place = key
        video, frame = self.sampler.place(place)
        features = self.store.windows(self.paths[video], np.array([frame // self.sampler.every]))[0]
        target = torch.tensor(int(self.sampler.is_near[place]))
        return {"features": features, "target": target, "index": video, "failures": []}


class StoredStretches(Dataset[dict[str, Any]]):
    """Stretches of candidates with what is true of each; an item is a pure function of (seed, epoch, index).

    Items hold ``features`` (N, D), ``near`` (N,), whether a boundary is near; ``starts`` and ``ends`` (N,), whether an
    event begins at or ends with a candidate; ``inside`` (N,), whether the video is that long; ``overlap`` (N, N),
    [duration - 1, start], the largest overlap of a span with an event (zeros unless asked for); ``index``, ``failures``.

    Args:
        truth: The videos, all in the store.
        store: Their features.
        length: N, candidates of a stretch; where it starts in a longer video is drawn.
        tolerance_seconds: How near is near.
        spans: Whether ``overlap`` is computed.
        seed: Of the run.
    """

    def __init__(
        self,
        truth: BoundaryTruth,
        store: FeatureStore,
        length: int,
        tolerance_seconds: float = TOLERANCE_SECONDS,
        spans: bool = False,
        seed: int = 0,
    ) -> None:
        self.manifest, self.truth, self.store, self.length = truth.manifest, truth, store, length
        self.tolerance_seconds, self.spans, self.seed = tolerance_seconds, spans, seed

    def __len__(self) -> int:
        return len(self.truth)

    def __getitem__(self, key: Key) -> dict[str, Any]:
        epoch, video = key
        row = self.manifest[video]
        total = self.store.layout.num_candidates(row.num_frames)
        spare = max(0, total - self.length)
        begin = int(np.random.default_rng([self.seed, epoch, video]).integers(spare + 1))
        candidates = np.arange(begin, begin + self.length)
        inside = candidates < total
        features = self.store.windows(row.path, np.minimum(candidates, total - 1))[:, 0]
        per_second = row.fps / self.store.layout.every
        places = self.truth.boundaries[video] * per_second - begin
        reach = max(0.5, self.tolerance_seconds * per_second)
        # Candidate i stands for the time from i - 0.5 to i + 0.5.
        ends = np.concatenate([[-begin - 0.5], places, [total - begin - 0.5]])
        near = near_boundary(np.arange(self.length), places, reach)
        starts = near_boundary(np.arange(self.length), ends[:-1], reach)
        closes = near_boundary(np.arange(self.length) + 1, ends[1:], reach)
        overlap = span_overlaps(self.length, ends) if self.spans else np.zeros((self.length, self.length))
        return {
            "features": features,
            "near": torch.from_numpy(near & inside),
            "starts": torch.from_numpy(starts & inside),
            "ends": torch.from_numpy(closes & inside),
            "inside": torch.from_numpy(inside),
            "overlap": torch.from_numpy(overlap).float(),
            "index": video,
            "failures": [],
        }


def span_overlaps(length: int, ends: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Largest intersection over union of every span with an event.

    Args:
        length: N moments; a span of d of them from s on covers [s - 0.5, s + d - 0.5].
        ends: (K + 1,) where events begin and end, in moments, ascending: each begins where the one before ends.

    Returns:
        (N, N) by [d - 1, s].
    """
    start = np.arange(length)[None, :] - 0.5
    stop = start + np.arange(1, length + 1)[:, None]
    best = np.zeros((length, length))
    for begin, end in itertools.pairwise(ends):
        shared = np.clip(np.minimum(stop, end) - np.maximum(start, begin), 0, None)
        union = (stop - start) + (end - begin) - shared
        best = np.maximum(best, shared / np.maximum(union, 1e-9))
    return best
