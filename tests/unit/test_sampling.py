"""Frame indices: properties over any length, stride and fps-free count; exact distributions of the reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from timegrain.sampling import (
    SAMPLERS,
    ClipSpec,
    contained,
    cvrl_interval,
    frames_to_read,
    interval_probabilities,
    linspace_clips,
    num_starts,
    pair_specs,
    sample_clip,
)

specs = st.builds(ClipSpec, st.integers(1, 40), st.integers(1, 12))


@given(st.integers(1, 2000), specs, specs, st.integers(0, 2**32), st.sampled_from(sorted(SAMPLERS)))
def test_clips_have_their_shape_and_stay_in_the_video(length, long, short, seed, name):
    if short.span > long.span:
        long, short = short, long
    shapes = (long, short) if name.startswith("long") else (short, short)
    assert pair_specs(name, long, short) == shapes
    first, second = SAMPLERS[name](length, shapes, np.random.default_rng(seed))
    for indices, spec in zip((first, second), shapes, strict=True):
        assert indices.dtype == np.int64
        assert len(indices) == spec.num_frames
        assert (np.diff(indices) == spec.stride).all()
        assert indices[0] >= 0
        read = frames_to_read(indices, length)
        assert read.min() >= 0
        assert read.max() < length
    if length >= max(long.span, short.span):
        assert max(first[-1], second[-1]) < length


@given(st.integers(1, 2000), specs, specs, st.integers(0, 2**32))
def test_short_clip_lies_inside_the_long_one(length, long, short, seed):
    if short.span > long.span:
        with pytest.raises(ValueError, match="does not fit inside"):
            contained(length, (long, short), np.random.default_rng(seed))
        return
    first, second = contained(length, (long, short), np.random.default_rng(seed))
    assert first[0] <= second[0]
    assert second[-1] <= first[-1]


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_same_generator_same_clips(name):
    shapes = pair_specs(name, ClipSpec(32, 4), ClipSpec(16, 2))
    draw = [SAMPLERS[name](200, shapes, np.random.default_rng(7)) for _ in range(2)]
    assert all((a == b).all() for a, b in zip(*draw, strict=True))


def test_long_start_and_short_offset_are_uniform():
    rng = np.random.default_rng(0)
    long, short = ClipSpec(8, 4), ClipSpec(4, 2)
    pairs = [contained(60, (long, short), rng) for _ in range(20000)]
    starts = np.bincount([first[0] for first, _ in pairs])
    offsets = np.bincount([second[0] - first[0] for first, second in pairs])
    assert len(starts) == 60 - long.span + 1
    assert len(offsets) == long.span - short.span + 1
    assert stats.chisquare(starts).pvalue > 1e-4
    assert stats.chisquare(offsets).pvalue > 1e-4


@given(st.integers(1, 500), specs, st.integers(1, 5), st.integers(0, 2**32))
def test_any_number_of_clips(length, spec, count, seed):
    clips = SAMPLERS["random"](length, [spec] * count, np.random.default_rng(seed))
    rng = np.random.default_rng(seed)
    assert [clip.tolist() for clip in clips] == [sample_clip(length, spec, rng).tolist() for _ in range(count)]
    views = SAMPLERS["same"](length, [spec] * count, np.random.default_rng(seed))
    assert [view.tolist() for view in views] == [clips[0].tolist()] * count


def test_samplers_refuse_shapes_that_are_not_theirs():
    rng, shapes = np.random.default_rng(0), (ClipSpec(4, 2), ClipSpec(4, 1))
    with pytest.raises(ValueError, match="cannot have several shapes"):
        SAMPLERS["same"](100, shapes, rng)
    for wrong in (shapes, shapes[:1] * 3):
        with pytest.raises(ValueError, match="two clips of one shape"):
            cvrl_interval(100, wrong, rng)


@given(st.integers(1, 500))
def test_interval_probabilities_sum_to_one_and_fall(count):
    probabilities = interval_probabilities(count)
    assert probabilities.sum() == pytest.approx(1.0)
    assert (np.diff(probabilities) < 0).all()


@pytest.mark.parametrize("length", [250, 300, 100, 31, 30, 20])
def test_interval_sampler_has_the_reference_distribution(shared: Path, length: int):
    golden = np.load(shared / "golden/reference-code/temporal_sampling.npz")
    spec = ClipSpec(16, 2)
    rng = np.random.default_rng(length)
    pairs = np.array([[clip[0] for clip in cvrl_interval(length, (spec, spec), rng)] for _ in range(20000)])
    ours = {
        "hist_delta": np.abs(pairs[:, 0] - pairs[:, 1]),
        "hist_min_offset": pairs.min(1),
        "hist_max_offset": pairs.max(1),
        "hist_first_clip_offset": pairs[:, 0],
    }
    for name, values in ours.items():
        theirs = golden[f"L{length}_n16_s2|{name}"]
        table = np.stack([np.bincount(values, minlength=len(theirs)), theirs])
        table = table[:, table.sum(0) > 0]
        if table.shape[1] > 1:
            assert stats.chi2_contingency(table).pvalue > 1e-4, name
        else:
            assert (pairs == 0).all()


@pytest.mark.parametrize("length", [250, 300, 100, 31, 30, 20])
def test_single_clip_has_the_reference_distribution(shared: Path, length: int):
    theirs = np.load(shared / "golden/reference-code/temporal_sampling.npz")[
        f"linear_train|L{length}_n32_s2|hist_offset"
    ]
    rng = np.random.default_rng(length)
    starts = [sample_clip(length, ClipSpec(32, 2), rng)[0] for _ in range(20000)]
    table = np.stack([np.bincount(starts, minlength=len(theirs)), theirs])
    assert max(starts) < num_starts(length, ClipSpec(32, 2))
    assert stats.chi2_contingency(table[:, table.sum(0) > 0]).pvalue > 1e-4


def test_testing_clips_equal_the_reference(shared: Path):
    golden = np.load(shared / "golden/reference-code/temporal_indices.npz")
    checked = 0
    for name in golden.files:
        kind, shape = name.split("|")
        length, frames, stride = (int(part[1:]) for part in shape.split("_")[:3])
        spec = ClipSpec(frames, stride)
        if kind == "offset":
            ours = spec.indices(int(shape.split("_o")[1]))
        else:
            clips = linspace_clips(length, spec, 10 if kind == "linspace10" else 1)
            ours = np.stack(clips).squeeze() if kind == "linspace10" else clips[0]
        np.testing.assert_array_equal(frames_to_read(ours, length), golden[name], err_msg=name)
        checked += 1
    assert checked > 50


def test_impossible_clips_are_refused():
    with pytest.raises(ValueError, match="at least one frame"):
        ClipSpec(0, 1)
    with pytest.raises(ValueError, match="at least one frame"):
        num_starts(0, ClipSpec(4, 1))
