"""Weights of the reference family (TensorFlow Model Garden, official/projects/video_ssl) as TimeGrain weights.

The reference names variables by the order in which layers were made: ``layer_with_weights-0`` is the stem's
convolution, -1 its norm, -2 to -17 the sixteen blocks of R3D-50; in a whole model -0 is the backbone and the
following ones are the projection head.
"""

from __future__ import annotations

import json as json_format
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from timegrain.models.hub import EncoderConfig, VideoEncoder, save_weights
from timegrain.models.tf_checkpoint import read_tf_checkpoint

_R3D50_BLOCKS = (3, 4, 6, 3)
_SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"
_NOT_WEIGHTS = re.compile(
    r".*/\.OPTIMIZER_SLOT/.*|_CHECKPOINTABLE_OBJECT_GRAPH|global_step|save_counter|optimizer/(iter|decay|momentum|learning_rate)"
)
_NORM = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}
_BLOCK_LAYERS = {
    "_temporal_conv": "temporal_conv", "_norm1": "temporal_norm", "_spatial_conv": "spatial_conv",
    "_norm2": "spatial_norm", "_expand_conv": "expand_conv", "_norm3": "expand_norm",
    "_shortcut_conv": "shortcut_conv", "_norm0": "shortcut_norm",
}  # fmt: skip


def from_tf_tensors(tensors: Mapping[str, np.ndarray], *, head: str | None = None) -> dict[str, Tensor]:
    """The reference's variables as the state of a `VideoEncoder` with an R3D-50.

    Kernels (T, H, W, in, out) become (out, in, T, H, W), dense kernels (in, out) become (out, in); the data type stays
    (copies are made). The widths may be any.

    Args:
        tensors: Variable name -> value, as `read_tf_checkpoint` gives them. The backbone's names start with
            ``backbone/`` or ``model/layer_with_weights-0/``, the head's with ``model/layer_with_weights-1/`` and on.
            ``|`` may stand for ``/``, and the ending ``/.ATTRIBUTES/VARIABLE_VALUE`` may be absent. Optimiser slots,
            counters and the object graph are ignored.
        head: What to call the reference's head, if there is one; by default "persistent" for a projection head and
            "classifier" for the single dense layer of a linear evaluation.

    Returns:
        ``backbone.…`` and, if the tensors hold a head, ``heads.HEAD.…``; complete for ``load_state_dict``.

    Raises:
        ValueError: Variables are unknown, missing, given twice or of a rank that does not fit; the message names them.
    """
    wanted = dict(_backbone_names())
    given: dict[str, tuple[str, np.ndarray]] = {}
    for name, value in tensors.items():
        key = name.replace("|", "/").removesuffix(_SUFFIX)
        if _NOT_WEIGHTS.fullmatch(key):
            continue
        key = re.sub(r"^model/layer_with_weights-0/(?=(layer_with_weights-\d+)/)", "backbone/", key)
        if key in given:
            raise ValueError(f"the variable {key} is there twice, as {given[key][0]} and as {name}")
        given[key] = (name, value)
    layers = {int(found[1]) for key in given if (found := re.match(r"model/layer_with_weights-(\d+)/", key))}
    if layers:
        head = head or ("persistent" if max(layers) > 1 else "classifier")
        wanted |= dict(_head_names(head, num_layers=max(layers)))
    _refuse(
        "unknown variables, which no R3D-50 of the reference has", [given[key][0] for key in given if key not in wanted]
    )
    _refuse("missing variables of the reference's R3D-50", [key for key in wanted if key not in given])

    state: dict[str, Tensor] = {}
    for key, target in wanted.items():
        name, value = given[key]
        state[target] = torch.from_numpy(np.array(_to_torch_layout(name, target, value), order="C"))
        if target.endswith("running_var"):
            state[target.replace("running_var", "num_batches_tracked")] = torch.tensor(0)
    return state


def encoder_from_tf_tensors(tensors: Mapping[str, np.ndarray], *, head: str | None = None) -> VideoEncoder:
    """An encoder with the reference's weights; its widths are read off the tensors.

    Args:
        tensors: As for `from_tf_tensors`.
        head: As for `from_tf_tensors`.

    Returns:
        The encoder in evaluation mode, float32, configured for the clips of the reference's pre-training
        (16 frames, stride 2, 224 pixels).

    Raises:
        ValueError: The variables are not those of an R3D-50, or their shapes do not fit together.
    """
    state = from_tf_tensors(tensors, head=head)
    dense = [tensor for name, tensor in state.items() if name.startswith("heads.") and tensor.ndim == 2]
    heads = tuple(dict.fromkeys(name.split(".")[1] for name in state if name.startswith("heads.")))
    options = {
        "width": len(state["backbone.stages.2.0.spatial_conv.weight"]),
        "stem_width": len(state["backbone.stem_conv.weight"]),
    }
    config = EncoderConfig(
        backbone="r3d50",
        backbone_options={} if options == {"width": 64, "stem_width": 64} else options,
        heads=heads,
        clip_num_frames=16,
        clip_stride=2,
        crop_size=224,
    )
    if dense:
        config.head_num_hidden = len(dense) - 1
        config.head_hidden, config.head_out = len(dense[0]), len(dense[-1])
    encoder = VideoEncoder(config)
    try:
        encoder.load_state_dict(state)
    except RuntimeError as error:
        message = " ".join(str(error).split())
        raise ValueError(f"the reference's variables do not fit together: {message}") from error
    return encoder.eval()


def convert_weights(checkpoint: str, *, out: Path, json: bool = False) -> None:
    """Convert a TensorFlow checkpoint of the reference family (R3D-50 of CVRL) to TimeGrain weights.

    TensorFlow is not needed. A checkpoint of the backbone alone and one of a whole pre-training both work.

    Example::

        timegrain convert-weights CVRL/ckpt-5 --out cvrl.safetensors

    Args:
        checkpoint: The checkpoint's prefix: for ckpt-5.index and ckpt-5.data-00000-of-00001 it is ckpt-5.
        out: The weights file to write (.safetensors).
        json: Print one JSON object instead of text.

    Raises:
        FileNotFoundError: There is no such checkpoint.
        ValueError: The checkpoint is damaged or is not an R3D-50 of the reference.
    """
    tensors = read_tf_checkpoint(checkpoint)
    try:
        encoder = encoder_from_tf_tensors(tensors)
    except ValueError as error:
        raise ValueError(f"cannot convert {checkpoint}: {error}") from error
    encoder.config.extra = {"source": os.path.basename(checkpoint.removesuffix(".index"))}
    save_weights(encoder, out)
    summary = {
        "out": str(out),
        "backbone": encoder.config.backbone,
        "backbone_options": encoder.config.backbone_options,
        "heads": list(encoder.config.heads),
        "num_parameters": sum(parameter.numel() for parameter in encoder.parameters()),
    }
    if json:
        print(json_format.dumps(summary))
        return
    heads = f"head {encoder.config.heads[0]}" if encoder.config.heads else "no head"
    print(f"{out}: {summary['backbone']}, {heads}, {summary['num_parameters']:,} parameters")


def _backbone_names() -> Iterator[tuple[str, str]]:
    """Each variable of the reference's R3D-50 and our name of it."""
    yield "backbone/layer_with_weights-0/kernel", "backbone.stem_conv.weight"
    for theirs, ours in _NORM.items():
        yield f"backbone/layer_with_weights-1/{theirs}", f"backbone.stem_norm.{ours}"
    layer = 2
    for stage, num_blocks in enumerate(_R3D50_BLOCKS, start=2):
        for block in range(num_blocks):
            for theirs, ours in _BLOCK_LAYERS.items():
                if "shortcut" in ours and block > 0:
                    continue
                source, target = (
                    f"backbone/layer_with_weights-{layer}/{theirs}",
                    f"backbone.stages.{stage}.{block}.{ours}",
                )
                if ours.endswith("_conv"):
                    yield f"{source}/kernel", f"{target}.weight"
                else:
                    for leaf, name in _NORM.items():
                        yield f"{source}/{leaf}", f"{target}.{name}"
            layer += 1


def _head_names(head: str, num_layers: int) -> Iterator[tuple[str, str]]:
    """Each variable of the reference's head (dense, norm, dense, norm, ..., dense) and our name of it."""
    position = 0  # ours counts the ReLUs too
    for layer in range(1, num_layers + 1):
        source, target = f"model/layer_with_weights-{layer}", f"heads.{head}.layers.{position}"
        if layer % 2:
            yield f"{source}/kernel", f"{target}.weight"
            yield f"{source}/bias", f"{target}.bias"
        else:
            for leaf, name in _NORM.items():
                yield f"{source}/{leaf}", f"{target}.{name}"
        position += 1 if layer % 2 else 2


def _to_torch_layout(name: str, target: str, value: np.ndarray) -> np.ndarray:
    axes: tuple[int, ...] = (0,)
    if "_conv" in target:
        axes = (4, 3, 0, 1, 2)
    elif name.replace("|", "/").removesuffix(_SUFFIX).endswith("/kernel"):
        axes = (1, 0)
    if value.ndim != len(axes):
        raise ValueError(f"the variable {name} has shape {value.shape}; {len(axes)} axes were expected")
    return value.transpose(axes)


def _refuse(what: str, names: list[str]) -> None:
    if names:
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        raise ValueError(f"{what}: {', '.join(names[:5])}{more}")
