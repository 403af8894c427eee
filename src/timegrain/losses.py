"""The contrastive losses of TeG: one InfoNCE, one matching rule, a list of granularity levels.

Source: Eq. 1 (fine-grained loss L_f), Eq. 2 (persistent loss L_p) and Eq. 3 (their weighted sum) of the paper. L_p is
the level n = m = 1; TeG(α) is two levels with weights α and 1 - α; a pyramid is several levels at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from timegrain.aggregation import aggregate, check_num, match_nearest, time_step_positions
from timegrain.distributed import gather_with_gradient, rank, world_size


@dataclass(frozen=True)
class Level:
    """One granularity: how many embeddings a clip is pooled to, with which head, and how much it counts.

    Args:
        num_short: n, embeddings of the short clip.
        num_long: m, embeddings of the long clip.
        weight: Factor of this level's loss; 0 switches it off, head included.
        head: Name of the projection head.
        same_video_negatives: Also contrast against the other long embeddings of the same video (Eq. 1 does not).
        symmetric: Average with the opposite direction, long queries against short keys (Eq. 1 does not).
    """

    num_short: int = 1
    num_long: int = 4
    weight: float = 1.0
    head: str = "fine"
    same_video_negatives: bool = False
    symmetric: bool = False

    def __post_init__(self) -> None:
        if self.num_short < 1 or self.num_long < 1:
            raise ValueError(f"num_short and num_long must be at least 1, got {self.num_short} and {self.num_long}")
        if not 0 <= self.weight < math.inf:
            raise ValueError(f"a level's weight must be 0 or more, got {self.weight}")

    def num_negatives(self, global_batch: int) -> int:
        """Negatives of one short query in a global batch of that many videos."""
        return (global_batch - 1) * self.num_long + (self.num_long - 1) * self.same_video_negatives


def levels_for_alpha(alpha: float, num_short: int = 1, num_long: int = 4) -> tuple[Level, ...]:
    """The two levels of Eq. 3: α times the fine-grained loss, 1 - α times the persistent one; zero weights left out.

    Args:
        alpha: 0 is TeG-PS, 0.9 the paper's TeG-FG.
        num_short: n of the fine-grained level.
        num_long: m of the fine-grained level.

    Raises:
        ValueError: If ``alpha`` is outside 0 … 1.
    """
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"alpha must be between 0 (persistent) and 1 (fine-grained), got {alpha}")
    levels = (Level(num_short, num_long, alpha, "fine"), Level(1, 1, 1.0 - alpha, "persistent"))
    return tuple(level for level in levels if level.weight > 0)


class _StreamedCrossEntropy(torch.autograd.Function):
    """Cross-entropy over all keys, a few queries at a time, with the gradients made on the way.

    The score matrix of a dense loss (8 embeddings of 1,024 videos against 16 of each) is half a gigabyte, and autograd
    keeps several of it. Here only a block of rows exists at a time; the gradient with respect to the scores is known as
    soon as a row is complete, so the backward pass has nothing left to compute but a scale. The block is kept with the
    keys along its rows: all three products read and write it faster so than with the queries along them.
    """

    BLOCK = 256  # queries at a time: large enough for fast products, small enough for the cache

    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, keys: Tensor, positives: Tensor, ignored: Tensor | None, temperature: float
    ) -> tuple[Tensor, Tensor]:
        with_gradient = any(ctx.needs_input_grad[:2])
        query_gradient, key_gradient = torch.empty_like(queries), torch.zeros_like(keys)
        loss, hits = queries.new_zeros(()), queries.new_zeros(())
        scaled = queries / (temperature * math.log(2))  # powers of 2 are quicker than those of e
        size = min(_StreamedCrossEntropy.BLOCK, len(queries))
        buffer = queries.new_empty(len(keys) * size)
        for block in range(0, len(queries), size):
            rows = slice(block, block + size)
            query, positive = queries[rows], positives[rows].unsqueeze(0)
            scores = buffer[: len(keys) * len(query)].view(len(keys), -1)
            torch.mm(keys, scaled[rows].T, out=scores)
            positive_score = scores.gather(0, positive)
            if ignored is not None:
                scores.scatter_(0, ignored[rows].T, -torch.inf)
            highest_other = scores.scatter_(0, positive, -torch.inf).amax(0, keepdim=True)
            # Above all others, not among the highest: collapsed embeddings, all scores equal, must not look accurate.
            hits += (highest_other < positive_score).sum()
            highest = torch.maximum(highest_other, positive_score)
            powers = scores.scatter_(0, positive, positive_score).sub_(highest).exp2_()
            total = powers.sum(0, keepdim=True)
            loss += (total.log2() + highest - positive_score).sum()
            if with_gradient:
                powers.scatter_(0, positive, powers.gather(0, positive) - total)
                torch.mm(powers.T, keys, out=query_gradient[rows]).div_(total.T)
                key_gradient.addmm_(powers, query / total.T)
        if with_gradient:
            ctx.save_for_backward(query_gradient, key_gradient)
        ctx.scale = 1.0 / (temperature * len(queries))
        accuracy = hits / len(queries)
        ctx.mark_non_differentiable(accuracy)
        return loss * (math.log(2) / len(queries)), accuracy

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query_gradient, key_gradient = ctx.saved_tensors
        scale = gradients[0] * ctx.scale
        return query_gradient * scale, key_gradient * scale, None, None, None


def _widened(values: Tensor) -> Tensor:
    """In float32, or in float64 where they came so."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def info_nce(
    queries: Float[Tensor, "queries channels"],
    keys: Float[Tensor, "keys channels"],
    positives: Int[Tensor, " queries"],
    ignored: Int[Tensor, "queries ignored"] | None = None,
    temperature: float = 0.1,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Cross-entropy of finding each query's positive among the keys, in float32 or wider whatever autocast says.

    Args:
        queries: L2-normalised.
        keys: L2-normalised.
        positives: Row of ``keys`` that belongs to each query.
        ignored: Rows of ``keys`` that are no negatives of each query; its positive may be among them and still counts.
        temperature: τ; the paper uses one value for both losses.

    Returns:
        The mean loss, and the share of queries whose positive has the highest score.
    """
    with torch.autocast(queries.device.type, enabled=False):
        loss, accuracy = _StreamedCrossEntropy.apply(_widened(queries), _widened(keys), positives, ignored, temperature)
        return loss, accuracy


def _one_direction(
    queries: Float[Tensor, "batch n channels"],
    keys: Float[Tensor, "global_batch m channels"],
    matches: Int[Tensor, "batch n"],
    first_video: int,
    same_video_negatives: bool,
    temperature: float,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Every query against all keys of other videos and its own match (Eq. 1)."""
    (batch, n), m = matches.shape, keys.shape[1]
    own = first_video + torch.arange(batch, device=keys.device)
    positives = rearrange(own.unsqueeze(1) * m + matches, "b n -> (b n)")
    ignored = None
    if m > 1 and not same_video_negatives:
        video = own.repeat_interleave(n).unsqueeze(1)
        ignored = video * m + torch.arange(m, device=keys.device)
    return info_nce(
        rearrange(queries, "b n c -> (b n) c"), rearrange(keys, "g m c -> (g m) c"), positives, ignored, temperature
    )


def level_loss(
    short_embeddings: Float[Tensor, "batch n channels"],
    long_embeddings: Float[Tensor, "batch m channels"],
    short_positions: Float[Tensor, "batch n"],
    long_positions: Float[Tensor, "batch m"],
    level: Level,
    temperature: float = 0.1,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """The loss of one level over this process's videos, keys gathered from all processes (Eq. 1; Eq. 2 at n = m = 1).

    Args:
        short_embeddings: L2-normalised embeddings of the short clips.
        long_embeddings: L2-normalised embeddings of the long clips of the same videos.
        short_positions: Mean source-frame index of each short embedding.
        long_positions: Mean source-frame index of each long embedding.
        level: What to contrast.
        temperature: τ.

    Returns:
        The mean over this process's queries, and the share of queries that rank their positive first. Averaged over
        processes, as DDP averages gradients, this is the loss of the joined batch.
    """
    first_video = rank() * len(short_embeddings)
    matches = match_nearest(short_positions, long_positions)
    loss, accuracy = _one_direction(
        short_embeddings,
        gather_with_gradient(long_embeddings),
        matches,
        first_video,
        level.same_video_negatives,
        temperature,
    )
    if not level.symmetric:
        return loss, accuracy
    backward, _ = _one_direction(
        long_embeddings,
        gather_with_gradient(short_embeddings),
        match_nearest(long_positions, short_positions),
        first_video,
        level.same_video_negatives,
        temperature,
    )
    return (loss + backward) / 2, accuracy


def embedding_spread(embeddings: Float[Tensor, "batch n channels"]) -> Float[Tensor, ""]:
    """1 when unit embeddings of different videos point everywhere, 0 when all are the same (collapse)."""
    return embeddings.float().std(0, correction=0).square().sum(-1).mean().sqrt()


class TeGLoss(nn.Module):
    """Eq. 3 over any list of levels.

    Args:
        levels: Granularity levels; those of weight 0 are left out.
        temperature: τ of every level.

    Raises:
        ValueError: If no level has a positive weight.
    """

    def __init__(self, levels: Sequence[Level], temperature: float = 0.1) -> None:
        super().__init__()
        self.levels = tuple(level for level in levels if level.weight > 0)
        if not self.levels:
            raise ValueError("the loss needs at least one level with a weight above 0")
        if not temperature > 0:
            raise ValueError(f"temperature must be above 0, got {temperature}")
        self.temperature = temperature

    @property
    def heads(self) -> tuple[str, ...]:
        """Names of the heads that the levels use, in order of first use."""
        return tuple(dict.fromkeys(level.head for level in self.levels))

    def names(self) -> list[str]:
        """One name per level: the head's, with n and m where a head serves several levels, and a number if need be."""
        heads = [level.head for level in self.levels]
        names = [
            level.head if heads.count(level.head) == 1 else f"{level.head}_{level.num_short}x{level.num_long}"
            for level in self.levels
        ]
        return [name if names.count(name) == 1 else f"{name}_{place}" for place, name in enumerate(names)]

    def check_steps(self, short_steps: int, long_steps: int) -> None:
        """Raise a ValueError for an n or m beyond the time steps that the backbone leaves."""
        for level in self.levels:
            check_num(level.num_short, short_steps, "num_short")
            check_num(level.num_long, long_steps, "num_long")

    def forward(
        self,
        short_projections: Mapping[str, Float[Tensor, "batch short_steps channels"]],
        long_projections: Mapping[str, Float[Tensor, "batch long_steps channels"]],
        short_indices: Shaped[Tensor, "batch short_frames"],
        long_indices: Shaped[Tensor, "batch long_frames"],
    ) -> dict[str, Tensor]:
        """Aggregate, normalise, match and contrast, level by level.

        Args:
            short_projections: Projected time steps of the short clips by head, not normalised.
            long_projections: The same of the long clips.
            short_indices: Source-frame positions of the short clips' frames.
            long_indices: The same of the long clips.

        Returns:
            ``loss`` (the weighted sum), and per level ``NAME/loss``, ``NAME/accuracy``, ``NAME/spread``,
            ``NAME/num_negatives`` and ``NAME/chance_loss`` = ln(1 + negatives).
        """
        results: dict[str, Tensor] = {}
        total = torch.zeros((), device=short_indices.device)
        for name, level in zip(self.names(), self.levels, strict=True):
            # Means and norms in float32 or wider, too, when autocast made the projections narrower.
            short_steps, long_steps = _widened(short_projections[level.head]), _widened(long_projections[level.head])
            short = F.normalize(aggregate(short_steps, level.num_short), dim=-1)
            long = F.normalize(aggregate(long_steps, level.num_long), dim=-1)
            loss, accuracy = level_loss(
                short,
                long,
                aggregate_positions(short_indices, short_steps.shape[1], level.num_short),
                aggregate_positions(long_indices, long_steps.shape[1], level.num_long),
                level,
                self.temperature,
            )
            negatives = level.num_negatives(len(short) * world_size())
            results[f"{name}/loss"] = loss.detach()
            results[f"{name}/accuracy"] = accuracy
            results[f"{name}/spread"] = embedding_spread(long.detach())
            results[f"{name}/num_negatives"] = loss.new_tensor(negatives)
            results[f"{name}/chance_loss"] = loss.new_tensor(math.log1p(negatives))
            total = total + level.weight * loss
        return {"loss": total, **results}


def aggregate_positions(
    frame_indices: Shaped[Tensor, "batch frames"], num_steps: int, num: int
) -> Float[Tensor, "batch {num}"]:
    """Mean source-frame index of each of ``num`` embeddings pooled from ``num_steps`` time steps."""
    return aggregate(time_step_positions(frame_indices, num_steps).unsqueeze(-1), num).squeeze(-1)
