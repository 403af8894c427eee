"""``timegrain embed`` and ``timegrain similarity``: features of the user's own videos, as a table and as a picture."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from json import dumps
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from timegrain.aggregation import aggregate
from timegrain.data.location import file_name
from timegrain.feature_tables import VideoFeatures
from timegrain.files import atomic_path
from timegrain.inference import ViewSettings, load
from timegrain.report.figures import self_similarity
from timegrain.report.frames import sample_frames

_FRAMES = 10  # along a video's picture
_MOST_MOMENTS = 600  # of a video's picture


def embed(
    videos: list[str],
    *,
    weights: str,
    out: Path,
    head: Literal["none", "fine", "persistent"] = "none",
    overlap: float = 0.0,
    num_crops: Literal[1, 3] = 1,
    fps: float | None = None,
    device: str = "auto",
    batch_size: int = 4,
    json: bool = False,
) -> None:
    """Write the features of videos of any length, per time step, per window and per video.

    Videos that cannot be read are listed with the reason, here and in OUT.broken.csv, and do not stop the others. The
    same command again continues after an interruption, and embeds only what is new.

    Read the result with pandas: ``table = pandas.read_parquet("features.parquet")``, then
    ``numpy.stack(table[table.kind == "time_step"].features)``. Columns: path, kind (time_step, clip, video), index,
    start_seconds, seconds, end_seconds, features.

    Examples::

        timegrain embed VIDEOS --weights runs/VIDEOS-a0.9/weights.safetensors --out features.parquet
        timegrain embed a.mp4 b.mp4 --weights W.safetensors --head persistent --out features.npz
        timegrain embed k400.parquet https://host/more.tar --weights W.safetensors --out features.parquet

    Args:
        videos: Videos, folders with videos, manifests (.parquet), tar shards, and URLs of videos and shards.
        weights: A .safetensors file, the folder of a pre-training run, or OWNER/NAME on the Hugging Face Hub.
        out: The file to write, .parquet or .npz.
        head: Features of the backbone (none), or unit embeddings of one projection head.
        overlap: Share of a window that the next one covers again, 0 to below 1; slower and smoother. Where moments are
            compared by their cosine take 0.5: at 0 a window's first and last time step tell much of the network's padding.
        num_crops: 1 looks at the square in the middle of the picture, 3 at all of it.
        fps: Watch every video as if it had this frame rate; give the training videos' rate when yours differs.
        device: auto, cpu, cuda, mps.
        batch_size: Windows that go through the network at once.
        json: Print one JSON object.
    """
    settings = ViewSettings(None if head == "none" else head, overlap, num_crops, fps)
    done = load(weights, device, batch_size).embed_files(videos, out, settings)
    for path, reason in done.broken:
        print(f"could not read {path}: {reason}", file=sys.stderr)
    if json:
        broken = [{"path": path, "reason": reason} for path, reason in done.broken]
        counts = {"videos": done.num_videos, "reused": done.num_reused, "time_steps": done.num_time_steps}
        print(dumps({"out": str(out), **counts, "num_features": done.num_features, "broken": broken}))
        return
    total = done.num_videos + len(done.broken)
    reused = f" ({done.num_reused} were there already)" if done.num_reused else ""
    print(
        f"{out}: {done.num_videos:,} of {total:,} videos{reused}, {done.num_time_steps:,} time steps of "
        f"{done.num_features} numbers"
    )
    if done.broken:
        print(f"{len(done.broken)} could not be read: {out.with_suffix('.broken.csv')}")


def similarity(
    video: str,
    *,
    weights: str,
    out: Path,
    head: Literal["none", "fine", "persistent"] = "none",
    overlap: float = 0.5,
    fps: float | None = None,
    device: str = "auto",
    batch_size: int = 4,
    json: bool = False,
) -> None:
    """Draw how alike the moments of a video are: its self-similarity matrix under its frames.

    Squares along the diagonal are stretches that the encoder takes for one event; their corners are its boundaries. Of a
    long video neighbouring time steps are averaged, to 600.

    Example::

        timegrain similarity a.mp4 --weights runs/VIDEOS-a0.9/weights.safetensors --out a.png

    Args:
        video: The video.
        weights: A .safetensors file, the folder of a pre-training run, or OWNER/NAME on the Hugging Face Hub.
        out: The picture to write, .png.
        head: Compare features of the backbone (none), or embeddings of one projection head.
        overlap: Share of a window that the next one covers again, 0 to below 1.
        fps: Watch the video as if it had this frame rate.
        device: auto, cpu, cuda, mps.
        batch_size: Windows that go through the network at once.
        json: Print one JSON object.
    """
    if out.suffix.lower() != ".png":
        raise ValueError(f"the picture must end in .png, not {out.name!r}")
    settings = ViewSettings(None if head == "none" else head, overlap, fps=fps)
    features = load(weights, device, batch_size).embed_with(video, settings, progress=True)
    picture = draw_similarity(features, video, title=file_name(video))
    with atomic_path(out) as temporary:
        temporary.write_bytes(picture)
    if json:
        matrix, _ = _moments(features)
        off = matrix[~np.eye(len(matrix), dtype=bool)] if len(matrix) > 1 else matrix
        facts = {"time_steps": len(features.features), "lowest": float(off.min()), "mean": float(off.mean())}
        print(dumps({"out": str(out), "duration_seconds": features.duration_seconds, **facts}))
    else:
        print(f"{out}: {len(features.features)} time steps over {features.duration_seconds:.1f} s")


def draw_similarity(
    features: VideoFeatures, video: str, *, boundaries_seconds: Sequence[float] = (), title: str = ""
) -> bytes:
    """A video's self-similarity matrix under its frames, as PNG.

    Args:
        features: Of the video.
        video: Where it is opened.
        boundaries_seconds: Times to mark.
        title: Above the picture.

    Raises:
        VideoError: Its frames cannot be read.
    """
    frames, _ = sample_frames(video, _FRAMES)
    return self_similarity(
        *_moments(features), features.duration_seconds, frames, boundaries_seconds=boundaries_seconds, title=title
    )


def _moments(features: VideoFeatures) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float64]]:
    """Similarity (N, N) and beginnings (N,) of a video's time steps, averaged to at most 600.

    A picture has no room for more, and the matrix of hours would fill the memory.
    """
    steps = len(features.features)
    num = min(steps, _MOST_MOMENTS)
    averaged = aggregate(torch.from_numpy(features.features)[None], num)[0].numpy()
    first = np.arange(num) * steps // num
    return replace(features, features=averaged).self_similarity(), features.start_seconds[first]
