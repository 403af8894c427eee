"""Which labelled videos a probe learns from and which it is scored on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from timegrain.data.manifest import Manifest
from timegrain.features import FeatureTable, class_numbers
from timegrain.probes import grouped_folds


@dataclass(frozen=True)
class Task:
    """Labelled videos, divided.

    Attributes:
        train: (N,) which videos are for training.
        labels: (N,) class numbers.
        class_names: The classes.
        groups: (N,) groups or None.
        rule: How the videos were divided, in words.
    """

    train: Tensor
    labels: Tensor
    class_names: tuple[str, ...]
    groups: tuple[str | None, ...]
    rule: str


def choose_videos(
    manifest: Manifest, split_train: str, split_test: str, hold_out: float | None
) -> tuple[Manifest, dict[str, str]]:
    """The labelled, usable videos of the task, and of each whether it is ``train``, ``test`` or to be divided.

    Returns:
        The videos, and by path their split; empty where videos are held out.

    Raises:
        ValueError: There are no labels, only one class, or no such split; the message says what to do.
    """
    name = str(manifest.path or "the manifest")
    usable = manifest.select(usable=True)
    labels = usable.column("label").to_pylist()
    if not any(labels):
        raise ValueError(
            f"{name} has no labels, which a probe needs. `timegrain manifest scan` takes them from the folders' names "
            "or from a csv file (--labels)"
        )
    splits = usable.column("split").to_pylist()
    if hold_out is not None and not 0 < hold_out < 1:
        raise ValueError(f"hold_out is a share of the videos, between 0 and 1; got {hold_out}")
    if hold_out is not None and split_test != "test":
        raise ValueError(
            f"--hold-out tests on a part of the training videos, so --split-test {split_test} means nothing"
        )
    if hold_out is not None:
        wanted = {split_train} if split_train in splits else set(splits)
    else:
        wanted = {split_train, split_test}
        for split in (split_train, split_test):
            if split not in splits:
                there = ", ".join(f"{key} ({count})" for key, count in usable.splits.items()) or "no splits"
                raise ValueError(
                    f"{name} has no usable video in split {split!r}; it has {there}. Name others with --split_train and "
                    "--split_test, or let a part of the training videos be tested on, whole groups at a time, with "
                    "--hold_out 0.25"
                )
    keep = [i for i, (label, split) in enumerate(zip(labels, splits, strict=True)) if label and split in wanted]
    found = {labels[i] for i in keep}
    if len(found) < 2:
        raise ValueError(
            f"{name} has {len(found)} class{'es' * (len(found) != 1)} among the videos of the task; a probe needs two"
        )
    paths = usable.column("path").to_pylist()
    rows = [{name: value for name, value in vars(usable[i]).items() if name != "extra"} for i in keep]
    chosen = Manifest.from_rows(rows, folder=Path(name).parent)
    return chosen, {} if hold_out is not None else {paths[i]: splits[i] for i in keep}


def divide(
    table: FeatureTable,
    manifest: Manifest,
    splits: Mapping[str, str],
    split_train: str,
    hold_out: float | None,
    seed: int,
) -> Task:
    """Training and test videos among those that could be read.

    Raises:
        ValueError: One side is empty or has a single class to learn.
    """
    class_names = tuple(name for name in manifest.class_names if name in set(table.labels))
    labels = class_numbers(table.labels, class_names)
    if hold_out is None:
        train = torch.tensor([splits[path] == split_train for path in table.paths])
        rule = "by the manifest's splits"
    else:
        rng = np.random.default_rng(seed)
        smaller = min(hold_out, 1 - hold_out)  # one part of so many; most of the videos are what is left beside it
        folds = grouped_folds(labels.numpy(), table.groups, round(1 / smaller), rng)
        train = torch.from_numpy((folds != 0) == (hold_out <= 0.5))
        grouped = "whole groups" if any(table.groups) else "single videos (no groups known)"
        rule = f"{float((~train).float().mean()):.0%} held out, {grouped} drawn at random with seed {seed}"
    if not train.any() or train.all() or len(set(labels[train].tolist())) < 2:
        raise ValueError(
            f"{int(train.sum())} videos of {len(set(labels[train].tolist()))} classes to learn from and "
            f"{int((~train).sum())} to test on are not enough for a probe"
        )
    return Task(train, labels, class_names, table.groups, rule)
