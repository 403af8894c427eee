"""The default reader: PyAV, which carries its own FFmpeg."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from torch import Tensor

from timegrain.data.byte_ranges import RangeFile
from timegrain.data.pixels import Pictures, display_matrix, turn
from timegrain.data.streams.index import Int64, Span
from timegrain.data.streams.source import AV_FAILURES, PacketSource, UnexpectedPacket
from timegrain.data.video import (
    Crop,
    VideoError,
    VideoInfo,
    as_frames,
    check_crop,
    check_indices,
    indices_at,
    short_reason,
    spread,
)

# Pixels of frames that are decoded before the first of them is converted: code that takes turns with a decoder finds the
# processor's caches full of other things each time.
_TOGETHER = 1 << 21


class _UnexpectedFrame(Exception):
    """The decoder did not give what the packets announce."""


class _UnexpectedSize(Exception):
    """A frame has another size than the container says, and the first frame's is not yet known."""


def _groups(frames: Iterator[tuple[int, Any]]) -> Iterator[list[tuple[int, Any]]]:
    """Decoded frames, some at a time."""
    group: list[tuple[int, Any]] = []
    num_pixels = 0
    for rank, frame in frames:
        group.append((rank, frame))
        num_pixels += frame.width * frame.height
        if num_pixels >= _TOGETHER:
            yield group
            group, num_pixels = [], 0
    yield group


class PyAVReader:
    """Reads with PyAV; see :class:`timegrain.data.video.VideoReader` for the methods.

    Frames are found through the packets. All of them are looked at once, which for well-formed streams of the usual
    codecs tells every frame (:mod:`timegrain.data.streams`); then only packets that a needed frame depends on are
    decoded. Each packet carries its number through the decoder in place of its time stamp: each frame that comes out
    says which packet it is, and frames other than the announced ones are noticed. Where the packets do not tell, or
    told wrongly, the file is decoded from its beginning and the frames are counted.

    Args:
        path: The file, or another location of a video.
        file: Its bytes, if they are open already; closed with the reader.

    Raises:
        VideoError: If the file cannot be opened as a video.
    """

    def __init__(self, path: str, file: RangeFile | None = None) -> None:
        self._path = path
        self._source = PacketSource(path, file)
        self._index = self._source.index
        self._order = self._index.order  # packet of each frame shown; None until the file was decoded once
        self._drop = True
        self._pictures = Pictures(path)
        # As stored, of the first frame. What the container says is checked against the frames that are decoded.
        self._size = self._source.height, self._source.width
        self._first: tuple[int, int, int] | None = None  # displayed height and width, and rotation

    def close(self) -> None:
        """Give the file back."""
        self._source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ---- decoding ----------------------------------------------------------------------------------------------

    def _decode_span(self, span: Span) -> Iterator[tuple[int, Any]]:
        """(packet number, frame) of every frame that the span announces; _UnexpectedFrame if it gives others."""
        expected = iter(span.shown)
        announced = set(span.shown)
        source = self._source
        if not span.packets:  # a damaged header promises frames that no packet holds
            raise _UnexpectedFrame("no packet holds it")
        try:
            source.go_to(span.packets[0])
            decode = source.decoder.decode
            for number in itertools.chain(span.packets, (None,)):  # None: give all that is held back
                for frame in decode(None if number is None else source.read(number)):
                    packet = frame.pts
                    if packet not in announced:
                        continue  # leading picture of a start inside an open group of pictures
                    if frame.is_corrupt or packet != next(expected, None):
                        raise _UnexpectedFrame(f"frame of packet {packet}")
                    yield packet, frame
        except (*AV_FAILURES, UnexpectedPacket) as error:
            source.check_reads()
            raise _UnexpectedFrame(short_reason(error)) from error
        if next(expected, None) is not None:
            source.check_reads()
            raise _UnexpectedFrame("a frame is missing")

    def _decode_whole(self) -> Iterator[tuple[int, Any]]:
        """(rank, frame) of all frames, decoded from the beginning; remembers their order at the end.

        Raises:
            VideoError: Naming the frame that cannot be decoded.
        """
        self._source.rewind()
        shown: list[int] = []
        try:
            for packet in itertools.chain(self._source.packets(), (None,)):  # None: give all that is held back
                for frame in self._source.decoder.decode(packet):
                    if frame.is_corrupt:
                        raise VideoError(self._path, f"frame {len(shown)} is damaged")
                    shown.append(frame.pts)
                    yield len(shown) - 1, frame
        except VideoError:
            self._source.check_reads()
            raise
        except AV_FAILURES as error:
            self._source.check_reads()
            reason = f"frame {len(shown)} cannot be decoded: {short_reason(error)}"
            raise VideoError(self._path, reason) from error
        self._source.check_reads()
        if not shown:
            raise VideoError(self._path, "no frame in its video stream")
        self._order = np.array(shown, np.int64)

    def _decode(self, ranks: Int64) -> Iterator[tuple[int, Any]]:
        """(rank, frame) of the frames with the given sorted, distinct numbers."""
        if not self._source.is_open:
            raise ValueError(f"{self._path}: the video is closed")
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

    def _rgb(self, frame: Any, crop: Crop | None = None) -> npt.NDArray[np.uint8]:
        """(H, W, 3) of a decoded frame as displayed, at the size of the first frame."""
        if (frame.height, frame.width) != self._size and self._first is None:
            raise _UnexpectedSize
        return self._pictures.rgb(frame, *self._size, crop)

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
            matrix = display_matrix(frame)
            empty = np.empty(self._size, np.uint8)
            height, width = (empty if matrix is None else turn(empty, matrix, self._path)).shape
            rotation = 0 if matrix is None else round(np.degrees(np.arctan2(matrix[1], matrix[0]))) % 360
            self._first = height, width, rotation
        return self._first

    def file_again(self) -> RangeFile | None:
        """The bytes of what is no plain file, for another reader that lives no longer than this one."""
        return None if self._source.file is None else self._source.file.again()

    # ---- for readers that find frames by their times ------------------------------------------------------------

    @property
    def stream_index(self) -> int:
        """Which of the file's streams is read."""
        return self._source.stream_index

    def why_not_by_time(self) -> str:
        """Why a frame might not be found by its time stamp and the container's key frames; empty if it is found."""
        if not self._source.is_indexed or self._source.container == "avi":
            return f"the container ({self._source.container}) has no reliable times to jump to"
        return self._index.why_not_by_time()

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
        return self._index.seconds(self._known_order(), self._source.time_base, self._source.rate)

    @property
    def timestamps(self) -> npt.NDArray[np.float64]:
        """(num_frames,) seconds from the first frame."""
        return self._times()[0]

    @property
    def info(self) -> VideoInfo:
        """What the file holds."""
        height, width, rotation = self._look_at_first()
        num_frames, (_, duration) = self.num_frames, self._times()
        return VideoInfo(
            self._path, num_frames, num_frames / duration, duration, width, height, self._source.codec, rotation
        )

    def frames(self, indices: Sequence[int] | npt.NDArray[np.integer], *, crop: Crop | None = None) -> Tensor:
        """Frames by index, in one decoding pass."""
        array = check_indices(indices, self.num_frames)
        if not len(array):
            _, _, height, width = check_crop(crop, *self._look_at_first()[:2])
            return as_frames(np.empty((0, height, width, 3), np.uint8))
        out: npt.NDArray[np.uint8] | None = None
        for place, picture in self.pictures(array, crop=crop):
            if out is None or out.shape[1:] != picture.shape:  # another try may find that the container was wrong
                out = np.empty((len(array), *picture.shape), np.uint8)
            out[place] = picture
        assert out is not None
        return as_frames(out)

    def pictures(
        self,
        indices: Sequence[int] | npt.NDArray[np.integer],
        *,
        crop: Crop | Sequence[Crop] | None = None,
    ) -> Iterator[tuple[int, npt.NDArray[np.uint8]]]:
        """Frames by index, one by one in presentation order."""
        array = check_indices(indices, self.num_frames)
        crops = spread(crop, len(array))
        if not len(array):
            return
        ranks, inverse = np.unique(array, return_inverse=True)
        places: dict[int, list[int]] = {rank: [] for rank in ranks.tolist()}
        for place, number in enumerate(inverse.tolist()):
            places[int(ranks[number])].append(place)
        while True:
            try:
                for group in _groups(self._decode(ranks)):
                    for rank, frame in group:
                        picture = None  # so that the next one comes to lie where this one was, in the cache
                        for place in places[rank]:
                            if picture is None or crops[place] != cut_out:
                                cut_out = crops[place]
                                picture = self._rgb(frame, cut_out)
                            yield place, picture
                return
            except (_UnexpectedFrame, _UnexpectedSize) as error:
                self._retry(error)

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
        with PyAVReader(self._path, self.file_again()) as reader:
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
