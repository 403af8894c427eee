"""A video as one file of JPEG frames with an index: the cheapest frames to read at random, at about three times the bytes.

The file is read through :func:`timegrain.data.decoding.open_video` like any video. Layout, little-endian::

    b"TGFRAMES"
    the JPEG of each frame, in presentation order, with tiles (:mod:`timegrain.data.jpeg_tiles`; older files without)
    (num_frames + 1) uint64   where each JPEG starts, and where the last one ends
    num_frames float64        when each frame appears, seconds from the first
    num_frames uint32         CRC-32 of each JPEG (a JPEG decoder makes up what is damaged, without a word)
    JSON                      width, height, duration_seconds
    uint64 num_frames, uint64 length of the JSON, b"TGFRAMES"
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
import numpy.typing as npt
from torch import Tensor

from timegrain.data.byte_ranges import RangeFile, open_bytes
from timegrain.data.jpeg_tiles import TILE_WIDTH, Part, cut, encode
from timegrain.data.location import is_plain
from timegrain.data.video import (
    Crop,
    KnownFramesReader,
    VideoError,
    VideoInfo,
    as_frames,
    check_crop,
    check_indices,
    spread,
)

EXTENSION = ".frames"
_MAGIC = b"TGFRAMES"
_FOOTER = struct.Struct("<QQ8s")
# Bytes of frames that are read and cut together, before the first of them is decoded: code that takes turns with a decoder
# finds the processor's caches full of other things each time.
_AHEAD = 1 << 20


class FrameStoreWriter:
    """Writes a frame store, frame by frame.

    Args:
        path: The file.
        timestamps: (num_frames,) seconds from the first frame.
        duration_seconds: Of the video.
        quality: Of the JPEGs, 0 to 100.
    """

    def __init__(self, path: Path, timestamps: npt.NDArray[np.float64], duration_seconds: float, quality: int) -> None:
        self._file: BinaryIO = path.open("wb")
        self._file.write(_MAGIC)
        self._path, self._timestamps, self._duration, self._quality = path, timestamps, duration_seconds, quality
        self._offsets = [len(_MAGIC)]
        self._checksums: list[int] = []
        self._size: tuple[int, int] | None = None

    def add(self, picture: npt.NDArray[np.uint8]) -> None:
        """Append a frame, (H, W, 3) RGB."""
        encoded = encode(picture, self._quality)
        if encoded is None or (self._size is not None and self._size != picture.shape[:2]):
            raise VideoError(self._path, f"a frame of shape {picture.shape} can't be stored")
        self._size = (picture.shape[0], picture.shape[1])
        self._file.write(encoded)
        self._checksums.append(zlib.crc32(encoded))
        self._offsets.append(self._offsets[-1] + len(encoded))

    def finish(self) -> None:
        """Write the index and close the file.

        Raises:
            VideoError: If there are not as many frames as time stamps.
        """
        if self._size is None or len(self._offsets) != len(self._timestamps) + 1:
            reason = f"{len(self._offsets) - 1} frames where {len(self._timestamps)} were expected"
            raise VideoError(self._path, reason)
        facts = {"height": self._size[0], "width": self._size[1], "duration_seconds": self._duration}
        text = json.dumps(facts).encode()
        self._file.write(np.asarray(self._offsets, "<u8").tobytes())
        self._file.write(np.asarray(self._timestamps, "<f8").tobytes())
        self._file.write(np.asarray(self._checksums, "<u4").tobytes())
        self._file.write(text)
        self._file.write(_FOOTER.pack(len(self._timestamps), len(text), _MAGIC))
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


class FrameStoreReader(KnownFramesReader):
    """Frames of a frame store; a :class:`timegrain.data.video.VideoReader`.

    Args:
        path: The file, or another location of one.

    Raises:
        VideoError: If the file isn't there or isn't a whole frame store.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        try:
            # Without a buffer: frames are read whole, each from a place of its own.
            self._file: BinaryIO | RangeFile = open_bytes(path) if not is_plain(path) else open(path, "rb", 0)  # noqa: SIM115
        except OSError as error:
            raise VideoError(path, f"can't be opened: {error.strerror}") from error
        try:
            self._read_index()
        except VideoError:
            self._file.close()
            raise
        except (ValueError, KeyError, TypeError, ArithmeticError, struct.error, OSError) as error:
            self._file.close()
            raise VideoError(path, "not a whole frame store; write it again with `timegrain prepare`") from error

    def _read_index(self) -> None:
        size = self._file.seek(0, 2)
        self._file.seek(max(0, size - _FOOTER.size))
        num_frames, text_length, magic = _FOOTER.unpack(self._file.read(_FOOTER.size))
        index_length = 20 * num_frames + 8
        start = size - _FOOTER.size - text_length - index_length
        if magic != _MAGIC or num_frames < 1 or start < len(_MAGIC):
            raise ValueError("no index")
        self._file.seek(start)
        index = self._file.read(size - _FOOTER.size - start)
        self._offsets = np.frombuffer(index, "<u8", num_frames + 1).astype(np.int64)
        self._timestamps = np.frombuffer(index, "<f8", num_frames, 8 * (num_frames + 1)).astype(np.float64)
        self._checksums = np.frombuffer(index, "<u4", num_frames, 16 * num_frames + 8)
        facts: dict[str, Any] = json.loads(index[index_length:])
        if self._offsets[0] != len(_MAGIC) or self._offsets[-1] != start or (np.diff(self._offsets) <= 0).any():
            raise ValueError("the index doesn't fit the file")
        duration = float(facts["duration_seconds"])
        self._info = VideoInfo(
            path=self._path,
            num_frames=int(num_frames),
            fps=int(num_frames) / duration,
            duration_seconds=duration,
            width=int(facts["width"]),
            height=int(facts["height"]),
            codec="mjpeg",
            rotation=0,
        )

    def frames(self, indices: Sequence[int] | npt.NDArray[np.integer], *, crop: Crop | None = None) -> Tensor:
        """Frames by index; see :meth:`timegrain.data.video.VideoReader.frames`."""
        wanted = check_indices(indices, self.num_frames)
        _, _, height, width = check_crop(crop, self._info.height, self._info.width)
        out = np.empty((len(wanted), height, width, 3), np.uint8)
        for place, picture in self.pictures(wanted, crop=crop):
            out[place] = picture
        return as_frames(out)

    def pictures(
        self,
        indices: Sequence[int] | npt.NDArray[np.integer],
        *,
        crop: Crop | Sequence[Crop] | None = None,
    ) -> Iterator[tuple[int, npt.NDArray[np.uint8]]]:
        """Frames one by one; see :meth:`timegrain.data.video.VideoReader.pictures`."""
        wanted = check_indices(indices, self.num_frames)
        crops = [check_crop(each, self._info.height, self._info.width) for each in spread(crop, len(wanted))]
        order = np.argsort(wanted, kind="stable").tolist()
        together = max(1, _AHEAD * self.num_frames // int(self._offsets[-1]))
        for begin in range(0, len(order), together):
            places = order[begin : begin + together]
            numbers = wanted[places].tolist()
            parts = self._parts(numbers, [crops[place] for place in places])
            for place, number, part in zip(places, numbers, parts, strict=True):
                yield place, self._decoded(number, part)

    def stream(self, start: int = 0, stop: int | None = None, step: int = 1) -> Iterator[Tensor]:
        """Frames one after the other; see :meth:`timegrain.data.video.VideoReader.stream`."""
        whole = check_crop(None, self._info.height, self._info.width)
        for index in range(*slice(start, stop, step).indices(self.num_frames)):
            yield as_frames(self._decoded(index, Part(self._read(index), whole, None))[None])[0]

    def _parts(self, indices: list[int], crops: list[Crop]) -> list[Part]:
        """What is needed of some frames, still coded."""
        data = {index: self._read(index) for index in sorted(set(indices))}
        places: dict[Crop, list[int]] = {}
        for place, crop in enumerate(crops):
            places.setdefault(crop, []).append(place)
        parts: dict[int, Part] = {}
        for crop, of_crop in places.items():
            parts |= zip(of_crop, cut([data[indices[place]] for place in of_crop], crop), strict=True)
        return [parts[place] for place in range(len(indices))]

    def _read(self, index: int) -> bytes:
        """The JPEG of a frame."""
        start, end = int(self._offsets[index]), int(self._offsets[index + 1])
        self._file.seek(start)
        data = self._file.read(end - start)
        if zlib.crc32(data) != self._checksums[index]:
            raise VideoError(self._path, f"frame {index} is damaged")
        return data

    def _decoded(self, index: int, part: Part) -> npt.NDArray[np.uint8]:
        decoded = part.decode()
        if decoded is not None:
            picture, (height, width) = decoded
            if height == self._info.height and 0 <= width - self._info.width < TILE_WIDTH:
                return picture
        raise VideoError(self._path, f"frame {index} is damaged")

    def close(self) -> None:
        """Give the file back."""
        self._file.close()
