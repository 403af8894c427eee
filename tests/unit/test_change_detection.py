"""Boundaries without learning: shot cuts as PySceneDetect's own loop finds them, and changes that are really there."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from conftest import make_video, moving_square
from timegrain.data.decoding import VideoError
from timegrain.tasks.change_detection import ChangeDetector, shot_cuts


def scenes(lengths, seed=0, height=64, width=96):
    """Frames of scenes with different backgrounds, each with a moving square."""
    return np.concatenate([moving_square(n, height, width, seed=seed + 7 * i) for i, n in enumerate(lengths)])


@pytest.fixture(scope="module")
def three_scenes(tmp_path_factory):
    return make_video(
        tmp_path_factory.mktemp("cuts") / "three.mp4", scenes([50, 60, 50]), fps=25.0, options={"crf": "10"}
    )


def test_shot_cuts(three_scenes):
    frames, seconds = shot_cuts(three_scenes)
    assert frames.tolist() == [50, 110]
    assert seconds == pytest.approx([2.0, 4.4])
    assert shot_cuts(three_scenes, threshold=250.0)[0].tolist() == []
    assert shot_cuts(three_scenes, min_scene_frames=55)[0].tolist() == [110]


@pytest.mark.parametrize("method", ["pixels", "both"])
def test_changes_of_picture(three_scenes, method):
    found = ChangeDetector(method, prominence=1.5).boundaries(three_scenes)
    assert found == pytest.approx([2.0, 4.4], abs=0.15)


def turning_square(num_frames, turns, height=64, width=96):
    """A textured square on a still ground that changes its direction at the given frames."""
    rng = np.random.default_rng(0)
    ground = np.full((height, width, 3), 90, np.uint8)
    square = rng.integers(0, 255, (24, 24, 3)).astype(np.uint8)
    frames = np.repeat(ground[None], num_frames, 0)
    position, step = 4.0, 1.0
    for index in range(num_frames):
        if index in turns:
            step = -step
        position += step
        left = int(position)
        frames[index, 20:44, left : left + 24] = square
    return frames


def test_changes_of_motion(tmp_path):
    path = make_video(tmp_path / "turn.mp4", turning_square(150, {50, 100}), fps=25.0, options={"crf": "5"})
    found = ChangeDetector("flow", prominence=1.0).boundaries(path)
    assert found == pytest.approx([2.0, 4.0], abs=0.25)


def test_nothing_happens_in_a_still_video(tmp_path):
    frames = np.full((60, 48, 64, 3), 128, np.uint8)
    path = make_video(tmp_path / "still.mp4", frames)
    for method in ("pixels", "flow", "both"):
        assert ChangeDetector(method).boundaries(path).tolist() == []
    assert shot_cuts(path)[0].tolist() == []


def test_short_videos_and_ends(tmp_path):
    one = make_video(tmp_path / "one.mp4", moving_square(1))
    assert ChangeDetector().boundaries(one).tolist() == []
    assert shot_cuts(one)[1].tolist() == []
    early = make_video(tmp_path / "early.mp4", scenes([5, 70, 5]), fps=25.0)
    found = ChangeDetector("pixels", prominence=0.0).boundaries(early)
    assert ((found >= 0.3) & (found <= 80 / 25 - 0.3)).all()
    assert (np.diff(found) >= 0.6 - 1e-9).all()


def test_a_window_of_ones_own_by_hand():
    detector = ChangeDetector("pixels", rate=1.0, window_seconds=2.0)
    values = np.array([[0.0], [0], [4], [4], [4]])
    curve = detector._before_and_after(values, np.arange(5.0))
    assert curve.tolist() == [0.0, 2.0, 4.0, 2.0, 0.0]  # frame 1: 0 before, mean of 0 and 4 after


def test_refusals(tmp_path):
    for change in ({"method": "sound"}, {"rate": 0.0}, {"window_seconds": -1.0}, {"prominence": -0.1}, {"grid": 0}):
        with pytest.raises(ValueError, match=r"method is|must be"):
            ChangeDetector(**change)
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"not a video")
    for detect in (shot_cuts, ChangeDetector().boundaries):
        with pytest.raises(VideoError, match=r"broken\.mp4"):
            detect(broken)


@pytest.mark.parametrize(("name", "threshold"), [("default", 27.0), ("threshold30", 30.0), ("threshold15", 15.0)])
@pytest.mark.parametrize("case", ["case1", "case2", "case3"])
def test_shot_cuts_as_the_official_detector(shared, case, name, threshold):
    expected = json.loads((shared / "golden" / "scenedetect" / case / "expected.json").read_text())
    wanted = expected["video"]
    found = [path for path in (shared / "data").rglob(Path(wanted["path"]).name) if is_file(path, wanted)]
    if not found:
        pytest.skip(f"the video of {case}, {wanted['path']} of {wanted['repo']}, is not at hand")
    frames, seconds = shot_cuts(found[0], threshold)
    for backend in ("opencv", "pyav"):
        result = expected["results"][f"{name}/{backend}"]
        assert frames.tolist() == result["cut_frames"]
        assert seconds == pytest.approx(result["cut_seconds"], abs=1e-6)


def is_file(path, wanted):
    return path.stat().st_size == wanted["bytes"] and sha256(path.read_bytes()).hexdigest() == wanted["sha256"]


def test_shot_cuts_of_a_variable_rate(shared):
    annotated = json.loads((shared / "data" / "annotations" / "pyscenedetect" / "expected_cuts.json").read_text())
    scenes_seconds = annotated["goldeneye-vfr-drop3.mp4"]["scenes"]
    _, seconds = shot_cuts(shared / "data" / "edge" / "pyscenedetect" / "goldeneye-vfr-drop3.mp4")
    assert seconds == pytest.approx([end for _, end in scenes_seconds], abs=2e-3)
