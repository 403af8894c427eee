"""Pictures of MPEG-1, MPEG-2 and MPEG-4 part 2 packets.

Sources: ITU-T H.262 (6.2.2, 6.2.3), ISO/IEC 14496-2 (6.2.3, 6.2.5).
"""

from __future__ import annotations

from timegrain.data.streams.bits import Bits, Picture, Unsettled, start_codes


class _Bidirectional:
    """What MPEG-1, -2 and -4 share: B pictures are no references and are shown before the last reference picture."""

    order = "types"
    may_drop = True

    def __init__(self) -> None:
        self._num_references = 0

    def _picture(self, kind: str, start: bool) -> Picture:
        if kind == "B":
            if self._num_references < 2:
                raise Unsettled("B pictures without their references at the beginning")
            return Picture(shown=True, start=False, disposable=True, bidirectional=True)
        if not self._num_references and not start:
            raise Unsettled("the stream does not begin with a key frame")
        self._num_references += 1
        return Picture(shown=True, start=start)


class MPEG4(_Bidirectional):
    """MPEG-4 part 2 (DivX, Xvid), progressive, one coded VOP in each packet."""

    def __init__(self, extradata: bytes) -> None:
        super().__init__()
        self._layer: bytes | None = None
        self._remarks: list[bytes] = []
        for unit in start_codes(memoryview(extradata)):
            if 0x20 <= unit[0] <= 0x2F and self._layer is None:
                self._set_layer(bytes(unit))
            elif unit[0] == 0xB2:
                self._remarks.append(bytes(unit).rstrip(b"\0"))

    def _check_header(self, unit: bytes) -> None:
        kind, unit = unit[0], unit.rstrip(b"\0")
        if 0x20 <= kind <= 0x2F and unit != self._layer:
            raise Unsettled("the stream changes its parameters")
        # Encoders sign their streams in remarks, and FFmpeg goes round the faults of each: it must see them first.
        if kind == 0xB2 and unit not in self._remarks:
            raise Unsettled("remarks of the encoder that are not in the file's header")

    def _set_layer(self, unit: bytes) -> None:
        self._layer = unit.rstrip(b"\0")
        bits = Bits(unit[1:])
        bits.u(9)
        if bits.u(1):
            bits.u(7)
        if bits.u(4) == 15:
            bits.u(16)
        if bits.u(1):
            bits.u(3)
            if bits.u(1):
                bits.u(79)
        if bits.u(2):
            raise Unsettled("pictures that are not rectangles")
        bits.u(1)
        self._time_bits = max(1, (bits.u(16) - 1).bit_length())
        bits.u(1)
        if bits.u(1):
            bits.u(self._time_bits)
        bits.u(29)
        if bits.u(1):
            raise Unsettled("interlaced")

    def read(self, data: memoryview) -> Picture:
        """Facts about the next packet."""
        vop: memoryview | None = None
        for unit in start_codes(data):
            if unit[0] == 0xB6:
                if vop is not None:
                    raise Unsettled("several pictures packed into one packet")
                vop = unit
            else:
                self._check_header(bytes(unit))
        if vop is None or self._layer is None:
            raise Unsettled("a packet without a picture")
        bits = Bits(bytes(vop[1:32]))
        kind = "IPBS"[bits.u(2)]
        while bits.u(1):
            pass
        bits.u(2 + self._time_bits)
        if not bits.u(1):
            raise Unsettled("pictures that are not coded")
        return self._picture(kind, start=kind == "I")


class MPEG12(_Bidirectional):
    """MPEG-1 and MPEG-2 video, one whole frame in each packet. Decoding begins at repeated sequence headers."""

    def __init__(self, extradata: bytes) -> None:
        super().__init__()
        self._headers: dict[int, bytes] = {}  # of the sequence: its header (0) and the extensions by number

    def _check_header(self, key: int, unit: bytes) -> None:
        if self._headers.setdefault(key, unit) != unit:
            raise Unsettled("the stream changes its parameters")

    def read(self, data: memoryview) -> Picture:
        """Facts about the next packet."""
        kind, begins = "", False
        for unit in start_codes(data):
            if unit[0] == 0x00:
                if kind:
                    raise Unsettled("several pictures in one packet")
                bits = Bits(bytes(unit[1:3]))
                bits.u(10)
                kind = " IPBD"[min(bits.u(3), 4)].strip()
            elif unit[0] == 0xB3:
                begins = True
                self._check_header(0, bytes(unit).rstrip(b"\0"))
            elif unit[0] == 0xB5 and len(unit) > 3:
                extension = unit[1] >> 4
                if extension == 8 and unit[3] & 3 != 3:
                    raise Unsettled("coded in fields")
                if extension == 3:  # quantiser matrices, which later pictures use as well
                    self.may_drop = False
                if extension in (1, 2, 5):  # sequence, display, scalable
                    self._check_header(extension, bytes(unit).rstrip(b"\0"))
        if kind not in ("I", "P", "B"):
            raise Unsettled("a packet without a picture")
        return self._picture(kind, start=kind == "I" and begins)
