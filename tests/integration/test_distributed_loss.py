"""Two and four gloo processes give the gradient of one process on the joined batch, encoder included."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from processes import run_in_processes
from timegrain.distributed import gather_with_gradient
from timegrain.losses import Level, levels_for_alpha
from timegrain.models.hub import EncoderConfig, VideoEncoder
from timegrain.objectives.moco import MoCo
from timegrain.objectives.teg import TeG
from timegrain.sampling import ClipSpec, contained

VIDEOS = 8
BOTH = {"same_video_negatives": True, "symmetric": True}
CASES: dict[str, tuple[tuple[Level, ...], torch.dtype]] = {
    "teg_fg": (levels_for_alpha(0.9), torch.float64),
    "teg_ps": (levels_for_alpha(0.0), torch.float64),
    "dense": (levels_for_alpha(0.5, num_short=4, num_long=8), torch.float64),
    "every_option": ((Level(2, 4, 0.6, "fine", **BOTH), Level(1, 1, 0.4, "persistent", **BOTH)), torch.float64),
    "pyramid": ((Level(1, 2, 0.5), Level(2, 4, 0.3), Level(4, 8, 0.2)), torch.float64),
    "teg_fg_float32": (levels_for_alpha(0.9), torch.float32),
}
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6}


def teg(levels: tuple[Level, ...], dtype: torch.dtype) -> TeG:
    """A small network, the same everywhere; norms in evaluation mode, since batch statistics are another matter."""
    torch.manual_seed(0)
    heads = tuple(dict.fromkeys(level.head for level in levels))
    options = {"width": 4, "stem_width": 4}
    encoder = VideoEncoder(EncoderConfig("r3d_tiny", options, heads, head_hidden=8, head_num_hidden=1, head_out=5))
    return TeG(encoder.to(dtype).eval(), levels)


def batch(dtype: torch.dtype, rows: slice = slice(None)) -> dict[str, Tensor]:
    """Eight videos, or some of them."""
    rng, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
    pairs = [contained(90, (ClipSpec(16, 4), ClipSpec(8, 2)), rng) for _ in range(VIDEOS)]
    whole = {
        "long_clip": torch.rand(VIDEOS, 3, 16, 16, 16, generator=generator).to(dtype),
        "short_clip": torch.rand(VIDEOS, 3, 8, 16, 16, generator=generator).to(dtype),
        "long_indices": torch.tensor(np.stack([long for long, _ in pairs])),
        "short_indices": torch.tensor(np.stack([short for _, short in pairs])),
    }
    return {name: value[rows] for name, value in whole.items()}


def losses_and_gradients(module: TeG | DistributedDataParallel, inputs: dict[str, Tensor]) -> dict[str, Any]:
    clips, indices = ([inputs[f"{name}_{what}"] for name in ("long", "short")] for what in ("clip", "indices"))
    losses = module(clips, indices)
    losses["loss"].backward()
    inner = module.module if isinstance(module, DistributedDataParallel) else module
    return {
        "losses": {name: value.detach() for name, value in losses.items()},
        "gradients": {name: parameter.grad for name, parameter in inner.named_parameters()},
    }


def worker(rank: int) -> dict[str, Any]:
    """All cases in one start of the processes: each takes its share of the videos; DDP averages the gradients."""
    share = VIDEOS // dist.get_world_size()
    rows = slice(rank * share, (rank + 1) * share)
    results: dict[str, Any] = {
        name: losses_and_gradients(DistributedDataParallel(teg(levels, dtype)), batch(dtype, rows))
        for name, (levels, dtype) in CASES.items()
    }
    results["chunks"] = in_chunks(rows)
    results["moco"] = queue_after_a_step(moco(), rows)
    results["gather"] = gather_beside_another_use(rank)
    return results


def in_chunks(rows: slice) -> dict[str, Any]:
    """Every video a chunk by itself, with the batch statistics of training."""
    module = teg(*CASES["teg_fg"]).train()
    module.chunk_size = 1
    trained = module if rows.stop is None else DistributedDataParallel(module)
    return losses_and_gradients(trained, batch(torch.float64, rows))


def moco() -> MoCo:
    torch.manual_seed(0)
    options = {"width": 4, "stem_width": 4}
    encoder = VideoEncoder(EncoderConfig("r3d_tiny", options, ("persistent",), head_hidden=8, head_num_hidden=1))
    module = MoCo(encoder.double(), queue_size=17).double()
    for part in (module.encoder, module.momentum_encoder):
        part.eval()  # norms: batch statistics are another matter
    return module


def queue_after_a_step(module: MoCo, rows: slice) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    clips = [torch.rand(VIDEOS, 3, 4, 16, 16, generator=generator, dtype=torch.float64)[rows] for _ in range(2)]
    positions = [torch.zeros(len(clip), 4, dtype=torch.long) for clip in clips]
    trained = module if rows.stop is None else DistributedDataParallel(module)
    loss = trained(clips, positions)["loss"]
    loss.backward()
    weights = module.encoder.named_parameters()
    return {"loss": loss.detach(), "queue": module.queue, "gradients": {name: weight.grad for name, weight in weights}}


def gather_beside_another_use(rank: int) -> dict[str, Tensor]:
    """A gathered tensor that is added to another one: both receive the same gradient tensor from autograd."""
    local = torch.full((2, 3), float(rank + 1), dtype=torch.float64, requires_grad=True)
    rows = 2 * dist.get_world_size()
    bias = torch.zeros(rows, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.arange(3.0 * rows, dtype=torch.float64).reshape(rows, 3) * (rank + 1)
    other = 1 * bias  # made before the gathering, so its backward runs after it
    gathered = gather_with_gradient(local)
    ((gathered + other) * weight).sum().backward()
    return {"gathered": gathered.detach(), "local": local.grad, "bias": bias.grad}


@pytest.fixture(scope="module", params=[2, 4], ids=["two processes", "four processes"])
def processes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_in_processes(request.param, worker, tmp_path_factory.mktemp("processes"))


@pytest.mark.multiprocess
@pytest.mark.parametrize("case", CASES)
def test_processes_give_the_gradient_of_one(processes: list[dict[str, Any]], case: str) -> None:
    levels, dtype = CASES[case]
    joined = losses_and_gradients(teg(levels, dtype), batch(dtype))
    tolerance = TOLERANCE[dtype] * len(processes) / 2  # each process rounds its own sums: 1.1e-6 with four in float32
    for name, gradient in joined["gradients"].items():
        assert float(gradient.abs().max()) > 0, name
        for process in processes:
            torch.testing.assert_close(
                process[case]["gradients"][name],
                gradient,
                rtol=0,
                atol=tolerance * max(1.0, float(gradient.abs().max())),
                msg=lambda text, name=name: f"{name}: {text}",
            )
    for name, value in joined["losses"].items():
        values = torch.stack([process[case]["losses"][name] for process in processes])
        if name.endswith(("loss", "accuracy")):  # means over a process's own queries
            torch.testing.assert_close(values.mean(0), value, rtol=tolerance, atol=tolerance)
        if name.endswith(("num_negatives", "chance_loss")):  # of the whole batch, in each process
            torch.testing.assert_close(values, value.expand(len(processes)), rtol=1e-6, atol=0)
    assert int(joined["losses"][next(n for n in joined["losses"] if n.endswith("num_negatives"))]) >= VIDEOS - 1


@pytest.mark.multiprocess
def test_gradient_caching_in_several_processes_is_that_of_one(processes: list[dict[str, Any]]) -> None:
    """Chunks with batch statistics of their own, keys gathered over both processes, the network run again backward."""
    joined = in_chunks(slice(None))
    for process in processes:
        for name, gradient in joined["gradients"].items():
            torch.testing.assert_close(process["chunks"]["gradients"][name], gradient, rtol=0, atol=1e-12, msg=name)
    losses = torch.stack([process["chunks"]["losses"]["loss"] for process in processes])
    torch.testing.assert_close(losses.mean(), joined["losses"]["loss"], rtol=0, atol=1e-12)


@pytest.mark.multiprocess
def test_the_queue_is_that_of_one_process(processes: list[dict[str, Any]]) -> None:
    """Keys of all processes in order of rank, clip by clip, everywhere the same; the gradient is the joined batch's."""
    joined = queue_after_a_step(moco(), slice(None))
    assert not torch.equal(joined["queue"], moco().queue)
    for process in processes:
        torch.testing.assert_close(process["moco"]["queue"], joined["queue"], rtol=0, atol=1e-12)
        for name, gradient in joined["gradients"].items():
            torch.testing.assert_close(process["moco"]["gradients"][name], gradient, rtol=0, atol=1e-12)


@pytest.mark.multiprocess
def test_negatives_of_the_other_process_matter(processes: list[dict[str, Any]]) -> None:
    """The comparison above would notice a gradient of each half by itself."""
    levels, dtype = CASES["teg_fg"]
    share = VIDEOS // len(processes)
    shares = [slice(start, start + share) for start in range(0, VIDEOS, share)]
    parts = [losses_and_gradients(teg(levels, dtype), batch(dtype, rows))["gradients"] for rows in shares]
    distances = [
        float((torch.stack([part[name] for part in parts]).mean(0) - gradient).abs().max())
        for name, gradient in processes[0]["teg_fg"]["gradients"].items()
    ]
    assert max(distances) > 1e-3


@pytest.mark.multiprocess
def test_gathering_leaves_the_gradients_of_others_alone(processes: list[dict[str, Any]]) -> None:
    world = len(processes)
    weight = torch.arange(6.0 * world, dtype=torch.float64).reshape(2 * world, 3)
    for rank, process in enumerate(processes):
        ours = process["gather"]
        assert ours["gathered"][:, 0].tolist() == [1.0 + other for other in range(world) for _ in range(2)]
        torch.testing.assert_close(ours["local"], world * (world + 1) / 2 * weight[2 * rank : 2 * rank + 2])
        torch.testing.assert_close(ours["bias"], (rank + 1) * weight)
