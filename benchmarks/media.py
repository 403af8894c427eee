"""The videos that the benchmarks read: a real clip where it is present, else ones made here."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np

from timegrain.data.reencoding import Conversion, Encoding, convert

SHARED = Path(os.environ.get("TIMEGRAIN_SHARED", Path(__file__).resolve().parents[2] / "shared"))
REAL = SHARED / "data" / "edge" / "mmaction2" / "test.mp4"  # 10 s, 340x256, 30 frames/s, 1.08 Mb/s, 2 key frames


def original(folder: Path) -> tuple[Path, str]:
    """A video of 10 s with few key frames, and what it is."""
    if REAL.is_file():
        return REAL, "a real clip of 10 s, 340x256, H.264 with B-frames, 2 key frames"
    path = folder / "made.mp4"
    write_video(path, moving_scene(300, 256, 340), {"g": "250", "crf": "23"})
    return path, "a made clip of 10 s, 340x256, H.264 with B-frames, 2 key frames"


def with_gop(source: Path, target: Path, gop: int) -> Path:
    """The same pictures as x264 writes them by default, but with a key frame at least every ``gop`` frames."""
    with av.open(str(source)) as container:
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return write_video(target, np.stack(pictures), {"g": str(gop), "crf": "23"})


def rewritten(source: Path, folder: Path, encoding: Encoding) -> Path:
    """What ``timegrain prepare`` makes of the video."""
    target = folder / f"{encoding.name}{'.frames' if encoding.kind == 'frames' else '.mp4'}"
    convert(Conversion(str(source), str(target), encoding))
    return target


def write_video(
    path: Path,
    frames: np.ndarray,
    options: dict[str, str],
    codec: str = "libx264",
    times: np.ndarray | None = None,
    size: tuple[int, int] | None = None,
) -> Path:
    """Encode (T, H, W, 3) RGB frames at 30 frames/s, or at uneven ``times`` in ticks of 1/600 s."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=30, options=options)
        stream.height, stream.width = size or frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.thread_count = 1
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 600)
        for number, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = int(times[number]), Fraction(1, 600)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def moving_scene(num_frames: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """(T, H, W, 3) frames with what real ones have: texture at all scales, a shaking pan, moving things, grain."""
    rng = np.random.default_rng(seed)
    panorama = _texture(rng, height + 80, width + num_frames)
    things = [_texture(rng, height // 3, height // 3) for _ in range(4)]
    places = np.cumsum(rng.normal(0, 2.5, (num_frames, 4, 2)), 0) + rng.uniform(0.2, 0.8, (4, 2)) * (height, width)
    shake = np.cumsum(rng.normal(0, 0.7, (num_frames, 2)), 0)
    side = height // 3
    y, x = np.mgrid[:side, :side] - side / 2
    disc = cv2.GaussianBlur((np.hypot(x, y) < side / 2 - 2).astype(np.float32), (5, 5), 0)[..., None]
    frames = np.empty((num_frames, height, width, 3), np.uint8)
    for number in range(num_frames):
        top, left = np.clip(shake[number] + (40, number), 0, (80, num_frames)).astype(int)
        picture = panorama[top : top + height, left : left + width].copy()
        for thing, place in zip(things, places[number], strict=True):
            row, column = np.clip(place, 0, (height - side, width - side)).astype(int)
            area = picture[row : row + side, column : column + side]
            area += disc * (thing - area)
        grain = rng.normal(0, 2.5, (height, width, 1)).astype(np.float32)
        frames[number] = np.clip(picture + grain, 0, 255)
    return frames


def _texture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """(H, W, 3) float32 noise whose spectrum falls like that of pictures."""
    total = np.zeros((height, width, 3), np.float32)
    for octave in range(7):
        size = max(2, height >> (7 - octave)), max(2, width >> (7 - octave))
        layer = rng.normal(0, 1, (*size, 3)).astype(np.float32)
        total += cv2.resize(layer, (width, height), interpolation=cv2.INTER_CUBIC) * 0.62**octave
    return np.asarray(128 + 50 * total, np.float32)
