"""Crops, resizing and colours against numbers that the reference code (TensorFlow) made."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from timegrain.data import colour
from timegrain.data.colour import Augmentation, change_colours, gaussian_kernels
from timegrain.data.colour_cpu import change_colours_on_cpu
from timegrain.data.transforms import (
    AugmentConfig,
    apply_augmentation,
    cut_center,
    cut_three,
    resize_crop,
    resize_smallest,
    sample_crop,
    to_model_input,
)
from timegrain.data.video import Crop

OPERATIONS = ("brightness", "contrast", "saturation", "hue")
# Largest difference allowed, of pixels in [0, 1]. Seen: 5e-7 without hue, 9e-7 with it, 1.3e-6 through OpenCV's HSV.
TOLERANCE, CPU_TOLERANCE = 1e-6, 2e-6


@pytest.fixture(scope="module")
def pixel_ops(shared: Path) -> dict[str, np.ndarray]:
    with np.load(shared / "golden/reference-code/pixel_ops.npz") as values:
        return dict(values)


@pytest.fixture(scope="module")
def crop_resize(shared: Path) -> dict[str, np.ndarray]:
    with np.load(shared / "golden/reference-code/crop_resize.npz") as values:
        return dict(values)


def frames_of(images: np.ndarray) -> torch.Tensor:
    """(T, H, W, C) array -> (T, C, H, W) tensor in channels-last memory."""
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2)


def images_of(frames: torch.Tensor) -> np.ndarray:
    return frames.permute(0, 2, 3, 1).numpy()


def single(order: str = "bcsh", **values: float) -> Augmentation:
    """A batch of one clip, neutral but for the values given."""
    neutral = {"brightness": 1, "contrast": 1, "saturation": 1, "hue": 0}
    return Augmentation(
        factors=np.array([[values.get(name, neutral[name]) for name in OPERATIONS]], np.float32),
        order=np.array([["bcsh".index(letter) for letter in order]], np.int8),
        grayscale=np.array([bool(values.get("grayscale", False))]),
        blur_sigma=np.array([values.get("blur_sigma", 0)], np.float32),
        solarize=np.array([bool(values.get("solarize", False))]),
    )


def both_paths(pixel_ops: dict[str, np.ndarray], augmentation: Augmentation) -> list[tuple[np.ndarray, float]]:
    """The golden clip changed by the path for devices and by the one for the CPU, (T, H, W, C), with tolerances."""
    clips = frames_of(pixel_ops["u8"])[None]
    results = [
        (change_colours(to_model_input(clips), augmentation), TOLERANCE),
        (change_colours_on_cpu(clips, augmentation), CPU_TOLERANCE),
    ]
    return [(clip[0].permute(1, 2, 3, 0).numpy(), tolerance) for clip, tolerance in results]


def test_uint8_to_float(pixel_ops):
    np.testing.assert_array_equal(
        to_model_input(frames_of(pixel_ops["u8"])[None])[0].permute(1, 2, 3, 0).numpy(), pixel_ops["f32"]
    )


@pytest.mark.parametrize(
    "name",
    [f"{operation}|{factor}" for operation in OPERATIONS[:3] for factor in (0.2, 0.55, 1.0, 1.37, 1.8)]
    + [f"hue|{turns}" for turns in (-0.2, -0.07, 0.0, 0.1, 0.2)]
    + ["grayscale", "solarize"],
)
def test_one_operation(pixel_ops, name):
    operation, _, value = name.partition("|")
    for result, tolerance in both_paths(pixel_ops, single(**{operation: float(value or 1)})):
        np.testing.assert_allclose(result, pixel_ops[name], rtol=0, atol=tolerance)


@pytest.mark.parametrize("order", ["bcsh", "hscb", "shbc"])
def test_jitter_in_its_order(pixel_ops, order):
    augmentation = single(order, brightness=1.3, contrast=0.6, saturation=1.7, hue=-0.13)
    for result, tolerance in both_paths(pixel_ops, augmentation):
        np.testing.assert_allclose(result, pixel_ops[f"jitter_b1.3_c0.6_s1.7_h-0.13|{order}"], rtol=0, atol=tolerance)


@pytest.mark.parametrize("sigma", [0.1, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("kernel_size", [2, 3, 11, 22])
def test_blur_with_zeros_around(pixel_ops, kernel_size, sigma):
    clip = torch.from_numpy(pixel_ops["f32"]).permute(3, 0, 1, 2)[None]
    kernels = torch.from_numpy(gaussian_kernels(np.float32([sigma]), 2 * (kernel_size // 2) + 1)).float()
    result = colour.blur(clip, kernels)[0].permute(1, 2, 3, 0).numpy()
    np.testing.assert_allclose(result, pixel_ops[f"blur|k{kernel_size}_s{sigma}"], rtol=0, atol=TOLERANCE)


def test_blur_of_a_training_clip_has_23_taps(pixel_ops):
    clips = frames_of(np.repeat(pixel_ops["blur224|in_u8"], 3, 3))[None]
    for result in (
        apply_augmentation(clips, single(blur_sigma=1.3)),
        change_colours(to_model_input(clips), single(blur_sigma=1.3)),
    ):
        np.testing.assert_allclose(
            result[0, 0, 0, :40, :40], pixel_ops["blur224|out_s1.3_rows0_40"][0, ..., 0], rtol=0, atol=TOLERANCE
        )


def test_flip(pixel_ops):
    flipped = resize_crop(frames_of(pixel_ops["u8"]), None, pixel_ops["u8"].shape[1:3], flip=True)
    np.testing.assert_array_equal(images_of(flipped) / np.float32(255), pixel_ops["flip"])


BOXES = ["0_0_60_80_to32", "5_7_40_33_to32", "11_3_20_40_to32", "2_30_57_50_to64", "30_40_24_31_to56"]


@pytest.mark.parametrize("box", BOXES)
def test_resized_crop(crop_resize, box):
    crop, size = Crop(*map(int, box.split("_")[:4])), int(box.split("_to")[1])
    frames = frames_of(crop_resize["frames"])
    truncated = images_of(resize_crop(frames, crop, size, rounding="truncate"))
    np.testing.assert_array_equal(truncated, crop_resize[f"crop_{box}|uint8"])
    nearest = images_of(resize_crop(frames, crop, size)).astype(np.float32)
    np.testing.assert_array_less(np.abs(nearest - crop_resize[f"crop_{box}|float"]), 1.0)  # levels of 255


@pytest.mark.parametrize("case", ["60x80_to48", "80x60_to48", "60x80_to60", "33x71_to40"])
def test_evaluation_views(crop_resize, case):
    (height, width), size = map(int, case.split("_")[0].split("x")), int(case.split("_to")[1])
    images = crop_resize["frames"].transpose(0, 2, 1, 3) if height > width else crop_resize["frames"]
    golden = crop_resize[f"resize_smallest_{case}"]
    resized = resize_smallest(frames_of(images[:, :height, :width]), size)
    np.testing.assert_array_equal(images_of(resized), golden)
    for name in (name for name in crop_resize if name.startswith(f"resize_smallest_{case}|")):
        cut = int(name.split("_")[-1])
        crops = cut_three(resized, cut) if "crop3" in name else [cut_center(resized, cut)]
        np.testing.assert_array_equal(np.concatenate([images_of(crop) for crop in crops]), crop_resize[name])


@pytest.mark.parametrize("case", ["256x340", "256x341", "340x256", "256x256", "256x455", "257x256"])
def test_offsets_of_three_crops(crop_resize, case):
    height, width = map(int, case.split("x"))
    rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    crops = cut_three(torch.from_numpy(np.stack([rows, columns])), 256)
    assert [crop[:, 0, 0].tolist() for crop in crops] == crop_resize[f"crop3_offsets_{case}"].tolist()


@pytest.mark.parametrize(
    "case", ["256x340_area0.3", "340x256_area0.3", "256x256_area0.3", "240x320_area0.3", "256x340_area0.49"]
)
def test_crop_sampler_has_the_reference_distribution(shared, case):
    with np.load(shared / "golden/reference-code/crop_sampling.npz") as values:
        golden = values[f"{case}|boxes_yxhw"].astype(int)
    height, width = map(int, case.split("_")[0].split("x"))
    config = AugmentConfig(crop_area=(float(case.split("area")[1]), 1.0))
    rng = np.random.default_rng(2022)
    boxes = np.array([sample_crop(rng, height, width, config) for _ in range(12_000)])
    assert (boxes[:, 2] * boxes[:, 3] >= config.crop_area[0] * height * width).all()
    assert (boxes >= 0).all()
    assert (boxes[:, 0] + boxes[:, 2] <= height).all()
    assert (boxes[:, 1] + boxes[:, 3] <= width).all()
    for name, of in {
        "top": lambda b: b[:, 0],
        "left": lambda b: b[:, 1],
        "height": lambda b: b[:, 2],
        "width": lambda b: b[:, 3],
        "area": lambda b: b[:, 2] * b[:, 3],
        "aspect": lambda b: b[:, 3] / b[:, 2],
        "room above": lambda b: b[:, 0] / np.maximum(height - b[:, 2], 1),
        "room to the left": lambda b: b[:, 1] / np.maximum(width - b[:, 3], 1),
    }.items():
        assert stats.ks_2samp(of(golden), of(boxes)).pvalue > 1e-3, name
    # Height and width together: counts in a grid of equally full rows and columns.
    edges = [np.unique(np.quantile(golden[:, axis], np.linspace(0, 1, 9))) for axis in (2, 3)]
    for grid in edges:
        grid[-1] += 1
    counts = [np.histogram2d(b[:, 2], b[:, 3], edges)[0].ravel() for b in (golden, boxes)]
    table = np.array(counts)[:, np.sum(counts, 0) > 20]
    assert stats.chi2_contingency(table).pvalue > 1e-3
