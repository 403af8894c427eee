"""`timegrain boundaries` as a user runs it: train by every method, score, find, resume, be told what is wrong."""

from __future__ import annotations

import csv
import json
import pickle
import runpy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

import timegrain
from conftest import make_video, moving_square
from timegrain.callbacks import FailedVideos
from timegrain.cli import main
from timegrain.data.eventworld import world_config, write_world
from timegrain.data.journal import VideoJournal
from timegrain.data.manifest import Manifest
from timegrain.models.boundary import BoundaryConfig, BoundaryDetector, load_detector, save_detector
from timegrain.models.hub import EncoderConfig, VideoEncoder, save_weights

TINY = [
    "--data.num_frames=8", "--data.stride=2", "--data.every=4", "--data.crop_size=16", "--data.batch_size=4",
    "--data.workers=0", "--data.held_out=0.3", "--model.backbone=r3d_tiny", "--run.accelerator=cpu",
    "--run.tensorboard=false", "--run.log_every_steps=1", "--evaluation.video_floors=false",
]  # fmt: skip
METHODS = [
    ("window", "finetune", []),
    ("window", "frozen", []),
    ("pc", "finetune", ["--data.num_frames=6"]),
    ("pc", "frozen", ["--data.num_frames=6", "--model.backbone=pixels"]),
    ("tcn", "frozen", ["--model.head={width: 8, num_layers: 2}"]),
    ("bmn", "frozen", ["--model.head={num_moments: 16, width: 4, num_samples: 4}"]),
]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten training and four test videos of 60 frames with known boundaries."""
    folder = tmp_path_factory.mktemp("world")
    config = world_config("easy", num_frames=60, min_events=2, max_events=4)
    write_world(folder, 10, 0, config=config, num_test_videos=4, workers=1, preview=False)
    return folder / "manifest.parquet"


def train(out: Path, manifest: Path, *options: str) -> int:
    return main(["boundaries", "train", f"--run.out={out}", f"--data.manifest={manifest}", *TINY, *options])


@pytest.fixture(scope="module")
def finished(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "window"
    assert train(out, world, "--run.steps=3") == 0
    return out


@pytest.mark.parametrize(("method", "backbone", "options"), METHODS, ids=lambda v: v if isinstance(v, str) else "")
def test_every_method_trains_and_scores(world, tmp_path, capsys, method, backbone, options):
    out = tmp_path / "run"
    assert train(out, world, f"--method={method}", f"--backbone={backbone}", "--run.steps=2", "--json", *options) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["steps"] == 2
    detector = load_detector(out)
    assert detector.config.method == method
    assert detector.config.picking["rule"] in ("runs", "peaks")
    predictions = json.loads((out / "predictions.json").read_text())
    assert len(predictions) == answer["videos"] == 4
    assert predictions == pickle.loads((out / "predictions.pkl").read_bytes())
    sequences = pickle.loads((out / "scores.pkl").read_bytes())
    assert set(sequences) == set(predictions)
    assert all(len(s["scores"]) == len(s["frame_idx"]) == 15 for s in sequences.values())
    with (out / "metrics.csv").open(newline="") as file:
        assert [float(row["step"]) for row in csv.DictReader(file)] == [1, 2]


def test_the_submission_is_scored_the_same_by_score_gebd(finished, capsys):
    capsys.readouterr()
    command = [
        "score",
        "gebd",
        "--ground-truth",
        str(finished / "ground_truth.pkl"),
        "--missing",
        "challenge",
        "--json",
    ]
    for ending in ("pkl", "json"):
        assert main([*command, "--predictions", str(finished / f"predictions.{ending}")]) == 0
        scored = json.loads(capsys.readouterr().out)
        (trained, *floors) = json.loads((finished / "result.json").read_text())["rows"]
        assert scored["f1"]["0.05"] == trained["scores"]["f1@0.05"]
        assert scored["mean_f1"] == trained["scores"]["mean_f1"]
        assert [row["role"] for row in floors] == ["floor"]


def test_frozen_backbones_stay_as_they_came(world, tmp_path):
    weights = tmp_path / "encoder.safetensors"
    torch.manual_seed(3)
    encoder = VideoEncoder(EncoderConfig("r3d_tiny", heads=(), clip_num_frames=8, clip_stride=2, crop_size=16))
    save_weights(encoder, weights)
    assert train(tmp_path / "run", world, "--backbone=frozen", f"--model.weights={weights}", "--run.steps=3") == 0
    before, after = encoder.backbone.state_dict(), load_detector(tmp_path / "run").features.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert train(tmp_path / "tuned", world, f"--model.weights={weights}", "--run.steps=3") == 0
    tuned = load_detector(tmp_path / "tuned").features.state_dict()
    assert not torch.equal(before["stem_conv.weight"], tuned["stem_conv.weight"])


class Stopped(Exception):
    """As if the process had been killed."""


@pytest.mark.parametrize(
    ("options", "stop"),
    [(["--method=window"], 3), (["--method=window", "--backbone=frozen"], 2),
     (["--method=tcn", "--backbone=frozen", "--model.head={width: 8, num_layers: 2}"], 3)],
    ids=["fine-tuned", "frozen", "tcn"],
)  # fmt: skip
def test_resume_is_bit_for_bit(world, tmp_path, monkeypatch, options, stop):
    common = [*options, "--run.steps=6", "--run.checkpoint_every_steps=1", "--data.cache_folder=" + str(tmp_path / "c")]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert train(whole, world, *common) == 0

    def stop_here(self: FailedVideos, trainer: object, *rest: object) -> None:
        if trainer.global_step == stop:
            raise Stopped

    with monkeypatch.context() as patched:
        patched.setattr(FailedVideos, "on_train_batch_start", stop_here)
        with pytest.raises(Stopped):
            train(broken, world, *common)
    assert torch.load(broken / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == stop
    assert train(broken, world, *common) == 0
    one, other = load_file(whole / "weights.safetensors"), load_file(broken / "weights.safetensors")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert (whole / "threshold.json").read_text() == (broken / "threshold.json").read_text()


def test_the_threshold_never_sees_the_videos_that_are_scored(world, finished, tmp_path):
    chosen = json.loads((finished / "threshold.json").read_text())
    manifest = Manifest.open(world)
    train_ids = {Path(row.path).stem for row in manifest.select("train")}
    assert 0 < chosen["num_videos"] < len(train_ids)
    assert set(chosen["videos"]) <= train_ids
    # Other truth for the test videos, and other pictures too: the choice stays what it was.
    rows = []
    for row in manifest:
        values = {
            name: getattr(row, name) for name in ("path", "num_frames", "fps", "duration_seconds", "width", "height")
        }
        marks = row.extra["boundaries_seconds"]
        if row.split == "test":
            values["path"] = manifest.select("train")[0].path if rows[-1]["split"] == "train" else row.path
            marks = [0.5, 1.0, 1.5]
        rows.append({**values, "split": row.split, "group": row.group, "boundaries_seconds": marks})
    changed = Manifest.from_rows(rows, tmp_path).write(tmp_path / "changed.parquet")
    assert train(tmp_path / "run", changed, "--run.steps=3") == 0
    again = json.loads((tmp_path / "run" / "threshold.json").read_text())
    assert again == chosen
    first, second = (json.loads((run / "result.json").read_text()) for run in (finished, tmp_path / "run"))
    assert first["rows"][0]["scores"] != second["rows"][0]["scores"]


def test_a_finished_detector_is_scored_again_without_training(world, tmp_path, capsys):
    out = tmp_path / "run"
    assert train(out, world, "--run.steps=2") == 0
    steps, first = (out / "metrics.csv").read_text(), load_detector(out)
    kept = {
        name: (out / name).read_bytes() for name in ("result.json", "threshold.json", "predictions.pkl", "scores.pkl")
    }
    capsys.readouterr()
    other = ["--evaluation.split=train", "--evaluation.every=8", "--picking.rule=peaks", "--picking.gap_seconds=0.2"]
    assert train(out, world, "--run.steps=2", *other) == 0
    assert "scoring again with evaluation.every 8, before None" in capsys.readouterr().err
    (aside,) = out.glob("scored-*")
    assert {name: (aside / name).read_bytes() for name in kept} == kept
    assert (out / "metrics.csv").read_text() == steps
    result = json.loads((out / "result.json").read_text())
    assert (result["protocol"]["split"], result["protocol"]["every"], result["num_test"]) == ("train", 8, 10)
    second = load_detector(out)
    assert (second.config.picking["rule"], second.config.picking["gap_seconds"]) == ("peaks", 0.2)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert train(out, world, "--run.steps=2", "--data.held_out=0.4") == 2
    assert "data.held_out: 0.3 there, 0.4 asked for" in capsys.readouterr().err


def test_evaluate_scores_saved_weights_and_keeps_floors(world, finished, tmp_path, capsys):
    command = ["boundaries", "evaluate", str(world), "--weights", str(finished), "--workers", "0", "--device", "cpu"]
    assert main([*command, "--out", str(tmp_path / "e"), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    before = json.loads((finished / "result.json").read_text())
    assert answer["scores"] == before["rows"][0]["scores"]
    assert set(answer["floors"]) == {before["rows"][1]["method"], "change detector", "SceneDet"}
    kept = tmp_path / "e" / "floor_change.json"
    kept.write_text(json.dumps({key: [] for key in json.loads(kept.read_text())}))
    assert main([*command, "--out", str(tmp_path / "e"), "--mode", "dense"]) == 0
    text, warnings = capsys.readouterr()
    assert "chosen on scores of mode windows" in warnings
    assert "F1@0.05" in text
    assert "uniform, every" in text
    assert next(line for line in text.splitlines() if line.startswith("change detector")).split()[2] == "0.00"


@contextmanager
def interrupted_after(count: int) -> Iterator[None]:
    """Ctrl-C as soon as so many videos are scored."""
    finish, done = VideoJournal.finish, []

    def stop(self: VideoJournal, *arguments: object) -> None:
        finish(self, *arguments)
        done.append(arguments)
        if len(done) == count:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(VideoJournal, "finish", stop)
        yield


def test_scoring_goes_on_where_it_was_interrupted(world, finished, tmp_path, capsys):
    out = tmp_path / "evaluated"
    command = ["boundaries", "evaluate", str(world), "--weights", str(finished), "--out", str(out), "--device=cpu"]
    command += ["--workers=0", "--video_floors=false"]
    with interrupted_after(3):
        assert main(command) == 130
    assert "same command goes on" in capsys.readouterr().err
    assert main(command) == 0
    assert "3 of 4 videos were done before" in capsys.readouterr().err
    for name in ("predictions.pkl", "scores.pkl"):
        assert (out / name).read_bytes() == (finished / name).read_bytes()
    assert not list(out.glob(".*"))


def test_training_keeps_the_scores_that_its_threshold_is_chosen_on(world, finished, tmp_path, capsys):
    out = tmp_path / "run"
    with interrupted_after(1):
        assert train(out, world, "--run.steps=3") == 130
    capsys.readouterr()
    assert train(out, world, "--run.steps=3") == 0
    assert "1 of 5 videos were done before" in capsys.readouterr().err
    for name in ("threshold.json", "predictions.pkl", "scores.pkl"):
        assert (out / name).read_bytes() == (finished / name).read_bytes()
    assert not list(out.glob(".*"))


def test_evaluate_never_scores_training_videos_unasked(world, finished, tmp_path, capsys):
    manifest = Manifest.open(world).select("train").write(tmp_path / "train.parquet")
    command = ["boundaries", "evaluate", str(manifest), "--weights", str(finished), "--out", str(tmp_path / "e")]
    assert main(command) == 2
    assert "it has train (10): name one (--split)" in capsys.readouterr().err


def test_find_uses_the_trained_detector(finished, world, tmp_path, capsys):
    videos = [row.path for row in Manifest.open(world).select("test")]
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    out = tmp_path / "found.json"
    command = ["boundaries", "find", *videos, str(broken), "--weights", str(finished), "--device", "cpu"]
    assert main([*command, "--out", str(out), "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["trained"] is True
    assert "broken.mp4" in said.err
    found = json.loads(out.read_text())
    expected = json.loads((finished / "predictions.json").read_text())
    for path in videos:
        assert found[path]["boundaries"] == pytest.approx(expected[Path(path).stem], abs=1e-4)
        assert found[path]["segments"][0][0] == 0
        assert found[path]["segments"][-1][1] == pytest.approx(found[path]["duration_seconds"], abs=1e-4)
        assert len(found[path]["segments"]) == len(found[path]["boundaries"]) + 1
    assert main([*command, "--out", str(tmp_path / "found.csv"), "--threshold", "0.0"]) == 0
    with (tmp_path / "found.csv").open(newline="") as file:
        assert {row["path"] for row in csv.DictReader(file)} == set(videos)


@pytest.fixture(scope="module")
def changing_video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two scenes, the second from 4 s on."""
    frames = np.concatenate([moving_square(100, 32, 32, seed=1), 255 - moving_square(100, 32, 32, seed=5)])
    return make_video(tmp_path_factory.mktemp("two") / "two.mp4", frames)


def test_find_without_training_marks_where_features_change(changing_video, tmp_path, capsys):
    torch.manual_seed(0)
    encoder = VideoEncoder(EncoderConfig("r3d_tiny", heads=(), clip_num_frames=8, clip_stride=2, crop_size=16))
    found = timegrain.find_boundaries(changing_video, model=encoder, device="cpu")
    assert not found.trained
    strongest = found.seconds[found.strengths.argmax()]
    assert strongest == pytest.approx(4.0, abs=0.17)
    assert found.segments[0][0] == 0.0
    weights = tmp_path / "encoder.safetensors"
    save_weights(encoder, weights)
    command = ["boundaries", "find", str(changing_video), "--weights", str(weights), "--device", "cpu"]
    assert main([*command, "--out", str(tmp_path / "b.csv")]) == 0
    assert "no trained detector" in capsys.readouterr().err
    with (tmp_path / "b.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["seconds"]) for row in rows] == pytest.approx(found.seconds.tolist(), abs=1e-4)
    assert main([*command, "--out", str(tmp_path / "b.csv"), "--threshold=0.4"]) == 2
    assert "threshold: only a trained detector can be told that, and the model is an encoder" in capsys.readouterr().err
    nearest = min(strongest, found.duration_seconds - strongest)
    for end_seconds, stays in ((nearest, True), (nearest + 0.01, False)):
        again = timegrain.find_boundaries(changing_video, model=encoder, device="cpu", end_seconds=end_seconds)
        assert (strongest in again.seconds) == stays
    with pytest.raises(ValueError, match="gap_seconds must not be negative"):
        timegrain.find_boundaries(changing_video, model=encoder, gap_seconds=-1.0)


def test_find_boundaries_takes_a_trained_file(finished, world, capsys):
    path = Manifest.open(world).select("test")[0].path
    found = timegrain.find_boundaries(path, model=finished / "weights.safetensors", device="cpu")
    assert found.trained
    assert found.seconds.tolist() == json.loads((finished / "predictions.json").read_text())[Path(path).stem]
    assert len(timegrain.find_boundaries(path, model=finished, device="cpu", threshold=2.0).seconds) == 0
    example = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "find_boundaries.py"))
    example["main"](Path(path), finished)
    assert capsys.readouterr().out.count(" s to ") == len(found.segments)
    with pytest.raises(ValueError, match="prominence: only an encoder can be told that"):
        timegrain.find_boundaries(path, model=finished, device="cpu", prominence=2.0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--method=tcn"], ["stays frozen"]),
        (["--method=tcm"], ["tcm"]),
        (["--data.batch_size=5"], ["even"]),
        (["--data.batch_size=4000"], ["too few"]),
        (["--data.held_out=0"], ["held_out", "set aside"]),
        (["--data.split=nothing"], ["nothing", "train"]),
        (["--model.backbone=resnet51"], ["resnet51", "r3d50"]),
        (["--model.backbone=pixels"], ["nothing to fine-tune"]),
        (["--model.backbone=resnet50", "--model.weights=no.pth"], ["no.pth"]),
        (["--model.weights=no.safetensors"], ["no.safetensors"]),
        (["--backbone=frozen", "--method=bmn", "--model.head={depth: 3}"], ["depth"]),
        (["--picking.rule=middle"], ["middle"]),
        (["--evaluation.split=dev"], ["dev"]),
        (["--evaluation.mode=dense", "--data.num_frames=15"], ["15 frames do not fill", "--mode windows"]),
        (["--backbone=frozen", "--augment.flip_probability=0.5"], ["--augment.flip_probability cannot be given here"]),
        (["--method=tcn", "--backbone=frozen", "--model.pooling=mean"], ["tcn pools nothing"]),
    ],
)  # fmt: skip
def test_errors_name_the_value_and_the_remedy(world, tmp_path, capsys, options, words):
    try:
        code = train(tmp_path / "run", world, "--run.steps=1", *options)
    except SystemExit as exit:
        code = exit.code
    assert code == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    for word in words:
        assert word in error
    assert not list(tmp_path.glob("run/*.safetensors"))  # it is said before the training


def test_a_manifest_without_boundaries_is_refused(tmp_path, capsys):
    video = make_video(tmp_path / "v" / "a.mp4", moving_square(40))
    assert main(["manifest", "scan", str(video.parent), "--out", str(tmp_path / "m.parquet")]) == 0
    assert main(["boundaries", "evaluate", str(tmp_path / "m.parquet"), "--weights", "w", "--out", str(tmp_path)]) == 2
    assert "boundaries_seconds" in capsys.readouterr().err


def test_find_refuses_other_endings_and_weights_of_nothing(changing_video, tmp_path, capsys):
    assert main(["boundaries", "find", str(changing_video), "--weights", "w", "--out", "b.txt"]) == 2
    assert ".csv or .json" in capsys.readouterr().err
    other = tmp_path / "w.safetensors"
    other.write_bytes(b"nothing")
    assert (
        main(["boundaries", "find", str(changing_video), "--weights", str(other), "--out", str(tmp_path / "b.csv")])
        == 2
    )
    assert "not a whole safetensors file" in capsys.readouterr().err


def test_detector_files_round_trip_and_are_checked(tmp_path, capsys):
    detector = BoundaryDetector(BoundaryConfig(backbone="r3d_tiny", picking={"rule": "peaks", "threshold": 0.3}))
    save_detector(detector, tmp_path / "d.safetensors")
    again = load_detector(tmp_path / "d.safetensors")
    assert again.config == detector.config
    for (name, one), other in zip(detector.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(one, other), name
    encoder = VideoEncoder(EncoderConfig("r3d_tiny", heads=()))
    save_weights(encoder, tmp_path / "e.safetensors")
    with pytest.raises(ValueError, match="no boundary detector"):
        load_detector(tmp_path / "e.safetensors")
    assert main(["embed", "a.mp4", "--weights", str(tmp_path / "d.safetensors"), "--out", "f.parquet"]) == 2
    assert "not TimeGrain weights" in capsys.readouterr().err


def test_resnet50_takes_a_local_file(tmp_path):
    from torchvision.models import resnet50

    from timegrain.models.boundary import build_features, load_frame_weights

    network = resnet50(weights=None)
    torch.save(network.state_dict(), tmp_path / "resnet50.pth")
    features = build_features(BoundaryConfig(method="pc", backbone="resnet50"))
    load_frame_weights(features, tmp_path / "resnet50.pth")
    assert torch.equal(features.network.network.conv1.weight, network.conv1.weight)
    assert features.eval()(torch.rand(1, 3, 2, 32, 32)).shape == (1, 2, 2048)
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="resnet50"):
        load_frame_weights(features, tmp_path / "other.pth")


CONFIGS = sorted((Path(__file__).parents[2] / "configs" / "boundaries").glob("*.yaml"))
TRAINED = [path for path in CONFIGS if "method" in yaml.safe_load(path.read_text())]


def test_every_row_of_the_paper_s_table_has_a_config():
    rows = {"scenedetect", "pc", "tcn", "bmn_se", "cvrl", "teg_ps", "teg_fg"}
    assert {path.stem.removeprefix("gebd_") for path in CONFIGS} == rows | {"teg_fg_frozen"}
    for path in CONFIGS:
        comment = path.read_text().split("\nmethod:")[0]
        for part in (f"--config configs/boundaries/{path.name}", "Hardware and time:", "Number to expect:"):
            assert part in comment, f"{path.name} does not say: {part}"


def test_the_scenedetect_config_runs(world, tmp_path):
    config = next(path for path in CONFIGS if path.stem == "gebd_scenedetect")
    out = tmp_path / "cuts.json"
    assert main([
        "floors", "scenedetect", str(world), f"--config={config}", "--split=test", f"--out={out}", "--workers=1",
    ]) == 0  # fmt: skip
    assert len(json.loads(out.read_text())) == 4


@pytest.fixture(scope="module")
def small_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four videos of 40 frames, for the large networks of the shipped configurations."""
    folder = tmp_path_factory.mktemp("small")
    config = world_config("easy", num_frames=40, min_events=2, max_events=2)
    write_world(folder, 4, 0, config=config, workers=1, preview=False)
    return folder / "manifest.parquet"


@pytest.mark.parametrize("config", TRAINED, ids=lambda path: path.stem)
def test_every_shipped_config_trains_two_steps(config, small_world, tmp_path):
    values = yaml.safe_load(config.read_text())
    small = ["--model.head={num_moments: 10, width: 4, num_samples: 4}"] if values["method"] == "bmn" else []
    small += ["--model.head={width: 8, num_layers: 2}"] if values["method"] == "tcn" else []
    small += ["--model.options={width: 8, stem_width: 8}"] if values["model"]["backbone"] == "r3d50" else []
    assert main([
        "boundaries", "train", f"--config={config}", f"--data.manifest={small_world}", f"--run.out={tmp_path / 'run'}",
        "--run.steps=2", "--data.batch_size=2", "--data.workers=0", "--data.crop_size=16", "--run.devices=1",
        "--data.held_out=0.2", "--data.every=8", "--run.num_nodes=1", "--run.precision=32-true", "--run.accelerator=cpu",
        "--run.log_every_steps=1", "--run.tensorboard=false", "--evaluation.split=none", *small,
    ]) == 0  # fmt: skip
    with (tmp_path / "run" / "metrics.csv").open(newline="") as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    assert len(losses) == 2
    assert all(0 < loss < 30 for loss in losses)


def test_planted_cuts_are_learned(tmp_path):
    """Videos that change their picture at known times: a frozen detector on plain colours must find them on others."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(36):
        marks = np.sort(rng.choice(np.arange(15, 85, 14), 3, replace=False)) + int(rng.integers(5))
        colours = rng.integers(20, 235, (4, 1, 1, 3))
        kinds = np.searchsorted(marks, np.arange(100), side="right")
        frames = np.broadcast_to(colours[kinds], (100, 32, 32, 3)) + rng.integers(-15, 15, (100, 32, 32, 3))
        path = make_video(tmp_path / f"v{number}.mp4", frames.clip(0, 255).astype(np.uint8))
        rows.append({
            "path": str(path), "num_frames": 100, "fps": 25.0, "duration_seconds": 4.0, "width": 32, "height": 32,
            "split": "train" if number < 28 else "test", "boundaries_seconds": (marks / 25).tolist(),
        })  # fmt: skip
    manifest = Manifest.from_rows(rows, tmp_path).write(tmp_path / "m.parquet")
    out = tmp_path / "run"
    assert train(
        out, manifest, "--backbone=frozen", "--model.backbone=pixels", "--data.every=2", "--data.batch_size=16",
        "--run.steps=60", "--picking.gap_seconds=0.3",
    ) == 0  # fmt: skip
    (trained, uniform) = json.loads((out / "result.json").read_text())["rows"]
    assert trained["scores"]["f1@0.05"] > uniform["scores"]["f1@0.05"] + 0.1
