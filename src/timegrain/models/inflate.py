"""From a network for pictures to one for videos: two-dimensional kernels repeated along time ("inflated").

Source: Carreira and Zisserman (CVPR 2017), section 2: each kernel is repeated k times along time and divided by k, so that
a video of one picture that never changes gives the picture's answer. The rows of ImageNet and of SimCLR are made so.
"""

from __future__ import annotations

import json as json_format
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from timegrain.models.hub import VideoEncoder, load_encoder, save_weights

# Settings of a backbone that say what it does along time; all others stay as they are when it is inflated.
_OF_TIME = ("stem_kernel", "stem_temporal_stride", "temporal_kernels", "time_pool")


def inflate(
    encoder: VideoEncoder, options: dict[str, Any], num_frames: int, stride: int, backbone: str | None = None
) -> VideoEncoder:
    """An encoder whose temporal kernels are those of another one, its weights repeated along time.

    Args:
        encoder: With temporal kernels of 1, or shorter than the new ones wherever those differ.
        options: Settings of the new backbone that differ from its own. Those of the encoder that are not about time, such
            as its padding, are kept unless named here; with another backbone none is.
        num_frames: Frames of the clips that the new encoder is meant for.
        stride: Source frames from one to the next.
        backbone: A key of `timegrain.models.hub.BACKBONES`; by default the encoder's.

    Returns:
        The encoder, on the CPU, in evaluation mode.

    Raises:
        ValueError: If a tensor differs in more than the length of a kernel of 1 along time.
    """
    backbone = backbone or encoder.config.backbone
    kept = encoder.config.backbone_options if backbone == encoder.config.backbone else {}
    config = replace(
        encoder.config,
        backbone=backbone,
        backbone_options={name: value for name, value in kept.items() if name not in _OF_TIME} | options,
        clip_num_frames=num_frames,
        clip_stride=stride,
        extra={**encoder.config.extra, "inflated": True},
    )
    inflated = VideoEncoder(config)
    state, wanted = encoder.state_dict(), inflated.state_dict()
    missing, unknown = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
    if missing or unknown:
        raise ValueError(
            f"the networks differ in more than their temporal kernels: {(missing or unknown)[0]} is in only one of them"
        )
    inflated.load_state_dict({name: _repeated(name, state[name], target) for name, target in wanted.items()})
    return inflated.eval()


def _repeated(name: str, weight: Tensor, target: Tensor) -> Tensor:
    """``weight`` (D, C, 1, H, W) as (D, C, k, H, W), each slice a k-th of it; others as they are."""
    if weight.shape == target.shape:
        return weight
    if (
        weight.ndim != 5
        or weight.shape[2] != 1
        or weight.shape[:2] + weight.shape[3:] != target.shape[:2] + target.shape[3:]
    ):
        raise ValueError(
            f"{name} of shape {tuple(weight.shape)} cannot be inflated to {tuple(target.shape)}: only kernels of 1 along "
            "time become longer"
        )
    length = target.shape[2]
    return (weight / length).expand(-1, -1, length, -1, -1)


def inflate_weights(
    weights: Path,
    *,
    out: Path,
    options: dict[str, Any] | None = None,
    num_frames: int = 32,
    stride: int = 2,
    json: bool = False,
) -> None:
    """Make a network for videos of one that was trained on single frames, such as SimCLR's.

    Kernels are repeated along time and divided by their new length, so that a picture that stands still gives the same
    features as before. The other weights are copied.

    Examples::

        timegrain inflate-weights runs/k400-simclr/weights.safetensors --out simclr_r3d50.safetensors
        timegrain probe --weights simclr_r3d50.safetensors --manifest k400.parquet

    Args:
        weights: Weights of a network whose temporal kernels are 1 (or shorter than the new ones).
        out: The new weights file.
        options: Settings of the new backbone that differ from its own: none makes time as the backbone is named has it,
            r3d50 with its temporal kernels 5, 1, 1, 3, 3 and half the frames as time steps. Other settings of the
            weights, such as their padding, are kept.
        num_frames: Frames of the clips that it is meant for.
        stride: Source frames from one frame of a clip to the next.
        json: Print one JSON object instead of text.

    Raises:
        FileNotFoundError: There are no such weights.
        ValueError: The networks differ in more than their temporal kernels.
    """
    before = load_encoder(weights)
    with torch.random.fork_rng(devices=[]):
        after = inflate(before, options or {}, num_frames, stride)
    save_weights(after, out)
    old, new = before.state_dict(), after.state_dict()
    longer = [name for name in new if old[name].shape != new[name].shape]
    if json:
        print(json_format.dumps({"weights": str(out), "inflated": longer}))
    else:
        print(f"{len(longer)} kernels repeated along time, {len(new) - len(longer)} tensors copied: {out}")
        print(f"Next: timegrain probe --weights {out} --manifest MANIFEST")
