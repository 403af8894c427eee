"""Classifiers on features: what they see of time, how they start, what their file says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open

from timegrain.models.classifiers import AttentiveClassifier, LinearClassifier, save_classifier, time_code


def test_linear_classifier() -> None:
    torch.manual_seed(0)
    features = torch.randn(4, 5, 8)
    plain, unit = LinearClassifier(8, 3), LinearClassifier(8, 3, normalise=True)
    unit.load_state_dict(plain.state_dict())
    assert (plain.linear.bias == 0).all()
    assert plain.linear.weight.abs().max() <= (6 / 11) ** 0.5  # Glorot uniform
    torch.testing.assert_close(plain(features), features.mean(1) @ plain.linear.weight.T)
    torch.testing.assert_close(unit(features), F.normalize(features.mean(1)) @ plain.linear.weight.T)
    torch.testing.assert_close(unit(7 * features), unit(features))
    assert torch.isfinite(unit(torch.zeros(1, 2, 8))).all()


def test_dropout_only_while_training() -> None:
    torch.manual_seed(0)
    for classifier in (LinearClassifier(16, 3, dropout=0.5), AttentiveClassifier(16, 3, 1, 4, dropout=0.5)):
        features = torch.randn(2, 4, 16)
        assert not torch.equal(classifier(features), classifier(features))
        classifier.eval()
        assert torch.equal(classifier(features), classifier(features))


@pytest.mark.parametrize("num_blocks", [0, 2])
def test_attentive_classifier_sees_the_order(num_blocks: int) -> None:
    torch.manual_seed(0)
    classifier = AttentiveClassifier(12, 5, num_blocks, num_heads=16).eval()
    features = torch.randn(3, 6, 12)
    logits = classifier(features)
    assert logits.shape == (3, 5)
    assert not torch.allclose(logits, classifier(features.flip(1)), atol=1e-4)
    assert classifier.attention.num_heads == 12  # the largest number up to 16 that divides 12
    classifier(features).square().sum().backward()
    assert all(parameter.grad is not None for parameter in classifier.parameters())


def test_attentive_classifier_learns_when_something_happens() -> None:
    """An event early or late: the mean over time cannot tell, the query can."""
    torch.manual_seed(0)
    targets = torch.arange(64) % 2
    features = torch.zeros(64, 8, 8)
    features[torch.arange(64), targets * 4 + torch.randint(4, (64,))] = torch.randn(8)
    classifier = AttentiveClassifier(8, 2, 0, 2)
    optimizer = torch.optim.AdamW(classifier.parameters(), 1e-2)
    for _ in range(80):
        optimizer.zero_grad()
        F.cross_entropy(classifier(features), targets).backward()
        optimizer.step()
    assert (classifier(features).argmax(1) == targets).float().mean() > 0.95


def test_time_code() -> None:
    code = time_code(5, 7)
    assert code.shape == (5, 7)
    assert code[0].tolist() == [0.0] * 4 + [1.0] * 3
    assert len({tuple(row) for row in code.tolist()}) == 5


def test_the_file_says_what_it_is(tmp_path: Path) -> None:
    classifier = LinearClassifier(4, 2)
    save_classifier(classifier, tmp_path / "c.safetensors", ("a", "b"), {"kind": "linear"})
    with safe_open(tmp_path / "c.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["timegrain_classifier"]) == {"class_names": ["a", "b"], "kind": "linear"}
        assert torch.equal(file.get_tensor("linear.weight"), classifier.linear.weight)
