"""``timegrain probe vidsitu`` and ``finetune vidsitu`` on made videos of five events."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from conftest import make_video
from timegrain.cli import main
from timegrain.data.event_clips import VideoEvents
from timegrain.data.manifest import Manifest
from timegrain.models.hub import EncoderConfig, VideoEncoder, save_weights
from timegrain.report.results import read_result
from timegrain.tasks.config import TrainingConfig
from timegrain.tasks.setup import free_workers
from timegrain.tasks.verb_scoring import ranked_verbs, score_verbs, write_predictions
from timegrain.tasks.vidsitu import EventData, _open

VERBS = ("rise.01", "sink.01", "wait.01")
SMALL = [
    "--data.num_frames=4", "--data.stride=2", "--data.crop_size=32", "--data.batch_size=8", "--data.workers=0",
    "--run.accelerator=cpu", "--run.tensorboard=false",
]  # fmt: skip


def colours(verbs, seed):
    """(50, 48, 64, 3): two seconds of one grey level per verb, at 5 frames per second."""
    rng = np.random.default_rng(seed)
    levels = [40 + 80 * VERBS.index(verb) for verb in verbs]
    frames = np.repeat(np.array(levels), 10)[:, None, None, None] + rng.integers(0, 20, (50, 48, 64, 3))
    return frames.astype(np.uint8)


@pytest.fixture(scope="module")
def vidsitu(tmp_path_factory):
    """Five training and three validation videos; an event's brightness is its verb."""
    root = tmp_path_factory.mktemp("vidsitu")
    rng = np.random.default_rng(0)
    rows = []
    for number in range(8):
        verbs = [VERBS[i] for i in rng.permutation([0, 1, 2, *rng.integers(0, 3, 2)])]
        make_video(root / f"v{number}.mp4", colours(verbs, number), fps=5.0)
        is_train = number < 5
        sets = [[verb] * 9 + [VERBS[int(rng.integers(3))]] for verb in verbs]
        rows.append(
            {
                "path": f"v{number}.mp4", "num_frames": 50, "fps": 5.0, "duration_seconds": 10.0, "width": 64, "height": 48,
                "codec": "h264", "split": "train" if is_train else "val", "label": None, "group": f"g{number}",
                "error": None, "verbs": verbs, "verb_sets": None if is_train else sets,
                "event_centre_seconds": [1.0, 3.0, 5.0, 7.0, 9.0], "index_in_split": number if is_train else number - 5,
            }
        )  # fmt: skip
    Manifest.from_rows(rows, folder=root, coverage={"benchmark": "vidsitu"}).write(root / "m.parquet")
    torch.manual_seed(0)
    encoder = VideoEncoder(EncoderConfig("r3d_tiny", heads=(), extra={"objective": "TeG", "alpha": 0.9}))
    save_weights(encoder, root / "weights.safetensors")
    return root


def test_without_a_number_of_workers_videos_are_decoded_beside_the_training(vidsitu):
    data, *_ = _open(EventData(vidsitu / "m.parquet"), EncoderConfig("r3d_tiny"), TrainingConfig())
    assert data.workers == free_workers(None)


@pytest.mark.parametrize("features", ["centred", "dense"])
def test_exact_probe_tells_events_apart_and_writes_the_official_file(vidsitu, tmp_path, capsys, features):
    command = ["probe", "vidsitu", f"--weights={vidsitu}/weights.safetensors", f"--data.manifest={vidsitu}/m.parquet"]
    options = [f"--features={features}", f"--run.out={tmp_path}", "--random_seeds=2", "--run.seed=3"]
    assert main([*command, *SMALL, *options, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    result = read_result(tmp_path / "result.json")
    trained = result.rows[0]
    assert trained.method == "TeG-FG"
    assert trained.scores["acc@1"] > 0.9  # brightness survives a random network
    assert trained.scores["matching"] > 0.5  # three verbs for five events: ties share
    constant = next(row for row in result.rows if row.method.startswith("constant") and "five" not in row.method)
    assert constant.role == "floor"
    assert constant.scores["matching"] == pytest.approx(0.2)
    assert {row.method for row in result.rows} >= {"random weights", "human, leave one out"}
    assert [row.seed for row in result.rows if row.method == "random weights"] == [3, 4]
    assert ("raw pixels" in {row.method for row in result.rows}) == (features == "centred")
    assert printed["scores"][0]["scores"] == trained.scores
    entries = pickle.loads((tmp_path / "predictions.pkl").read_bytes())
    assert [entry["ann_idx"] for entry in entries] == [0, 1, 2]
    assert all(len(event) == len(VERBS) for entry in entries for event in entry["pred_vbs_ev"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--run.steps=2"], "--run.steps cannot be given here: --mode exact trains nothing by steps"),
        (["--optim.learning_rate=1"], "--optim.learning_rate cannot be given here"),
        (["--augment.flip_probability=0"], "--augment.flip_probability cannot be given here"),
        (["--mode=sgd", "--random_seeds=3"], "--random-seeds is for --mode exact"),
    ],
)
def test_what_a_mode_would_ignore_is_refused(vidsitu, tmp_path, capsys, options, words):
    given = [f"--weights={vidsitu}/weights.safetensors", f"--data.manifest={vidsitu}/m.parquet", *SMALL]
    assert main(["probe", "vidsitu", *given, f"--run.out={tmp_path}/run", *options]) == 2
    assert words in capsys.readouterr().err


def test_sgd_probe_and_training_from_scratch_run_and_continue(vidsitu, tmp_path, capsys):
    videos = f"--data.manifest={vidsitu}/m.parquet"
    scratch = ["finetune", "vidsitu", "--model.backbone=r3d_tiny", videos, *SMALL, f"--run.out={tmp_path}/scratch"]
    assert main([*scratch, "--run.steps=2"]) == 0
    result = read_result(tmp_path / "scratch" / "result.json")
    assert (result.task, result.rows[0].method) == ("from scratch", "r3d_tiny")
    assert main([*scratch, "--run.steps=2"]) == 0  # nothing is left to train; it is scored again
    assert read_result(tmp_path / "scratch" / "result.json").rows == result.rows
    assert main([*scratch, "--run.steps=2", "--data.num_crops=3"]) == 0
    assert read_result(tmp_path / "scratch" / "result.json").protocol["num_crops"] == 3
    assert read_result(next((tmp_path / "scratch").glob("scored-*")) / "result.json").rows == result.rows
    sgd = ["probe", "vidsitu", "--mode=sgd", f"--weights={vidsitu}/weights.safetensors", videos, *SMALL]
    assert main([*sgd, f"--run.out={tmp_path}/sgd", "--run.steps=2"]) == 0
    assert read_result(tmp_path / "sgd" / "result.json").protocol["steps"] == 2
    assert "human, leave one out" in capsys.readouterr().out


@pytest.mark.parametrize(
    "config",
    sorted(
        p for p in (Path(__file__).parents[2] / "configs").glob("[fp]*/vidsitu_*.yaml") if p.parent.name != "pretrain"
    ),
    ids=lambda path: path.stem,
)
def test_every_shipped_config_runs_two_steps(vidsitu, tmp_path, config):
    kind = config.parent.name
    network = ["--model.backbone=r3d_tiny"] if kind == "finetune" else [f"--weights={vidsitu}/weights.safetensors"]
    command = [kind, "vidsitu", f"--config={config}", f"--data.manifest={vidsitu}/m.parquet", *network, *SMALL]
    assert main([*command, f"--run.out={tmp_path}", "--run.steps=2", "--run.precision=32-true"]) == 0
    assert read_result(tmp_path / "result.json").protocol["steps"] == 2
    assert f"{kind} vidsitu --config configs/{kind}/{config.name}" in config.read_text()
    assert "Number to expect: Acc@1" in config.read_text()
    assert yaml.safe_load(config.read_text())["run"]["epochs"] in (10, 100)


def test_scores_equal_those_of_the_written_file(tmp_path):
    rng = np.random.default_rng(1)
    scores = rng.random((6, 5, 7)).astype(np.float32)
    verbs = [f"v{i}.01" for i in range(7)]
    sets = [[[verbs[i] for i in rng.integers(0, 7, 10)] for _ in range(5)] for _ in range(6)]
    events = VideoEvents(np.zeros((6, 5), np.int64), [[]] * 6, sets, range(6))
    names, values = ranked_verbs(scores, verbs)
    assert all(v == sorted(v, reverse=True) for video in values for v in video)
    assert names[0][0][0] == verbs[int(scores[0, 0].argmax())]
    write_predictions(tmp_path / "p.pkl", scores, verbs, range(6))
    entries = pickle.loads((tmp_path / "p.pkl").read_bytes())
    hits = [entry["pred_vbs_ev"][e][0] in sets[entry["ann_idx"]][e] for entry in entries for e in range(5)]
    assert score_verbs(scores, verbs, events)["acc@1"] == pytest.approx(np.mean(hits))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--data.split_test=train"], "published for the validation split"),
        (["--mode=sgd", "--features=dense"], "needs --mode exact"),
        (["--data.split_train=nothing"], "no video in split 'nothing'"),
    ],
)
def test_what_cannot_be_done_is_said(vidsitu, tmp_path, capsys, more, message):
    command = ["probe", "vidsitu", f"--weights={vidsitu}/weights.safetensors", f"--data.manifest={vidsitu}/m.parquet"]
    assert main([*command, *SMALL, f"--run.out={tmp_path}", *more]) == 2
    assert message in capsys.readouterr().err


def test_another_manifest_is_refused(video_folder, tmp_path, capsys, vidsitu):
    assert main(["manifest", "scan", str(video_folder), f"--out={tmp_path}/m.parquet"]) == 0
    command = ["finetune", "vidsitu", f"--data.manifest={tmp_path}/m.parquet", "--model.backbone=r3d_tiny", *SMALL]
    assert main([*command, f"--run.out={tmp_path}/run"]) == 2
    assert "no video in split" in capsys.readouterr().err
