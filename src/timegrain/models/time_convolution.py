"""Convolutions that look at one place of a picture only (kernels k x 1 x 1) as matrix products, for CPUs.

PyTorch's own way copies every input k times (or into another layout and back) before it multiplies; over a strided grid
it multiplies in a generic kernel at a quarter of the processor's speed. Here the products read the input where it lies.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

_FEWEST_PLACES = 64  # T·H·W from which the products are quicker where nothing is passed over


def suits_products(x: Tensor, kernel_size: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    """Whether :func:`convolve_by_products` computes this convolution, and quicker than PyTorch's."""
    return (
        x.device.type == "cpu"
        and kernel_size[1:] == (1, 1)
        and (kernel_size[0] == 1 or stride[0] == 1)
        and x.dtype in (torch.float32, torch.float64)
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and (max(stride) > 1 or x[0, 0].numel() >= _FEWEST_PLACES)
    )


def convolve_by_products(
    x: Float[Tensor, "b c t h w"], weight: Float[Tensor, "d c k 1 1"], stride: tuple[int, ...]
) -> Float[Tensor, "b d t2 h2 w2"]:
    """Convolve with k // 2 zeros before and after the clip, as F.conv3d does but for rounding; k is odd.

    Args:
        x: (B, C, T, H, W) on the CPU.
        weight: (D, C, k, 1, 1).
        stride: (T, H, W), 1 along time if k is not 1.
    """
    out: Tensor = _Products.apply(x, weight, tuple(slice(None, None, step) for step in stride))
    return out


def _shifts(num_shifts: int, length: int, places: int) -> Iterator[tuple[int, slice, slice]]:
    """Each slice of the kernel, the outputs it adds to and the inputs it sees, both along the flat axis (T·H·W).

    The middle slice, which reaches all outputs, comes first.
    """
    for shift in sorted(range(num_shifts), key=lambda shift: abs(shift - num_shifts // 2)):
        offset = shift - num_shifts // 2
        if abs(offset) < length:
            outputs = slice(max(-offset, 0) * places, (length - max(offset, 0)) * places)
            inputs = slice(max(offset, 0) * places, (length - max(-offset, 0)) * places)
            yield shift, outputs, inputs


class _Products(torch.autograd.Function):
    """The convolution, and its gradients, as products of matrices (D, C) and (C, T·H·W), one per video and slice."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, grid: tuple[slice, ...]) -> Tensor:
        seen = x[:, :, *grid].contiguous()
        batch, _, length, height, width = seen.shape
        ctx.save_for_backward(seen, weight)
        ctx.grid, ctx.shape = grid, x.shape
        flat, slices = seen.flatten(2), _slices(weight)
        out = x.new_empty(batch, len(weight), flat.shape[2])
        for shift, outputs, inputs in _shifts(len(slices), length, height * width):
            _add_product(out[..., outputs], slices[shift], flat[..., inputs], is_first=shift == len(slices) // 2)
        return out.reshape(batch, len(weight), length, height, width)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        seen, weight = ctx.saved_tensors
        length, height, width = seen.shape[2:]
        flat, gradient = seen.flatten(2), gradients[0].contiguous().flatten(2)
        slices = _slices(weight)
        to_x, to_weight = None, None
        if ctx.needs_input_grad[0]:
            to_seen = torch.empty_like(seen)
            for shift, outputs, inputs in _shifts(len(slices), length, height * width):
                target = to_seen.flatten(2)[..., inputs]
                _add_product(target, slices[shift].T, gradient[..., outputs], is_first=shift == len(slices) // 2)
            to_x = to_seen
            if to_seen.shape != ctx.shape:
                to_x = seen.new_zeros(ctx.shape)
                to_x[:, :, *ctx.grid] = to_seen
        if ctx.needs_input_grad[1]:
            to_slices = weight.new_empty(len(slices), *weight.shape[:2])
            if len(slices) > 2 * length - 1:  # some slices see nothing but zeros
                to_slices.zero_()
            for shift, outputs, inputs in _shifts(len(slices), length, height * width):
                pair = gradient[..., outputs], flat[..., inputs].mT
                torch.addbmm(to_slices[shift], *pair, beta=0, out=to_slices[shift])  # summed over the videos
            to_weight = to_slices.movedim(0, 2)[..., None, None].contiguous()
        return to_x, to_weight, None


def _slices(weight: Tensor) -> list[Tensor]:
    return [part.contiguous() for part in weight[..., 0, 0].unbind(2)]


def _add_product(out: Tensor, matrix: Tensor, columns: Tensor, *, is_first: bool) -> None:
    """Add ``matrix @ columns`` to every video of ``out``, or set it."""
    torch.baddbmm(out, matrix.expand(len(out), -1, -1), columns, beta=0 if is_first else 1, out=out)
