"""Does frame ``i`` mean the ``i``-th picture that playing the file shows? Counted over every index of odd files.

    python benchmarks/exactness.py

A frame that comes back is wrong where it differs from the right one by more than two levels (of 255) in the mean and lies
nearer to another frame of the file: two readers may round colours differently, but not by another picture. The files are
made here, so that every picture differs from its neighbours; real ones are added where they are present.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import av
import cv2
import numpy as np

import media
import peers
from measure import Row, not_measured
from same_ffmpeg import restart_with_it
from timegrain.data.decoding import open_video

NUM_FRAMES = 90
REAL = ("mmaction2/test.mp4", "decord/flipping_a_pancake.mkv", "hmdb51/vtest.avi", "exoplayer/bear-vp9.webm")


def made_files(folder: Path) -> dict[str, Path]:
    """One file for each way in which frames are hard to find."""
    frames = media.moving_scene(NUM_FRAMES, 96, 128)
    for number, picture in enumerate(frames):  # no two alike: the number of the frame as eight squares
        for bit in range(8):
            picture[4:16, 4 + 14 * bit : 16 + 14 * bit] = 255 * (number >> bit & 1)
    uneven = np.cumsum(np.random.default_rng(3).integers(8, 40, NUM_FRAMES))
    kinds = {
        "H.264, B-frames": ("mp4", "libx264", {"g": "30"}, None),
        "H.264, variable rate": ("mp4", "libx264", {"g": "30"}, uneven),
        "H.264, open groups": ("mp4", "libx264", {"x264-params": "open-gop=1:keyint=12"}, None),
        "H.264 in MPEG-TS": ("ts", "libx264", {"g": "12"}, None),
        "MPEG-4 in AVI, B-VOPs": ("avi", "mpeg4", {"bf": "2", "g": "12"}, None),
        "MPEG-2 in MPEG-PS": ("mpg", "mpeg2video", {"bf": "2", "g": "12"}, None),
        "H.265, open groups": ("mp4", "libx265", {"x265-params": "log-level=none:pools=none:keyint=20"}, None),
        "VP9, hidden frames": ("webm", "libvpx-vp9", {"g": "30", "lag-in-frames": "16", "cpu-used": "8"}, None),
    }
    files = {}
    for number, (name, (suffix, codec, options, times)) in enumerate(kinds.items()):
        files[name] = media.write_video(folder / f"{number}.{suffix}", frames, options, codec, times)
    return files


def played(path: Path) -> np.ndarray:
    """All pictures in presentation order, (T, H, W, 3)."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def ours(path: Path, indices: Sequence[int]) -> np.ndarray:
    with open_video(path) as reader:
        return reader.frames(list(indices)).permute(0, 2, 3, 1).numpy()


def count_wrong(read: peers.Reader, path: Path, right: np.ndarray) -> tuple[int, int, str]:
    """Wrong frames when every second index, then every other, is asked for; frames not given; and why they were not."""
    small = np.stack([cv2.resize(picture, (32, 24), interpolation=cv2.INTER_AREA) for picture in right]).astype(int)
    wrong, missing, reason = 0, 0, ""
    for first in (0, 1):
        indices = list(range(first, len(right), 2))
        try:
            frames = read(path, indices)
        except Exception as error:  # whatever a reader raises: it gives no wrong frame, and none at all
            missing += len(indices)
            reason = f"{type(error).__name__}: {error}".splitlines()[0][:80]
            continue
        for index, frame in zip(indices, frames, strict=True):
            if np.abs(frame.astype(int) - right[index]).mean() > 2:
                look = cv2.resize(np.ascontiguousarray(frame), (32, 24), interpolation=cv2.INTER_AREA).astype(int)
                wrong += int(np.abs(small - look).mean((1, 2, 3)).argmin() != index)
    return wrong, missing, reason


def run(rounds: int = 1) -> list[Row]:
    """Rows for the results table: totals of each reader, then the files where one gives wrong frames or none."""
    del rounds
    readers = {
        "TimeGrain": ours,
        "torchcodec exact": peers.torchcodec,
        "torchcodec approximate": peers.torchcodec_approximate,
    }
    totals, details = [], []
    with tempfile.TemporaryDirectory() as name:
        files = made_files(Path(name))
        absent = peers.why_not("torchcodec", next(iter(files.values())))
        files |= {f"real: {file}": media.SHARED / "data" / "edge" / file for file in REAL}
        right = {kind: played(path) for kind, path in files.items() if path.is_file()}
        num_frames = sum(map(len, right.values()))
        for reader, read in readers.items():
            is_ours = read is ours
            if absent and not is_ours:
                totals.append(not_measured("frames by index, all files", reader, absent))
                continue
            num_wrong = num_missing = 0
            for kind, pictures in right.items():
                wrong, missing, reason = count_wrong(read, files[kind], pictures)
                num_wrong, num_missing = num_wrong + wrong, num_missing + missing
                if wrong or missing:
                    note = f"{missing} not given: {reason}" if missing else ""
                    unit = f"wrong of {len(pictures)}"
                    details.append(
                        Row(f"frames by index: {kind}", reader, wrong, unit=unit, note=note, is_ours=is_ours)
                    )
            totals.append(
                Row(
                    "frames by index, all files",
                    reader,
                    num_wrong + (num_missing if is_ours else 0),
                    0 if is_ours else None,
                    unit=f"wrong of {num_frames}",
                    note=f"{num_missing} not given",
                    is_ours=is_ours,
                )
            )
    return totals + details


if __name__ == "__main__":
    restart_with_it()
    for line in run():
        print(f"{line.work:50} {line.method:25} {line.value} {line.unit} {line.note}")
