"""The packets of an H.264 track in an MP4 file, found without a demuxer.

An MP4 file lists its packets: FFmpeg has read where each lies, its size and its decoding time as soon as the file is open.
What is missing to order the frames, presentation times and the pictures' headers, is in the file's bytes, and is read here
for all packets at once. What comes out is what walking through the packets would give, to the last number; of files in
which anything is unusual nothing comes out, and the packets are walked through.

Sources: ISO/IEC 14496-12 (4.2, 8.3 to 8.8), ISO/IEC 14496-15 (5.3), ITU-T H.264 (7.3.1, 7.3.3, 9.1).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import repeat
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from timegrain.data.streams.bits import OrderCount, Unsettled
from timegrain.data.streams.h26x import H264
from timegrain.data.streams.index import Headers, Int64, PacketIndex, assemble

_MOST_UNITS = 64  # NAL units of a packet
_SLICE, _IDR_SLICE = 1, 5
_PARTITIONS_OR_PARAMETERS = (2, 3, 4, 7, 8)
# Boxes that add packets to the listed ones, or change them.
_FRAGMENTS = {b"moof", b"mvex", b"sidx", b"mfra"}

UInt8 = npt.NDArray[np.uint8]


class _Unusual(Exception):
    """The packets are to be walked through."""


def index_of(data: bytes, track: int, entries: Any, extradata: bytes) -> PacketIndex | None:
    """The index of a track; None if the packets have to be walked through.

    Args:
        data: The whole file.
        track: Number of the track.
        entries: FFmpeg's list of its packets, as PyAV gives it.
        extradata: The codec's configuration.
    """
    try:
        rows = [(e.pos, e.size, e.timestamp, e.is_keyframe, e.is_discard) for e in entries]
        table = np.array(rows, np.int64).reshape(-1, 5)
        positions, sizes, decoding_ticks, is_key, is_discard = table.T.copy()
        if not len(table) or is_discard.any() or (sizes <= 0).any() or (positions < 0).any():
            return None
        if (positions + sizes > len(data)).any():
            return None
        offsets, durations = _times(data, track, len(table))
        headers = _headers(data, positions, sizes, extradata)
        if (headers.start != is_key).any():
            return None  # FFmpeg looks into the packets, too, and may call others key frames than the list does
    except (_Unusual, Unsettled, IndexError, KeyError, ValueError, OverflowError):
        return None
    index = assemble(
        headers,
        ticks=decoding_ticks + offsets,
        decoding_ticks=decoding_ticks,
        durations=durations,
        sizes=sizes,
        positions=positions,
        discarded=np.zeros(len(table), bool),
        keys=np.flatnonzero(is_key),
    )
    return None if index.order is None else replace(index, is_listed=True)


# ---- the container ---------------------------------------------------------------------------------------------------


def _boxes(data: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    """(type, content) of the boxes that lie one after the other."""
    position, end = 0, len(data)
    while position + 8 <= end:
        size, kind, begin = (
            int.from_bytes(data[position : position + 4], "big"),
            bytes(data[position + 4 : position + 8]),
            8,
        )
        if size == 1:
            size, begin = int.from_bytes(data[position + 8 : position + 16], "big"), 16
        elif size == 0:
            size = end - position
        if size < begin or position + size > end:
            raise _Unusual
        yield kind, data[position + begin : position + size]
        position += size


def _only(data: memoryview, *path: bytes) -> memoryview:
    """The box at a path of types, each of which is there once."""
    for kind in path:
        found = [content for name, content in _boxes(data) if name == kind]
        if len(found) != 1:
            raise _Unusual
        data = found[0]
    return data


def _rows(box: memoryview, columns: int) -> npt.NDArray[np.int32]:
    """The table of a box: version and flags, number of rows, numbers of 32 bits."""
    count = int.from_bytes(box[4:8], "big")
    if len(box) != 8 + 4 * count * columns:
        raise _Unusual
    return np.frombuffer(box, ">i4", offset=8).astype(np.int32).reshape(count, columns)


def _times(data: bytes, track: int, num_packets: int) -> tuple[Int64, Int64]:
    """(N,) presentation time less decoding time, and duration, of every packet."""
    top = dict.fromkeys(kind for kind, _ in _boxes(memoryview(data)))
    movie = _only(memoryview(data), b"moov")
    if not _FRAGMENTS.isdisjoint(top) or not _FRAGMENTS.isdisjoint(kind for kind, _ in _boxes(movie)):
        raise _Unusual
    tracks = [content for kind, content in _boxes(movie) if kind == b"trak"]
    (own,) = [content for content in tracks if _track_number(content) == track]
    inside = dict(_boxes(own))
    if b"edts" in inside:
        _check_edits(_only(inside[b"edts"], b"elst"))
    table = dict(_boxes(_only(own, b"mdia", b"minf", b"stbl")))
    described = table[b"stsd"]
    if int.from_bytes(described[4:8], "big") != 1 or bytes(described[12:16]) != b"avc1":
        raise _Unusual  # encrypted, or of several kinds
    if int.from_bytes(table[b"stsz"][8:12], "big") != num_packets:
        raise _Unusual
    offsets = np.zeros(num_packets, np.int64)
    if b"ctts" in table:
        offsets = _expanded(table[b"ctts"], num_packets)
        if (offsets < 0).any():
            raise _Unusual  # FFmpeg moves the decoding times
    durations = _expanded(table[b"stts"], num_packets)
    if (durations <= 0).any():
        raise _Unusual
    return offsets, durations


def _check_edits(box: memoryview) -> None:
    """One edit, perhaps after a pause: with more of them packets may be left out or come twice."""
    width = 8 if box[0] == 1 else 4  # of durations and times
    count, size = int.from_bytes(box[4:8], "big"), 2 * width + 4
    if len(box) != 8 + count * size:  # a damaged count may be billions
        raise _Unusual
    times = [box[at + width : at + 2 * width] for at in range(8, 8 + count * size, size)]
    if not times or any(bytes(time) != b"\xff" * width for time in times[:-1]):
        raise _Unusual


def _track_number(track: memoryview) -> int:
    header = _only(track, b"tkhd")
    at = 20 if header[0] == 1 else 12
    return int.from_bytes(header[at : at + 4], "big")


def _expanded(box: memoryview, num_packets: int) -> Int64:
    """(N,) values of a table of (how many packets, value)."""
    rows = _rows(box, 2)
    counts = rows[:, 0].astype(np.int64)
    if (counts < 0).any() or counts.sum() != num_packets:
        raise _Unusual
    return np.repeat(rows[:, 1].astype(np.int64), counts)


# ---- the pictures ----------------------------------------------------------------------------------------------------


class _Units(NamedTuple):
    """What the NAL units of each packet say together."""

    idr: npt.NDArray[np.bool_]
    disposable: npt.NDArray[np.bool_]
    slices: Int64  # where the first slice's unit begins
    ends: Int64  # where it ends


def _headers(data: bytes, positions: Int64, sizes: Int64, extradata: bytes) -> Headers:
    parser = H264(extradata)
    if parser.unit_length != 4 or not parser.has_frames_only:
        raise _Unusual
    # The first packet also tells of the encoder.
    first = parser.read(memoryview(data)[positions[0] : positions[0] + sizes[0]])
    values = np.frombuffer(data, np.uint8)
    units = _units(values, positions, positions + sizes)
    if not (first.start and units.idr[0]):
        raise _Unusual
    return Headers(
        order=parser.order,
        may_drop=parser.may_drop,
        shown=np.ones(len(positions), bool),
        start=units.idr,
        disposable=units.disposable,
        bidirectional=np.zeros(len(positions), bool),
        places=_places(values, units, parser),
    )


def _units(values: UInt8, positions: Int64, ends: Int64) -> _Units:
    """Go through the units of all packets, one step for all of them at a time."""
    count = len(positions)
    idr, disposable = np.ones(count, bool), np.ones(count, bool)
    num_pictures, slices, slice_ends = (np.zeros(count, np.int64) for _ in range(3))
    packets, at = np.arange(count), positions
    for _ in range(_MOST_UNITS):
        limit = ends[packets]
        if (at + 6 > limit).any():  # a length, and two bytes of the shortest slice
            raise _Unusual
        begin = at + 4
        length = _numbers(values, at, 4)
        header = values[begin]
        kind = header & 31
        is_slice = (kind == _SLICE) | (kind == _IDR_SLICE)
        if (length < 2).any() or (begin + length > limit).any() or np.isin(kind, _PARTITIONS_OR_PARAMETERS).any():
            raise _Unusual
        idr[packets[kind == _SLICE]] = False
        disposable[packets[is_slice & (header & 0x60 != 0)]] = False
        is_first = is_slice & (values[begin + 1] & 0x80 != 0)  # first_mb_in_slice = 0
        num_pictures[packets[is_first]] += 1
        at = begin + length
        slices[packets[is_first]] = begin[is_first]
        slice_ends[packets[is_first]] = at[is_first]
        goes_on = at < limit
        if not goes_on.any():
            if (num_pictures != 1).any():
                raise _Unusual
            return _Units(idr, disposable, slices, slice_ends)
        packets, at = packets[goes_on], at[goes_on]
    raise _Unusual


def _numbers(values: UInt8, at: Int64, width: int) -> Int64:
    """(N,) numbers of ``width`` bytes, the highest first."""
    total = np.zeros(len(at), np.int64)
    for place in range(width):
        total = total << 8 | values[at + place]
    return total


def _places(values: UInt8, units: _Units, parser: H264) -> Int64:
    """(N,) order count of every picture; see :meth:`timegrain.data.streams.h26x.H264.read`."""
    if not parser.count_bits:
        return np.arange(1, len(units.slices) + 1)
    headers = values[units.slices]
    begin = units.slices + 1
    head = values[np.minimum(begin[:, None] + np.arange(8), len(values) - 1)]
    # A 3 behind two zeros is no part of the header.
    is_escaped = ((head[:, :-2] == 0) & (head[:, 1:-1] == 0) & (head[:, 2:] == 3)).any(1)
    window = head.view(">u8")[:, 0].astype(np.uint64)
    used = np.ones(len(begin), np.int64)  # first_mb_in_slice = 0 is one bit
    used = _behind_number(window, used)  # slice_type
    used = _behind_number(window, used)  # pic_parameter_set_id
    used += parser.frame_num_bits
    used = np.where(units.idr, _behind_number(window, used), used)  # idr_pic_id
    fits = used + parser.count_bits <= np.minimum(64, 8 * (units.ends - begin))
    low = (window << np.minimum(used, 63).astype(np.uint64)) >> np.uint64(64 - parser.count_bits)
    lows = low.astype(np.int64).tolist()
    for number in np.flatnonzero(is_escaped | ~fits).tolist():  # bit by bit
        lows[number] = parser.low_count(memoryview(values[units.slices[number] : units.ends[number]]))  # type: ignore[arg-type]
    count, num_bits = OrderCount(), parser.count_bits
    anchors = (headers & 0x60 != 0).tolist()
    places = map(count.place, lows, repeat(num_bits), units.idr.tolist(), anchors)
    return np.fromiter(places, np.int64, len(lows))


def _behind_number(window: npt.NDArray[np.uint64], used: Int64) -> Int64:
    """(N,) bits used behind an Exp-Golomb number that follows the bits used so far; more than 64 where it does not fit."""
    top = (window << np.minimum(used, 63).astype(np.uint64)) >> np.uint64(32)
    zeros = 32 - np.frexp(top.astype(np.float64))[1]
    return np.where((top > 0) & (used < 64), used + 2 * zeros + 1, 1000)
