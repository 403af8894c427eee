"""Training clips with targets, and views for evaluation, against frames read one by one."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from conftest import make_video, moving_square
from timegrain.data import views as view_room
from timegrain.data.clip_dataset import collate
from timegrain.data.decoding import VideoError, open_video
from timegrain.data.frame_cache import FrameCache
from timegrain.data.labelled_clips import (
    CROP_AND_FLIP,
    AnywhereInVideo,
    AroundMoments,
    LabelledClips,
    Sample,
    frames_at,
)
from timegrain.data.manifest import Manifest
from timegrain.data.scan import scan
from timegrain.data.transforms import AugmentConfig, apply_augmentation, resize_crop, three_crops
from timegrain.data.views import VideoViews, Views, load_views
from timegrain.sampling import ClipSpec, centred_clip

SPEC = ClipSpec(8, 2)


@pytest.fixture(scope="module")
def manifest(video_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    path = tmp_path_factory.mktemp("labelled") / "m.parquet"
    scan(video_folder, out=path)
    return Manifest.open(path)


def labelled(manifest: Manifest, **options) -> LabelledClips:
    targets = torch.from_numpy(manifest.class_indices())
    return LabelledClips(manifest, len(manifest), AnywhereInVideo(manifest, SPEC, targets), 24, **options)


def same(one: dict, other: dict) -> bool:
    return all(torch.equal(one[name], other[name]) if isinstance(one[name], torch.Tensor) else True for name in one)


def test_an_item_depends_on_seed_epoch_and_index_only(manifest: Manifest) -> None:
    clips = labelled(manifest, seed=3)
    again = pickle.loads(pickle.dumps(labelled(manifest, seed=3)))
    assert all(same(clips[epoch, i], again[epoch, i]) for epoch, i in [(0, 0), (5, 2), (0, 7)])
    first = clips[0, 4]
    for other in (clips[1, 4], labelled(manifest, seed=4)[0, 4]):
        assert not torch.equal(first["clip"], other["clip"])
        assert first["target"] == other["target"]
    cached = labelled(manifest, seed=3, cache=FrameCache.build(manifest, Path(manifest.path).parent))
    assert same(first, cached[0, 4])


def test_an_item_is_what_it_says(manifest: Manifest) -> None:
    """The clip is those frames, that box, that mirroring; colours are left alone."""
    clips = labelled(manifest)
    flipped = set()
    for epoch in range(6):
        item = clips[epoch, epoch]
        row = manifest[item["index"]]
        assert item["sample"] == epoch
        assert manifest.class_names[int(item["target"])] == row.label
        with open_video(row.path) as reader:
            frames = reader.frames(item["frame_indices"].numpy() % row.num_frames)
        whole = resize_crop(frames, tuple(item["crop"].tolist()), 24, flip=item["flipped"])
        assert torch.equal(item["clip"], whole)
        flipped.add(item["flipped"])
    assert flipped == {True, False}
    batch = collate([clips[0, 0], clips[0, 1]])
    assert batch["clip"].shape == (2, 8, 3, 24, 24)
    assert batch["target"].tolist() == [int(clips[0, 0]["target"]), int(clips[0, 1]["target"])]
    pixels = apply_augmentation(batch["clip"], batch["augmentation"])
    torch.testing.assert_close(pixels, batch["clip"].permute(0, 2, 1, 3, 4).float() / 255, rtol=0, atol=1e-6)


def test_clips_around_moments(manifest: Manifest) -> None:
    videos, centres = np.array([0, 0, 3]), np.array([20, 0, 54])
    targets = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    clips = LabelledClips(manifest, 3, AroundMoments(manifest, SPEC, videos, centres, targets), 24)
    assert clips[0, 0]["frame_indices"].tolist() == list(range(12, 28, 2))
    assert clips[9, 1]["frame_indices"].tolist() == [0, 0, 0, 0, 0, 2, 4, 6]  # never from the other end
    assert clips[0, 2]["frame_indices"].max() < manifest[3].num_frames
    assert torch.equal(clips[0, 2]["target"], targets[2])
    assert collate([clips[0, i] for i in range(3)])["target"].shape == (3, 2)
    moving = LabelledClips(manifest, 3, AroundMoments(manifest, SPEC, videos, centres, targets, jitter=2), 24)
    starts = {int(moving[epoch, 0]["frame_indices"][0]) for epoch in range(40)}
    assert starts == {10, 11, 12, 13, 14}
    with pytest.raises(ValueError, match="3 videos, 3 moments and 2 targets"):
        AroundMoments(manifest, SPEC, videos, centres, targets[:2])
    with pytest.raises(ValueError, match="2 targets for 8 videos"):
        AnywhereInVideo(manifest, SPEC, targets[:2])


@given(st.integers(1, 400), st.integers(1, 32), st.integers(1, 8), st.data())
def test_centred_clips(num_frames: int, length: int, stride: int, data) -> None:
    centre = data.draw(st.integers(0, num_frames - 1))
    spec = ClipSpec(length, stride)
    clip = centred_clip(num_frames, spec, centre)
    # as the programs of AVA and VidSitu write it
    half = length * stride // 2
    wanted = [min(max(f, 0), num_frames - 1) for f in range(centre - half, centre - half + length * stride, stride)]
    assert clip.tolist() == wanted


def test_frames_by_time(manifest: Manifest) -> None:
    row = manifest[2]
    times = [0.0, 0.999 / row.fps, 1 / row.fps, row.duration_seconds]
    assert frames_at(manifest, [2] * 4, times).tolist() == [0, 0, 1, row.num_frames - 1]
    with pytest.raises(ValueError, match="99 s is outside the video"):
        frames_at(manifest, [2], [99.0])


def test_a_broken_video_is_told_of(manifest: Manifest, tmp_path: Path) -> None:
    good = manifest[0].path
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(Path(good).read_bytes()[:900])
    rows = [
        {"path": path, "num_frames": manifest[0].num_frames, "fps": 25.0, "width": 64, "height": 48}
        for path in (good, str(bad))
    ]
    two = Manifest.from_rows(rows, tmp_path)
    clips = LabelledClips(two, 2, AnywhereInVideo(two, SPEC, torch.tensor([5, 6])), 24)
    item = next(item for epoch in range(9) if (item := clips[epoch, 1])["index"] == 0)
    assert item["failures"][0][0] == str(bad)
    assert (int(item["target"]), item["sample"]) == (5, 0)  # all of it is the other sample's


# ---- views --------------------------------------------------------------------------------------------------------


def test_views_are_read_in_one_pass(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    original = view_room.open_video
    monkeypatch.setattr(view_room, "open_video", lambda path: (opened.append(path), original(path))[1])
    views = Views(8, 2, 24, num_clips=4, num_crops=3)
    paths = manifest.column("path").to_pylist()
    data = VideoViews.of(paths, [1, 5], views, rounding="truncate")
    for video, seen in load_views(data, workers=0):
        expected = []
        with original(paths[video]) as reader:
            for indices in views.clips(reader.num_frames):
                expected += list(three_crops(reader.frames(indices % reader.num_frames), 24))
        assert torch.equal(seen, torch.stack(expected))
        assert len(seen) == views.count == 12
    assert opened == [paths[1], paths[5]]


def test_windows_of_one_video(tmp_path: Path) -> None:
    """Windows around events, all from one pass; frame numbers are written into the pictures."""
    frames = np.zeros((60, 32, 32, 3), np.uint8) + (4 * np.arange(60, dtype=np.uint8))[:, None, None, None]
    path = str(make_video(tmp_path / "count.mkv", frames, codec="ffv1", pix_fmt="bgr0"))
    centres = [0, 30, 59]
    data = VideoViews([path], [0], lambda video, n: [centred_clip(n, ClipSpec(4, 2), c) for c in centres], 16)
    ((_, seen),) = load_views(data)
    assert seen.shape == (3, 4, 3, 16, 16)
    assert (seen[:, :, 0, 8, 8] // 4).tolist() == [[0, 0, 0, 2], [26, 28, 30, 32], [55, 57, 59, 59]]


def test_a_video_without_views_says_why(tmp_path: Path) -> None:
    path = tmp_path / "bad.mp4"
    path.write_bytes(b"no video")
    ((video, reason),) = load_views(VideoViews.of([str(path)], [0], Views(8, 2, 24)))
    assert video == 0
    assert isinstance(reason, str)


def test_one_picture_at_a_time_of_a_changing_video(tmp_path: Path) -> None:
    path = make_video(tmp_path / "v.mp4", moving_square(40), options={"g": "7"})

    def draw(index: int, rng: np.random.Generator) -> Sample:
        return Sample(0, np.array([39, 0, 3]), torch.tensor(index))

    scan(tmp_path, out=tmp_path / "m.parquet")
    clips = LabelledClips(
        Manifest.open(tmp_path / "m.parquet"), 1, draw, 48, AugmentConfig(crop_sampler="center", flip_probability=0.0)
    )
    with open_video(path) as reader:
        frames = reader.frames([39, 0, 3])
    assert torch.equal(clips[0, 0]["clip"], frames[..., 8:56])


def test_the_default_recipe_is_crop_and_flip() -> None:
    assert CROP_AND_FLIP.crop_area == (0.3, 1.0)
    assert CROP_AND_FLIP.crop_aspect == (0.5, 2.0)
    assert CROP_AND_FLIP.flip_probability == 0.5


def test_only_broken_videos_stop_the_run(tmp_path: Path) -> None:
    rows = [
        {"path": str(tmp_path / f"{i}.mp4"), "num_frames": 9, "fps": 9.0, "width": 9, "height": 9} for i in range(3)
    ]
    manifest = Manifest.from_rows(rows, tmp_path)
    clips = LabelledClips(manifest, 3, AnywhereInVideo(manifest, SPEC, torch.zeros(3)), 24)
    with pytest.raises(VideoError, match="in a row"):
        clips[0, 0]
