"""A reader that decodes with torchcodec, for files where that is sure to give the right frames.

torchcodec finds a frame by its time stamp, after a jump to the last packet that the container calls a key frame. In files
without presentation times (AVI), with packets that show nothing (VP8 and VP9), with open groups of pictures, or in streams
without an index of packets (MPEG-TS, MPEG-PS), it gave other frames than playing the file does. Such files are refused, and
every frame that it returns must carry the time stamp of the frame that was asked for.

Which frames there are is found as :class:`~timegrain.data.pyav_reader.PyAVReader` does. Colours are converted by the FFmpeg
that torchcodec finds: equal to PyAV's for progressive 8-bit 4:2:0 pictures of even height, elsewhere the two may
interpolate the colour samples differently.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from timegrain.data.pyav_reader import PyAVReader
from timegrain.data.video import Crop, KnownFramesReader, VideoError, check_crop, check_indices, short_reason

_CHUNK = 16  # frames decoded at a time by `stream`
_FAILURES = (RuntimeError, ValueError, IndexError, OSError)


def _decoder_class() -> Any:
    try:
        return importlib.import_module("torchcodec.decoders").VideoDecoder
    except ModuleNotFoundError as error:
        raise ValueError(
            "the torchcodec decoder needs the package torchcodec: pip install 'timegrain[torchcodec]', "
            "or use decoder='pyav'"
        ) from error
    except (ImportError, RuntimeError, OSError) as error:
        raise ValueError(
            "torchcodec is installed but cannot be loaded. Most often the system has no FFmpeg libraries "
            "(versions 4 to 9; on Debian: apt-get install ffmpeg), or it does not match the installed torch. "
            f"decoder='pyav' needs neither. It said: {short_reason(error)}"
        ) from error


class TorchCodecReader(KnownFramesReader):
    """Reads with torchcodec; see :class:`timegrain.data.video.VideoReader` for the methods.

    Args:
        path: The file, or another location of a video.

    Raises:
        VideoError: If the file cannot be read, or torchcodec cannot be relied on for it.
        ValueError: If torchcodec is not installed, or finds no FFmpeg.
    """

    def __init__(self, path: str) -> None:
        decoder_class = _decoder_class()
        self._path = path
        self._decoder: Any = None
        with PyAVReader(path) as reader:
            self._info = reader.info
            self._timestamps = reader.timestamps
            reason = reader.why_not_by_time()
            self._file = reader.file_again()
        try:
            if reason:
                raise self._error(reason)
            self._open(decoder_class, reader.stream_index)
        except BaseException:
            self.close()
            raise

    def _open(self, decoder_class: Any, stream_index: int) -> None:
        source: Any = self._path
        if self._file is not None:
            self._file.seek(0)
            source = self._file
        try:
            self._decoder = decoder_class(source, dimension_order="NHWC", seek_mode="exact", stream_index=stream_index)
            num_frames = self._decoder.metadata.num_frames
            self._begin_seconds = self._decoder.metadata.begin_stream_seconds_from_content or 0.0
        except _FAILURES as error:
            raise self._error(short_reason(error)) from error
        if num_frames != self.num_frames:
            raise self._error(f"it finds {num_frames} frames where the file shows {self.num_frames}")

    def _error(self, reason: str) -> VideoError:
        if self._file is not None and self._file.failure is not None:
            return self._file.failure  # what torchcodec says of it is a consequence
        return VideoError(self._path, f"torchcodec cannot be relied on here, use decoder='pyav': {reason}")

    def frames(self, indices: Sequence[int] | npt.NDArray[np.integer], *, crop: Crop | None = None) -> Tensor:
        """Frames by index."""
        array = check_indices(indices, self.num_frames)
        height, width = self._info.height, self._info.width
        top, left, rows, columns = check_crop(crop, height, width)
        if self._decoder is None:
            raise ValueError(f"{self._path}: the video is closed")
        try:
            batch = self._decoder.get_frames_at(array.tolist())
        except _FAILURES as error:
            raise self._error(short_reason(error)) from error
        if tuple(batch.data.shape[1:3]) != (height, width):
            raise self._error(f"it gives frames of shape {tuple(batch.data.shape[1:3])}, not {(height, width)}")
        asked = self._timestamps[array]
        wrong = np.abs(batch.pts_seconds.numpy() - self._begin_seconds - asked) > self._tolerance
        if wrong.any():
            raise self._error(f"it gives another frame than frame {array[wrong][0]}")
        picture: Tensor = batch.data[:, top : top + rows, left : left + columns].contiguous()
        return picture.permute(0, 3, 1, 2)

    @property
    def _tolerance(self) -> float:
        """Seconds by which the time of a frame may be off: less than half the shortest step."""
        return 0.4 * float(np.diff(self._timestamps).min()) if self.num_frames > 1 else 1.0

    def stream(self, start: int = 0, stop: int | None = None, step: int = 1) -> Iterator[Tensor]:
        """Frames one after the other."""
        if start < 0 or step < 1 or (stop is not None and stop < 0):
            raise ValueError(f"frames cannot be streamed from {start} to {stop} in steps of {step}")
        indices = np.arange(self.num_frames)[start:stop:step]
        for begin in range(0, len(indices), _CHUNK):
            yield from self.frames(indices[begin : begin + _CHUNK])

    def close(self) -> None:
        """Give the file back."""
        self._decoder = None
        if self._file is not None:
            self._file.close()
