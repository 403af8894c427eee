"""The arithmetic of `timegrain plan`, and the table of GPUs that it stands on."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.fabric.utilities import throughput

from timegrain.sampling import ClipSpec
from timegrain.tasks.budget import (
    Loading,
    cpu_batch_seconds,
    estimate,
    gpu_step_seconds,
    largest_that_fits,
    stated_loading,
    store_seconds,
)
from timegrain.tasks.config import DataConfig, RunConfig
from timegrain.tasks.hardware import GPUS, find_gpu
from timegrain.tasks.setup import Schedule, length_of, plan

PAPER = (ClipSpec(32, 4), ClipSpec(16, 2))


def weigh(step: tuple[float, float], load: tuple[float, float], cores: float = 10, fits: bool = True):
    schedule = Schedule(global_batch=64, steps=100, steps_per_epoch=10, warmup_steps=5)
    return estimate(step, Loading(load, "made up"), cores, schedule, batch_size=32, accumulate=2, fits=fits)


def test_what_is_slower_is_the_bound_and_sets_the_time():
    quick, slow, wide = (0.1, 0.2), (10.0, 20.0), (0.1, 20.0)
    loading = weigh(quick, (1.0, 2.0))
    assert loading.bound == "loading"
    assert loading.seconds == (200 * 32 * 1.0 / 10, 200 * 32 * 2.0 / 10)  # samples over samples per second
    compute = weigh(slow, (0.001, 0.002))
    assert compute.bound == "compute"
    assert compute.seconds == pytest.approx((200 * 10.0, 200 * 20.0))
    assert compute.compute == (32 / 20, 32 / 10)
    assert compute.cores == pytest.approx((1.6 * 0.001, 3.2 * 0.002))
    assert weigh(wide, (1.0, 1.0)).bound == "loading or compute"
    assert weigh(quick, (0.001, 0.002), fits=False).bound == "memory"


def test_loading_and_training_on_one_cpu():
    load = Loading((0.1, 0.1), "made up", colour_seconds=0.05)
    assert cpu_batch_seconds(2.0, load, 10, cores=1, workers=0) == pytest.approx((3.5, 3.5))  # they take turns
    assert cpu_batch_seconds(2.0, load, 10, cores=1, workers=4) == pytest.approx((3.5, 3.5))  # one core is one core
    assert cpu_batch_seconds(2.0, load, 10, cores=8, workers=4) == pytest.approx((2.5, 2.5))  # beside each other
    assert cpu_batch_seconds(0.1, load, 100, cores=8, workers=1) == pytest.approx((10.0, 10.0))  # one worker


def test_the_stated_costs_are_those_of_the_speed_table():
    loading = stated_loading(PAPER, contained=True)
    assert loading.seconds == pytest.approx((0.0863, 0.1459))
    assert "RESULTS.md" in loading.source
    assert store_seconds(PAPER) == pytest.approx(0.0207)
    apart = stated_loading(PAPER, contained=False)
    assert apart.seconds[0] > loading.seconds[0]
    assert stated_loading((ClipSpec(1, 1),), contained=True).seconds[0] < loading.seconds[0] / 10


@given(
    base=st.floats(0, 1e3), slope=st.floats(0.01, 1e3), room=st.floats(1, 1e6),
    most=st.integers(4, 4096), least=st.sampled_from([2, 4]),
)  # fmt: skip
def test_the_largest_that_fits_fits_and_twice_does_not(base: float, slope: float, room: float, most: int, least: int):
    found = largest_that_fits(lambda size: base + slope * size, room, most, least)
    if found is None:
        assert base + slope * least > room
    else:
        assert base + slope * found <= room
        assert found == least or found <= most
        assert 2 * found > most or base + slope * 2 * found > room - 1.0 * found


def test_gpus_have_sources_and_say_the_same_as_lightning_where_it_means_dense_products():
    assert all(gpu.source and gpu.memory_gib >= 16 for gpu in GPUS.values())
    known = {"h100": "h100 sxm", "h100-pcie": "h100 pcie", "a100-80": "a100", "v100": "v100 sxm", "t4": "t4"}
    for ours, theirs in known.items():
        rates = throughput._CUDA_FLOPS[theirs]
        assert 1e12 * GPUS[ours].half == pytest.approx(rates[torch.float16], rel=0.01), ours
        assert 1e12 * GPUS[ours].fp32 == pytest.approx(rates[torch.float32], rel=0.01), ours
        assert (torch.bfloat16 in rates) == GPUS[ours].bf16, ours


def test_rates_of_a_gpu_are_ranges_of_the_right_peak():
    h100, t4 = find_gpu("H100"), find_gpu("t4")
    low, high, words = h100.rate("bf16-mixed")
    assert (low, high) == pytest.approx((0.15 * 989.5e12, 0.30 * 989.5e12))
    assert "15% to 30%" in words
    assert h100.rate("32-true")[1] == pytest.approx(0.30 * 494.5e12)
    assert t4.rate("32-true")[1] == pytest.approx(0.60 * 8.1e12)
    assert gpu_step_seconds(1e15, h100, "bf16-mixed") == pytest.approx((1e15 / high, 1e15 / low))
    assert find_gpu("a100") is GPUS["a100-80"]
    assert 0.85 < t4.usable_bytes() / (16 * 2**30) * 1.08 < 1
    with pytest.raises(ValueError, match=r"--gpu h10: not in the table\. Did you mean h100\?"):
        find_gpu("h10")


def test_an_epoch_ends_with_a_step_that_its_last_batches_do_not_fill():
    """As the engine does it: 10 batches in threes are 4 steps, of which the last has one batch."""
    run = RunConfig(accumulate=3, epochs=10, warmup_epochs=2)
    whole = plan(DataConfig(batch_size=4), run, num_videos=40)
    assert (whole.steps, whole.epoch_steps, whole.epochs, whole.warmup_steps, whole.samples) == (40, 4, 10, 8, 400)
    assert length_of(4, 10, replace(run, steps=6)).samples == 40 + 24
