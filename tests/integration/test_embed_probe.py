"""From videos on disk to a table, a picture and a score, as a user types it."""

import csv
import json

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

from conftest import make_video, moving_square
from timegrain.cli import main
from timegrain.feature_files import list_videos, read_features
from timegrain.inference import Embedder, load
from timegrain.models.hub import EncoderConfig, VideoEncoder, save_weights


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    config = EncoderConfig(
        backbone="r3d_tiny",
        head_hidden=16,
        head_num_hidden=1,
        head_out=8,
        clip_num_frames=8,
        clip_stride=2,
        crop_size=32,
    )
    path = tmp_path_factory.mktemp("run") / "weights.safetensors"
    save_weights(VideoEncoder(config), path)
    return path


def run(capsys, *arguments):
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


# ---- embed --------------------------------------------------------------------------------------------------------


def test_embed_a_folder_with_broken_videos(weights, video_folder, tmp_path, capsys):
    folder = tmp_path / "videos"
    (folder / "sub").mkdir(parents=True)
    for number, source in enumerate(sorted(video_folder.rglob("*.mp4"))[:3]):
        (folder / ("sub" if number else ".") / source.name).write_bytes(source.read_bytes())
    (folder / "broken.mp4").write_bytes(b"nothing" * 99)
    (folder / "empty.mp4").touch()
    (folder / "notes.txt").write_text("not a video")
    extra = sorted(video_folder.rglob("*.mp4"))[4]
    out = tmp_path / "out" / "features.parquet"

    code, text, err = run(
        capsys, "embed", folder, extra, "--weights", weights, "--out", out, "--json", "--device", "cpu"
    )
    assert code == 0
    found = json.loads(text)
    assert found["videos"] == 4
    assert {item["path"].rsplit("/", 1)[1] for item in found["broken"]} == {"broken.mp4", "empty.mp4"}
    assert all(item["reason"] for item in found["broken"])
    assert "could not read" in err
    with (out.parent / "features.broken.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 2

    table = pd.read_parquet(out)
    assert list(table.columns) == ["path", "kind", "index", "start_seconds", "seconds", "end_seconds", "features"]
    steps = table[(table.kind == "time_step") & (table.path == str(extra))]
    direct = load(weights, device="cpu").embed(extra)
    np.testing.assert_allclose(np.stack(steps.features), direct.features, atol=1e-5)
    np.testing.assert_allclose(steps.seconds, direct.timestamps_seconds)
    assert (steps.start_seconds <= steps.seconds).all()
    assert (steps.seconds <= steps.end_seconds).all()
    clips = table[(table.kind == "clip") & (table.path == str(extra))]
    np.testing.assert_allclose(np.stack(clips.features), direct.clip_features, atol=1e-5)
    assert (table[table.kind == "video"].groupby("path").size() == 1).all()
    assert found["time_steps"] == (table.kind == "time_step").sum()
    assert pq.read_metadata(out).num_row_groups == 4
    facts = json.loads(read_features(out).schema.metadata[b"timegrain"])
    assert facts["weights"] == load(weights, device="cpu").fingerprint
    assert len(facts["broken"]) == 2
    assert sorted(path.name for path in out.parent.iterdir()) == ["features.broken.csv", "features.parquet"]

    code, text, _ = run(capsys, "embed", folder, extra, "--weights", weights, "--out", out, "--device", "cpu")
    assert code == 0
    assert "4 of 6 videos (4 were there already)" in text
    pd.testing.assert_frame_equal(pd.read_parquet(out), table)


def test_embed_continues_where_it_was_interrupted(weights, video_folder, tmp_path, monkeypatch):
    embedder = load(weights, device="cpu")
    out = tmp_path / "features.parquet"
    original, seen = Embedder.embed_with, []

    def interrupted(self, path, *args, **kwargs):
        if len(seen) == 5:
            raise KeyboardInterrupt
        seen.append(str(path))
        return original(self, path, *args, **kwargs)

    monkeypatch.setattr(Embedder, "embed_with", interrupted)
    with pytest.raises(KeyboardInterrupt):
        embedder.embed_files([video_folder], out)
    assert not out.exists()
    first, seen = seen, []
    monkeypatch.setattr(
        Embedder, "embed_with", lambda self, path, *a, **k: (seen.append(str(path)), original(self, path, *a, **k))[1]
    )
    result = embedder.embed_files([video_folder], out)
    assert result.num_videos == 8
    assert result.num_reused == 5
    assert len(seen) == 3
    assert not set(first) & set(seen)
    assert pd.read_parquet(out).path.nunique() == 8
    assert [path.name for path in tmp_path.iterdir()] == ["features.parquet"]


def test_other_weights_or_settings_are_computed_anew(weights, video_folder, tmp_path):
    embedder = load(weights, device="cpu")
    out = tmp_path / "features.parquet"
    video = list_videos([video_folder])[0]
    embedder.embed_files([video], out)
    assert embedder.embed_files([video], out).num_reused == 1
    with torch.no_grad():
        next(embedder.encoder.parameters()).mul_(1.5)
    changed = Embedder(embedder.encoder, embedder.device)
    assert changed.embed_files([video], out).num_reused == 0
    out.write_bytes(b"no Parquet any more")
    assert changed.embed_files([video], out).num_videos == 1
    assert read_features(out).num_rows > 2


def test_embed_npz_and_heads(weights, video_folder, tmp_path, capsys):
    out = tmp_path / "f.npz"
    videos = list_videos([video_folder])[:2]
    arguments = ["--weights", weights, "--out", out, "--head", "fine", "--device", "cpu"]
    code, text, _ = run(capsys, "embed", *videos, *arguments)
    assert code == 0
    assert "of 8 numbers" in text
    with np.load(out, allow_pickle=False) as arrays:
        assert arrays["paths"].tolist() == videos
        assert arrays["features"].shape == (len(arrays["seconds"]), 8)
        np.testing.assert_allclose(np.linalg.norm(arrays["features"], axis=1), 1, atol=1e-5)
        assert set(arrays["video"].tolist()) == {0, 1}
        assert arrays["video_features"].shape == (2, 8)
        assert arrays["clip_features"].shape[0] == len(arrays["clip_start_seconds"]) == len(arrays["clip_video"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{folder}/none.mp4", "--weights", "{weights}", "--out", "{folder}/a.parquet"], "no file or folder"),
        (["{folder}", "--weights", "{weights}", "--out", "{folder}/a.parquet"], "no video in"),
        (
            ["{folder}/bad.txt", "--weights", "{weights}", "--out", "{folder}/a.parquet"],
            "none of 1 videos could be read",
        ),
        (["{folder}/bad.txt", "--weights", "{weights}", "--out", "{folder}/a.csv"], "must end in .parquet or .npz"),
        (["{folder}/bad.txt", "--weights", "{folder}/bad.txt", "--out", "{folder}/a.npz"], "not a whole safetensors"),
        (["{folder}/bad.txt", "--weights", "{folder}/w.safetensors", "--out", "{folder}/a.npz"], "does not exist"),
        (["{folder}/bad.txt", "--weights", "{weights}", "--out", "{folder}/a.npz", "--overlap", "1"], "overlap"),
    ],
)
def test_embed_says_what_is_wrong(weights, tmp_path, capsys, arguments, message):
    (tmp_path / "bad.txt").write_text("no video" * 20)
    typed = [argument.format(folder=tmp_path, weights=weights) for argument in arguments]
    code, text, err = run(capsys, "embed", *typed, "--device", "cpu")
    assert code == 2
    assert text == ""
    assert message in err
    assert [path.name for path in tmp_path.iterdir()] == ["bad.txt"]


def test_similarity_draws_a_picture(weights, tmp_path, capsys):
    video = make_video(tmp_path / "v.mp4", moving_square(60))
    out = tmp_path / "pictures" / "s.png"
    code, text, _ = run(capsys, "similarity", video, "--weights", weights, "--out", out, "--json", "--device", "cpu")
    assert code == 0
    found = json.loads(text)
    assert found["duration_seconds"] == pytest.approx(2.4)
    assert -1 <= found["lowest"] <= found["mean"] <= 1
    assert out.read_bytes()[:4] == b"\x89PNG"
    code, _, err = run(capsys, "similarity", video, "--weights", weights, "--out", tmp_path / "s.jpg")
    assert code == 2
    assert "must end in .png" in err
