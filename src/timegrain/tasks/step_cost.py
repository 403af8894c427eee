"""What a training step takes, found by running its shapes: a network on the meta device allocates and computes nothing.

Both passes are run, so what is kept for the backward pass, what exists beside it and how many products are formed are
counted, not estimated from a formula. Convolutions are PyTorch's own, as on a GPU. Memory is that of tensors; what a
device's libraries take for themselves is not in it.
"""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from timegrain.distributed import RowsOnDemand, chunk_rows, in_chunks
from timegrain.models.hub import EncoderConfig, VideoEncoder
from timegrain.optim import OptimConfig, parameter_groups
from timegrain.sampling import ClipSpec
from timegrain.tasks.config import RunConfig


@dataclass(frozen=True)
class StateBytes:
    """What a process holds as long as it trains.

    Args:
        weights: Parameters and buffers, those of a momentum encoder and of a queue too.
        gradients: Of the trained parameters; they exist from the backward pass to the next step.
        optimizer: Momentum and the like.
        half_weights: The kernels once more in 16 bits, which autocast keeps from the forward to the backward pass.
        buckets: Where DDP gathers the gradients of several processes.
    """

    weights: int
    gradients: int
    optimizer: int
    half_weights: int
    buckets: int

    @property
    def lasting(self) -> int:
        """What is there all the time: everything but the gradients, which count among what a step makes."""
        return self.weights + self.optimizer + self.half_weights + self.buckets


@dataclass(frozen=True)
class StepCost:
    """One step of one process.

    Args:
        flops: Floating-point operations of both passes, recomputed ones included; a multiply-add is two.
        kept: Bytes that the forward pass leaves for the backward pass, clips included.
        peak: The most bytes that exist at one time beside the lasting state, gradients included.
    """

    flops: int
    kept: int
    peak: int


def state_bytes(module: nn.Module, optim: OptimConfig, processes: int = 1, mixed: bool = False) -> StateBytes:
    """Bytes of weights, gradients and optimiser state.

    Args:
        module: What is trained; it may be on the meta device.
        optim: The optimiser's settings.
        processes: Over all machines.
        mixed: Whether the run computes in 16 bits by autocast.
    """
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    gradients = _bytes(trained)
    kernels = [p for group in parameter_groups(module, 0.0) if group["name"] == "kernels" for p in group["params"]]
    return StateBytes(
        weights=_bytes(module.state_dict().values()),
        gradients=gradients,
        optimizer=optimizer_bytes(trained, optim),
        half_weights=2 * sum(kernel.numel() for kernel in kernels) if mixed else 0,
        buckets=gradients if processes > 1 else 0,
    )


def process_bytes(state: StateBytes, cost: StepCost) -> int:
    """The most bytes of tensors that a process holds at one time."""
    return state.lasting + max(cost.peak, state.gradients)


def optimizer_bytes(trained: Sequence[nn.Parameter], optim: OptimConfig) -> int:
    """Bytes of the state that :func:`timegrain.optim.build_optimizer`'s optimiser has after its first step."""
    if optim.name == "adamw":
        return 2 * _bytes(trained) + 4 * len(trained)  # and a count of steps for each parameter
    return 0 if optim.name == "sgd" and not optim.momentum else _bytes(trained)


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


class Ledger(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts, inside, the bytes of tensors that are alive and the floating-point operations of products.

    Args:
        *before: Tensors that are not counted though they are used.

    Attributes:
        now: Bytes alive of tensors made inside.
        peak: The most that were alive at one time.
        flops: Of convolutions and matrix products, as :mod:`torch.utils.flop_counter` counts them.
    """

    def __init__(self, *before: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = self.flops = 0
        self._alive = {tensor.untyped_storage()._cdata for tensor in before}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = function(*args, **kwargs)
        count = flop_registry.get(function._overloadpacket)
        if count is not None:
            self.flops += count(*args, **kwargs, out_val=out)
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and (storage := tensor.untyped_storage())._cdata not in self._alive:
                key, size = storage._cdata, storage.nbytes()
                self._alive.add(key)
                self.now += size
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._gone, key, size)
        return out

    def _gone(self, key: int, size: int) -> None:
        self._alive.discard(key)
        self.now -= size


def step_cost(
    encoder: EncoderConfig, name: str, specs: Sequence[ClipSpec], batch_size: int, run: RunConfig
) -> StepCost:
    """What a step of pre-training takes: the network both ways, clips as they come, everything but the loss itself.

    (The loss is streamed: it takes a few megabytes.)

    Args:
        encoder: The network, with the heads that are trained.
        name: Of the objective; see :class:`timegrain.tasks.config.ObjectiveConfig`.
        specs: Shapes of the clips of a video.
        batch_size: Videos per step and process.
        run: Precision, chunks and activation checkpointing.
    """
    num_frames = tuple(spec.num_frames for spec in specs)
    text = json.dumps(asdict(replace(encoder, extra={})))
    options = (text, name, num_frames, run.precision.endswith("mixed"), run.checkpoint_activations)
    if run.chunk_size is None or run.chunk_size >= batch_size:
        return _measured(*options, batch_size, None)
    # Chunks are alike: two of them tell what each takes; of further videos there are pixels and embeddings.
    chunk = max(rows.stop - rows.start for rows in chunk_rows(batch_size, run.chunk_size))
    two = _measured(*options, 2 * chunk, chunk)
    further = round((batch_size - 2 * chunk) * two.kept / (2 * chunk))
    return StepCost(round(two.flops * batch_size / (2 * chunk)), two.kept + further, two.peak + further)


@lru_cache(maxsize=256)
def _measured(
    text: str,
    name: str,
    num_frames: tuple[int, ...],
    mixed: bool,
    checkpointed: bool,
    batch_size: int,
    chunk_size: int | None,
) -> StepCost:
    """Both passes on the meta device; autocast is not for it, so a mixed network is one of 16 bits."""
    config = EncoderConfig.from_dict(json.loads(text))
    width, side = torch.bfloat16 if mixed else torch.float32, config.crop_size
    with torch.device("meta"):
        encoder = VideoEncoder(config).to(width)
        slow = VideoEncoder(config).to(width) if name in ("moco", "byol") else None
    encoder.backbone.checkpoint_stages |= checkpointed
    owned = [tensor for module in (encoder, slow) if module is not None for tensor in module.state_dict().values()]
    with Ledger(*owned) as ledger, torch.device("meta"):
        # Chunks make their colours when they need them; of the batch there are only the pixels.
        pixels = [torch.empty(batch_size, 3, n, side, side, dtype=torch.uint8) for n in num_frames if chunk_size]
        clips: list[Any] = [_rows_of(batch_size, n, side) for n in num_frames]
        if chunk_size is None:
            clips = [clip[:] for clip in clips]
        found = [result.float().sum() for result in _network(encoder, slow, name, clips, chunk_size)]
        kept = ledger.now
        torch.stack(found).sum().backward()  # type: ignore[no-untyped-call]
        del pixels
    return StepCost(ledger.flops, kept, ledger.peak)


def _rows_of(batch_size: int, num_frames: int, side: int) -> RowsOnDemand:
    """Clips (B, 3, T, side, side) as floats, made when rows are asked for."""

    def make(rows: slice) -> Tensor:
        return torch.empty(len(range(*rows.indices(batch_size))), 3, num_frames, side, side)

    return RowsOnDemand(batch_size, make)


def _network(
    encoder: VideoEncoder, slow: VideoEncoder | None, name: str, clips: Sequence[Any], chunk_size: int | None
) -> list[Tensor]:
    """The embeddings of a batch, by the passes that the objective makes."""
    width = next(encoder.parameters()).dtype

    def every_step(rows: Tensor) -> dict[str, Tensor]:
        features = encoder(rows.to(width))
        return {head: encoder.embed(features, head) for head in encoder.heads}

    def one(network: VideoEncoder) -> Callable[[Tensor], dict[str, Tensor]]:
        def means(rows: Tensor) -> dict[str, Tensor]:
            features = network(rows.to(width)).mean(1, keepdim=True)
            return {head: network.embed(features, head) for head in network.heads}

        return means

    def both(first: Tensor, second: Tensor) -> dict[str, Tensor]:
        found = one(encoder)(torch.cat([first, second]))
        return {f"{head}{part}": rows for head, value in found.items() for part, rows in enumerate(value.chunk(2))}

    if name in ("cvrl", "simclr"):
        return list(in_chunks(both, clips, chunk_size, encoder).values())
    function = every_step if name == "teg" else one(encoder)
    results = [value for clip in clips for value in in_chunks(function, [clip], chunk_size, encoder).values()]
    if slow is not None:
        with torch.no_grad():
            results += [v for clip in clips for v in in_chunks(one(slow), [clip], chunk_size, slow).values()]
    return results
