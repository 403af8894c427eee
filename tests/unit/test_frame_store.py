"""A store of JPEG frames, read like any video."""

from __future__ import annotations

import re

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from conftest import moving_square
from timegrain.data.decoding import Crop, VideoError, open_video, probe
from timegrain.data.frame_store import FrameStoreWriter


@pytest.fixture
def pictures():
    return moving_square(12, height=41, width=63)


@pytest.fixture
def store(tmp_path, pictures):
    path = tmp_path / "v.frames"
    times = np.cumsum([0.0, *([0.04] * 6), *([0.1] * 5)])
    with FrameStoreWriter(path, times, float(times[-1] + 0.1), quality=95) as writer:
        for picture in pictures:
            writer.add(picture)
        writer.finish()
    return path


def test_what_it_holds(store):
    info = probe(store)
    assert (info.num_frames, info.width, info.height, info.rotation) == (12, 63, 41, 0)
    assert info.duration_seconds == pytest.approx(0.84)
    assert info.fps == pytest.approx(12 / 0.84)


def test_frames_in_any_order_with_crop(store, pictures):
    with open_video(store) as reader:
        whole = reader.frames(np.array([5, 0, 5, 11]))
        assert whole.shape == (4, 3, 41, 63)
        assert whole.dtype == torch.uint8
        assert whole.permute(0, 2, 3, 1).is_contiguous()
        assert torch.equal(whole[0], whole[2])
        difference = np.abs(whole.permute(0, 2, 3, 1).numpy().astype(int) - pictures[[5, 0, 5, 11]])
        assert difference.mean() < 5  # JPEG; and the right frame: its neighbours differ by more
        cut = reader.frames([0, 11], crop=Crop(3, 7, 20, 30))
        assert torch.equal(cut, whole[[1, 3], :, 3:23, 7:37])
        assert reader.frames([]).shape == (0, 3, 41, 63)


def test_frames_by_time_and_in_a_stream(store):
    with open_video(store) as reader:
        assert torch.equal(reader.frames_at([0.0, 0.05, 0.84]), reader.frames([0, 1, 11]))
        assert torch.equal(torch.stack(list(reader.stream(2, 9, 3))), reader.frames([2, 5, 8]))
        assert len(list(reader.stream())) == reader.num_frames == 12
        assert reader.timestamps[7] == pytest.approx(0.34)
        with pytest.raises(ValueError, match="frame index 12 is outside"):
            reader.frames([12])
        with pytest.raises(ValueError, match="outside the video"):
            reader.frames_at(2.0)
        with pytest.raises(ValueError, match="does not fit"):
            reader.frames([0], crop=Crop(0, 0, 42, 10))


def test_damaged_stores_are_named(store, tmp_path):
    data = store.read_bytes()
    no_time = re.sub(
        rb'("duration_seconds": )(..)([\d.]+)', lambda found: found[1] + b"0." + b"0" * len(found[3]), data
    )
    broken = {"empty": b"", "cut": data[:-30], "front": data[40:], "text": b"x" * 5000, "no time": no_time}
    for name, content in broken.items():
        path = tmp_path / f"{name}.frames"
        path.write_bytes(content)
        with pytest.raises(VideoError, match=rf"{name}.frames: not a whole frame store"):
            open_video(path)
    store.write_bytes(data[:200] + bytes(400) + data[600:])
    with open_video(store) as reader:
        assert reader.frames([11]).shape == (1, 3, 41, 63)
        with pytest.raises(VideoError, match="frame 0 is damaged"):
            reader.frames([0, 11])
    with pytest.raises(VideoError, match="can't be opened: No such file"):
        open_video(tmp_path / "none.frames")


@given(data=st.data(), width=st.sampled_from([63, 90, 130]))
def test_a_crop_of_its_own_for_each_frame(data, width, tmp_path_factory):
    path = tmp_path_factory.mktemp("crops") / "v.frames"
    with FrameStoreWriter(path, np.arange(5) / 25, 0.2, quality=75) as writer:
        for picture in moving_square(5, height=70, width=width):
            writer.add(picture)
        writer.finish()
    boxes = []
    for _ in range(data.draw(st.integers(1, 7))):
        top, left = data.draw(st.integers(0, 69)), data.draw(st.integers(0, width - 1))
        boxes.append(Crop(top, left, data.draw(st.integers(1, 70 - top)), data.draw(st.integers(1, width - left))))
    wanted = data.draw(st.lists(st.integers(0, 4), min_size=len(boxes), max_size=len(boxes)))
    with open_video(path) as reader:
        whole = reader.frames(np.arange(5)).permute(0, 2, 3, 1).numpy()
        places = set()
        for place, picture in reader.pictures(wanted, crop=boxes):
            top, left, height, columns = boxes[place]
            np.testing.assert_array_equal(picture, whole[wanted[place], top : top + height, left : left + columns])
            places.add(place)
        assert places == set(range(len(boxes)))
        with pytest.raises(ValueError, match="crops for"):
            list(reader.pictures([*wanted, 0], crop=boxes))


def test_stores_without_tiles_are_read_as_before(store, pictures, tmp_path, monkeypatch):
    def untiled(picture, quality):
        return cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()

    monkeypatch.setattr("timegrain.data.frame_store.encode", untiled)
    path = tmp_path / "old.frames"
    with FrameStoreWriter(path, np.arange(12) / 25, 0.48, quality=95) as writer:
        for picture in pictures:
            writer.add(picture)
        writer.finish()
    assert b"\xff\xdd" not in path.read_bytes()[:1000]  # the interval of restart markers
    assert b"\xff\xdd" in store.read_bytes()[:1000]
    with open_video(path) as old, open_video(store) as new:
        crop = Crop(3, 7, 20, 30)
        assert torch.equal(old.frames([0, 11], crop=crop), old.frames([0, 11])[..., 3:23, 7:37])
        assert torch.equal(old.frames([4]), new.frames([4]))  # 63 pixels are an even number of blocks


def test_frames_must_fit_together(tmp_path, pictures):
    with FrameStoreWriter(tmp_path / "v.frames", np.zeros(2), 1.0, quality=75) as writer:
        writer.add(pictures[0])
        with pytest.raises(VideoError, match="can't be stored"):
            writer.add(pictures[0, 1:])
        with pytest.raises(VideoError, match="1 frames where 2 were expected"):
            writer.finish()
