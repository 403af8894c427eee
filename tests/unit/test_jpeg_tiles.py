"""A part of a JPEG decoded alone has the pixels of the whole picture, to the last one."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from timegrain.data.jpeg_tiles import TILE_WIDTH, Part, cut, encode
from timegrain.data.video import Crop


def drawn(height: int, width: int, seed: int) -> np.ndarray:
    """A picture with edges, slopes and grain in all colours."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 9 + 2, width // 9 + 2, 3), dtype=np.uint8)
    picture = cv2.resize(coarse, (width, height), interpolation=int(rng.choice([cv2.INTER_NEAREST, cv2.INTER_LINEAR])))
    return np.clip(picture + rng.normal(0, rng.choice([0, 3, 30]), picture.shape), 0, 255).astype(np.uint8)


def plain(picture: np.ndarray, quality: int = 75, *options: int) -> bytes:
    coded = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality, *options])[1]
    return coded.tobytes()


def decoded(data: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)


@given(data=st.data(), height=st.integers(1, 130), width=st.integers(1, 200), quality=st.integers(1, 100))
def test_a_part_is_equal_to_the_whole_cut(data, height, width, quality):
    pictures = [encode(drawn(height, width, seed), quality) for seed in range(3)]
    top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    crop = Crop(top, left, data.draw(st.integers(1, height - top)), data.draw(st.integers(1, width - left)))
    for jpeg, part in zip(pictures, cut(pictures, crop), strict=True):
        whole = decoded(jpeg)
        picture, size = part.decode()
        assert size == whole.shape[:2]
        assert size[0] == height
        assert 0 <= size[1] - width < TILE_WIDTH
        np.testing.assert_array_equal(picture, whole[top : top + crop.height, left : left + crop.width])


def test_small_parts_are_small():
    pictures = [encode(drawn(256, 340, seed), 75) for seed in range(2)]
    for jpeg, part in zip(pictures, cut(pictures, Crop(100, 100, 60, 60)), strict=True):
        assert len(part.coded) < len(jpeg) / 4
    assert all(part.coded in pictures for part in cut(pictures, Crop(0, 0, 256, 340)))


@pytest.mark.parametrize("width", [340, 352, 320])
def test_tiles_change_no_pixel(width):
    """Where an even number of blocks fills the width, only the markers are new."""
    picture = drawn(256, width, 0)
    np.testing.assert_array_equal(decoded(encode(picture, 75)), decoded(plain(picture)))
    assert decoded(encode(drawn(256, 456, 0), 75)).shape == (256, 480, 3)


def test_other_jpegs_are_decoded_whole():
    picture, crop = drawn(100, 128, 0), Crop(10, 20, 30, 40)
    others = [
        plain(picture),  # without markers
        plain(picture, 75, cv2.IMWRITE_JPEG_PROGRESSIVE, 1, cv2.IMWRITE_JPEG_RST_INTERVAL, 2),
        plain(picture, 75, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444, 79, 2),
        plain(picture, 75, cv2.IMWRITE_JPEG_RST_INTERVAL, 3),  # which begin in the middle of rows
        cv2.imencode(".jpg", picture[..., 0], [cv2.IMWRITE_JPEG_RST_INTERVAL, 2])[1].tobytes(),
    ]
    for jpeg in others:
        (part,) = cut([jpeg], crop)
        assert part == Part(jpeg, crop, None)
        np.testing.assert_array_equal(part.decode()[0], decoded(jpeg)[10:40, 20:60])
    narrow = plain(drawn(17, 340, 0), 75, cv2.IMWRITE_JPEG_RST_INTERVAL, 1)  # a last tile of 4 pixels
    assert cut([narrow], Crop(16, 339, 1, 1)) == [Part(narrow, Crop(16, 339, 1, 1), None)]
    tiled = encode(picture, 75)
    for jpeg, part in zip([tiled, others[0]], cut([tiled, others[0]], crop), strict=True):  # no common header
        np.testing.assert_array_equal(part.decode()[0], decoded(jpeg)[10:40, 20:60])


def test_what_is_no_whole_jpeg_is_left_to_the_decoder():
    tiled, crop = encode(drawn(100, 128, 0), 75), Crop(10, 20, 30, 40)
    missing = tiled.replace(b"\xff\xd3", b"", 1)
    for damaged in (b"", b"\xff", tiled[:50], tiled[:-2], tiled[:-900] + b"\xff\xd9", missing):
        assert cut([damaged], crop) == [Part(damaged, crop, None)]
    assert Part(b"\xff\xd8", crop, None).decode() is None
