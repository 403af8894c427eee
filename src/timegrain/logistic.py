"""Multinomial logistic regression as scikit-learn defines it, several times faster on the features of a network.

Objective, over weights ``W`` (C, D) and bias ``b`` (C,), the bias without penalty::

    mean cross-entropy of (X W' + b) + l2 / 2 * |W|^2

which is scikit-learn's ``LogisticRegression(C=1 / (l2 * num_videos))``. Solved by L-BFGS with four things that pay on
cached features: a step costs one product with ``X`` for the direction (its logits are added to those at hand, so the
line search needs no further products) and one for the gradient; features are centred without being copied, which the
bias makes free of charge; the inner Hessian is ``curvature * covariance + l2``, the softmax's mean curvature times
the features' covariance, diagonal in the covariance's eigenbasis, in which the unknowns are kept; and where few
directions hold most of the variance, the problem is first solved in those alone, at a quarter of the cost. The
eigenbasis is what counts: pooled features after a ReLU are so badly conditioned that plain L-BFGS needs hundreds of
steps.
"""

from __future__ import annotations

import math
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
        num_iterations: Steps taken, without those that only looked for a start.
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
        ValueError: Shapes or class numbers do not fit, or a feature is not finite or has no square in its type.
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
        # Variances are sums of squares, and their sum over all must be a number, too.
        lowest, highest = torch.aminmax(features) if features.numel() else (torch.zeros(()),) * 2
        largest = max(-float(lowest), float(highest))
        if not largest**2 * features.numel() < torch.finfo(features.dtype).max:
            raise ValueError(f"features hold values that are not finite, or too large for their type: {largest:g}")
        self.mean = features.mean(0)
        labels = labels.to(features.device, torch.int64)[:, None]
        # An orthonormal basis of the directions in which the features vary, and their variance along each, rising. The
        # minimum lies in it: what does not vary tells no classes apart, and weights that tell nothing cost a penalty.
        if features.shape[0] <= features.shape[1]:
            # In float64: here a direction that is lost is lost to the solution.
            centred = features.cpu().double()
            centred = centred - centred.mean(0)  # not in place: float64 features are still the caller's
            values, vectors = torch.linalg.eigh(centred @ centred.T)
            keep = values > values[-1].clamp_min(1e-30) * 1e-13
            lengths, vectors = values[keep].sqrt(), vectors[:, keep]
            self.basis = (centred.T @ (vectors / lengths)).to(features)
            variances = (values[keep] / len(features)).to(features)
            self.whole = _Objective((vectors * lengths).to(features), labels, num_classes, variances)
        else:
            # Any basis is exact and this one only has to be good: four videos per feature tell the covariance.
            sample = features[:: max(1, features.shape[0] // (4 * features.shape[1]))]
            mean = sample.mean(0)
            covariance = torch.addmm(torch.outer(mean, mean), sample.T, sample, beta=-1, alpha=1 / len(sample))
            variances, self.basis = torch.linalg.eigh(covariance)
            variances = variances.clamp_min(variances[-1].clamp_min(1e-30) * 1e-7)
            self.whole = _Objective(features, labels, num_classes, variances, (self.basis, self.mean))

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
            tolerance: Stop when about this share of the objective is left to gain, or less than the numbers resolve.
            max_iterations: Steps at most.
            history: Steps whose curvature is remembered.

        Raises:
            ValueError: If ``l2`` is not above 0.
        """
        if not l2 > 0:
            raise ValueError(f"the penalty must be above 0, got {l2}")
        point = self.mean.new_zeros(self.whole.size)
        weight, bias = self.whole.split(point)
        if start is not None:
            torch.mm(start.weight, self.basis, out=weight)
            torch.add(start.bias, start.weight @ self.mean, out=bias)
        else:
            self._start(l2, point)
        point, objective, num_iterations, converged = self.whole.minimise(point, l2, tolerance, max_iterations, history)
        weight, bias = self.whole.split(point)
        weight = weight @ self.basis.T
        return LogisticFit(weight, bias - weight @ self.mean, objective, num_iterations, converged)

    def _start(self, l2: float, point: Tensor) -> None:
        """Move a point at zero to about the minimum over the leading quarter of the directions.

        Skipped where they hold little of the variance, as of round clusters: there it would only cost.
        """
        whole = self.whole
        count = len(whole.variances) // 4
        if not count or whole.variances[-count:].sum() < 0.7 * whole.variances.sum():
            return
        if whole.frame is None:
            features = whole.features[:, -count:]
        else:
            leading = self.basis[:, -count:]
            features = torch.addmm(-(self.mean @ leading), whole.features, leading)
        part = _Objective(features, whole.labels, whole.num_classes, whole.variances[-count:])
        found = part.minimise(point.new_zeros(part.size), l2, tolerance=1e-3, max_iterations=100, history=10)[0]
        for target, values in zip(whole.split(point), part.split(found), strict=True):
            target[..., -values.shape[-1] :] = values


class _Objective:
    """What is minimised, over the weights' coordinates in a basis and the bias of the centred features.

    Both lie in one vector: C rows of coordinates, then C biases.

    Args:
        features: (N, R) coordinates of the centred features; with a frame, (N, D) features.
        labels: (N, 1).
        num_classes: C.
        variances: (R,) of the features along each direction.
        frame: Basis (D, R) and mean (D,) of the features.
    """

    def __init__(
        self,
        features: Tensor,
        labels: Tensor,
        num_classes: int,
        variances: Tensor,
        frame: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        self.features, self.labels, self.num_classes = features, labels, num_classes
        self.variances, self.frame = variances, frame
        self.size = num_classes * (len(variances) + 1)

    def split(self, point: Tensor) -> tuple[Tensor, Tensor]:
        """Views of a point: weights (C, R) and bias (C,)."""
        return point[: -self.num_classes].view(self.num_classes, len(self.variances)), point[-self.num_classes :]

    def minimise(
        self, point: Tensor, l2: float, tolerance: float, max_iterations: int, history: int
    ) -> tuple[Tensor, float, int, bool]:
        """The minimum, its objective, the number of steps, and whether the tolerance was reached."""
        logits = self._logits(point)
        penalty = _dot(point[: -self.num_classes], point[: -self.num_classes])
        objective, residual, curvature = self._value(logits, l2, penalty)
        gradient = self._gradient(residual, l2, point)
        memory: deque[tuple[Tensor, Tensor, float]] = deque(maxlen=history)
        objectives, precision = [objective], torch.finfo(point.dtype).eps
        while len(objectives) <= max_iterations:
            step = self._direction(gradient, memory, curvature, l2)
            slope = _dot(gradient, step)
            if slope > 0:
                # Far from the minimum of the model: forget the past rather than climb.
                memory.clear()
                step = self._direction(gradient, memory, curvature, l2)
                slope = _dot(gradient, step)
            # The falls of the objective are known to its precision only, the slope better where it is almost 0.
            near = -slope / 2 <= tolerance * max(objective, 1e-6)
            if near and _left(objectives) <= max(tolerance * objective, precision):
                return point, objective, len(objectives) - 1, True
            change = self._logits(step)
            length, following = 1.0, 1.0
            low, high = 0.0, float("inf")
            weights, moves = point[: -self.num_classes], step[: -self.num_classes]
            squares = [_dot(weights, weights), _dot(weights, moves), _dot(moves, moves)]
            for _ in range(20):
                length = following
                moved = torch.add(logits, change, alpha=length)
                penalty = squares[0] + 2 * length * squares[1] + length**2 * squares[2]
                objective, residual, curvature = self._value(moved, l2, penalty)
                end_slope = _dot(residual, change) / len(change) + l2 * (squares[1] + length * squares[2])
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
            before = objectives[-1]
            objectives.append(objective)
            stands = before <= objective <= before * (1 + 4 * precision)
            if stands or (len(objectives) > 5 and objective >= objectives[-6]):
                return point, objective, len(objectives) - 1, True  # the precision of the numbers is used up
        return point, objective, len(objectives) - 1, False

    def _logits(self, point: Tensor) -> Tensor:
        weight, bias = self.split(point)
        if self.frame:
            basis, mean = self.frame
            weight = weight @ basis.T
            bias = bias - weight @ mean
        return torch.addmm(bias, self.features, weight.T)

    def _value(self, logits: Tensor, l2: float, penalty: float) -> tuple[float, Tensor, float]:
        """Objective, its gradient with respect to the logits (a sum over videos), and the softmax's mean curvature."""
        shares = torch.log_softmax(logits, 1)
        loss = -float(shares.gather(1, self.labels).mean())
        shares.exp_()
        spread = 1 - _dot(shares, shares) / len(shares)
        shares.scatter_add_(1, self.labels, shares.new_full((len(shares), 1), -1.0))
        return loss + l2 / 2 * penalty, shares, max(spread, 1e-4) / self.num_classes

    def _gradient(self, residual: Tensor, l2: float, point: Tensor) -> Tensor:
        gradient = torch.empty_like(point)
        to_weight, to_bias = self.split(gradient)
        torch.sum(residual, 0, out=to_bias)
        if self.frame:
            basis, mean = self.frame
            torch.mm(torch.mm(residual.T, self.features).addr_(to_bias, mean, alpha=-1), basis, out=to_weight)
        else:
            torch.mm(residual.T, self.features, out=to_weight)
        gradient.div_(len(residual))
        to_weight.add_(self.split(point)[0], alpha=l2)
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
        (to_weight, to_bias), (weight, bias) = self.split(result), self.split(vector)
        torch.div(weight, curvature * self.variances + l2, out=to_weight)
        torch.div(bias, curvature, out=to_bias)
        return result


def _left(objectives: list[float]) -> float:
    """What is left to gain if the objective goes on falling as over the last steps; 0 where there are too few.

    Falls over two spans of equal length tell the rate of a geometric series. Single falls are uneven, so several
    lengths are asked, and the one that foresees most is believed.
    """
    longest = min(5, (len(objectives) - 1) // 2)
    left = 0.0
    for span in range(min(2, longest), longest + 1) if longest else ():
        earlier = objectives[-2 * span - 1] - objectives[-span - 1]
        later = objectives[-span - 1] - objectives[-1]
        left = max(left, later**2 / (earlier - later) if later < earlier else math.inf)
    return left


def _dot(a: Tensor, b: Tensor) -> float:
    return float(torch.dot(a.reshape(-1), b.reshape(-1)))
