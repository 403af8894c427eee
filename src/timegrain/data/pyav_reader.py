"""The default reader: PyAV, which carries its own FFmpeg."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, Self

import av
import numpy as np
import numpy.typing as npt
from torch import Tensor

from timegrain.data.streams.index import UNKNOWN, Int64, PacketIndex, Span, read_index
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


_MAX_SKIP = 100  # packets that are read and passed over rather than sought
_MAX_PIXELS = 1 << 27  # of one picture; more is an attack or a broken header


class _UnexpectedFrame(Exception):
    """The decoder did not give what the packets announce."""


class _UnexpectedSize(Exception):
    """A frame has another size than the container says, and the first frame's is not yet known."""


class PyAVReader:
    """Reads with PyAV; see :class:`timegrain.data.video.VideoReader` for the methods.

    Frames are found through the packets. All of them are walked through once, which for well-formed streams of the usual
    codecs tells every frame (:mod:`timegrain.data.streams`); then only packets that a needed frame depends on are
    decoded. Each packet carries its number through the decoder in place of its time stamp: each frame that comes out
    says which packet it is, and frames other than the announced ones are noticed. Where the packets do not tell, or
    told wrongly, the file is decoded from its beginning and the frames are counted.

    Args:
        path: The file.

    Raises:
        VideoError: If the file cannot be opened as a video.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._container: Any = None
        self._drop = True
        self._reformatter = av.video.reformatter.VideoReformatter()
        self._open()
        self._codec = str(self._context.codec.canonical_name)
        # As stored, of the first frame. What the container says is checked against the frames that are decoded.
        self._size = (int(self._context.height), int(self._context.width))
        self._first: tuple[int, int, int] | None = None  # displayed height and width, and rotation
        self._time_base = float(self._stream.time_base)
        rate = float(self._stream.average_rate or 0)
        # 1000: the clock of some containers, taken for a rate. 25: what FFmpeg takes for streams without a clock.
        self._rate = rate if 0 < rate < 1000 else 25.0
        try:
            self._index = self._walk()
        except BaseException:
            self.close()
            raise
        self._order = self._index.order  # packet of each frame shown; None until the file was decoded once

    # ---- the file ----------------------------------------------------------------------------------------------

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
        self._context.options = {"max_pixels": str(_MAX_PIXELS)}
        self._packets = self._demux()
        self._next = 0  # number of the packet that comes next

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

    def _demux(self) -> Iterator[Any]:
        """The stream's packets from where the file stands, without empty ones."""
        if self._container is None:
            raise ValueError(f"{self._path}: the video is closed")
        return (packet for packet in self._container.demux(self._stream) if packet.size)

    def _walk(self) -> PacketIndex:
        """Read all packets once."""
        walked: list[int] = []  # its length tells how far the walk came

        def whole_packets() -> Iterator[Any]:
            for packet in self._packets:
                if packet.is_corrupt:
                    raise VideoError(self._path, f"cut off or damaged at packet {len(walked)}")
                if not walked and packet.has_sidedata("encryption_info"):
                    raise VideoError(self._path, "encrypted")
                walked.append(packet.size)
                yield packet

        try:
            index = read_index(whole_packets(), self._codec, self._context.extradata or b"")
        except VideoError:
            raise
        except _FAILURES as error:
            reason = f"cut off or damaged after packet {len(walked)}: {short_reason(error)}"
            raise VideoError(self._path, reason) from error
        self._next = len(walked)
        if not walked:
            raise VideoError(self._path, "no frame in its video stream")
        return index

    def _go_to(self, number: int) -> None:
        """Let the packet of this number be the next one."""
        is_far = self._next > number or (number - self._next > _MAX_SKIP and self._can_seek)
        if is_far and not (self._can_seek and self._seek(number)):
            self._open()
        while self._next < number:
            self._read()

    def _read(self) -> Any:
        """The next packet, which must be the one that the index has."""
        packet = next(self._packets, None)
        if packet is None or packet.size != self._index.sizes[self._next]:
            raise _UnexpectedFrame(f"packet {self._next} is not the one that was there before")
        packet.pts = packet.dts = self._next
        self._next += 1
        return packet

    @property
    def _can_seek(self) -> bool:
        """Containers with an index of their own, in which a packet is known by its place."""
        names = self._container.format.name.split(",")
        return bool({"mov", "matroska", "avi"} & set(names)) and bool((self._index.positions >= 0).all())

    def _seek(self, number: int) -> bool:
        """Go to a packet at or before the given one by the container's index; False if that does not lead there."""
        # The index is one of decoding times in some containers and of presentation times in others.
        for ticks in sorted({int(self._index.ticks[number]), int(self._index.decoding_ticks[number])}, reverse=True):
            if ticks == UNKNOWN:
                continue
            try:
                self._container.seek(ticks, stream=self._stream)
            except _FAILURES:
                return False
            self._packets = self._demux()
            packet = next(self._packets, None)
            if packet is None:
                continue
            places = np.flatnonzero((self._index.positions == packet.pos) & (self._index.sizes == packet.size))
            if len(places) == 1 and places[0] <= number:
                self._next = int(places[0])
                self._packets = itertools.chain([packet], self._packets)
                return True
        return False

    # ---- decoding ----------------------------------------------------------------------------------------------

    def _decode_span(self, span: Span) -> Iterator[tuple[int, Any]]:
        """(packet number, frame) of every frame that the span announces; _UnexpectedFrame if it gives others."""
        expected = iter(span.shown)
        announced = set(span.shown)

        def check(frames: list[Any]) -> Iterator[tuple[int, Any]]:
            for frame in frames:
                if frame.pts not in announced:
                    continue  # leading picture of a start inside an open group of pictures
                if frame.is_corrupt or frame.pts != next(expected, None):
                    raise _UnexpectedFrame(f"frame of packet {frame.pts}")
                yield frame.pts, frame

        self._go_to(span.packets[0])
        self._context.flush_buffers()
        try:
            for number in span.packets:
                while self._next < number:
                    self._read()
                yield from check(self._context.decode(self._read()))
            yield from check(self._context.decode(None))
        except _FAILURES as error:
            raise _UnexpectedFrame(short_reason(error)) from error
        if next(expected, None) is not None:
            raise _UnexpectedFrame("a frame is missing")

    def _decode_whole(self) -> Iterator[tuple[int, Any]]:
        """(rank, frame) of all frames, decoded from the beginning; remembers their order at the end.

        Raises:
            VideoError: Naming the frame that cannot be decoded.
        """
        self._open()
        shown: list[int] = []
        number, ended = -1, False
        while not ended:
            try:
                packet = next(self._packets, None)
                if packet is None:
                    ended = True
                else:
                    number += 1
                    packet.pts = packet.dts = number
                frames = self._context.decode(packet)
            except _FAILURES as error:
                reason = f"frame {len(shown)} cannot be decoded (packet {number}): {short_reason(error)}"
                raise VideoError(self._path, reason) from error
            for frame in frames:
                if frame.is_corrupt:
                    raise VideoError(self._path, f"frame {len(shown)} is damaged")
                shown.append(frame.pts)
                yield len(shown) - 1, frame
        if not shown:
            raise VideoError(self._path, "no frame in its video stream")
        self._order = np.array(shown, np.int64)

    def _decode(self, ranks: Int64) -> Iterator[tuple[int, Any]]:
        """(rank, frame) of the frames with the given sorted, distinct numbers."""
        if self._index.order is None:
            yield from self._decode_counting(ranks)
            return
        rank_of = dict(zip(self._index.order[ranks].tolist(), ranks.tolist(), strict=True))
        for span in self._index.plan(ranks, self._drop):
            for packet, frame in self._decode_span(span):
                if packet in rank_of:
                    yield rank_of[packet], frame

    def _decode_counting(self, ranks: Int64) -> Iterator[tuple[int, Any]]:
        wanted, last = set(ranks.tolist()), int(ranks[-1])
        for rank, frame in self._decode_whole():
            if rank in wanted:
                yield rank, frame
            if rank == last:
                return
        raise VideoError(self._path, f"frame {last} is missing: the file shows {self.num_frames} frames")

    def _give_up_plan(self) -> None:
        """From now on decode more: first without leaving packets out, then the whole file."""
        if self._drop:
            self._drop = False
        else:
            self._index = dataclasses.replace(self._index, order=None)
            self._order = None

    # ---- pictures ----------------------------------------------------------------------------------------------

    def _rgb(self, frame: Any) -> npt.NDArray[np.uint8]:
        """(H, W, 3) of a decoded frame as displayed, at the size of the first frame."""
        if (frame.height, frame.width) != self._size and self._first is None:
            raise _UnexpectedSize
        height, width = self._size
        try:
            rgb = self._reformatter.reformat(frame, width=width, height=height, format="rgb24", **_ONE_THREAD)
        except _FAILURES as error:
            reason = f"its {frame.format.name} pictures cannot be converted to RGB: {short_reason(error)}"
            raise VideoError(self._path, reason) from error
        plane = rgb.planes[0]
        rows: npt.NDArray[np.uint8] = np.frombuffer(memoryview(plane), np.uint8).reshape(height, plane.line_size)
        picture = rows[:, : 3 * width].reshape(height, width, 3)
        matrix = _display_matrix(frame)
        return picture if matrix is None else _turn(picture, matrix, self._path)

    def _retry(self, error: _UnexpectedFrame | _UnexpectedSize) -> None:
        """Make the next try to decode the same frames succeed where this one did not."""
        if isinstance(error, _UnexpectedSize):
            self._look_at_first()
        else:
            self._give_up_plan()

    def _look_at_first(self) -> tuple[int, int, int]:
        """Displayed height and width of the first frame, and its rotation; decodes it the first time."""
        while self._first is None:
            try:
                _, frame = next(self._decode(np.zeros(1, np.int64)))
            except _UnexpectedFrame as error:
                self._retry(error)
                continue
            self._size = frame.height, frame.width
            matrix = _display_matrix(frame)
            empty = np.empty(self._size, np.uint8)
            height, width = (empty if matrix is None else _turn(empty, matrix, self._path)).shape
            rotation = 0 if matrix is None else round(np.degrees(np.arctan2(matrix[1], matrix[0]))) % 360
            self._first = height, width, rotation
        return self._first

    # ---- what users call ---------------------------------------------------------------------------------------

    @property
    def num_frames(self) -> int:
        """Number of frames."""
        return len(self._known_order())

    def _known_order(self) -> Int64:
        """(num_frames,) packet of each frame shown; decodes the whole file where the packets do not tell."""
        if self._order is None:
            for _ in self._decode_whole():
                pass
        assert self._order is not None
        return self._order

    def _times(self) -> tuple[npt.NDArray[np.float64], float]:
        """Time stamps, and the duration of the whole, in seconds."""
        return self._index.seconds(self._known_order(), self._time_base, self._rate)

    @property
    def timestamps(self) -> npt.NDArray[np.float64]:
        """(num_frames,) seconds from the first frame."""
        return self._times()[0]

    @property
    def info(self) -> VideoInfo:
        """What the file holds."""
        height, width, rotation = self._look_at_first()
        num_frames, (_, duration) = self.num_frames, self._times()
        return VideoInfo(self._path, num_frames, num_frames / duration, duration, width, height, self._codec, rotation)

    def frames(self, indices: Sequence[int] | npt.NDArray[np.integer], *, crop: Crop | None = None) -> Tensor:
        """Frames by index, in one decoding pass."""
        while True:
            array = check_indices(indices, self.num_frames)
            try:
                return as_frames(self._collect(array, crop))
            except (_UnexpectedFrame, _UnexpectedSize) as error:
                self._retry(error)

    def _collect(self, indices: Int64, crop: Crop | None) -> npt.NDArray[np.uint8]:
        """(T, H, W, 3)."""
        if not len(indices):
            _, _, height, width = check_crop(crop, *self._look_at_first()[:2])
            return np.empty((0, height, width, 3), np.uint8)
        ranks, places = np.unique(indices, return_inverse=True)
        out: npt.NDArray[np.uint8] | None = None
        for rank, frame in self._decode(ranks):
            picture = self._rgb(frame)
            top, left, height, width = check_crop(crop, *picture.shape[:2])
            if out is None:
                out = np.empty((len(indices), height, width, 3), np.uint8)
            out[places == np.searchsorted(ranks, rank)] = picture[top : top + height, left : left + width]
        assert out is not None
        return out

    def frames_at(self, seconds: float | Sequence[float] | npt.NDArray[np.floating]) -> Tensor:
        """The frames shown at the given times."""
        stamps, duration = self._times()
        return self.frames(indices_at(seconds, stamps, duration))

    def stream(self, start: int = 0, stop: int | None = None, step: int = 1) -> Iterator[Tensor]:
        """Frames one after the other, through a handle of their own."""
        if start < 0 or step < 1 or (stop is not None and stop < 0):
            raise ValueError(f"frames cannot be streamed from {start} to {stop} in steps of {step}")
        ranks = np.arange(self.num_frames)[start:stop:step]
        done = 0
        with PyAVReader(self._path) as reader:
            while done < len(ranks):
                try:
                    for _, frame in reader._decode(ranks[done:]):
                        yield as_frames(reader._rgb(frame)[None].copy())[0]
                        done += 1
                except (_UnexpectedFrame, _UnexpectedSize) as error:
                    reader._retry(error)
                    if reader._index.order is None and done and start:
                        # The frames already given may have been others than counting from the beginning finds.
                        reason = "does not show the frames that its packets announce; read it with `frames`"
                        raise VideoError(self._path, reason) from error


def _display_matrix(frame: Any) -> npt.NDArray[np.int32] | None:
    """(9,) the frame's display matrix, where it has one that turns or mirrors."""
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return None
    matrix: npt.NDArray[np.int32] = np.frombuffer(bytes(data), np.int32)
    a, b, c, d = matrix[[0, 1, 3, 4]].tolist()
    return None if b == c == 0 and a >= 0 and d >= 0 else matrix


def _turn(picture: npt.NDArray[np.uint8], matrix: npt.NDArray[np.int32], path: str) -> npt.NDArray[np.uint8]:
    """A picture turned and mirrored by its display matrix (libavutil/display.h: x' = a x + c y, y' = b x + d y)."""
    a, b, c, d = matrix[[0, 1, 3, 4]].tolist()
    if a == d == 0 and b and c:
        picture, flip_x, flip_y = picture.swapaxes(0, 1), c < 0, b < 0
    elif b == c == 0:
        flip_x, flip_y = a < 0, d < 0
    else:
        raise VideoError(path, "is to be shown turned by an angle that is no multiple of 90 degrees")
    return picture[:: -1 if flip_y else 1, :: -1 if flip_x else 1]
