"""ρMoCo: each of ρ clips of a video finds the others' keys, made by a momentum encoder, among a queue of older keys.

Source: Feichtenhofer et al. (CVPR 2021), section 3, and its released code. Every clip is a query once; its positives
are the keys of the ρ - 1 other clips, one at a time; the negatives are the queue's keys alone.

**Choices.** The loss is the mean over queries and positives (the released code adds the gradients of its ρ queries, so
its learning rates act as ρ times as large on this loss). Keys of all ρ clips enter the queue, as in the released
configuration. The queue starts with random unit vectors and every step trains (there, the weights wait until the queue
is full). Norms are synchronised over processes where PyTorch can (``run.sync_batchnorm``), which is the released code's
own alternative to shuffling clips between processes; on CPUs and in a single process neither is done.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.nn import functional as F

from timegrain.distributed import RowsOnDemand, gather_with_gradient
from timegrain.losses import embedding_spread, info_nce
from timegrain.models.hub import VideoEncoder
from timegrain.objectives.momentum import check_momentum, follow, frozen_copy, momentum_at
from timegrain.objectives.objective import Objective, check_head, check_temperature, project


def moco_loss(
    queries: Float[Tensor, "clips batch channels"],
    keys: Float[Tensor, "clips batch channels"],
    queue: Float[Tensor, "queue channels"],
    temperature: float = 0.1,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Each query against each other clip's key of its video, beside the queue.

    Args:
        queries: L2-normalised, clip c of video i at [c, i].
        keys: L2-normalised keys of the same clips, without gradient.
        queue: L2-normalised older keys: the negatives.
        temperature: τ.

    Returns:
        The mean loss over queries and positives, and the share that score the positive above the whole queue.
    """
    num_clips, batch, _ = queries.shape
    every = torch.arange(num_clips * batch, device=queries.device)
    # Row (c, b) as often as it has positives: the rows (d, b) of the keys, d ≠ c.
    pairs = [(c, d) for c in range(num_clips) for d in range(num_clips) if d != c]
    rows = torch.cat([every[c * batch : (c + 1) * batch] for c, _ in pairs])
    positives = torch.cat([every[d * batch : (d + 1) * batch] for _, d in pairs])
    candidates = torch.cat([keys.flatten(0, 1), queue])
    # Keys of this batch are no negatives, of nobody.
    return info_nce(queries.flatten(0, 1)[rows], candidates, positives, every.expand(len(rows), -1), temperature)


class MoCo(Objective):
    """Encoder, momentum encoder and queue: ρ clips of each video in, losses by name out.

    The queue is a ring: the keys of a step, of all processes in order of rank, clip by clip, overwrite the oldest.
    It and the momentum encoder are part of the state, so a run resumes exactly.

    Args:
        encoder: Backbone with a projection head.
        head: Name of that head.
        temperature: τ.
        queue_size: Negatives.
        momentum: Coefficient of the momentum encoder at the start; it rises to 1 along half a cosine.

    Raises:
        ValueError: If the encoder has no such head, or a number is impossible.
    """

    queue: Tensor
    queue_position: Tensor

    def __init__(
        self,
        encoder: VideoEncoder,
        head: str = "persistent",
        temperature: float = 0.1,
        queue_size: int = 65_536,
        momentum: float = 0.994,
    ) -> None:
        super().__init__()
        check_head(encoder, head)
        check_temperature(temperature)
        check_momentum(momentum)
        if queue_size < 1:
            raise ValueError(f"queue_size must be at least 1, got {queue_size}")
        self.encoder, self.head, self.temperature, self.momentum = encoder, head, temperature, momentum
        self.momentum_encoder = frozen_copy(encoder)
        # Drawn by a generator of its own: the weights of the encoder do not depend on there being a queue.
        random = torch.randn(queue_size, encoder.config.head_out, generator=torch.Generator().manual_seed(0))
        self.register_buffer("queue", F.normalize(random, dim=1))
        self.register_buffer("queue_position", torch.tensor(0))

    def forward(
        self,
        clips: Sequence[Float[Tensor, "batch 3 frames height width"] | RowsOnDemand],
        indices: Sequence[Shaped[Tensor, "batch _"]],
    ) -> dict[str, Tensor]:
        """Losses of one batch; in training mode its keys then enter the queue.

        Args:
            clips: Augmented clips in [0, 1], at least two of each video.
            indices: Not used.

        Returns:
            ``loss``; and, not differentiable, ``accuracy`` (share of pairs that score above the whole queue),
            ``spread`` of the queries, ``num_negatives`` and ``chance_loss`` = ln(1 + negatives).
        """
        queries = torch.stack([self._embed(self.encoder, clip) for clip in clips])
        with torch.no_grad():
            keys = torch.stack([self._embed(self.momentum_encoder, clip) for clip in clips])
        negatives = self.queue.to(keys.dtype)
        loss, accuracy = moco_loss(queries, keys, negatives, self.temperature)
        if self.training:
            self.enqueue(keys)
        return {
            "loss": loss,
            "accuracy": accuracy,
            "spread": embedding_spread(queries.detach().transpose(0, 1)),
            "num_negatives": loss.new_tensor(len(negatives)),
            "chance_loss": loss.new_tensor(math.log1p(len(negatives))),
        }

    @torch.no_grad()
    def enqueue(self, keys: Float[Tensor, "clips batch channels"]) -> None:
        """Put keys of all processes into the queue, in the place of its oldest.

        Raises:
            ValueError: If the queue is smaller than the keys of one step.
        """
        new = torch.cat([gather_with_gradient(clip_keys) for clip_keys in keys]).to(self.queue.dtype)
        if len(new) > len(self.queue):
            raise ValueError(
                f"the queue of {len(self.queue)} keys is smaller than the {len(new)} keys of one step "
                "(clips x videos over all processes); raise --objective.queue_size or lower --data.batch_size"
            )
        places = (self.queue_position + torch.arange(len(new), device=self.queue.device)) % len(self.queue)
        self.queue[places] = new
        self.queue_position.copy_((self.queue_position + len(new)) % len(self.queue))

    def after_step(self, progress: float) -> None:
        """Let the momentum encoder follow."""
        follow(self.momentum_encoder, self.encoder, momentum_at(progress, self.momentum))

    def _embed(self, encoder: VideoEncoder, clip: Tensor | RowsOnDemand) -> Tensor:
        """Unit embeddings, in float32 or wider."""
        projections = project(encoder, clip, self.head, self.chunk_size)
        return F.normalize(projections.to(torch.promote_types(projections.dtype, torch.float32)), dim=-1)
