"""Projection heads."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from timegrain.models.heads import ProjectionHead


def test_the_reference_head_has_its_number_of_parameters() -> None:
    with torch.device("meta"):
        head = ProjectionHead(2048)
    assert sum(parameter.numel() for parameter in head.parameters()) == 12_863_616
    assert [type(layer).__name__ for layer in head.layers] == ["Linear", "BatchNorm1d", "ReLU"] * 3 + ["Linear"]
    norms = [layer for layer in head.layers if isinstance(layer, nn.BatchNorm1d)]
    assert {(norm.momentum, norm.eps) for norm in norms} == {(0.003, 1e-5)}


def test_hidden_layers_can_do_without_norms() -> None:
    head = ProjectionHead(6, 8, 2, 4, norm=False)
    assert [type(layer).__name__ for layer in head.layers] == ["Linear", "ReLU"] * 2 + ["Linear"]


def test_initial_weights_are_glorot_uniform_and_biases_zero() -> None:
    torch.manual_seed(0)
    head = ProjectionHead(300, 200, 1, 50)
    for layer in head.layers:
        if isinstance(layer, nn.Linear):
            limit = (6 / (layer.in_features + layer.out_features)) ** 0.5
            assert layer.weight.abs().max().item() <= limit
            assert layer.weight.std().item() == pytest.approx(limit / 3**0.5, rel=0.02)
            assert not layer.bias.any()


def test_leading_axes_are_one_batch_of_rows() -> None:
    torch.manual_seed(0)
    head = ProjectionHead(6, 8, 2, 4)
    features = torch.randn(3, 5, 6)
    steps = head(features)
    assert steps.shape == (3, 5, 4)
    first_norm = head.layers[1]
    rows = head.layers[0](features.reshape(15, 6))
    torch.testing.assert_close(first_norm.running_mean, 0.003 * rows.mean(0))
    torch.testing.assert_close(steps.reshape(15, 4), head(features.reshape(15, 6)))
    head.eval()
    torch.testing.assert_close(head(features)[1, 2], head(features[1, 2]))


def test_no_hidden_layer_is_one_linear_layer() -> None:
    head = ProjectionHead(6, num_hidden=0, out_features=4)
    x = torch.randn(2, 6)
    torch.testing.assert_close(head(x), x @ head.layers[0].weight.T + head.layers[0].bias)


def test_norm_momentum_is_an_option() -> None:
    assert ProjectionHead(6, 8, 1, 4, norm_momentum=0.1).layers[1].momentum == 0.1


@pytest.mark.parametrize("sizes", [(0, 8, 1, 4), (6, 0, 1, 4), (6, 8, -1, 4), (6, 8, 10**9, 4), (6, 8, 1, 0)])
def test_impossible_sizes(sizes: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="sizes of at least 1"):
        ProjectionHead(*sizes)


@pytest.mark.parametrize("mode", ["training", "evaluation", "no norms"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_several_groups_at_once_give_what_one_after_the_other_gives(mode: str, dtype: torch.dtype) -> None:
    """Values, gradients, running statistics and their counts."""
    torch.manual_seed(0)
    head = ProjectionHead(12, 16, 3, 4, norm=mode != "no norms", norm_momentum=0.3).to(dtype)
    head.train(mode != "evaluation")
    twin = copy.deepcopy(head)
    groups = [torch.randn(*shape, 12, dtype=dtype).requires_grad_() for shape in ((3, 5), (4,), (2, 2))]
    towards = [torch.randn(*group.shape[:-1], 4, dtype=dtype) for group in groups]

    def results(module: ProjectionHead, outputs: list[torch.Tensor]) -> list[torch.Tensor]:
        gradients = torch.autograd.grad(outputs, [*groups, *module.parameters()], towards)
        return [*outputs, *gradients, *module.buffers()]

    together = results(head, head.project_each(groups))
    for ours, other in zip(together, results(twin, [twin(group) for group in groups]), strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-6, atol=1e-6)


def test_each_norm_is_called_once_for_each_group() -> None:
    """Norms over several processes exchange their statistics at every call."""
    head, seen = ProjectionHead(6, 8, 2, 4), []
    for layer in head.layers:
        if isinstance(layer, nn.BatchNorm1d):
            layer.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    head.project_each([torch.randn(3, 2, 6), torch.randn(5, 6)])
    assert seen == [6, 5, 6, 5]
