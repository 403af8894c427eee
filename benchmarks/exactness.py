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


def count_wrong(read: peers.Reader, path: Path, right: np.ndarray) -> tuple[int, str]:
    """Wrong frames when every second index, then every other, is asked for; and the error, if one was raised."""
    small = np.stack([cv2.resize(picture, (32, 24), interpolation=cv2.INTER_AREA) for picture in right]).astype(int)
    wrong = 0
    for first in (0, 1):
        indices = list(range(first, len(right), 2))
        try:
            frames = read(path, indices)
        except Exception as error:  # a reader that refuses gives no wrong frame, and none at all
            return len(right), f"{type(error).__name__}: {error}".splitlines()[0][:80]
        for index, frame in zip(indices, frames, strict=True):
            if np.abs(frame.astype(int) - right[index]).mean() > 2:
                look = cv2.resize(np.ascontiguousarray(frame), (32, 24), interpolation=cv2.INTER_AREA).astype(int)
                wrong += int(np.abs(small - look).mean((1, 2, 3)).argmin() != index)
    return wrong, ""


def run(rounds: int = 1) -> list[Row]:
    """Rows for the results table: wrong frames of all indices of each file."""
    del rounds
    readers = {
        "TimeGrain": ours,
        "torchcodec exact": peers.torchcodec,
        "torchcodec approximate": peers.torchcodec_approximate,
    }
    rows, totals = [], dict.fromkeys(readers, 0)
    with tempfile.TemporaryDirectory() as name:
        files = made_files(Path(name))
        reason = peers.why_not("torchcodec", next(iter(files.values())))
        files |= {f"real: {file}": media.SHARED / "data" / "edge" / file for file in REAL}
        checked = 0
        for kind, path in files.items():
            if not path.is_file():
                continue
            right = played(path)
            checked += len(right)
            for reader, read in readers.items():
                if reason and read is not ours:
                    continue
                wrong, error = count_wrong(read, path, right)
                totals[reader] += wrong
                if wrong:
                    note = f"refuses: {error}" if error else ""
                    rows.append(
                        Row(
                            f"frames by index: {kind}",
                            reader,
                            wrong,
                            unit=f"wrong of {len(right)}",
                            note=note,
                            is_ours=read is ours,
                        )
                    )
    for reader, wrong in totals.items():
        if reason and reader != "TimeGrain":
            rows.append(not_measured("frames by index, all files", reader, reason))
            continue
        is_ours = reader == "TimeGrain"
        rows.insert(
            0,
            Row(
                "frames by index, all files",
                reader,
                wrong,
                0 if is_ours else None,
                unit=f"wrong of {checked}",
                is_ours=is_ours,
            ),
        )
    return rows


if __name__ == "__main__":
    restart_with_it()
    for line in run():
        print(f"{line.work:50} {line.method:25} {line.value} {line.unit} {line.note}")
