"""What trains on labels, and what uses its weights, finds in tar shards and behind a URL what it finds in files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch
from safetensors.torch import load_file

from shard_server import serve
from timegrain.cli import main
from timegrain.data import packing
from timegrain.data.eventworld import world_config, write_world
from timegrain.data.location import Location
from timegrain.data.manifest import Manifest
from timegrain.models.hub import EncoderConfig, VideoEncoder, save_weights

TINY = [
    "--data.num_frames=8", "--data.stride=2", "--data.crop_size=16", "--data.batch_size=4", "--data.workers=0",
    "--run.steps=3", "--run.log_every_steps=1", "--run.accelerator=cpu", "--run.tensorboard=false",
]  # fmt: skip
# The words of each command, and the files that it leaves whose content must not depend on where the videos lie.
TRAINED: dict[str, tuple[list[str], list[str]]] = {
    "finetune": (["--weights=WEIGHTS", "--test.num_clips=2"], ["classifier.safetensors", "weights.safetensors"]),
    "probe linear": (["--weights=WEIGHTS", "--test.num_clips=2"], ["classifier.safetensors"]),
    "finetune vidsitu": (["--weights=WEIGHTS", "--data.split_test=test"], ["weights.safetensors", "predictions.pkl"]),
    "localize": (
        ["--weights=WEIGHTS", "--data.people=PEOPLE", "--data.short_side=24", "--data.split_test=test"],
        ["localizer.safetensors", "detections.csv"],
    ),
    "boundaries train": (["--data.every=4", "--data.held_out=0.4"], ["weights.safetensors", "predictions.json"]),
    "boundaries train, frozen": (
        ["--backbone=frozen", "--data.every=4", "--data.held_out=0.4"], ["weights.safetensors", "predictions.json"],
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos with every kind of label, shards of them, and weights."""
    folder = tmp_path_factory.mktemp("world")
    config = world_config("easy", num_frames=60, min_events=5, max_events=5, individual_postures=True)
    write_world(folder, 8, 0, config=config, num_test_videos=3, workers=1, preview=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "MEGABYTE", 60_000)
        words = ["manifest", "pack", folder / "manifest.parquet", f"--out={folder}/packed.parquet"]
        assert run(*words, "--shard-megabytes=1") == 0
    shards = {Location.parse(row.path).source for row in Manifest.open(folder / "packed.parquet")}
    assert len(shards) > 2
    torch.manual_seed(0)
    config = EncoderConfig("r3d_tiny", heads=(), clip_num_frames=8, clip_stride=2, crop_size=16)
    save_weights(VideoEncoder(config), folder / "weights.safetensors")
    return folder


@pytest.fixture(scope="module")
def manifests(world: Path) -> Iterator[dict[str, Path]]:
    """The same rows over plain files, tar files and tar files behind a URL."""
    with serve(world) as server:
        web = world / "web.parquet"
        assert (
            run("manifest", "move", world / "packed.parquet", f"--to={server.url}/packed_shards", f"--out={web}") == 0
        )
        yield {"files": world / "manifest.parquet", "tars": world / "packed.parquet", "web": web}


def run(*words: object) -> int:
    return main([str(word) for word in words])


@pytest.mark.parametrize("name", TRAINED)
def test_training_on_shards_is_training_on_files(name, world, manifests, tmp_path):
    command, (options, outputs) = name.partition(",")[0].split(), TRAINED[name]
    for word, file in (("WEIGHTS", "weights.safetensors"), ("PEOPLE", "people.csv")):
        options = [option.replace(word, str(world / file)) for option in options]
    options += ["--evaluation.video_floors=false", "--model.backbone=r3d_tiny"] if "boundaries" in name else []
    found = {}
    for source, manifest in manifests.items():
        out = tmp_path / source
        assert run(*command, f"--data.manifest={manifest}", f"--run.out={out}", *TINY, *options) == 0
        assert not (out / "failed_videos.csv").exists()
        metrics = pandas.read_csv(out / "metrics.csv")
        found[source] = {
            "losses": metrics["loss"].tolist(), "scores": scores(out),
            **{file: content(out / file) for file in outputs},
        }  # fmt: skip
    assert len(found["files"]["losses"]) == 3
    assert found["tars"] == found["web"] == found["files"]


def scores(out: Path) -> list[dict[str, Any]]:
    return [row["scores"] for row in json.loads((out / "result.json").read_text())["rows"]]


def content(path: Path) -> Any:
    """What a file says, for comparison."""
    if path.suffix == ".safetensors":
        return {name: (tensor.shape, tensor.numpy().tobytes()) for name, tensor in load_file(path).items()}
    return path.read_bytes()


def test_features_and_boundaries_of_shards_are_those_of_files(world, manifests, tmp_path):
    weights, features, found = f"--weights={world}/weights.safetensors", {}, {}
    for source, manifest in manifests.items():
        table, marks = tmp_path / f"{source}.parquet", tmp_path / f"{source}.csv"
        assert run("embed", manifest, weights, f"--out={table}") == 0
        rows = pandas.read_parquet(table)
        features[source] = rows.drop(columns=["path", "features"]).to_dict("list"), np.stack(rows.features)
        assert run("boundaries", "find", manifest, weights, f"--out={marks}", "--window_seconds=0.4") == 0
        found[source] = pandas.read_csv(marks).drop(columns="path").to_dict("list")
    for source in ("tars", "web"):
        assert features[source][0] == features["files"][0]
        assert (features[source][1] == features["files"][1]).all()
        assert found[source] == found["files"]
    assert len(found["files"]["seconds"]) > 0
