"""On which batches a step is timed."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from timegrain.tasks.step_timing import fit_step_time


class Step:
    """A step that only notes how many videos it is given."""

    def __init__(self, is_compiled: bool) -> None:
        self.is_compiled, self.device, self.objective = (
            is_compiled,
            torch.device("cpu"),
            SimpleNamespace(chunk_size=None),
        )
        self.sizes: list[int] = []

    def of_noise(self, batch_size: int) -> tuple[list[int], list[int]]:
        return [batch_size], []

    def __call__(self, clips: list[int], indices: list[int]) -> None:
        self.sizes += clips


@pytest.mark.parametrize(("is_compiled", "sizes"), [(False, {4, 16}), (True, {16})])
def test_a_compiled_step_is_timed_on_the_runs_own_batch_alone(is_compiled: bool, sizes: set[int]):
    """Code for another size would be made for nothing: the compiler takes a minute for each."""
    step = Step(is_compiled)
    assert set(fit_step_time(step, 16, 0.05).measured) == set(step.sizes) == sizes
