"""R3D: sizes, padding, initial weights, and what training tools need of it."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from timegrain.models.resnet3d import BasicBlock, Conv3d, ResNet3D, SpatialMaxPool, r3d18, r3d50, r3d_tiny, same_padding

TINY = {"blocks": (1, 1, 1, 1), "width": 4, "stem_width": 4, "block": "basic", "stem_kernel": (3, 3, 3)}


def num_parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_r3d50_is_the_network_of_the_paper() -> None:
    with torch.device("meta"):
        model = r3d50()
        maps = model.feature_maps(torch.empty(2, 3, 16, 224, 224))
        features = model(torch.empty(2, 3, 16, 224, 224))
    assert num_parameters(model) == 31_672_128
    assert {name: tuple(value.shape) for name, value in maps.items()} == {
        "2": (2, 256, 8, 56, 56),
        "3": (2, 512, 8, 28, 28),
        "4": (2, 1024, 8, 14, 14),
        "5": (2, 2048, 8, 7, 7),
    }
    assert features.shape == (2, 8, 2048)
    kernels = [stage[0].temporal_conv.kernel_size[0] for stage in model.stages.values()]
    assert kernels == [1, 1, 3, 3]
    assert [stage[0].spatial_conv.stride for stage in model.stages.values()] == [(1, 1, 1)] + [(1, 2, 2)] * 3
    assert not any("bias" in name and "conv" in name for name, _ in model.named_parameters())


@pytest.mark.parametrize(("build", "features"), [(r3d18, 512), (r3d_tiny, 96)])
def test_small_backbones(build: type[ResNet3D], features: int) -> None:
    with torch.device("meta"):
        model = build()
        out = model(torch.empty(1, 3, 16, 112, 112))
        dense = build(stem_temporal_stride=1)(torch.empty(1, 3, 16, 32, 32))
    assert model.num_features == features
    assert out.shape == (1, model.num_time_steps(16), features)
    assert dense.shape == (1, 16, features)
    assert isinstance(model.stages["2"][0], BasicBlock)


def test_width_stem_and_block_are_settings() -> None:
    with torch.device("meta"):
        model = ResNet3D(blocks=(1, 2, 1, 1), width=8, stem_width=6, stem_kernel=(3, 5, 5), stem_spatial_stride=4,
                         stem_pool=False, temporal_kernels=(3, 1, 5, 1), in_channels=1)  # fmt: skip
        maps = model.feature_maps(torch.empty(1, 1, 9, 64, 48))
    assert [tuple(value.shape[1:]) for value in maps.values()] == [
        (32, 5, 16, 12), (64, 5, 8, 6), (128, 5, 4, 3), (256, 5, 2, 2),
    ]  # fmt: skip
    assert model.stages["4"][0].temporal_conv.kernel_size == (5, 1, 1)


@given(size=st.integers(1, 300), kernel=st.sampled_from([1, 3, 5, 7]), stride=st.integers(1, 4))
def test_same_padding_covers_every_start_and_no_more(size: int, kernel: int, stride: int) -> None:
    before, after = same_padding(size, kernel, stride)
    outputs = (size + before + after - kernel) // stride + 1
    assert outputs == math.ceil(size / stride)
    assert after - before in (0, 1)


def test_same_padding_of_the_reference_sizes() -> None:
    assert same_padding(224, 7, 2) == (2, 3)
    assert same_padding(16, 5, 2) == (1, 2)
    assert same_padding(112, 3, 2) == (0, 1)
    assert same_padding(7, 5, 2) == (2, 2)
    assert same_padding(45, 7, 2) == (3, 3)


@pytest.mark.parametrize("shape", [(4, 6, 8), (5, 7, 9), (4, 7, 8), (1, 1, 2)])
def test_convolution_pads_as_an_explicit_pad_would(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    conv = Conv3d(2, 3, (5, 7, 7), (2, 2, 2)).double()
    x = torch.randn(2, 2, *shape, dtype=torch.float64)
    pads = [amount for n, k in zip(reversed(shape), (7, 7, 5), strict=True) for amount in same_padding(n, k, 2)]
    torch.testing.assert_close(conv(x), F.conv3d(F.pad(x, pads), conv.weight, stride=2))


@pytest.mark.parametrize("shape", [(6, 8), (7, 9), (6, 9), (1, 2), (2, 1)])
def test_pool_pads_with_minus_infinity(shape: tuple[int, int]) -> None:
    x = torch.randn(2, 3, 2, *shape) - 10  # all negative: a pad of zero would win
    pads = [amount for n in reversed(shape) for amount in same_padding(n, 3, 2)]
    expected = F.max_pool3d(F.pad(x, pads, value=-math.inf), (1, 3, 3), (1, 2, 2))
    torch.testing.assert_close(SpatialMaxPool("same")(x), expected)
    symmetric = F.max_pool3d(F.pad(x, [1, 1, 1, 1], value=-math.inf), (1, 3, 3), (1, 2, 2))
    torch.testing.assert_close(SpatialMaxPool("symmetric")(x), symmetric)


@pytest.fixture(scope="module")
def models_of_each_padding() -> list[ResNet3D]:
    return [
        ResNet3D(**TINY, padding=padding, stem_temporal_stride=stride).eval()
        for padding in ("same", "symmetric")
        for stride in (1, 2)
    ]


@given(frames=st.integers(1, 9), height=st.integers(1, 40), width=st.integers(1, 40))
def test_any_size_works(models_of_each_padding: list[ResNet3D], frames: int, height: int, width: int) -> None:
    for model in models_of_each_padding:
        out = model(torch.zeros(1, 3, frames, height, width))
        assert out.shape == (1, model.num_time_steps(frames), 32)


def test_time_is_seen_through_the_temporal_kernels_only() -> None:
    torch.manual_seed(0)
    model = ResNet3D(**TINY, stem_temporal_stride=1, temporal_kernels=(1, 1, 3, 1)).eval()
    x = torch.rand(1, 3, 12, 16, 16)
    y = x.clone()
    y[:, :, 6] += 1
    changed = (model(x) - model(y)).abs().sum(2)[0].detach().numpy() > 1e-7
    # the stem's 3 and one kernel of 3: two steps to each side
    assert np.flatnonzero(changed).tolist() == [4, 5, 6, 7, 8]


def test_initial_weights_are_variance_scaling_truncated_at_two_sigma() -> None:
    torch.manual_seed(0)
    conv = Conv3d(64, 128, (3, 3, 3))
    fan_in = 64 * 27
    assert conv.weight.std().item() == pytest.approx(fan_in**-0.5, rel=0.01)
    assert conv.weight.abs().max().item() <= 2 * fan_in**-0.5 / 0.8796256610342398 * 1.0001
    model = r3d_tiny()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm3d):
            assert (module.momentum, module.eps) == (0.1, 1e-5)
            assert bool((module.weight == 1).all() and (module.bias == 0).all())  # the last norm of a block too


def test_checkpointing_changes_memory_and_nothing_else() -> None:
    x = torch.rand(3, 3, 4, 16, 16)
    results = []
    for checkpoint_stages in (False, True):
        torch.manual_seed(0)
        model = ResNet3D(**TINY, checkpoint_stages=checkpoint_stages)
        for _ in range(2):
            model.zero_grad()
            model(x).square().sum().backward()
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        results.append((model.state_dict(), gradients))
    for plain, checkpointed in zip(*results, strict=True):
        for name, value in plain.items():
            assert torch.equal(value, checkpointed[name]), name
    saved = [0, 0]
    for index, flag in enumerate((False, True)):
        model = ResNet3D(**TINY, checkpoint_stages=flag)

        def count(tensor: torch.Tensor, index: int = index) -> torch.Tensor:
            saved[index] += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            model(x)
    assert saved[1] < saved[0]


@pytest.mark.parametrize("padding", ["same", "symmetric"])
def test_channels_last_gives_the_same_features_and_stays_channels_last(padding: str) -> None:
    torch.manual_seed(0)
    model = ResNet3D(**TINY, padding=padding).eval()
    x = torch.rand(2, 3, 4, 18, 16)
    expected = model(x)
    model = model.to(memory_format=torch.channels_last_3d)
    x = x.to(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(model(x), expected)
    for value in model.feature_maps(x).values():
        assert value.is_contiguous(memory_format=torch.channels_last_3d)


def test_autocast_to_bfloat16() -> None:
    torch.manual_seed(0)
    model = ResNet3D(**TINY).eval()
    x = torch.rand(2, 3, 4, 16, 16)
    expected = model(x)
    with torch.autocast("cpu", torch.bfloat16):
        out = model(x)
    assert out.dtype == torch.bfloat16
    assert F.cosine_similarity(out.float(), expected, dim=2).min() > 0.99


def test_compiles_to_one_graph() -> None:
    """In a process of its own: the shape checks that the tests install are not part of what users compile."""
    code = """
import torch
from timegrain.models.resnet3d import r3d_tiny
model = r3d_tiny(padding="same").eval()
x = torch.rand(2, 3, 4, 18, 17)
compiled = torch.compile(model, backend="eager", fullgraph=True)
torch.testing.assert_close(compiled(x), model(x))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_checkpointing_compiled_counts_a_batch_once() -> None:
    code = """
import torch
from timegrain.models.resnet3d import r3d_tiny
x = torch.rand(2, 3, 4, 18, 17, dtype=torch.float64)  # eager, matrix products stand in for some convolutions
results = []
for compiled in (False, True):
    torch.manual_seed(0)
    model = r3d_tiny(width=4, checkpoint_stages=compiled).double()
    run = torch.compile(model, backend="aot_eager", fullgraph=True) if compiled else model
    for _ in range(2):
        run(x).square().sum().backward()
    results.append(dict(model.named_buffers()) | {name: p.grad for name, p in model.named_parameters()})
for name, value in results[0].items():
    torch.testing.assert_close(results[1][name], value, msg=name)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"padding": "valid"}, "padding"),
        ({"block": "wide"}, "block"),
        ({"blocks": (1, 1, 1, 10**9)}, "from 1 to 1,000"),
        ({"blocks": (1, 1, 1)}, "blocks must be 4 whole numbers"),
        ({"temporal_kernels": (1, 1, 2, 3)}, "temporal_kernels must be 4 odd numbers"),
        ({"stem_kernel": (5, 7)}, "stem_kernel"),
        ({"width": 0}, "width must be a whole number from 1 to 1,048,576; got 0"),
        ({"stem_temporal_stride": 0}, "stem_temporal_stride"),
    ],
)
def test_impossible_settings_are_named(options: dict[str, object], message: str) -> None:
    # through the plain function, so that the type check of the tests does not come first
    with pytest.raises((ValueError, TypeError), match=message):
        r3d_tiny(**options)


def test_num_time_steps() -> None:
    with torch.device("meta"):
        model = r3d50()
    assert [model.num_time_steps(n) for n in (1, 7, 16, 32)] == [1, 4, 8, 16]
    with pytest.raises(ValueError, match="at least one frame"):
        model.num_time_steps(0)
