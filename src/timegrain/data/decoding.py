"""Exact frames of a video file, by index or by time.

Frame ``i`` is the ``i``-th picture that a decoder shows when it plays the whole file: presentation order, every picture
that is shown and no other. Every way of reading gives these same frames. A file that cannot give them raises
:class:`VideoError` with the reason; no frame ever stands in for another.

Colour is converted to RGB by FFmpeg's swscale with its defaults: the file's matrix and range, BT.601 where it does not
say. More than 8 bits are reduced to 8, an alpha channel is dropped, pixels are not stretched to be square. Rotation
and mirroring in the metadata are applied. A picture whose size differs from the first one's, in a stream that changes
its resolution, is scaled to the first one's size, bilinearly. Of several video streams the first is read.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from timegrain.data.frame_store import EXTENSION as FRAME_STORE
from timegrain.data.frame_store import FrameStoreReader
from timegrain.data.location import file_name
from timegrain.data.pyav_reader import PyAVReader
from timegrain.data.torchcodec_reader import TorchCodecReader
from timegrain.data.video import Crop, VideoError, VideoInfo, VideoReader, short_reason

__all__ = ["Crop", "VideoError", "VideoInfo", "VideoReader", "open_video", "probe", "short_reason"]

_DECODERS: dict[str, Callable[[str], VideoReader]] = {"pyav": PyAVReader, "torchcodec": TorchCodecReader}


def open_video(path: str | os.PathLike[str], *, decoder: str = "pyav") -> VideoReader:
    """Open a video to read frames from it.

    Args:
        path: The file, a URL, or a member of a shard (:mod:`timegrain.data.location`); what it holds is found from its
            content, not from its name (but for a store of JPEG frames, ``.frames``, as `timegrain prepare --frames`
            writes it).
        decoder: ``pyav``, which carries its FFmpeg, or ``torchcodec``, which needs the extra of that name and the
            system's FFmpeg, and refuses files for which it is not exact.

    Returns:
        A reader; use it in a ``with`` statement.

    Raises:
        VideoError: If the file is missing, empty, without video, or not decodable.
        ValueError: If there is no such decoder, or it is not installed.
    """
    if decoder not in _DECODERS:
        raise ValueError(f"no decoder {decoder!r}; choose one of {', '.join(_DECODERS)}")
    name = os.fspath(path)
    return FrameStoreReader(name) if file_name(name).endswith(FRAME_STORE) else _DECODERS[decoder](name)


def probe(path: str | os.PathLike[str], *, decoder: str = "pyav") -> VideoInfo:
    """What a video file holds, with the exact number of frames.

    Finds all packets of the file and decodes its first frame; where the packets do not tell how many frames are shown,
    decodes all of them.

    Raises:
        VideoError: If the file cannot be read as a video.
    """
    with open_video(path, decoder=decoder) as reader:
        return reader.info
