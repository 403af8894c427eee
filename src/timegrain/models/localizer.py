"""Who does what: features of each person's box at a key frame, and a classifier of actions on them.

Source: the paper's AVA-Kinetics evaluation names neither; this is the form of the same team's released code: RoIAlign 7 x 7
on time-averaged features, max-pool, dropout, one linear layer with sigmoids.
"""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn
from torchvision.ops import roi_align

from timegrain.models.hub import VideoEncoder


class ActionLocalizer(nn.Module):
    """Logits of every action for every box.

    Args:
        encoder: Its backbone's last feature map is used; its projection heads are not.
        num_classes: C.
        roi_size: Side of the grid that a box is sampled on.
        dropout: Before the classifier.
    """

    def __init__(self, encoder: VideoEncoder, num_classes: int, roi_size: int = 7, dropout: float = 0.5) -> None:
        super().__init__()
        self.encoder, self.roi_size = encoder, roi_size
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(encoder.backbone.num_features, num_classes)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)

    def forward(
        self, clips: Float[Tensor, "b c t h w"], boxes: Sequence[Float[Tensor, "_ 4"]]
    ) -> Float[Tensor, "people classes"]:
        """Classify people.

        Args:
            clips: Clips centred on key frames, values in [0, 1].
            boxes: Per clip (K, 4): x1, y1, x2, y2 in pixels of the clip.

        Returns:
            (sum of K, C) logits, the people of the first clip first.
        """
        last = list(self.encoder.backbone.feature_maps(clips).values())[-1]
        maps = last.mean(2)  # over time: (B, D, h, w)
        scale = 1 / _stride(max(clips.shape[-2:]), max(maps.shape[-2:]))
        regions = roi_align(
            maps, [box.to(maps.dtype) for box in boxes], self.roi_size, scale, sampling_ratio=-1, aligned=True
        )
        logits: Tensor = self.classifier(self.dropout(regions.amax((2, 3))))
        return logits


def _stride(size: int, left: int) -> int:
    """The power of two that divides ``size`` pixels, rounded up, to ``left`` places of the map: 66 to 3 is by 32."""
    stride = 1
    while -(-size // stride) > left:
        stride *= 2
    return stride
