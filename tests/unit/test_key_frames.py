"""AVA's key frames: joined boxes, moments inside their file, people files, and boxes that follow crops."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from timegrain.data.key_frame_clips import AroundKeyFrames, boxes_in_crops
from timegrain.data.key_frames import class_names, key_frames, read_people, truth_of, with_people
from timegrain.data.manifest import Manifest
from timegrain.metrics.frame_map import FrameMAP
from timegrain.models import localizer
from timegrain.models.boundary import load_frame_weights
from timegrain.models.hub import EncoderConfig, VideoEncoder
from timegrain.models.localizer import ActionLocalizer
from timegrain.models.people import person_detector
from timegrain.sampling import ClipSpec

NAMES = {3: "stand", 7: "talk", 11: "sit"}


def a_manifest(tmp_path, **changes):
    row = {
        "path": "movie.mp4", "num_frames": 100, "fps": 25.0, "duration_seconds": 4.0, "width": 64, "height": 48,
        "codec": "h264", "split": "train", "label": None, "group": "movie", "error": None,
        "key_frame_seconds": [901.0, 902.0, 910.0], "time_offset_seconds": 900.0, "source": "ava",
        "boxes": [
            {"key_frame": 0, "x1": 0.1, "y1": 0.2, "x2": 0.5, "y2": 0.9, "action": 3, "person": 1},
            {"key_frame": 0, "x1": 0.1, "y1": 0.2, "x2": 0.5, "y2": 0.9, "action": 7, "person": 1},
            {"key_frame": 0, "x1": 0.6, "y1": 0.2, "x2": 0.8, "y2": 0.9, "action": 11, "person": 2},
            {"key_frame": 2, "x1": 0.6, "y1": 0.2, "x2": 0.8, "y2": 0.9, "action": 11, "person": 2},
        ],
    }  # fmt: skip
    coverage = {"benchmark": "ava-kinetics", "label_map": {str(k): v for k, v in NAMES.items()}}
    path = tmp_path / "ava.parquet"
    Manifest.from_rows([{**row, **changes}], folder=tmp_path, coverage=coverage).write(path)
    return Manifest.open(path)


def test_equal_boxes_are_one_person_and_moments_outside_the_file_are_left_out(tmp_path):
    manifest = a_manifest(tmp_path)
    assert class_names(manifest) == NAMES
    frames = key_frames(manifest, list(NAMES))
    assert [(frame.seconds, frame.frame, len(frame.boxes)) for frame in frames] == [(901.0, 25, 2), (902.0, 50, 0)]
    assert frames[0].actions.tolist() == [[1, 1, 0], [0, 0, 1]]
    assert frames[0].key == "movie,901.000000"


def test_perfect_detections_score_one(tmp_path):
    frames = key_frames(a_manifest(tmp_path), list(NAMES))
    metric = FrameMAP(NAMES)
    truth = truth_of(frames, list(NAMES))
    metric.update(truth, truth)
    assert metric.compute()["map"] == 1.0
    assert metric.compute()["counts"]["frames"] == 2  # a moment without people belongs to the evaluation


def test_targets_are_pixels_and_actions(tmp_path):
    manifest = a_manifest(tmp_path)
    frames = key_frames(manifest, list(NAMES))
    sample = AroundKeyFrames(manifest, ClipSpec(4, 2), frames, max_people=3)(0, np.random.default_rng(0))
    assert sample.frame_indices.tolist() == [21, 23, 25, 27]
    assert sample.target[0].tolist() == pytest.approx([6.4, 9.6, 32.0, 43.2, 1, 1, 0])
    assert sample.target[2].isnan().all()
    few = AroundKeyFrames(manifest, ClipSpec(4, 2), frames, max_people=1)(0, np.random.default_rng(0))
    assert few.target.shape == (1, 7)
    assert not few.target.isnan().any()


@given(
    corner=st.tuples(st.floats(0, 40), st.floats(0, 30)),
    size=st.tuples(st.floats(4, 24), st.floats(4, 18)),
    crop=st.tuples(st.integers(0, 20), st.integers(0, 30), st.integers(12, 28), st.integers(12, 34)),
    flip=st.booleans(),
)
def test_boxes_cover_the_same_pixels_after_crop_resize_and_flip(corner, size, crop, flip):
    """Against a slow reference: pixels of a painted box, cropped and resized by index."""
    x1, y1 = corner
    x2, y2 = x1 + size[0], y1 + size[1]
    top, left, height, width = crop
    target = torch.tensor([[[x1, y1, x2, y2, 1.0], [float("nan")] * 5]])
    boxes, actions = boxes_in_crops(target, torch.tensor([[float(v) for v in crop]]), torch.tensor([float(flip)]), 96)
    fine = (np.arange(960) + 0.5) / 10  # places in the resized clip
    source_x = left + (96 - fine if flip else fine) * width / 96
    source_y = top + fine * height / 96
    columns = (source_x >= x1) & (source_x <= x2)
    rows = (source_y >= y1) & (source_y <= y2)
    seen = columns.mean() * rows.mean() * width * height / ((x2 - x1) * (y2 - y1))
    if seen > 0.27:
        (box,) = boxes[0].tolist()
        assert box == pytest.approx([fine[columns][0], fine[rows][0], fine[columns][-1], fine[rows][-1]], abs=0.11)
        assert actions.tolist() == [[1.0]]
    elif seen < 0.23:
        assert len(boxes[0]) == 0
        assert actions.shape == (0, 1)


def test_people_files_are_read_and_bad_lines_named(tmp_path):
    path = tmp_path / "people.csv"
    path.write_text("movie,0901,0.1,0.2,0.5,0.9,,0.95\nmovie,901.0,0.6,0.2,0.8,0.9,0.1\n")
    people = read_people(path)
    assert people["movie,901.000000"][1].tolist() == [0.95, 0.1]
    frames = key_frames(a_manifest(tmp_path), list(NAMES))
    replaced = with_people(frames, people, 0.2)
    assert [frame.scores.tolist() for frame in replaced] == [[0.95], []]
    for line, reason in (
        ("movie,901,0,0,1,1\n", "6 columns"),
        ("video,time,x1,y1,x2,y2,score\n", "no header"),
        ("movie,901,0.5,0.2,0.5,0.9,0.9\n", "no box"),
        ("movie,901,0.1,0.2,nan,0.9,0.9\n", "no box"),
        ("", "no row"),
        (b"\x89PNG\xff,901,0,0,1,1,1\n", "people.csv, after line 0: not a text file"),
    ):
        path.write_bytes(line if isinstance(line, bytes) else line.encode())
        with pytest.raises(ValueError, match=reason):
            read_people(path)


def test_a_manifest_of_something_else_is_refused(tmp_path, video_folder):
    other = Manifest.from_rows(
        [{"path": "a.mp4", "num_frames": 5, "fps": 5.0, "duration_seconds": 1.0, "width": 8, "height": 8}],
        folder=tmp_path,
    )
    with pytest.raises(ValueError, match="ava-kinetics"):
        class_names(other)
    with pytest.raises(ValueError, match="key_frame_seconds"):
        key_frames(other, [1])


@pytest.mark.parametrize("content", [b"", b"no weights", None])
@pytest.mark.parametrize("load", [person_detector, lambda path: load_frame_weights(torch.nn.Identity(), path)])
def test_a_file_that_holds_no_weights_is_named(tmp_path, load, content):
    path = tmp_path / "weights.pth"
    torch.save([1], path) if content is None else path.write_bytes(content)
    with pytest.raises(ValueError, match=r"weights\.pth"):
        load(path)


@pytest.mark.parametrize("size", [24, 40, 44, 64, 66, 80, 112, 224])
def test_people_are_looked_at_where_their_boxes_are(size, monkeypatch):
    torch.manual_seed(0)
    made = ActionLocalizer(VideoEncoder(EncoderConfig("r3d_tiny", heads=())), 2).eval()
    scales = []
    monkeypatch.setattr(localizer, "roi_align", lambda maps, boxes, size, scale, **_: (scales.append(scale), maps)[1])
    made(torch.rand(1, 3, 2, size, size), [torch.tensor([[0.0, 0.0, 8.0, 8.0]])])
    assert scales == [1 / 32]  # of the stem, its pool and three stages
