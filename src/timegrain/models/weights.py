"""From what a user calls weights (a file, a run's folder, a name on the Hugging Face Hub) to an encoder on a device."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from torch import nn

from timegrain.models.hub import VideoEncoder, load_encoder

_RUN_FILE = "weights.safetensors"


def find_encoder(weights: str | os.PathLike[str]) -> VideoEncoder:
    """Read an encoder.

    Args:
        weights: A ``.safetensors`` file, the folder of a pre-training run, a folder that ``save_pretrained`` wrote, or
            ``OWNER/NAME`` on the Hugging Face Hub.

    Returns:
        The encoder, on the CPU, in evaluation mode.

    Raises:
        FileNotFoundError: There is nothing of this name, here or on the Hub.
        ValueError: What is there is no encoder.
    """
    path = Path(weights)
    if path.is_dir():
        if (path / _RUN_FILE).exists():
            return load_encoder(path / _RUN_FILE)
        if (path / "checkpoints").is_dir():
            raise FileNotFoundError(
                f"the run {path} has no {_RUN_FILE} yet: its pre-training has not finished. The same `timegrain "
                "pretrain` command continues it"
            )
        return load_encoder(path)
    name = os.fspath(weights)
    if path.exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or path.suffix in (".safetensors", ".ckpt", ".pt"):
        return load_encoder(path)
    try:
        encoder: VideoEncoder = VideoEncoder.from_pretrained(name)
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise FileNotFoundError(
            f"there is no file or folder {name}, and it could not be had from the Hugging Face Hub: {reason}"
        ) from error
    return encoder.eval()


def fingerprint(encoder: VideoEncoder) -> str:
    """A short name of an encoder's weights and configuration; equal if and only if its features are."""
    config = dataclasses.asdict(encoder.config) | {"extra": None}  # how it was trained does not change what it does
    return fingerprint_of(encoder, config)


def fingerprint_of(network: nn.Module, facts: Any) -> str:
    """A short name of a network's weights and of facts about it (JSON values)."""
    digest = hashlib.sha256()
    digest.update(json.dumps(facts, sort_keys=True, default=str).encode())
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def choose_device(device: str | torch.device = "auto") -> torch.device:
    """The device named, or for ``auto`` the best there is: CUDA, then Apple's GPU, then the CPU.

    Raises:
        ValueError: PyTorch does not know the device, or cannot use it here.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"cannot use device {device!r}: {str(error).splitlines()[0]}") from error
    return chosen
