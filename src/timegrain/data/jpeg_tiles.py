"""JPEG pictures of which a part can be decoded alone, to the very pixels that decoding all of it gives there.

A restart marker behind every second block of 16 x 16 pixels makes the picture a table of tiles that do not depend on each
other. A part becomes a JPEG of its own: the tiles that it needs, markers numbered anew, the header with their size. What
mixes neighbouring pixels is the decoder's enlarging of colour samples, by one sample each way, so a part takes two pixels
more on every side than were asked for. Any JPEG decoder reads the whole pictures.

Source: ITU-T T.81 (A.2.3, B.2, E.1.4, F.2.2.4).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from timegrain.data.video import Crop

_BLOCK = 16  # pixels across an MCU of pictures with half as many colour samples each way (4:2:0)
_BLOCKS_PER_TILE = 2  # one would be 11 % more bytes, two are 5 %
TILE_WIDTH = _BLOCKS_PER_TILE * _BLOCK
_MARGIN = 2  # pixels: a colour sample
_MOST = 0.9  # share of the tiles from which on the whole picture is decoded, which needs no cutting
_NUMBERS = np.arange(0xD0, 0xD8, dtype=np.uint8)
_END = 0xD9
# What a header may hold: frame types other than this one code pictures in another way.
_BASELINE, _TABLES, _RESTART, _SCAN = 0xC0, {0xC4, 0xDB}, 0xDD, 0xDA

UInt8 = npt.NDArray[np.uint8]


class _Layout(NamedTuple):
    """What the header of a JPEG says, as far as a part can be cut out."""

    header: bytes  # all before the first tile
    size_at: int  # where in it height and width are
    height: int
    width: int
    tile_width: int
    rows: int  # of tiles
    columns: int


def encode(picture: UInt8, quality: int) -> bytes | None:
    """A picture (H, W, 3) RGB as JPEG with tiles; None if OpenCV cannot.

    Where the last tile of a row would be half empty, the picture is made wider by repeating its last column.

    Args:
        picture: The picture.
        quality: 0 to 100.
    """
    width = picture.shape[1]
    if -(-width // _BLOCK) % _BLOCKS_PER_TILE:
        picture = cv2.copyMakeBorder(picture, 0, 0, 0, -width % TILE_WIDTH, cv2.BORDER_REPLICATE)  # type: ignore[assignment]
    options = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_RST_INTERVAL, _BLOCKS_PER_TILE]
    fits, data = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), options)
    return data.tobytes() if fits else None


class Part(NamedTuple):
    """A part of a picture, still coded.

    Attributes:
        coded: A JPEG that holds it.
        crop: Where it is in the picture of that JPEG.
        size: Height and width of the whole picture; None: that JPEG is the whole picture.
    """

    coded: bytes | UInt8
    crop: Crop
    size: tuple[int, int] | None

    def decode(self) -> tuple[UInt8, tuple[int, int]] | None:
        """(H, W, 3) RGB, and height and width of the whole picture; None if it cannot be decoded."""
        picture: UInt8 | None = cv2.imdecode(np.frombuffer(self.coded, np.uint8), cv2.IMREAD_COLOR_RGB)  # type: ignore[assignment]
        if picture is None:
            return None
        top, left, height, width = self.crop
        return picture[top : top + height, left : left + width], self.size or picture.shape[:2]


def cut(pictures: Sequence[bytes], crop: Crop) -> list[Part]:
    """The same part of several pictures; whole ones where that is as quick, or the only way.

    Args:
        pictures: Their JPEGs; done in one go where all have the same header.
        crop: Which part.
    """
    layout = _read_header(pictures[0])
    window = None if layout is None else _window(layout, crop)
    if layout is None or window is None or not all(picture.startswith(layout.header) for picture in pictures):
        return [Part(picture, crop, None) for picture in pictures]
    coded = bytearray().join(pictures)
    bounds = _bounds(coded, np.cumsum([0, *map(len, pictures)]), layout)
    if bounds is None:
        return [Part(picture, crop, None) for picture in pictures]
    first_row, last_row, first, last = window
    values = np.frombuffer(coded, np.uint8)
    starts = bounds[:, :-1].reshape(-1, layout.rows, layout.columns)[:, first_row:last_row, first] + 1
    ends = bounds[:, 1:].reshape(-1, layout.rows, layout.columns)[:, first_row:last_row, first:last]
    values[ends] = np.resize(_NUMBERS, ends[0].shape)
    values[ends[:, -1, -1]] = _END
    top, left = first_row * _BLOCK, first * layout.tile_width
    height = min(layout.height - top, (last_row - first_row) * _BLOCK)
    width = min(layout.width - left, (last - first) * layout.tile_width)
    size = (height << 16 | width).to_bytes(4, "big")
    header = layout.header[: layout.size_at] + size + layout.header[layout.size_at + 4 :]
    inside = Crop(crop.top - top, crop.left - left, crop.height, crop.width)
    view = memoryview(coded)
    parts = []
    for begins, finishes in zip(starts.tolist(), (ends[:, :, -1] + 1).tolist(), strict=True):
        pieces = [view[begin:end] for begin, end in zip(begins, finishes, strict=True)]
        parts.append(Part(b"".join((header, *pieces)), inside, (layout.height, layout.width)))
    return parts


def _read_header(data: bytes) -> _Layout | None:
    """None where the picture has no tiles."""
    position, size_at, interval = 2, 0, 0
    while data[position : position + 1] == b"\xff" and len(data) >= position + 4:
        kind, length = data[position + 1], int.from_bytes(data[position + 2 : position + 4], "big")
        content = data[position + 4 : position + 2 + length]
        if kind == _BASELINE:
            # Three components, of which the first has four samples where the others have one.
            if len(content) != 15 or content[5] != 3 or (content[7], content[10], content[13]) != (0x22, 0x11, 0x11):
                return None
            size_at = position + 5
        elif kind == _RESTART:
            interval = int.from_bytes(content, "big")
        elif kind == _SCAN:
            break
        elif kind not in _TABLES and not 0xE0 <= kind <= 0xEF:
            return None
        position += 2 + length
    else:
        return None
    if not (size_at and interval and content[:1] == b"\3"):
        return None
    height, width = (int.from_bytes(data[at : at + 2], "big") for at in (size_at, size_at + 2))
    rows, blocks = -(-height // _BLOCK), -(-width // _BLOCK)
    # Of pictures up to 4 pixels wide, as the last tile of one block may be, decoders enlarge colour another way.
    if blocks % interval or interval < _BLOCKS_PER_TILE or not rows:
        return None
    header = data[: position + 2 + length]
    return _Layout(header, size_at, height, width, interval * _BLOCK, rows, blocks // interval)


def _window(layout: _Layout, crop: Crop) -> tuple[int, int, int, int] | None:
    """First and last row, and column, of the tiles that a part needs, the last ones excluded; None: nearly all."""
    top, left, height, width = crop
    step = layout.tile_width
    rows = max(0, top - _MARGIN) // _BLOCK, min(layout.rows, (top + height + _MARGIN - 1) // _BLOCK + 1)
    columns = max(0, left - _MARGIN) // step, min(layout.columns, (left + width + _MARGIN - 1) // step + 1)
    if (rows[1] - rows[0]) * (columns[1] - columns[0]) > _MOST * layout.rows * layout.columns:
        return None
    return *rows, *columns


def _bounds(coded: bytearray, offsets: npt.NDArray[np.int64], layout: _Layout) -> npt.NDArray[np.int64] | None:
    """Last byte before each tile of some pictures, and of its marker behind each; None where other markers stand.

    Args:
        coded: The pictures, one after the other.
        offsets: (N + 1,) where each begins, and the last one ends.
        layout: Of all.

    Returns:
        (N, tiles + 1).
    """
    values = np.frombuffer(coded, np.uint8)
    # 255 is followed by 0 in coded pixels, by the marker's number in a marker.
    marks = (values[:-1] == 0xFF).nonzero()[0] + 1
    marks = marks[values[marks] & 0xF8 == 0xD0]
    count, tiles = len(offsets) - 1, layout.rows * layout.columns
    if len(marks) != count * (tiles - 1):
        return None
    bounds = np.empty((count, tiles + 1), np.int64)
    bounds[:, 0], bounds[:, 1:-1], bounds[:, -1] = (
        offsets[:-1] + len(layout.header) - 1,
        marks.reshape(count, tiles - 1),
        offsets[1:] - 1,
    )
    ends_right = (values[bounds[:, -1]] == _END).all() and (values[bounds[:, -1] - 1] == 0xFF).all()
    return bounds if ends_right and (np.diff(bounds) > 1).all() else None
