"""The streamed cross-entropy against the plain one, and what levels mean."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from timegrain import losses
from timegrain.losses import Level, TeGLoss, embedding_spread, info_nce, levels_for_alpha


def plain(queries, keys, positives, ignored, temperature):
    logits = queries @ keys.T / temperature
    if ignored is not None:
        mask = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, ignored, True)
        mask[torch.arange(len(queries)), positives] = False
        logits = logits.masked_fill(mask, -torch.inf)
    return F.cross_entropy(logits, positives)


@given(
    st.integers(1, 40),
    st.integers(2, 30),
    st.integers(0, 4),
    st.integers(1, 13),
    st.floats(0.05, 2),
    st.integers(0, 99),
)
def test_streamed_equals_plain_with_gradients(num_queries, num_keys, num_ignored, block, temperature, seed):
    generator = torch.Generator().manual_seed(seed)
    queries = torch.randn(num_queries, 5, dtype=torch.float64, generator=generator).requires_grad_()
    keys = torch.randn(num_keys, 5, dtype=torch.float64, generator=generator).requires_grad_()
    positives = torch.randint(num_keys, (num_queries,), generator=generator)
    ignored = torch.randint(num_keys, (num_queries, num_ignored), generator=generator) if num_ignored else None
    old, losses._StreamedCrossEntropy.BLOCK = losses._StreamedCrossEntropy.BLOCK, block
    try:
        loss, accuracy = info_nce(queries, keys, positives, ignored, temperature)
    finally:
        losses._StreamedCrossEntropy.BLOCK = old
    expected = plain(queries, keys, positives, ignored, temperature)
    torch.testing.assert_close(loss, expected)
    ours = torch.autograd.grad(3 * loss, (queries, keys))
    theirs = torch.autograd.grad(3 * expected, (queries, keys))
    torch.testing.assert_close(ours, theirs)
    assert 0 <= float(accuracy) <= 1


def test_float32_and_bfloat16_inputs_are_scored_in_float32():
    generator = torch.Generator().manual_seed(0)
    short = F.normalize(torch.randn(600, 128, generator=generator), dim=1)
    long = F.normalize(torch.randn(900, 128, generator=generator), dim=1)
    positives = torch.arange(600)
    for temperature in (0.01, 0.1):  # at 0.01 scores lie up to 200 apart
        pairs = [tuple(x.detach().to(dtype).requires_grad_() for x in (short, long)) for dtype in (None, torch.float64)]
        single, exact = (
            info_nce(*pairs[0], positives, None, temperature)[0],
            plain(*pairs[1], positives, None, temperature),
        )
        assert float((single - exact).detach().abs()) < 1e-6 * max(1, float(exact.detach()))
        found, expected = torch.autograd.grad(single, pairs[0]), torch.autograd.grad(exact, pairs[1])
        for ours, theirs in zip(found, expected, strict=True):
            assert float((ours - theirs).norm()) < 1e-6 * float(theirs.norm()) * max(1, 0.1 / temperature)
    exact = exact.detach()
    low = info_nce(short.bfloat16(), long.bfloat16(), positives)[0]
    assert low.dtype == torch.float32
    assert abs(float(low - exact)) < 5e-3


def test_alpha_gives_the_two_levels_of_the_paper():
    fine, persistent = levels_for_alpha(0.9)
    assert (fine.num_short, fine.num_long, fine.weight, fine.head) == (1, 4, 0.9, "fine")
    assert (persistent.num_short, persistent.num_long, persistent.head) == (1, 1, "persistent")
    assert persistent.weight == pytest.approx(0.1)
    assert [level.head for level in levels_for_alpha(0.0)] == ["persistent"]
    assert [level.head for level in levels_for_alpha(1.0)] == ["fine"]
    with pytest.raises(ValueError, match="between 0"):
        levels_for_alpha(-0.1)
    with pytest.raises(ValueError, match="weight must be 0 or more, got inf"):
        Level(weight=math.inf)


def test_equal_embeddings_give_the_chance_loss():
    loss = TeGLoss([Level(2, 4, 1.0, "fine")])
    same = {"fine": torch.ones(6, 8, 16)}
    results = loss(same, same, torch.arange(16).expand(6, 16), torch.arange(16).expand(6, 16))
    assert float(results["fine/num_negatives"]) == 20
    assert float(results["fine/chance_loss"]) == pytest.approx(math.log(21))
    assert float(results["loss"]) == pytest.approx(math.log(21), abs=1e-5)
    assert float(results["fine/spread"]) == 0


def test_several_levels_may_share_a_head():
    pyramid = TeGLoss([Level(1, m, 0.25, "fine") for m in (1, 2, 4, 8)])
    assert pyramid.names() == ["fine_1x1", "fine_1x2", "fine_1x4", "fine_1x8"]
    assert pyramid.heads == ("fine",)
    twins = TeGLoss([Level(1, 4), Level(1, 4, same_video_negatives=True)])
    assert twins.names() == ["fine_1x4_0", "fine_1x4_1"]
    with pytest.raises(ValueError, match="num_long = 8"):
        pyramid.check_steps(4, 4)
    with pytest.raises(ValueError, match="at least one level"):
        TeGLoss([Level(weight=0.0)])


def test_spread_is_one_for_directions_that_cancel():
    assert float(embedding_spread(F.normalize(torch.randn(5000, 1, 64), dim=-1))) == pytest.approx(1, abs=0.01)
