"""The reference family's linear evaluation (``linear_steps``): frozen network, normalised features, logits; five steps.

The golden file holds a narrow network's features and logits in float64; the steps after them are held against a plain
NumPy statement of what the reference's trainer does: softmax cross-entropy, mean over the batch, Keras' SGD.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from timegrain.models.classifiers import LinearClassifier
from timegrain.models.convert import encoder_from_tf_tensors
from timegrain.optim import OptimConfig, build_optimizer, schedule
from timegrain.tasks.classification import TRAINED, ClassificationTask, bare_encoder
from timegrain.tasks.setup import Schedule

RATE, WARMUP, TOTAL, STEPS = 32.0, 2, 10, 5
Arrays = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def golden(shared: Path) -> Arrays:
    with np.load(shared / "golden/reference-code/linear_steps_narrow_float64.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def task(shared: Path, golden: Arrays, tmp_path_factory: pytest.TempPathFactory) -> ClassificationTask:
    with np.load(shared / "golden/reference-code/weights_narrow.npz") as file:
        encoder = encoder_from_tf_tensors(dict(file), head="persistent")
    encoder = bare_encoder(encoder, num_frames=8, stride=2, crop_size=32, training="linear probe").double()
    classifier = LinearClassifier(256, 10, normalise=True).double()
    with torch.no_grad():
        classifier.linear.weight.copy_(torch.from_numpy(golden["before|model|layer_with_weights-1|kernel"].T))
        classifier.linear.bias.copy_(torch.from_numpy(golden["before|model|layer_with_weights-1|bias"]))
    optim = OptimConfig(name="reference_sgd", learning_rate=RATE, momentum=0.9, weight_decay=0.0)
    made = ClassificationTask(
        {TRAINED: encoder}, {TRAINED: classifier}, True, optim, Schedule(6, TOTAL, 1.0, WARMUP),
        tmp_path_factory.mktemp("linear"), tuple("abcdefghij"), {},
    )  # fmt: skip
    return made.train()


@pytest.fixture(scope="module")
def clips(golden: Arrays) -> torch.Tensor:
    return torch.from_numpy(golden["x"]).double().permute(0, 4, 1, 2, 3)


def test_features_and_logits(task: ClassificationTask, golden: Arrays, clips: torch.Tensor) -> None:
    """In training mode, as during the evaluation's training: the frozen network's norms use their statistics."""
    pooled = task.encoder(clips).mean(1).detach().numpy()
    np.testing.assert_allclose(pooled, golden["gap"], rtol=0, atol=1e-12 * np.abs(golden["gap"]).max())
    unit = pooled / np.linalg.norm(pooled, axis=1, keepdims=True)
    np.testing.assert_allclose(unit, golden["normalized"], rtol=0, atol=1e-12)
    logits = task.logits(TRAINED, clips).detach().numpy()
    np.testing.assert_allclose(logits, golden["logits_infer"], rtol=0, atol=1e-12)


def test_five_steps(task: ClassificationTask, golden: Arrays, clips: torch.Tensor) -> None:
    weight, bias = golden["before|model|layer_with_weights-1|kernel"].copy(), np.zeros(10)
    bias[:] = golden["before|model|layer_with_weights-1|bias"]
    speed = [np.zeros_like(weight), np.zeros_like(bias)]
    targets, features = golden["labels"], golden["normalized"]
    expected = []
    for step in range(STEPS):
        logits = features @ weight + bias
        exponentials = np.exp(logits - logits.max(1, keepdims=True))
        shares = exponentials / exponentials.sum(1, keepdims=True)
        expected.append(-np.log(shares[np.arange(6), targets]).mean())
        error = (shares - np.eye(10)[targets]) / 6
        factor = 0.5 * (1 + np.cos(np.pi * max(step, WARMUP) / TOTAL)) * min(1.0, step / WARMUP)
        for velocity, gradient, value in zip(speed, (features.T @ error, error.sum(0)), (weight, bias), strict=True):
            velocity *= 0.9
            velocity -= RATE * factor * gradient
            value += velocity

    optimizer = build_optimizer(task, task.optim)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule(warmup_steps=WARMUP, total_steps=TOTAL))
    assert sum(parameter.numel() for group in optimizer.param_groups for parameter in group["params"]) == 2570
    frozen = {name: value.clone() for name, value in task.encoder.state_dict().items()}
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = F.cross_entropy(task.logits(TRAINED, clips), torch.from_numpy(targets))
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        scheduler.step()
    np.testing.assert_allclose(losses, expected, rtol=1e-12)
    linear = task.classifiers[TRAINED].linear
    np.testing.assert_allclose(linear.weight.detach().numpy(), weight.T, rtol=0, atol=1e-11)
    np.testing.assert_allclose(linear.bias.detach().numpy(), bias, rtol=0, atol=1e-11)
    assert np.abs(linear.bias.detach().numpy()).max() > 0.1  # the tolerance is small beside the way
    for name, value in task.encoder.state_dict().items():
        assert torch.equal(value, frozen[name]), name
