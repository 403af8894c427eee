"""Batches as a pure function of (seed, epoch, position): over processes, workers and restarts."""

from __future__ import annotations

from functools import partial
from itertools import chain, islice, repeat

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import Dataset

from timegrain.data.loading import EpochBatchSampler, ResumableLoader, at_batch_size, epoch_order


class Draws(Dataset[tuple[int, int, float]]):
    """A sample is (epoch, index, a draw keyed by both)."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, key: tuple[int, int]) -> tuple[int, int, float]:
        return (*key, float(np.random.default_rng([3, *key]).random()))


def loader(length=23, batch=4, workers=0, rank=0, world=1, seed=1, samples=1) -> ResumableLoader:
    sampler = EpochBatchSampler(length, batch, seed, rank, world)
    collate = list if samples == 1 else partial(several, samples)
    return ResumableLoader(Draws(length), sampler, collate, workers, batches_per_visit=samples)


def several(number: int, items: list) -> list[list]:
    """A batch for each sample of a visit."""
    return [[(*item, sample) for item in items] for sample in range(number)]


def passes(loader: ResumableLoader, number: int) -> list:
    return [list(loader) for _ in range(number)]


@given(st.integers(1, 200), st.integers(1, 16), st.integers(1, 4), st.integers(0, 5), st.integers(0, 3))
def test_processes_share_the_batch_of_one_process(length, batch, world, seed, epoch):
    if length < batch * world:
        with pytest.raises(ValueError, match="do not fill one batch"):
            EpochBatchSampler(length, batch, seed, 0, world)
        return
    samplers = [EpochBatchSampler(length, batch, seed, rank, world) for rank in range(world)]
    joined = EpochBatchSampler(length, batch * world, seed)
    for sampler in (*samplers, joined):
        sampler.set_position(epoch)
    parts = list(zip(*samplers, strict=True))
    assert [[key for keys in part for key in keys] for part in parts] == list(joined)
    seen = [index for part in parts for keys in part for _, index in keys]
    assert len(set(seen)) == len(seen) == length // (batch * world) * batch * world


def test_a_batch_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least 1 video; the batch size is 0"):
        EpochBatchSampler(8, 0)


def test_epochs_differ_and_repeat():
    first, second, third = passes(loader(), 3)
    assert [{epoch for batch in one for epoch, _, _ in batch} for one in (first, second, third)] == [{0}, {1}, {2}]
    assert len({str([[index for _, index, _ in batch] for batch in one]) for one in (first, second, third)}) == 3
    assert passes(loader(), 3) == [first, second, third]
    assert passes(loader(seed=2), 1) != [first]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop", [1, 3, 5, 7])
def test_a_restored_loader_goes_on_behind_the_batches_handed_out(workers, stop):
    whole = [batch for one in passes(loader(), 3) for batch in one]
    before = loader(workers=workers)
    head = list(islice(chain.from_iterable(repeat(before)), stop))
    state = before.state_dict()
    assert (state["epoch"], state["consumed"]) == divmod(stop, 5)
    assert (state["batch_size"], state["world_size"], state["batches_per_visit"]) == (4, 1, 1)
    after = loader(workers=workers)
    after.load_state_dict(state)
    assert after.state_dict() == state
    tail = passes(after, 3 - stop // 5)
    assert head + [batch for one in tail for batch in one] == whole
    assert len(tail[0]) == 5 - stop % 5


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop", [1, 3, 6, 14, 15, 16])
def test_visits_of_several_samples_can_be_stopped_inside(workers, stop):
    whole = [batch for one in passes(loader(samples=3), 2) for batch in one]
    assert len(loader(samples=3)) == 15
    assert len(whole) == 30
    assert [[item[:-1] for item in batch] for batch in whole[::3]] == [
        batch for one in passes(loader(), 2) for batch in one
    ]
    before = loader(workers=workers, samples=3)
    head = list(islice(chain.from_iterable(repeat(before)), stop))
    after = loader(workers=workers, samples=3)
    after.load_state_dict(before.state_dict())
    assert (before.state_dict()["epoch"], before.state_dict()["consumed"]) == divmod(stop, 15)
    assert head + [batch for one in passes(after, 2 - stop // 15) for batch in one] == whole


def test_processes_share_visits_of_several_samples():
    parts = zip(*(list(loader(batch=2, rank=rank, world=2, samples=3)) for rank in range(2)), strict=True)
    assert [[*first, *second] for first, second in parts] == list(loader(batch=4, samples=3))


@given(
    st.integers(40, 200), st.tuples(st.integers(1, 8), st.integers(1, 4)), st.tuples(st.integers(1, 8), st.integers(1, 4)),
    st.integers(1, 3), st.integers(0, 60),
)  # fmt: skip
def test_other_batches_go_on_in_the_same_order(length, before, now, accumulate, stop):
    """No sample twice in an epoch, none out of order, fewer than one step's left out; equal batches stay equal."""
    (old_size, old_world), (size, world) = before, now
    olds = [loader(length, old_size, rank=rank, world=old_world) for rank in range(old_world)]
    per_epoch = len(olds[0])
    stop = min(stop, 2 * per_epoch)
    state = olds[0].state_dict() | dict(zip(("epoch", "consumed"), divmod(stop, per_epoch), strict=True))
    news = [loader(length, size, rank=rank, world=world) for rank in range(world)]
    for new in news:
        new.load_state_dict(at_batch_size(state, size, world, len(new), accumulate))
    epoch, consumed = divmod(stop, per_epoch)
    order = epoch_order(1, epoch, length).tolist()
    seen = order[: consumed * old_size * old_world]
    rest = [[sample for part in parts for sample in part] for parts in zip(*(list(new) for new in news), strict=True)]
    indices = [index for batch in rest for _, index, _ in batch]
    if rest[0][0][0] == epoch:
        start = length - len(order[order.index(indices[0]) :])
        assert indices == order[start : start + len(indices)]
        assert 0 <= start - len(seen) < size * world * accumulate
        assert start % (size * world * accumulate) == 0
    else:  # what was left does not fill a step
        assert rest[0][0][0] == epoch + 1
        assert indices == epoch_order(1, epoch + 1, length)[: len(indices)].tolist()
        assert length - len(seen) < size * world * (accumulate + 1)
    if size * world == old_size * old_world and consumed % accumulate == 0:
        assert news[0].epoch == epoch
        assert indices == order[len(seen) : len(rest) * size * world + len(seen)]


@given(
    st.integers(40, 120),
    st.integers(1, 12),
    st.integers(1, 12),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(0, 100),
)
def test_no_sample_of_a_visit_comes_twice_at_another_batch_size(length, before, now, samples, accumulate, stop):
    """Each sample of a visited video comes once at most; left out are a visit, a step and the end of the epoch."""
    old = loader(length, before, samples=samples)
    head = list(islice(iter(old), stop % len(old)))
    new = loader(length, now, samples=samples)
    new.load_state_dict(at_batch_size(old.state_dict(), now, 1, len(new), accumulate))
    tail = list(new)
    seen = [item for batch in head + tail for item in batch if item[0] == 0]
    assert len(seen) == len(set(seen))
    if tail[0][0][0] == 0:
        lost = samples * length - len(seen)
        whole = np.lcm(accumulate, samples) if before != now else accumulate
        assert lost < samples * before + whole * now + samples * now
        if before == now and len(head) % accumulate == 0:
            assert head + tail == list(loader(length, now, samples=samples))


def test_a_state_without_its_epoch_is_refused():
    with pytest.raises(ValueError, match="every epoch on the clips of the first"):
        loader().load_state_dict({"consumed": 3})


def test_order_does_not_touch_the_global_generators():
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    passes(loader(), 2)
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()  # noqa: NPY002
