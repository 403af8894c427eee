"""SimCLR on single frames: two augmented views of a picture find each other among those of all other videos.

Source: the image objective that CVRL and TeG compare with. It is CVRL's contrast (2N - 2 negatives, both directions) on
clips of one frame; the two directions are averaged here as SimCLR has it, where CVRL adds them.

The paper's row takes weights trained on ImageNet's pictures and inflates them to R3D-50. Here the pictures are single
frames of the videos at hand, both views of one frame, and the network is the two-dimensional one of the same family
(temporal kernels of 1); ``timegrain inflate-weights`` makes the three-dimensional one of it.
"""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float, Shaped
from torch import Tensor

from timegrain.distributed import RowsOnDemand
from timegrain.objectives.cvrl import CVRL


class SimCLR(CVRL):
    """Encoder and SimCLR's loss: two views of each picture in, losses by name out; arguments as in :class:`CVRL`."""

    def forward(
        self,
        clips: Sequence[Float[Tensor, "batch 3 frames height width"] | RowsOnDemand],
        indices: Sequence[Shaped[Tensor, "batch _"]],
    ) -> dict[str, Tensor]:
        """Losses of one batch, named as :func:`timegrain.objectives.cvrl.cvrl_loss` names them.

        Args:
            clips: First and second views, clips of one frame each.
            indices: Not used.

        Returns:
            ``loss`` and ``chance_loss`` are half of CVRL's: means over both directions.
        """
        losses = super().forward(clips, indices)
        return {**losses, "loss": losses["loss"] / 2, "chance_loss": losses["chance_loss"] / 2}
