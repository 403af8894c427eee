"""Batch norm as CPUs compute it: PyTorch's numbers, and no digits lost in long sums."""

import copy

import pytest
import torch
from torch import nn

from timegrain.models.cpu_convolution import LAYOUT
from timegrain.models.cpu_norm import Norm3d


def twins(channels: int, **options) -> tuple[Norm3d, nn.BatchNorm3d]:
    ours, other = Norm3d(channels, **options), nn.BatchNorm3d(channels, **options)
    if ours.affine:
        nn.init.uniform_(ours.weight, 0.5, 2)
        nn.init.normal_(ours.bias)
    other.load_state_dict(copy.deepcopy(ours.state_dict()))
    return ours, other


@pytest.mark.parametrize("shape", [(2, 3, 4, 5, 6), (1, 3, 1, 2, 1), (3, 2, 1, 1, 1), (1, 2, 3, 1, 1)])
@pytest.mark.parametrize("is_last", [True, False])
@pytest.mark.parametrize("options", [{}, {"momentum": 0.0}, {"momentum": None}, {"affine": False}])
def test_values_gradients_and_running_statistics_are_those_of_pytorch(shape, is_last, options):
    torch.manual_seed(0)
    ours, other = (module.double() for module in twins(shape[1], **options))
    x = torch.randn(shape, dtype=torch.float64)
    x = x.contiguous(memory_format=LAYOUT if is_last else torch.contiguous_format).requires_grad_()
    towards = torch.randn(shape, dtype=torch.float64)
    results = []
    for module in (ours, other):
        outputs = [module(x), module(2 * x + 1)]
        gradients = torch.autograd.grad(sum((out * towards).sum() for out in outputs), [x, *module.parameters()])
        results.append([*outputs, *gradients, *module.buffers(), module.eval()(x)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


def test_gradients_are_those_of_the_function():
    torch.manual_seed(0)
    norm = Norm3d(2).double()
    x = torch.randn(2, 2, 2, 3, 2, dtype=torch.float64).contiguous(memory_format=LAYOUT).requires_grad_()
    assert torch.autograd.gradcheck(norm, x)


def test_only_the_gradients_asked_for_are_made():
    norm = Norm3d(3)
    norm.bias.requires_grad_(False)
    norm(torch.randn(2, 3, 2, 4, 4).contiguous(memory_format=LAYOUT)).square().sum().backward()
    assert norm.weight.grad is not None
    assert norm.bias.grad is None


def test_many_values_lose_no_digits():
    torch.manual_seed(0)
    norm = Norm3d(8)
    x = (2 * torch.randn(8, 8, 16, 48, 48) + 3).contiguous(memory_format=LAYOUT)
    expected = nn.functional.batch_norm(x.double(), None, None, training=True)
    assert (norm(x) - expected).abs().max() < 2e-6  # PyTorch's own is 100 times as far off


def test_a_single_value_a_channel_is_refused():
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        Norm3d(3)(torch.zeros(1, 3, 1, 1, 1))
