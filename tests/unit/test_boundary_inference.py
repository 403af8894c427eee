"""Scores of whole videos: dense equals windows where it must, chunks do not matter, memory is bounded."""

from __future__ import annotations

import csv
import itertools
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import timegrain.boundary_layout as layouts
from conftest import make_video, moving_square
from timegrain.boundary_features import FeatureStore, StoredStretches, StoredWindows, _mapped, span_overlaps
from timegrain.boundary_inference import Scorer, read_spans, score_videos, span_values
from timegrain.boundary_layout import Layout, temporal_radius
from timegrain.callbacks import FailedVideos
from timegrain.data.boundaries import BoundaryTruth, CandidateSampler, picture
from timegrain.data.decoding import VideoError, open_video
from timegrain.data.manifest import Manifest
from timegrain.data.transforms import to_model_input
from timegrain.models.boundary import BoundaryConfig, BoundaryDetector
from timegrain.models.hub import build_backbone
from timegrain.tasks.boundary_setup import build_store

FRAMES = 70


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_video(tmp_path_factory.mktemp("v") / "a.mp4", moving_square(FRAMES, 24, 24))


def detector(**changes) -> BoundaryDetector:
    """A detector with weights that let differences be seen."""
    torch.manual_seed(0)
    settings = {"backbone": "r3d_tiny", "num_frames": 16, "stride": 2, "every": 3, "crop_size": 16, "pooling": "centre"}
    made = BoundaryDetector(BoundaryConfig(**{**settings, **changes}))
    with torch.no_grad():
        for module in made.modules():
            if isinstance(module, torch.nn.BatchNorm3d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
        if made.config.is_windowed:
            made.head.classifier.weight.normal_(0, 0.5)
    return made.eval()


def scores(made: BoundaryDetector, video: Path, mode: str, **options) -> np.ndarray:
    ((_, found),) = score_videos(made, [str(video)], mode=mode, progress=False, **options)
    return found.scores


def test_receptive_fields_are_measured():
    # r3d_tiny: kernel 3 in the stem (1 frame), kernel 3 in two blocks at half the rate (2 frames each)
    assert temporal_radius(build_backbone("r3d_tiny")) in (5, 6)
    assert temporal_radius(build_backbone("r3d_tiny", temporal_kernels=(1, 1, 1, 1))) == 1
    assert temporal_radius(detector(method="pc").features) == 0
    hidden = build_backbone("r3d_tiny")
    for name, parameter in hidden.named_parameters():
        if "second_norm.weight" in name:  # networks that begin with every block switched off
            torch.nn.init.zeros_(parameter)
    assert temporal_radius(hidden) in (5, 6)
    assert all((p == 0).all() for n, p in hidden.named_parameters() if "second_norm.weight" in n)


@pytest.mark.parametrize("stride", [1, 2, 3, 5])
def test_any_temporal_stride_is_found(stride):
    made = detector(backbone_options={"stem_temporal_stride": stride, "temporal_kernels": [1, 1, 1, 1]}, num_frames=15)
    layout = Layout.of(made)
    assert layout.temporal_stride == stride
    assert layout.num_steps == made.features.num_time_steps(15)
    assert layout.radius == 1  # of the stem's kernel of 3, at most


@pytest.mark.parametrize("every", [0, -3])
def test_candidates_need_a_frame_from_one_to_the_next(every):
    with pytest.raises(ValueError, match="every must be at least 1"):
        Layout.of(detector(), every=every)


def slow_scores(made: BoundaryDetector, video: Path) -> list[float]:
    """Every window by itself, frames picked one by one."""
    with open_video(video) as reader:
        frames = picture(reader.frames(np.arange(FRAMES)), 16, "squash")
    found = []
    for centre in range(0, FRAMES, 3):
        begin = centre - made.config.num_frames * made.config.stride // 2
        wanted = [min(max(begin + made.config.stride * i, 0), FRAMES - 1) for i in range(made.config.num_frames)]
        with torch.no_grad():
            found.append(float(made(to_model_input(frames[wanted][None])).softmax(1)[0, 1]))
    return found


@pytest.mark.parametrize("pooling", ["centre", "change"])
def test_windows_are_those_of_a_slow_loop(video, pooling):
    made = detector(pooling=pooling)
    expected = slow_scores(made, video)
    for batch_size in (1, 5):
        np.testing.assert_allclose(scores(made, video, "windows", batch_size=batch_size), expected, atol=2e-6)


@pytest.mark.parametrize("every", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("stride", [1, 2])
def test_dense_is_exact_for_time_steps_that_see_no_end_of_their_window(video, every, stride):
    # Both middle steps of 16 frames lie 6 frames from the ends of the window: the radius fits.
    made = detector(every=every, stride=stride)
    np.testing.assert_allclose(scores(made, video, "dense"), scores(made, video, "windows"), atol=2e-6)


def test_dense_differs_where_windows_see_padding_and_says_so_nowhere_else(video):
    made = detector(pooling="change")
    assert np.abs(scores(made, video, "dense") - scores(made, video, "windows")).max() > 1e-4


def test_frames_seen_one_by_one_are_exact_in_both_ways(video):
    made = detector(method="pc", pooling="halves", num_frames=10, stride=3)
    expected = slow_scores(made, video)
    np.testing.assert_allclose(scores(made, video, "windows"), expected, atol=2e-6)
    np.testing.assert_allclose(scores(made, video, "dense"), expected, atol=2e-6)


@pytest.mark.parametrize("method", ["window", "tcn", "bmn"])
def test_chunks_do_not_change_dense_scores(video, monkeypatch, method):
    head = {"tcn": {"width": 8}, "bmn": {"num_moments": 10, "width": 4, "num_samples": 4}}.get(method, {})
    made = detector(method=method, frozen=True, pooling="change", head=head)
    whole = scores(made, video, "dense")
    assert len(whole) == len(range(0, FRAMES, 3))
    monkeypatch.setattr(layouts, "CHUNK_STEPS", 4)
    np.testing.assert_allclose(scores(made, video, "dense"), whole, atol=2e-6)


def test_windows_keep_few_entries_at_a_time(video, monkeypatch):
    monkeypatch.setattr(layouts, "CHUNK_STEPS", 2)
    made = detector(frozen=True)
    layout = Layout.of(made)
    scorer = Scorer(made, layout, "dense", FRAMES)
    for _, event in span_values(made, [str(video)], layout, "dense", 4, 0, progress=False):
        if isinstance(event, torch.Tensor):
            scorer.add(event)
            assert len(scorer.entries) < layout.num_steps * layout.phases + len(event)
    assert len(scorer.scores()) == layout.num_candidates(FRAMES)


@pytest.mark.parametrize("every", [1, 3, 4, 8])
def test_entries_lie_where_windows_need_them(every):
    layout = Layout(16, 4, every, temporal_stride=2, radius=6)
    for num_frames in (1, 37, 300):
        candidates = np.arange(layout.num_candidates(num_frames))
        begins = layout.entries_of(candidates) * layout.hop - layout.lead
        expected = candidates[:, None] * every - 32 + 8 * np.arange(8)
        np.testing.assert_array_equal(begins, expected)
        assert layout.entries_of(candidates).max() == layout.num_entries(num_frames) - 1
        spans = layout.spans(num_frames, "dense")
        assert spans[0].first == 0
        assert sum(span.count for span in spans) >= layout.num_entries(num_frames)
    if every == 8:  # one pass over the video instead of one per window
        assert layout.frames_computed(300, "dense") * 3 < layout.frames_computed(300, "windows")


def test_a_backbone_that_sees_everything_is_refused_densely(video):
    with pytest.raises(ValueError, match="--mode windows"):
        _ = Layout(16, 4, 3, 2, None).margin_steps
    with pytest.raises(ValueError, match="even number"):
        _ = Layout(15, 4, 3, 2, 6).margin_steps


def test_spans_read_each_frame_once_and_stand_still_beyond_the_ends(video):
    layout = Layout(8, 3, 2, 1, 0)
    with open_video(video) as reader:
        spans = layout.spans(FRAMES, "windows")
        frames = picture(reader.frames(np.arange(FRAMES)), 16, "squash")
        for span, found in zip(spans, read_spans(reader, spans, 16, "squash"), strict=True):
            wanted = np.clip(np.arange(span.begin, span.end), 0, FRAMES - 1)
            assert torch.equal(found, frames[torch.from_numpy(wanted)])


def test_a_broken_video_gives_its_reason_and_stops_no_other(video, tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    found = dict(score_videos(detector(), [str(broken), str(video)], progress=False))
    assert isinstance(found[0], str)
    assert len(found[1].scores) == len(range(0, FRAMES, 3))
    assert found[1].seconds[1] == pytest.approx(3 / 25)
    assert found[1].duration_seconds == pytest.approx(FRAMES / 25)


@pytest.fixture
def truth(video, tmp_path) -> BoundaryTruth:
    row = {
        "path": str(video), "num_frames": FRAMES, "fps": 25.0, "duration_seconds": FRAMES / 25, "width": 24,
        "height": 24, "boundaries_seconds": [0.8, 1.6],
    }  # fmt: skip
    return BoundaryTruth.of(Manifest.from_rows([row], tmp_path))


def test_stored_windows_are_what_inference_scores(truth, video, tmp_path):
    made = detector(frozen=True, pooling="change")
    store = FeatureStore.build(made, [str(video)], tmp_path / "features", progress=False)
    sampler = CandidateSampler(truth, 3, 2, random_start=False)
    data = StoredWindows(truth, sampler, store)
    rows = [data[0, frame] for frame in range(0, FRAMES, 3)]
    with torch.no_grad():
        found = made.head(torch.stack([row["features"] for row in rows])).softmax(1)[:, 1]
    np.testing.assert_allclose(found.numpy(), scores(made, video, "dense"), atol=2e-3)  # kept as float16
    expected = [any(abs(f / 25 - b) <= 0.15 + 1e-9 for b in (0.8, 1.6)) for f in range(0, FRAMES, 3)]
    assert [bool(row["target"]) for row in rows] == expected


def test_the_store_is_used_again_and_knows_other_weights(truth, video, tmp_path, monkeypatch):
    folder = tmp_path / "features"
    first = FeatureStore.build(detector(frozen=True), [str(video)], folder, progress=False)
    monkeypatch.setattr("timegrain.boundary_features.span_values", None)
    again = FeatureStore.build(detector(frozen=True), [str(video)], folder, progress=False)
    assert first.files == again.files
    other = detector(frozen=True)
    with torch.no_grad():
        next(other.features.parameters()).add_(1)
    with pytest.raises(TypeError):
        FeatureStore.build(other, [str(video)], folder, progress=False)


def test_many_stored_videos_do_not_use_up_the_file_descriptors(tmp_path):
    files = [tmp_path / f"{i}.npy" for i in range(260)]
    for file in files:
        np.save(file, np.zeros((2, 1), np.float16))
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with files[0].open() as file:
        resource.setrlimit(resource.RLIMIT_NOFILE, (file.fileno() + 200, before[1]))
    try:
        assert {_mapped(file).shape for file in files} == {(2, 1)}
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        _mapped.cache_clear()


def test_only_broken_videos_are_an_error(tmp_path):
    with pytest.raises(ValueError, match="none of the 1 videos"):
        FeatureStore.build(detector(frozen=True), [str(tmp_path / "no.mp4")], tmp_path, progress=False)


def test_videos_without_features_are_written_down(truth, video, tmp_path):
    """One cannot be read, one has become shorter since it was scanned: neither is trained on, neither goes unsaid."""
    paths = [str(video), str(tmp_path / "no.mp4"), str(shutil.copy(video, tmp_path / "b.mp4"))]
    facts = {name: truth.manifest.column(name)[0].as_py() for name in ("fps", "duration_seconds", "width", "height")}
    rows = [
        {**facts, "path": path, "num_frames": num_frames, "boundaries_seconds": [0.8]}
        for path, num_frames in zip(paths, (FRAMES, FRAMES, FRAMES + 30), strict=True)
    ]
    three, made = BoundaryTruth.of(Manifest.from_rows(rows, tmp_path)), detector(frozen=True)
    listed = tmp_path / "failed.csv"
    _, kept = build_store(made, three, tmp_path, 4, 0, FailedVideos(listed, 3, 0.7))
    assert kept.manifest.column("path").to_pylist() == paths[:1]
    with listed.open(newline="") as file:
        assert [(path, reason.partition(" since")[0]) for path, reason, _ in csv.reader(file)] == [
            (paths[1], "file not found"),
            (paths[2], "it changed"),
        ]
    with pytest.raises(VideoError, match="2 of 3 videos failed"):
        build_store(made, three, tmp_path, 4, 0, FailedVideos(listed, 3, 0.5))


def test_stretches_say_where_events_begin_and_end(truth, video, tmp_path):
    made = detector(method="tcn", frozen=True)
    store = FeatureStore.build(made, [str(video)], tmp_path / "features", progress=False)
    item = StoredStretches(truth, store, length=30, spans=True)[0, 0]
    total = store.layout.num_candidates(FRAMES)  # 24 candidates, each 0.12 s
    assert item["inside"].tolist() == [i < total for i in range(30)]
    seconds = np.arange(30) * 0.12
    near = [any(abs(s - b) <= 0.15 + 1e-9 for b in (0.8, 1.6)) for s in seconds]
    assert item["near"].tolist() == [n and i < total for i, n in enumerate(near)]
    assert item["starts"][[0, 3, total - 1]].tolist() == [True, False, False]
    assert item["ends"][[0, 3, total - 1]].tolist() == [False, False, True]
    assert item["overlap"].shape == (30, 30)
    torch.testing.assert_close(item["features"][total - 1], item["features"][-1])


def test_overlaps_are_those_of_a_slow_loop():
    ends = np.array([-0.5, 2.2, 5.0, 7.5])
    found = span_overlaps(8, ends)
    for d in range(1, 9):
        for s in range(8):
            best = 0.0
            for a, b in itertools.pairwise(ends):
                shared = max(0.0, min(s + d - 0.5, b) - max(s - 0.5, a))
                best = max(best, shared / (d + (b - a) - shared))
            assert found[d - 1, s] == pytest.approx(best)
