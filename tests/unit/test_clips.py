"""Clips of a video: the draws, one decode pass, any number of them, and what takes the place of a broken video.

Read picture by picture they equal the same boxes cut out of all frames.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import make_video, moving_square
from timegrain.data.clip_dataset import collate
from timegrain.data.clips import VideoClips, cut_clips, draw_clips
from timegrain.data.decoding import Crop, open_video
from timegrain.data.frame_store import FrameStoreWriter
from timegrain.data.loading import EpochBatchSampler, epoch_order
from timegrain.data.manifest import Manifest
from timegrain.data.scan import scan
from timegrain.data.transforms import AugmentConfig, draw_augmentation, resize_crop, sample_crop
from timegrain.sampling import ClipSpec, contained, frames_to_read

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
        plan = draw_clips(rng, contained, LENGTH, 48, 64, (LONG, SHORT), AugmentConfig())
        with open_video(video) as reader:
            clips = cut_clips(reader, plan, LENGTH, SIZE, rounding)
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
        crops = [Crop(place, 2 * place, 20 + place, 30 - place) for place in range(len(wanted))]
        whole = reader.frames(wanted).permute(0, 2, 3, 1).numpy()
        for place, picture in reader.pictures(
            wanted, crop=crops
        ):  # twice the same frame with different crops among them
            top, left, height, width = crops[place]
            np.testing.assert_array_equal(picture, whole[place, top : top + height, left : left + width])
        with pytest.raises(ValueError, match="2 crops for 1 frames"):
            next(reader.pictures([1], crop=crops[:2]))
        assert list(reader.pictures([])) == []
        with pytest.raises(ValueError, match="outside the video"):
            next(reader.pictures([LENGTH]))


@pytest.fixture(scope="module")
def manifest(video_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return scan(video_folder, out=tmp_path_factory.mktemp("clips") / "m.parquet").select()


def test_the_pair_of_clips_from_its_draws(manifest: Manifest) -> None:
    """The order of the draws is part of what a seed means: positions, boxes, views, flips, colours."""
    clips, augment = VideoClips(manifest, (LONG, SHORT), crop_size=16, seed=3), AugmentConfig()
    item, row = clips[5, 2], manifest[2]
    rng = np.random.default_rng([3, 5, 2])
    indices = contained(row.num_frames, (LONG, SHORT), rng)
    boxes = [sample_crop(rng, row.height, row.width, augment) for _ in range(2)]
    views, flips = rng.permutation(2), rng.random(2) < augment.flip_probability
    with open_video(row.path) as reader:
        for clip, positions in enumerate(indices):
            assert item["indices"][clip].tolist() == positions.tolist()
            frames = reader.frames(frames_to_read(positions, row.num_frames))
            expected = resize_crop(frames, boxes[clip], 16, flip=bool(flips[clip]))
            assert torch.equal(item["clips"][clip], expected)
            colours = draw_augmentation(rng, augment, int(views[clip]))
            np.testing.assert_equal(vars(item["augmentations"][clip]), vars(colours))


def test_any_number_of_clips_in_a_batch(manifest: Manifest) -> None:
    clips = VideoClips(manifest, [SHORT] * 4, "random", crop_size=16)
    batch = collate([clips[0, index] for index in (1, 4, 6)])
    assert [tuple(clip.shape) for clip in batch["clips"]] == [(3, 4, 3, 16, 16)] * 4
    assert [tuple(positions.shape) for positions in batch["indices"]] == [(3, 4)] * 4
    assert [len(augmentation) for augmentation in batch["augmentations"]] == [3] * 4
    assert batch["index"].tolist() == [1, 4, 6]
    again = collate([clips[0, index] for index in (1, 4, 6)])
    assert all(torch.equal(one, other) for one, other in zip(batch["clips"], again["clips"], strict=True))


def test_samples_of_a_visit_go_to_batches_of_their_own(manifest: Manifest) -> None:
    one, several = (
        VideoClips(manifest, (LONG, SHORT), crop_size=16, seed=3, samples_per_visit=number) for number in (1, 3)
    )
    keys = [(2, 1), (2, 4)]
    batches = several.collate([several[key] for key in keys])
    assert len(batches) == 3
    assert [batch["index"].tolist() for batch in batches] == [[1, 4]] * 3
    alone = one.collate([one[key] for key in keys])
    for clip in range(2):  # the first sample is the one that would be drawn alone
        assert torch.equal(batches[0]["clips"][clip], alone["clips"][clip])
        assert torch.equal(batches[0]["indices"][clip], alone["indices"][clip])
    assert not torch.equal(batches[1]["clips"][0], batches[2]["clips"][0])
    rng = np.random.default_rng([3, 2, 4])
    row = manifest[4]
    plans = [draw_clips(rng, contained, row.num_frames, row.height, row.width, (LONG, SHORT), AugmentConfig()) for _ in
             range(3)]  # fmt: skip
    with open_video(row.path) as reader:
        for batch, plan in zip(batches, plans, strict=True):
            for clip, cut in enumerate(cut_clips(reader, plan, row.num_frames, 16)):
                assert torch.equal(batch["clips"][clip][1], cut)


def test_a_failure_is_told_once_per_visit(manifest: Manifest, tmp_path: Path) -> None:
    columns = ("path", "num_frames", "fps", "duration_seconds", "width", "height")
    rows = [{key: getattr(row, key) for key in columns} for row in list(manifest)[:4]]
    rows[1]["path"] = str(tmp_path / "gone.mp4")
    clips = VideoClips(Manifest.from_rows(rows, tmp_path), [SHORT] * 2, "random", crop_size=16, samples_per_visit=2)
    first, second = clips.collate([clips[0, 0], clips[0, 1]])
    assert [len(batch["failures"]) for batch in (first, second)] == [1, 0]
    assert first["index"].tolist() == second["index"].tolist()
    assert first["index"][1] != 1


@pytest.mark.parametrize("num_broken", [1, 3])
def test_no_video_is_in_a_batch_twice(manifest: Manifest, tmp_path: Path, num_broken: int) -> None:
    """Substitutes come from other batches, and two of one batch are not the same."""
    rows = [row.__dict__ | {"path": str(tmp_path / "gone.mp4")} if i < num_broken else row.__dict__ for i, row in
            enumerate(list(manifest) * 4)]  # fmt: skip
    columns = ("path", "num_frames", "fps", "duration_seconds", "width", "height")
    table = Manifest.from_rows([{key: row[key] for key in columns} for row in rows], tmp_path)
    clips = VideoClips(table, [SHORT] * 2, "random", crop_size=16)
    sampler = EpochBatchSampler(len(table), 4)
    clips.global_batch = 4
    substituted = 0
    for batch in sampler:
        items = [clips[key] for key in batch]
        assert len({item["index"] for item in items}) == 4
        substituted += sum(bool(item["failures"]) for item in items)
    assert substituted == num_broken
    assert sorted(epoch_order(0, 0, 32)) == list(range(32))
