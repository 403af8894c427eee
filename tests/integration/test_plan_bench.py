"""`timegrain plan` says what the run then says; `timegrain bench` measures every stage and names the limit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from timegrain.cli import main

SMALL = [
    "--model.backbone=r3d_tiny", "--model.head_hidden=16", "--model.head_layers=1", "--data.crop_size=32",
    "--data.batch_size=4", "--data.workers=0", "--run.accelerator=cpu",
]  # fmt: skip


@pytest.fixture(scope="module")
def manifest(video_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("manifest") / "m.parquet"
    assert main(["manifest", "scan", str(video_folder), "--out", str(path)]) == 0
    return path


def told(text: str, word: str) -> str:
    return next(line for line in text.splitlines() if line.startswith(word))


def test_a_plan_for_this_cpu_says_what_the_run_says(manifest: Path, tmp_path: Path, capsys):
    options = [
        *SMALL, f"--data.manifest={manifest}", f"--run.out={tmp_path / 'run'}", "--run.steps=5", "--run.warmup_steps=2",
        "--run.accumulate=2", "--optim.learning_rate=0.003", "--run.tensorboard=false", "--run.monitor_every_epochs=0",
    ]  # fmt: skip
    assert main(["plan", *options, "--gpu", "cpu", "--seconds", "0.2"]) == 0
    planned = capsys.readouterr().out
    assert not (tmp_path / "run").exists()
    assert main(["plan", *options, "--gpu", "cpu", "--seconds", "0.2", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert main(["pretrain", *options]) == 0
    said = capsys.readouterr().err
    for word in ("videos", "clips", "model", "objective", "batch", "optimiser", "length", "memory", "out"):
        assert told(planned, word) == told(said, word)
    assert record["schedule"] == json.loads((tmp_path / "run" / "run.json").read_text())["schedule"]
    assert record["learning_rate"] == 0.003
    assert record["loading"]["source"].startswith("measured on")
    low, high = record["estimate"]["step_seconds"]
    load, colour = record["loading"]["seconds"][0], record["loading"]["colour_seconds"]
    step = record["step_time"]["fixed"] + 4 * record["step_time"]["per_video"]
    assert low == high == pytest.approx(4 * (load + colour) + step)  # without workers they take turns
    assert record["estimate"]["seconds"][0] == pytest.approx(5 * 2 * low)
    assert "bound by" in planned


def test_the_papers_configuration_on_eight_gpus(capsys):
    config = str(Path(__file__).parents[2] / "configs" / "pretrain" / "k400_teg_fg_200ep.yaml")
    small = ["--model.backbone=r3d_tiny", "--data.crop_size=32", "--model.options={}"]  # shapes only, but it is quicker
    assert main(["plan", config, "--gpus", "8", "--gpu", "h100", *small]) == 0
    said = capsys.readouterr().out
    assert "240,000 (assumed" in said
    assert "batch           256 videos" in said
    assert "learning rate 40.96" in said
    assert "187,400 steps (200.0 epochs of 937)" in said
    assert "--data.batch_size 128, instead of --gpus, keep the configuration's contrastive batch of 1,024" in said
    assert "an assumption" in said
    assert "hours for" in said or "minutes for" in said
    assert main(["plan", "--config", config, "--gpu", "h100", *small, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["processes"] == 32
    assert record["schedule"]["global_batch"] == 1024
    assert record["memory"]["buckets"] == record["memory"]["gradients"]


def test_what_does_not_fit_gets_settings_that_do(capsys):
    options = [
        "--model.backbone=r3d_tiny", "--data.crop_size=112", "--data.batch_size=2048", "--gpu", "t4",
        "--model.head_hidden=64", "--run.precision=bf16-mixed", "--num_videos=10000",
    ]  # fmt: skip
    assert main(["plan", *options]) == 0
    said = capsys.readouterr().out
    assert "does NOT fit into 16 GiB" in said
    assert "bound by        memory" in said
    assert "16-mixed: a T4 has no bfloat16" in said
    chunk = said.split("--run.chunk_size ")[1].split()[0]
    assert main(["plan", *options, f"--run.chunk_size={chunk}", "--json"]) == 0
    memory = json.loads(capsys.readouterr().out)["memory"]
    assert memory["tensors"] <= memory["capacity"]


def test_a_plan_refuses_what_the_run_would_refuse(manifest: Path, tmp_path: Path, capsys):
    common = ["plan", *SMALL, f"--data.manifest={manifest}", f"--run.out={tmp_path}"]
    for options, words in (
        (["--data.batch_size=64", "--gpu=h100"], "do not fill one batch of 64"),
        (["--data.batch_size=1", "--gpu=h100"], "nothing to contrast it with"),
        (["--model.weights=no.safetensors", "--gpu=h100"], "no.safetensors does not exist"),
        (["--seconds=0", "--gpu=h100"], "--seconds 0: more than 0"),
        (["--gpu=h10"], "Did you mean h100?"),
        (["--gpus=0", "--gpu=h100"], "--gpus must be at least 1"),
        (["--gpus=8", "--gpu=cpu"], "--gpus 8: a plan for a CPU is one of a single process"),
        (["--objective.name=byol", "--objective.alpha=0.5", "--gpu=h100"], "does not belong"),
    ):
        assert main([*common, *options]) == 2
        assert words in capsys.readouterr().err


def test_bench_measures_every_stage_and_names_the_broken(video_folder: Path, tmp_path: Path, capsys):
    import shutil

    shutil.copytree(video_folder, tmp_path / "videos")
    (tmp_path / "videos" / "broken.mp4").write_bytes(b"no video")
    assert main(["bench", str(tmp_path / "videos"), *SMALL, "--seconds", "0.6", "--json"]) == 0
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    assert "measuring" in captured.err
    assert [Path(path).name for path, _ in report["failures"]] == ["broken.mp4"]
    rates = report["samples_per_second"]
    assert all(rate > 0 for rate in rates.values())
    assert report["limit"] == min(rates, key=rates.get)
    assert report["advice"]
    each = report["sample_ms"]
    assert rates["loading"] == pytest.approx(1000 / (each["decode"] + each["cut_and_resize"]), rel=0.01)
    assert rates["training"] == pytest.approx(1000 / (each["colour_and_blur"] + each["step"]), rel=0.01)
    assert report["disk"]["bytes"] > 0
    assert report["together"]["steps"] >= 1
    assert 0 <= report["together"]["waiting"] <= 1


def test_bench_prints_a_table_for_a_manifest_and_one_worker(manifest: Path, capsys):
    assert (
        main(["bench", str(manifest), *SMALL[:-2], "--data.workers=1", "--run.accelerator=cpu", "--seconds", "0.6"])
        == 0
    )
    said = capsys.readouterr().out
    for word in ("disk", "decoding", "cutting", "hand-over", "colour, blur", "step", "together", "limit:"):
        assert told(said, word)
    assert "1 workers" in told(said, "loading")


def test_bench_says_what_is_wrong(manifest: Path, tmp_path: Path, capsys):
    assert main(["bench", str(manifest), *SMALL, "--model.weights=no.safetensors"]) == 2
    assert "no.safetensors does not exist" in capsys.readouterr().err
    assert main(["bench", str(tmp_path / "nowhere")]) == 2
    assert "does not exist" in capsys.readouterr().err
    assert main(["bench", str(tmp_path)]) == 2
    assert "no video in" in capsys.readouterr().err
    (tmp_path / "a.mp4").write_bytes(b"no video")
    assert main(["bench", str(tmp_path)]) == 2
    assert "can be used; the first:" in capsys.readouterr().err
