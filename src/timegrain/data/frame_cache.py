"""Decoded frames of a small data set, kept once on disk and memory-mapped by every process.

For data sets that fit (generated worlds, a few hundred short clips) this takes decoding out of training altogether. The
frames are the decoder's, bit for bit.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from timegrain.data.decoding import Crop, VideoError, open_video
from timegrain.data.location import cache_key, file_state
from timegrain.data.manifest import Manifest
from timegrain.data.video import spread
from timegrain.files import alone_in, atomic_path
from timegrain.progress import track


class DamagedCacheError(ValueError):
    """Kept frames that are not whole.

    Args:
        folder: Where they are.
        reason: What is wrong.
    """

    def __init__(self, folder: Path, reason: str) -> None:
        super().__init__(f"the decoded frames in {folder} are damaged ({reason}); remove that folder")


class FrameCache:
    """Frames of every video of a manifest, readable by index.

    Args:
        folder: Where :meth:`build` wrote them.

    Raises:
        DamagedCacheError: What is there is not whole.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        try:
            index = json.loads((self.folder / "index.json").read_text())
            self.offsets: list[int] = index["offsets"]
            self.shapes: list[tuple[int, int, int]] = [(t, h, w) for t, h, w in index["shapes"]]
            pixels = np.load(self.folder / "frames.npy", mmap_mode="r")
        except (ValueError, KeyError, TypeError, EOFError, FileNotFoundError) as error:
            raise DamagedCacheError(self.folder, str(error)) from error
        if pixels.shape != (self.offsets[-1],):
            raise DamagedCacheError(self.folder, f"{len(pixels):,} bytes of pixels, not {self.offsets[-1]:,}")
        self._pixels: np.ndarray | None = None

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_pixels": None}  # a worker maps the file itself

    def frames(
        self, video: int, indices: np.ndarray, crop: Crop | None = None
    ) -> UInt8[Tensor, "frames 3 height width"]:
        """Frames of one video, as :meth:`timegrain.data.decoding.VideoReader.frames` gives them.

        Args:
            video: Row of the manifest.
            indices: Frame numbers, in any order.
            crop: Part of the picture to return.
        """
        if self._pixels is None:
            self._pixels = np.load(self.folder / "frames.npy", mmap_mode="r")
        count, height, width = self.shapes[video]
        start = self.offsets[video]
        size = height * width * 3
        pixels = self._pixels[start : start + count * size].reshape(count, height, width, 3)
        top, left, rows, columns = crop if crop is not None else Crop(0, 0, height, width)
        picked = np.ascontiguousarray(pixels[indices, top : top + rows, left : left + columns])
        return torch.from_numpy(picked).permute(0, 3, 1, 2)

    def video(self, video: int) -> CachedVideo:
        """One video, to be read like an open one."""
        return CachedVideo(self, video)

    @classmethod
    def build(cls, manifest: Manifest, folder: Path) -> FrameCache:
        """Decode every video of ``manifest`` once; an existing cache of the same videos is used as it is if it is whole.

        Of several processes that ask for the same videos one decodes them, and the others wait for it.

        Args:
            manifest: Usable videos only.
            folder: Folder of caches; this one's name is made from paths, sizes and times of the videos.

        Raises:
            VideoError: If a video cannot be decoded.
        """
        digest = hashlib.sha256()
        for row in manifest:
            try:
                size, modified = file_state(row.path)
            except OSError as error:
                raise VideoError(row.path, error.strerror or str(error)) from error
            digest.update(f"{cache_key(row.path)}\0{size}\0{modified}\n".encode())
        target = Path(folder) / digest.hexdigest()[:16]
        with suppress(DamagedCacheError):
            return cls(target)  # somebody else's too, where nothing can be written
        with alone_in(target):
            if (target / "index.json").exists():
                try:
                    return cls(target)
                except DamagedCacheError as error:
                    print(f"{error}: decoding again", file=sys.stderr)
            _decode(manifest, target)
        return cls(target)


def _decode(manifest: Manifest, folder: Path) -> None:
    """Write the frames of every video, and where each begins."""
    shapes = [(row.num_frames, row.height, row.width) for row in manifest]
    offsets = [0, *np.cumsum([t * h * w * 3 for t, h, w in shapes]).tolist()]
    with atomic_path(folder / "frames.npy") as temporary:
        pixels = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=(offsets[-1],))
        _reserve(temporary)
        for position, row in enumerate(track(manifest, "decoding once", len(manifest))):
            with open_video(row.path) as reader:
                found = (reader.num_frames, reader.info.height, reader.info.width)
                if found != shapes[position]:
                    raise VideoError(
                        row.path,
                        f"has frames, height and width {found} where the manifest says {shapes[position]}; it changed "
                        "since it was scanned: run `timegrain manifest scan` again",
                    )
                frames = reader.frames(np.arange(row.num_frames))
            pixels[offsets[position] : offsets[position + 1]] = frames.permute(0, 2, 3, 1).reshape(-1).numpy()
        pixels.flush()
    with atomic_path(folder / "index.json") as temporary:
        temporary.write_text(json.dumps({"offsets": offsets, "shapes": shapes}))


def _reserve(file: Path) -> None:
    """Take a mapped file's room on the disk now; writing to a map for which there is none would kill the process."""
    if hasattr(os, "posix_fallocate"):
        with file.open("r+b") as opened:
            os.posix_fallocate(opened.fileno(), 0, file.stat().st_size)


class CachedVideo:
    """One video of a cache; the part of :class:`timegrain.data.decoding.VideoReader` that gives frames by index."""

    def __init__(self, cache: FrameCache, video: int) -> None:
        self._cache, self._video = cache, video

    def frames(self, indices: Sequence[int] | np.ndarray, *, crop: Crop | None = None) -> Tensor:
        """Frames by index, (T, C, H, W)."""
        return self._cache.frames(self._video, np.asarray(indices), crop)

    def pictures(
        self, indices: Sequence[int] | np.ndarray, *, crop: Crop | Sequence[Crop] | None = None
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Frames one by one, (H, W, C)."""
        for place, (number, each) in enumerate(zip(indices, spread(crop, len(indices)), strict=True)):
            yield place, self._cache.frames(self._video, np.array([number]), each)[0].permute(1, 2, 0).numpy()
