"""Pictures of VP8, VP9, AV1 and of codecs whose pictures stand alone. All are shown in decoding order.

Sources: RFC 6386 (9.1), VP9 bitstream specification (6.2, annex B), AV1 bitstream specification (5.3.2, 5.9.2).
"""

from __future__ import annotations

from collections.abc import Iterator

from timegrain.data.streams.bits import Bits, Picture, Unsettled


class VP8:
    """VP8; some packets hold a picture that is not shown, for reference only."""

    order = "decoding"
    may_drop = False

    def __init__(self, extradata: bytes) -> None:
        self._begun = False

    def _picture(self, shown: bool, key: bool) -> Picture:
        if not (self._begun or key):
            raise Unsettled("the stream does not begin with a key frame")
        self._begun = True
        return Picture(shown=shown, start=key and shown)

    def read(self, data: memoryview) -> Picture:
        """Facts about the next packet."""
        return self._picture(shown=bool(data[0] & 0x10), key=not data[0] & 1)


class VP9(VP8):
    """VP9; a packet may hold several pictures (a superframe), of which one at most may be shown."""

    def _pictures(self, data: memoryview) -> Iterator[memoryview]:
        last = data[-1]
        num_pictures, width = (last & 7) + 1, ((last >> 3) & 3) + 1
        size_of_index = 2 + num_pictures * width
        if last & 0xE0 != 0xC0 or len(data) < size_of_index or data[-size_of_index] != last:
            yield data
            return
        position = 0
        for index in range(num_pictures):
            at = len(data) - size_of_index + 1 + index * width
            size = int.from_bytes(data[at : at + width], "little")
            if not size or position + size > len(data) - size_of_index:
                raise Unsettled("the sizes inside a packet do not add up")
            yield data[position : position + size]
            position += size

    def read(self, data: memoryview) -> Picture:
        """Facts about the next packet."""
        num_shown, key, first = 0, False, True
        for picture in self._pictures(data):
            bits = Bits(bytes(picture[:2]))
            if bits.u(2) != 2:
                raise Unsettled("not a VP9 picture")
            if bits.u(1) + 2 * bits.u(1) == 3:
                bits.u(1)
            if bits.u(1):  # show_existing_frame
                num_shown += 1
            else:
                key_frame = not bits.u(1)
                shown = bits.u(1)
                num_shown += shown
                key |= first and key_frame and bool(shown)
            first = False
        if num_shown > 1:
            raise Unsettled("several pictures in one packet")
        return self._picture(bool(num_shown), key)


class AV1(VP8):
    """AV1 with one layer; each packet is a temporal unit. Decoding begins at key frames after a sequence header."""

    @staticmethod
    def _units(data: memoryview) -> Iterator[tuple[int, memoryview]]:
        position, end = 0, len(data)
        while position < end:
            header = data[position]
            position += 1
            if header & 4:
                if position >= end or data[position] & 0x18:
                    raise Unsettled("several layers")
                position += 1
            size = end - position
            if header & 2:
                size = shift = 0
                while True:
                    if position >= end or shift > 49:
                        raise Unsettled("a header is cut short")
                    size |= (data[position] & 0x7F) << shift
                    shift += 7
                    position += 1
                    if not data[position - 1] & 0x80:
                        break
            if position + size > end:
                raise Unsettled("the sizes inside a packet do not add up")
            yield (header >> 3) & 15, data[position : position + size]
            position += size

    def read(self, data: memoryview) -> Picture:
        """Facts about the next packet."""
        num_shown, key, has_sequence, first = 0, False, False, True
        for kind, unit in self._units(data):
            if kind == 1 and len(unit):  # sequence header
                has_sequence = True
                if unit[0] & 8:
                    raise Unsettled("a still picture")
            elif kind in (3, 6) and len(unit):  # frame header, frame
                bits = Bits(bytes(unit[:1]))
                if bits.u(1):  # show_existing_frame
                    num_shown += 1
                else:
                    key_frame = bits.u(2) == 0
                    shown = bits.u(1)
                    num_shown += shown
                    key |= first and key_frame and bool(shown)
                first = False
        if num_shown > 1:
            raise Unsettled("several pictures in one packet")
        return self._picture(bool(num_shown), key and has_sequence)


class Alone:
    """Codecs of which every packet is decoded by itself."""

    order = "decoding"
    may_drop = False

    def __init__(self, extradata: bytes) -> None:
        pass

    def read(self, data: memoryview) -> Picture:
        """Facts about the next packet."""
        return Picture(shown=True, start=True)


class MotionJPEG(Alone):
    """JPEG pictures; one that relies on the tables of an earlier one cannot be decoded by itself."""

    def __init__(self, extradata: bytes) -> None:
        self._tables_seen = False

    def read(self, data: memoryview) -> Picture:
        """Facts about the next packet."""
        raw = bytes(data)
        head = raw[: max(0, raw.find(b"\xff\xda"))]
        has_tables = b"\xff\xc4" in head
        self._tables_seen |= has_tables
        return Picture(shown=True, start=b"\xff\xdb" in head and has_tables >= self._tables_seen)
