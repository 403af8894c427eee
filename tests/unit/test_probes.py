"""The linear probe against scikit-learn, votes against a loop."""

import warnings

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from timegrain import probes
from timegrain.data.manifest import Manifest
from timegrain.features import FeatureTable
from timegrain.logistic import LogisticFit, LogisticProblem
from timegrain.probes import (
    LinearProbe,
    accuracy,
    grouped_folds,
    knn_predict,
    majority_accuracy,
    nearest,
)
from timegrain.tasks.division import divide


def blobs(n, d, num_classes, seed=0, spread=1.0, dtype=torch.float64):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, num_classes, n)
    labels[:num_classes] = np.arange(num_classes)
    world = np.random.default_rng(99)  # the same classes whatever the seed
    mixing = world.normal(size=(d, d)) * np.logspace(0.5, -1.5, d)
    features = world.normal(size=(num_classes, d))[labels] + spread * rng.normal(size=(n, d))
    return torch.from_numpy(features @ mixing + 3).to(dtype), torch.from_numpy(labels)


def objective(features, labels, weight, bias, l2):
    logits = features.double() @ weight.double().T + bias.double()
    return float(torch.nn.functional.cross_entropy(logits, labels) + l2 / 2 * weight.double().square().sum())


@pytest.mark.parametrize(
    ("n", "d", "num_classes", "l2"),
    [(300, 20, 4, 1e-2), (300, 20, 4, 1e-4), (60, 90, 3, 1e-3), (200, 8, 2, 1e-1), (40, 40, 5, 10.0)],
)
def test_objective_equals_scikit_learn(n, d, num_classes, l2):
    features, labels = blobs(n, d, num_classes, spread=4)
    fit = LogisticProblem(features, labels, num_classes).solve(l2, tolerance=1e-12)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peer = LogisticRegression(C=1 / (l2 * n), tol=1e-10, max_iter=20000).fit(features.numpy(), labels.numpy())
    peer_weight, peer_bias = torch.from_numpy(peer.coef_), torch.from_numpy(peer.intercept_)
    if num_classes == 2:  # scikit-learn keeps one row w for both classes: ours are w/2 and -w/2, with half its penalty
        peer = LogisticRegression(C=2 / (l2 * n), tol=1e-10, max_iter=20000).fit(features.numpy(), labels.numpy())
        peer_weight = torch.from_numpy(np.concatenate([-peer.coef_, peer.coef_])) / 2
        peer_bias = torch.from_numpy(np.concatenate([-peer.intercept_, peer.intercept_])) / 2
    theirs = objective(features, labels, peer_weight, peer_bias, l2)
    ours = objective(features, labels, fit.weight, fit.bias, l2)
    assert fit.converged
    assert fit.objective == pytest.approx(ours, rel=1e-9)
    assert ours <= theirs * (1 + 1e-7)
    torch.testing.assert_close(fit.weight, peer_weight, atol=2e-3 * float(peer_weight.abs().max()), rtol=0)


def test_float32_reaches_the_same_objective_and_uses_a_warm_start():
    features, labels = blobs(500, 64, 10, spread=3)
    exact = LogisticProblem(features, labels, 10).solve(1e-4, tolerance=1e-12)
    problem = LogisticProblem(features.float(), labels, 10)
    cold = problem.solve(1e-4)
    assert objective(features, labels, cold.weight, cold.bias, 1e-4) <= exact.objective * (1 + 1e-4)
    warm = problem.solve(1e-4, start=cold)
    assert warm.num_iterations < cold.num_iterations / 2
    assert warm.objective <= cold.objective * (1 + 1e-6)


def test_gradient_vanishes_at_the_solution():
    features, labels = blobs(80, 12, 3, spread=2)
    fit = LogisticProblem(features, labels, 3).solve(0.01, tolerance=1e-13)
    weight, bias = fit.weight.clone().requires_grad_(), fit.bias.clone().requires_grad_()
    loss = torch.nn.functional.cross_entropy(features @ weight.T + bias, labels) + 0.005 * weight.square().sum()
    loss.backward()
    assert float(weight.grad.abs().max()) < 1e-6
    assert float(bias.grad.abs().max()) < 1e-6


@pytest.mark.parametrize(("n", "d", "l2"), [(900, 48, 1e-4), (400, 120, 1e-3), (90, 150, 1e-4)])
def test_no_more_than_the_tolerance_is_left_to_gain(n, d, l2):
    for seed in range(3):
        features, labels = blobs(n, d, 6, seed, 2.0)
        exact = LogisticProblem(features, labels, 6).solve(l2, tolerance=1e-10).objective
        fit = LogisticProblem(features.float(), labels, 6).solve(l2, tolerance=5e-5)
        assert fit.converged
        assert fit.num_iterations < 300  # where classes are told apart without error, float32 can't see the minimum
        found = objective(features, labels, fit.weight, fit.bias, l2)
        assert found <= exact * (1 + 1e-4) + 2 * torch.finfo(torch.float32).eps


def test_the_leading_directions_save_steps_and_the_minimum_stays():
    features, labels = blobs(900, 64, 6, spread=2)
    problem = LogisticProblem(features, labels, 6)
    found = problem.solve(1e-4, tolerance=1e-10)
    nothing = LogisticFit(torch.zeros_like(found.weight), torch.zeros_like(found.bias), 0.0, 0, False)
    directly = problem.solve(1e-4, start=nothing, tolerance=1e-10)
    assert found.num_iterations < directly.num_iterations
    assert found.objective == pytest.approx(directly.objective, rel=1e-9)


def test_the_features_are_left_as_they_are():
    for n, d in ((30, 50), (50, 30)):
        features, labels = blobs(n, d, 3)
        before = features.clone()
        LogisticProblem(features, labels, 3).solve(1e-2)
        assert torch.equal(features, before)


def test_constant_and_identical_features_do_not_break_the_solver():
    features = torch.ones(10, 4)
    labels = torch.tensor([0, 1] * 5)
    for wide in (features, features.repeat(1, 5)):
        fit = LogisticProblem(wide, labels, 2).solve(1e-3)
        assert fit.objective == pytest.approx(np.log(2), abs=1e-6)
        assert fit.weight.shape == (2, wide.shape[1])
    probe = LinearProbe.train(torch.cat([features, torch.randn(10, 2)], 1), labels, 2)
    assert torch.isfinite(probe.logits(features.new_ones(3, 6))).all()


@pytest.mark.parametrize(
    ("features", "labels", "num_classes", "message"),
    [
        (torch.zeros(3, 2), torch.tensor([0, 1]), 2, "expected"),
        (torch.zeros(2, 2), torch.tensor([0, 0]), 1, "two classes"),
        (torch.zeros(2, 2), torch.tensor([0, 5]), 2, "labels must lie"),
        (torch.full((2, 2), torch.nan), torch.tensor([0, 1]), 2, "not finite"),
        (torch.randn(9, 2) * 1e20, torch.tensor([0, 1, 1] * 3), 2, "too large"),
    ],
)
def test_impossible_problems_say_why(features, labels, num_classes, message):
    with pytest.raises(ValueError, match=message):
        LogisticProblem(features, labels, num_classes)


@pytest.mark.parametrize("shape", [(90, 4), (9, 40)])
def test_a_feature_counts_whatever_the_unit_of_the_others(shape):
    features, labels = blobs(*shape, 3)
    units = torch.ones(shape[1])
    units[0], units[1], units[2] = 1e-9, 1e9, 1e3
    plain, scaled = (LinearProbe.train(x, labels, 3, l2_grid=[0.01]) for x in (features, features * units))
    torch.testing.assert_close(scaled.logits(features * units), plain.logits(features), rtol=0, atol=0.02)
    constant = torch.cat([features, torch.full((len(features), 1), 1e7 / 3)], 1)
    assert LinearProbe.train(constant, labels, 3, l2_grid=[0.01]).scale[-1] == 1.0


def test_penalty_must_be_above_zero():
    features, labels = blobs(10, 3, 2)
    with pytest.raises(ValueError, match="above 0"):
        LogisticProblem(features, labels, 2).solve(0.0)


def test_probe_chooses_the_penalty_that_generalises():
    features, labels = blobs(60, 200, 3, spread=1.5)
    test_features, test_labels = blobs(300, 200, 3, seed=1, spread=1.5)
    probe = LinearProbe.train(features, labels, 3)
    assert set(probe.l2_scores) == {10.0**k for k in range(-5, 2)}
    assert probe.l2_scores[probe.l2] == max(probe.l2_scores.values())
    worst = min(
        accuracy(LinearProbe.train(features, labels, 3, l2_grid=[l2]).logits(test_features), test_labels)
        for l2 in probe.l2_scores
    )
    chosen = accuracy(probe.logits(test_features), test_labels)
    assert chosen >= worst
    assert chosen > 0.6
    scaled = LinearProbe.train(features * 7 + 2, labels, 3)
    assert accuracy(scaled.logits(test_features * 7 + 2), test_labels) == pytest.approx(chosen, abs=0.02)


def test_without_anything_to_hold_out_the_penalty_is_neither_extreme():
    features, labels = blobs(30, 5, 3)
    probe = LinearProbe.train(features, labels, 3, groups=["one recording"] * 30)
    assert (probe.l2, probe.l2_scores) == (1e-2, {})
    with pytest.raises(ValueError, match="at least one strength"):
        LinearProbe.train(features, labels, 3, l2_grid=())


def test_folds_keep_groups_together_and_balance_classes():
    rng = np.random.default_rng(0)
    groups = [f"g{i // 4}" for i in range(80)] + [None] * 20
    labels = np.array([(i // 4) % 4 for i in range(80)] + [0, 1, 2, 3] * 5)
    folds = grouped_folds(labels, groups, 5, rng)
    for name in set(groups) - {None}:
        assert len({int(folds[i]) for i, group in enumerate(groups) if group == name}) == 1
    assert len(set(folds[80:].tolist())) > 1  # videos without a group are not one group
    assert np.bincount(folds).min() >= 16
    for label in range(4):
        assert np.bincount(folds[labels == label], minlength=5).min() >= 3
    assert set(grouped_folds(labels[:8], groups[:8], 5, rng).tolist()) == {0, 1}
    with pytest.raises(ValueError, match="at least 1"):
        grouped_folds(labels, groups, 0, rng)


def test_knn_votes_equal_a_loop():
    bank, bank_labels = blobs(50, 6, 3)
    queries, _ = blobs(7, 6, 3, seed=1)
    scores = knn_predict(queries, bank, bank_labels, 3, num_neighbours=9, temperature=0.2, chunk=3)
    mean = bank.mean(0)
    for query, row in zip(queries, scores, strict=True):
        similarities = [float((query - mean) @ (b - mean) / (query - mean).norm() / (b - mean).norm()) for b in bank]
        votes = np.zeros(3)
        for index in sorted(range(50), key=lambda i: -similarities[i])[:9]:
            votes[int(bank_labels[index])] += np.exp(similarities[index] / 0.2)
        np.testing.assert_allclose(row.numpy(), votes / votes.sum(), rtol=1e-9)
    everything = knn_predict(queries, bank, bank_labels, 3)  # 200 neighbours of 50
    assert everything.sum(1).allclose(torch.ones(7, dtype=torch.float64))
    with pytest.raises(ValueError, match="neighbour"):
        knn_predict(queries, bank, bank_labels, 3, num_neighbours=0)


def test_nearest_is_sorted_and_bounded_by_the_gallery():
    gallery, _ = blobs(5, 4, 2)
    indices, similarities = nearest(gallery, gallery, 9)
    assert indices.shape == (5, 5)
    assert indices[:, 0].tolist() == [0, 1, 2, 3, 4]
    assert (similarities.diff(dim=1) <= 0).all()


def test_many_videos_are_compared_with_few_queries_at_a_time(monkeypatch):
    bank, queries = torch.randn(50, 8), torch.randn(7, 8)
    labels = torch.arange(50) % 3
    expected = knn_predict(queries, bank, labels, 3), *nearest(queries, bank, 5)
    monkeypatch.setattr(probes, "_SIMILARITIES", 100)
    widest = []
    split = torch.split
    monkeypatch.setattr(torch, "split", lambda rows, size: (widest.append(size), split(rows, size))[1])
    torch.testing.assert_close((knn_predict(queries, bank, labels, 3), *nearest(queries, bank, 5)), expected)
    assert widest == [2, 2]


def test_accuracy_and_majority():
    scores = torch.tensor([[0.1, 0.9, 0.0], [0.5, 0.2, 0.3], [0.3, 0.3, 0.4]])
    labels = torch.tensor([1, 2, 2])
    assert accuracy(scores, labels) == pytest.approx(2 / 3)
    assert accuracy(scores, labels, top=2) == 1
    assert accuracy(scores, labels, top=5) == 1
    assert majority_accuracy(labels, torch.tensor([2, 2, 0])) == pytest.approx(2 / 3)


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5, 0.75, 0.9])
def test_the_share_asked_for_is_held_out_also_where_it_is_most_of_the_videos(tmp_path, share):
    labels = tuple("ab" * 20)
    paths = tuple(str(tmp_path / f"{number}.mp4") for number in range(40))
    table = FeatureTable(torch.zeros(40, 2), paths, labels, (None,) * 40)
    shape = {"num_frames": 9, "fps": 9.0, "width": 9, "height": 9}
    rows = [{"path": path, "label": label, **shape} for path, label in zip(paths, labels, strict=True)]
    task = divide(table, Manifest.from_rows(rows, tmp_path), {}, "train", share, 0)
    assert float((~task.train).float().mean()) == pytest.approx(share)
