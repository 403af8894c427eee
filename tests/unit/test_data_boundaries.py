"""Ground truth from manifests, and balanced batches of candidates, against slow loops."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from timegrain.data.boundaries import AroundCandidates, BoundaryTruth, CandidateSampler, benchmark_id
from timegrain.data.manifest import Manifest
from timegrain.metrics.inputs import read_boundary_truth
from timegrain.sampling import ClipSpec


def manifest(tmp_path: Path, num_videos: int = 6, **columns: list) -> Manifest:
    rng = np.random.default_rng(0)
    rows = []
    for i in range(num_videos):
        frames = int(rng.integers(60, 200))
        marks = np.sort(rng.uniform(0.3, frames / 25 - 0.3, rng.integers(1, 4)))
        rows.append({
            "path": f"v{i}.mp4", "num_frames": frames, "fps": 25.0, "duration_seconds": frames / 25, "width": 32,
            "height": 32, "split": "train", "boundaries_seconds": marks.tolist(),
            **{name: values[i] for name, values in columns.items()},
        })  # fmt: skip
    return Manifest.from_rows(rows, tmp_path)


def test_one_list_counts_as_one_annotator(tmp_path):
    truth = BoundaryTruth.of(manifest(tmp_path))
    videos = truth.videos()
    assert list(videos) == [f"v{i}" for i in range(6)]
    for own, video, row in zip(truth.boundaries, videos.values(), truth.manifest, strict=True):
        assert video.annotations == (tuple(own.tolist()),)
        assert video.length == video.last == row.duration_seconds
        assert video.consistency == 1.0


def test_gebd_columns_become_annotators(tmp_path):
    everyone = [[[1.0], [1.1, 2.0], []]] * 6
    scores = [[0.5, 0.9, 0.2]] * 6
    truth = BoundaryTruth.of(manifest(
        tmp_path, annotations_seconds=everyone, f1_consis=scores, f1_consis_avg=[0.25] * 6,
        video_id=[f"id{i}" for i in range(6)], group=["a", "a", "b", None, "c", "c"],
    ))  # fmt: skip
    assert truth.names == ("a", "a", "b", "id3", "c", "c")
    assert truth.videos()["id2"].annotations == ((1.0,), (1.1, 2.0), ())
    assert truth.videos()["id2"].consistency == 0.25
    assert truth.annotator_consistency[0] == (0.5, 0.9, 0.2)


@pytest.mark.parametrize("program", ["challenge", "notebook"])
def test_records_are_read_as_official_ground_truth(tmp_path, program):
    truth = BoundaryTruth.of(manifest(tmp_path))
    file = tmp_path / "truth.pkl"
    file.write_bytes(pickle.dumps(truth.records()))
    read = read_boundary_truth(file, program)
    if program == "challenge":
        assert read == truth.videos()
    else:
        row = truth.manifest[0]
        assert read["v0"].last == row.num_frames - 1
        assert read["v0"].annotations[0] == tuple(float(int(t * 25)) for t in truth.boundaries[0])


def test_selecting_keeps_rows_together(tmp_path):
    truth = BoundaryTruth.of(manifest(tmp_path))
    some = truth.select(np.array([False, True, False, False, True, False]))
    assert some.ids == ("v1", "v4")
    assert [Path(row.path).stem for row in some.manifest] == ["v1", "v4"]
    np.testing.assert_array_equal(some.boundaries[1], truth.boundaries[4])
    again = pickle.loads(pickle.dumps(some.manifest))
    assert [row.path for row in again] == [row.path for row in some.manifest]
    with pytest.raises(ValueError, match="no video is left"):
        truth.select(np.zeros(6, np.bool_))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"boundaries_seconds": [None] * 6}, "boundaries_seconds is empty"),
        ({"boundaries_seconds": [[float("nan")]] * 6}, "not times"),
        ({"boundaries_seconds": [[-1.0]] * 6}, "not times"),
        ({"video_id": ["same"] * 6}, "two videos have the id 'same'"),
    ],
)
def test_columns_that_are_not_as_expected_are_named(tmp_path, change, words):
    with pytest.raises(ValueError, match=words):
        BoundaryTruth.of(manifest(tmp_path, **change))


def test_without_boundaries_the_remedy_is_named(tmp_path):
    plain = Manifest.from_rows([{"path": "a.mp4", "error": "broken"}], tmp_path)
    with pytest.raises(ValueError, match="timegrain prepare gebd"):
        BoundaryTruth.of(plain)


def test_ids_follow_the_benchmark():
    assert benchmark_id("x", "/a/b.mp4") == "x"
    assert benchmark_id(None, "/a/abcdefghijk_000010_000020.mp4") == "abcdefghijk"
    assert benchmark_id(None, "/a/b.mp4") == "b"


def plan(truth: BoundaryTruth, **changes) -> CandidateSampler:
    return CandidateSampler(**{"truth": truth, "every": 3, "batch_size": 8, "seed": 3, **changes})


@pytest.mark.parametrize("random_start", [True, False])
def test_batches_are_half_positive_without_repetition_and_on_one_grid(tmp_path, random_start):
    truth = BoundaryTruth.of(manifest(tmp_path, 12))
    sampler = plan(truth, random_start=random_start)
    for epoch in range(3):
        sampler.set_position(epoch)
        batches = list(sampler)
        assert len(batches) == len(sampler)
        starts: dict[int, set[int]] = {}
        for batch in batches:
            targets = []
            for seen, place in batch:
                assert seen == epoch
                video, frame = sampler.place(place)
                assert 0 <= frame < truth.manifest[video].num_frames
                starts.setdefault(video, set()).add(frame % 3)
                near = any(abs(frame / 25 - b) <= 0.15 + 1e-9 for b in truth.boundaries[video])
                assert near == sampler.is_near[place]
                targets.append(near)
            assert sum(targets) == 4
        assert all(len(found) == 1 for found in starts.values())  # one grid per video and epoch
        if not random_start:
            assert all(found == {0} for found in starts.values())
        negatives = [place for batch in batches for _, place in batch if not sampler.is_near[place]]
        assert len(set(negatives)) == len(negatives)


def test_epochs_begin_at_other_frames_and_the_seed_decides(tmp_path):
    truth = BoundaryTruth.of(manifest(tmp_path, 12))

    def first(seed: int, epoch: int) -> list:
        sampler = plan(truth, seed=seed)
        sampler.set_position(epoch)
        return list(sampler)

    assert first(3, 0) == first(3, 0)
    assert first(3, 0) != first(4, 0)
    assert [p for b in first(3, 0) for _, p in b] != [p for b in first(3, 1) for _, p in b]


def test_a_pass_can_be_gone_on_with(tmp_path):
    sampler = plan(BoundaryTruth.of(manifest(tmp_path, 12)))
    sampler.set_position(1)
    whole = list(sampler)
    sampler.set_position(1, 2)
    assert list(sampler) == whole[2:]


def test_two_processes_see_together_what_one_sees(tmp_path):
    truth = BoundaryTruth.of(manifest(tmp_path, 12))
    one = plan(truth, batch_size=8)
    parts = [plan(truth, batch_size=4, rank=rank, world_size=2) for rank in range(2)]
    for both, first, second in zip(one, *parts, strict=True):
        assert sorted(both) == sorted(first + second)
        assert not set(first) & set(second)


@pytest.mark.parametrize(
    ("change", "words"),
    [({"batch_size": 3}, "even"), ({"batch_size": 4000}, "too few"), ({"every": 0}, "every"),
     ({"tolerance_seconds": 99.0}, "away from all boundaries")],
)  # fmt: skip
def test_batches_that_cannot_be_are_refused(tmp_path, change, words):
    with pytest.raises(ValueError, match=words):
        plan(BoundaryTruth.of(manifest(tmp_path)), **change)


def test_windows_stand_around_their_candidate_and_still_at_the_ends(tmp_path):
    truth = BoundaryTruth.of(manifest(tmp_path))
    sampler = plan(truth)
    draw = AroundCandidates(truth.manifest, sampler, ClipSpec(8, 4))
    rng = np.random.default_rng(0)
    for video in range(2):
        last = truth.manifest[video].num_frames - 1
        for frame in (0, 1, last // 2, last):
            sample = draw(int(sampler.offsets[video]) + frame, rng)
            expected = [min(max(frame - 16 + 4 * i, 0), last) for i in range(8)]
            assert sample.frame_indices.tolist() == expected
            assert sample.video == video
            assert int(sample.target) == any(abs(frame / 25 - b) <= 0.15 + 1e-9 for b in truth.boundaries[video])
