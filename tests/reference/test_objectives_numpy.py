"""CVRL, SimCLR, ρMoCo and ρBYOL against slow loops: losses, gradients, queue, momentum, from clips to the loss."""

from __future__ import annotations

import math

import numpy as np
import plain_objectives as plain
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from timegrain.models.hub import EncoderConfig, VideoEncoder
from timegrain.objectives.byol import BYOL, byol_loss
from timegrain.objectives.cvrl import CVRL, cvrl_loss
from timegrain.objectives.moco import MoCo, moco_loss
from timegrain.objectives.momentum import momentum_at
from timegrain.objectives.objective import Objective
from timegrain.objectives.simclr import SimCLR

temperatures = st.sampled_from([0.05, 0.1, 0.5])


def draw(seed: int, *shape: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


@given(st.integers(0, 2**32), st.integers(2, 6), st.integers(3, 8), temperatures)
def test_cvrl(seed: int, videos: int, channels: int, temperature: float) -> None:
    views = draw(seed, 2, videos, channels)
    ours = cvrl_loss(views[0], views[1], temperature)
    assert ours["loss"].item() == pytest.approx(plain.cvrl(views.numpy(), temperature), rel=1e-10)
    assert float(ours["accuracy"]) == pytest.approx(plain.nt_xent(views.numpy(), temperature)[1])


@given(st.integers(0, 2**32), st.integers(2, 4), st.integers(1, 5), st.integers(1, 9), temperatures)
def test_moco(seed: int, clips: int, videos: int, size: int, temperature: float) -> None:
    queries, keys = draw(seed, 2, clips, videos, 6)
    queue = draw(seed + 1, size, 6)
    loss, accuracy = moco_loss(*(F.normalize(x, dim=-1) for x in (queries, keys, queue)), temperature)
    expected = plain.moco(queries.numpy(), keys.numpy(), queue.numpy(), temperature)
    assert (float(loss), float(accuracy)) == pytest.approx(expected, rel=1e-10)


@given(st.integers(0, 2**32), st.integers(2, 4), st.integers(1, 5))
def test_byol(seed: int, clips: int, videos: int) -> None:
    predictions, targets = draw(seed, 2, clips, videos, 6)
    expected = plain.byol(predictions.numpy(), targets.numpy())
    assert float(byol_loss(predictions, targets)) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("name", ["moco", "byol"])
def test_gradients_are_the_slopes_of_the_plain_loss(name: str) -> None:
    queries, others = draw(5, 2, 3, 4, 6)
    queue = draw(6, 7, 6)

    def by_loops(values: np.ndarray) -> float:
        if name == "byol":
            return plain.byol(values, others.numpy())
        return plain.moco(values, others.numpy(), queue.numpy(), 0.2)[0]

    queries.requires_grad_()
    if name == "byol":
        loss = byol_loss(queries, others)
    else:
        loss, _ = moco_loss(*(F.normalize(x, dim=-1) for x in (queries, others, queue)), 0.2)
    (gradient,) = torch.autograd.grad(loss, queries)
    start = queries.detach().numpy()
    for seed in range(3):
        direction = np.random.default_rng(seed).normal(size=start.shape)
        slope = (by_loops(start + 1e-5 * direction) - by_loops(start - 1e-5 * direction)) / 2e-5
        assert float((gradient.numpy() * direction).sum()) == pytest.approx(slope, rel=1e-6)


# ------------------------------------------------------------------------------------------------ from clips to the loss


def encoder(norm: bool = True) -> VideoEncoder:
    torch.manual_seed(0)
    options = {"width": 4, "stem_width": 4}
    config = EncoderConfig(
        "r3d_tiny", options, ("persistent",), head_hidden=8, head_num_hidden=1, head_out=5, head_norm=norm
    )
    return VideoEncoder(config).double()


def clips(count: int, videos: int = 4, frames: int = 4, seed: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(videos, 3, frames, 16, 16, dtype=torch.float64, generator=generator) for _ in range(count)]


def run(objective: Objective, batch: list[Tensor]) -> dict[str, Tensor]:
    return objective(batch, [torch.zeros(len(clip), clip.shape[2], dtype=torch.long) for clip in batch])


def projections(network: VideoEncoder, batch: list[Tensor]) -> np.ndarray:
    """Mean over time, then the head; each clip's batch by itself."""
    with torch.no_grad():
        return np.stack([network.heads["persistent"](network(clip).mean(1)).numpy() for clip in batch])


def test_simclr_on_single_frames() -> None:
    network = encoder().eval()
    batch = clips(2, frames=1)
    ours = run(SimCLR(network, temperature=0.2), batch)
    loss, accuracy = plain.nt_xent(projections(network, batch), 0.2)
    assert ours["loss"].item() == pytest.approx(loss, rel=1e-10)
    assert float(ours["accuracy"]) == pytest.approx(accuracy)
    assert float(ours["chance_loss"]) == pytest.approx(math.log(7))
    double = run(CVRL(network, temperature=0.2), batch)
    assert double["loss"].item() == pytest.approx(2 * ours["loss"].item(), rel=1e-12)


@pytest.mark.parametrize("count", [2, 4])
def test_moco_over_several_steps(count: int) -> None:
    """Keys by the momentum encoder, the queue's order, and the momentum encoder's way, step by step."""
    objective = MoCo(encoder(), temperature=0.2, queue_size=21, momentum=0.5).double()
    objective.queue.copy_(F.normalize(objective.queue, dim=1))  # to the precision of this test
    ring = plain.Ring(list(objective.queue.numpy().copy()))
    weights = {name: value.clone() for name, value in objective.momentum_encoder.named_parameters()}
    optimizer = torch.optim.SGD([p for p in objective.parameters() if p.requires_grad], lr=0.3)
    for step in range(1, 4):
        batch = clips(count, seed=step)
        queries, keys = projections(objective.encoder, batch), projections(objective.momentum_encoder, batch)
        ours = run(objective, batch)
        expected = plain.moco(queries, keys, np.stack(ring.keys), 0.2)
        assert (ours["loss"].item(), float(ours["accuracy"])) == pytest.approx(expected, rel=1e-9)
        assert float(ours["chance_loss"]) == pytest.approx(math.log(22))
        ring.put([key / np.linalg.norm(key) for of_clip in keys for key in of_clip])
        np.testing.assert_allclose(objective.queue, np.stack(ring.keys), atol=1e-12)
        optimizer.zero_grad()
        ours["loss"].backward()
        optimizer.step()
        objective.after_step(step / 3)
        m = plain.momentum(0.5, step, 3)
        for name, value in objective.encoder.named_parameters():
            weights[name] = m * weights[name] + (1 - m) * value.detach()
    for name, value in objective.momentum_encoder.named_parameters():
        torch.testing.assert_close(value, weights[name], rtol=0, atol=1e-12)
        assert value.grad is None
    moved = objective.encoder.backbone.stem_conv.weight - objective.momentum_encoder.backbone.stem_conv.weight
    assert moved.abs().max().item() > 1e-6


@pytest.mark.parametrize("count", [2, 4])
def test_byol_from_clips_to_loss(count: int) -> None:
    torch.manual_seed(1)
    objective = BYOL(encoder()).double()
    batch = clips(count)
    online, targets = projections(objective.encoder, batch), projections(objective.momentum_encoder, batch)
    with torch.no_grad():
        predictions = np.stack([objective.predictor(torch.from_numpy(z)).numpy() for z in online])
    ours = run(objective, batch)
    assert ours["loss"].item() == pytest.approx(plain.byol(predictions, targets), rel=1e-9)
    ours["loss"].backward()
    assert all(value.grad is None for value in objective.momentum_encoder.parameters())
    for name, value in [*objective.encoder.named_parameters(), *objective.predictor.named_parameters()]:
        assert value.grad is not None, name
    assert 0 < float(ours["spread"]) <= 1


def test_collapsed_embeddings_show_in_the_spread() -> None:
    objective = BYOL(encoder(norm=False)).double()
    with torch.no_grad():
        objective.encoder.heads["persistent"].layers[-1].weight.zero_()
        objective.encoder.heads["persistent"].layers[-1].bias.fill_(1.0)
    assert float(run(objective, clips(2))["spread"]) == pytest.approx(0, abs=1e-7)


def test_evaluation_mode_leaves_the_queue_alone() -> None:
    objective = MoCo(encoder(), queue_size=16).double().eval()
    before = objective.queue.clone()
    run(objective, clips(2))
    assert torch.equal(before, objective.queue)


def test_the_state_holds_what_resuming_needs() -> None:
    objective = MoCo(encoder(), queue_size=16).double()
    run(objective, clips(2))
    state = objective.state_dict()
    assert int(state["queue_position"]) == 8
    other = MoCo(encoder(), queue_size=16).double()
    other.load_state_dict(state)
    assert torch.equal(run(other, clips(2))["loss"], run(objective, clips(2))["loss"])


@given(st.integers(1, 50), st.floats(0, 1))
def test_momentum_rises_along_half_a_cosine(total: int, start: float) -> None:
    values = [momentum_at(step / total, start) for step in range(total + 1)]
    assert values == pytest.approx([plain.momentum(start, step, total) for step in range(total + 1)])
    assert values[0] == pytest.approx(start)
    assert values[-1] == pytest.approx(1.0)


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="no head 'fine'"):
        MoCo(encoder(), head="fine")
    with pytest.raises(ValueError, match="temperature must be above 0"):
        MoCo(encoder(), temperature=0.0)
    with pytest.raises(ValueError, match="momentum must be between 0"):
        BYOL(encoder(), momentum=1.5)
    with pytest.raises(ValueError, match="queue_size must be at least 1"):
        MoCo(encoder(), queue_size=0)
    small = MoCo(encoder(), queue_size=7).double()
    with pytest.raises(ValueError, match="queue of 7 keys is smaller than the 8 keys of one step"):
        run(small, clips(2))
