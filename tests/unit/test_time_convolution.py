"""Convolutions over one place of a picture as matrix products: the same numbers as PyTorch's, forwards and backwards."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from timegrain.models.blocks import Conv3d
from timegrain.models.resnet3d import r3d_tiny
from timegrain.models.time_convolution import convolve_by_products, suits_products


@settings(max_examples=60, deadline=None)
@given(
    kernel=st.sampled_from([1, 3, 5]),
    strides=st.tuples(*[st.integers(1, 3)] * 3),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 7), st.integers(1, 6), st.integers(1, 6)),
    channels_last=st.booleans(),
)
def test_values_and_gradients_are_those_of_a_convolution(kernel, strides, shape, channels_last):
    strides = (strides[0] if kernel == 1 else 1, *strides[1:])
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last_3d)
    weight = torch.randn(5, shape[1], kernel, 1, 1, generator=generator, dtype=torch.float64)
    inputs = x.requires_grad_(), weight.requires_grad_()
    expected = F.conv3d(*inputs, None, strides, (kernel // 2, 0, 0))
    found = convolve_by_products(*inputs, strides)
    torch.testing.assert_close(found, expected)
    towards = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    for a, b in zip(
        torch.autograd.grad(found, inputs, towards), torch.autograd.grad(expected, inputs, towards), strict=True
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(("which", "other"), [(0, 1), (1, 0)])
def test_only_the_gradient_asked_for_is_made(which, other):
    inputs = [torch.randn(2, 3, 4, 5, 5), torch.randn(4, 3, 3, 1, 1)]
    inputs[which].requires_grad_()
    convolve_by_products(*inputs, (1, 1, 1)).sum().backward()
    assert inputs[which].grad is not None
    assert inputs[other].grad is None


def test_which_convolutions_are_products():
    clips = torch.zeros(1, 4, 8, 8, 8)
    assert suits_products(clips, (1, 1, 1), (1, 2, 2))
    assert suits_products(clips, (3, 1, 1), (1, 1, 1))
    assert not suits_products(clips, (1, 3, 3), (1, 1, 1))
    assert not suits_products(clips, (3, 1, 1), (2, 1, 1))
    assert not suits_products(clips.bfloat16(), (1, 1, 1), (1, 1, 1))
    assert not suits_products(clips.to("meta"), (1, 1, 1), (1, 1, 1))
    assert not suits_products(clips[:, :, :1, :4, :4], (1, 1, 1), (1, 1, 1))
    with torch.autocast("cpu"):
        assert not suits_products(clips, (1, 1, 1), (1, 1, 1))
        assert Conv3d(4, 4, (1, 1, 1))(clips).dtype == torch.bfloat16


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
    monkeypatch.setattr("timegrain.models.blocks.suits_products", lambda *_: used.append(1) and False)
    for a, b in zip(found, gradients(), strict=True):
        torch.testing.assert_close(a, b)
    assert used
