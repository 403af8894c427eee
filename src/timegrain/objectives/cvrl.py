"""CVRL, the objective of the paper's family: two clips of a video, both directions, all other clips are negatives.

Source: TensorFlow Model Garden, official/projects/video_ssl (losses and pre-training task). TeG's Eq. 2 is a different
loss: one direction, and only the long clips of other videos as negatives.

**Convention.** Each direction is a mean over this process's videos, and the two directions are *added*. Averaged over
processes, as DDP averages gradients, this is the loss of the joined batch. The reference does not average over its R
replicas but sums, so its published learning rates act as R times as large on this loss.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.nn import functional as F

from timegrain.distributed import RowsOnDemand, gather_with_gradient, in_chunks, rank
from timegrain.losses import embedding_spread, info_nce
from timegrain.models.hub import VideoEncoder
from timegrain.objectives.objective import Objective, check_head, check_temperature, project


def cvrl_loss(
    first: Float[Tensor, "batch channels"],
    second: Float[Tensor, "batch channels"],
    temperature: float = 0.1,
    *,
    normalize: bool = True,
    gather: bool = True,
) -> dict[str, Tensor]:
    """Find each clip's partner among the clips of all videos in both views, except the clip itself.

    A query has 2N - 2 negatives, N being the videos of all processes: the other N - 1 clips of the other view and the
    other N - 1 clips of its own view.

    Args:
        first: Projections of the first clips, row i of video i.
        second: Projections of the second clips of the same videos.
        temperature: τ.
        normalize: L2-normalise the projections first (squared norms below 1e-12 count as 1e-12).
        gather: Take the keys of all processes; gradients flow back to the process that owns a key.

    Returns:
        ``loss`` = ``first/loss`` + ``second/loss`` (queries from the first and from the second view); and, not
        differentiable, over the keys of the other view only, for queries of the first: ``accuracy`` (share that scores
        its partner highest) and ``entropy`` (mean, in nats, of the softmax); ``spread`` of the first views' embeddings;
        ``num_negatives`` and ``chance_loss`` = 2 ln(2N - 1).
    """
    wide = torch.promote_types(first.dtype, torch.float32)
    first, second = first.to(wide), second.to(wide)
    if normalize:
        first, second = F.normalize(first, dim=-1, eps=1e-6), F.normalize(second, dim=-1, eps=1e-6)
    first_keys, second_keys, offset = first, second, 0
    if gather:
        first_keys, second_keys = gather_with_gradient(first), gather_with_gradient(second)
        offset = rank() * len(first)
    own = offset + torch.arange(len(first), device=first.device)
    num_videos = len(first_keys)
    # The other view's keys come first: the partner is key `own`, the query itself is key `num_videos + own`.
    itself = (num_videos + own).unsqueeze(1)
    first_loss, _ = info_nce(first, torch.cat([second_keys, first_keys]), own, itself, temperature)
    second_loss, _ = info_nce(second, torch.cat([first_keys, second_keys]), own, itself, temperature)
    accuracy, entropy = _contrast(first.detach(), second_keys.detach(), own, temperature)
    return {
        "loss": first_loss + second_loss,
        "first/loss": first_loss.detach(),
        "second/loss": second_loss.detach(),
        "accuracy": accuracy,
        "entropy": entropy,
        "spread": embedding_spread(first.detach().unsqueeze(1)),
        "num_negatives": first.new_tensor(2 * num_videos - 2),
        "chance_loss": first.new_tensor(2 * math.log(2 * num_videos - 1)),
    }


def _contrast(
    queries: Float[Tensor, "batch channels"], keys: Float[Tensor, "videos channels"], own: Tensor, temperature: float
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """The reference's two metrics: top-1 accuracy, and entropy with its 1e-8 inside the logarithm."""
    with torch.autocast(queries.device.type, enabled=False):
        logits = queries @ keys.T / temperature
        probabilities = logits.softmax(1)
        entropy = -(probabilities * (probabilities + 1e-8).log()).sum(1).mean()
        return (logits.argmax(1) == own).float().mean(), entropy


class CVRL(Objective):
    """Encoder and CVRL's loss: two clips of each video in, losses by name out.

    Features are averaged over time and space *before* the head (TeG projects every time step), and both views go
    through the network as one batch, so that batch statistics cover both, as in the reference.

    Args:
        encoder: Backbone with a projection head.
        head: Name of that head.
        temperature: τ.

    Raises:
        ValueError: If the encoder has no such head, or the temperature is not above 0.
    """

    def __init__(self, encoder: VideoEncoder, head: str = "persistent", temperature: float = 0.1) -> None:
        super().__init__()
        check_head(encoder, head)
        check_temperature(temperature)
        self.encoder, self.head, self.temperature = encoder, head, temperature

    def project(self, clips: Float[Tensor, "clips 3 frames height width"]) -> Float[Tensor, "clips channels"]:
        """One projection per clip, not normalised."""
        return project(self.encoder, clips, self.head)

    def forward(
        self,
        clips: Sequence[Float[Tensor, "batch 3 frames height width"] | RowsOnDemand],
        indices: Sequence[Shaped[Tensor, "batch _"]],
    ) -> dict[str, Tensor]:
        """Losses of one batch.

        Args:
            clips: Augmented first and second clips of the same videos, in [0, 1], of the same shape.
            indices: Not used.

        Returns:
            ``loss`` and the parts to log, as :func:`cvrl_loss` names them.
        """
        # Both views of the same videos are in a chunk, so that its batch statistics cover both as the whole batch's do.
        views = in_chunks(self._both, clips, self.chunk_size, self.encoder)
        return cvrl_loss(views["first"], views["second"], self.temperature)

    def _both(self, first_clip: Tensor, second_clip: Tensor) -> dict[str, Tensor]:
        first, second = self.project(torch.cat([first_clip, second_clip])).chunk(2)
        return {"first": first, "second": second}
