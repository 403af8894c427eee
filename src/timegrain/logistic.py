"""Multinomial logistic regression as scikit-learn defines it, several times faster on the features of a network.

Objective, over weights ``W`` (C, D) and bias ``b`` (C,), the bias without penalty::

    mean cross-entropy of (X W' + b) + l2 / 2 * |W|^2

which is scikit-learn's ``LogisticRegression(C=1 / (l2 * num_videos))``. Solved by L-BFGS with three things that pay on
cached features: a step costs one product with ``X`` for the direction (its logits are added to those at hand, so the
line search needs no further products) and one for the gradient; features are centred without being copied, which the
bias makes free of charge; and the inner Hessian is ``curvature * covariance + l2``, the softmax's mean curvature times
the features' covariance, diagonal in the covariance's eigenbasis, in which the unknowns are kept. The last is what
counts: pooled features after a ReLU are so badly conditioned that plain L-BFGS needs hundreds of steps.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class LogisticFit:
    """Where the solver ended.

    Attributes:
        weight: (C, D).
        bias: (C,).
        objective: Mean cross-entropy plus penalty.
        num_iterations: Steps taken.
        converged: Whether the tolerance was reached.
    """

    weight: Float[Tensor, "classes features"]
    bias: Float[Tensor, " classes"]
    objective: float
    num_iterations: int
    converged: bool


class LogisticProblem:
    """Features and labels, prepared once for any number of penalties.

    Args:
        features: (N, D) float32 or float64, on any device.
        labels: (N,) class numbers, 0 … C-1.
        num_classes: C, at least 2.

    Raises:
        ValueError: Shapes or class numbers do not fit, or a feature is not finite.
    """

    def __init__(
        self, features: Float[Tensor, "videos features"], labels: Int[Tensor, " videos"], num_classes: int
    ) -> None:
        if features.ndim != 2 or labels.shape != features.shape[:1] or not len(features):
            raise ValueError(
                f"features (N, D) and labels (N,) expected, got {tuple(features.shape)}, {tuple(labels.shape)}"
            )
        if num_classes < 2:
            raise ValueError(f"a classifier needs at least two classes, got {num_classes}")
        if int(labels.min()) < 0 or int(labels.max()) >= num_classes:
            raise ValueError(f"labels must lie in 0 … {num_classes - 1}, got {int(labels.min())} … {int(labels.max())}")
        if not bool(torch.isfinite(features).all()):
            raise ValueError("features hold values that are not finite")
        self.features, self.num_classes = features, num_classes
        self.labels = labels.to(features.device, torch.int64)[:, None]
        self.mean = features.mean(0)
        # An orthonormal basis of the directions in which the features vary, and their variance along each. The minimum
        # lies in it: what does not vary tells no classes apart, and weights that tell nothing cost a penalty.
        if features.shape[0] <= features.shape[1]:
            # In float64: here a direction that is lost is lost to the solution.
            centred = features.cpu().double()
            centred -= centred.mean(0)
            values, vectors = torch.linalg.eigh(centred @ centred.T)
            keep = values > values[-1].clamp_min(1e-30) * 1e-13
            self.basis = (centred.T @ (vectors[:, keep] / values[keep].sqrt())).to(features)
            self.variances = (values[keep] / len(features)).to(features)
        else:
            # Any basis is exact and this one only has to be good: four videos per feature tell the covariance.
            sample = features[:: max(1, features.shape[0] // (4 * features.shape[1]))]
            mean = sample.mean(0)
            covariance = torch.addmm(torch.outer(mean, mean), sample.T, sample, beta=-1, alpha=1 / len(sample))
            self.variances, self.basis = torch.linalg.eigh(covariance)
            self.variances = self.variances.clamp_min(self.variances[-1].clamp_min(1e-30) * 1e-7)

    def solve(
        self,
        l2: float,
        *,
        start: LogisticFit | None = None,
        tolerance: float = 1e-6,
        max_iterations: int = 1000,
        history: int = 10,
    ) -> LogisticFit:
        """Minimise the objective.

        Args:
            l2: Strength of the penalty, above 0.
            start: Where to begin, such as the solution for another penalty; zeros by default.
            tolerance: Stop when the quadratic model foresees less than this share of the objective to gain.
            max_iterations: Steps at most.
            history: Steps whose curvature is remembered.

        Raises:
            ValueError: If ``l2`` is not above 0.
        """
        if not l2 > 0:
            raise ValueError(f"the penalty must be above 0, got {l2}")
        # The unknowns: the weights' coordinates in the basis and, as last row, the bias of the centred features.
        point = self.features.new_zeros(self.basis.shape[1] + 1, self.num_classes)
        if start is not None:
            point[:-1] = self.basis.T @ start.weight.T
            point[-1] = start.bias + start.weight @ self.mean
        logits = self._logits(point)
        objective, residual, curvature = self._value(logits, l2, point)
        gradient = self._gradient(residual, l2, point)
        memory: deque[tuple[Tensor, Tensor, float]] = deque(maxlen=history)
        converged, num_iterations = False, 0
        while num_iterations < max_iterations:
            step = self._direction(gradient, memory, curvature, l2)
            slope = _dot(gradient, step)
            if slope > 0:
                # Far from the minimum of the model: forget the past rather than climb.
                memory.clear()
                step = self._direction(gradient, memory, curvature, l2)
                slope = _dot(gradient, step)
            if -slope / 2 <= tolerance * max(objective, 1e-6):
                converged = True
                break
            change = self._logits(step)
            num_iterations += 1
            before, length, following = objective, 1.0, 1.0
            low, high = 0.0, float("inf")
            squares = [_dot(point[:-1], point[:-1]), _dot(point[:-1], step[:-1]), _dot(step[:-1], step[:-1])]
            for _ in range(20):
                length = following
                moved = torch.add(logits, change, alpha=length)
                penalty = squares[0] + 2 * length * squares[1] + length**2 * squares[2]
                objective, residual, curvature = self._value(moved, l2, penalty)
                end_slope = _dot(residual, change) + l2 * (squares[1] + length * squares[2])
                if abs(end_slope) <= -0.5 * slope:
                    break
                low, high = (length, high) if end_slope < 0 else (low, length)
                # Secant step on the slope; the objective is convex, so the bracket always holds the minimum.
                secant = length * slope / (slope - end_slope) if end_slope > slope else 4 * length
                following = secant if low < secant < high else (low + min(high, 4 * length)) / 2
                following = min(following, 4 * max(low, 1.0))
            point = torch.add(point, step, alpha=length)
            logits = moved
            new_gradient = self._gradient(residual, l2, point)
            moved_by, turned_by = length * step, new_gradient - gradient
            product = _dot(moved_by, turned_by)
            if product > 0:
                memory.append((moved_by, turned_by, 1 / product))
            gradient = new_gradient
            if before <= objective <= before * (1 + 4 * torch.finfo(point.dtype).eps):
                converged = True  # the precision of the numbers is used up
                break
        weight = (self.basis @ point[:-1]).T.contiguous()
        return LogisticFit(weight, point[-1] - weight @ self.mean, objective, num_iterations, converged)

    def _logits(self, point: Tensor) -> Tensor:
        weight = self.basis @ point[:-1]
        return torch.addmm(point[-1] - self.mean @ weight, self.features, weight)

    def _value(self, logits: Tensor, l2: float, point: Tensor | float) -> tuple[float, Tensor, float]:
        """Objective, its gradient with respect to the logits, and the softmax's mean curvature."""
        count = len(logits)
        # The logarithm of the sum of exponentials follows from the largest probability, which is at least 1 / C.
        probabilities = torch.softmax(logits, 1)
        rest = logits.amax(1, keepdim=True) - logits.gather(1, self.labels)
        loss = float((rest - probabilities.amax(1, keepdim=True).log_()).mean())
        probabilities.div_(count)
        spread = 1 - _dot(probabilities, probabilities) * count
        penalty = point if isinstance(point, float) else _dot(point[:-1], point[:-1])
        probabilities.scatter_add_(1, self.labels, probabilities.new_full((count, 1), -1 / count))
        return loss + l2 / 2 * penalty, probabilities, max(spread, 1e-4) / self.num_classes

    def _gradient(self, residual: Tensor, l2: float, point: Tensor) -> Tensor:
        gradient = torch.empty_like(point)
        torch.sum(residual, 0, out=gradient[-1])
        product = torch.mm(self.features.T, residual).addr_(self.mean, gradient[-1], alpha=-1)
        torch.mm(self.basis.T, product, out=gradient[:-1])
        gradient[:-1].add_(point[:-1], alpha=l2)
        return gradient

    def _direction(
        self, gradient: Tensor, memory: deque[tuple[Tensor, Tensor, float]], curvature: float, l2: float
    ) -> Tensor:
        """L-BFGS's two loops around the covariance's inverse (Nocedal & Wright, algorithm 7.4)."""
        step, shares = gradient.clone(), []
        for moved_by, turned_by, inverse in reversed(memory):
            shares.append(inverse * _dot(moved_by, step))
            step.sub_(turned_by, alpha=shares[-1])
        step = self._inverse(step, curvature, l2)
        if memory:
            _, turned_by, inverse = memory[-1]
            step.div_(inverse * _dot(turned_by, self._inverse(turned_by, curvature, l2)))
        for (moved_by, turned_by, inverse), share in zip(memory, reversed(shares), strict=True):
            step.add_(moved_by, alpha=share - inverse * _dot(turned_by, step))
        return step.neg_()

    def _inverse(self, vector: Tensor, curvature: float, l2: float) -> Tensor:
        result = torch.empty_like(vector)
        torch.div(vector[:-1], (curvature * self.variances + l2)[:, None], out=result[:-1])
        torch.div(vector[-1], curvature, out=result[-1])
        return result


def _dot(a: Tensor, b: Tensor) -> float:
    return float(torch.dot(a.reshape(-1), b.reshape(-1)))
