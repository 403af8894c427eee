"""Eq. 1-3 of the package against the slow loops of ``plain_teg``."""

from __future__ import annotations

import math

import numpy as np
import plain_teg
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from timegrain.losses import Level, TeGLoss, levels_for_alpha
from timegrain.models.hub import EncoderConfig, VideoEncoder
from timegrain.objectives.teg import TeG
from timegrain.sampling import SAMPLERS, ClipSpec, pair_specs

CHANNELS = 6
LONG, SHORT = ClipSpec(16, 4), ClipSpec(8, 2)


class Batch:
    """Projections of both heads for both clips of some videos, and frame positions drawn by a sampler."""

    def __init__(
        self,
        seed: int,
        videos: int,
        long: ClipSpec = LONG,
        short: ClipSpec = SHORT,
        sampler: str = "long_short_contained",
    ) -> None:
        rng = np.random.default_rng(seed)
        # Some videos are shorter than the long clip: they loop, and positions keep counting.
        pairs = [
            SAMPLERS[sampler](int(rng.integers(20, 200)), pair_specs(sampler, long, short), rng) for _ in range(videos)
        ]
        self.long_indices = np.stack([pair[0] for pair in pairs])
        self.short_indices = np.stack([pair[1] for pair in pairs])
        shape = {"long": (videos, self.long_indices.shape[1] // 2, CHANNELS)}
        shape["short"] = (videos, self.short_indices.shape[1] // 2, CHANNELS)
        self.projections = {
            (clip, head): rng.normal(size=shape[clip]) for clip in ("long", "short") for head in ("fine", "persistent")
        }

    def tensors(self, clip: str) -> dict[str, Tensor]:
        return {head: torch.tensor(self.projections[clip, head]) for head in ("fine", "persistent")}

    def ours(self, loss: TeGLoss) -> dict[str, Tensor]:
        short, long = torch.tensor(self.short_indices), torch.tensor(self.long_indices)
        return loss(self.tensors("short"), self.tensors("long"), short, long)

    def plain(self, level: Level, temperature: float) -> plain_teg.Result:
        return plain_teg.level_loss(
            self.projections["short", level.head],
            self.projections["long", level.head],
            self.short_indices,
            self.long_indices,
            level.num_short,
            level.num_long,
            temperature,
            level.same_video_negatives,
            level.symmetric,
        )


def check(batch: Batch, loss: TeGLoss) -> None:
    """Every number that the loss reports, and their weighted sum."""
    ours, total = batch.ours(loss), 0.0
    for name, level in zip(loss.names(), loss.levels, strict=True):
        plain = batch.plain(level, loss.temperature)
        total += level.weight * plain.loss
        assert float(ours[f"{name}/loss"]) == pytest.approx(plain.loss, rel=1e-11, abs=1e-12)
        assert float(ours[f"{name}/accuracy"]) == pytest.approx(plain.accuracy)
        assert int(ours[f"{name}/num_negatives"]) == plain.num_negatives
        assert float(ours[f"{name}/chance_loss"]) == pytest.approx(math.log(1 + plain.num_negatives))
    assert float(ours["loss"]) == pytest.approx(total, rel=1e-11, abs=1e-12)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.9, 1.0])
@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 4), (2, 4), (4, 8), (3, 5), (4, 3), (1, 8)])
@pytest.mark.parametrize("videos", [1, 2, 5])
def test_eq_1_to_3(n: int, m: int, alpha: float, videos: int) -> None:
    check(Batch(seed=100 * n + 10 * m + videos, videos=videos), TeGLoss(levels_for_alpha(alpha, n, m)))


@given(
    seed=st.integers(0, 10**6),
    videos=st.integers(1, 4),
    n=st.integers(1, 4),
    m=st.integers(1, 8),
    temperature=st.floats(0.05, 1.0),
    same_video_negatives=st.booleans(),
    symmetric=st.booleans(),
    sampler=st.sampled_from(sorted(SAMPLERS)),
)
@settings(max_examples=80)
def test_every_option(
    seed: int,
    videos: int,
    n: int,
    m: int,
    temperature: float,
    same_video_negatives: bool,
    symmetric: bool,
    sampler: str,
) -> None:
    both = {"same_video_negatives": same_video_negatives, "symmetric": symmetric}
    # The short-short samplers give two clips of the short shape: 4 time steps each.
    m = min(m, 4) if sampler.startswith("short") or "cvrl" in sampler else m
    levels = [Level(n, m, 0.7, "fine", **both), Level(1, 1, 0.2, "persistent", **both), Level(m, m, 0.1, "persistent")]
    levels = levels if m <= 4 and m != 1 else levels[:2]
    check(Batch(seed, videos, sampler=sampler), TeGLoss(levels, temperature))


@pytest.mark.parametrize(
    ("long", "short", "n", "m"),
    [
        (ClipSpec(32, 4), ClipSpec(16, 2), 1, 4),  # the paper's VidSitu and K400 setting
        (ClipSpec(32, 4), ClipSpec(16, 2), 8, 16),  # every time step
        (ClipSpec(16, 4), ClipSpec(8, 2), 1, 2),
        (ClipSpec(6, 1), ClipSpec(2, 1), 1, 3),
    ],
)
def test_clip_shapes(long: ClipSpec, short: ClipSpec, n: int, m: int) -> None:
    check(Batch(3, 4, long, short), TeGLoss(levels_for_alpha(0.9, n, m)))


def test_ties_go_to_the_earlier_long_embedding() -> None:
    """A short clip centred between two long embeddings: the reference and the package choose the first."""
    batch = Batch(0, 3)
    batch.long_indices = np.tile(np.arange(16) * 4, (3, 1))
    batch.short_indices = np.tile(23 + 2 * np.arange(8), (3, 1))  # centre 30, between 14 and 46
    assert plain_teg.positions(list(batch.short_indices[0]), 4, 1) == [30]
    assert plain_teg.positions(list(batch.long_indices[0]), 8, 2) == [14, 46]
    assert plain_teg.nearest(plain_teg.Fraction(30), [plain_teg.Fraction(14), plain_teg.Fraction(46)]) == 0
    check(batch, TeGLoss([Level(1, 2)]))


def test_collapsed_embeddings_are_not_accurate() -> None:
    """Where all scores are equal no positive is found; that must not be reported as finding every one."""
    batch = Batch(0, 5)
    batch.projections = {key: np.ones_like(value) for key, value in batch.projections.items()}
    ours = batch.ours(TeGLoss(levels_for_alpha(0.9, 2, 4)))
    for name in ("fine", "persistent"):
        assert float(ours[f"{name}/accuracy"]) <= 1 / 5
        assert float(ours[f"{name}/loss"]) == pytest.approx(float(ours[f"{name}/chance_loss"]))
        assert float(ours[f"{name}/spread"]) == pytest.approx(0, abs=1e-7)


def test_gradient_is_the_slope_of_the_plain_loss() -> None:
    """Central differences of the loops, along random directions, against backpropagation through the package."""
    batch, loss = Batch(7, 3), TeGLoss([Level(2, 4, 0.6, "fine", symmetric=True), Level(1, 1, 0.4, "persistent")])
    short, long = batch.tensors("short"), batch.tensors("long")
    leaves = {("short", h): short[h].requires_grad_() for h in short} | {
        ("long", h): long[h].requires_grad_() for h in long
    }
    total = loss(short, long, torch.tensor(batch.short_indices), torch.tensor(batch.long_indices))["loss"]
    gradients = dict(zip(leaves, torch.autograd.grad(total, list(leaves.values())), strict=True))
    rng, start, step = np.random.default_rng(0), dict(batch.projections), 1e-5
    for key, gradient in gradients.items():
        direction = rng.normal(size=start[key].shape)
        ends = []
        for sign in (1, -1):
            batch.projections = {**start, key: start[key] + sign * step * direction}
            ends.append(sum(level.weight * batch.plain(level, loss.temperature).loss for level in loss.levels))
        slope = (ends[0] - ends[1]) / (2 * step)
        assert float((gradient * torch.tensor(direction)).sum()) == pytest.approx(slope, rel=1e-6)


def tiny_encoder(seed: int = 0) -> VideoEncoder:
    torch.manual_seed(seed)
    config = EncoderConfig(
        backbone="r3d_tiny",
        backbone_options={"width": 4, "stem_width": 4},
        head_hidden=8,
        head_num_hidden=1,
        head_out=5,
    )
    return VideoEncoder(config).double()


def clip_batch(videos: int = 3) -> dict[str, Tensor]:
    batch, generator = Batch(11, videos), torch.Generator().manual_seed(1)
    return {
        "long_clip": torch.rand(videos, 3, 16, 16, 16, dtype=torch.float64, generator=generator),
        "short_clip": torch.rand(videos, 3, 8, 16, 16, dtype=torch.float64, generator=generator),
        "long_indices": torch.tensor(batch.long_indices),
        "short_indices": torch.tensor(batch.short_indices),
    }


def run(teg: TeG, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    clips = [batch[f"{name}_clip"] for name in ("long", "short")]
    return teg(clips, [batch[f"{name}_indices"] for name in ("long", "short")])


@pytest.mark.parametrize("alpha", [0.3, 0.9])
def test_teg_from_clips_to_loss(alpha: float) -> None:
    """Network, heads, aggregation and loss: each time step is projected before anything is pooled over time."""
    encoder, batch = tiny_encoder(), clip_batch()
    levels = levels_for_alpha(alpha, num_short=2, num_long=4)
    ours = run(TeG(encoder, levels), batch)
    total = 0.0
    for level in levels:
        with torch.no_grad():
            short, long = (
                encoder.embed(encoder(batch[f"{clip}_clip"]), level.head).numpy() for clip in ("short", "long")
            )
        assert short.shape == (3, 4, 5)
        assert long.shape == (3, 8, 5)
        plain = plain_teg.level_loss(
            short,
            long,
            batch["short_indices"].numpy(),
            batch["long_indices"].numpy(),
            level.num_short,
            level.num_long,
            0.1,
        )
        assert float(ours[f"{level.head}/loss"]) == pytest.approx(plain.loss, rel=1e-10)
        total += level.weight * plain.loss
    assert ours["loss"].item() == pytest.approx(total, rel=1e-10)


@pytest.mark.parametrize("alpha", [0.1, 0.5, 0.9])
def test_one_embedding_and_shared_heads_make_both_losses_one(alpha: float) -> None:
    """The paper: with n = m = 1 fine-grained learning is persistent learning."""
    encoder = tiny_encoder()
    encoder.heads["persistent"] = encoder.heads["fine"]
    ours = run(TeG(encoder, levels_for_alpha(alpha, num_short=1, num_long=1)), clip_batch())
    assert float(ours["fine/loss"]) == pytest.approx(float(ours["persistent/loss"]), rel=1e-14)
    assert ours["loss"].item() == pytest.approx(float(ours["fine/loss"]), rel=1e-14)


@pytest.mark.parametrize(
    ("levels", "idle"),
    [
        (levels_for_alpha(0.0), "fine"),
        (levels_for_alpha(1.0), "persistent"),
        ((Level(1, 4, 0.0, "fine"), Level(1, 1, 1.0, "persistent")), "fine"),
    ],
)
def test_a_level_of_weight_0_is_not_run(levels: tuple[Level, ...], idle: str) -> None:
    encoder = tiny_encoder()
    runs = []
    encoder.heads[idle].register_forward_hook(lambda *_: runs.append(idle))
    ours = run(TeG(encoder, levels), clip_batch())
    ours["loss"].backward()
    assert runs == []
    assert not any(name.startswith(idle) for name in ours)
    assert all(parameter.grad is None for parameter in encoder.heads[idle].parameters())
    norms = [layer for layer in encoder.heads[idle].modules() if isinstance(layer, nn.BatchNorm1d)]
    assert [int(norm.num_batches_tracked) for norm in norms] == [0]
    busy = next(head for head in ("fine", "persistent") if head != idle)
    assert all(parameter.grad is not None for parameter in encoder.heads[busy].parameters())


@pytest.mark.parametrize(("n", "m", "name"), [(5, 4, "num_short"), (1, 9, "num_long")])
def test_more_embeddings_than_time_steps_are_refused(n: int, m: int, name: str) -> None:
    loss = TeGLoss([Level(n, m)])
    with pytest.raises(ValueError, match=f"{name} = {max(n, m) if name == 'num_long' else n} is not possible"):
        loss.check_steps(4, 8)
    with pytest.raises(ValueError, match="is not possible"):
        Batch(0, 2).ours(loss)
