"""The reference family's contrastive loss (golden ``contrastive_loss`` and ``two_replicas``)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from processes import run_in_processes
from timegrain.models.hub import EncoderConfig, VideoEncoder
from timegrain.objectives.cvrl import CVRL, cvrl_loss

CASES = [
    (size, dtype, kind)
    for size in ("B1_D16", "B2_D16", "B4_D16", "B8_D16", "B32_D128")
    for dtype in ("float32", "float64")
    for kind in ("t0.05_norm", "t0.1_norm", "t0.2_norm", "t0.5_norm", "t1.0_norm", "t1.0_raw")
]
TOLERANCE = {"float32": 1e-5, "float64": 1e-12}


def arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return dict(file)


@pytest.mark.parametrize(("size", "dtype", "kind"), CASES)
def test_loss_gradient_and_metrics(shared: Path, size: str, dtype: str, kind: str) -> None:
    golden = arrays(shared / "golden/reference-code/contrastive_loss.npz")
    hidden = torch.tensor(golden[f"{size}_{dtype}|hidden"]).requires_grad_()
    expected = {
        name: golden[f"{size}_{dtype}_{kind}|{name}"]
        for name in ("grad", "contrastive_loss", "contrast_acc", "contrast_entropy")
    }
    first, second = hidden.chunk(2)
    temperature = float(kind[1:].split("_")[0])
    ours = cvrl_loss(first, second, temperature, normalize=kind.endswith("norm"))
    (gradient,) = torch.autograd.grad(ours["loss"], hidden)
    tolerance = TOLERANCE[dtype]
    assert ours["loss"].dtype == hidden.dtype
    np.testing.assert_allclose(ours["loss"].item(), expected["contrastive_loss"], rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(
        gradient, expected["grad"], rtol=0, atol=tolerance * max(1.0, float(np.abs(expected["grad"]).max()))
    )
    np.testing.assert_allclose(ours["accuracy"].item(), expected["contrast_acc"])
    np.testing.assert_allclose(ours["entropy"].item(), expected["contrast_entropy"], rtol=tolerance, atol=tolerance)
    assert float(ours["first/loss"] + ours["second/loss"]) == pytest.approx(ours["loss"].item())


@pytest.mark.parametrize("weight_decay_case", ["B4_D16_float64_t0.1_norm", "B4_D16_float32_t0.1_norm"])
def test_weight_decay_counts_kernels_only(shared: Path, weight_decay_case: str) -> None:
    """The reference's regularisation loss is wd/2 of the squared kernels: what our optimisers' weight decay derives."""
    golden = arrays(shared / "golden/reference-code/contrastive_loss.npz")
    expected = golden[f"{weight_decay_case}|reg_loss"]
    kernel = torch.tensor(golden["wd_vars|dense.kernel"]).double()
    np.testing.assert_allclose(float(0.5 * 1e-2 * kernel.square().sum()), expected, rtol=1e-6)


def test_chance_loss_is_the_loss_of_equal_embeddings() -> None:
    ours = cvrl_loss(torch.ones(6, 4), torch.ones(6, 4))
    assert int(ours["num_negatives"]) == 10
    assert float(ours["loss"]) == pytest.approx(float(ours["chance_loss"]), rel=1e-6)
    assert float(ours["chance_loss"]) == pytest.approx(2 * np.log(11), rel=1e-6)


def test_half_precision_is_scored_in_float32() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 8, 16, generator=generator).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        ours = cvrl_loss(first, second)
    exact = cvrl_loss(first.double(), second.double())
    assert ours["loss"].dtype == torch.float32
    assert float(ours["loss"]) == pytest.approx(float(exact["loss"]), rel=1e-5)


def test_cvrl_refuses_a_missing_head_and_a_temperature_of_zero() -> None:
    options = {"width": 4, "stem_width": 4}
    encoder = VideoEncoder(EncoderConfig("r3d_tiny", options, ("persistent",), head_hidden=8, head_num_hidden=1))
    with pytest.raises(ValueError, match="no head 'fine'; it has \\['persistent'\\]"):
        CVRL(encoder, head="fine")
    with pytest.raises(ValueError, match="temperature must be above 0"):
        CVRL(encoder, temperature=0.0)


def two_replicas_single(golden: dict[str, np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss and gradient of one process on the joined batch, in float64."""
    kernel = torch.tensor(golden["w0"]).double().requires_grad_()
    first, second = (torch.tensor(golden[name]).double() @ kernel for name in ("x1", "x2"))
    loss = cvrl_loss(first, second, float(golden["temperature"]))["loss"]
    return loss.detach(), torch.autograd.grad(loss, kernel)[0]


def test_two_replicas_as_one_process(shared: Path) -> None:
    """The reference sums over its two replicas: its step is twice the rate times the gradient of the mean loss."""
    golden = arrays(shared / "golden/reference-code/two_replicas.npz")
    loss, gradient = two_replicas_single(golden)
    np.testing.assert_allclose(loss, golden["single_loss"], rtol=1e-6)
    np.testing.assert_allclose(loss, golden["replica_losses"].mean(), rtol=1e-6)
    gradient = gradient + float(golden["wd"]) * torch.tensor(golden["w0"]).double()
    np.testing.assert_allclose(gradient, golden["single_grad"], rtol=0, atol=1e-6)
    step = (golden["w0"] - golden["w_after"]).astype(np.float64)
    np.testing.assert_allclose(step, 2 * float(golden["lr"]) * gradient, rtol=0, atol=1e-6)


def replica(rank: int, path: str) -> dict[str, torch.Tensor]:
    """One of the two processes: half of the videos, its loss, and the gradient that arrives at its weights."""
    golden = arrays(Path(path))
    kernel = torch.tensor(golden["w0"]).double().requires_grad_()
    rows = slice(4 * rank, 4 * rank + 4)
    first, second = (torch.tensor(golden[name][rows]).double() @ kernel for name in ("x1", "x2"))
    ours = cvrl_loss(first, second, float(golden["temperature"]))
    (gradient,) = torch.autograd.grad(ours["loss"], kernel)
    return {"loss": ours["loss"].detach(), "gradient": gradient, "num_negatives": ours["num_negatives"]}


@pytest.mark.multiprocess
def test_two_replicas_in_two_processes(shared: Path, tmp_path: Path) -> None:
    path = shared / "golden/reference-code/two_replicas.npz"
    golden = arrays(path)
    replicas = run_in_processes(2, replica, tmp_path, str(path))
    decay = float(golden["wd"]) * torch.tensor(golden["w0"]).double()
    for rank, ours in enumerate(replicas):
        np.testing.assert_allclose(ours["loss"], golden["replica_losses"][rank], rtol=1e-6)
        np.testing.assert_allclose(ours["gradient"] + decay, golden["replica_grads"][rank], rtol=0, atol=1e-6)
        assert int(ours["num_negatives"]) == 14
    # Averaged as DDP averages, the two processes have the gradient of one process on the joined batch.
    loss, gradient = two_replicas_single(golden)
    torch.testing.assert_close((replicas[0]["loss"] + replicas[1]["loss"]) / 2, loss, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        (replicas[0]["gradient"] + replicas[1]["gradient"]) / 2, gradient, rtol=1e-12, atol=1e-12
    )
