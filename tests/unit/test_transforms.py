"""Crops, views and the random recipe: what must hold for any clip and any draw."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms.v2 import RandomResizedCrop
from torchvision.transforms.v2 import functional as tv

from timegrain.data import colour
from timegrain.data.colour import NEUTRAL, Augmentation, change_colours
from timegrain.data.colour_cpu import change_colours_on_cpu
from timegrain.data.transforms import (
    AugmentConfig,
    apply_augmentation,
    center_view,
    draw_augmentation,
    resize_crop,
    resize_smallest,
    sample_crop,
    stack_clips,
    three_crops,
    to_model_input,
)
from timegrain.data.video import Crop

sizes = st.integers(1, 40)
seeds = st.integers(0, 2**32 - 1)


def random_frames(seed: int, time: int, height: int, width: int) -> torch.Tensor:
    """Frames as decoders give them: (T, C, H, W) uint8 over channels-last memory, with greys, black and white."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (time, height, width, 3), dtype=np.uint8)
    images[rng.random((time, height, width)) < 0.1] = rng.integers(0, 2) * 255
    grey = rng.random((time, height, width)) < 0.1
    images[grey] = images[grey][:, :1]
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def random_batch(seed: int, batch: int, config: AugmentConfig | None = None) -> Augmentation:
    rng = np.random.default_rng(seed)
    return Augmentation.collate([draw_augmentation(rng, config or AugmentConfig(), i % 2) for i in range(batch)])


def of_clip(augmentation: Augmentation, index: int) -> Augmentation:
    return Augmentation(*(getattr(augmentation, name)[index : index + 1] for name in Augmentation.__dataclass_fields__))


# Boxes


@given(seeds, st.integers(1, 700), st.integers(1, 700), st.sampled_from(["reference", "torchvision", "center"]))
def test_boxes_lie_inside_the_picture(seed, height, width, sampler):
    crop = sample_crop(np.random.default_rng(seed), height, width, AugmentConfig(crop_sampler=sampler))
    assert all(isinstance(value, int) for value in crop)
    assert crop.height >= 1
    assert crop.width >= 1
    assert 0 <= crop.top <= height - crop.height
    assert 0 <= crop.left <= width - crop.width


def test_impossible_boxes_fall_back():
    narrow = AugmentConfig(crop_aspect=(3.0, 4.0), crop_area=(0.9, 1.0))
    rng = np.random.default_rng(0)
    assert sample_crop(rng, 100, 100, narrow) == Crop(0, 0, 100, 100)
    torchvision = AugmentConfig(crop_sampler="torchvision", crop_aspect=(3.0, 4.0), crop_area=(0.9, 1.0))
    assert sample_crop(rng, 100, 100, torchvision) == Crop(33, 0, 33, 100)
    assert sample_crop(rng, 90, 120, AugmentConfig(crop_sampler="center")) == Crop(0, 15, 90, 90)


def test_torchvision_sampler_has_torchvisions_distribution():
    from scipy import stats

    torch.manual_seed(0)
    image, rng, size = torch.empty(3, 256, 340), np.random.default_rng(0), 3000
    peer = RandomResizedCrop(224, scale=(0.3, 1.0), ratio=(0.5, 2.0))
    drawn = [peer.make_params([image]) for _ in range(size)]
    theirs = np.array([[p["top"], p["left"], p["height"], p["width"]] for p in drawn])
    config = AugmentConfig(crop_sampler="torchvision")
    ours = np.array([sample_crop(rng, 256, 340, config) for _ in range(size)])
    for axis in range(4):
        assert stats.ks_2samp(theirs[:, axis], ours[:, axis]).pvalue > 1e-3


# Resizing


@given(seeds, sizes, sizes, sizes, sizes, st.data())
@settings(deadline=None, max_examples=60)
def test_resize_of_any_size(seed, height, width, out_height, out_width, data):
    frames = random_frames(seed, 2, height, width)
    top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    crop = Crop(top, left, data.draw(st.integers(1, height - top)), data.draw(st.integers(1, width - left)))
    part = frames[..., top : top + crop.height, left : left + crop.width]
    exact = torch.nn.functional.interpolate(part.float(), (out_height, out_width), mode="bilinear")
    for rounding, low, high in (("nearest", -1.0, 1.0), ("truncate", -1.001, 1e-3)):
        resized = resize_crop(frames, crop, (out_height, out_width), rounding=rounding)
        assert resized.dtype == torch.uint8
        assert resized.shape == (2, 3, out_height, out_width)
        assert resized.permute(0, 2, 3, 1).is_contiguous()
        difference = resized.float() - exact
        assert low < difference.min()
        assert difference.max() < high
        flipped = resize_crop(frames, crop, (out_height, out_width), rounding=rounding, flip=True)
        torch.testing.assert_close(flipped, resized.flip(-1), rtol=0, atol=0)


@pytest.mark.parametrize("rounding", ["nearest", "truncate"])
def test_resize_takes_any_memory_layout_and_leaves_its_input_alone(rounding):
    frames = random_frames(0, 3, 20, 30)
    before = frames.clone()
    results = [
        resize_crop(layout, Crop(2, 3, 10, 20), 16, rounding=rounding, flip=True)
        for layout in (frames, frames.contiguous(), frames.flip(0).flip(0), frames[:, :, ::1])
    ]
    for result in results[1:]:
        assert torch.equal(result, results[0])
    resize_crop(frames, None, (20, 30), flip=True)
    assert torch.equal(frames, before)
    assert torch.equal(resize_crop(frames, None, (20, 30), rounding=rounding), frames)


@pytest.mark.parametrize("crop", [Crop(-1, 0, 5, 5), Crop(0, 0, 21, 5), Crop(0, 26, 5, 5), Crop(0, 0, 0, 5)])
def test_box_outside_the_frames_is_an_error(crop):
    with pytest.raises(ValueError, match="does not lie inside frames of 20 x 30"):
        resize_crop(random_frames(0, 1, 20, 30), crop, 16)


@given(seeds, sizes, sizes, st.integers(1, 24))
@settings(deadline=None, max_examples=40)
def test_evaluation_views_of_any_size(seed, height, width, size):
    frames = random_frames(seed, 2, height, width)
    assert min(resize_smallest(frames, size).shape[-2:]) == size
    assert center_view(frames, size).shape == (2, 3, size, size)
    crops = three_crops(frames, size)
    assert crops.shape == (3, 2, 3, size, size)
    resized = resize_smallest(frames, size)
    assert torch.equal(crops[0], resized[..., :size, :size])
    assert torch.equal(crops[2], resized[..., -size:, -size:])


# Colours


@given(seeds, st.integers(1, 5), st.integers(1, 4), st.integers(1, 33), st.integers(1, 33))
@settings(deadline=None, max_examples=60)
def test_cpu_path_equals_device_path(seed, batch, time, height, width):
    clips = stack_clips([random_frames(seed + i, time, height, width) for i in range(batch)])
    augmentation = random_batch(seed, batch)
    changed = change_colours_on_cpu(clips, augmentation)
    assert changed.shape == (batch, 3, time, height, width)
    assert changed.dtype == torch.float32
    assert changed.is_contiguous()
    assert changed.min() >= 0
    assert changed.max() <= 1
    torch.testing.assert_close(changed, change_colours(to_model_input(clips), augmentation), rtol=0, atol=1e-5)
    torch.testing.assert_close(changed, change_colours_on_cpu(clips.contiguous(), augmentation), rtol=0, atol=0)


@pytest.mark.parametrize(("size", "change"), [(28, None), (40, change_colours_on_cpu)])
def test_small_pictures_take_the_tensor_code_and_others_opencv(size, change):
    clips = stack_clips([random_frames(seed, 2, size, size) for seed in range(4)])
    augmentation = random_batch(0, 4)
    expected = change(clips, augmentation) if change else change_colours(to_model_input(clips), augmentation)
    assert torch.equal(apply_augmentation(clips, augmentation), expected)


def test_cpu_path_equals_device_path_at_training_size():
    clips = stack_clips([random_frames(seed, 3, 224, 224) for seed in range(6)])
    for seed in range(3):
        augmentation = random_batch(seed, 6, AugmentConfig(blur_probability=(1.0, 1.0)))
        expected = change_colours(to_model_input(clips), augmentation)
        torch.testing.assert_close(change_colours_on_cpu(clips, augmentation), expected, rtol=0, atol=1e-5)


@given(seeds, st.integers(2, 6))
@settings(deadline=None, max_examples=25)
def test_a_clip_is_changed_alike_in_any_batch_and_by_any_number_of_threads(seed, batch):
    clips = stack_clips([random_frames(seed + i, 2, 24, 31) for i in range(batch)])
    augmentation = random_batch(seed, batch)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        together = change_colours_on_cpu(clips, augmentation)
        together_on_device = change_colours(to_model_input(clips), augmentation)
        torch.set_num_threads(1)
        for index in range(batch):
            own = of_clip(augmentation, index)
            alone = change_colours_on_cpu(clips[index : index + 1], own)[0]
            assert torch.equal(together[index], alone)
            alone = change_colours(to_model_input(clips[index : index + 1]), own)[0]
            torch.testing.assert_close(together_on_device[index], alone, rtol=0, atol=1e-6)
    finally:
        torch.set_num_threads(threads)


@given(seeds)
@settings(deadline=None, max_examples=30)
def test_one_draw_for_all_frames_of_a_clip(seed):
    frame = random_frames(seed, 1, 26, 22)
    clip = frame.expand(4, -1, -1, -1)
    crop = sample_crop(np.random.default_rng(seed), 26, 22, AugmentConfig())
    clips = resize_crop(clip, crop, 21, flip=bool(seed % 2))[None]
    for changed in (
        change_colours_on_cpu(clips, random_batch(seed, 1)),
        change_colours(to_model_input(clips), random_batch(seed, 1)),
    ):
        assert torch.equal(changed, changed[:, :, :1].expand_as(changed))


def test_neutral_values_change_no_bit():
    clips = stack_clips([random_frames(seed, 3, 20, 30) for seed in range(3)])
    neutral = Augmentation.collate([Augmentation.neutral()] * 3)
    assert torch.equal(change_colours_on_cpu(clips, neutral), to_model_input(clips))
    assert torch.equal(change_colours(to_model_input(clips), neutral), to_model_input(clips))
    everything_off = AugmentConfig(
        jitter_probability=0, grayscale_probability=0, blur_probability=(0, 0), solarize_probability=(0, 0)
    )
    assert torch.equal(change_colours_on_cpu(clips, random_batch(0, 3, everything_off)), to_model_input(clips))
    no_strength = AugmentConfig(
        brightness=0, contrast=0, saturation=0, hue=0, grayscale_probability=0, blur_probability=(0, 0),
        solarize_probability=(0, 0),
    )  # fmt: skip
    assert torch.equal(change_colours_on_cpu(clips, random_batch(0, 3, no_strength)), to_model_input(clips))


def test_every_order_is_respected():
    """All 24 orders against the operations applied one by one."""
    from itertools import permutations

    orders = np.array(list(permutations(range(4))), np.int8)
    clip = random_frames(1, 2, 20, 24)
    factors = np.array([1.4, 1.6, 0.5, 0.15], np.float32)
    augmentation = Augmentation(
        np.tile(factors, (24, 1)), orders, np.zeros(24, bool), np.zeros(24, np.float32), np.zeros(24, bool)
    )
    operations = (colour.brightness, colour.contrast, colour.saturation, colour.hue)
    results = []
    for order in orders:
        pixels = to_model_input(clip[None])
        for index in order:
            pixels = operations[index](pixels, torch.tensor(factors[index : index + 1]))
        results.append(pixels)
    expected = torch.cat(results)
    clips = stack_clips([clip] * 24)
    torch.testing.assert_close(change_colours(to_model_input(clips), augmentation), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(change_colours_on_cpu(clips, augmentation), expected, rtol=0, atol=1e-5)
    # Saturation and hue commute, brightness and contrast do not: 24 orders give 12 different clips or more.
    assert len({tuple(np.round(clip.flatten().numpy(), 3)) for clip in expected}) >= 12


@pytest.mark.parametrize("factor", [0.3, 0.999, 1.0, 1.001, 1.003, 1.7])
def test_contrast_right_after_brightness_turns_about_the_clipped_mean(factor):
    clips = random_frames(2, 3, 20, 24)[None] // 128 * 255  # half of all pixels white, clipped by the least brightening
    factors = np.array([[factor, 1.5, 1, 0]], np.float32)
    augmentation = Augmentation(
        factors, np.arange(4, dtype=np.int8)[None], np.zeros(1, bool), np.zeros(1, np.float32), np.zeros(1, bool)
    )
    expected = change_colours(to_model_input(clips), augmentation)
    torch.testing.assert_close(change_colours_on_cpu(clips, augmentation), expected, rtol=0, atol=1e-6)


def test_hue_and_brightness_equal_torchvisions():
    clip = random_frames(3, 2, 30, 40)
    pixels = to_model_input(clip[None])
    frames = pixels[0].transpose(0, 1)
    for turns in (-0.5, -0.31, -0.1, 0.07, 0.25, 0.5):
        ours = colour.hue(pixels, torch.tensor([turns]))[0].transpose(0, 1)
        torch.testing.assert_close(ours, tv.adjust_hue(frames, turns), rtol=0, atol=1e-5)
    ours = colour.brightness(pixels, torch.tensor([1.3]))[0].transpose(0, 1)
    torch.testing.assert_close(ours, tv.adjust_brightness(frames, 1.3), rtol=0, atol=1e-6)


def test_colours_in_double_precision_return_after_a_full_turn():
    pixels = to_model_input(random_frames(5, 1, 16, 16)[None]).double()
    turned = pixels
    for turns in (0.3, 0.45, -0.1, 0.35):
        turned = colour.hue(turned, torch.tensor([turns], dtype=torch.float64))
    torch.testing.assert_close(turned, pixels, rtol=0, atol=1e-12)
    back = colour.saturation(colour.saturation(pixels, torch.tensor([0.5]).double()), torch.tensor([2.0]).double())
    torch.testing.assert_close(back, pixels, rtol=0, atol=1e-12)


# Draws


def test_draws_follow_the_table():
    rng, size = np.random.default_rng(0), 4000
    views = [
        Augmentation.collate([draw_augmentation(rng, AugmentConfig(), view) for _ in range(size)]) for view in (0, 1)
    ]
    for drawn, blurred, solarized in zip(views, (1.0, 0.1), (0.0, 0.2), strict=True):
        jittered = (drawn.factors != NEUTRAL).any(1)
        for share, expected in (
            (jittered, 0.8),
            (drawn.grayscale, 0.2),
            (drawn.blur_sigma > 0, blurred),
            (drawn.solarize, solarized),
        ):
            assert abs(share.mean() - expected) < 4 * np.sqrt(expected * (1 - expected) / size) + 1e-9
        low, high = drawn.factors[jittered].min(0), drawn.factors[jittered].max(0)
        np.testing.assert_allclose(low, [0.2, 0.2, 0.2, -0.2], atol=0.01)
        np.testing.assert_allclose(high, [1.8, 1.8, 1.8, 0.2], atol=0.01)
        sigma = drawn.blur_sigma[drawn.blur_sigma > 0]
        assert 0.1 <= sigma.min() < 0.2
        assert 1.9 < sigma.max() <= 2.0
        counts = np.unique(drawn.order @ (64, 16, 4, 1), return_counts=True)[1]
        assert len(counts) == 24
        assert counts.min() > size / 24 * 0.6


def test_turning_one_thing_off_leaves_the_other_draws_alone():
    full = draw_augmentation(np.random.default_rng(7), AugmentConfig(), 1)
    less = draw_augmentation(
        np.random.default_rng(7), AugmentConfig(blur_probability=(0, 0), grayscale_probability=0, hue=0), 1
    )
    np.testing.assert_array_equal(full.factors[:3], less.factors[:3])
    np.testing.assert_array_equal(full.order, less.order)
    assert full.solarize == less.solarize
    assert less.factors[3] == 0


def test_a_drawn_augmentation_is_small_and_survives_pickling():
    drawn = draw_augmentation(np.random.default_rng(0), AugmentConfig(), 0)
    data = pickle.dumps(drawn)
    assert len(data) < 1000
    again = pickle.loads(data)
    batch = Augmentation.collate([drawn, again]).to("cpu")
    assert len(batch) == 2
    for name in Augmentation.__dataclass_fields__:
        values = getattr(batch, name)
        np.testing.assert_array_equal(values[0], values[1])
    with pytest.raises(TypeError, match="collate"):
        len(drawn)


def test_batch_and_augmentation_must_match():
    with pytest.raises(ValueError, match="2 clips, but augmentations for 3"):
        apply_augmentation(stack_clips([random_frames(0, 1, 8, 8)] * 2), random_batch(0, 3))
    with pytest.raises(ValueError, match="view is 2"):
        draw_augmentation(np.random.default_rng(0), AugmentConfig(), 2)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"flip_probability": 1.5}, "flip_probability is 1.5"),
        ({"blur_probability": (1.0, -0.1)}, "blur_probability is -0.1"),
        ({"brightness": -1.0}, "brightness is -1.0"),
        ({"hue": 0.7}, "hue is 0.7"),
        ({"crop_area": (0.5, 1.2)}, "crop_area ends at 1.2"),
        ({"crop_aspect": (2.0, 0.5)}, "smaller one first"),
        ({"blur_sigma": (0.0, 1.0)}, "blur_sigma"),
    ],
)
def test_impossible_recipes_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        AugmentConfig(**values)


def test_stacked_clips_keep_their_memory_layout():
    clips = [random_frames(seed, 3, 10, 12) for seed in range(4)]
    stacked = stack_clips(clips)
    assert torch.equal(stacked, torch.stack(clips))
    assert stacked.permute(0, 1, 3, 4, 2).is_contiguous()
    assert to_model_input(stacked).is_contiguous()
    assert torch.equal(to_model_input(stacked), to_model_input(stacked.contiguous()))


def test_a_worker_stacks_into_shared_memory(monkeypatch):
    clips = [random_frames(seed, 3, 10, 12) for seed in range(4)]
    here = stack_clips(clips)
    monkeypatch.setattr(torch.utils.data._utils.worker, "_worker_info", object())
    assert stack_clips(clips).is_shared()
    assert not here.is_shared()
    assert torch.equal(stack_clips(clips), here)
    assert stack_clips(clips).permute(0, 1, 3, 4, 2).is_contiguous()
