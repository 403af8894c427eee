"""Boundary networks against slow loops: pooling, BMN's spans and scores, the balanced loss."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from timegrain.models.boundary_heads import (
    BoundaryMatching,
    TemporalConvolutions,
    WindowHead,
    _span_sampling,
    balanced_loss,
)


@pytest.mark.parametrize("steps", [2, 5, 8])
def test_pooling_is_what_its_name_says(steps):
    x = torch.randn(3, steps, 4)
    before, after = x[:, : steps // 2].mean(1), x[:, steps - steps // 2 :].mean(1)
    middle = x[:, steps // 2] if steps % 2 else x[:, steps // 2 - 1 : steps // 2 + 1].mean(1)
    expected = {
        "mean": x.mean(1),
        "centre": middle,
        "halves": torch.cat([before, after], 1),
        "change": torch.cat([x.mean(1), (after - before).abs()], 1),
    }
    for name, value in expected.items():
        head = WindowHead(4, name)
        torch.testing.assert_close(head.pool(x), value)
        assert head(x).shape == (3, 2)


def test_a_window_of_one_step_has_no_halves():
    with pytest.raises(ValueError, match="at least 2 time steps"):
        WindowHead(4, "change")(torch.zeros(1, 1, 4))


def test_frozen_features_are_standardised_by_what_training_saw():
    head = WindowHead(4, "mean", standardise=True)
    x = 100 + 5 * torch.randn(256, 3, 4)
    for _ in range(60):
        head(x)
    head.eval()
    pooled = head.norm(head.pool(x))
    assert pooled.mean().abs() < 0.1
    assert pooled.std() == pytest.approx(1, abs=0.1)


def test_tcn_sees_its_radius_and_no_further():
    torch.manual_seed(0)
    net = TemporalConvolutions(3, width=8, num_layers=3).eval()
    x = torch.randn(1, 41, 3, requires_grad=True)
    net(x)[0, 20].sum().backward()
    seen = torch.nonzero(x.grad.abs().sum((0, 2))).flatten()
    assert (int(seen.min()), int(seen.max())) == (20 - 7, 20 + 7)  # 1 + 2 + 4


def test_sampling_of_spans_is_linear_interpolation():
    num, samples = 6, 5
    weights = _span_sampling(num, samples)
    signal = np.random.default_rng(0).normal(size=num)
    padded = np.concatenate([[0], signal, [0]])
    read = np.einsum("n,nsdt->sdt", signal, weights.numpy())
    for d in range(1, num + 1):
        for start in range(num):
            for s in range(samples):
                point = start + (-0.25 + 1.5 * s / (samples - 1)) * d - 0.5
                value = 0.0
                if start + d <= num and -1 < point < num:
                    low = math.floor(point)
                    share = point - low
                    value = (1 - share) * padded[low + 1] + share * padded[low + 2]
                assert read[s, d - 1, start] == pytest.approx(value, abs=1e-5)


def test_bmn_scores_are_those_of_a_slow_loop():
    torch.manual_seed(0)
    num = 7
    net = BoundaryMatching(4, num, width=6, num_samples=4).eval()
    x = torch.randn(2, num, 4)
    with torch.no_grad():
        ends, spans = net(x)
        found = net.boundary_scores(x)
    start, end = ends.sigmoid().unbind(1)
    confidence = (spans[:, 0].sigmoid() * spans[:, 1].sigmoid()).sqrt()
    for b in range(2):
        expected = torch.zeros(num)
        for s in range(num):
            for d in range(1, num - s + 1):
                score = start[b, s] * end[b, s + d - 1] * confidence[b, d - 1, s]
                expected[s] = max(expected[s], score)
                if s + d < num:
                    expected[s + d] = max(expected[s + d], score)
        expected[0] = 0
        torch.testing.assert_close(found[b], expected)


def test_bmn_learns_planted_spans():
    torch.manual_seed(0)
    num, boundary = 12, 5
    x = torch.zeros(4, num, 2)
    x[:, :boundary, 0], x[:, boundary:, 1] = 1, 1
    x += 0.01 * torch.randn_like(x)
    starts = torch.zeros(4, num, dtype=torch.bool)
    ends = starts.clone()
    starts[:, [0, boundary]], ends[:, [boundary - 1, num - 1]] = True, True
    overlap = torch.zeros(4, num, num)
    for s in range(num):
        for d in range(1, num - s + 1):
            for a, b in ((0, boundary), (boundary, num)):
                shared = max(0, min(s + d, b) - max(s, a))
                overlap[:, d - 1, s] = torch.maximum(overlap[:, d - 1, s], torch.tensor(shared / (d + b - a - shared)))
    net = BoundaryMatching(2, num, width=8, num_samples=8)
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    inside = torch.ones(4, num, dtype=torch.bool)
    for _ in range(40):
        loss = net.loss(x, starts, ends, overlap, inside)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        assert (net.eval().boundary_scores(x).argmax(1) == boundary).all()


def test_bmn_bounds_what_a_file_may_ask_for():
    with pytest.raises(ValueError, match="1 GiB"):
        BoundaryMatching(4, 1_000_000)


def test_balanced_loss_gives_both_kinds_one_half():
    logits = torch.tensor([2.0, -1.0, 0.5, 3.0])
    target, inside = torch.tensor([True, False, False, False]), torch.tensor([True, True, True, False])
    loss = balanced_loss(logits, target, inside)
    negatives = (torch.log1p(torch.exp(torch.tensor(-1.0))) + torch.log1p(torch.exp(torch.tensor(0.5)))) / 2
    assert loss == pytest.approx(float((torch.log1p(torch.exp(torch.tensor(-2.0))) + negatives) / 2), abs=1e-6)
    assert balanced_loss(logits, target, torch.zeros(4, dtype=torch.bool)) == 0
    only = balanced_loss(logits[:1], target[:1], inside[:1])
    assert only == pytest.approx(float(torch.log1p(torch.exp(torch.tensor(-2.0)))), abs=1e-6)
