"""``timegrain explore``: from a folder of videos to a page, and the files beside it."""

import json
import re

import numpy as np
import pytest
import torch

from conftest import make_video, moving_square
from timegrain.cli import main
from timegrain.feature_tables import read_videos
from timegrain.inference import Embedder, load
from timegrain.models.boundary import BoundaryConfig, BoundaryDetector, save_detector
from timegrain.models.hub import EncoderConfig, VideoEncoder, save_weights


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("run") / "weights.safetensors"
    config = EncoderConfig("r3d_tiny", heads=(), clip_num_frames=8, clip_stride=2, crop_size=16)
    save_weights(VideoEncoder(config), path)
    return path


@pytest.fixture
def folder(tmp_path):
    """Four videos, the first of two scenes, one with a name that is markup; and a file that is none."""
    folder = tmp_path / "videos"
    folder.mkdir()
    scenes = np.concatenate([moving_square(50, 32, 32, seed=1), 255 - moving_square(50, 32, 32, seed=5)])
    make_video(folder / "a two.mp4", scenes)
    for number, name in enumerate(("b", "<b>c", "d" * 60)):
        make_video(folder / f"{name}.mp4", moving_square(40, 32, 32, seed=number))
    (folder / "notes.mp4").write_text("not a video")
    return folder


def explore(capsys, *arguments):
    code = main(["explore", *map(str, arguments), "--device", "cpu"])
    return code, *capsys.readouterr()


def test_one_command_gives_features_boundaries_pictures_and_a_page(weights, folder, tmp_path, capsys, monkeypatch):
    out = tmp_path / "explored"
    command = (folder, "--weights", weights, "--out", out)
    code, text, err = explore(capsys, *command, "--num_pictures", 2, "--json")
    assert code == 0, err
    facts = json.loads(text)
    assert (facts["videos"], facts["reused"], facts["pictures"]) == (4, 0, 2)
    assert [item["path"] for item in facts["broken"]] == [str(folder / "notes.mp4")]
    assert "could not read" in err

    seen = list(read_videos(out / "features.parquet"))
    direct = load(weights, device="cpu").embed(folder / "a two.mp4", overlap=0.5)
    (again,) = (video for video in seen if video.path == str(folder / "a two.mp4"))
    for name in ("features", "timestamps_seconds", "start_seconds", "end_seconds", "duration_seconds", "clip_features",
                 "clip_start_seconds", "clip_end_seconds", "video_feature"):  # fmt: skip
        np.testing.assert_allclose(getattr(again, name), getattr(direct, name), atol=1e-6)
    assert again.head is None

    assert main(["boundaries", "find", str(folder), "--weights", str(weights), "--out", str(tmp_path / "b.csv"),
                 "--device", "cpu"]) == 0  # fmt: skip
    assert (out / "boundaries.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    capsys.readouterr()

    page = (out / "index.html").read_text()
    for part in ("4 videos", "Alike", "a two.mp4", "&lt;b&gt;c.mp4", "Could not be read", "2 of 4 videos"):
        assert part in page
    assert "<b>c" not in page
    assert page.count("data:image/png") == 3  # two videos and the neighbours
    assert len(list((out / "pictures").glob("*.png"))) == 2
    assert not re.search(r'(src|href)="(?!data:|#)', page)  # nothing that would have to be fetched

    # Once more, with another video and other boundaries: only what is new is looked at.
    make_video(folder / "new.mp4", moving_square(40, 32, 32, seed=9))
    looked = set()
    original = Embedder.embed_with
    monkeypatch.setattr(
        Embedder, "embed_with", lambda self, path, *a, **k: (looked.add(path), original(self, path, *a, **k))[1]
    )
    code, text, _ = explore(capsys, *command, "--prominence", 100)
    assert code == 0
    assert looked == {str(folder / name) for name in ("new.mp4", "notes.mp4")}  # a broken one may have been mended
    assert "5 videos, 0 boundaries; 1 could not be read" in text
    assert len(list((out / "pictures").glob("*.png"))) == 5  # none of the earlier list is left


def test_one_video_is_enough(weights, folder, tmp_path, capsys):
    code, text, _ = explore(capsys, folder / "b.mp4", "--weights", weights, "--out", tmp_path / "one")
    assert code == 0
    assert "1 video," in text
    assert "Alike" not in (tmp_path / "one" / "index.html").read_text()


def test_what_explore_refuses(weights, folder, tmp_path, capsys):
    detector = tmp_path / "detector.safetensors"
    save_detector(BoundaryDetector(BoundaryConfig(backbone="r3d_tiny")), detector)
    (tmp_path / "file").touch()
    for options, words in (
        (("--weights", detector), "boundary detector, which has no features to show"),
        (("--weights", weights, "--out", tmp_path / "file"), "a file is there; give a folder"),
        (("--weights", weights, "--num_pictures", -1), "num_pictures must be 0 or more"),
        (("--weights", tmp_path / "none.safetensors"), "none.safetensors"),
    ):
        code, _, err = explore(capsys, folder, "--out", tmp_path / "x", *options)
        assert code == 2
        assert words in err
        assert not (tmp_path / "x" / "index.html").exists()
