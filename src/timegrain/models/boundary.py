"""A boundary detector: a backbone, a network that scores boundaries on its features, and all that using it needs.

Saved as one safetensors file that describes itself, like an encoder's; `timegrain.models.hub` reads either.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import torch
from einops import rearrange
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from timegrain.files import atomic_path
from timegrain.models.boundary_heads import BoundaryMatching, Pooling, TemporalConvolutions, WindowHead
from timegrain.models.hub import BACKBONES, DETECTOR_KEY, EncoderConfig, build_backbone, check_tensors, read_safetensors

Method = Literal["window", "pc", "tcn", "bmn"]

FRAME_BACKBONES = ("resnet50", "pixels")
_PIXEL_SIDE = 8


@dataclass
class BoundaryConfig:
    """How to build a `BoundaryDetector`, and how it looks at videos.

    Args:
        method: window scores a window around each candidate; pc does so from frames seen one by one, five on each
            side; tcn scores every moment of a stretch; bmn scores spans of time, whose ends are the boundaries.
        backbone: A backbone of clips (r3d50, r3d18, r3d_tiny, …), or one of frames: resnet50 (torchvision's), pixels
            (8 x 8 colours: a floor).
        backbone_options: Settings that differ from that backbone's own.
        frozen: Whether the backbone stays as it came; its features are then of long stretches, not of single windows.
        pooling: How a window's time steps become one vector, of window and pc.
        num_frames: Frames of a window.
        stride: Source frames from one to the next.
        every: Source frames from one candidate to the next.
        crop_size: Height and width in pixels.
        picture: squash shows the whole picture as a square, centre the square in its middle.
        head: Options of the network of tcn and bmn.
        picking: How scores become boundaries: rule, threshold, gap_seconds; empty until it was chosen.
        extra: Anything else worth keeping, JSON values only.
    """

    method: Method = "window"
    backbone: str = "r3d50"
    backbone_options: dict[str, Any] = field(default_factory=dict)
    frozen: bool = False
    pooling: Pooling = "change"
    num_frames: int = 16
    stride: int = 4
    every: int = 3
    crop_size: int = 224
    picture: Literal["squash", "centre"] = "squash"
    head: dict[str, Any] = field(default_factory=dict)
    picking: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> BoundaryConfig:
        """The configuration from parsed JSON.

        Raises:
            ValueError: A key is unknown or a value has the wrong type.
        """
        default = cls()
        for key, value in values.items():
            if not hasattr(default, key):
                raise ValueError(f"unknown key {key!r} in the detector's configuration")
            if type(value) is not type(getattr(default, key)):
                raise ValueError(f"{key} in the detector's configuration cannot be {value!r}")
        return cls(**values)

    def __post_init__(self) -> None:
        if self.method not in ("window", "pc", "tcn", "bmn"):
            raise ValueError(f"the method is window, pc, tcn or bmn, not {self.method!r}")
        if self.method in ("tcn", "bmn") and not self.frozen:
            raise ValueError(f"{self.method} reads whole stretches of video, so its backbone stays frozen")
        for name in ("num_frames", "stride", "every", "crop_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    @property
    def is_windowed(self) -> bool:
        """Whether one window at a time is scored, rather than a stretch of moments."""
        return self.method in ("window", "pc")


class FrameBackbone(nn.Module):
    """Features of frames seen one by one; none knows of its neighbours.

    Args:
        network: Frames (B, C, H, W) in [0, 1] to (B, D), or a backbone of clips, which then gets clips of one frame.
        num_features: D.
    """

    def __init__(self, network: nn.Module, num_features: int) -> None:
        super().__init__()
        self.network, self.num_features = network, num_features
        self.sees_clips = hasattr(network, "num_time_steps")

    def num_time_steps(self, num_frames: int) -> int:
        """As many as frames."""
        return num_frames

    def forward(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b t d"]:
        """Clips (B, C, T, H, W) to (B, T, D)."""
        pattern = "(b t) c 1 h w" if self.sees_clips else "(b t) c h w"
        features: Tensor = self.network(rearrange(x, f"b c t h w -> {pattern}"))
        return rearrange(features.flatten(1), "(b t) d -> b t d", b=len(x))


class _Pixels(nn.Module):
    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
        return F.adaptive_avg_pool2d(x, _PIXEL_SIDE).flatten(1)


class _ResNet50(nn.Module):
    """torchvision's ResNet-50 without its classifier, with ImageNet's mean and spread taken out of the pixels."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        from torchvision.models import resnet50

        self.network = resnet50(weights=None)
        self.network.fc = nn.Identity()
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406])[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225])[:, None, None], persistent=False)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
        return cast(Tensor, self.network((x - self.mean) / self.std))


def build_features(config: BoundaryConfig) -> nn.Module:
    """The network that turns clips into features of time steps, with fresh weights.

    It has ``num_features`` and ``num_time_steps(num_frames)``. Method pc looks at frames one by one, also with a
    backbone of clips.

    Raises:
        ValueError: The backbone or an option of it is unknown.
    """
    if config.backbone in FRAME_BACKBONES:
        if config.backbone_options:
            raise ValueError(f"backbone {config.backbone} has no options, got {', '.join(config.backbone_options)}")
        if config.backbone == "pixels":
            return FrameBackbone(_Pixels(), 3 * _PIXEL_SIDE**2)
        return FrameBackbone(_ResNet50(), 2048)
    if config.backbone not in BACKBONES:
        raise ValueError(f"unknown backbone {config.backbone!r}; there are {', '.join((*BACKBONES, *FRAME_BACKBONES))}")
    backbone = build_backbone(config.backbone, **config.backbone_options)
    return FrameBackbone(backbone, backbone.num_features) if config.method == "pc" else backbone


def load_frame_weights(features: nn.Module, path: str | os.PathLike[str]) -> None:
    """Put torchvision's ResNet-50 weights from a local file (.pth or .safetensors) into ``features``; runs no code.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It does not hold the weights of a ResNet-50.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"no weights at {path}; torchvision's resnet50-*.pth is what is needed, as a local file"
        )
    try:
        values: dict[str, Any] = (
            load_file(path)
            if Path(path).suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
        values = values.get("state_dict", values)
        kept = {f"network.network.{name}": value for name, value in values.items() if not name.startswith("fc.")}
        features.load_state_dict(kept)
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]  # of an empty file nothing is said
        raise ValueError(f"{path} does not hold the weights of torchvision's resnet50: {reason}") from error


def build_head(config: BoundaryConfig, num_features: int) -> WindowHead | TemporalConvolutions | BoundaryMatching:
    """The network that scores boundaries, with fresh weights.

    Raises:
        ValueError: An option is unknown or impossible.
    """
    if config.is_windowed:
        if config.head:
            raise ValueError(f"method {config.method} has no options of its network, got {', '.join(config.head)}")
        return WindowHead(num_features, config.pooling, standardise=config.frozen)
    kind = TemporalConvolutions if config.method == "tcn" else BoundaryMatching
    try:
        return kind(num_features, **config.head)
    except TypeError as error:
        raise ValueError(f"method {config.method}: {str(error).replace(kind.__name__ + '.__init__() ', '')}") from error


class BoundaryDetector(nn.Module):
    """Features and the network that scores boundaries on them.

    Args:
        config: What to build.

    Raises:
        ValueError: The configuration names something that does not exist or is impossible.
    """

    def __init__(self, config: BoundaryConfig) -> None:
        super().__init__()
        self.config = config
        self.features = build_features(config)
        self.num_features = int(cast(Any, self.features).num_features)
        self.head = build_head(config, self.num_features)

    def forward(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b 2"]:
        """Logits (B, 2) of windows (B, C, T, H, W), values in [0, 1]; of methods that score windows."""
        return cast(Tensor, self.head(self.features(x)))

    def stretch_scores(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n"]:
        """A score for every moment of stretches of features (B, N, D); of methods that score stretches."""
        if isinstance(self.head, BoundaryMatching):
            return self.head.boundary_scores(x)
        return cast(Tensor, self.head(x)).softmax(-1)[..., 1]


def save_detector(detector: BoundaryDetector, path: str | os.PathLike[str]) -> None:
    """Write a detector to one safetensors file, its configuration in the metadata; whole or not at all."""
    try:
        config = json.dumps(dataclasses.asdict(detector.config), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"cannot save {path}: the configuration is not plain JSON: {error}") from error
    tensors = {name: t.detach().cpu().contiguous() for name, t in detector.state_dict().items()}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt", DETECTOR_KEY: config})


def is_detector(path: str | os.PathLike[str]) -> bool:
    """Whether a file holds a boundary detector, rather than an encoder or something else."""
    return Path(path).is_file() and DETECTOR_KEY in read_safetensors(path, tensors=False)[0]


def load_detector(path: str | os.PathLike[str]) -> BoundaryDetector:
    """Read a detector from `save_detector`'s file, or from the folder of a run of ``timegrain boundaries train``.

    Returns:
        The detector, on the CPU, in evaluation mode.

    Raises:
        FileNotFoundError: There is nothing at ``path``.
        ValueError: The file is damaged, holds no detector, or does not fit its own configuration.
    """
    file = Path(path)
    if file.is_dir():
        file = file / "weights.safetensors"
        if not file.exists():
            raise FileNotFoundError(f"{path} has no {file.name} yet: its training has not come that far")
    metadata, tensors = read_safetensors(file)
    if DETECTOR_KEY not in metadata:
        raise ValueError(
            f"{file} holds no boundary detector. `timegrain boundaries train --model.weights {file}` trains one on its "
            "features; `timegrain boundaries find` uses features without training"
        )
    try:
        config = BoundaryConfig.from_dict(json.loads(metadata[DETECTOR_KEY]))
        with torch.device("meta"):
            shadow = BoundaryDetector(config)
    except (TypeError, AttributeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{file} describes a detector that cannot be built: {error}") from error
    check_tensors(file, shadow.state_dict(), tensors)
    detector = BoundaryDetector(config)  # not on the meta device: buffers that the file leaves out are computed
    detector.load_state_dict(tensors)
    return detector.eval()


def encoder_config(config: BoundaryConfig) -> EncoderConfig:
    """The encoder that a detector's backbone came from, for messages and for `fingerprint`."""
    return EncoderConfig(
        backbone=config.backbone,
        backbone_options=dict(config.backbone_options),
        heads=(),
        clip_num_frames=config.num_frames,
        clip_stride=config.stride,
        crop_size=config.crop_size,
    )
