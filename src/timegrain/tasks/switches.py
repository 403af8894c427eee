"""What changes how a network is computed and not what it computes: layout, memory, kept activations, compilation."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from timegrain.models.blocks import Backbone
from timegrain.tasks.config import TrainingConfig

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # mallopt(3): never return the heap's end, never map a block by itself


def set_layout(module: nn.Module, run: TrainingConfig, device: torch.device) -> None:
    """Lay out the kernels of every backbone as it will compute, and say whether its activations are kept.

    Channels-last where the clips are, and on CPUs (:mod:`timegrain.models.cpu_convolution`); else every step would turn
    the kernels to that layout.
    """
    computes_on_cpu = device.type == "cpu" and not run.compile and not run.precision.endswith("mixed")
    for backbone in (part for part in module.modules() if isinstance(part, Backbone)):
        backbone.checkpoint_stages |= run.checkpoint_activations
        if run.channels_last or computes_on_cpu:
            for kernel in backbone.parameters():
                if kernel.ndim == 5:
                    kernel.data = kernel.data.contiguous(memory_format=torch.channels_last_3d)


def keep_freed_memory(device: torch.device) -> bool:
    """Let the C library of this process keep what tensors on a CPU give back, for the next step to take.

    By default glibc returns large blocks to the system, and every step fills the same activations with new pages. Other
    C libraries are left alone, and so are settings that the user made in the environment.

    Returns:
        Whether memory is kept from now on; it cannot be undone.
    """
    is_set = any(name.startswith("MALLOC_") for name in os.environ) or "malloc" in os.environ.get("GLIBC_TUNABLES", "")
    if device.type != "cpu" or is_set or "CS_GNU_LIBC_VERSION" not in getattr(os, "confstr_names", ()):
        return False
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # a program that is linked another way
        return False
    return all(set_option(option, value) == 1 for option, value in ((_TRIM_THRESHOLD, -1), (_MMAP_MAX, 0)))


def compile_backbones(module: nn.Module) -> None:
    """Compile every backbone, as :func:`compiled` says."""
    for part in module.modules():
        if isinstance(part, Backbone):
            part.forward = compiled(part.forward)  # type: ignore[method-assign]


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, compiled at its first call with each shape; in inference mode it stays as it is.

    A run trains on few shapes, those of its clips, and code for one shape is made sooner and runs faster than code for
    any. Evaluation has batches of many sizes, each of which would wait for the compiler.
    """
    in_training = torch.compile(function, dynamic=False)

    def call(*inputs: Any) -> Any:
        return function(*inputs) if torch.is_inference_mode_enabled() else in_training(*inputs)

    return call
