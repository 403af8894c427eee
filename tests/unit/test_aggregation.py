"""Pooling to n embeddings, their positions, and the matching of nearest mean frame index."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from timegrain.aggregation import aggregate, match_nearest, time_step_positions


@given(st.integers(1, 16), st.data())
def test_every_segment_is_a_mean_of_whole_steps(steps, data):
    num = data.draw(st.integers(1, steps))
    features = torch.randn(2, steps, 3, dtype=torch.float64)
    pooled = aggregate(features, num)
    assert pooled.shape == (2, num, 3)
    for segment in range(num):
        first, end = segment * steps // num, -(-(segment + 1) * steps // num)
        torch.testing.assert_close(pooled[:, segment], features[:, first:end].mean(1))


@pytest.mark.parametrize("num", [0, 9])
def test_impossible_number_is_a_clear_error(num):
    with pytest.raises(ValueError, match="between 1 and 8"):
        aggregate(torch.zeros(1, 8, 2), num)


def test_positions_are_means_of_the_covered_frames():
    indices = torch.arange(16)[None] * 4 + 100
    torch.testing.assert_close(time_step_positions(indices, 8)[0], 102.0 + 8 * torch.arange(8).double())


def test_paper_defaults_match_the_segment_that_holds_the_short_clip():
    """m = 4 segments of 32 source frames: a short clip (32 frames) starting at 40 is centred at 55, in segment 1."""
    long = aggregate(time_step_positions(torch.arange(32)[None] * 4, 16)[..., None], 4)[..., 0]
    for start, segment in [(0, 0), (40, 1), (62, 2), (94, 3)]:
        short = aggregate(time_step_positions(start + torch.arange(16)[None] * 2, 8)[..., None], 1)[..., 0]
        assert match_nearest(short, long).item() == segment


def test_ties_go_to_the_earlier():
    assert match_nearest(torch.tensor([[5.0, 7.0]]), torch.tensor([[4.0, 6.0, 8.0]])).tolist() == [[0, 1]]


@given(st.integers(1, 6), st.integers(1, 8), st.integers(0, 10**6), st.integers(0, 2**31))
def test_matching_does_not_change_when_time_is_shifted(n, m, shift, seed):
    generator = torch.Generator().manual_seed(seed)
    short = torch.randint(0, 500, (3, n), generator=generator).double().sort(1).values
    long = torch.randint(0, 500, (3, m), generator=generator).double().sort(1).values
    matches = match_nearest(short, long)
    assert torch.equal(matches, match_nearest(short + shift, long + shift))
    distance = (short[:, :, None] - long[:, None]).abs()
    assert torch.equal(distance.gather(2, matches[..., None])[..., 0], distance.min(2).values)
