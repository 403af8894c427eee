"""Pre-train on your own folder from Python: the same call as `timegrain pretrain`, and it resumes the same way.

python examples/pretrain_in_python.py VIDEOS runs/mine
"""

import sys
from pathlib import Path

import timegrain
from timegrain.tasks.config import DataConfig, ModelConfig, ObjectiveConfig, RunConfig
from timegrain.tasks.pretrain import pretrain


def train(folder: Path, out: Path, steps: int = 300, crop_size: int = 64, batch_size: int = 16) -> Path:
    """Train a small network for some minutes of CPU; returns the weights."""
    pretrain(
        data=DataConfig(folder=folder, crop_size=crop_size, batch_size=batch_size, cache=True),
        model=ModelConfig(backbone="r3d_tiny", head_hidden=256),
        objective=ObjectiveConfig(alpha=0.9, num_short=1, num_long=4),
        run=RunConfig(out=out, steps=steps),
    )
    return out / "weights.safetensors"


if __name__ == "__main__":
    weights = train(Path(sys.argv[1]), Path(sys.argv[2]))
    first = next(path for path in sorted(Path(sys.argv[1]).rglob("*.mp4")))
    seen = timegrain.load(weights).embed(first)
    print(f"{first}: {len(seen.features)} time steps, one every {seen.end_seconds[0] - seen.start_seconds[0]:.2f} s")
