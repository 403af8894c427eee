"""TeG: one long and one short clip of a video, contrasted at every granularity level (section 3, Eq. 1-3)."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float, Shaped
from torch import Tensor

from timegrain.distributed import RowsOnDemand, in_chunks
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
        clips: Sequence[Float[Tensor, "batch 3 _ _ _"] | RowsOnDemand],
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
        if self.chunk_size is None or len(long_clip) <= self.chunk_size:
            long, short = self._project_both(long_clip[:], short_clip[:])
        else:
            long, short = (
                in_chunks(self._project, [clip], self.chunk_size, self.encoder) for clip in (long_clip, short_clip)
            )
        losses: dict[str, Tensor] = self.loss(short, long, short_indices, long_indices)
        return losses

    def _project(self, clips: Tensor) -> dict[str, Tensor]:
        """Every time step, projected by each head."""
        features = self.encoder(clips)
        return {head: self.encoder.embed(features, head) for head in self.loss.heads}

    def _project_both(self, *clips: Tensor) -> Sequence[dict[str, Tensor]]:
        """The same of clips that need no chunks, each head run once for all of them."""
        features = [self.encoder(clip) for clip in clips]
        projected = {head: self.encoder.embed_each(features, head) for head in self.loss.heads}
        return [{head: parts[number] for head, parts in projected.items()} for number in range(len(clips))]
