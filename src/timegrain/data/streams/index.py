"""The packets of a video stream and what follows from them: which frames there are, their order, how to get one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from timegrain.data.streams.bits import Parser, Picture, Unsettled
from timegrain.data.streams.h26x import H264, HEVC
from timegrain.data.streams.mpeg import MPEG4, MPEG12
from timegrain.data.streams.others import AV1, VP8, VP9, Alone, MotionJPEG

Int64 = npt.NDArray[np.int64]

_PARSERS: dict[str, Callable[[bytes], Parser]] = {
    "h264": H264,
    "hevc": HEVC,
    "mpeg4": MPEG4,
    "mpeg1video": MPEG12,
    "mpeg2video": MPEG12,
    "vp8": VP8,
    "vp9": VP9,
    "av1": AV1,
    "mjpeg": MotionJPEG,
    "prores": Alone,
    "dnxhd": Alone,
    "huffyuv": Alone,
    "rawvideo": Alone,
    "png": Alone,
}
UNKNOWN = np.iinfo(np.int64).min  # in place of a missing time stamp
# H.264 and H.265 hold at most 16 pictures back; a time stamp further off than twice that is a jump in the clock.
_MAX_REORDER = 32


@dataclass(frozen=True)
class Span:
    """Packets to be decoded together, from a clean beginning.

    Attributes:
        packets: Numbers of those to send to the decoder, in order; the first is one where decoding may begin.
        shown: Numbers of the packets whose frames then come out, in presentation order.
    """

    packets: list[int]
    shown: list[int]


@dataclass(frozen=True)
class PacketIndex:
    """All packets of a stream in decoding order, and the frames that they announce.

    Attributes:
        ticks: (N,) presentation time of each packet in units of the stream's time base, or UNKNOWN.
        decoding_ticks: (N,) decoding time likewise.
        durations: (N,) in the same units, 0 where the file does not say.
        sizes: (N,) bytes of content.
        positions: (N,) where the packet lies in the file, -1 where unknown.
        order: (num_frames,) packet of each frame in presentation order; None where the packets do not tell.
        reason: Why the packets do not tell.
        starts: (S,) packets where decoding may begin.
        display: (N,) a number by which the pictures are shown, hidden ones included.
        droppable: (N,) packets that can be left out if their frame is not needed.
        keys: (K,) packets that the container calls key frames, whether or not decoding may begin there.
        is_listed: The packets are the bytes at ``positions`` as they are.
    """

    ticks: Int64
    decoding_ticks: Int64
    durations: Int64
    sizes: Int64
    positions: Int64
    order: Int64 | None
    reason: str
    starts: Int64
    display: Int64
    droppable: npt.NDArray[np.bool_]
    keys: Int64
    is_listed: bool = False

    def seconds(self, order: Int64, time_base: float, rate: float) -> tuple[npt.NDArray[np.float64], float]:
        """When each frame appears and how long all last together, in seconds.

        Args:
            order: (num_frames,) packet of each frame in presentation order.
            time_base: Seconds per tick.
            rate: Frames per second where the packets carry no usable times.
        """
        ticks = self.ticks[order]
        if (ticks == UNKNOWN).any() or len(np.unique(ticks)) < len(ticks):
            return np.arange(len(ticks)) / rate, len(ticks) / rate
        # Sorted: some containers give time stamps in decoding order.
        times = np.sort(ticks - ticks.min()) * time_base
        step = float(np.median(np.diff(times))) if len(times) > 1 else 1 / rate
        last = float(self.durations[order[-1]]) * time_base
        return times, float(times[-1]) + (last if last > step / 4 else step)

    def why_not_by_time(self) -> str:
        """Why a frame might not be found by its time stamp and the container's key frames; empty if it is found."""
        if self.order is None:
            return self.reason
        if len(self.order) < len(self.ticks):
            return "some packets show no frame"
        ticks = self.ticks[self.order]
        if (ticks == UNKNOWN).any() or (np.diff(ticks) <= 0).any():
            return "its packets carry no presentation times"
        if not np.isin(self.keys, self.starts).all():
            return "not every key frame is a clean beginning"
        return ""

    def plan(self, ranks: Int64, drop: bool) -> list[Span]:
        """What to decode for some frames.

        Args:
            ranks: Sorted, distinct numbers of the frames needed.
            drop: Leave out packets that no needed frame depends on.
        """
        assert self.order is not None
        needed = self.order[ranks]
        # The last start that neither comes after the frame in the stream nor is shown after it.
        starts = np.searchsorted(self.starts, needed, side="right") - 1
        while (late := (self.display[self.starts[starts]] > self.display[needed]) & (starts > 0)).any():
            starts = starts - late
        last_packets: dict[int, int] = {}
        for start, packet in zip(self.starts[starts].tolist(), needed.tolist(), strict=True):
            last_packets[start] = max(last_packets.get(start, -1), packet)
        ranges: list[list[int]] = []
        for start, last in sorted(last_packets.items()):
            if ranges and start <= ranges[-1][1] + 1:
                ranges[-1][1] = max(ranges[-1][1], last)
            else:
                ranges.append([start, last])
        is_needed = np.zeros(len(self.ticks), bool)
        is_needed[needed] = True
        spans = []
        for start, last in ranges:
            packets = np.arange(start, last + 1)
            if drop:
                packets = packets[is_needed[packets] | ~self.droppable[packets]]
            shown = packets[self._is_shown[packets]]
            if start > 0:  # leading pictures of a later start may be missing or wrong: not expected, not used
                shown = shown[self.display[shown] >= self.display[start]]
            spans.append(Span(packets.tolist(), shown[np.argsort(self.display[shown])].tolist()))
        return spans

    @property
    def _is_shown(self) -> npt.NDArray[np.bool_]:
        assert self.order is not None
        shown = np.zeros(len(self.ticks), bool)
        shown[self.order] = True
        return shown


class Headers(NamedTuple):
    """What the headers of all packets say; see :class:`timegrain.data.streams.bits.Picture` and ``Parser``."""

    order: str
    may_drop: bool
    shown: npt.NDArray[np.bool_]
    start: npt.NDArray[np.bool_]
    disposable: npt.NDArray[np.bool_]
    bidirectional: npt.NDArray[np.bool_]
    places: Int64


def read_index(packets: Iterable[Any], codec: str, extradata: bytes) -> PacketIndex:
    """Walk through all packets of a stream.

    Args:
        packets: PyAV packets in decoding order.
        codec: FFmpeg's name of the codec.
        extradata: The codec's configuration as the container gives it.
    """
    rows: list[tuple[int | None, ...]] = []
    pictures: list[Picture] = []
    discarded: list[bool] = []
    keys: list[int] = []
    parser, reason = None, f"{codec} packets are not understood"
    if codec in _PARSERS:
        try:
            parser, reason = _PARSERS[codec](extradata), ""
        except Unsettled as error:
            reason = str(error)
        except IndexError:
            reason = "the codec's configuration is cut short"
    for number, packet in enumerate(packets):
        rows.append((packet.pts, packet.dts, packet.duration, packet.size, packet.pos))
        if packet.is_keyframe:
            keys.append(number)
        if parser is not None:
            try:
                for extra in packet.iter_sidedata():  # hardly a packet has any, and asking for a kind costs more
                    if extra.data_type == "new_extradata":
                        raise Unsettled("the stream changes its parameters")
                pictures.append(parser.read(memoryview(packet)))
            except Unsettled as error:
                parser, reason = None, str(error)
            except IndexError:
                parser, reason = None, "a header is cut short"
            discarded.append(packet.is_discard)
    columns = zip(*rows, strict=True) if rows else [()] * 5
    ticks, decoding_ticks, durations, sizes, positions = (
        np.array([missing if value is None else value for value in column], np.int64)
        for column, missing in zip(columns, (UNKNOWN, UNKNOWN, 0, 0, -1), strict=True)
    )
    headers = None
    if parser is not None:
        table = np.array(pictures, np.int64).reshape(-1, 5)
        shown, start, disposable, bidirectional = table[:, :4].astype(bool).T
        headers = Headers(parser.order, parser.may_drop, shown, start, disposable, bidirectional, table[:, 4])
    return assemble(
        headers,
        reason,
        ticks=ticks,
        decoding_ticks=decoding_ticks,
        durations=durations,
        sizes=sizes,
        positions=positions,
        discarded=np.array(discarded, bool),
        keys=np.array(keys, np.int64),
    )


def assemble(
    headers: Headers | None,
    reason: str = "",
    *,
    ticks: Int64,
    decoding_ticks: Int64,
    durations: Int64,
    sizes: Int64,
    positions: Int64,
    discarded: npt.NDArray[np.bool_],
    keys: Int64,
) -> PacketIndex:
    """The index of packets whose headers have been read.

    Args:
        headers: What they say; None where they do not tell the frames.
        reason: Why they do not.
        ticks: As in :class:`PacketIndex`, like the others.
        decoding_ticks: Likewise.
        durations: Likewise.
        sizes: Likewise.
        positions: Likewise.
        discarded: (N,) packets that an edit list hides.
        keys: As in :class:`PacketIndex`.
    """
    order: Int64 | None = None
    display = np.arange(len(ticks))
    starts, droppable = np.zeros(0, np.int64), np.zeros(len(ticks), bool)
    if headers is not None:
        shown = headers.shown & ~discarded
        try:
            display = _display_order(headers, ticks, shown)
            order = np.flatnonzero(shown)[np.argsort(display[shown])]
        except Unsettled as error:
            reason = str(error)
        starts = np.flatnonzero(headers.start)
        if order is not None and headers.may_drop and not discarded.any():
            droppable = headers.disposable
    return PacketIndex(
        ticks=ticks,
        decoding_ticks=decoding_ticks,
        durations=durations,
        sizes=sizes,
        positions=positions,
        order=order,
        reason=reason,
        starts=starts,
        display=display,
        droppable=droppable,
        keys=keys,
    )


def _display_order(headers: Headers, ticks: Int64, shown: npt.NDArray[np.bool_]) -> Int64:
    """(N,) numbers that sort packets by presentation; Unsettled where they do not tell."""
    if not shown.any():
        raise Unsettled("no packet shows a frame")
    kind, numbers = headers.order, np.arange(len(ticks))
    if kind == "decoding":
        return numbers
    if kind == "types":
        if not shown.all():
            raise Unsettled("an edit list hides packets")
        # A reference picture waits until the next one arrives; B pictures are shown at once.
        display = np.empty(len(ticks), np.int64)
        waiting, position = -1, 0
        for number, is_bidirectional in enumerate(headers.bidirectional.tolist()):
            if not is_bidirectional:
                waiting, number = number, waiting
            if number >= 0:
                display[number] = position
                position += 1
        display[waiting] = position
        return display
    if (ticks == UNKNOWN).any():
        raise Unsettled("packets without time stamps")
    if len(np.unique(ticks)) < len(ticks):
        raise Unsettled("several packets with one time stamp")
    if np.abs(np.argsort(np.argsort(ticks)) - numbers).max() > _MAX_REORDER:
        raise Unsettled("time stamps that jump")
    # Some containers have decoding times alone, and some files have been cut and joined: the stream has the last word.
    places = headers.places
    if (np.argsort(ticks) != np.argsort(places, kind="stable")).any():
        raise Unsettled("time stamps that contradict the stream")
    steps = np.diff(np.sort(places))
    steps = steps[steps < 1 << 39]  # within a period of the order count
    if kind == "gapless timestamps" and len(steps) and (steps != steps.min()).any():
        raise Unsettled("pictures are missing")
    return ticks
