"""`timegrain pretrain` as a user runs it: features at the end, exact resume, clear errors, nothing lost."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from timegrain import callbacks, checkpoints
from timegrain.cli import main
from timegrain.data import clips
from timegrain.data.manifest import Manifest
from timegrain.objectives.teg import TeG
from timegrain.tasks.training import TrainingTask

TINY = [
    "--model.backbone=r3d_tiny", "--model.head_hidden=16", "--model.head_layers=1", "--model.head_out=8",
    "--data.long_frames=16", "--data.long_stride=2", "--data.short_frames=8", "--data.short_stride=2",
    "--data.crop_size=16", "--data.batch_size=4", "--data.workers=0", "--objective.num_long=2",
    "--run.tensorboard=false", "--run.log_every_steps=1", "--run.accelerator=cpu",
]  # fmt: skip


def pretrain(out: Path, *options: str) -> int:
    return main(["pretrain", f"--run.out={out}", *TINY, *options])


def checkpoint(out: Path) -> dict:
    return torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)


def assert_same_weights(first: Path, second: Path) -> None:
    one, other = load_file(first / "weights.safetensors"), load_file(second / "weights.safetensors")
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_folder_is_enough(video_folder: Path, tmp_path: Path, capsys):
    out = tmp_path / "run"
    assert (
        pretrain(
            out,
            f"--data.folder={video_folder}",
            "--run.epochs=2",
            "--run.monitor_every_epochs=1",
            "--run.tensorboard=true",
            "--json",
        )
        == 0
    )
    captured = capsys.readouterr()
    answer = json.loads(captured.out)
    for said in ("one contrastive batch", "for the mean loss", "4 steps", "memory", "negatives", "wait="):
        assert said in captured.err
    assert "epoch 2: same_video_retrieval" in captured.err
    events = EventAccumulator(str(out / "tensorboard")).Reload()
    assert {"loss", "fine/loss", "persistent/loss", "learning_rate", "monitor"} <= set(events.Tags()["scalars"])
    assert answer["steps"] == 4
    assert Path(answer["weights"]).exists()
    assert {"fine/loss", "persistent/loss", "fine/num_negatives", "fine/chance_loss", "fine/spread"} <= answer.keys()
    assert answer["fine/num_negatives"] == 6
    assert len(rows(out)) >= 4
    record = json.loads((out / "run.json").read_text())
    assert record["steps"] == 4
    assert record["versions"]["torch"] == torch.__version__.split("+")[0]
    assert record["final"]["monitor"] >= 0


def test_resolved_config_repeats_the_run(manifest: Path, tmp_path: Path):
    first, second = tmp_path / "a", tmp_path / "b"
    assert pretrain(first, f"--data.manifest={manifest}", "--run.steps=3") == 0
    assert main(["pretrain", f"--config={first / 'config.yaml'}", f"--run.out={second}"]) == 0
    assert_same_weights(first, second)


@pytest.mark.parametrize(
    ("stop", "options"),
    [
        (3, ["--data.workers=2"]),
        (4, []),
        (3, ["--run.accumulate=2", "--data.batch_size=2"]),
        (2, ["--augment.jitter_probability=1.0", "--objective.alpha=0.5"]),
    ],
    ids=["inside an epoch, with workers", "at the end of an epoch", "with accumulation", "two losses"],
)
def test_resume_is_bit_for_bit(manifest: Path, tmp_path: Path, stop: int, options: list[str]):
    common = [f"--data.manifest={manifest}", "--run.steps=7", *options]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert pretrain(whole, *common) == 0
    code = (
        "import sys, timegrain.callbacks as c\n"
        f"def stop(self, trainer, *rest):\n    if trainer.global_step == {stop} and "
        "(trainer.fit_loop.epoch_loop.batch_progress.current.completed % trainer.accumulate_grad_batches) == 0:\n"
        "        import os; os._exit(9)\n"
        "c.FailedVideos.on_train_batch_start = stop\n"
        "from timegrain.cli import main; sys.exit(main(sys.argv[1:]))\n"
    )
    every = ["--run.checkpoint_every_steps=1"]
    killed = subprocess.run(
        [sys.executable, "-c", code, "pretrain", f"--run.out={broken}", *TINY, *common, *every],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert killed.returncode == 9, killed.stderr[-2000:]
    assert checkpoint(broken)["global_step"] == stop
    assert pretrain(broken, *common, *every) == 0
    assert_same_weights(whole, broken)
    ignored = ("data_wait_percent",)
    for one, other in zip(rows(whole), rows(broken), strict=True):
        assert {k: v for k, v in one.items() if k not in ignored} == {
            k: v for k, v in other.items() if k not in ignored
        }


def test_no_epoch_repeats_the_clips_of_another(manifest: Path, tmp_path: Path, monkeypatch):
    seen = []
    forward = TeG.forward

    def note(self, clips, indices):
        seen.append((float(clips[0].sum()), indices[0].tolist()))
        return forward(self, clips, indices)

    monkeypatch.setattr(TeG, "forward", note)
    assert pretrain(tmp_path / "run", f"--data.manifest={manifest}", "--run.epochs=3", "--data.batch_size=8") == 0
    assert len({pixels for pixels, _ in seen}) == 3
    assert len({str(sorted(indices)) for _, indices in seen}) == 3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "a scheduler"])
def test_a_stopped_run_ends_after_its_step_and_goes_on_bit_for_bit(
    manifest: Path, tmp_path: Path, capsys, monkeypatch, number: signal.Signals
):
    common = [f"--data.manifest={manifest}", "--run.steps=5", "--run.accumulate=2", "--data.batch_size=2"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert pretrain(whole, *common) == 0
    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        patch.setattr(
            callbacks.FailedVideos, "on_train_batch_start",
            lambda self, trainer, *rest: os.kill(os.getpid(), number) if trainer.global_step == 2 and
            not any(isinstance(c, checkpoints.BetweenSteps) and c.is_asked for c in trainer.callbacks) else None,
        )  # fmt: skip
        assert pretrain(stopped, *common) == 130
    assert "stopped after step 3; the same command continues there" in capsys.readouterr().err
    assert signal.getsignal(number) == before
    assert checkpoint(stopped)["global_step"] == 3
    assert pretrain(stopped, *common) == 0
    assert_same_weights(whole, stopped)


def test_checkpoints_by_the_clock_fall_between_steps_only(manifest: Path, tmp_path: Path, monkeypatch):
    batches = []
    save = checkpoints.AtomicCheckpoints.save_checkpoint

    def note(self, state, *rest, **named):
        batches.append(state["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["processed"])
        save(self, state, *rest, **named)

    monkeypatch.setattr(checkpoints.AtomicCheckpoints, "save_checkpoint", note)
    options = ["--run.steps=3", "--run.accumulate=2", "--data.batch_size=2", "--run.checkpoint_minutes=0"]
    assert pretrain(tmp_path / "run", f"--data.manifest={manifest}", *options) == 0
    assert sorted(set(batches)) == [2, 4, 6]
    assert [row["step"] for row in rows(tmp_path / "run")] == ["1.0", "2.0", "3.0"]


def test_a_killed_worker_is_one_message(manifest: Path, tmp_path: Path, capsys, monkeypatch):
    monkeypatch.setattr(clips.VideoClips, "__getitem__", lambda self, key: os.kill(os.getpid(), signal.SIGKILL))
    options = ["--run.steps=3", "--data.workers=1"]
    assert pretrain(tmp_path / "run", f"--data.manifest={manifest}", *options) == 2
    error = capsys.readouterr().err
    assert "ended from outside" in error
    assert "--data.workers" in error


def test_a_finished_run_is_left_as_it_is(manifest: Path, tmp_path: Path):
    out = tmp_path / "run"
    assert pretrain(out, f"--data.manifest={manifest}", "--run.steps=2") == 0
    before = load_file(out / "weights.safetensors")
    assert pretrain(out, f"--data.manifest={manifest}", "--run.steps=2") == 0
    after = load_file(out / "weights.safetensors")
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert len(rows(out)) == 2


@pytest.mark.multiprocess
def test_two_processes_share_negatives_and_resume_bit_for_bit(manifest: Path, tmp_path: Path):
    options = ["--data.batch_size=2", "--run.devices=2", "--run.epochs=2", "--run.keep_every_epochs=1"]
    command = [sys.executable, "-m", "timegrain.cli", "pretrain", *TINY, f"--data.manifest={manifest}", *options]

    def two(out: Path) -> None:
        done = subprocess.run([*command, f"--run.out={out}"], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]

    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    two(whole)
    assert {row["fine/num_negatives"] for row in rows(whole)} == {"6.0"}  # (2 x 2 - 1) videos x m = 2
    (resumed / "checkpoints").mkdir(parents=True)
    shutil.copy(whole / "config.yaml", resumed)
    shutil.copy(whole / "checkpoints" / "step=00000002.ckpt", resumed / "checkpoints" / "last.ckpt")
    two(resumed)
    assert_same_weights(whole, resumed)
    assert checkpoint(resumed)["global_step"] == 4


def started_by(run: subprocess.Popen[bytes]) -> list[str]:
    """Processes that a run has started to train beside it."""
    found = []
    for number in Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split():
        with suppress(OSError):  # gone by now: one that looked something up
            if b"LOCAL_RANK=1\0" in Path(f"/proc/{number}/environ").read_bytes():
                found.append(number)
    return found


@pytest.mark.multiprocess
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's list of a process's children")
def test_a_process_whose_starter_was_killed_before_they_met_ends(manifest: Path, tmp_path: Path):
    """It would wait half an hour for it, and whoever reads its output would wait as long."""
    options = [f"--data.manifest={manifest}", "--data.batch_size=2", "--run.devices=2", f"--run.out={tmp_path / 'run'}"]
    command = [sys.executable, "-m", "timegrain.cli", "pretrain", *TINY, *options]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    while not started_by(run):
        assert run.poll() is None
        time.sleep(0.01)
    run.kill()
    run.communicate(timeout=120)  # until the other one has let go of the output


@pytest.mark.multiprocess
def test_a_port_that_is_taken_is_a_message(manifest: Path, tmp_path: Path):
    options = [f"--data.manifest={manifest}", "--data.batch_size=2", "--run.devices=2", f"--run.out={tmp_path / 'run'}"]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        environment = {**os.environ, "MASTER_PORT": str(taken.getsockname()[1])}
        command = [sys.executable, "-m", "timegrain.cli", "pretrain", *TINY, *options]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 2
    assert "another program has port" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], ["--data.folder", "--data.manifest"]),
        (["--data.folder=nowhere"], ["nowhere", "not a folder"]),
        (["--data.manifest=missing.parquet"], ["missing.parquet"]),
        (["--objective.aplha=0.5"], ["aplha", "objective.alpha"]),
        (["--objective.num_long=9"], ["num_long = 9", "between 1 and 8"]),
        (["--objective.num_short=0"], ["at least 1"]),
        (["--objective.alpha=1.5"], ["between 0", "1.5"]),
        (["--objective.levels=[{num_short: 0}]"], ["num_short", "at least 1"]),
        (["--data.batch_size=0"], ["--data.batch_size must be at least 1, got 0"]),
        (["--data.batch_size=1"], ["nothing to contrast"]),
        (["--data.workers=-1"], ["--data.workers must be at least 0"]),
        (["--run.devices=0"], ["--run.devices must be at least 1"]),
        (["--run.accumulate=0"], ["--run.accumulate must be at least 1"]),
        (["--run.monitor_videos=0"], ["--run.monitor_videos must be at least 2"]),
        (["--run.log_every_steps=0"], ["--run.log_every_steps must be at least 1"]),
        (["--run.steps=many"], ["--run.steps: 'many' does not fit; it takes a whole number or null"]),
        pytest.param(
            ["--run.accelerator=cuda"],
            ["--run.accelerator cuda", "not available"],
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
        (["--run.accelerator=abacus"], ["abacus", "cpu"]),
        (["--data.batch_size=99"], ["99", "8 usable videos"]),
        (["--model.backbone=resnet"], ["resnet", "r3d50"]),
        (["--data.short_stride=20"], ["does not fit inside"]),
        (["--data.split=test"], ["test"]),
    ],
)
def test_errors_name_the_value_and_the_remedy(manifest: Path, tmp_path: Path, capsys, options, words):
    source = [] if any("--data.folder" in o or "--data.manifest" in o for o in options) or not options else [
        f"--data.manifest={manifest}"]  # fmt: skip
    try:
        code = pretrain(tmp_path / "run", *source, *options)
    except SystemExit as exit:
        code = exit.code
    assert code == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    for word in words:
        assert word in error


def test_other_settings_in_the_same_folder_are_refused(manifest: Path, tmp_path: Path, capsys):
    out = tmp_path / "run"
    assert pretrain(out, f"--data.manifest={manifest}", "--run.steps=1") == 0
    assert pretrain(out, f"--data.manifest={manifest}", "--run.steps=1", "--objective.alpha=0.2") == 2
    error = capsys.readouterr().err
    assert "objective.alpha: 0.9 there, 0.2 asked for" in error
    assert (
        pretrain(out, f"--data.manifest={manifest}", "--run.steps=1", "--objective.alpha=0.2", "--run.restart=true")
        == 0
    )
    assert list(out.glob("before-*/weights.safetensors"))


def test_a_first_try_that_failed_does_not_bind_the_second(manifest: Path, tmp_path: Path, capsys):
    out = tmp_path / "run"
    assert pretrain(out, f"--data.manifest={manifest}", "--run.steps=1", "--data.batch_size=99") == 2
    assert "batch size of at most 8" in capsys.readouterr().err
    assert pretrain(out, f"--data.manifest={manifest}", "--run.steps=1", "--data.batch_size=8") == 0


@pytest.mark.parametrize("options", [["--data.batch_size=99"], []])
def test_the_list_of_another_folder_is_not_trained_on(video_folder: Path, tmp_path: Path, options: list[str], capsys):
    """A first try that failed, or a run that is begun anew, leaves a manifest; its videos are not those asked for now."""
    videos = sorted(video_folder.rglob("*.mp4"))
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        for video in videos[:4]:
            (tmp_path / name / video.name).symlink_to(video)
    out = tmp_path / "run"
    small = ["--run.steps=1", "--data.batch_size=4"]
    assert pretrain(out, f"--data.folder={tmp_path / 'one'}", *small, *options) == (2 if options else 0)
    again = [] if options else ["--run.restart=true"]
    assert pretrain(out, f"--data.folder={tmp_path / 'two'}", *small, *again) == 0
    assert {Path(row.path).parent.name for row in Manifest.open(out / "manifest.parquet")} == {"two"}
    if not options:  # a run that is there keeps its list, and says that the folder is another
        assert pretrain(out, f"--data.folder={tmp_path / 'one'}", *small) == 2
        assert "data.folder" in capsys.readouterr().err
        assert {Path(row.path).parent.name for row in Manifest.open(out / "manifest.parquet")} == {"two"}


def test_a_corrupt_checkpoint_is_one_message_and_nothing_is_lost(manifest: Path, tmp_path: Path, capsys):
    out = tmp_path / "run"
    assert pretrain(out, f"--data.manifest={manifest}", "--run.steps=2") == 0
    path = out / "checkpoints" / "last.ckpt"
    for size in (1000, 0):
        path.write_bytes(path.read_bytes()[:size])
        assert pretrain(out, f"--data.manifest={manifest}", "--run.steps=2") == 2
        assert f"cannot be read (its {size:,} bytes are no whole checkpoint)" in capsys.readouterr().err
        assert (out / "weights.safetensors").exists()


def test_files_of_a_run_that_were_damaged_by_hand(manifest: Path, tmp_path: Path, capsys):
    out, options = tmp_path / "run", [f"--data.manifest={manifest}", "--run.steps=1"]
    assert pretrain(out, *options) == 0
    text = (out / "config.yaml").read_text()
    for devices in ("two", "null"):
        (out / "config.yaml").write_text(text.replace("devices: 1", f"devices: {devices}"))
        assert pretrain(out, *options) == 2
        assert f"{out / 'config.yaml'} is damaged" in capsys.readouterr().err
    (out / "config.yaml").write_text(text)
    (out / "run.json").write_text("{")
    assert pretrain(out, *options) == 0
    assert json.loads((out / "run.json").read_text())["steps"] == 1


def test_a_loss_that_is_not_finite_stops_the_run(manifest: Path, tmp_path: Path, capsys):
    out = tmp_path / "run"
    options = ["--optim.name=sgd", "--optim.learning_rate=1e30", "--run.steps=6", "--run.checkpoint_every_steps=1"]
    assert pretrain(out, f"--data.manifest={manifest}", *options) == 2
    error = capsys.readouterr().err
    assert "not finite at step" in error
    assert "last.ckpt" in error or ".mp4" in error
    kept = load_file(out / "weights.safetensors")
    assert all(torch.isfinite(value).all() for value in kept.values())


def test_a_video_that_breaks_during_training_is_listed_and_stops_the_run(video_folder: Path, tmp_path: Path, capsys):
    folder = tmp_path / "videos"
    shutil.copytree(video_folder, folder)
    manifest = tmp_path / "m.parquet"
    assert main(["manifest", "scan", str(folder), "--out", str(manifest)]) == 0
    broken = next(folder.rglob("v3.mp4"))
    broken.write_bytes(b"no video")
    out = tmp_path / "run"
    assert pretrain(out, f"--data.manifest={manifest}", "--run.epochs=3") == 2
    assert "v3.mp4" in capsys.readouterr().err
    assert "v3.mp4" in (out / "failed_videos.csv").read_text()
    lenient = tmp_path / "lenient"
    assert pretrain(
        lenient, f"--data.manifest={manifest}", "--run.epochs=3", "--data.max_failure_share=0.5",
        "--run.monitor_every_epochs=1",
    ) == 0  # fmt: skip
    assert "v3.mp4" in (lenient / "failed_videos.csv").read_text()
    assert capsys.readouterr().err.count("the monitor leaves out") == 1
    assert [row for row in rows(lenient) if row.get("monitor/same_video_retrieval")]


def test_the_monitor_never_compares_a_clip_with_itself(video_folder: Path, tmp_path: Path, capsys):
    """Videos of 40 to 75 frames; of those not longer than the long clip both clips would be the same one."""
    watched = [f"--data.folder={video_folder}", "--run.epochs=1", "--run.monitor_every_epochs=1"]
    some = [
        "--data.long_frames=8",
        "--data.long_stride=8",
        "--data.short_frames=4",
    ]  # 57 frames: four videos are longer
    assert pretrain(tmp_path / "some", *watched, *some) == 0
    assert "retrieval leaves out 4 of 8 videos, not longer than a clip" in capsys.readouterr().err
    shares = [float(row["monitor/same_video_retrieval"]) for row in rows(tmp_path / "some")[-1:]]
    assert shares[0] * 8 == pytest.approx(round(shares[0] * 8))  # four videos ask, both ways
    # None is longer: labels are still guessed, from one clip of each; without labels there is nothing to look at.
    every = ["--data.long_frames=8", "--data.long_stride=16", "--data.short_frames=4"]
    assert pretrain(tmp_path / "labels", *watched, *every) == 0
    assert "same_video_retrieval" not in capsys.readouterr().err
    assert rows(tmp_path / "labels")[-1]["monitor/knn_accuracy"]
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in video_folder.rglob("*.mp4"):
        shutil.copy(path, flat)
    assert pretrain(tmp_path / "none", f"--data.folder={flat}", *watched[1:], *every) == 0
    assert "monitor         none: the videos have no labels" in capsys.readouterr().err
    assert not (tmp_path / "none" / "checkpoints" / "best.ckpt").exists()


EQUAL_CLIPS = [
    "--model.backbone=r3d_tiny", "--model.head_hidden=16", "--model.head_layers=1", "--model.head_out=8",
    "--data.crop_size=16", "--data.batch_size=4", "--data.workers=0", "--run.accelerator=cpu",
    "--run.tensorboard=false", "--run.log_every_steps=1",
]  # fmt: skip
OTHERS = {
    "cvrl": ["--data.num_frames=4"],
    "simclr": [],
    "moco": ["--data.num_frames=4", "--data.stride=2", "--objective.num_clips=3", "--objective.queue_size=20"],
    "byol": ["--data.num_frames=4", "--data.stride=2", "--objective.num_clips=3", "--objective.momentum=0.9"],
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_objectives_train_and_resume_bit_for_bit(name: str, manifest: Path, tmp_path: Path, capsys):
    """Momentum encoder, queue and its place come back from the checkpoint; weights are the online encoder's."""
    options = [*EQUAL_CLIPS, f"--objective.name={name}", *OTHERS[name], f"--data.manifest={manifest}"]
    options += ["--run.steps=4", "--run.keep_every_epochs=1", "--run.monitor_every_epochs=0"]
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    assert main(["pretrain", *options, f"--run.out={whole}"]) == 0
    (resumed / "checkpoints").mkdir(parents=True)
    shutil.copy(whole / "config.yaml", resumed)
    shutil.copy(whole / "checkpoints" / "step=00000002.ckpt", resumed / "checkpoints" / "last.ckpt")
    assert main(["pretrain", *options, f"--run.out={resumed}"]) == 0
    assert_same_weights(whole, resumed)
    one, other = checkpoint(whole)["state_dict"], checkpoint(resumed)["state_dict"]
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
    saved = load_file(whole / "weights.safetensors")
    assert {key.split(".")[0] for key in saved} == {"backbone", "heads"}
    for key, value in saved.items():
        torch.testing.assert_close(value, one[f"objective.encoder.{key}"], rtol=0, atol=0)
    wanted = {"loss", "accuracy", "spread"} | ({"chance_loss"} if name != "byol" else set())
    assert wanted <= rows(whole)[0].keys()
    if name in ("moco", "byol"):
        stem = "backbone.stem_conv.weight"
        assert not torch.equal(one[f"objective.momentum_encoder.{stem}"], one[f"objective.encoder.{stem}"])
    if name == "moco":
        assert int(one["objective.queue_position"]) == 4 * 4 * 3 % 20


@pytest.mark.multiprocess
def test_the_queue_of_two_processes_resumes_bit_for_bit(manifest: Path, tmp_path: Path):
    options = [*EQUAL_CLIPS, "--objective.name=moco", *OTHERS["moco"], f"--data.manifest={manifest}"]
    options += ["--data.batch_size=2", "--run.devices=2", "--run.epochs=2", "--run.keep_every_epochs=1"]
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"

    def two(out: Path) -> None:
        command = [sys.executable, "-m", "timegrain.cli", "pretrain", *options, f"--run.out={out}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]

    two(whole)
    (resumed / "checkpoints").mkdir(parents=True)
    shutil.copy(whole / "config.yaml", resumed)
    shutil.copy(whole / "checkpoints" / "step=00000002.ckpt", resumed / "checkpoints" / "last.ckpt")
    two(resumed)
    one, other = checkpoint(whole)["state_dict"], checkpoint(resumed)["state_dict"]
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert int(one["objective.queue_position"]) == 4 * 4 * 3 % 20  # keys of both processes


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--objective.name=cvrl", "--objective.alpha=0.5"], ["--objective.alpha does not belong", "cvrl takes"]),
        (["--objective.name=moco", "--data.long_frames=8"], ["--data.long_frames does not belong", "--data.num_frames"]),
        (["--objective.queue_size=8"], ["--objective.queue_size does not belong", "for moco"]),
        (["--objective.name=byol", "--objective.temperature=0.2"], ["--objective.temperature does not belong"]),
        (["--objective.name=byol", "--objective.num_clips=1"], ["num_clips 1", "at least 2"]),
        (["--objective.name=moco", "--data.sampler=long_short_random"], ["does not suit", "random, same"]),
        (["--objective.name=byol", "--objective.num_clips=3", "--data.sampler=cvrl_interval"], ["with 3 clips"]),
        (["--data.sampler=same"], ["does not suit --objective.name teg", "long_short_contained"]),
        (["--objective.name=moco", "--objective.queue_size=3", "--data.num_frames=2"], ["queue of 3 keys"]),
        (["--objective.name=moco", "--objective.momentum=2"], ["momentum must be between 0"]),
        (["--objective.levels=[{num_long: 2}]", "--objective.alpha=0.5"], ["--objective.alpha and --objective.levels"]),
        (["--objective.name=mocco"], ["mocco"]),
    ],
)  # fmt: skip
def test_options_of_other_objectives_are_refused(manifest: Path, tmp_path: Path, capsys, options, words):
    try:
        code = main(["pretrain", *EQUAL_CLIPS, f"--data.manifest={manifest}", f"--run.out={tmp_path / 'r'}", *options])
    except SystemExit as exit:
        code = exit.code
    assert code == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    for word in words:
        assert word in error


CONFIGS = sorted((Path(__file__).parents[2] / "configs").rglob("*.yaml"))


@pytest.mark.parametrize(
    "config",
    [path for path in CONFIGS if {"data", "objective"} <= yaml.safe_load(path.read_text()).keys()],
    ids=lambda path: path.stem,
)
def test_every_shipped_config_trains_two_steps(config: Path, manifest: Path, tmp_path: Path):
    """As it is, but for the machine and the size of pictures and network."""
    narrow = {**(yaml.safe_load(config.read_text()).get("model", {}).get("options", {})), "width": 8, "stem_width": 8}
    assert main([
        "pretrain", f"--config={config}", f"--data.manifest={manifest}", f"--run.out={tmp_path / 'run'}",
        "--run.steps=2", "--data.batch_size=2", "--data.workers=0", "--data.crop_size=32", "--run.devices=1",
        "--run.num_nodes=1", "--run.precision=32-true", "--run.accelerator=cpu", "--run.monitor_every_epochs=0",
        "--model.head_hidden=32", f"--model.options={json.dumps(narrow)}", "--run.log_every_steps=1",
        "--run.tensorboard=false",
    ]) == 0  # fmt: skip
    losses = [float(row["loss"]) for row in rows(tmp_path / "run")]
    assert len(losses) == 2
    assert all(0 < loss < 20 for loss in losses)


def test_chunks_are_said_counted_and_resumed(manifest: Path, tmp_path: Path, capsys):
    common = [f"--data.manifest={manifest}", "--run.chunk_size=2", "--run.monitor_every_epochs=0"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert pretrain(whole, *common, "--run.steps=3") == 0
    said = capsys.readouterr().err
    assert "4 videos in one contrastive batch" in said
    assert "2 videos go through the network at once" in said
    counts = {k: int(v) for k, v in load_file(whole / "weights.safetensors").items() if "num_batches" in k}
    assert set(counts.values()) == {3 * 2 * 2}  # steps x clips x chunks
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            callbacks.FailedVideos, "on_train_batch_start",
            lambda self, trainer, *rest: os.kill(os.getpid(), signal.SIGINT) if trainer.global_step == 1 and
            not any(isinstance(c, checkpoints.BetweenSteps) and c.is_asked for c in trainer.callbacks) else None,
        )  # fmt: skip
        assert pretrain(stopped, *common, "--run.steps=3") == 130
    assert pretrain(stopped, *common, "--run.steps=3") == 0
    assert_same_weights(whole, stopped)


def test_a_chunk_of_one_video_is_refused(manifest: Path, tmp_path: Path, capsys):
    options = [f"--data.manifest={manifest}", "--run.steps=1", "--run.chunk_size=2", "--data.batch_size=3"]
    assert pretrain(tmp_path / "run", *options) == 2
    assert "--run.chunk_size 2 cuts a batch of 3 videos into chunks of which one is a single video" in (
        capsys.readouterr().err
    )
    assert not (tmp_path / "run" / "run.json").exists()


def test_losses_looked_at_together_name_the_same_step_and_files(manifest: Path, tmp_path: Path, capsys, monkeypatch):
    """As on a GPU: nothing is read at each step, but the step, its files and the last good checkpoint are as if."""
    options = [
        f"--data.manifest={manifest}",
        "--run.steps=6",
        "--run.monitor_every_epochs=0",
        "--run.log_every_steps=4",
    ]
    forward, calls = TeG.forward, []

    def break_third(self, clips, indices):
        calls.append(1)
        losses = forward(self, clips, indices)
        return {**losses, "loss": losses["loss"] * torch.nan} if len(calls) == 3 else losses

    monkeypatch.setattr(TeG, "forward", break_third)
    said = []
    for name, at_once in (("each", True), ("together", False), ("checkpoint", False)):
        calls.clear()
        monkeypatch.setattr(TrainingTask, "_reads_at_once", staticmethod(lambda loss, at_once=at_once: at_once))
        every = 1 if name == "checkpoint" else 2
        assert pretrain(tmp_path / name, *options, f"--run.checkpoint_every_steps={every}") == 2
        said.append(capsys.readouterr().err.split("the loss is not finite at ")[1].replace(str(tmp_path / name), ""))
        assert len(calls) == {"each": 3, "together": 4, "checkpoint": 3}[name]
        assert checkpoint(tmp_path / name)["global_step"] == 2
        kept = load_file(tmp_path / name / "weights.safetensors")
        assert all(torch.isfinite(value).all() for value in kept.values())
    assert said[0].startswith("step 2 (")
    assert said[0].count(".mp4") == 4
    assert said[1] == said[0]
    assert said[2] == said[0]


# Not AdamW: it makes a step of full length of a gradient that is rounding alone, such as that of a bias before a norm.
SGD = ["--optim.name=sgd", "--optim.learning_rate=0.1"]


def test_kept_activations_and_layout_are_switches(manifest: Path, tmp_path: Path):
    common = [f"--data.manifest={manifest}", "--run.monitor_every_epochs=0", "--run.steps=2", *SGD]
    assert pretrain(tmp_path / "plain", *common) == 0
    assert pretrain(tmp_path / "checkpointed", *common, "--run.checkpoint_activations=true") == 0
    assert pretrain(tmp_path / "last", *common, "--run.channels_last=true") == 0
    assert_same_weights(tmp_path / "plain", tmp_path / "checkpointed")  # running means and counts too
    assert_close_weights(tmp_path / "plain", tmp_path / "last")


# A program that compiles with one of PyTorch's backends, and refuses a network that does not come out as one graph.
COMPILING = """
import functools, sys, torch
torch.compile = functools.partial(torch.compile, backend=sys.argv[1], fullgraph=True)
from timegrain.cli import main
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.parametrize("backend", [
    "eager",  # captures the network and runs what was captured
    pytest.param("inductor", marks=[pytest.mark.slow, pytest.mark.timeout(1500)]),  # what users get: minutes on a CPU
])  # fmt: skip
def test_a_compiled_run_learns_the_same(backend: str, manifest: Path, tmp_path: Path):
    """In processes of their own: the shape checks that the tests install are not part of what users compile."""
    for name, options in (("plain", []), ("compiled", ["--run.compile=true"])):
        words = ["pretrain", f"--run.out={tmp_path / name}", *TINY, f"--data.manifest={manifest}", "--run.steps=2"]
        words += ["--run.monitor_every_epochs=1", *SGD, *options]
        done = subprocess.run([sys.executable, "-c", COMPILING, backend, *words], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    losses = [[float(row["loss"]) for row in rows(tmp_path / name) if row["loss"]] for name in ("plain", "compiled")]
    assert len(losses[0]) == 2
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert_close_weights(tmp_path / "plain", tmp_path / "compiled")


def assert_close_weights(first: Path, second: Path) -> None:
    one, other = load_file(first / "weights.safetensors"), load_file(second / "weights.safetensors")
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-3, atol=1e-4, msg=name)
