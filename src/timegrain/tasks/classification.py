"""Training a classifier on labelled videos and testing it on whole ones: what finetune and the online probes share."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from timegrain.data.transforms import apply_augmentation
from timegrain.models.classifiers import save_classifier
from timegrain.models.hub import VideoEncoder, save_weights
from timegrain.optim import OptimConfig
from timegrain.tasks.setup import Schedule
from timegrain.tasks.training import TrainingTask

TRAINED = "trained"


class ClassificationTask(TrainingTask):
    """Cross-entropy of one clip's class; an encoder with its classifier, or several of them side by side.

    Further encoders (random weights, as a floor) see the same clips and train a classifier each; nothing is shared
    between them but the decoding.

    Args:
        encoders: By name; the first is ``trained``, what is asked about.
        classifiers: One for each encoder.
        frozen: Encoders stay as they are, their batch norms in evaluation mode.
        optim: Optimiser and its settings.
        length: Of the run.
        out: The run's folder, for ``classifier.safetensors`` and, unless frozen, ``weights.safetensors``.
        class_names: Of the classifiers.
        settings: How the classifier is built, kept in its file.
        channels_last: Whether clips are laid out channels-last.
    """

    def __init__(
        self,
        encoders: dict[str, VideoEncoder],
        classifiers: dict[str, nn.Module],
        frozen: bool,
        optim: OptimConfig,
        length: Schedule,
        out: Path,
        class_names: tuple[str, ...],
        settings: dict[str, Any],
        channels_last: bool = False,
    ) -> None:
        super().__init__(optim, length, out / "weights.safetensors", channels_last)
        self.encoders, self.classifiers = nn.ModuleDict(encoders), nn.ModuleDict(classifiers)
        self.frozen, self.class_names, self.settings = frozen, class_names, settings
        if frozen:
            self.encoders.requires_grad_(False)

    @property
    def encoder(self) -> VideoEncoder:
        """The encoder that is asked about."""
        encoder = self.encoders[TRAINED]
        assert isinstance(encoder, VideoEncoder)
        return encoder

    def train(self, mode: bool = True) -> ClassificationTask:
        """Training mode; a frozen encoder's batch norms go on using their running statistics."""
        super().train(mode)
        if self.frozen:
            self.encoders.eval()
        return self

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """Colours on the device: uint8 (B, T, C, H, W) to float (B, C, T, H, W)."""
        clips = apply_augmentation(batch["clip"], batch.pop("augmentation"))
        batch["clip"] = clips.to(self.dtype, memory_format=self.memory_format)
        return batch

    def logits(self, name: str, clips: Tensor) -> Tensor:
        """Logits (B, K) of clips (B, C, T, H, W) by one encoder and its classifier."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            features = self.encoders[name](clips)
        logits: Tensor = self.classifiers[name](features)
        return logits

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Sum of the losses; they have no weights in common."""
        found: dict[str, Tensor] = {}
        for name in self.encoders:
            logits = self.logits(name, batch["clip"]).float()
            found[f"{name}/loss"] = F.cross_entropy(logits, batch["target"])
            found[f"{name}/accuracy"] = (logits.argmax(1) == batch["target"]).float().mean()
        total = torch.stack([value for key, value in found.items() if key.endswith("/loss")]).sum()
        return self.report({"loss": total, **found}, batch)

    def write_weights(self) -> None:
        """The classifier, and the encoder where it has been trained."""
        if not self.frozen:
            save_weights(self.encoder, self.weights)
        file = self.weights.with_name("classifier.safetensors")
        save_classifier(self.classifiers[TRAINED], file, self.class_names, self.settings)


def bare_encoder(encoder: VideoEncoder, *, num_frames: int, stride: int, crop_size: int, training: str) -> VideoEncoder:
    """The encoder's backbone without projection heads, which training on labels leaves behind.

    Args:
        encoder: Any encoder; it is left as it is.
        num_frames: Frames of the clips that follow.
        stride: Their stride.
        crop_size: Their size.
        training: What is done to it, kept with the weights.
    """
    extra = {**encoder.config.extra, "then": training}
    config = dataclasses.replace(
        encoder.config, heads=(), clip_num_frames=num_frames, clip_stride=stride, crop_size=crop_size, extra=extra
    )
    bare = copy.deepcopy(encoder)
    bare.config, bare.heads = config, nn.ModuleDict()
    return bare
