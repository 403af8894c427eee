"""Networks that score boundaries, on features of time steps: of one window, or of a whole stretch of video.

Axes: B windows or videos, T time steps of a window, N moments of a stretch, D feature size.
"""

from __future__ import annotations

from typing import Literal

import torch
from einops import rearrange, reduce
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

Pooling = Literal["mean", "centre", "halves", "change"]


class WindowHead(nn.Module):
    """Two logits (no boundary, boundary) of a window: pool its time steps, then one linear layer.

    Args:
        num_features: D.
        pooling: ``mean`` over the window; ``centre``, its middle step or two; ``halves``, the means before and after
            one behind the other (the PC baseline's); ``change``, the mean and the absolute difference of the halves.
        standardise: Bring every pooled number to mean 0 and spread 1 over the training batches first: for frozen
            features, whose scale nothing else can adapt.
    """

    def __init__(self, num_features: int, pooling: Pooling = "change", standardise: bool = False) -> None:
        super().__init__()
        if pooling not in ("mean", "centre", "halves", "change"):
            raise ValueError(f"pooling is mean, centre, halves or change, not {pooling!r}")
        self.pooling = pooling
        width = num_features * (2 if pooling in ("halves", "change") else 1)
        self.norm = nn.BatchNorm1d(width, affine=False) if standardise else nn.Identity()
        self.classifier = nn.Linear(width, 2)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)

    def pool(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b f"]:
        """(B, T, D) to what the linear layer sees."""
        steps = x.shape[1]
        if self.pooling == "mean":
            return reduce(x, "b t d -> b d", "mean")
        if self.pooling == "centre":
            return reduce(x[:, (steps - 1) // 2 : steps // 2 + 1], "b t d -> b d", "mean")
        if steps < 2:
            raise ValueError(f"pooling {self.pooling!r} needs at least 2 time steps in a window, got {steps}")
        before, after = x[:, : steps // 2].mean(1), x[:, (steps + 1) // 2 :].mean(1)
        if self.pooling == "halves":
            return torch.cat([before, after], 1)
        return torch.cat([x.mean(1), (after - before).abs()], 1)

    def forward(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b 2"]:
        """Logits (B, 2) of windows (B, T, D)."""
        logits: Tensor = self.classifier(self.norm(self.pool(x)))
        return logits


class TemporalConvolutions(nn.Module):
    """A boundary score for every moment: dilated temporal convolutions on a stretch of features (the TCN row).

    Residual layers of kernel 3 with dilations 1, 2, 4, …; with 5 of them a moment sees 63 moments around it. Padding
    repeats the end moments.

    Args:
        num_features: D.
        width: Channels inside.
        num_layers: Residual layers.
        dropout: Of each layer.
    """

    def __init__(self, num_features: int, width: int = 128, num_layers: int = 5, dropout: float = 0.1) -> None:
        super().__init__()
        if width < 1 or num_layers < 1 or not 0 <= dropout < 1:
            raise ValueError(f"tcn: impossible width {width}, num_layers {num_layers} or dropout {dropout}")
        self.enter = nn.Sequential(nn.BatchNorm1d(num_features, affine=False), nn.Conv1d(num_features, width, 1))
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.Conv1d(width, width, 3, padding=2**i, dilation=2**i, padding_mode="replicate"),
                nn.ReLU(),
                nn.Conv1d(width, width, 1),
                nn.Dropout(dropout),
            )
            for i in range(num_layers)
        )
        self.leave = nn.Conv1d(width, 2, 1)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n 2"]:
        """Logits (B, N, 2) of stretches (B, N, D)."""
        hidden = self.enter(rearrange(x, "b n d -> b d n"))
        for layer in self.layers:
            hidden = hidden + layer(hidden)
        logits: Tensor = rearrange(self.leave(hidden), "b c n -> b n c")
        return logits


class BoundaryMatching(nn.Module):
    """BMN: how likely an event starts or ends at a moment, and how good each span of time is as an event.

    A confidence map holds every span (start, duration); a span's features are ``num_samples`` points spread evenly over
    it and a quarter of it beyond each end. Source: Lin et al., "BMN: Boundary-Matching Network for Temporal Action
    Proposal Generation", ICCV 2019, section 3; widths are smaller where the features are.

    Args:
        num_features: D.
        num_moments: N, moments in a stretch, and the longest span.
        width: Channels of the temporal part; the map has twice as many in its middle.
        num_samples: Points of a span.
    """

    sampling: Tensor
    MAX_SAMPLING = 2**28  # weights that reading the spans may take: 1 GiB, from about 200 moments on with 32 points

    def __init__(self, num_features: int, num_moments: int = 100, width: int = 128, num_samples: int = 32) -> None:
        super().__init__()
        if min(num_moments, width, num_samples) < 2:
            raise ValueError(
                f"bmn: num_moments {num_moments}, width {width}, num_samples {num_samples}: all at least 2"
            )
        if num_moments**3 * num_samples > self.MAX_SAMPLING:
            raise ValueError(f"bmn: {num_moments} moments with {num_samples} samples take more than 1 GiB; use fewer")
        self.num_moments = num_moments
        self.norm = nn.BatchNorm1d(num_features, affine=False)
        self.base = nn.Sequential(
            nn.Conv1d(num_features, 2 * width, 3, padding=1), nn.ReLU(),
            nn.Conv1d(2 * width, width, 3, padding=1), nn.ReLU(),
        )  # fmt: skip
        self.ends = nn.Sequential(nn.Conv1d(width, 2 * width, 3, padding=1), nn.ReLU(), nn.Conv1d(2 * width, 2, 1))
        self.reduce = nn.Conv1d(width, width, 3, padding=1)
        self.spans = nn.Conv3d(width, 2 * width, (num_samples, 1, 1))
        self.judge = nn.Sequential(
            nn.Conv2d(2 * width, width, 1), nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1), nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1), nn.ReLU(),
            nn.Conv2d(width, 2, 1),
        )  # fmt: skip
        self.register_buffer("sampling", _span_sampling(num_moments, num_samples), persistent=False)

    def forward(
        self, x: Float[Tensor, "b n d"]
    ) -> tuple[Float[Tensor, "b 2 n"], Float[Tensor, "b 2 n n"]]:  # fmt: skip
        """Logits of starts and ends (B, 2, N), and of spans (B, 2, N, N): [duration, start], classified and regressed.

        Args:
            x: Stretches (B, N, D) of exactly ``num_moments``.
        """
        hidden = self.base(self.norm(rearrange(x, "b n d -> b d n")))
        points = torch.einsum("bcn,nsdt->bcsdt", F.relu(self.reduce(hidden)), self.sampling)
        spans = F.relu(rearrange(self.spans(points), "b c 1 d t -> b c d t"))
        return self.ends(hidden), self.judge(spans)

    def boundary_scores(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n"]:
        """How good the best span is that starts at a moment, or ends where it begins (the BMN-SE row): (B, N).

        A span's score is the product of its start's and its end's probability and the root of its two confidences. The
        first moment is where the stretch begins, which is no boundary: its score is 0.
        """
        ends, spans = self.forward(x)
        probabilities, confidence = ends.sigmoid(), spans.sigmoid().prod(1).sqrt()
        moments = torch.arange(self.num_moments, device=x.device)
        last = moments[:, None] + moments[None, :]  # [duration - 1, start]: the last moment of the span
        inside = last < self.num_moments
        closing = probabilities[:, 1][:, last.clamp(max=self.num_moments - 1)]
        score = torch.where(inside, probabilities[:, 0, None, :] * closing * confidence, 0.0)
        found = score.amax(1)
        following = (last + 1)[inside]
        ended = score[:, inside]
        keep = following < self.num_moments
        found = found.scatter_reduce(1, following[keep].expand(len(x), -1), ended[:, keep], "amax")
        return F.pad(found[:, 1:], (1, 0))

    def loss(
        self,
        x: Float[Tensor, "b n d"],
        is_start: Bool[Tensor, "b n"],
        is_end: Bool[Tensor, "b n"],
        overlap: Float[Tensor, "b n n"],
        inside: Bool[Tensor, "b n"],
    ) -> dict[str, Tensor]:
        """The three losses of BMN (its section 3.4) and their sum.

        Args:
            x: Stretches (B, N, D).
            is_start: Whether an event starts at a moment.
            is_end: Whether an event ends with a moment.
            overlap: [duration - 1, start], the span's largest overlap (intersection over union) with an event.
            inside: Moments that exist; a shorter video fills only part of a stretch.
        """
        ends, spans = self.forward(x)
        moments = torch.arange(self.num_moments, device=x.device)
        last = moments[:, None] + moments[None, :]
        length = inside.sum(1)[:, None, None]
        exists = last[None] < length  # [b, duration - 1, start]
        boundary = balanced_loss(ends[:, 0], is_start, inside) + balanced_loss(ends[:, 1], is_end, inside)
        classified = balanced_loss(spans[:, 0], overlap > 0.9, exists)
        regressed = F.mse_loss(spans[:, 1].sigmoid()[exists], overlap[exists])
        total = boundary + classified + 10 * regressed
        return {"loss": total, "ends/loss": boundary, "spans/loss": classified, "overlap/loss": regressed}


def _span_sampling(num_moments: int, num_samples: int) -> Float[Tensor, "n s n n"]:
    """Weights that read ``num_samples`` points of every span [duration - 1, start] by linear interpolation."""
    start = torch.arange(num_moments)[None, None, :].float()
    length = torch.arange(1, num_moments + 1)[None, :, None].float()
    share = torch.linspace(-0.25, 1.25, num_samples)[:, None, None]
    points = start + share * length - 0.5  # centre of a moment is at its number
    inside = (start + length <= num_moments) & (points > -1) & (points < num_moments)
    weights = (1 - (points[None] - torch.arange(num_moments)[:, None, None, None]).abs()).clamp(min=0)
    return weights * inside


def balanced_loss(
    logits: Float[Tensor, "*shape"], target: Bool[Tensor, "*shape"], inside: Bool[Tensor, "*shape"]
) -> Tensor:
    """Binary cross-entropy in which the positives weigh together as much as the negatives do.

    Args:
        logits: Of being positive.
        target: What is positive.
        inside: What counts at all.

    Returns:
        The mean over positives and over negatives, halved; of one kind alone where the other is absent.
    """
    each = F.binary_cross_entropy_with_logits(logits, target.to(logits.dtype), reduction="none")
    parts = [each[inside & target], each[inside & ~target]]
    means = [part.mean() for part in parts if part.numel()]
    return torch.stack(means).mean() if means else each.sum() * 0
