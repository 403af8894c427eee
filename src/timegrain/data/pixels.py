"""Decoded pictures as RGB arrays: colour, crop, size and orientation."""

from __future__ import annotations

from typing import Any

import av
import numpy as np
import numpy.typing as npt

from timegrain.data.video import Crop, VideoError, check_crop, short_reason

# swscale would start a thread per core, while a loader already runs one process per core.
_ONE_THREAD = {"threads": 1} if int(av.__version__.split(".")[0]) >= 17 else {}
_SPARED = 100_000  # pixels whose conversion takes as long as cutting: smaller pictures are converted whole
_MOST_PARTS = 16
_CONVERSION_FAILURES = (av.error.FFmpegError, ValueError)

UInt8 = npt.NDArray[np.uint8]


class Pictures:
    """Converts the frames of one video.

    A crop gives exactly the pixels that converting the whole picture and cutting would give. For progressive 8-bit 4:2:0
    pictures of even height swscale computes each pixel from its own brightness and colour sample alone, so there cutting
    comes first, at even offsets, where it saves time; all others are converted whole and then cut.

    Args:
        path: The file, for messages.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._whole = av.video.reformatter.VideoReformatter()
        self._parts: dict[tuple[int, int, str], tuple[Any, Any]] = {}  # by size: a reformatter, and a frame to cut into

    def rgb(self, frame: Any, height: int, width: int, crop: Crop | None = None) -> UInt8:
        """(H, W, 3) of a frame as displayed; valid until the next call.

        Args:
            frame: A decoded frame.
            height: Of the stored picture, before it is turned; a frame of another size is scaled.
            width: Likewise.
            crop: What to cut out of the displayed picture.

        Raises:
            ValueError: If the crop reaches outside the picture.
            VideoError: If FFmpeg cannot convert the picture.
        """
        matrix = display_matrix(frame)
        if matrix is None:
            crop = check_crop(crop, height, width)
            if self._cuts_first(frame, height, width, crop):
                return self._cut_and_convert(frame, crop)
        picture = self._convert(self._whole, frame, height, width)
        if matrix is not None:
            picture = turn(picture, matrix, self._path)
            crop = check_crop(crop, *picture.shape[:2])
        assert crop is not None
        return picture[crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]

    def _convert(self, reformatter: Any, frame: Any, height: int, width: int) -> UInt8:
        try:
            rgb = reformatter.reformat(frame, width=width, height=height, format="rgb24", **_ONE_THREAD)
        except _CONVERSION_FAILURES as error:
            reason = f"its {frame.format.name} pictures cannot be converted to RGB: {short_reason(error)}"
            raise VideoError(self._path, reason) from error
        return _samples(rgb.planes[0])[:height, : 3 * width].reshape(height, width, 3)

    @staticmethod
    def _cuts_first(frame: Any, height: int, width: int, crop: Crop) -> bool:
        # The copy is worth its while where it spares many pixels. Odd heights and interlaced pictures take other ways
        # through swscale, which mix neighbouring colour samples.
        return (
            frame.format.name in ("yuv420p", "yuvj420p")
            and (frame.height, frame.width) == (height, width)
            and not frame.interlaced_frame
            and height % 2 == 0
            and height * width - 1.25 * crop.height * crop.width > _SPARED
        )

    def _cut_and_convert(self, frame: Any, crop: Crop) -> UInt8:
        top, left = crop.top // 2 * 2, crop.left // 2 * 2
        bottom = (crop.top + crop.height + 1) // 2 * 2
        right = min(frame.width, (crop.left + crop.width + 1) // 2 * 2)
        height, width = bottom - top, right - left
        kind = height, width, frame.format.name
        if kind not in self._parts:
            if len(self._parts) >= _MOST_PARTS:
                self._parts.clear()
            self._parts[kind] = av.video.reformatter.VideoReformatter(), av.VideoFrame(width, height, frame.format.name)
        reformatter, cut = self._parts[kind]
        cut.colorspace, cut.color_range = frame.colorspace, frame.color_range
        for plane, (source, target) in enumerate(zip(frame.planes, cut.planes, strict=True)):
            half = 1 if plane else 0
            rows, columns = height >> half, (width + half) >> half
            part = _samples(source)[top >> half :, left >> half :][:rows, :columns]
            _samples(target)[:rows, :columns] = part
        picture = self._convert(reformatter, cut, height, width)
        return picture[crop.top - top :, crop.left - left :][: crop.height, : crop.width]


def _samples(plane: Any) -> UInt8:
    """(rows, bytes per row) of a plane, without copying."""
    return np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)


def display_matrix(frame: Any) -> npt.NDArray[np.int32] | None:
    """(9,) the frame's display matrix, where it has one that turns or mirrors."""
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return None
    matrix: npt.NDArray[np.int32] = np.frombuffer(bytes(data), np.int32)
    a, b, c, d = matrix[[0, 1, 3, 4]].tolist()
    return None if b == c == 0 and a >= 0 and d >= 0 else matrix


def turn(picture: UInt8, matrix: npt.NDArray[np.int32], path: str) -> UInt8:
    """A picture turned and mirrored by its display matrix (libavutil/display.h: x' = a x + c y, y' = b x + d y)."""
    a, b, c, d = matrix[[0, 1, 3, 4]].tolist()
    if a == d == 0 and b and c:
        picture, flip_x, flip_y = picture.swapaxes(0, 1), c < 0, b < 0
    elif b == c == 0:
        flip_x, flip_y = a < 0, d < 0
    else:
        raise VideoError(path, "is to be shown turned by an angle that is no multiple of 90 degrees")
    return picture[:: -1 if flip_y else 1, :: -1 if flip_x else 1]
