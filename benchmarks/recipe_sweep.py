"""Compare pre-training recipes on a manifest's training videos alone: what to freeze before the test videos are looked at.

    python benchmarks/recipe_sweep.py ucf101_4.parquet --config configs/tiny/ucf101_4_teg_ps.yaml \
        --recipes configs/tiny/ucf101_4_sweep.yaml --out runs/sweep

The training videos are cut into folds, whole groups at a time. For every recipe and fold a network is pre-trained without
the fold's videos (`timegrain pretrain`, seed = number of the fold) and probed on them (`timegrain probe`): linear probe,
kNN and retrieval, beside random weights of the same network and raw pixels. Videos of the test split are in none of the
manifests made here. A recipe is a list of options of `timegrain pretrain` that are added to the configuration; null in
RECIPES means none. Stop it at any time; the same command goes on, and finished runs are not made again. Several processes
can share the work: each takes runs that no other has begun.

Writes OUT/sweep.csv (one row per run) and OUT/sweep.md (one row per recipe, mean ± standard deviation over the folds).
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import torch
import yaml
from filelock import FileLock, Timeout

from timegrain.cli import main as timegrain
from timegrain.data.manifest import Manifest
from timegrain.files import atomic_path
from timegrain.probes import grouped_folds
from timegrain.report.results import NAME, Row, read_result

SCORES = {"top1": "linear probe", "knn": "kNN", "R@1": "R@1", "R@5": "R@5"}


def write_folds(manifest: Path, paths: list[Path]) -> None:
    """Manifests of the training videos, in each another fold as its split `test`."""
    videos = Manifest.open(manifest).select(split="train", usable=True)
    rows = [{name: value for name, value in vars(row).items() if name != "extra"} for row in videos]
    groups = videos.column("group").to_pylist()
    folds = grouped_folds(videos.class_indices(), groups, len(paths), np.random.default_rng(0))
    for fold, path in enumerate(paths):
        splits = ["test" if other == fold else "train" for other in folds]
        divided = [{**row, "split": split} for row, split in zip(rows, splits, strict=True)]
        Manifest.from_rows(divided, folder=path.parent).write(path)


def run(recipe: list[str], config: Path, manifest: Path, seed: int, out: Path, views: list[str]) -> None:
    """Pre-train and probe once; what is there already is kept."""
    frames = manifest.with_name(f"{manifest.stem}-frames")
    pretrain = [f"--config={config}", f"--data.manifest={manifest}", f"--run.out={out}", f"--run.seed={seed}"]
    pretrain += [f"--data.cache_folder={frames}", "--run.tensorboard=false", *recipe]
    probe = [f"--weights={out}", f"--manifest={manifest}", f"--out={out}", *views]
    for command in (["pretrain", *pretrain], ["probe", *probe]):
        with contextlib.redirect_stdout(io.StringIO()):
            code = timegrain(command)
        if code:
            raise SystemExit(f"{out}: `timegrain {command[0]}` ended with code {code}")


def write_tables(recipes: list[str], num_folds: int, out: Path) -> str:
    """One row per run as csv; per encoder and recipe as Markdown, the best linear probe first."""
    runs, table = [], []
    for recipe in recipes:
        by_method: dict[str, dict[int, list[Row]]] = {}
        for fold in range(num_folds):
            path = out / recipe / f"fold{fold}" / NAME
            for row in read_result(path).rows if path.exists() else ():
                if set(SCORES) <= set(row.scores):
                    by_method.setdefault(row.method, {}).setdefault(fold, []).append(row)
                    runs.append([recipe, fold, row.method, row.seed, *(row.scores[key] for key in SCORES)])
        for method, folds in by_method.items():
            trained = any(row.role == "trained" for rows in folds.values() for row in rows)
            cells = {key: [mean(row.scores[key] for row in rows) for rows in folds.values()] for key in SCORES}
            table.append((not trained, method, -mean(cells["top1"]), recipe, len(folds), cells))
    with atomic_path(out / "sweep.csv") as temporary, temporary.open("w", newline="") as file:
        csv.writer(file).writerows([["recipe", "fold", "features", "seed", *SCORES], *runs])
    titles = " | ".join(SCORES.values())
    lines = [f"| features | recipe | folds | {titles} |", "|---|---|--:|" + "---|" * len(SCORES)]
    for _, method, _, recipe, count, cells in sorted(table, key=lambda row: row[:4]):
        shown = [f"{mean(v):.3f}" + (f" ± {stdev(v):.3f}" if len(v) > 1 else "") for v in cells.values()]
        lines.append(f"| {method} | {recipe} | {count} | {' | '.join(shown)} |")
    with atomic_path(out / "sweep.md") as temporary:
        temporary.write_text("\n".join(lines) + "\n")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--config", type=Path, required=True, help="configuration of `timegrain pretrain`")
    parser.add_argument(
        "--recipes", type=Path, required=True, help="YAML: name of a recipe -> list of options, or null"
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--only", nargs="*", help="names of recipes, instead of all")
    parser.add_argument("--only-folds", nargs="*", type=int, help="numbers of folds, instead of all")
    parser.add_argument("--probe", default="--num_clips=3 --random_seeds=1", help="options of `timegrain probe`")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    out = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    folds = [out / f"fold{fold}.parquet" for fold in range(arguments.folds)]
    with FileLock(out / "folds.lock"):
        if not all(path.exists() for path in folds):
            write_folds(arguments.manifest, folds)
    recipes = yaml.safe_load(arguments.recipes.read_text())
    for fold, manifest in enumerate(folds):  # every recipe meets the first fold before any meets the second
        if arguments.only_folds and fold not in arguments.only_folds:
            continue
        for name in arguments.only or recipes:
            folder = out / name / f"fold{fold}"
            folder.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(Timeout), FileLock(folder.with_suffix(".lock"), timeout=0):
                if not (folder / NAME).exists():
                    options = recipes[name] or []
                    run(options, arguments.config, manifest, fold, folder, arguments.probe.split())
            write_tables(list(recipes), len(folds), out)
    print(write_tables(list(recipes), len(folds), out))


if __name__ == "__main__":
    main()
