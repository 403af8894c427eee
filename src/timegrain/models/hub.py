"""What users load: a backbone with its projection heads, in one safetensors file that says how to build it.

The file carries its configuration as JSON in the safetensors metadata, so that a single path is enough; nothing in it
can run code. A folder with ``config.json`` and ``model.safetensors`` (the form of the Hugging Face Hub) works too.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast, get_type_hints

import torch
from huggingface_hub import PyTorchModelHubMixin, constants, hf_hub_download
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from timegrain.files import atomic_path
from timegrain.models import heads as projection
from timegrain.models import resnet3d, slowfast
from timegrain.models.blocks import Backbone

BACKBONES: dict[str, Callable[..., Backbone]] = {
    "r3d50": resnet3d.r3d50,
    "r3d18": resnet3d.r3d18,
    "r3d_tiny": resnet3d.r3d_tiny,
    "slow_r50": resnet3d.slow_r50,
    "slow_r50_nl": resnet3d.slow_r50_nl,
    "i3d_r50": resnet3d.i3d_r50,
    "i3d_r50_nl": resnet3d.i3d_r50_nl,
    "slowfast_r50": slowfast.slowfast_r50,
    "slowfast_r50_nl": slowfast.slowfast_r50_nl,
}

_METADATA_KEY = "timegrain_config"
DETECTOR_KEY, CLASSIFIER_KEY = "timegrain_boundaries", "timegrain_classifier"  # of networks with an encoder inside
_WITH_ENCODERS = {DETECTOR_KEY: "a boundary detector", CLASSIFIER_KEY: "a classifier"}


def build_backbone(name: str, **options: Any) -> Backbone:
    """A backbone with fresh weights, drawn from torch's global generator.

    Args:
        name: A key of `BACKBONES`.
        **options: Settings of `ResNet3D` or `SlowFast` that differ from that backbone's own.

    Raises:
        ValueError: The name or an option is unknown, or an option has an impossible value.
    """
    if name not in BACKBONES:
        raise ValueError(f"unknown backbone {name!r}; there are {', '.join(BACKBONES)}")
    known = inspect.signature(get_type_hints(BACKBONES[name])["return"]).parameters
    unknown = [option for option in options if option not in known]
    if unknown:
        raise ValueError(f"backbone {name} has no option {', '.join(unknown)}; there are {', '.join(known)}")
    try:
        return BACKBONES[name](**options)
    except TypeError as error:
        raise ValueError(
            f"backbone {name} cannot have the options {options}: one is of another kind: {error}"
        ) from error


@dataclass
class EncoderConfig:
    """How to build a `VideoEncoder`, and which clips it was trained on.

    Args:
        backbone: A key of `BACKBONES`.
        backbone_options: Settings that differ from that backbone's own.
        heads: Names of the projection heads; empty for a backbone alone.
        head_hidden: Width of a head's hidden layers.
        head_num_hidden: Number of a head's hidden layers.
        head_out: Size of the embeddings.
        head_norm: Whether a head's hidden layers have batch norms.
        head_norm_momentum: As ``norm_momentum`` of `timegrain.models.heads.ProjectionHead`.
        clip_num_frames: Frames of the long clip.
        clip_stride: Its stride, in source frames.
        crop_size: Side of the square crop, in pixels.
        extra: Anything else worth keeping, JSON values only: how it was trained.
    """

    backbone: str = "r3d50"
    backbone_options: dict[str, Any] = field(default_factory=dict)
    heads: tuple[str, ...] = ("fine", "persistent")
    head_hidden: int = 2048
    head_num_hidden: int = 3
    head_out: int = 128
    head_norm: bool = True
    head_norm_momentum: float = projection.NORM_MOMENTUM
    clip_num_frames: int = 32
    clip_stride: int = 4
    crop_size: int = 224
    extra: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> EncoderConfig:
        """The configuration from parsed JSON.

        Raises:
            ValueError: A key is unknown or a value has the wrong type.
        """
        kinds: dict[str, type | tuple[type, ...]] = {
            f.name: type(getattr(_DEFAULTS, f.name)) for f in dataclasses.fields(cls)
        }
        kinds |= {"heads": (list, tuple), "head_norm_momentum": (int, float)}
        for key, value in values.items():
            if key not in kinds:
                raise ValueError(f"unknown key {key!r} in the encoder's configuration; known are {', '.join(kinds)}")
            if not isinstance(value, kinds[key]) or (isinstance(value, bool) and kinds[key] is not bool):
                raise ValueError(f"{key} in the encoder's configuration cannot be {value!r}")
        names = tuple(values.get("heads", _DEFAULTS.heads))
        if not all(isinstance(name, str) for name in names):
            raise ValueError(f"heads in the encoder's configuration must be names; got {names!r}")
        return cls(**{**values, "heads": names})


_DEFAULTS = EncoderConfig()


class VideoEncoder(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="timegrain",
    pipeline_tag="video-classification",
    paper_url="https://arxiv.org/abs/2112.04480",
    tags=["video", "self-supervised-learning", "temporal-granularity"],
):
    """A backbone and its projection heads.

    ``VideoEncoder.from_pretrained``, ``.save_pretrained`` and ``.push_to_hub`` work as Hugging Face users expect.

    Args:
        config: What to build.

    Raises:
        ValueError: The configuration names something that does not exist or is impossible.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = build_backbone(config.backbone, **config.backbone_options)
        heads = {
            name: projection.ProjectionHead(
                self.backbone.num_features,
                config.head_hidden,
                config.head_num_hidden,
                config.head_out,
                norm=config.head_norm,
                norm_momentum=config.head_norm_momentum,
            )
            for name in config.heads
        }
        try:
            self.heads = nn.ModuleDict(heads)
        except KeyError as error:  # a dot, nothing, or a method of the dict that holds them
            raise ValueError(f"a projection head cannot have this name: {error.args[0]}") from error

    def forward(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b t2 d"]:
        """Features of each time step.

        Args:
            x: Clips (B, C, T, H, W), values in [0, 1].

        Returns:
            (B, T', D).
        """
        return cast(Tensor, self.backbone(x))

    def embed(self, features: Float[Tensor, "b t d"], head: str) -> Float[Tensor, "b t c"]:
        """Project features by one head.

        Args:
            features: (B, T, D).
            head: Name of the head.

        Returns:
            (B, T, C), not normalised.

        Raises:
            ValueError: There is no such head.
        """
        return cast(Tensor, self._head(head)(features))

    def embed_each(self, features: Sequence[Float[Tensor, "b _ d"]], head: str) -> list[Float[Tensor, "b _ c"]]:
        """What :meth:`embed` gives for one clip's features after the other's; large heads are run once for all of them.

        Args:
            features: (B, T, D) of each clip.
            head: Name of the head.

        Returns:
            (B, T, C) of each clip, not normalised.

        Raises:
            ValueError: There is no such head.
        """
        return self._head(head).project_each(features)

    def _head(self, name: str) -> projection.ProjectionHead:
        if name not in self.heads:
            raise ValueError(f"this encoder has no head {name!r}; it has {', '.join(self.heads) or 'none'}")
        return cast(projection.ProjectionHead, self.heads[name])

    def _save_pretrained(self, save_directory: Path) -> None:
        with atomic_path(save_directory / constants.CONFIG_NAME) as temporary:
            temporary.write_text(json.dumps(dataclasses.asdict(self.config), indent=2, sort_keys=True))
        save_weights(self, save_directory / constants.SAFETENSORS_SINGLE_FILE)

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        config: Any = None,
        **options: Any,
    ) -> VideoEncoder:
        if options:
            raise ValueError(
                f"from_pretrained does not know {', '.join(options)}; the configuration comes from the weights"
            )
        if os.path.isdir(model_id):
            weights = Path(model_id) / constants.SAFETENSORS_SINGLE_FILE
        else:
            weights = Path(
                hf_hub_download(
                    repo_id=model_id,
                    filename=constants.SAFETENSORS_SINGLE_FILE,
                    revision=revision,
                    cache_dir=cache_dir,
                    force_download=force_download,
                    token=token,
                    local_files_only=local_files_only,
                )
            )
        return _load(weights, config)


def save_weights(encoder: VideoEncoder, path: str | os.PathLike[str]) -> None:
    """Write an encoder to one safetensors file, its configuration in the metadata.

    The file appears whole or not at all.

    Args:
        encoder: What to save; its tensors may be on any device and in any memory layout.
        path: The file, usually ``weights.safetensors``.

    Raises:
        ValueError: ``encoder.config.extra`` or ``backbone_options`` holds something that JSON does not know.
    """
    try:
        config = json.dumps(dataclasses.asdict(encoder.config), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"cannot save {path}: the configuration is not plain JSON: {error}") from error
    tensors = {name: t.detach().cpu().contiguous() for name, t in encoder.state_dict().items()}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt", _METADATA_KEY: config})


def load_encoder(path: str | os.PathLike[str]) -> VideoEncoder:
    """Read an encoder from `save_weights`' file, or from a folder that ``save_pretrained`` wrote.

    Args:
        path: The file or folder.

    Returns:
        The encoder, on the CPU, in evaluation mode.

    Raises:
        FileNotFoundError: There is nothing at ``path``.
        ValueError: The file is damaged, is not TimeGrain's, or does not fit its own configuration.
    """
    path = Path(path)
    if path.is_dir():
        weights = path / constants.SAFETENSORS_SINGLE_FILE
        if not weights.exists():
            raise FileNotFoundError(f"{path} is a folder without {weights.name}; give the weights file itself")
        config = path / constants.CONFIG_NAME
        return _load(weights, _parse(config.read_text(encoding="utf-8"), config) if config.exists() else None)
    return _load(path)


def _parse(text: str, where: Path) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"the configuration in {where} is not JSON: {error}") from error


def read_safetensors(path: str | os.PathLike[str], tensors: bool = True) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of a safetensors file.

    Args:
        path: The file.
        tensors: False reads the metadata alone.

    Raises:
        FileNotFoundError: There is nothing at ``path``.
        ValueError: It is not a whole safetensors file.
    """
    if not Path(path).exists():
        raise FileNotFoundError(f"weights file {path} does not exist")
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys() if tensors else []
            return file.metadata() or {}, {name: file.get_tensor(name) for name in names}
    except SafetensorError as error:
        raise ValueError(
            f"{path} is not a whole safetensors file (cut, damaged or of another kind): {error}"
        ) from error


def _load(path: Path, config: Any = None) -> VideoEncoder:
    metadata, tensors = read_safetensors(path)
    if config is None:
        if _METADATA_KEY not in metadata:
            whole = [name for key, name in _WITH_ENCODERS.items() if key in metadata]
            why = f"no {_METADATA_KEY} in its metadata"
            if whole:
                why = f"it holds {whole[0]}, which has no features to show; give those that its training began with"
            raise ValueError(f"{path} is a safetensors file, but not TimeGrain weights of an encoder: {why}")
        config = _parse(metadata[_METADATA_KEY], path)
    try:
        if not isinstance(config, EncoderConfig):
            config = EncoderConfig.from_dict(config)
        # On the meta device nothing is allocated or drawn: the file's tensors become the parameters once they fit.
        with torch.device("meta"):
            encoder = VideoEncoder(config)
    except (TypeError, AttributeError, ValueError, RuntimeError) as error:  # RuntimeError: torch on absurd sizes
        raise ValueError(f"{path} describes an encoder that cannot be built: {error}") from error
    check_tensors(path, encoder.state_dict(), tensors)
    encoder.load_state_dict(tensors, assign=True)
    return encoder.eval()


def check_tensors(path: Path, expected: Mapping[str, Tensor], found: dict[str, Tensor]) -> None:
    """Make ``found`` fit ``expected`` in type.

    Raises:
        ValueError: A tensor is missing, unknown, or of another shape; the message names up to three.
    """
    problems = [f"{name} is missing" for name in expected if name not in found]
    problems += [f"{name} is unknown" for name in found if name not in expected]
    for name, tensor in found.items():
        if name in expected and tensor.shape != expected[name].shape:
            problems.append(f"{name} has shape {tuple(tensor.shape)}, not {tuple(expected[name].shape)}")
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ValueError(f"the tensors in {path} do not fit its configuration: {'; '.join(problems[:3])}{more}")
    for name, tensor in found.items():
        found[name] = tensor.to(expected[name].dtype)
