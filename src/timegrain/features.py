"""Frozen features of a manifest's videos, one row per video: decoded once for any number of encoders, and cached.

A video is seen in ``num_clips`` evenly spaced clips, each in ``num_crops`` crops; its feature is the mean over all views
and time steps, as the retrieval and multi-view protocols have it. The cache is keyed by the weights, the views and each
video file's state, in parts of 256 videos, so that an interrupted or extended run computes only what is missing.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from timegrain.data.location import cache_key, file_state, is_url, shown
from timegrain.data.manifest import Manifest
from timegrain.data.transforms import to_model_input
from timegrain.data.views import VideoViews, Views, load_views
from timegrain.files import atomic_path
from timegrain.models.hub import VideoEncoder
from timegrain.models.weights import choose_device, fingerprint
from timegrain.progress import track

_PART = 256  # videos per cache file
_VERSION = 2  # of what decides about features; a new one leaves old caches aside


@dataclass(frozen=True)
class FeatureTable:
    """One feature per video, with what the manifest says of it.

    Attributes:
        features: (N, D) float32, on the CPU.
        paths: (N,) absolute paths.
        labels: (N,) class names or None.
        groups: (N,) groups or None.
        broken: (path, reason) of videos of the manifest that could not be read; they have no row.
    """

    features: Float[Tensor, "videos features"]
    paths: tuple[str, ...]
    labels: tuple[str | None, ...]
    groups: tuple[str | None, ...]
    broken: tuple[tuple[str, str], ...] = ()

    def __len__(self) -> int:
        return len(self.paths)


class PixelFeatures(nn.Module):
    """What is in the pixels without any network: a floor for features.

    The clip is averaged to ``side`` x ``side`` RGB pixels and to ``segments`` equal parts of its time; these numbers,
    one after the other, are the feature.

    Args:
        side: Height and width.
        segments: Parts of the clip's time.
    """

    def __init__(self, side: int = 8, segments: int = 4) -> None:
        super().__init__()
        self.side, self.segments = side, segments

    def forward(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b 1 d"]:
        """Clips (B, C, T, H, W) to one time step of (B, 1, segments · C · side²)."""
        segments = min(self.segments, x.shape[2])
        return F.adaptive_avg_pool3d(x, (segments, self.side, self.side)).flatten(1).unsqueeze(1)

    def __str__(self) -> str:
        return f"{self.side} x {self.side} RGB pixels in {self.segments} parts of the clip's time"


def views_of(encoder: VideoEncoder, num_clips: int = 1, num_crops: int = 1) -> Views:
    """The views that suit an encoder: clips as in its training."""
    config = encoder.config
    return Views(config.clip_num_frames, config.clip_stride, config.crop_size, num_clips, num_crops)


def features_for_manifest(
    encoder: VideoEncoder,
    manifest: Manifest,
    *,
    num_clips: int = 1,
    num_crops: int = 1,
    cache_folder: Path | None = None,
    device: str | torch.device = "auto",
    batch_size: int = 8,
    workers: int | None = None,
    progress: bool = True,
) -> FeatureTable:
    """Features of one encoder; see :func:`features_of_encoders`.

    Args:
        encoder: In any mode; it is evaluated, and its mode restored.
        manifest: Videos; those with an error are left out.
        num_clips: Clips per video.
        num_crops: Crops per clip, 1 or 3.
        cache_folder: Where features are kept; None keeps nothing.
        device: Where the encoder runs.
        batch_size: Views that go through the encoder at once.
        workers: Processes that decode; by default one fewer than there are cores.
        progress: Show a progress line.
    """
    views = views_of(encoder, num_clips, num_crops)
    tables = features_of_encoders(
        {"encoder": encoder}, manifest, views, cache_folder=cache_folder, device=device, batch_size=batch_size,
        workers=workers, progress=progress,
    )  # fmt: skip
    return tables["encoder"]


def features_of_encoders(
    encoders: Mapping[str, nn.Module],
    manifest: Manifest,
    views: Views,
    *,
    cache_folder: Path | None = None,
    device: str | torch.device = "auto",
    batch_size: int = 8,
    workers: int | None = None,
    progress: bool = True,
) -> dict[str, FeatureTable]:
    """Features of several encoders of the same views, every video decoded once.

    Args:
        encoders: By name; each takes clips (B, C, T, H, W) in [0, 1] to (B, T', D).
        manifest: Videos; those with an error are left out.
        views: How videos are seen.
        cache_folder: Where features are kept; None keeps nothing.
        device: Where the encoders run; they are moved back.
        batch_size: Views that go through an encoder at once.
        workers: Processes that decode; by default one fewer than there are cores.
        progress: Show a progress line.

    Returns:
        One table per encoder, with the same videos in the manifest's order.

    Raises:
        ValueError: No video of the manifest could be read.
    """
    manifest = manifest.select(usable=True)
    paths = [str(path) for path in manifest.column("path").to_pylist()]
    chosen = choose_device(device)
    names = {name: _name(encoder) for name, encoder in encoders.items()}
    rows: dict[str, dict[int, Tensor]] = {name: {} for name in encoders}
    broken: dict[int, str] = {}
    parts = [range(begin, min(begin + _PART, len(paths))) for begin in range(0, len(paths), _PART)]
    todo: list[tuple[range, list[str], dict[str, Path]]] = []
    for part in parts:
        files = {name: _cache_file(cache_folder, [paths[i] for i in part], views, names[name]) for name in encoders}
        missing = []
        for name, kept_in in files.items():
            if kept_in is None or not _read_part(kept_in, part, rows[name], broken):
                missing.append(name)
        if missing:
            todo.append((part, missing, {name: file for name, file in files.items() if file is not None}))
    total = sum(len(part) for part, _, _ in todo)
    seen = load_views(VideoViews.of(paths, [i for part, _, _ in todo for i in part], views), workers)
    if progress and total:
        seen = track(seen, "features", total=total)
    for part, missing, places in todo:
        wanted = {name: encoders[name] for name in missing}
        found, failed = _encode_part(wanted, (next(seen) for _ in part), chosen, batch_size)
        broken.update(failed)
        is_final = not any(is_url(paths[i]) for i in failed)  # a server that was away may be there the next time
        for name in missing:
            rows[name].update(found[name])
            if name in places and is_final:
                _write_part(places[name], part, found[name], failed)
    kept = [i for i in range(len(paths)) if i not in broken]
    lost = tuple((shown(paths[i]), broken[i]) for i in sorted(broken))
    if not kept:
        raise ValueError(f"none of {len(paths)} videos could be read; the first: {lost[0][0]}: {lost[0][1]}")
    labels, groups = (manifest.column(column).to_pylist() for column in ("label", "group"))
    return {
        name: FeatureTable(
            torch.stack([rows[name][i] for i in kept]),
            tuple(paths[i] for i in kept),
            tuple(labels[i] for i in kept),
            tuple(groups[i] for i in kept),
            lost,
        )
        for name in encoders
    }


@torch.inference_mode()
def _encode_part(
    encoders: Mapping[str, nn.Module], seen: Iterator[tuple[int, Tensor | str]], device: torch.device, batch_size: int
) -> tuple[dict[str, dict[int, Tensor]], dict[int, str]]:
    """Features of some videos by every encoder, and the videos that could not be read."""
    found: dict[str, dict[int, Tensor]] = {name: {} for name in encoders}
    failed: dict[int, str] = {}
    homes = {name: _home(encoder) for name, encoder in encoders.items()}
    modes = {name: encoder.training for name, encoder in encoders.items()}
    pending: list[tuple[int, Tensor]] = []

    def encode() -> None:
        clips = torch.cat([views for _, views in pending])
        for name, encoder in encoders.items():
            pieces = [encoder(to_model_input(piece.to(device))).mean(1) for piece in clips.split(batch_size)]  # type: ignore[no-untyped-call]
            outputs = torch.cat(pieces).float().cpu()
            position = 0
            for index, views in pending:
                found[name][index] = outputs[position : position + len(views)].mean(0)
                position += len(views)
        pending.clear()

    try:
        for encoder in encoders.values():
            encoder.to(device).eval()
        for index, views in seen:
            if isinstance(views, str):
                failed[index] = views
                continue
            pending.append((index, views))
            if sum(len(tensor) for _, tensor in pending) >= batch_size:
                encode()
        if pending:
            encode()
    finally:
        for name, encoder in encoders.items():
            encoder.to(homes[name]).train(modes[name])
    return found, failed


def _home(encoder: nn.Module) -> torch.device:
    first = next(encoder.parameters(), None)
    return first.device if first is not None else torch.device("cpu")


def _name(encoder: nn.Module) -> str:
    return fingerprint(encoder) if isinstance(encoder, VideoEncoder) else str(encoder)


def _cache_file(folder: Path | None, paths: Sequence[str], views: Views, encoder: str) -> Path | None:
    """The file for these videos' features; its name changes with anything that changes them."""
    if folder is None:
        return None
    states: list[Any] = []
    for path in paths:
        try:
            states.append([cache_key(path), *file_state(path)])
        except OSError:
            states.append([path, None, None])
    text = json.dumps([_VERSION, encoder, asdict(views), states], sort_keys=True)
    return folder / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.npz"


def _read_part(file: Path, part: range, rows: dict[int, Tensor], broken: dict[int, str]) -> bool:
    """Take a part's features from the cache; False where there are none that can be read."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            features, kept = torch.from_numpy(arrays["features"]), arrays["kept"].tolist()
            lost = dict(zip(arrays["lost"].tolist(), arrays["reasons"].tolist(), strict=True))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return False  # it is computed and written anew
    rows.update({part.start + position: row for position, row in zip(kept, features, strict=True)})
    broken.update({part.start + position: reason for position, reason in lost.items()})
    return True


def _write_part(file: Path, part: range, found: Mapping[int, Tensor], failed: Mapping[int, str]) -> None:
    kept = sorted(found)
    lost = sorted(failed)
    features = torch.stack([found[i] for i in kept]) if kept else torch.zeros(0, 0)
    with atomic_path(file) as temporary, temporary.open("wb") as stream:
        np.savez(
            stream,
            features=features.numpy(),
            kept=np.array([i - part.start for i in kept], np.int64),
            lost=np.array([i - part.start for i in lost], np.int64),
            reasons=np.array([failed[i] for i in lost], np.str_),
        )


def class_numbers(labels: Sequence[str | None], class_names: Sequence[str]) -> Tensor:
    """(N,) position of each label among the class names.

    Raises:
        ValueError: A label is none of them.
    """
    numbers = {name: number for number, name in enumerate(class_names)}
    unknown = sorted({str(label) for label in labels if label not in numbers})
    if unknown:
        raise ValueError(f"labels that are no class: {', '.join(unknown[:5])}")
    return torch.tensor([numbers[cast(str, label)] for label in labels], dtype=torch.int64)
