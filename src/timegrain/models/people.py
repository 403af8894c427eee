"""Where people are in a picture, by torchvision's detector: for videos that come without person boxes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_V2_Weights, fasterrcnn_resnet50_fpn_v2

_PERSON = 1  # in COCO's label map, which the published weights use


def person_detector(weights: Path | None = None, device: torch.device | str = "cpu") -> nn.Module:
    """Torchvision's Faster R-CNN (ResNet-50 FPN v2), trained on COCO.

    Args:
        weights: A state dict (.pth) on disk; by default torchvision downloads its own into its cache.
        device: Where it runs.

    Raises:
        ValueError: The weights cannot be had; the message says how to get them.
    """
    try:
        if weights is None:
            model = fasterrcnn_resnet50_fpn_v2(weights=FasterRCNN_ResNet50_FPN_V2_Weights.COCO_V1)
        else:
            state = torch.load(weights, map_location="cpu", weights_only=True)
            model = fasterrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None)
            model.load_state_dict(state)
    except Exception as error:  # a file that is something else can fail in any way
        source = weights or FasterRCNN_ResNet50_FPN_V2_Weights.COCO_V1.url
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"the person detector's weights cannot be had from {source}: {reason}. Download that file elsewhere and name "
            "it with --data.detector_weights, or give person boxes as a csv with --data.people"
        ) from error
    detector: nn.Module = model.to(device).eval()
    return detector


@torch.inference_mode()
def find_people(
    detector: nn.Module, pictures: Sequence[Tensor], min_score: float = 0.05
) -> list[tuple[Float[Tensor, "_ 4"], Float[Tensor, " _"]]]:
    """People in pictures.

    Args:
        detector: From :func:`person_detector`.
        pictures: uint8 (3, H, W), sizes may differ.
        min_score: Detections at or below it are left out.

    Returns:
        Per picture (K, 4) boxes x1, y1, x2, y2 as fractions of it, and (K,) scores, best first.
    """
    device = next(detector.parameters()).device
    found = []
    outputs = detector([picture.to(device).float() / 255 for picture in pictures])
    for picture, output in zip(pictures, outputs, strict=True):
        kept = (output["labels"] == _PERSON) & (output["scores"] > min_score)
        height, width = picture.shape[-2:]
        boxes = output["boxes"][kept].cpu() / torch.tensor([width, height, width, height])
        found.append((boxes.clamp(0, 1), output["scores"][kept].cpu()))
    return found
