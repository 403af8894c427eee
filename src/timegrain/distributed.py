"""What lets a contrastive batch outgrow one device: gathering keys with their gradient, and gradient caching.

Gradient caching (Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", RepL4NLP 2021):
the network runs a few clips at a time and keeps nothing but their embeddings, the loss sees the whole batch, and the
backward pass runs the network a second time. Here it is activation checkpointing of each chunk's forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


class _Gather(torch.autograd.Function):
    """All-gather whose backward sums, over processes, what each has sent back to this process's rows."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, local: Tensor) -> Tensor:
        parts = [torch.empty_like(local) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, local.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor) -> Tensor:
        # A copy: autograd may hand the same tensor to other branches, and the sum is made in place.
        gradient = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return gradient.chunk(dist.get_world_size())[dist.get_rank()]


def rank() -> int:
    """This process's number, 0 without a process group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes, 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gather_with_gradient(local: Shaped[Tensor, "batch *rest"]) -> Shaped[Tensor, "global_batch *rest"]:
    """Rows of all processes in rank order; gradients flow back to the process that owns a row.

    With each process's loss a mean over its own queries, and gradients averaged over processes (as DDP does), the
    result is the gradient of one process on the joined batch.

    Args:
        local: This process's rows; every process must bring the same shape.
    """
    if world_size() == 1:
        return local
    gathered: Tensor = _Gather.apply(local)
    return gathered


class RowsOnDemand:
    """Rows of a batch that are made when they are used, and again in the backward pass, instead of being kept.

    Args:
        length: Number of rows.
        make: From a slice to those rows; the same rows each time.
    """

    def __init__(self, length: int, make: Callable[[slice], Tensor]) -> None:
        self._length, self._make = length, make

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, rows: slice) -> Tensor:
        return self._make(rows)


def chunk_rows(length: int, chunk_size: int) -> list[slice]:
    """Cut a batch into the fewest chunks of at most ``chunk_size`` rows; their lengths differ by one at most.

    Example:
        >>> chunk_rows(10, 4)
        [slice(0, 4, None), slice(4, 7, None), slice(7, 10, None)]
    """
    number = -(-length // chunk_size)
    share, longer = divmod(length, number)
    starts = [place * share + min(place, longer) for place in range(number + 1)]
    return [slice(start, stop) for start, stop in pairwise(starts)]


def in_chunks(
    function: Callable[..., dict[str, Tensor]],
    inputs: Sequence[Tensor | RowsOnDemand],
    chunk_size: int | None,
    module: nn.Module,
) -> dict[str, Tensor]:
    """``function(*inputs)``, a few rows at a time; of each chunk only the result is kept for the backward pass.

    Values and gradients are those of running chunk by chunk with everything kept, to the last bit. Batch norms in
    training mode take their statistics of each chunk by itself, and each chunk moves their running statistics once.

    Args:
        function: From rows of the inputs to tensors with one row each, by name.
        inputs: All of the same length.
        chunk_size: Rows at once; None, or a number that is not below the length, runs the whole at once and keeps it.
        module: Holds every norm that ``function`` uses.
    """
    if chunk_size is None or len(inputs[0]) <= chunk_size:
        return function(*(rows[:] for rows in inputs))

    def run(chunk: slice) -> dict[str, Tensor]:
        return function(*(rows[chunk] for rows in inputs))

    parts = [recomputed(run, module, chunk) for chunk in chunk_rows(len(inputs[0]), chunk_size)]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def recomputed(function: Callable[..., Any], module: nn.Module, *inputs: Any) -> Any:
    """``function(*inputs)``, keeping only the inputs; the backward pass runs it a second time.

    Args:
        function: Draws no random numbers.
        module: Holds every norm that ``function`` uses; the second run leaves their running statistics alone.
        *inputs: What is kept.
    """
    if not torch.is_grad_enabled():
        return function(*inputs)
    if torch.compiler.is_compiling():  # the compiler recomputes values, not the update of the running statistics
        return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _running_statistics_kept(module)

    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)


@contextmanager
def _running_statistics_kept(module: nn.Module) -> Iterator[None]:
    """Inside, batch norms in training mode leave their running statistics as they are."""
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm)]
    before = [(m.momentum, None if m.num_batches_tracked is None else m.num_batches_tracked.clone()) for m in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum = momentum
            if norm.num_batches_tracked is not None and count is not None:
                norm.num_batches_tracked.copy_(count)
