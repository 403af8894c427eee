"""The only distributed functions of ours: gathering keys with their gradient."""

from __future__ import annotations

import torch
from jaxtyping import Shaped
from torch import Tensor
from torch import distributed as dist


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
