"""TeG: one long and one short clip of a video, contrasted at every granularity level (section 3, Eq. 1-3)."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float, Shaped
from torch import Tensor

from timegrain.losses import Level, TeGLoss
from timegrain.models.hub import VideoEncoder
from timegrain.objectives.objective import Objective


class TeG(Objective):
    """Encoder and loss: a batch of clip pairs in, losses by name out.

    Args:
        encoder: Backbone that keeps time, with the projection heads that the levels name.
        levels: Granularity levels (:func:`timegrain.losses.levels_for_alpha` gives the paper's two).
        temperature: τ, the same for all levels.

    Raises:
        ValueError: If a level names a head that the encoder does not have.
    """

    def __init__(self, encoder: VideoEncoder, levels: Sequence[Level], temperature: float = 0.1) -> None:
        super().__init__()
        self.encoder = encoder
        self.loss = TeGLoss(levels, temperature)
        missing = set(self.loss.heads) - set(encoder.heads)
        if missing:
            raise ValueError(f"the encoder has no head {sorted(missing)}; it has {sorted(encoder.heads)}")

    def forward(
        self,
        clips: Sequence[Float[Tensor, "batch 3 _ _ _"]],
        indices: Sequence[Shaped[Tensor, "batch _"]],
    ) -> dict[str, Tensor]:
        """Losses of one batch.

        Args:
            clips: Augmented long and short clips of the same videos, in [0, 1].
            indices: Source-frame positions of the long and of the short clips' frames.

        Returns:
            ``loss`` and the parts to log, as :meth:`timegrain.losses.TeGLoss.forward` names them.
        """
        (long_clip, short_clip), (long_indices, short_indices) = clips, indices
        long_features = self.encoder(long_clip)
        short_features = self.encoder(short_clip)
        heads = self.loss.heads
        losses: dict[str, Tensor] = self.loss(
            {head: self.encoder.embed(short_features, head) for head in heads},
            {head: self.encoder.embed(long_features, head) for head in heads},
            short_indices,
            long_indices,
        )
        return losses
