"""What the headers inside a packet say about its picture: the words, and reading bits.

One small class per codec (:mod:`~timegrain.data.streams.h26x`, :mod:`~timegrain.data.streams.mpeg`,
:mod:`~timegrain.data.streams.others`) reads the headers of each packet in decoding order and tells whether the packet
shows a frame, whether decoding may begin there, and whether other pictures depend on it. What it cannot settle it does
not guess: it raises :class:`Unsettled`, and the reader decodes the whole file instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol


class Unsettled(Exception):
    """The packets do not tell which frames are shown; the message says why."""


class Picture(NamedTuple):
    """What one packet holds.

    Attributes:
        shown: It gives one frame; otherwise it gives none.
        start: Decoding may begin here: all frames from this one on, in presentation order, come out exactly.
        disposable: No other picture is predicted from it.
        bidirectional: It is shown before the reference picture that precedes it in decoding order (MPEG-1, -2, -4).
        place: A number by which the stream itself orders its pictures (H.264, H.265), against which time stamps are
            checked.
    """

    shown: bool
    start: bool
    disposable: bool = False
    bidirectional: bool = False
    place: int = 0


class Parser(Protocol):
    """Reads the packets of one stream in decoding order.

    Attributes:
        order: How presentation order follows: by the packets' ``timestamps`` (``gapless timestamps``: only if no
            picture is missing), by the picture ``types``, or it is the ``decoding`` order itself.
        may_drop: Packets of disposable pictures can be left out without changing any other picture. To be asked after
            the last packet.
    """

    order: str

    @property
    def may_drop(self) -> bool:
        """See above."""

    def read(self, data: memoryview) -> Picture:
        """Facts about the next packet.

        Raises:
            Unsettled: If its headers do not settle them.
        """


class Bits:
    """Reads bits, most significant first, and Exp-Golomb numbers. Reading past the end is Unsettled."""

    def __init__(self, data: bytes, emulation: bool = False) -> None:
        if emulation:  # H.264 and H.265 put a 3 after two zeros, so that no start code appears inside
            data = data.replace(b"\0\0\3", b"\0\0")
        self._value = int.from_bytes(data, "big")
        self._left = 8 * len(data)

    def u(self, count: int) -> int:
        """An unsigned number of ``count`` bits."""
        self._left -= count
        if self._left < 0:
            raise Unsettled("a header is cut short")
        return (self._value >> self._left) & ((1 << count) - 1)

    def ue(self) -> int:
        """An unsigned Exp-Golomb number (H.264, 9.1)."""
        rest = self._value & ((1 << self._left) - 1)
        zeros = self._left - rest.bit_length()
        self._left -= 2 * zeros + 1
        if self._left < 0:
            raise Unsettled("a header is cut short")
        return (rest >> self._left) - 1

    def skip_ue(self, count: int) -> None:
        """Pass over ``count`` Exp-Golomb numbers."""
        left = self._left
        for _ in range(count):
            rest = self._value & ((1 << left) - 1)
            left = 2 * rest.bit_length() - left - 1
            if left < 0:
                raise Unsettled("a header is cut short")
        self._left = left

    def se(self) -> int:
        """A signed Exp-Golomb number (H.264, 9.1.1)."""
        code = self.ue()
        return (code + 1) // 2 if code % 2 else -(code // 2)


class OrderCount:
    """Picture order counts of H.264 (8.2.1.1, type 0) and H.265 (8.3.1), made to grow from one key frame to the next."""

    def __init__(self) -> None:
        self._period = 0
        self._high = self._low = 0  # of the last picture that the next count builds on

    def place(self, low: int, num_bits: int, resets: bool, anchors: bool) -> int:
        """Where the picture stands among all pictures.

        Args:
            low: The count's low bits, from the slice header.
            num_bits: How many they are.
            resets: The counts begin anew here.
            anchors: The next count builds on this one.
        """
        if resets:
            self._period += 1
            self._high = self._low = 0
        size = 1 << num_bits
        high = self._high
        if low < self._low and self._low - low >= size // 2:
            high += size
        elif low > self._low and low - self._low > size // 2:
            high -= size
        if anchors:
            self._high, self._low = high, low
        return (self._period << 40) + high + low


def length_prefixed(data: memoryview, width: int) -> list[memoryview]:
    """NAL units of a packet in which each is preceded by its length."""
    position, end, units = 0, len(data), []
    while position < end:
        begin = position + width
        position = begin + int.from_bytes(data[position:begin], "big")
        if begin == position or position > end:
            raise Unsettled("the lengths inside a packet do not add up")
        units.append(data[begin:position])
    return units


def start_codes(data: memoryview) -> Iterator[memoryview]:
    """What follows each start code 00 00 01 of a packet, up to the next one."""
    raw = bytes(data)
    position = raw.find(b"\0\0\1")
    while position >= 0:
        following = raw.find(b"\0\0\1", position + 3)
        end = len(raw) if following < 0 else following
        if end > position + 3:
            yield data[position + 3 : end]
        position = following
