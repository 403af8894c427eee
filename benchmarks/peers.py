"""What a user would read frames with instead: one function per package, each giving the frames asked for as RGB.

``python benchmarks/peers.py NAME VIDEO`` tries one of them, so that one that crashes takes nothing else along.
"""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import av
import cv2
import numpy as np

Reader = Callable[[Path, Sequence[int]], np.ndarray]  # (path, sorted frame numbers) -> (T, H, W, 3) uint8


def torchcodec(path: Path, indices: Sequence[int], seek_mode: str = "exact") -> np.ndarray:
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(str(path), dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode=seek_mode)
    return decoder.get_frames_at(list(indices)).data.numpy()


def torchcodec_approximate(path: Path, indices: Sequence[int]) -> np.ndarray:
    return torchcodec(path, indices, "approximate")


def pyav(path: Path, indices: Sequence[int]) -> np.ndarray:
    """PyAV as its documentation shows it: go to the key frame before the first time, decode, convert what is wanted."""
    wanted, pictures = set(indices), []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_count = 1
        ticks = float(1 / (stream.average_rate * stream.time_base))  # per frame
        start = stream.start_time or 0
        container.seek(start + round(indices[0] * ticks), stream=stream)
        for frame in container.decode(stream):
            number = round((frame.pts - start) / ticks)
            if number in wanted:
                pictures.append(frame.to_ndarray(format="rgb24"))
            if number >= indices[-1]:
                break
    return np.stack(pictures)


def decode_only(path: Path, indices: Sequence[int]) -> None:
    """The floor: decode from the key frame before the first frame to the last one, and look at nothing."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_count = 1
        ticks = float(1 / (stream.average_rate * stream.time_base))
        start = stream.start_time or 0
        container.seek(start + round(indices[0] * ticks), stream=stream)
        for frame in container.decode(stream):
            if round((frame.pts - start) / ticks) >= indices[-1]:
                return


def decord2(path: Path, indices: Sequence[int]) -> np.ndarray:
    import decord

    return decord.VideoReader(str(path), ctx=decord.cpu(0), num_threads=1).get_batch(list(indices)).asnumpy()


def opencv(path: Path, indices: Sequence[int]) -> np.ndarray:
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    capture.set(cv2.CAP_PROP_POS_FRAMES, indices[0])
    wanted, pictures = set(indices), []
    for number in range(indices[0], indices[-1] + 1):
        capture.grab()
        if number in wanted:
            pictures.append(cv2.cvtColor(capture.retrieve()[1], cv2.COLOR_BGR2RGB))
    capture.release()
    return np.stack(pictures)


def pytorchvideo(path: Path, indices: Sequence[int]) -> np.ndarray:
    """EncodedVideo decodes and converts every frame between the first and the last; then the wanted ones are picked."""
    EncodedVideo = _encoded_video()
    video = EncodedVideo.from_path(str(path), decode_audio=False, decoder="pyav")
    rate = 30  # of all videos here
    clip = video.get_clip((indices[0] - 0.25) / rate, (indices[-1] + 0.25) / rate)["video"]
    video.close()
    return clip[:, [index - indices[0] for index in indices]].permute(1, 2, 3, 0).byte().contiguous().numpy()


@cache
def _encoded_video():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pytorchvideo.data.encoded_video import EncodedVideo
    return EncodedVideo


READERS: dict[str, Reader] = {
    "torchcodec": torchcodec,
    "torchcodec approximate": torchcodec_approximate,
    "PyAV": pyav,
    "decord2": decord2,
    "OpenCV": opencv,
    "pytorchvideo": pytorchvideo,
}


@cache
def why_not(name: str, path: Path) -> str:
    """Why a reader can't be measured here; empty if it can."""
    trial = subprocess.run(
        [sys.executable, __file__, name, str(path)], capture_output=True, text=True, timeout=300, check=False
    )
    if trial.returncode == 0:
        return ""
    lines = trial.stderr.strip().splitlines() or [f"it ended with code {trial.returncode}"]
    text = "\n".join(lines)
    if "libtorchcodec" in text or "libav" in text:
        return "torchcodec finds no FFmpeg libraries (on Debian: apt-get install ffmpeg)"
    return lines[-1]


if __name__ == "__main__":
    READERS[sys.argv[1]](Path(sys.argv[2]), [3, 5, 9])
