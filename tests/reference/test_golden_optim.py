"""The reference family's optimisers and schedules, step for step (golden ``optimizers`` and ``lr_schedules``)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from timegrain.optim import ReferenceLARS, ReferenceSGD, schedule, warmup_cosine

NAMES = (
    "conv3d|kernel",
    "dense|kernel",
    "dense|bias",
    "batch_normalization|gamma",
    "batch_normalization|beta",
    "zero|kernel",
)
WEIGHT_DECAY = 0.01


def arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return dict(file)


def make(kind: str, weights: dict[str, torch.Tensor]) -> torch.optim.Optimizer:
    """The optimiser of that name, as the golden run was configured."""
    if kind.startswith("sgd"):
        return ReferenceSGD(weights.values(), lr=0.0, momentum=0.9, nesterov=kind.endswith("nesterov"))
    # Unless nothing is excluded, biases and normalisation have neither weight decay nor layer adaptation.
    groups = [
        {"params": [weight], "weight_decay": WEIGHT_DECAY * used, "layer_adaptation": used}
        for name, weight in weights.items()
        for used in [kind == "lars_noexclude" or name.endswith("kernel")]
    ]
    return ReferenceLARS(
        groups, lr=0.0, momentum=0.9, nesterov=kind.endswith("nesterov"), classic_momentum=kind != "lars_popular"
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "kind", ["sgd", "sgd_nesterov", "lars_classic", "lars_classic_nesterov", "lars_popular", "lars_noexclude"]
)
def test_four_steps_with_a_moving_rate(shared: Path, kind: str, dtype: torch.dtype) -> None:
    golden = arrays(shared / "golden/reference-code/optimizers.npz")
    weights = {name: torch.tensor(golden[f"init|{name}"], dtype=dtype).requires_grad_() for name in NAMES}
    optimizer = make(kind, weights)
    # The reference keeps LARS's velocity as something to subtract and SGD's as something to add, and so do we.
    for step in range(4):
        for name, weight in weights.items():
            weight.grad = torch.tensor(golden[f"grad{step}|{name}"], dtype=dtype)
        for group in optimizer.param_groups:
            group["lr"] = float(golden["lr"][step])
        optimizer.step()
        for name, weight in weights.items():
            for what, ours in (("param", weight.detach()), ("momentum", optimizer.state[weight]["velocity"])):
                expected = golden[f"{kind}|step{step}|{what}|{name}"]
                # The golden values are float32: a few of its roundings, relative to the tensor's largest number.
                tolerance = 1e-6 * float(np.abs(expected).max())
                np.testing.assert_allclose(ours, expected, rtol=0, atol=tolerance, err_msg=f"{what} {name} {step}")


def test_the_vectors_would_catch_torch_sgd(shared: Path) -> None:
    """The rate moves in the golden run, so PyTorch's own SGD must not reproduce it."""
    golden = arrays(shared / "golden/reference-code/optimizers.npz")
    weight = torch.tensor(golden["init|dense|kernel"]).requires_grad_()
    optimizer = torch.optim.SGD([weight], lr=0.0, momentum=0.9)
    for step in range(4):
        weight.grad = torch.tensor(golden[f"grad{step}|dense|kernel"])
        optimizer.param_groups[0]["lr"] = float(golden["lr"][step])
        optimizer.step()
    assert np.abs(weight.detach().numpy() - golden["sgd|step3|param|dense|kernel"]).max() > 1e-3


# base rate, warm-up and total steps; the first two from the published configurations.
SCHEDULES = {
    "cvrl_pretrain_k600_200ep": (0.32, 1787, 71488),
    "cvrl_linear_k600": (32.0, 1787, 35744),
    "toy": (1.0, 5, 20),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedule(shared: Path, name: str) -> None:
    golden = arrays(shared / "golden/reference-code/lr_schedules.npz")
    base, warmup, total = SCHEDULES[name]
    steps, expected = golden[f"{name}|steps"], golden[f"{name}|lr"]
    ours = [warmup_cosine(int(s), base_lr=base, warmup_steps=warmup, total_steps=total) for s in steps]
    np.testing.assert_allclose(ours, expected, rtol=0, atol=2e-7 * base)  # the reference computes in float32
    factor = schedule(warmup_steps=warmup, total_steps=total)
    np.testing.assert_allclose([base * factor(int(s)) for s in steps], ours, rtol=1e-12)
    assert ours[0] == 0.0
