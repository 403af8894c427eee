"""Run a function in two real processes joined by gloo, and bring back what each returned."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist
from torch import multiprocessing

WORLD = 2


def run_in_two_processes(
    function: Callable[..., dict[str, Any]], folder: Path, *arguments: Any
) -> list[dict[str, Any]]:
    """Call ``function(rank, *arguments)`` with a process group around it; results (of tensors) in rank order."""
    multiprocessing.start_processes(_main, (function, folder, arguments), nprocs=WORLD, join=True, start_method="spawn")
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]


def _main(rank: int, function: Callable[..., dict[str, Any]], folder: Path, arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORLD)
    try:
        torch.save(function(rank, *arguments), folder / f"{rank}.pt")
    finally:
        dist.destroy_process_group()
