"""A pair of clips read picture by picture equals the same boxes cut out of all frames."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from conftest import make_video, moving_square
from timegrain.data.clips import cut_pair, draw_pair
from timegrain.data.decoding import Crop, open_video
from timegrain.data.frame_store import FrameStoreWriter
from timegrain.data.transforms import AugmentConfig, resize_crop
from timegrain.sampling import ClipSpec, frames_to_read, long_short_contained

LONG, SHORT, SIZE = ClipSpec(8, 4), ClipSpec(4, 2), 20
LENGTH = 30  # shorter than a long clip: positions loop


@pytest.fixture(scope="module", params=["h264", "frames"])
def video(request, tmp_path_factory):
    frames = moving_square(LENGTH)
    folder = tmp_path_factory.mktemp("clips")
    if request.param == "h264":
        return make_video(folder / "a.mp4", frames, options={"g": "12"})
    with FrameStoreWriter(folder / "a.frames", np.arange(LENGTH) / 25, LENGTH / 25, 90) as store:
        for picture in frames:
            store.add(picture)
        store.finish()
    return folder / "a.frames"


@pytest.mark.parametrize("rounding", ["nearest", "truncate"])
def test_a_pair_equals_its_frames_cut_and_resized(video, rounding):
    rng = np.random.default_rng(0)
    for _ in range(4):
        plan = draw_pair(rng, long_short_contained, LENGTH, 48, 64, LONG, SHORT, AugmentConfig())
        with open_video(video) as reader:
            clips = cut_pair(reader, plan, LENGTH, SIZE, rounding)
            for clip, positions, crop, flip in zip(clips, plan.indices, plan.crops, plan.flips, strict=True):
                frames = reader.frames(frames_to_read(positions, LENGTH))
                assert torch.equal(clip, resize_crop(frames, crop, SIZE, flip=flip, rounding=rounding))


def test_pictures_are_the_frames(video):
    wanted = [17, 3, 17, 29, 3, 0]
    crop = Crop(4, 6, 20, 30)
    with open_video(video) as reader:
        frames = reader.frames(wanted, crop=crop).permute(0, 2, 3, 1).numpy()
        given = {}
        for place, picture in reader.pictures(wanted, crop=crop):
            given[place] = picture.copy()
        np.testing.assert_array_equal(np.stack([given[place] for place in range(len(wanted))]), frames)
        assert list(reader.pictures([])) == []
        with pytest.raises(ValueError, match="outside the video"):
            next(reader.pictures([LENGTH]))
