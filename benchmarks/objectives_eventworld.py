"""Each objective for 100 steps on EventWorld: does it learn, and does it collapse?

    python benchmarks/objectives_eventworld.py WORLD [--seeds 0 1 2] [--steps 100]

WORLD is a folder that `timegrain eventworld` filled. The settings are those of configs/tiny/eventworld_*.yaml. One row
per run: the loss of the first and the last step beside chance, the share of queries that find their positive, the spread
of the embeddings (0 would be collapse), and what the features are worth for nearest neighbours: two clips of a video
among those of 256 (chance 1/256), and the scene, beside the same network with random weights. The numbers say that the
objectives work; 100 steps say nothing about which is better.
"""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
from pathlib import Path

import torch

from timegrain.callbacks import FeatureMonitor, MetricsCsv
from timegrain.cli import main as timegrain
from timegrain.data.clips import VideoClips
from timegrain.data.frame_cache import FrameCache
from timegrain.data.manifest import Manifest
from timegrain.models.hub import VideoEncoder, load_encoder
from timegrain.sampling import ClipSpec

CONFIGS = Path(__file__).parents[1] / "configs" / "tiny"


def run(name: str, world: Path, seed: int, steps: int, out: Path) -> dict[str, object]:
    """Train one objective; what its log and its features say."""
    code = timegrain([
        "pretrain", f"--config={CONFIGS}/eventworld_{name}.yaml", f"--data.manifest={world / 'manifest.parquet'}",
        f"--data.cache_folder={world / 'frames'}", f"--run.seed={seed}", f"--run.steps={steps}", f"--run.out={out}",
        "--run.monitor_every_epochs=0",
    ])  # fmt: skip
    assert code == 0
    with (out / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    level = "fine/" if name == "teg" else ""
    first, last = rows[0], rows[-1]
    trained = load_encoder(out / "weights.safetensors")
    torch.manual_seed(seed)
    spec = ClipSpec(trained.config.clip_num_frames, trained.config.clip_stride)
    return {
        "objective": name,
        "seed": seed,
        "loss": [float(row[f"{level}loss"]) for row in (first, last)],
        "chance_loss": float(last[f"{level}chance_loss"]) if f"{level}chance_loss" in last else None,
        "accuracy": float(last[f"{level}accuracy"]),
        "spread": [float(row[f"{level}spread"]) for row in (first, last)],
        "features": neighbours(trained, world, spec),
        "random": neighbours(VideoEncoder(trained.config), world, spec),
    }


def neighbours(encoder: VideoEncoder, world: Path, spec: ClipSpec) -> dict[str, float]:
    """The training monitor's values."""
    manifest = Manifest.open(world / "manifest.parquet").select(split="train")
    cache = FrameCache.build(manifest, world / "frames")
    clips = VideoClips(manifest, [spec], "random", crop_size=encoder.config.crop_size, cache=cache)
    monitor = FeatureMonitor(clips, 1, 256, MetricsCsv(Path("unused"), 1))
    return monitor.measure(encoder, torch.device("cpu"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("world", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--objectives", nargs="+", default=["teg", "cvrl", "simclr", "moco", "byol"])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for seed in arguments.seeds:
            for name in arguments.objectives:
                result = run(name, arguments.world, seed, arguments.steps, Path(folder) / f"{name}-{seed}")
                print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
