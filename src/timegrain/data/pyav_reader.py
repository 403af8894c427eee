"""The default reader: PyAV, which carries its own FFmpeg."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, Self

import av
import numpy as np
import numpy.typing as npt
from torch import Tensor

from timegrain.data.video import (
    Crop,
    VideoError,
    VideoInfo,
    as_frames,
    check_crop,
    check_indices,
    indices_at,
    short_reason,
)

_FAILURES = (av.error.FFmpegError, OSError, ValueError, RuntimeError)

# Containers that hold video or sound. Others that FFmpeg would try (play lists, image patterns, text as ANSI art) can
# name other files to open, or are no videos.
_CONTAINERS = (
    "aac,ac3,aiff,amr,amv,ape,apng,asf,au,av1,avi,avs2,avs3,bink,caf,cavsvideo,dirac,dnxhd,dts,dv,eac3,evc,ffm,flac,flic,"
    "flv,gif,gxf,h261,h263,h264,hevc,ivf,ivr,lvf,m4v,matroska,webm,mjpeg,mov,mp4,m4a,3gp,3g2,mj2,mp3,mpeg,mpegts,"
    "mpegvideo,mtv,mv,mxf,nsv,nut,nuv,obu,ogg,r3d,rm,roq,rpl,smk,swf,thp,tta,ty,vc1,vc1test,vivo,vmd,vvc,w64,wav,wtv,wv,"
    "yuv4mpegpipe"
)
_OPEN_OPTIONS = {"protocol_whitelist": "file", "format_whitelist": _CONTAINERS}
# swscale would start a thread per core, while a loader already runs one process per core.
_ONE_THREAD = {"threads": 1} if int(av.__version__.split(".")[0]) >= 17 else {}
_ATTACHED_PICTURE = 0x400  # AV_DISPOSITION_ATTACHED_PIC


class PyAVReader:
    """Reads with PyAV; see :class:`timegrain.data.video.VideoReader` for the methods.

    Args:
        path: The file.

    Raises:
        VideoError: If the file cannot be opened as a video.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._container: Any = None
        self._info: VideoInfo | None = None
        self._whole: list[tuple[int | None, int]] | None = None  # see _timing
        self._open()
        self._size = (self._context.height, self._context.width)  # as stored, of the first frame
        self._reformatter = av.video.reformatter.VideoReformatter()

    def _open(self) -> None:
        """Open the file anew, at its beginning, with a fresh decoder."""
        self.close()
        path = os.path.abspath(self._path)  # absolute: a name such as `http:a` stays a file
        if not os.path.isfile(path):
            raise VideoError(self._path, "is a folder" if os.path.isdir(path) else "file not found")
        if not os.path.getsize(path):
            raise VideoError(self._path, "the file is empty")
        try:
            self._container = av.open(path, options=_OPEN_OPTIONS, metadata_errors="replace")
        except _FAILURES as error:
            raise VideoError(self._path, f"not a video that can be opened: {short_reason(error)}") from error
        streams = [s for s in self._container.streams.video if not int(s.disposition) & _ATTACHED_PICTURE]
        if not streams:
            kinds = sorted({stream.type for stream in self._container.streams})
            self.close()
            raise VideoError(self._path, f"no video stream in the file (only {', '.join(kinds) or 'nothing'})")
        self._stream = streams[0]
        self._context = self._stream.codec_context
        if self._context is None:
            self.close()
            raise VideoError(self._path, "no decoder for its video codec")
        self._context.thread_count = 1
        self._next = 0

    def close(self) -> None:
        """Give the file back."""
        if self._container is not None:
            self._container.close()
            self._container = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _decode_all(self) -> Iterator[Any]:
        """All frames that are shown, decoded from the beginning; each frame's ``pts`` is its packet's number."""
        self._open()
        stamps: list[int | None] = []
        durations: list[int] = []
        shown: list[int] = []
        packets = self._container.demux(self._stream)
        ended = False
        while not ended:
            try:
                packet = next(packets)
                # The demuxer ends with a packet without content, which makes the decoder give all that it holds.
                ended = not packet.size and packet.dts is None
                if not ended:
                    if not packet.size:
                        continue
                    if packet.is_corrupt:
                        raise VideoError(self._path, f"the file is cut off or damaged after {len(stamps)} packets")
                    stamps.append(packet.pts)
                    durations.append(packet.duration or 0)
                    packet.pts = packet.dts = len(stamps) - 1
                frames = self._context.decode(packet)
            except VideoError:
                raise
            except _FAILURES as error:
                reason = f"frame {len(shown)} cannot be decoded (packet {len(stamps)}): {short_reason(error)}"
                raise VideoError(self._path, reason) from error
            for frame in frames:
                if frame.is_corrupt:
                    raise VideoError(self._path, f"frame {len(shown)} is damaged")
                shown.append(frame.pts)
                yield frame
        self._whole = [(stamps[n], durations[n]) for n in shown]
        if not self._whole:
            raise VideoError(self._path, "no frame in its video stream")

    def _timing(self) -> list[tuple[int | None, int]]:
        """(time stamp, duration) of each frame shown, in ticks of the stream."""
        if self._whole is None:
            for _ in self._decode_all():
                pass
        assert self._whole is not None
        return self._whole

    @property
    def num_frames(self) -> int:
        """Number of frames."""
        return len(self._timing())

    @property
    def timestamps(self) -> npt.NDArray[np.float64]:
        """(num_frames,) seconds from the first frame."""
        return self._times()[0]

    def _times(self) -> tuple[npt.NDArray[np.float64], float]:
        """Time stamps, and the duration of the whole, in seconds."""
        timing = self._timing()
        rate = float(self._stream.average_rate or 0)
        if not 0 < rate < 1000:  # 1000: the clock of some containers, taken for a rate
            rate = 25.0  # what FFmpeg takes for raw streams
        ticks = [stamp for stamp, _ in timing if stamp is not None]
        if len(set(ticks)) == len(timing):
            # Sorted: some containers give time stamps in decoding order.
            seconds = np.sort(np.array(ticks, dtype=np.int64) - min(ticks)) * float(self._stream.time_base)
            last = timing[-1][1] * float(self._stream.time_base)
            step = float(np.median(np.diff(seconds))) if len(ticks) > 1 else 1 / rate
            return seconds, float(seconds[-1]) + (last if last > step / 4 else step)
        return np.arange(len(timing)) / rate, len(timing) / rate

    @property
    def info(self) -> VideoInfo:
        """What the file holds."""
        if self._info is None:
            num_frames, (_, duration) = self.num_frames, self._times()
            frame = next(self._decode_all())
            height, width = _displayed(frame).shape[:2]
            self._info = VideoInfo(
                path=self._path,
                num_frames=num_frames,
                fps=num_frames / duration,
                duration_seconds=duration,
                width=width,
                height=height,
                codec=self._context.codec.canonical_name,
                rotation=-int(frame.rotation) % 360,
            )
        return self._info

    def _rgb(self, frame: Any) -> npt.NDArray[np.uint8]:
        """(H, W, 3) of a decoded frame as displayed, at the size of the first frame."""
        height, width = self._size
        rgb = self._reformatter.reformat(frame, width=width, height=height, format="rgb24", **_ONE_THREAD)
        plane = rgb.planes[0]
        rows = np.frombuffer(plane, np.uint8).reshape(height, plane.line_size)[:, : 3 * width]
        return np.rot90(rows.reshape(height, width, 3), round(frame.rotation / 90))

    def _wanted(self, ranks: npt.NDArray[np.int64]) -> Iterator[tuple[int, Any]]:
        """The frames of the given sorted, distinct numbers, as they come out of the decoder."""
        last = int(ranks[-1])
        wanted = set(ranks.tolist())
        for rank, frame in enumerate(self._decode_all()):
            if rank in wanted:
                yield rank, frame
            if rank == last:
                return

    def frames(self, indices: Sequence[int] | npt.NDArray[np.integer], *, crop: Crop | None = None) -> Tensor:
        """Frames by index, in one decoding pass."""
        array = check_indices(indices, self.num_frames)
        top, left, height, width = check_crop(crop, self.info.height, self.info.width)
        out = np.empty((len(array), height, width, 3), np.uint8)
        if len(array):
            ranks, where = np.unique(array, return_inverse=True)
            for rank, frame in self._wanted(ranks):
                picture = self._rgb(frame)[top : top + height, left : left + width]
                out[where == np.searchsorted(ranks, rank)] = picture
        return as_frames(out)

    def frames_at(self, seconds: float | Sequence[float] | npt.NDArray[np.floating]) -> Tensor:
        """The frames shown at the given times."""
        stamps, duration = self._times()
        return self.frames(indices_at(seconds, stamps, duration))

    def stream(self, start: int = 0, stop: int | None = None, step: int = 1) -> Iterator[Tensor]:
        """Frames one after the other, through a handle of their own."""
        ranks = np.arange(self.num_frames)[start:stop:step]
        if len(ranks):
            with PyAVReader(self._path) as reader:
                for _, frame in reader._wanted(ranks):
                    yield as_frames(reader._rgb(frame)[None].copy())[0]


def _displayed(frame: Any) -> npt.NDArray[np.uint8]:
    return np.rot90(np.empty((frame.height, frame.width), np.uint8), round(frame.rotation / 90))
