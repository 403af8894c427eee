"""`timegrain finetune`, `probe linear` and `probe attentive` as a user runs them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file

from timegrain.cli import main
from timegrain.data.manifest import Manifest
from timegrain.models.hub import EncoderConfig, VideoEncoder, load_encoder, save_weights
from timegrain.report.results import find_results, read_result

CONFIGS = Path(__file__).parents[2] / "configs"
TINY = [
    "--data.num_frames=8", "--data.stride=2", "--data.crop_size=16", "--data.batch_size=4", "--data.workers=0",
    "--test.num_clips=2", "--test.num_crops=3", "--run.tensorboard=false", "--run.log_every_steps=1",
    "--run.accelerator=cpu", "--run.devices=1", "--run.num_nodes=1", "--run.precision=32-true",
]  # fmt: skip


@pytest.fixture(scope="module")
def manifest(video_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight videos of two classes with three divisions, as `timegrain prepare` writes them for UCF101."""
    folder = tmp_path_factory.mktemp("manifest")
    assert main(["manifest", "scan", str(video_folder), "--out", str(folder / "scan.parquet")]) == 0
    rows = []
    for number, row in enumerate(Manifest.open(folder / "scan.parquet")):
        values = {name: value for name, value in vars(row).items() if name != "extra"}
        splits = ["test" if (number + shift) % 4 == 0 else "train" for shift in range(3)]
        rows.append({**values, "split": splits[0], **{f"split{i + 1}": split for i, split in enumerate(splits)}})
    coverage = {"benchmark": "ucf101", "splits": {"test": {"listed": 4, "found": 2, "usable": 2}}}
    return Manifest.from_rows(rows, folder, coverage).write(folder / "m.parquet")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(5)
    config = EncoderConfig(
        backbone="r3d_tiny", head_hidden=16, head_num_hidden=1, head_out=8, clip_num_frames=8, clip_stride=2,
        crop_size=16, extra={"objective": "TeG", "alpha": 0.9},
    )  # fmt: skip
    path = tmp_path_factory.mktemp("run") / "weights.safetensors"
    save_weights(VideoEncoder(config), path)
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_finetune(weights: Path, manifest: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "run"
    command = ["finetune", "--weights", weights, "--data.manifest", manifest, "--run.out", out, "--run.steps", 4, *TINY]
    code, text, err = run(capsys, *command, "--json")
    assert code == 0, err
    record = json.loads(text)
    result = read_result(out / "result.json")
    assert (result.benchmark, result.task, result.num_test) == ("ucf101", "fine-tune", 2)
    assert [(row.method, row.role) for row in result.rows] == [("TeG-FG", "trained"), ("majority class", "floor")]
    assert result.coverage is not None
    assert record["scores"][0]["top1"] == result.rows[0].scores["top1"]
    before, after = load_encoder(weights), load_encoder(out / "weights.safetensors")
    assert not torch.equal(before.backbone.stem_conv.weight, after.backbone.stem_conv.weight)
    assert after.config.heads == ()
    assert after.config.extra["then"] == "fine-tune"
    with safe_open(out / "classifier.safetensors", framework="pt") as file:
        described = json.loads(file.metadata()["timegrain_classifier"])
        assert file.get_tensor("linear.weight").shape == (2, 96)
    assert described["class_names"] == ["left", "right"]

    # what it wrote is what `score topk` reads, and both say the same
    code, text, _ = run(capsys, "score", "topk", "--predictions", out / "clips.pkl", "--json")
    assert code == 0
    scored = json.loads(text)
    assert scored["top1"] / 100 == pytest.approx(result.rows[0].scores["top1"])
    assert (scored["num_videos"], scored["views_per_video"], scored["missing_clips"]) == (2, 6, 0)

    # the encoder embeds; the same command again only tests; the configuration repeats the run
    first = load_file(out / "classifier.safetensors")
    assert run(capsys, *command)[0] == 0
    assert torch.equal(first["linear.weight"], load_file(out / "classifier.safetensors")["linear.weight"])
    again = tmp_path / "again"
    assert run(capsys, "finetune", "--config", out / "config.yaml", "--run.out", again)[0] == 0
    assert torch.equal(first["linear.weight"], load_file(again / "classifier.safetensors")["linear.weight"])
    code, _, err = run(capsys, *command, "--data.stride", 1)
    assert code == 2
    assert "data.stride: 2 there, 1 asked for" in err


def test_a_finished_run_is_scored_again_without_training(weights: Path, manifest: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "run"
    command = ["finetune", "--weights", weights, "--data.manifest", manifest, "--run.out", out, "--run.steps", 2, *TINY]
    assert run(capsys, *command)[0] == 0
    first, rows = read_result(out / "result.json"), (out / "metrics.csv").read_text()
    code, _, err = run(capsys, *command, "--test.num_clips", 1, "--data.split_test", "train")
    assert code == 0, err
    assert "scoring again with data.split_test 'train', before 'test', test.num_clips 1, before 2" in err
    assert (out / "metrics.csv").read_text() == rows  # not a step more
    second = read_result(out / "result.json")
    assert (first.num_test, second.num_test) == (2, 6)
    assert second.protocol["test"].startswith("1 clip x 3 crops")
    assert (first.protocol["split_test"], second.protocol["split_test"]) == ("test", "train")
    (aside,) = out.glob("scored-*")
    assert read_result(aside / "result.json") == first
    assert (aside / "clips.pkl").exists()
    assert yaml.safe_load((aside / "config.yaml").read_text())["test"]["num_clips"] == 2
    assert yaml.safe_load((out / "config.yaml").read_text())["test"]["num_clips"] == 1
    then, now = (json.loads((place / "run.json").read_text()) for place in (aside, out))
    assert (now["scored_before"], now["steps"]) == ([aside.name], then["steps"])
    assert then["scores"]["trained"]["top1"] == first.rows[0].scores["top1"]
    # What only changes how fast the same is computed keeps the scores where they are; a report counts the run once.
    assert run(capsys, *command, "--test.num_clips", 1, "--data.split_test", "train", "--test.batch_size", 2)[0] == 0
    assert list(out.glob("scored-*")) == [aside]
    assert [path for path, _ in find_results([out])] == [out / "result.json"]
    assert [path for path, _ in find_results([aside])] == [aside / "result.json"]


@pytest.mark.parametrize(
    ("command", "options", "words"),
    [
        ("finetune", ["--model.options={padding: symmetric}"], "that of {weights} has padding: not set"),
        (
            "finetune",
            ["--classifier.num_blocks=1"],
            "--classifier.num_blocks cannot be given here: only `timegrain probe",
        ),
        ("finetune", ["--classifier.random_weights=2"], "here the whole network is trained"),
        ("probe linear", ["--classifier.num_heads=2"], "--classifier.num_heads cannot be given here"),
        ("probe attentive", ["--classifier.normalise=true"], "--classifier.normalise cannot be given here"),
    ],
)
def test_what_would_be_ignored_is_refused(command, options, words, weights, manifest, tmp_path, capsys) -> None:
    given = ["--weights", weights, "--data.manifest", manifest, "--run.out", tmp_path / "run", "--run.steps", 1, *TINY]
    code, _, err = run(capsys, *command.split(), *given, *options)
    assert code == 2
    assert words.format(weights=weights) in err
    assert not (tmp_path / "run").exists()


def test_from_scratch_on_three_splits(manifest: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "run"
    code, text, err = run(
        capsys, "finetune", "--model.backbone", "r3d_tiny", "--data.manifest", manifest, "--run.out", out,
        "--run.steps", 2, "--split", 1, 2, 3, *TINY,
    )  # fmt: skip
    assert code == 0, err
    assert "over 3 splits" in text
    result = read_result(out / "result.json")
    assert (result.task, result.num_test, result.protocol["split"]) == ("from scratch", 6, [1, 2, 3])
    tested = [yaml.safe_load((out / f"split{n}" / "config.yaml").read_text())["split"] for n in (1, 2, 3)]
    assert tested == [[1], [2], [3]]
    parts = [run_ for run_ in out.glob("split*/clips.pkl")]
    assert len(parts) == 3
    code, _, err = run(
        capsys, "finetune", "--model.backbone", "r3d_tiny", "--data.manifest", manifest, "--run.out", out,
        "--run.steps", 2, "--split", 1, 2, 3, *TINY, "--test.num_crops", 1,
    )  # fmt: skip
    assert code == 0, err
    assert read_result(next(out.glob("scored-*")) / "result.json") == result
    assert len(list(out.glob("split*/scored-*/clips.pkl"))) == 3
    assert read_result(out / "result.json").protocol["test"].startswith("2 clips x 1 crop ")
    assert load_encoder(out / "split2" / "weights.safetensors").config.extra["objective"] == "supervised"
    code, _, err = run(
        capsys, "finetune", "--data.manifest", manifest, "--run.out", tmp_path / "x", "--split", 4, *TINY
    )
    assert code == 2
    assert "no column 'split4' to divide by; it has split, split1, split2, split3" in err


@pytest.mark.parametrize("kind", ["linear", "attentive"])
def test_online_probes_leave_the_encoder_alone(
    kind: str, weights: Path, manifest: Path, tmp_path: Path, capsys
) -> None:
    out = tmp_path / "run"
    command = [
        "probe", kind, "--weights", weights, "--data.manifest", manifest, "--run.out", out, "--run.steps", 5,
        "--run.warmup_steps", 1, *(["--classifier.num_blocks", 1] if kind == "attentive" else []), *TINY,
    ]  # fmt: skip
    code, text, err = run(capsys, *command)
    assert code == 0, err
    assert "random weights" in text
    assert "majority class" in text
    result = read_result(out / "result.json")
    assert result.task == f"{kind} probe"
    assert [row.role for row in result.rows] == ["trained", "floor", "floor"]
    assert not (out / "weights.safetensors").exists()
    state = torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    for name, tensor in load_encoder(weights).backbone.state_dict().items():
        assert torch.equal(state[f"encoders.trained.backbone.{name}"], tensor), name  # statistics, too
    again = tmp_path / "again"
    assert run(capsys, "probe", kind, "--config", out / "config.yaml", "--run.out", again)[0] == 0
    one, other = (load_file(folder / "classifier.safetensors") for folder in (out, again))
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert not torch.equal(
        state["encoders.random_0.backbone.stem_conv.weight"], state["encoders.trained.backbone.stem_conv.weight"]
    )


def test_a_stopped_run_goes_on_exactly(weights: Path, manifest: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    """Stopped inside an epoch by an error, then continued: the same classifier as without."""
    from timegrain.tasks.classification import ClassificationTask

    common = [
        "--weights",
        weights,
        "--data.manifest",
        manifest,
        "--run.steps",
        5,
        "--run.checkpoint_every_steps",
        1,
        *TINY,
    ]
    common += ["--data.batch_size", 2]
    assert run(capsys, "finetune", *common, "--run.out", tmp_path / "whole")[0] == 0
    original = ClassificationTask.training_step

    def stop(self, batch, batch_idx):
        if self.global_step == 2:
            raise ValueError("stopped")
        return original(self, batch, batch_idx)

    monkeypatch.setattr(ClassificationTask, "training_step", stop)
    code, _, err = run(capsys, "finetune", *common, "--run.out", tmp_path / "broken")
    assert (code, "stopped" in err) == (2, True)
    monkeypatch.undo()
    assert run(capsys, "finetune", *common, "--run.out", tmp_path / "broken")[0] == 0
    for name in ("weights.safetensors", "classifier.safetensors"):
        one, other = (load_file(tmp_path / folder / name) for folder in ("whole", "broken"))
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_messages(weights: Path, manifest: Path, video_folder: Path, tmp_path: Path, capsys) -> None:
    for arguments, message in [
        (["finetune"], "name the videos: --data.manifest"),
        (["finetune", "--data.manifest", tmp_path / "no.parquet"], "no manifest at"),
        (
            ["finetune", "--data.manifest", manifest, "--data.split_test", "val"],
            "no split 'val'; it has test (2), train (6)",
        ),
        (["probe", "linear", "--weights", "none", "--data.manifest", manifest], "needs --weights"),
        (["probe", "linear", "--weights", tmp_path / "no.safetensors", "--data.manifest", manifest], "does not exist"),
        (["finetune", "--data.manifest", manifest, "--model.backbone", "r3d51"], "unknown backbone 'r3d51'"),
        (["finetune", "--data.manifest", manifest, "--data.batch_size", 64], "use a batch size of at most 6"),
        (["finetune", "--data.manifest", manifest, "--split", 1, 9], "no column 'split9'"),
        (
            ["finetune", "--weights", weights, "--data.manifest", manifest, "--model.backbone", "r3d18"],
            "has the backbone r3d_tiny, not r3d18",
        ),
    ]:
        tiny = [word for word in TINY if "batch_size" not in word]
        code, _, err = run(capsys, *arguments, "--run.out", tmp_path / "run", *tiny)
        assert code == 2
        assert message in err, err
        assert "Traceback" not in err
        assert not list(tmp_path.glob("run/**/config.yaml"))  # put right, the command may be typed again


@pytest.mark.parametrize(
    "path",
    sorted(p for p in CONFIGS.glob("*/*.yaml") if p.parent.name in ("finetune", "probe") and "vidsitu" not in p.name),
    ids=lambda p: p.stem,
)
def test_every_shipped_config_trains_two_steps(
    path: Path, weights: Path, manifest: Path, tmp_path: Path, capsys
) -> None:
    first = path.read_text().split("\n\n")[0]
    assert first.startswith("# ")
    (line,) = [line.strip("# ") for line in path.read_text().splitlines() if line.startswith("#   timegrain")]
    words = line.split()
    command = words[1 : words.index("--config")]
    assert words[words.index("--config") + 1] == f"configs/{path.parent.name}/{path.name}"
    smaller = [
        "--test.num_clips=1",
        "--test.num_crops=1",
        "--run.steps=2",
        "--run.warmup_steps=0",
        "--data.split_test=test",
    ]
    smaller += ["--split=[1]"] if "split" in yaml.safe_load(path.read_text()) else []
    scratch = "--weights" not in words
    smaller += ["--model.backbone=r3d_tiny", "--model.options={}"] if scratch else ["--weights", weights]
    arguments = [
        *command,
        "--config",
        path,
        "--data.manifest",
        manifest,
        "--run.out",
        tmp_path / "run",
        *TINY,
        *smaller,
    ]
    code, _, err = run(capsys, *arguments)
    assert code == 0, err
    assert np.isfinite(read_result(tmp_path / "run" / "result.json").rows[0].scores["top1"])
