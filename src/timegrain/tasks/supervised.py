"""Supervised training of a backbone on labelled clips: the ceiling that stands beside self-supervised features."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain, islice, repeat

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from timegrain.data.clips import VideoClips
from timegrain.data.loading import EpochBatchSampler, ResumableLoader
from timegrain.data.transforms import apply_augmentation
from timegrain.models.hub import EncoderConfig, VideoEncoder
from timegrain.optim import OptimConfig, build_optimizer, schedule
from timegrain.progress import track

Targets = Callable[[Tensor, Tensor, int], Tensor]


def train_supervised(
    clips: VideoClips,
    config: EncoderConfig,
    num_classes: int,
    targets: Targets,
    *,
    steps: int,
    batch_size: int,
    optim: OptimConfig,
    seed: int = 0,
) -> VideoEncoder:
    """Train a backbone and a linear classifier on the first (long) clips, and return the encoder.

    Args:
        clips: Training data; only the first clip of each video is used, with the same augmentation as in pre-training.
        config: The encoder; its projection heads are not trained.
        num_classes: Of the classifier.
        targets: From video indices (B,), source-frame positions (B, frames) and the number of time steps to classes, one
            per clip (B,) or one per time step (B, steps); -1 where there is nothing to learn.
        steps: Optimiser steps.
        batch_size: Clips per step.
        optim: Optimiser; the schedule is the one of pre-training.
        seed: Of the weights and the data order.

    Returns:
        The encoder, in evaluation mode.
    """
    torch.manual_seed(seed)
    encoder = VideoEncoder(config)
    classifier = nn.Linear(encoder.backbone.num_features, num_classes)
    model = nn.ModuleList([encoder.backbone, classifier])
    optimizer = build_optimizer(model, optim)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule(warmup_steps=steps // 20, total_steps=steps))
    sampler = EpochBatchSampler(len(clips), batch_size, seed)
    loader = ResumableLoader(clips, sampler, clips.collate, batches_per_visit=clips.samples_per_visit)
    model.train()
    batches = chain.from_iterable(repeat(loader))  # pass after pass
    for batch in track(islice(batches, steps), "supervised", steps):
        features = encoder(apply_augmentation(batch["clips"][0], batch["augmentations"][0]))
        wanted = targets(batch["index"], batch["indices"][0], features.shape[1])
        if wanted.ndim == 1:
            logits = classifier(features.mean(1))
        else:
            logits, wanted = rearrange(classifier(features), "b t k -> (b t) k"), rearrange(wanted, "b t -> (b t)")
        loss = F.cross_entropy(logits, wanted, ignore_index=-1)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        scheduler.step()
    return encoder.eval()
