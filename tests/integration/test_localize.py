"""``timegrain localize`` on made videos: trains, scores, writes the official csv, continues, refuses what is wrong."""

import csv
import json
from pathlib import Path

import pytest
import torch
import yaml
from torchvision.models.detection import fasterrcnn_resnet50_fpn_v2

from conftest import make_video, moving_square
from timegrain.cli import main
from timegrain.data.manifest import Manifest
from timegrain.models.hub import EncoderConfig, VideoEncoder, save_weights
from timegrain.report.results import read_result
from timegrain.tasks import localization, localization_scoring

NAMES = {"3": "stand", "7": "talk"}
SMALL = [
    "--backbone=r3d_tiny", "--data.num_frames=4", "--data.stride=2", "--data.crop_size=32", "--data.short_side=32",
    "--data.batch_size=2", "--data.workers=0", "--data.max_people=3", "--run.steps=2", "--run.accelerator=cpu",
    "--run.tensorboard=false", "--run.warmup_epochs=0",
]  # fmt: skip


@pytest.fixture(scope="module")
def ava(tmp_path_factory):
    """Three training and two test clips with two people each; detections of the test clips in a file of their own."""
    root = tmp_path_factory.mktemp("ava")
    rows = []
    for number in range(5):
        make_video(root / f"k{number}.mp4", moving_square(40, seed=number))
        left = {"x1": 0.1, "y1": 0.1, "x2": 0.4, "y2": 0.9, "action": 3, "person": None}
        right = {"x1": 0.5, "y1": 0.1, "x2": 0.9, "y2": 0.9, "action": 7, "person": None}
        rows.append(
            {
                "path": f"k{number}.mp4", "num_frames": 40, "fps": 25.0, "duration_seconds": 1.6, "width": 64, "height": 48,
                "codec": "h264", "split": "train" if number < 3 else "val", "label": None, "group": str(number),
                "error": None, "key_frame_seconds": [0.8], "time_offset_seconds": 0.0, "source": "kinetics",
                "video_id": f"k{number}", "boxes": [{"key_frame": 0, **left}, {"key_frame": 0, **right}],
            }
        )  # fmt: skip
    splits = {"val": {"listed": 4, "found": 2, "usable": 2}}
    coverage = {"benchmark": "ava-kinetics", "splits": splits, "label_map": NAMES}
    Manifest.from_rows(rows, folder=root, coverage=coverage).write(root / "ava.parquet")
    with (root / "people.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [f"k{n}", 0.8, x1, 0.1, x2, 0.9, 0.95] for n in (3, 4) for x1, x2 in ((0.12, 0.41), (0.5, 0.88))
        )
    return root


def run(ava, out, *more, config=()):
    videos = [f"--data.manifest={ava}/ava.parquet", f"--data.people={ava}/people.csv", f"--run.out={out}"]
    return main(["localize", *config, *videos, *SMALL, *more])


def test_trains_scores_and_writes_what_score_reads(ava, tmp_path, capsys):
    assert run(ava, tmp_path / "run", "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    result = read_result(tmp_path / "run" / "result.json")
    trained, prior, ceiling = result.rows
    assert (trained.role, prior.role, ceiling.role) == ("trained", "floor", "ceiling")
    assert set(printed["ap"]) == {"stand", "talk"}
    assert result.num_test == 2
    assert result.coverage["splits"]["val"]["listed"] == 4
    label_map, truth = tmp_path / "map.pbtxt", tmp_path / "truth.csv"
    label_map.write_text("".join(f'item {{ name: "{name}" id: {number} }}\n' for number, name in NAMES.items()))
    truth.write_text("".join(f"k{n},0.8,0.1,0.1,0.4,0.9,3\nk{n},0.8,0.5,0.1,0.9,0.9,7\n" for n in (3, 4)))
    detections = tmp_path / "run" / "detections.csv"
    command = [
        "score",
        "ava",
        f"--ground_truth={truth}",
        f"--predictions={detections}",
        f"--label_map={label_map}",
        "--json",
    ]
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["map"] == pytest.approx(trained.scores["map"], abs=1e-9)
    # The same command again: nothing left to train, the same scores.
    assert run(ava, tmp_path / "run") == 0
    assert "ava-kinetics: 2 of 4 validation videos" in capsys.readouterr().out
    assert read_result(tmp_path / "run" / "result.json").rows[0].scores == trained.scores
    # Other pictures of the same key frames: scored again, the earlier detections kept.
    kept = detections.read_bytes()
    assert run(ava, tmp_path / "run", "--data.short_side=48") == 0
    assert "scoring again with data.short_side 48, before 32" in capsys.readouterr().err
    (aside,) = (tmp_path / "run").glob("scored-*")
    assert (aside / "detections.csv").read_bytes() == kept != detections.read_bytes()


def test_a_network_beside_weights_must_be_theirs(ava, tmp_path, capsys):
    path = tmp_path / "w.safetensors"
    save_weights(VideoEncoder(EncoderConfig("r3d_tiny", {"padding": "symmetric"}, heads=())), path)
    given = [f"--weights={path}", "--run.steps=1"]
    assert run(ava, tmp_path / "run", *given, "--backbone=r3d18") == 2
    assert f"{path} has the backbone r3d_tiny, not r3d18: leave out --backbone" in capsys.readouterr().err
    assert run(ava, tmp_path / "run", *given, "--backbone_options={padding: same}") == 2
    assert "has padding: symmetric" in capsys.readouterr().err
    assert run(ava, tmp_path / "run", *given, "--data.detector_weights=d.pth") == 2
    assert "give one of both" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert run(ava, tmp_path / "run", *given, "--backbone=r3d_tiny", "--backbone_options={padding: symmetric}") == 0
    said = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert (said["backbone"], said["backbone_options"]) == ("r3d_tiny", {"padding": "symmetric"})


@pytest.mark.parametrize(
    "config",
    sorted((Path(__file__).parents[2] / "configs" / "localization").glob("*.yaml")),
    ids=lambda path: path.stem,
)
def test_every_shipped_config_runs_two_steps(ava, tmp_path, config):
    options = ["--run.devices=1", "--run.precision=32-true"]
    assert run(ava, tmp_path / "run", *options, config=[f"--config={config}"]) == 0
    assert len(read_result(tmp_path / "run" / "result.json").rows) == 3
    assert f"localize --config configs/localization/{config.name}" in config.read_text()


def test_a_frozen_backbone_stays_as_it_is(ava, tmp_path):
    from safetensors.torch import load_file

    weights = []
    for steps in (1, 3):
        assert (
            run(ava, tmp_path / str(steps), "--freeze", f"--run.steps={steps}", "--run.checkpoint_every_steps=1") == 0
        )
        weights.append(load_file(tmp_path / str(steps) / "localizer.safetensors"))
    changed = {name for name in weights[0] if not torch.equal(weights[0][name], weights[1][name])}
    assert changed == {"classifier.weight", "classifier.bias"}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--data.split_train=valid"], "has no video in split 'valid'"),
        (["--data.split_test=test"], "has no video in split 'test'"),
        (["--data.people=none.csv"], "none.csv"),
        (["--weights=nowhere.safetensors"], "nowhere.safetensors"),
        (["--data.people=null", "--data.detector_weights=none.pth"], "none.pth"),
    ],
)
def test_what_is_wrong_is_said_in_one_message_before_training(ava, tmp_path, capsys, more, message):
    assert run(ava, tmp_path / "run", *more) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("run/*.safetensors"))


def test_a_detector_that_cannot_be_read_is_told_before_training(ava, tmp_path, capsys):
    (tmp_path / "detector.pth").write_bytes(b"nothing")
    out = tmp_path / "run"
    assert run(ava, out, "--data.people=null", f"--data.detector_weights={tmp_path}/detector.pth") == 2
    assert "the person detector's weights cannot be had from" in capsys.readouterr().err
    assert not out.exists()  # so people from a file may be named in the same folder


def test_test_videos_that_are_all_gone_are_one_message(ava, tmp_path, capsys):
    for file in ava.iterdir():
        if file.name not in ("k3.mp4", "k4.mp4"):
            (tmp_path / file.name).write_bytes(file.read_bytes())
    assert run(tmp_path, tmp_path / "run") == 2
    assert "no key frame of the 2 test videos could be read; the first: " in capsys.readouterr().err
    assert (tmp_path / "run" / "localizer.safetensors").exists()


@pytest.mark.slow
def test_people_are_found_by_torchvisions_detector(ava, tmp_path):
    """Random weights that take everything for a person: what matters is the way from its boxes to the score."""
    torch.manual_seed(0)
    detector = fasterrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None)
    with torch.no_grad():
        detector.roi_heads.box_predictor.cls_score.bias[1] = 20
    torch.save(detector.state_dict(), tmp_path / "detector.pth")
    out = tmp_path / "run"
    options = ["--data.people=null", f"--data.detector_weights={tmp_path}/detector.pth"]
    options += ["--data.min_person_score=0"]
    assert run(ava, out, *options) == 0
    with (out / "people.csv").open() as file:
        rows = list(csv.reader(file))
    assert {row[0] for row in rows} == {"k3", "k4"}
    x1, y1, x2, y2, scores = torch.tensor([[float(value) for value in row[2:]] for row in rows]).T
    assert all(((part >= 0) & (part <= 1)).all() for part in (x1, y1, x2, y2, scores))
    assert (x1 <= x2).all()
    assert (y1 <= y2).all()
    assert len((out / "detections.csv").read_text().splitlines()) == len(NAMES) * len(rows)
    scores_of_first = read_result(out / "result.json").rows[0].scores
    (tmp_path / "detector.pth").write_bytes(b"")  # kept boxes need no detector
    (out / "result.json").unlink()
    assert run(ava, out, *options) == 0
    assert read_result(out / "result.json").rows[0].scores == scores_of_first


def test_people_are_looked_for_where_an_interruption_left_it(ava, tmp_path, capsys, monkeypatch):
    looked, stops_at = [], 1

    def find(_: object, pictures: list[torch.Tensor]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        if len(looked) == stops_at:
            raise KeyboardInterrupt
        looked.append(pictures)
        light = pictures[0].float().mean() / 255
        return [(torch.tensor([[0.1, 0.1, 0.6, 0.9], [0.2, 0.3, 0.5, 0.8]]), torch.stack([light, light / 3]))]

    monkeypatch.setattr(localization, "person_detector", lambda *_: torch.nn.Identity())
    monkeypatch.setattr(localization_scoring, "person_detector", lambda *_: torch.nn.Identity())
    monkeypatch.setattr(localization_scoring, "find_people", find)
    assert run(ava, tmp_path / "a", "--data.people=null") == 130
    assert "interrupted; what was finished is kept, and the same command goes on" in capsys.readouterr().err
    stops_at = None
    for name, left in (("a", 1), ("b", 2)):
        looked.clear()
        assert run(ava, tmp_path / name, "--data.people=null") == 0
        assert len(looked) == left
        assert ("1 of 2 key frames were done before" in capsys.readouterr().err) == (name == "a")
        assert not list((tmp_path / name).glob(".*"))
    for file in ("people.csv", "detections.csv"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
