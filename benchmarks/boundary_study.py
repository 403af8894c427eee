"""Boundary detectors on EventWorld, frozen and fine-tuned, from random and from pre-trained weights, beside their floors.

    python benchmarks/boundary_study.py --out runs/boundary-study

One world; per seed TeG-PS (α = 0) and TeG-FG (α = 0.9) are pre-trained on its training videos. A window classifier is
then trained on each of: random weights, TeG-PS, TeG-FG (each frozen and fine-tuned), and raw pixels (8 x 8 colours,
frozen). Rule and threshold come from training videos set aside. Floors: even spacing, change detector, PySceneDetect.
Settings were written down before the first run and are not tuned. Stop it at any time; the same command goes on.

Prints one line per method: F1@0.05 and mean F1, mean ± standard deviation over the seeds.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import mean, stdev

from timegrain.cli import main as timegrain
from timegrain.report.results import NAME, find_results

ENCODERS = {"random": None, "ps": 0.0, "fg": 0.9}
SMALL = [
    "--data.crop_size=24",
    "--data.workers=0",
    "--data.cache=true",
    "--run.accelerator=cpu",
    "--run.tensorboard=false",
]
ADAMW = ["--optim.name=adamw", "--optim.learning_rate=2e-3", "--optim.weight_decay=1e-4"]


def call(*command: str) -> None:
    """Run one command of TimeGrain; stop at its first error."""
    if code := timegrain(list(command)):
        raise SystemExit(code)


def pretrain(out: Path, manifest: Path, alpha: float, seed: int, steps: int) -> None:
    """A tiny TeG."""
    call(
        "pretrain", f"--run.out={out}", f"--data.manifest={manifest}", f"--data.cache_folder={out.parent / 'frames'}",
        f"--objective.alpha={alpha}", f"--run.seed={seed}", f"--run.steps={steps}", "--model.backbone=r3d_tiny",
        "--model.head_hidden=96", "--model.head_layers=2", "--model.head_out=64", "--data.long_frames=16",
        "--data.long_stride=4", "--data.short_frames=8", "--data.short_stride=2", "--data.batch_size=32",
        "--run.monitor_every_epochs=0", "--augment.hue=0.1", *SMALL, *ADAMW,
    )  # fmt: skip


def detect(out: Path, manifest: Path, training: str, model: list[str], seed: int, steps: int) -> None:
    """A window classifier, scored on the test videos."""
    kept = out.parent / ("features" if training == "frozen" else "frames-boundaries")
    call(
        "boundaries", "train", f"--run.out={out}", f"--data.manifest={manifest}", "--method=window",
        f"--backbone={training}", f"--data.cache_folder={kept}", "--data.num_frames=16", "--data.stride=2",
        "--data.every=4", f"--run.steps={steps}", f"--run.seed={seed}", "--decay.every_epochs=1", "--decay.factor=0.3",
        "--picking.gap_seconds=0.3", "--evaluation.batch_size=64",
        f"--evaluation.video_floors={'true' if 'pixels' in out.name and seed == 0 else 'false'}", *SMALL, *ADAMW, *model,
    )  # fmt: skip


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--videos", type=int, nargs=2, default=[300, 200], help="training and test videos")
    parser.add_argument("--steps", type=int, nargs=2, default=[200, 300], help="of pre-training and of detectors")
    options = parser.parse_args()
    world = options.out / "world"
    train, test = options.videos
    call("eventworld", f"--out={world}", f"--num-videos={train}", f"--num-test-videos={test}", "--seed=11")
    manifest = world / "manifest.parquet"
    for seed in options.seeds:
        runs = {f"pixels-frozen-{seed}": ("frozen", ["--model.backbone=pixels"])}
        for name, alpha in ENCODERS.items():
            model = ["--model.backbone=r3d_tiny"]
            if alpha is not None:
                out = options.out / f"pretrain-{name}-{seed}"
                pretrain(out, manifest, alpha, seed, options.steps[0])
                model = [f"--model.weights={out / 'weights.safetensors'}"]
            runs |= {f"{name}-{kind}-{seed}": (kind, model) for kind in ("frozen", "finetune")}
        for name, (kind, model) in runs.items():
            if not (options.out / name / NAME).exists():
                detect(options.out / name, manifest, kind, model, seed, options.steps[1])
    scores: dict[str, list[tuple[float, float]]] = {}
    for path, result in find_results([options.out]):
        for row in result.rows:
            name = path.parent.name.rpartition("-")[0] if row.role == "trained" else row.method
            scores.setdefault(name, []).append((row.scores["f1@0.05"], row.scores["mean_f1"]))
    for name, values in sorted(scores.items(), key=lambda pair: mean(f1 for f1, _ in pair[1])):
        columns = (list(column) for column in zip(*values, strict=True))
        shown = [f"{mean(c):.3f}" + (f" ± {stdev(c):.3f}" if len(set(c)) > 1 else "") for c in columns]
        print(f"{name:<24} F1@0.05 {shown[0]:<15} mean F1 {shown[1]}")


if __name__ == "__main__":
    main()
