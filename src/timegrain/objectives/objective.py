"""What every pre-training objective is: an encoder and a loss over the clips of each video of a batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from jaxtyping import Float, Shaped
from torch import Tensor, nn

from timegrain.distributed import RowsOnDemand, in_chunks
from timegrain.models.hub import VideoEncoder


class Objective(nn.Module, ABC):
    """Clips of each video in, losses by name out; ``timegrain pretrain`` trains it.

    Attributes:
        encoder: What is kept of it: backbone and heads, as users load them.
        chunk_size: Videos whose clips go through the network at once (:func:`timegrain.distributed.in_chunks`); None is
            the whole batch. The loss sees the whole batch either way.
    """

    encoder: VideoEncoder
    chunk_size: int | None = None

    @abstractmethod
    def forward(
        self,
        clips: Sequence[Float[Tensor, "batch 3 _ _ _"] | RowsOnDemand],
        indices: Sequence[Shaped[Tensor, "batch _"]],
    ) -> dict[str, Tensor]:
        """Losses of one batch.

        Args:
            clips: Augmented clips in [0, 1], (B, 3, T, H, W) each; entry c holds clip c of every video.
            indices: Source-frame positions (B, T) of their frames, clip by clip.

        Returns:
            ``loss``, which is trained, and the parts to log.
        """

    def after_step(self, progress: float) -> None:
        """Called after every optimiser step.

        Args:
            progress: Share of the run's steps that are done, above 0 and up to 1.
        """


def project(
    encoder: VideoEncoder,
    clips: Float[Tensor, "clips 3 frames height width"] | RowsOnDemand,
    head: str,
    chunk_size: int | None = None,
) -> Float[Tensor, "clips channels"]:
    """One projection per clip, not normalised: features are averaged over space and time *before* the head."""

    def network(rows: Tensor) -> dict[str, Tensor]:
        features = encoder(rows).mean(1, keepdim=True)
        return {head: encoder.embed(features, head).squeeze(1)}

    return in_chunks(network, [clips], chunk_size, encoder)[head]


def check_head(encoder: VideoEncoder, head: str) -> None:
    """Raise a ValueError if the encoder has no such head."""
    if head not in encoder.heads:
        raise ValueError(f"the encoder has no head {head!r}; it has {sorted(encoder.heads)}")


def check_temperature(temperature: float) -> None:
    """Raise a ValueError for a temperature of 0 or less."""
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
