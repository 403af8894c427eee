"""Run a function in several real processes joined by gloo, and bring back what each returned."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist
from torch import multiprocessing

# Imported once and then forked, where each process would import them by itself.
_IMPORTS = ["torch.distributed", "torch.nn.parallel", "timegrain.objectives.moco", "timegrain.tasks.pretrain"]


def run_in_processes(
    world_size: int, function: Callable[..., dict[str, Any]], folder: Path, *arguments: Any
) -> list[dict[str, Any]]:
    """Call ``function(rank, *arguments)`` with a process group around it; results (of tensors) in rank order."""
    _start(world_size, _joined, world_size, function, folder, arguments)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(world_size)]


def run_as_launched(world_size: int, function: Callable[..., None], *arguments: Any, by: str = "torchrun") -> None:
    """Call ``function(*arguments)`` in processes that find in their environment what torchrun, or srun, would put there."""
    _start(world_size, _launched, world_size, free_port(), by, function, arguments)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def start_process(function: Callable[..., Any], *arguments: Any) -> BaseProcess:
    """Call ``function(*arguments)`` in a process of its own, with everything imported; it may have children."""
    _prepare_server()
    process = multiprocessing.get_context("forkserver").Process(target=function, args=arguments, daemon=False)
    process.start()
    return process


def _start(world_size: int, function: Callable[..., None], *arguments: Any) -> None:
    _prepare_server()
    multiprocessing.start_processes(function, arguments, nprocs=world_size, join=True, start_method="forkserver")


def _prepare_server() -> None:
    server = forkserver._forkserver  # type: ignore[attr-defined]
    if server._preload_modules != _IMPORTS:  # one that the library started has imported other things
        server._stop()
        server.set_forkserver_preload(_IMPORTS)


def _joined(
    rank: int, world_size: int, function: Callable[..., dict[str, Any]], folder: Path, arguments: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world_size)
    try:
        torch.save(function(rank, *arguments), folder / f"{rank}.pt")
    finally:
        dist.destroy_process_group()


def _launched(
    rank: int, world_size: int, port: int, by: str, function: Callable[..., None], arguments: tuple[Any, ...]
) -> None:
    from lightning.fabric.utilities.rank_zero import rank_zero_only

    torch.set_num_threads(1)
    own, all_of_them, more = {
        "torchrun": (("RANK", "LOCAL_RANK"), ("WORLD_SIZE", "LOCAL_WORLD_SIZE"), {"TORCHELASTIC_RUN_ID": "none"}),
        "srun": (
            ("SLURM_PROCID", "SLURM_LOCALID"),
            ("SLURM_NTASKS", "SLURM_STEP_NUM_TASKS"),
            {
                "SLURM_NODEID": "0",
                "SLURM_NNODES": "1",
                "SLURM_STEP_NUM_NODES": "1",
                "SLURM_JOB_ID": "7",
                "SLURM_JOB_NAME": "pretrain",
            },
        ),
    }[by]
    os.environ |= dict.fromkeys(own, str(rank)) | dict.fromkeys(all_of_them, str(world_size)) | more
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    rank_zero_only.rank = rank  # read from the environment at import, which was before this process was forked
    function(*arguments)
