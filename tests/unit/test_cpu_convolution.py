"""Convolutions as CPUs compute them: the same numbers as PyTorch's, forwards and backwards, and channels-last."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from timegrain.models import cpu_convolution
from timegrain.models.blocks import Conv3d
from timegrain.models.cpu_convolution import LAYOUT, convolve_on_cpu, suits_cpu
from timegrain.models.resnet3d import r3d_tiny


@settings(max_examples=80, deadline=None)
@given(
    kernel=st.sampled_from([(1, 1, 1), (3, 1, 1), (5, 1, 1), (1, 3, 3), (3, 3, 3), (1, 5, 3)]),
    strides=st.tuples(*[st.integers(1, 3)] * 3),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 7), st.integers(3, 6), st.integers(3, 6)),
    is_padded=st.booleans(),
    layouts=st.tuples(st.booleans(), st.booleans()),
    fewest=st.sampled_from([1, 32]),
)
def test_values_and_gradients_are_those_of_a_convolution(kernel, strides, shape, is_padded, layouts, fewest):
    padding = [k // 2 if is_padded else 0 for k in kernel]
    generator = torch.Generator().manual_seed(0)
    sizes = [max(n, 1 if is_padded else k) for n, k in zip(shape[2:], kernel, strict=True)]
    shape = (*shape[:2], *sizes)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    weight = torch.randn(5, shape[1], *kernel, generator=generator, dtype=torch.float64)
    x, weight = (
        value.contiguous(memory_format=LAYOUT if is_last else torch.contiguous_format)
        for value, is_last in zip((x, weight), layouts, strict=True)
    )
    inputs = x.requires_grad_(), weight.requires_grad_()
    expected = F.conv3d(*inputs, None, strides, padding)
    towards = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu_convolution, "_FEWEST_CHANNELS", fewest)
        found = convolve_on_cpu(*inputs, strides, padding)
        torch.testing.assert_close(found, expected)
        gradients = torch.autograd.grad(found, inputs, towards)
    for a, b in zip(gradients, torch.autograd.grad(expected, inputs, towards), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("kernel", [(1, 1, 1), (3, 1, 1), (1, 3, 3), (3, 3, 3)])
@pytest.mark.parametrize(("which", "other"), [(0, 1), (1, 0)])
def test_only_the_gradient_asked_for_is_made(kernel, which, other):
    inputs = [torch.randn(2, 32, 4, 5, 5), torch.randn(4, 32, *kernel)]
    inputs[which].requires_grad_()
    convolve_on_cpu(*inputs, (1, 1, 1), [k // 2 for k in kernel]).sum().backward()
    assert inputs[which].grad is not None
    assert inputs[other].grad is None


def test_what_is_computed_so(monkeypatch):
    clips = torch.zeros(1, 4, 8, 8, 8)
    assert suits_cpu(clips)
    assert suits_cpu(clips.double())
    assert not suits_cpu(clips.bfloat16())
    assert not suits_cpu(clips.to("meta"))
    with torch.autocast("cpu"):
        assert not suits_cpu(clips)
        assert Conv3d(4, 4, (1, 1, 1))(clips).dtype == torch.bfloat16
    monkeypatch.setattr(cpu_convolution, "_HAS_ONEDNN", False)
    assert not suits_cpu(clips)


@pytest.mark.parametrize("padding", ["same", "symmetric"])
@pytest.mark.parametrize("block", ["bottleneck", "basic"])
def test_a_network_turns_channels_last_at_its_first_convolution(padding, block):
    layouts = []
    network = r3d_tiny(block=block, padding=padding)
    for layer in network.modules():
        if isinstance(layer, nn.Conv3d | nn.BatchNorm3d):
            layer.register_forward_hook(lambda _, __, out: layouts.append(out.is_contiguous(memory_format=LAYOUT)))
    network(torch.rand(2, 3, 8, 33, 32))
    assert all(layouts)


def test_a_network_learns_the_same_with_and_without(monkeypatch):
    torch.manual_seed(0)
    network = r3d_tiny(block="bottleneck").double()
    clips = torch.rand(2, 3, 8, 48, 48, dtype=torch.float64)

    def gradients():
        network.zero_grad()
        features = network(clips)
        features.square().sum().backward()
        return [features.detach(), *(p.grad.clone() for p in network.parameters())]

    found = gradients()
    used = []
    monkeypatch.setattr("timegrain.models.blocks.suits_cpu", lambda *_: used.append(1) and False)
    for a, b in zip(found, gradients(), strict=True):
        torch.testing.assert_close(a, b)
    assert used
