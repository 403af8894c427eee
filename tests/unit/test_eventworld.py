"""EventWorld: real files, known events, fresh videos for fresh seeds, and no label in a single pixel statistic."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from timegrain.cli import main
from timegrain.data.decoding import open_video
from timegrain.data.event_clips import VideoEvents
from timegrain.data.eventworld import EventWorldConfig, generate, world_config, write_world
from timegrain.data.eventworld_render import boxes_around
from timegrain.data.key_frames import class_names, key_frames
from timegrain.data.manifest import Manifest


def test_a_video_is_a_function_of_seed_split_and_index():
    config = EventWorldConfig()
    one = generate(config, 5, "train", 3)
    np.testing.assert_array_equal(one.frames, generate(config, 5, "train", 3).frames)
    others = [generate(config, *key) for key in ((6, "train", 3), (5, "test", 3), (5, "train", 4))]
    assert len({one.identity, *(other.identity for other in others)}) == 4
    assert all((one.frames != other.frames).any() for other in others)


@pytest.mark.parametrize("difficulty", ["calm", "easy", "medium", "hard"])
def test_events_cover_the_video_and_every_boundary_changes_both_labels(difficulty):
    config = world_config(difficulty)
    counts = set()
    for index in range(40):
        video = generate(config, 1, "train", index)
        events, duration = video.events, config.num_frames / config.fps
        counts.add(len(events))
        assert video.frames.shape == (config.num_frames, config.size, config.size, 3)
        assert events[0].start_seconds == 0
        assert events[-1].end_seconds == pytest.approx(duration)
        for before, after in pairwise(events):
            assert before.end_seconds == after.start_seconds
            assert before.posture != after.posture
            assert before.motion != after.motion
        assert video.boundaries_seconds == tuple(event.start_seconds for event in events[1:])
        shortest = min(event.end_seconds - event.start_seconds for event in events)
        assert shortest >= (config.min_event_frames - 1) / config.fps
    assert counts == set(range(config.min_events, config.max_events + 1))


def statistics(frames: np.ndarray) -> list[float]:
    """Numbers that look at pixels one by one: moments, quantiles and the change from frame to frame."""
    grey = frames[..., 0].astype(float)
    quantiles = np.quantile(grey, [0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99])
    return [grey.mean(), grey.std(), grey.mean((1, 2)).std(), np.abs(np.diff(grey, axis=0)).mean(), *quantiles]


@pytest.mark.parametrize("difficulty", ["calm", "medium"])
def test_no_label_can_be_read_from_pixel_statistics(difficulty):
    config = world_config(difficulty)
    rows: dict[str, list[tuple[list[float], str]]] = {"scene": [], "posture": [], "motion": []}
    for index in range(500):
        video = generate(config, 77, "train", index)
        rows["scene"].append((statistics(video.frames), video.scene))
        for event in video.events:
            part = video.frames[round(event.start_seconds * config.fps) : round(event.end_seconds * config.fps)]
            rows["posture"].append((statistics(part), event.posture))
            rows["motion"].append((statistics(part), event.motion))
    for label, pairs in rows.items():
        features, labels = np.array([values for values, _ in pairs]), np.array([name for _, name in pairs])
        half = len(labels) // 2
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)).fit(features[:half], labels[:half])
        accuracy = model.score(features[half:], labels[half:])
        chance = np.unique(labels[half:], return_counts=True)[1].max() / (len(labels) - half)
        # All statistics at once. A scene's scale shows a little in how much pixels change from frame to frame.
        margin = 0.12 if label == "scene" else 0.04
        assert accuracy < chance + margin, (label, accuracy, chance)


def test_files_decode_to_the_generated_frames_and_the_manifest_knows_them(tmp_path: Path):
    manifest = write_world(tmp_path / "world", 4, 9, "train", num_test_videos=2, workers=1, preview=False)
    assert [row.split for row in manifest] == ["train"] * 4 + ["test"] * 2
    assert len({row.group for row in manifest}) == 6
    for index in range(4):
        row, video = manifest[index], generate(EventWorldConfig(), 9, "train", index)
        with open_video(row.path) as reader:
            decoded = reader.frames(np.arange(reader.num_frames)).permute(0, 2, 3, 1).numpy()
        assert row.num_frames == len(decoded) == len(video.frames)
        assert np.abs(decoded.astype(int) - video.frames).mean() < 6  # H.264 is lossy; levels of 255
        assert list(row.extra["boundaries_seconds"]) == list(video.boundaries_seconds)
        assert [event["posture"] for event in row.extra["events"]] == [event.posture for event in video.events]


def test_the_command_goes_on_does_nothing_twice_and_refuses_other_arguments(tmp_path: Path, capsys):
    out = tmp_path / "world"
    command = ["eventworld", "--out", str(out), "--num-videos", "3", "--seed", "1", "--json"]
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["splits"] == {"train": 3}
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.mp4")}
    assert len(before) == 3
    next(iter(before)).unlink()
    (out / "manifest.parquet").unlink()
    assert main(command) == 0  # as after an interruption: only what is missing is made
    after = {path: path.stat().st_mtime_ns for path in out.rglob("*.mp4")}
    assert after.keys() == before.keys()
    assert sum(after[path] == before[path] for path in before) == 2
    assert len(Manifest.open(out / "manifest.parquet")) == 3
    assert main([*command[:-2], "2"]) == 2
    assert "seed" in capsys.readouterr().err


def test_individual_postures_change_who_does_what_and_nothing_else():
    shared, own = EventWorldConfig(), EventWorldConfig(individual_postures=True)
    differing = 0
    for index in range(12):
        together, apart = (generate(config, 4, "train", index) for config in (shared, own))
        np.testing.assert_array_equal(together.places, apart.places)
        assert together.events == apart.events
        assert (together.postures == together.postures[:, :1]).all()
        np.testing.assert_array_equal(apart.postures[:, 0], together.postures[:, 0])
        assert (np.diff(apart.postures, axis=0) != 0).all()  # everyone changes at every boundary
        differing += len(set(apart.postures[0].tolist())) > 1
    assert differing > 8


def test_boxes_hold_their_ellipse():
    config = EventWorldConfig(size=64, individual_postures=True, actor_contrast=0.6, texture_contrast=0.0, nuisance=0.0)
    for index in range(6):
        video = generate(config, 8, "train", index)
        start, end = (round(t * config.fps) for t in (video.events[0].start_seconds, video.events[0].end_seconds))
        frame = (start + end) // 2
        lit = video.frames[frame, ..., 0] > 160
        boxes = boxes_around(video, 0, frame) * config.size
        inside = np.zeros_like(lit)
        for x1, y1, x2, y2 in boxes:
            inside[int(y1) - 1 : int(np.ceil(y2)) + 2, int(x1) - 1 : int(np.ceil(x2)) + 2] = True
            assert lit[int(y1) : int(np.ceil(y2)), int(x1) : int(np.ceil(x2))].mean() > 0.25
        assert (lit & ~inside).mean() < 0.004  # the leaning, which boxes leave out


def test_a_world_knows_the_columns_of_the_benchmarks(tmp_path: Path):
    config = EventWorldConfig(min_events=5, max_events=5, individual_postures=True)
    manifest = write_world(tmp_path / "five", 3, 2, config=config, num_test_videos=2, workers=1, preview=False)
    frames = key_frames(manifest, list(class_names(manifest)))
    assert len(frames) == 5 * 5
    assert all(frame.boxes.shape == (4, 4) and (frame.actions.sum(1) == 1).all() for frame in frames)
    events = VideoEvents.of(manifest.select(split="test"))
    assert events.centres.shape == (2, 5)
    assert [list(verbs) for verbs in events.verbs] == [[e["posture"] for e in row.extra["events"]] for row in manifest][
        3:
    ]


def test_a_world_of_short_events_has_its_picture_and_a_long_world_leaves_nothing(tmp_path: Path):
    config = EventWorldConfig(num_frames=12, min_event_frames=4, transition_frames=2, max_events=3)
    write_world(tmp_path, 2, 0, config=config, workers=1)
    assert (tmp_path / "preview.png").is_file()
    (tmp_path / "train" / "100000.mp4").touch()
    (tmp_path / "train" / "00000a.mp4").touch()
    write_world(tmp_path, 1, 0, config=config, workers=1, overwrite=True, preview=False)
    assert sorted(path.name for path in (tmp_path / "train").iterdir()) == ["00000.mp4", "00000a.mp4"]


def test_events_that_are_not_five_are_refused(tmp_path: Path):
    config = EventWorldConfig(min_events=3, max_events=7)
    manifest = write_world(tmp_path / "world", 2, 0, config=config, workers=1, preview=False)
    assert sorted(len(row.extra["events"]) for row in manifest) == [3, 7]  # together as many as two videos of five
    with pytest.raises(ValueError, match=r"0000\d\.mp4 has [37] events; every video needs 5"):
        VideoEvents.of(manifest)


def test_a_world_of_an_earlier_version_is_still_known(tmp_path: Path):
    write_world(tmp_path / "world", 2, 1, workers=1, preview=False)
    record = json.loads((tmp_path / "world" / "world.json").read_text())
    del record["individual_postures"]
    (tmp_path / "world" / "world.json").write_text(json.dumps(record))
    assert len(write_world(tmp_path / "world", 2, 1, workers=1, preview=False)) == 2
