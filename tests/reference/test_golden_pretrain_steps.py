"""Five pre-training steps of the reference family's code, from the clips to the weights (``pretrain_steps``).

A narrow R3D-50 with its head, 8 videos x 2 clips of 8 x 32 x 32 pixels, float64, weight decay 0.01, a rate that warms up
and then follows its cosine. Everything of ours that such a step needs takes part: conversion of the weights, network,
head, loss, parameter groups, optimiser, schedule.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from timegrain.models.convert import encoder_from_tf_tensors, from_tf_tensors
from timegrain.objectives.cvrl import CVRL
from timegrain.optim import OptimConfig, build_optimizer, schedule

WEIGHT_DECAY = 0.01
NUM_STEPS = 5
# The golden run's schedule: lr0, warm-up steps, total steps (its five rates are in the file and are checked).
BASE_RATE, WARMUP_STEPS, TOTAL_STEPS = 5e-7, 2, 8

Arrays = dict[str, np.ndarray]


def arrays(path: Path) -> Arrays:
    with np.load(path) as file:
        return dict(file)


@pytest.fixture(scope="module")
def golden(shared: Path) -> Arrays:
    return arrays(shared / "golden/reference-code/pretrain_steps_narrow_float64.npz")


@pytest.fixture(scope="module")
def start(shared: Path) -> Arrays:
    return arrays(shared / "golden/reference-code/weights_narrow.npz")


def with_prefix(golden: Arrays, prefix: str) -> Arrays:
    return {name.removeprefix(prefix): value for name, value in golden.items() if name.startswith(prefix)}


def objective(start: Arrays) -> CVRL:
    """The golden network in float64 and training mode."""
    encoder = encoder_from_tf_tensors(start, head="persistent")
    return CVRL(encoder.double().train(), temperature=0.1)


def clips(golden: Arrays) -> tuple[Tensor, Tensor]:
    """First and second clips, (8, 3, 8, 32, 32) each: the reference's rows are all first clips, then all second ones."""
    first, second = torch.tensor(golden["x"]).double().permute(0, 4, 1, 2, 3).chunk(2)
    return first, second


def losses_of(module: CVRL, first: Tensor, second: Tensor) -> dict[str, Tensor]:
    positions = torch.zeros(len(first), first.shape[2], dtype=torch.long)
    return module([first, second], [positions, positions])


def kernels(module: nn.Module) -> list[nn.Parameter]:
    return [parameter for name, parameter in module.named_parameters() if parameter.ndim > 1]


def penalty(module: nn.Module) -> float:
    """The reference's weight decay as it counts in its loss: wd/2 of the squared kernels."""
    return float(sum(0.5 * WEIGHT_DECAY * kernel.detach().square().sum() for kernel in kernels(module)))


def test_first_step(golden: Arrays, start: Arrays) -> None:
    """Embedding, losses, metrics, and the gradient of each of the 173 variables."""
    module = objective(start)
    first, second = clips(golden)
    ours = losses_of(module, first, second)
    embedding = module.project(torch.cat([first, second])).detach()
    np.testing.assert_allclose(embedding, golden["step0|embedding"], rtol=0, atol=1e-11)
    loss = ours["loss"].item()
    np.testing.assert_allclose(loss + penalty(module), golden["step0|total_loss"], rtol=1e-12)
    np.testing.assert_allclose(penalty(module), golden["step0|reg_loss"], rtol=1e-12)
    np.testing.assert_allclose(ours["accuracy"].item(), golden["step0|contrast_acc"])
    np.testing.assert_allclose(ours["entropy"].item(), golden["step0|contrast_entropy"], rtol=1e-11)

    ours["loss"].backward()
    for kernel in kernels(module):
        kernel.grad.add_(kernel.detach(), alpha=WEIGHT_DECAY)
    # Running statistics have no gradient; theirs are only there to make the set complete.
    expected = from_tf_tensors({**start, **with_prefix(golden, "grad0|")}, head="persistent")
    parameters = dict(module.encoder.named_parameters())
    assert len(parameters) == 173 == len(with_prefix(golden, "grad0|"))
    for name, parameter in parameters.items():
        wanted = expected[name].numpy()
        np.testing.assert_allclose(
            parameter.grad, wanted, rtol=0, atol=1e-11 * max(1.0, float(np.abs(wanted).max())), err_msg=name
        )


def rows_of_norms(module: nn.Module, first: Tensor, second: Tensor) -> dict[str, int]:
    """How many values each channel of each batch norm sees in one step."""
    counts: dict[str, int] = {}
    hooks = [
        layer.register_forward_hook(
            lambda _, inputs, __, name=name: counts.update({name: inputs[0].numel() // inputs[0].shape[1]})
        )
        for name, layer in module.named_modules()
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm3d)
    ]
    module.project(torch.cat([first, second]))
    for hook in hooks:
        hook.remove()
    return counts


def train(module: CVRL, name: str, golden: Arrays) -> list[float]:
    """Five steps by our own optimiser and schedule; the total loss before each."""
    first, second = clips(golden)
    config = OptimConfig(name=name, learning_rate=BASE_RATE, momentum=0.9, weight_decay=WEIGHT_DECAY)
    optimizer = build_optimizer(module, config)
    factor = schedule(warmup_steps=WARMUP_STEPS, total_steps=TOTAL_STEPS)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    losses = []
    for step in range(NUM_STEPS):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(float(golden[f"lr|{step}"]), rel=1e-6)
        optimizer.zero_grad()
        loss = losses_of(module, first, second)["loss"]
        losses.append(loss.item() + penalty(module))
        loss.backward()
        optimizer.step()
        scheduler.step()
    return losses


def test_five_steps(golden: Arrays, start: Arrays) -> None:
    """Every loss on the way, every weight and every running statistic after it."""
    module = objective(start)
    counts = rows_of_norms(objective(start), *clips(golden))
    before = {name: value.clone() for name, value in module.encoder.state_dict().items()}
    losses = train(module, "reference_sgd", golden)
    # The golden rates are float32: from the second moving step on that is all the difference there is.
    np.testing.assert_allclose(losses, [golden[f"loss|{step}"] for step in range(NUM_STEPS)], rtol=3e-9)

    expected = from_tf_tensors(with_prefix(golden, "after|"), head="persistent")
    way = 0.0
    for name, value in module.encoder.state_dict().items():
        if name.endswith("num_batches_tracked"):
            assert int(value) == NUM_STEPS
            continue
        wanted, tolerance = expected[name], 1e-10
        if name.endswith("running_var"):
            # PyTorch keeps the unbiased variance of a batch, the reference's synchronised norm the biased one.
            layer = name.removesuffix(".running_var")
            count = counts[f"encoder.{layer}"]
            kept = before[name] * (1 - module.encoder.get_submodule(layer).momentum) ** NUM_STEPS
            value = kept + (value - kept) * (count - 1) / count
        if "running" in name:
            tolerance = 3e-8 * max(1.0, float(wanted.abs().max()))  # the reference holds 1 - momentum in float32
        else:
            way += float((wanted - before[name]).square().sum())
        torch.testing.assert_close(value, wanted, rtol=0, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}")
    assert way**0.5 > 3e-3  # the tolerance is small beside the way that the weights have gone


def test_the_steps_would_catch_torch_sgd(golden: Arrays, start: Arrays) -> None:
    """With the rate outside the velocity the same five steps end elsewhere."""
    module = objective(start)
    train(module, "sgd", golden)
    expected = from_tf_tensors(with_prefix(golden, "after|"), head="persistent")
    distance = max(float((p.detach() - expected[name]).abs().max()) for name, p in module.encoder.named_parameters())
    assert distance > 1e-5
