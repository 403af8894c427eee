"""Pictures of H.264 and H.265 packets.

Sources: ITU-T H.264 (7.3.1, 7.3.2.1, 7.3.3, 7.4.1), ITU-T H.265 (7.3.1, 7.3.2.3, 7.3.6, 7.4.2.2), ISO/IEC 14496-15
(avcC, hvcC).
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from timegrain.data.streams.bits import Bits, OrderCount, Picture, Unsettled, length_prefixed, start_codes


class _Nal:
    """NAL units of H.264 and H.265: length-prefixed where the container says so, else with start codes (Annex B)."""

    def __init__(self, extradata: bytes, width_at: int) -> None:
        # The configuration record begins with version 1, Annex B with zeros.
        self.width = (extradata[width_at] & 3) + 1 if len(extradata) > width_at and extradata[0] == 1 else 0

    def units(self, data: memoryview) -> Iterable[memoryview]:
        return length_prefixed(data, self.width) if self.width else start_codes(data)


class _PictureParameters:
    """Picture parameter sets by number.

    One that comes again with other content counts from there on. Later key frames need not repeat it, so decoding could
    not begin at them.
    """

    def __init__(self) -> None:
        self._known: dict[int, bytes] = {}

    def check(self, number: int, unit: bytes) -> None:
        unit = unit.rstrip(b"\0")
        if self._known.setdefault(number, unit) != unit:
            raise Unsettled("the stream changes its parameters")


class H264:
    """H.264 / AVC. Decoding begins at IDR pictures only: recovery points (open GOP) promise no exact picture."""

    order = "timestamps"

    def __init__(self, extradata: bytes) -> None:
        self._nal = _Nal(extradata, 4)
        self._sps: bytes | None = None
        self._pps = _PictureParameters()
        self._profile = 0
        self._plain = False
        self._begun = False
        self._count = OrderCount()
        self._number = 0
        if self._nal.width and len(extradata) > 6:
            position = 5
            for mask, read in ((31, self._set_sps), (255, self._check_pps)):
                count, position = extradata[position] & mask, position + 1
                for _ in range(count):
                    size = int.from_bytes(extradata[position : position + 2], "big")
                    read(extradata[position + 2 : position + 2 + size])
                    position += 2 + size
        elif not self._nal.width:
            for unit in start_codes(memoryview(extradata)):
                if unit[0] & 31 == 7:
                    self._set_sps(bytes(unit))
                elif unit[0] & 31 == 8:
                    self._check_pps(bytes(unit))

    @property
    def may_drop(self) -> bool:
        """Length-prefixed streams of whole frames, whose order count does not depend on the frames left out."""
        return bool(self._nal.width) and self._plain

    def _set_sps(self, unit: bytes) -> None:
        unit = unit.rstrip(b"\0")
        if self._sps is not None:
            if unit != self._sps:
                raise Unsettled("the stream changes its parameters")
            return
        self._sps = unit
        bits = Bits(unit[1:], emulation=True)
        self._profile = bits.u(8)
        bits.u(16)
        bits.ue()
        self._planes = False
        if self._profile in (100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135):
            chroma = bits.ue()
            self._planes = chroma == 3 and bool(bits.u(1))
            bits.ue(), bits.ue(), bits.u(1)
            if bits.u(1):
                for index in range(12 if chroma == 3 else 8):
                    if bits.u(1):
                        self._skip_scaling(bits, 16 if index < 6 else 64)
        self._frame_num_bits = bits.ue() + 4
        order_type = bits.ue()
        if order_type == 1:
            raise Unsettled("order counts of type 1")
        self._count_bits = bits.ue() + 4 if order_type == 0 else 0  # type 2: shown in decoding order
        bits.ue()
        gaps = bits.u(1)
        bits.ue(), bits.ue()
        self._frames_only = bool(bits.u(1))
        self._plain = order_type == 0 and not gaps and self._frames_only

    def _check_pps(self, unit: bytes) -> None:
        self._pps.check(Bits(unit[1:8], emulation=True).ue(), unit)

    @staticmethod
    def _skip_scaling(bits: Bits, size: int) -> None:
        last = following = 8
        for _ in range(size):
            if following:
                following = (last + bits.se()) % 256
            last = following or last

    @property
    def unit_length(self) -> int:
        """Bytes of the length before each NAL unit; 0 where start codes stand instead."""
        return self._nal.width

    @property
    def has_frames_only(self) -> bool:
        """No picture is a field; known from the parameters."""
        return self._sps is not None and self._frames_only

    @property
    def count_bits(self) -> int:
        """Bits of what a picture says of its order count; 0: pictures are shown in decoding order."""
        return self._count_bits

    @property
    def frame_num_bits(self) -> int:
        """Bits between the number of the parameter set and that of the IDR picture in a slice header, if all are frames."""
        return self._frame_num_bits + 2 * self._planes

    def _place(self, unit: memoryview) -> int:
        """Order count of a picture, from the header of its first slice."""
        self._number += 1
        if not self._count_bits and self._frames_only:
            return self._number
        low = self.low_count(unit)
        if not self._count_bits:
            return self._number
        return self._count.place(low, self._count_bits, unit[0] & 31 == 5, anchors=bool(unit[0] & 0x60))

    def low_count(self, unit: memoryview) -> int:
        """The low bits of a picture's order count, from the beginning of its first slice's NAL unit.

        Raises:
            Unsettled: It is no frame, or its header is cut short.
        """
        bits = Bits(bytes(unit[1:28]), emulation=True)
        bits.skip_ue(3)
        bits.u(self.frame_num_bits)
        if not self._frames_only and bits.u(1):
            raise Unsettled("coded in fields")
        if unit[0] & 31 == 5 and self._count_bits:
            bits.ue()
        return bits.u(self._count_bits)

    def _check_encoder(self, unit: memoryview) -> None:
        # FFmpeg decodes streams of old x264 versions differently, which it knows from the first packet only.
        found = re.search(rb"x264 - core (\d+)", bytes(unit))
        if found and int(found[1]) < (151 if self._profile == 244 else 34):
            raise Unsettled("written by an old encoder whose streams are decoded from their beginning")

    def read(self, data: memoryview) -> Picture:
        """Facts about the next packet."""
        num_pictures, idr, disposable, place = 0, True, True, 0
        for unit in self._nal.units(data):
            header = unit[0]
            kind = header & 31
            if kind == 1 or kind == 5:
                if self._sps is None or len(unit) < 2:
                    raise Unsettled("the stream does not begin with its parameters")
                if kind == 1:
                    idr = False
                if header & 0x60:
                    disposable = False
                if unit[1] & 0x80:  # first_mb_in_slice = 0
                    num_pictures += 1
                    place = self._place(unit)
            elif kind in (2, 3, 4):
                raise Unsettled("coded in data partitions")
            elif kind == 7:
                self._set_sps(bytes(unit))
            elif kind == 8:
                self._check_pps(bytes(unit))
            elif kind == 6 and not self._begun:
                self._check_encoder(unit)
        if num_pictures != 1:
            raise Unsettled(f"a packet holds {num_pictures} pictures")
        if not (self._begun or idr):
            raise Unsettled("the stream does not begin with a key frame")
        self._begun = True
        return Picture(shown=True, start=idr, disposable=disposable, place=place)


class HEVC:
    """H.265 / HEVC. Decoding begins at any IRAP picture, for the frames shown after it."""

    # Where pictures are missing, decoders leave out others that depend on them.
    order = "gapless timestamps"

    def __init__(self, extradata: bytes) -> None:
        self._nal = _Nal(extradata, 21)
        self._one_layer = True
        self._skips_leading: bool | None = None  # None: nothing read yet
        self._count = OrderCount()
        self._sps: bytes | None = None
        self._pps = _PictureParameters()
        self._extra_bits: int | None = None
        if self._nal.width:
            position = 23
            for _ in range(extradata[22] if len(extradata) > 22 else 0):
                count = int.from_bytes(extradata[position + 1 : position + 3], "big")
                position += 3
                for _ in range(count):
                    size = int.from_bytes(extradata[position : position + 2], "big")
                    self._check_parameters(memoryview(extradata)[position + 2 : position + 2 + size])
                    position += 2 + size

    @property
    def may_drop(self) -> bool:
        """Length-prefixed streams with one layer, in time too: there sub-layer non-reference is non-reference."""
        return bool(self._nal.width) and self._one_layer

    def _check_parameters(self, unit: memoryview) -> None:
        if unit[0] >> 1 == 33 and not (unit[0] & 1 or unit[1] >> 3):  # sequence parameter set of the base layer
            sps = bytes(unit).rstrip(b"\0")
            if self._sps is None:
                self._sps = sps
                self._set_sps(Bits(sps[2:], emulation=True))
            elif sps != self._sps:
                raise Unsettled("the stream changes its parameters")
        elif unit[0] >> 1 == 34:  # picture parameter set
            bits = Bits(bytes(unit[2:16]), emulation=True)
            self._pps.check(bits.ue(), bytes(unit))
            bits.ue(), bits.u(1)
            if bits.u(1):
                raise Unsettled("some pictures may be marked as not shown")
            extra_bits = bits.u(3)
            if self._extra_bits not in (None, extra_bits):
                raise Unsettled("the stream changes its parameters")
            self._extra_bits = extra_bits

    def _set_sps(self, bits: Bits) -> None:
        bits.u(4)
        num_more = bits.u(3)
        bits.u(1 + 96)
        present = [(bits.u(1), bits.u(1)) for _ in range(num_more)]
        if num_more:
            bits.u(2 * (8 - num_more))
        for profile, level in present:
            bits.u(88 * profile + 8 * level)
        bits.ue()
        self._planes = bits.ue() == 3 and bool(bits.u(1))
        bits.ue(), bits.ue()
        if bits.u(1):
            bits.ue(), bits.ue(), bits.ue(), bits.ue()
        bits.ue(), bits.ue()
        self._count_bits = bits.ue() + 4

    def _place(self, unit: memoryview, kind: int, anchors: bool) -> int:
        """Order count of a picture, from the header of its first slice."""
        if self._sps is None or self._extra_bits is None:
            raise Unsettled("the stream does not begin with its parameters")
        if kind in (19, 20):
            return self._count.place(0, self._count_bits, True, anchors)
        bits = Bits(bytes(unit[2:24]), emulation=True)
        bits.u(2 if 16 <= kind <= 23 else 1)
        bits.ue()
        bits.u(self._extra_bits)
        bits.ue()
        bits.u(2 * self._planes)
        resets = kind in (16, 17, 18) or self._skips_leading is None
        return self._count.place(bits.u(self._count_bits), self._count_bits, resets, anchors)

    def read(self, data: memoryview) -> Picture:
        """Facts about the next packet."""
        num_pictures, kind, place = 0, -1, 0
        for unit in self._nal.units(data):
            if len(unit) < 3:
                raise Unsettled("a header is cut short")
            unit_kind, layer, sublayer = unit[0] >> 1, (unit[0] & 1) << 5 | unit[1] >> 3, (unit[1] & 7) - 1
            if unit_kind < 32:
                self._one_layer &= layer == 0 and sublayer == 0
                if layer:
                    continue
                kind = unit_kind
                if unit[2] >> 7:  # first_slice_segment_in_pic_flag
                    num_pictures += 1
                    if 16 <= kind <= 23 and unit[2] & 0x40 and self._skips_leading is not None:
                        raise Unsettled("pictures that wait to be shown are given up at a key frame")
                    place = self._place(unit, kind, anchors=not sublayer and (kind > 14 or kind in (1, 3, 5)))
            elif unit_kind in (36, 37):
                raise Unsettled("a sequence ends inside the stream")
            else:
                self._check_parameters(unit)
        if num_pictures != 1:
            raise Unsettled(f"a packet holds {num_pictures} pictures")
        random_access = 16 <= kind <= 21
        if random_access:
            # Broken links, and the very first picture, lose the leading pictures that depend on what is before.
            self._skips_leading = kind <= 18 or self._skips_leading is None
        elif self._skips_leading is None:
            raise Unsettled("the stream does not begin with a key frame")
        elif self._skips_leading and kind in (8, 9):
            raise Unsettled("leading pictures that cannot be decoded")
        return Picture(shown=True, start=random_access, disposable=kind <= 14 and kind % 2 == 0, place=place)
