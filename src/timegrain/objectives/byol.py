"""ρBYOL: from each of ρ clips of a video, predict the embeddings that a momentum encoder has of the others.

Source: Feichtenhofer et al. (CVPR 2021), section 3, and its released code. There are no negatives. Every clip is a
query once; its targets are the ρ - 1 other clips.

**Choices.** The loss is the mean over queries and targets of 2 - 2·cosine, the squared distance of unit vectors (the
released code adds the gradients of its ρ queries; LARS does not notice the factor). The predictor has the projection
head's shape, from and to its output size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.nn import functional as F

from timegrain.distributed import RowsOnDemand
from timegrain.losses import embedding_spread
from timegrain.models.heads import ProjectionHead
from timegrain.models.hub import VideoEncoder
from timegrain.objectives.momentum import check_momentum, follow, frozen_copy, momentum_at
from timegrain.objectives.objective import Objective, check_head, project


def byol_loss(
    predictions: Float[Tensor, "clips batch channels"], targets: Float[Tensor, "clips batch channels"]
) -> Float[Tensor, ""]:
    """Mean of 2 - 2·cosine over every prediction and the targets of the other clips of its video.

    Args:
        predictions: Of clip c of video i at [c, i]; need not be normalised.
        targets: The momentum encoder's embeddings of the same clips, without gradient; need not be normalised.
    """
    num_clips = len(predictions)
    predictions, targets = _unit(predictions), _unit(targets)
    similarity = torch.einsum("cbx,dbx->cdb", predictions, targets)
    others = ~torch.eye(num_clips, dtype=torch.bool, device=similarity.device)
    return (2.0 - 2.0 * similarity[others]).mean()


def _unit(vectors: Tensor) -> Tensor:
    """L2-normalised, in float32 or wider."""
    return F.normalize(vectors.to(torch.promote_types(vectors.dtype, torch.float32)), dim=-1)


class BYOL(Objective):
    """Encoder, predictor and momentum encoder: ρ clips of each video in, losses by name out.

    Args:
        encoder: Backbone with a projection head.
        head: Name of that head.
        momentum: Coefficient of the momentum encoder at the start; it rises to 1 along half a cosine.

    Raises:
        ValueError: If the encoder has no such head, or the momentum is impossible.
    """

    def __init__(self, encoder: VideoEncoder, head: str = "persistent", momentum: float = 0.996) -> None:
        super().__init__()
        check_head(encoder, head)
        check_momentum(momentum)
        self.encoder, self.head, self.momentum = encoder, head, momentum
        self.momentum_encoder = frozen_copy(encoder)
        shape = encoder.config
        self.predictor = ProjectionHead(
            shape.head_out,
            shape.head_hidden,
            shape.head_num_hidden,
            shape.head_out,
            norm=shape.head_norm,
            norm_momentum=shape.head_norm_momentum,
        )

    def forward(
        self,
        clips: Sequence[Float[Tensor, "batch 3 frames height width"] | RowsOnDemand],
        indices: Sequence[Shaped[Tensor, "batch _"]],
    ) -> dict[str, Tensor]:
        """Losses of one batch.

        Args:
            clips: Augmented clips in [0, 1], at least two of each video.
            indices: Not used.

        Returns:
            ``loss``; and, not differentiable, ``accuracy`` (share of predictions that are nearer to the next clip's
            target of their own video than to those of this process's other videos) and ``spread`` of the projections,
            which falls to 0 when they collapse.
        """
        projections = torch.stack([project(self.encoder, clip, self.head, self.chunk_size) for clip in clips])
        predictions = torch.stack([self.predictor(of_clip) for of_clip in projections])
        with torch.no_grad():
            targets = torch.stack([project(self.momentum_encoder, clip, self.head, self.chunk_size) for clip in clips])
        with torch.autocast(predictions.device.type, enabled=False):
            loss = byol_loss(predictions, targets)
            with torch.no_grad():
                scores = _unit(predictions) @ _unit(targets).roll(-1, 0).mT  # clip c against clip c + 1
                own = torch.arange(scores.shape[-1], device=scores.device)
                accuracy = (scores.argmax(-1) == own).float().mean()
        return {
            "loss": loss,
            "accuracy": accuracy,
            "spread": embedding_spread(_unit(projections.detach()).transpose(0, 1)),
        }

    def after_step(self, progress: float) -> None:
        """Let the momentum encoder follow."""
        follow(self.momentum_encoder, self.encoder, momentum_at(progress, self.momentum))
