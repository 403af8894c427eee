"""The scripts behind the reproduction log: the sweep of recipes, and the supervised ceiling."""

from __future__ import annotations

import csv
import importlib.util
import sys
from pathlib import Path

import pytest
import yaml

from timegrain.cli import main
from timegrain.data.manifest import Manifest
from timegrain.models.hub import load_encoder

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def script(name: str):
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def recipe_sweep(monkeypatch):
    module = script("recipe_sweep")

    def run(*arguments: object) -> None:
        monkeypatch.setattr(sys, "argv", ["recipe_sweep.py", *map(str, arguments)])
        module.main()

    run.module = module
    return run


def test_recipes_are_compared_without_the_test_videos(recipe_sweep, video_folder, tmp_path, monkeypatch):
    scanned, manifest = tmp_path / "scanned.parquet", tmp_path / "m.parquet"
    assert main(["manifest", "scan", str(video_folder), "--out", str(scanned)]) == 0
    rows = [{key: value for key, value in vars(row).items() if key != "extra"} for row in Manifest.open(scanned)]
    divided = [{**row, "split": "test" if place % 4 == 0 else "train"} for place, row in enumerate(rows)]
    Manifest.from_rows(divided, tmp_path).write(manifest)
    config, recipes, out = tmp_path / "c.yaml", tmp_path / "r.yaml", tmp_path / "sweep"
    config.write_text(
        yaml.safe_dump(
            {
                "data": {
                    "long_frames": 8, "long_stride": 2, "short_frames": 4, "short_stride": 2, "crop_size": 16,
                    "batch_size": 2, "workers": 0, "cache": True,
                },
                "model": {"backbone": "r3d_tiny", "head_hidden": 8, "head_layers": 1, "head_out": 4},
                "objective": {"alpha": 0.0},
                "run": {"steps": 1, "accelerator": "cpu", "monitor_every_epochs": 0},
            }
        )
    )  # fmt: skip
    recipes.write_text("base:\nfast: ['--optim.learning_rate=0.01']\n")
    arguments = [manifest, "--config", config, "--recipes", recipes, "--out", out, "--folds", 2, "--probe"]
    arguments.append("--num_clips=1 --random_seeds=1 --workers=0 --device=cpu")
    recipe_sweep(*arguments)

    held_out = {row["path"] for row in divided if row["split"] == "test"}
    tested = []
    for fold in range(2):
        one = list(Manifest.open(out / f"fold{fold}.parquet"))
        assert not held_out & {row.path for row in one}
        assert len(one) == len(rows) - len(held_out)
        tested += [row.path for row in one if row.split == "test"]
    assert sorted(tested) == sorted({row["path"] for row in rows} - held_out)
    with (out / "sweep.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    assert {(row["recipe"], row["fold"], row["features"]) for row in found} == {
        (recipe, fold, features)
        for recipe in ("base", "fast")
        for fold in "01"
        for features in ("TeG-PS", "random weights", "raw pixels")
    }
    assert all(0 <= float(row["top1"]) <= 1 for row in found)
    assert yaml.safe_load((out / "fast" / "fold1" / "config.yaml").read_text())["optim"]["learning_rate"] == 0.01

    def nothing_again(arguments):
        raise AssertionError(f"{arguments[0]} ran again")

    monkeypatch.setattr(recipe_sweep.module, "timegrain", nothing_again)
    before = (out / "sweep.md").read_text()
    recipe_sweep(*arguments)
    assert (out / "sweep.md").read_text() == before
    assert before.count("| TeG-PS |") == 2


def test_the_supervised_ceiling_is_trained_with_a_pretraining_configuration(manifest, tmp_path, monkeypatch, capsys):
    config, out = tmp_path / "c.yaml", tmp_path / "run"
    settings = {
        "data": {"long_frames": 8, "long_stride": 2, "short_frames": 4, "short_stride": 2, "crop_size": 16,
                 "batch_size": 4, "workers": 0, "cache": True},
        "model": {"backbone": "r3d_tiny"}, "run": {"steps": 2, "accelerator": "cpu"},
    }  # fmt: skip
    config.write_text(yaml.safe_dump(settings))
    arguments = [manifest, "--config", config, "--out", out, "--frames", tmp_path / "frames"]
    monkeypatch.setattr(sys, "argv", ["supervised_ceiling.py", *map(str, arguments)])
    script("supervised_ceiling").main()
    assert load_encoder(out / "weights.safetensors").config.extra == {"objective": "supervised"}
    assert list(tmp_path.glob("frames/*/frames.npy"))
