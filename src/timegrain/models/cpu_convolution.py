"""Convolutions on CPUs: channels-last throughout, and as matrix products where those are quicker than PyTorch's own way.

With the channels of a place side by side, norms and pooling are several times quicker, oneDNN's convolutions are nearer
to the processor's speed, and a kernel k x 1 x 1 is k products that read the input where it lies. What is slow there is
the gradient of wider kernels: it is one product for each place of the kernel. The first convolution of a network turns
the clips to this layout, and it stays.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

LAYOUT = torch.channels_last_3d
_FEWEST_CHANNELS = 32  # of the input, from which products make the kernel's gradient quicker than oneDNN
_HAS_ONEDNN = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]


def suits_cpu(x: Tensor) -> bool:
    """Whether :func:`convolve_on_cpu` is for this input: on a CPU, eager, in 32 or 64 bits, where PyTorch has oneDNN."""
    return (
        x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.float64)
        and _HAS_ONEDNN
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


def convolve_on_cpu(
    x: Float[Tensor, "b c t h w"], weight: Float[Tensor, "d c kt kh kw"], stride: Sequence[int], padding: Sequence[int]
) -> Float[Tensor, "b d t2 h2 w2"]:
    """Convolve as F.conv3d does but for rounding; the result is channels-last.

    Args:
        x: (B, C, T, H, W) on the CPU; in another layout than channels-last it is copied.
        weight: (D, C, kT, kH, kW), each k odd; likewise.
        stride: (T, H, W).
        padding: (T, H, W), zeros on both sides.
    """
    kernel = weight.shape[2:]
    is_product = kernel[1:] == (1, 1) and stride[0] == 1 and tuple(padding) == (kernel[0] // 2, 0, 0)
    if is_product or (max(kernel) == 1 and not any(padding)):
        out: Tensor = _Products.apply(x, weight, tuple(slice(None, None, step) for step in stride))
    else:
        out = _Convolution.apply(x, weight, tuple(stride), tuple(padding))
    return out


class _Products(torch.autograd.Function):
    """A kernel k x 1 x 1 and its gradients: products of matrices (places, C) and (C, D), one for each slice of it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, grid: tuple[slice, ...]) -> Tensor:
        seen = x[:, :, *grid].contiguous(memory_format=LAYOUT)
        ctx.save_for_backward(seen, weight)
        ctx.grid, ctx.shape = grid, x.shape
        out = _empty(seen, (len(seen), len(weight), *seen.shape[2:]))
        for matrix, (outputs, inputs) in _slices(weight.contiguous(memory_format=LAYOUT), seen):
            if inputs is None:
                torch.mm(_matrix(seen), matrix.T, out=_matrix(out))
            else:
                for target, rows in zip(_rows(out), _rows(seen), strict=True):
                    target[outputs].addmm_(rows[inputs], matrix.T)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        seen, weight = ctx.saved_tensors
        gradient = gradients[0].contiguous(memory_format=LAYOUT)
        to_x, to_weight = None, None
        if ctx.needs_input_grad[0]:
            to_x = _empty(seen, seen.shape)
            for matrix, (outputs, inputs) in _slices(weight.contiguous(memory_format=LAYOUT), seen):
                if inputs is None:
                    torch.mm(_matrix(gradient), matrix, out=_matrix(to_x))
                else:
                    for target, rows in zip(_rows(to_x), _rows(gradient), strict=True):
                        target[inputs].addmm_(rows[outputs], matrix)
            if to_x.shape != ctx.shape:
                whole = _empty(seen, ctx.shape).zero_()
                whole[:, :, *ctx.grid] = to_x
                to_x = whole
        if ctx.needs_input_grad[1]:
            to_weight = _empty(weight, weight.shape)
            if weight.shape[2] > 2 * seen.shape[2] - 1:  # some slices see nothing but zeros
                to_weight.zero_()
            for matrix, (outputs, inputs) in _slices(to_weight, seen):
                if inputs is None:
                    torch.mm(_matrix(gradient).T, _matrix(seen), out=matrix)
                else:  # summed over the videos
                    for number, (rows, columns) in enumerate(zip(_rows(gradient), _rows(seen), strict=True)):
                        torch.addmm(matrix, rows[outputs].T, columns[inputs], beta=min(number, 1), out=matrix)
        return to_x, to_weight, None


class _Convolution(torch.autograd.Function):
    """Any kernel: oneDNN's convolution, and the kernel's gradient as one product for each of its places."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: tuple[int, ...], padding: tuple[int, ...]) -> Tensor:
        x = x.contiguous(memory_format=LAYOUT)
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return F.conv3d(x, weight.contiguous(memory_format=LAYOUT), None, stride, padding)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        gradient = gradients[0].contiguous(memory_format=LAYOUT)
        by_products = ctx.needs_input_grad[1] and weight.shape[1] >= _FEWEST_CHANNELS
        asked = [ctx.needs_input_grad[0], ctx.needs_input_grad[1] and not by_products, False]
        to_x, to_weight = None, None
        if any(asked):
            to_x, to_weight, _ = torch.ops.aten.convolution_backward(
                gradient, x, weight.contiguous(memory_format=LAYOUT), None,
                ctx.stride, ctx.padding, [1, 1, 1], False, [0, 0, 0], 1, asked,
            )  # fmt: skip
        if by_products:
            to_weight = _empty(weight, weight.shape)
            padded = F.pad(x, [amount for amount in reversed(ctx.padding) for _ in range(2)]) if any(ctx.padding) else x
            seen = _empty(x, (len(x), x.shape[1], *gradient.shape[2:]))
            rows, columns = _matrix(gradient).T, _matrix(seen)
            for place in itertools.product(*map(range, weight.shape[2:])):
                sizes = zip(place, gradient.shape[2:], ctx.stride, strict=True)
                grid = [slice(start, start + (size - 1) * step + 1, step) for start, size, step in sizes]
                seen.copy_(padded[:, :, grid[0], grid[1], grid[2]])
                torch.mm(rows, columns, out=to_weight[:, :, place[0], place[1], place[2]])
        return to_x, to_weight, None, None


def _empty(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A channels-last tensor without values."""
    return torch.empty(shape, dtype=like.dtype, memory_format=LAYOUT)


def _rows(x: Tensor) -> Tensor:
    """The memory of channels-last (B, C, T, H, W) as (B, T·H·W, C)."""
    return x.permute(0, 2, 3, 4, 1).view(len(x), x[0, 0].numel(), x.shape[1])


def _matrix(x: Tensor) -> Tensor:
    """The memory of channels-last (B, C, T, H, W) as (B·T·H·W, C)."""
    return x.permute(0, 2, 3, 4, 1).view(x.numel() // x.shape[1], x.shape[1])


def _slices(weight: Tensor, seen: Tensor) -> Iterator[tuple[Tensor, tuple[slice, slice | None]]]:
    """Each slice (D, C) of a kernel along time, the outputs that it adds to and the inputs that it sees, as rows.

    The middle slice, which sees everything, comes first and has None.
    """
    num_slices, length, places = weight.shape[2], seen.shape[2], seen.shape[3] * seen.shape[4]
    for index in sorted(range(num_slices), key=lambda index: abs(index - num_slices // 2)):
        offset = index - num_slices // 2
        if abs(offset) < length:
            outputs = slice(max(-offset, 0) * places, (length - max(offset, 0)) * places)
            inputs = slice(max(offset, 0) * places, (length - max(-offset, 0)) * places)
            yield weight[:, :, index, 0, 0], (outputs, inputs if offset else None)
