"""From videos on disk to a table, a picture and a score, as a user types it."""

import csv
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

from conftest import make_video, moving_square
from timegrain import feature_files, features
from timegrain.cli import main
from timegrain.data import views
from timegrain.data.decoding import VideoError, open_video
from timegrain.data.decoding import probe as probe_video
from timegrain.data.manifest import Manifest
from timegrain.data.probing import probe_file
from timegrain.data.transforms import three_crops, to_model_input
from timegrain.feature_files import list_videos
from timegrain.feature_tables import VideoFeatures, read_features
from timegrain.inference import Embedder, load
from timegrain.models.hub import EncoderConfig, VideoEncoder, save_weights
from timegrain.report.results import read_result
from timegrain.tasks import embed


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


def test_what_is_said_of_all_videos_is_put_into_words_once(weights, video_folder, tmp_path, monkeypatch):
    written, original = [], feature_files.json.dumps
    monkeypatch.setattr(
        feature_files.json, "dumps", lambda value, **options: written.append(value) or original(value, **options)
    )
    load(weights, device="cpu").embed_files([video_folder], tmp_path / "features.parquet")
    assert sum("videos" in value for value in written) == 1


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
    manifest = Manifest.from_rows([probe_file(video)], tmp_path).write(tmp_path / "m.parquet")
    with pytest.raises(ValueError, match="holds something else, such as a manifest"):
        embedder.embed_files([manifest], manifest)
    assert len(Manifest.open(manifest)) == 1
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


def test_the_picture_of_a_long_video_has_at_most_600_moments():
    rng = np.random.default_rng(0)
    steps = rng.normal(size=(4000, 3)).astype(np.float32)
    start = np.arange(4000) / 2
    video = VideoFeatures("a.mp4", steps, start, start, start + 0.5, 2000.0, steps[:1], start[:1], start[:1], steps[0])
    matrix, beginnings = embed._moments(video)
    assert matrix.shape == (600, 600)
    # Segment i covers the steps from i * 4000 // 600 up to the last that it touches.
    means = np.stack([steps[i * 4000 // 600 : -(-(i + 1) * 4000 // 600)].mean(0) for i in range(600)])
    unit = means / np.linalg.norm(means, axis=1, keepdims=True)
    np.testing.assert_allclose(matrix, unit @ unit.T, atol=1e-5)
    assert beginnings[[0, 1, 599]].tolist() == [0.0, 3.0, 1996.5]
    short, _ = embed._moments(replace(video, features=steps[:50], start_seconds=start[:50]))
    np.testing.assert_allclose(short, replace(video, features=steps[:50]).self_similarity(), atol=1e-6)


# ---- probe --------------------------------------------------------------------------------------------------------


def write_manifest(folder, path, splits=("train", "test"), labels=True, groups=True, broken=False):
    rows = []
    for number, video in enumerate(sorted(folder.rglob("*.mp4"))):
        info = probe_video(video)
        row = {
            name: getattr(info, name) for name in ("num_frames", "fps", "duration_seconds", "width", "height", "codec")
        }
        row |= {"path": str(video), "split": splits[number % 4 == 3] if splits else None}
        row |= {"label": video.parent.name if labels else None, "group": f"g{number // 2}" if groups else None}
        rows.append(row)
    if broken:
        bad = path.parent / "bad.mp4"
        bad.write_bytes(b"nothing" * 50)
        rows.append({**rows[0], "path": str(bad), "split": "train"})
    Manifest.from_rows(rows, path.parent).write(path)
    return path


def test_probe_scores_and_remembers(weights, video_folder, tmp_path, capsys, monkeypatch):
    manifest = write_manifest(video_folder, tmp_path / "m.parquet", broken=True)
    out = tmp_path / "probe"
    arguments = ["probe", "--weights", weights, "--manifest", manifest, "--out", out, "--device", "cpu"]
    arguments += ["--workers", "0", "--random-seeds", "2"]
    code, text, err = run(capsys, *arguments, "--json")
    assert code == 0
    record = json.loads(text)
    assert json.loads((out / "probe.json").read_text()) == record
    result = read_result(out / "result.json")
    assert [(row.method, row.role, row.seed) for row in result.rows] == [
        ("weights", "trained", None),
        ("random weights", "floor", 0),
        ("random weights", "floor", 1),
        ("raw pixels", "floor", None),
        ("commonest class", "floor", None),
    ]
    assert result.rows[0].scores["top1"] == record["scores"]["weights"][0]["linear"]
    assert set(result.rows[0].scores) == set(result.metrics) == {"top1", "knn", "R@1", "R@5", "R@10"}
    assert (record["num_train"], record["num_test"], record["num_classes"]) == (6, 2, 2)
    assert record["broken"][0]["path"] == str(tmp_path / "bad.mp4")
    assert "could not read" in err
    assert {name: len(runs) for name, runs in record["scores"].items()} == {
        "weights": 1,
        "random weights": 2,
        "raw pixels": 1,
    }
    for runs in record["scores"].values():
        for scores in runs:
            assert all(0 <= scores[name] <= 1 for name in ("linear", "knn", "R@1", "R@5", "R@10"))
            assert scores["R@1"] <= scores["R@5"] <= scores["R@10"]
    assert (out / "neighbours.png").read_bytes()[:4] == b"\x89PNG"

    def no_decoding(*arguments):
        raise AssertionError("a video was decoded again")

    monkeypatch.setattr(views, "read_clips", no_decoding)
    code, text, _ = run(capsys, *arguments)
    assert code == 0
    assert "6 training videos, 2 test videos, 2 classes, by the manifest's splits" in text
    assert "random weights (2 seeds)" in text
    assert json.loads((out / "probe.json").read_text())["scores"] == record["scores"]


def test_probe_states_the_coverage_of_a_benchmark(weights, video_folder, tmp_path, capsys):
    made = Manifest.open(write_manifest(video_folder, tmp_path / "plain.parquet"))
    rows = [{name: value for name, value in vars(row).items() if name != "extra"} for row in made]
    splits = {"train": {"listed": 9, "found": 6, "usable": 6}, "test": {"listed": 2, "found": 2, "usable": 2}}
    coverage = {"benchmark": "ucf101", "splits": splits, "missing_list": "m.missing.csv"}
    manifest = Manifest.from_rows(rows, tmp_path, coverage).write(tmp_path / "m.parquet")
    arguments = ["probe", "--weights", weights, "--manifest", manifest, "--device", "cpu", "--workers", "0"]
    arguments += ["--random-seeds", "0", "--pixels", "false", "--out", tmp_path / "probe"]
    code, text, err = run(capsys, *arguments)
    assert code == 0, err
    missing = f"missing list in {tmp_path / 'm.missing.csv'}"
    assert f"ucf101: 6 of 9 training videos (66.66 %); {missing}\n" in text
    assert "ucf101: 2 of 2 test videos (100.00 %)\n" in text
    assert json.loads((tmp_path / "probe" / "probe.json").read_text())["coverage"] == coverage


def test_probe_puts_the_seeds_of_a_method_in_one_row(weights, video_folder, tmp_path, capsys):
    manifest = write_manifest(video_folder, tmp_path / "m.parquet")
    config = load(weights, device="cpu").encoder.config
    runs = []
    persistent = {"objective": "TeG", "alpha": 0.0}
    for seed, trained in ((4, persistent), (5, persistent), (4, {"objective": "supervised"})):
        runs.append(tmp_path / f"run{len(runs)}")
        runs[-1].mkdir()
        torch.manual_seed(len(runs))
        save_weights(VideoEncoder(replace(config, extra=trained)), runs[-1] / "weights.safetensors")
        (runs[-1] / "config.yaml").write_text(f"run: {{seed: {seed}}}")
    options = ["--manifest", manifest, "--device", "cpu", "--workers", "0", "--random-seeds", "1", "--pixels", "false"]
    code, text, _ = run(capsys, "probe", "--weights", *runs, "--out", tmp_path / "all", *options)
    assert code == 0
    assert "TeG-PS (2 seeds)" in text
    together = read_result(tmp_path / "all" / "result.json").rows
    assert [(row.method, row.role, row.seed) for row in together[:4]] == [
        ("TeG-PS", "trained", 4),
        ("TeG-PS", "trained", 5),
        ("supervised", "ceiling", 4),
        ("random weights", "floor", 0),
    ]
    alone = [run(capsys, "probe", f"--weights={one}", "--json", *options) for one in runs]
    for row, one, (code, text, _) in zip(together, runs, alone, strict=False):
        assert code == 0
        assert json.loads(text)["encoders"][0]["weights"] == str(one)
        assert read_result(one / "probe" / "result.json").rows[0].scores == row.scores

    other = tmp_path / "other.safetensors"
    save_weights(VideoEncoder(replace(config, crop_size=16)), other)
    code, _, err = run(capsys, "probe", "--weights", runs[0], other, "--out", tmp_path / "p", *options)
    assert code == 2
    assert "other.safetensors has crop_size 16" in err


def test_probe_holds_out_whole_groups(weights, video_folder, tmp_path, capsys):
    manifest = write_manifest(video_folder, tmp_path / "m.parquet", splits=None)
    arguments = ["probe", "--weights", weights, "--manifest", manifest, "--device", "cpu", "--workers", "0"]
    arguments += ["--random-seeds", "0", "--pixels", "false", "--out", tmp_path / "probe"]
    code, _, err = run(capsys, *arguments)
    assert code == 2
    assert "no usable video in split 'train'; it has no splits" in err
    assert "--hold_out" in err
    code, text, _ = run(capsys, *arguments, "--hold-out", "0.25", "--json")
    assert code == 0
    record = json.loads(text)
    assert (record["num_train"], record["num_test"]) == (6, 2)
    assert "25% held out, whole groups drawn at random with seed 0" in record["protocol"]["division"]


@pytest.mark.parametrize(
    ("options", "typed", "message"),
    [
        ({"labels": False}, [], "has no labels"),
        ({}, ["--split-test", "validation"], "no usable video in split 'validation'; it has test (2), train (6)"),
        ({}, ["--hold-out", "1.5"], "between 0 and 1"),
        ({}, ["--hold-out", "0.5", "--split-test", "val"], "so --split-test val means nothing"),
        ({}, ["--num-clips", "0"], "at least 1 clip"),
        ({}, ["--num-neighbours", "0"], "--num-neighbours and --batch-size must be at least 1"),
        ({}, ["--batch-size", "0"], "--num-neighbours and --batch-size must be at least 1"),
    ],
)
def test_probe_says_what_is_wrong(weights, video_folder, tmp_path, capsys, options, typed, message):
    manifest = write_manifest(video_folder, tmp_path / "m.parquet", **options)
    code, text, err = run(
        capsys, "probe", "--weights", weights, "--manifest", manifest, "--out", tmp_path / "p", "--workers", "0", *typed
    )
    assert code == 2
    assert text == ""
    assert message in err


def test_probe_needs_two_classes(weights, video_folder, tmp_path, capsys):
    manifest = write_manifest(video_folder / "left", tmp_path / "m.parquet")
    code, _, err = run(capsys, "probe", "--weights", weights, "--manifest", manifest, "--out", tmp_path / "p")
    assert code == 2
    assert "1 class among the videos" in err


def test_features_of_views_equal_single_clips(weights, video_folder, tmp_path):
    encoder = load(weights, device="cpu").encoder.train()
    manifest = Manifest.open(write_manifest(video_folder, tmp_path / "m.parquet"))
    options = {"device": "cpu", "workers": 0, "progress": False}
    table = features.features_for_manifest(encoder, manifest, num_clips=2, num_crops=3, batch_size=5, **options)
    assert encoder.training  # as it was
    encoder.eval()
    row = manifest[3]
    expected = []
    with open_video(row.path) as reader, torch.inference_mode():
        for start in (0, row.num_frames - 16):
            frames = reader.frames(np.arange(8) * 2 + start)
            views = three_crops(frames, 32, rounding="nearest")
            expected += [encoder(to_model_input(view[None]))[0].mean(0) for view in views]
    torch.testing.assert_close(table.features[3], torch.stack(expected).mean(0), atol=1e-5, rtol=0)
    assert table.paths[3] == row.path
    assert table.labels[3] == row.label
    parallel = features.features_for_manifest(
        encoder, manifest, num_clips=2, num_crops=3, device="cpu", workers=1, progress=False
    )
    torch.testing.assert_close(parallel.features, table.features, atol=1e-5, rtol=0)


def test_cached_features_are_those_of_their_weights_and_files(weights, video_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(features, "_PART", 3)
    encoder = load(weights, device="cpu").encoder
    manifest = Manifest.open(write_manifest(video_folder, tmp_path / "m.parquet"))
    options = {"cache_folder": tmp_path / "cache", "device": "cpu", "workers": 0, "progress": False}
    first = features.features_for_manifest(encoder, manifest, **options)
    files = sorted((tmp_path / "cache").iterdir())
    assert len(files) == 3
    files[0].write_bytes(b"cut off")
    decoded, original = [], views.read_clips

    def read_clips(path, *arguments, **options):
        decoded.append(path)
        return original(path, *arguments, **options)

    monkeypatch.setattr(views, "read_clips", read_clips)
    again = features.features_for_manifest(encoder, manifest, **options)
    assert len(decoded) in (2, 3)  # the part that was damaged
    assert torch.equal(first.features, again.features)
    with torch.no_grad():
        next(encoder.parameters()).mul_(1.1)
    changed = features.features_for_manifest(encoder, manifest, **options)
    assert not torch.equal(first.features, changed.features)
    assert len(decoded) > 8


def test_a_server_that_is_away_is_asked_again(weights, video_folder, tmp_path, monkeypatch):
    encoder = load(weights, device="cpu").encoder
    local = [probe_file(path) for path in list_videos([video_folder])[:2]]
    rows = [local[0], {**local[1], "path": "https://host/a.mp4"}]
    manifest, original, is_away = Manifest.from_rows(rows, tmp_path), views.read_clips, True

    def read_clips(path, *arguments, **options):
        if path.startswith("https:") and is_away:
            raise VideoError(path, "no connection")
        return original(local[1]["path"] if path.startswith("https:") else path, *arguments, **options)

    monkeypatch.setattr(views, "read_clips", read_clips)
    options = {"cache_folder": tmp_path / "cache", "device": "cpu", "workers": 0, "progress": False}
    assert len(features.features_for_manifest(encoder, manifest, **options).broken) == 1
    is_away = False
    assert len(features.features_for_manifest(encoder, manifest, **options)) == 2


def test_views_and_pixels():
    seen = views.Views(8, 2, 32, num_clips=3)
    assert [int(clip[0]) for clip in seen.clips(40)] == [0, 12, 24]
    assert [int(clip[0]) for clip in seen.clips(9)] == [0, 0, 0]
    assert [int(clip[0]) for clip in views.Views(8, 2, 32).clips(40)] == [12]
    assert "3 clips x 1 crop of 8 frames x stride 2" in str(seen)
    clip = torch.zeros(1, 3, 8, 32, 32)
    clip[:, 0, 4:, :, 16:] = 1
    pixels = features.PixelFeatures(side=2, segments=2)(clip)
    assert pixels.shape == (1, 1, 24)
    red_late = pixels.reshape(3, 2, 2, 2)[0, 1]
    assert red_late.tolist() == [[0, 1], [0, 1]]
    with pytest.raises(ValueError, match="1 or 3 crops"):
        views.Views(8, 2, 32, num_crops=2)
