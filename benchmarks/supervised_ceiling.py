"""The ceiling beside self-supervised features: the same network, clips, augmentation and steps, trained with labels.

    python benchmarks/supervised_ceiling.py ucf101_4.parquet --config configs/tiny/ucf101_4_teg_ps.yaml --seed 0 \
        --out runs/supervised-0

Takes a configuration of `timegrain pretrain` and the manifest's split `train`. OUT gets weights.safetensors, which
`timegrain probe` shows as a row "supervised", probed like the others.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch
import yaml
from jsonargparse import ArgumentParser

from timegrain.data.transforms import AugmentConfig
from timegrain.models.hub import save_weights
from timegrain.optim import OptimConfig
from timegrain.tasks.config import DataConfig, ModelConfig, ObjectiveConfig, RunConfig, clip_specs
from timegrain.tasks.objective import build_encoder
from timegrain.tasks.setup import build_clips, resolve
from timegrain.tasks.supervised import train_supervised

PARTS = {
    "data": DataConfig, "model": ModelConfig, "objective": ObjectiveConfig, "augment": AugmentConfig,
    "optim": OptimConfig, "run": RunConfig,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--config", type=Path, required=True, help="configuration of `timegrain pretrain`")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--frames", type=Path, help="folder of decoded frames to share (--data.cache_folder)")
    arguments = parser.parse_args()
    weights = arguments.out / "weights.safetensors"
    if weights.exists():
        print(f"{weights} is there already")
        return
    torch.set_num_threads(1)
    settings = ArgumentParser()
    for name, kind in PARTS.items():
        settings.add_class_arguments(kind, name)
    read = settings.instantiate(settings.parse_path(str(arguments.config)))
    data = replace(read.data, manifest=arguments.manifest, cache_folder=arguments.frames)
    run = replace(read.run, out=arguments.out, seed=arguments.seed)
    data, model, objective, run, manifest = resolve(data, read.model, read.objective, run)
    labels = [row.label for row in manifest]
    if None in labels:
        raise SystemExit(f"{arguments.manifest} has training videos without a label, which supervised training needs")
    names = sorted(set(labels))
    classes = torch.tensor([names.index(label) for label in labels])
    clips = build_clips(data, clip_specs(data, objective), read.augment, manifest, run.seed, arguments.out)
    config = replace(build_encoder(data, model, objective).config, heads=(), extra={"objective": "supervised"})
    encoder = train_supervised(
        clips, config, len(names), lambda index, positions, steps: classes[index], steps=run.steps,
        batch_size=data.batch_size, optim=read.optim, seed=run.seed,
    )  # fmt: skip
    arguments.out.mkdir(parents=True, exist_ok=True)
    save_weights(encoder, weights)
    (arguments.out / "config.yaml").write_text(yaml.safe_dump({"run": {"seed": run.seed}}))
    print(weights)


if __name__ == "__main__":
    main()
