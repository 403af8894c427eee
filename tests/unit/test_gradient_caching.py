"""A batch in chunks: the gradient of running chunk by chunk with everything kept, in the memory of one chunk."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from timegrain import distributed
from timegrain.distributed import RowsOnDemand, chunk_rows
from timegrain.losses import Level, levels_for_alpha
from timegrain.models.hub import EncoderConfig, VideoEncoder
from timegrain.objectives.byol import BYOL
from timegrain.objectives.cvrl import CVRL
from timegrain.objectives.moco import MoCo
from timegrain.objectives.objective import Objective
from timegrain.objectives.simclr import SimCLR
from timegrain.objectives.teg import TeG

VIDEOS = 5
OBJECTIVES: dict[str, Callable[[VideoEncoder], Objective]] = {
    "teg": lambda encoder: TeG(encoder, levels_for_alpha(0.9)),
    "pyramid": lambda encoder: TeG(encoder, (Level(1, 1, 0.4, "persistent"), Level(2, 4, 0.3), Level(1, 4, 0.3))),
    "cvrl": CVRL,
    "simclr": SimCLR,
    "moco": lambda encoder: MoCo(encoder, queue_size=16),
    "byol": BYOL,
}
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6}


def objective(name: str, dtype: torch.dtype = torch.float64, *, norm: bool = True, **options: Any) -> Objective:
    torch.manual_seed(0)
    options = {"width": 4, "stem_width": 4, **options}
    heads = ("fine", "persistent") if name in ("teg", "pyramid") else ("persistent",)
    config = EncoderConfig(
        "r3d_tiny", options, heads, head_hidden=8, head_num_hidden=1, head_out=5, head_norm=norm, head_norm_momentum=0.1
    )
    module = OBJECTIVES[name](VideoEncoder(config).to(dtype))
    return module.to(dtype)


def batch(name: str, dtype: torch.dtype = torch.float64, videos: int = VIDEOS) -> tuple[list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(1)
    lengths = (8, 4) if name in ("teg", "pyramid") else (4, 4)
    clips = [torch.rand(videos, 3, frames, 16, 16, generator=generator).to(dtype) for frames in lengths]
    return clips, [torch.arange(frames).expand(videos, -1) * 2 for frames in lengths]


def step(module: Objective, clips: list[Any], indices: list[Tensor]) -> dict[str, Tensor]:
    """Every loss, gradient and piece of state that a step leaves."""
    losses = module(clips, indices)
    losses["loss"].backward()
    gradients = {
        f"gradient of {name}": weight.grad for name, weight in module.named_parameters() if weight.requires_grad
    }
    return {**{k: v.detach() for k, v in losses.items()}, **gradients, **module.state_dict()}


def assert_close(ours: dict[str, Tensor], other: dict[str, Tensor], tolerance: float) -> None:
    assert ours.keys() == other.keys()
    for name, value in other.items():
        scale = max(1.0, float(value.abs().max()))
        torch.testing.assert_close(ours[name], value, rtol=0, atol=tolerance * scale, msg=lambda t, n=name: f"{n}: {t}")


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_chunks_give_what_chunks_with_everything_kept_give(
    name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batch statistics of each chunk, losses, gradients, running statistics, queue: all of it."""
    cached, kept = objective(name, dtype), objective(name, dtype)
    cached.chunk_size = kept.chunk_size = 2
    clips, indices = batch(name, dtype, videos=6)
    ours = step(cached, clips, indices)
    with monkeypatch.context() as patch:
        patch.setattr(distributed, "recomputed", lambda function, module, *inputs: function(*inputs))
        plain = step(kept, clips, indices)
    assert_close(ours, plain, TOLERANCE[dtype])
    whole = step(objective(name, dtype), clips, indices)
    assert max(float((ours[key] - whole[key]).abs().max()) for key in whole if key.startswith("gradient")) > 1e-4
    counts = {key: int(value) for key, value in ours.items() if key.endswith("num_batches_tracked")}
    views = 1 if name in ("cvrl", "simclr") else 2
    expected = {key: views * (1 if key.startswith("predictor") else 3) for key in counts}
    assert counts == expected


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_teg_in_chunks_as_a_loop_writes_it(dtype: torch.dtype) -> None:
    """Without any of our chunking: encode two videos, then two, then one; join; contrast."""
    cached, plain = objective("teg", dtype), objective("teg", dtype)
    assert isinstance(plain, TeG)
    cached.chunk_size = 2
    clips, indices = batch("teg", dtype, videos=6)
    ours = step(cached, clips, indices)
    projections: list[dict[str, Tensor]] = []
    for clip in clips:
        features = [plain.encoder(clip[start : start + 2]) for start in (0, 2, 4)]
        projections.append(
            {head: torch.cat([plain.encoder.embed(part, head) for part in features]) for head in plain.loss.heads}
        )
    losses = plain.loss(projections[1], projections[0], indices[1], indices[0])
    losses["loss"].backward()
    gradients = {f"gradient of {name}": weight.grad for name, weight in plain.named_parameters()}
    assert_close(
        ours, {**{k: v.detach() for k, v in losses.items()}, **gradients, **plain.state_dict()}, TOLERANCE[dtype]
    )


@pytest.mark.parametrize("chunk_size", [1, 3])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_with_frozen_norms_chunks_are_the_large_batch(name: str, chunk_size: int) -> None:
    cached, whole = objective(name, norm=False), objective(name, norm=False)
    cached.chunk_size = chunk_size
    for module in (cached, whole):
        for part in module.modules():
            if isinstance(part, nn.BatchNorm3d):
                part.eval()
    assert_close(step(cached, *batch(name)), step(whole, *batch(name)), 1e-12)


def test_a_chunk_as_large_as_the_batch_is_the_batch_bit_for_bit() -> None:
    cached, whole = objective("teg"), objective("teg")
    cached.chunk_size = VIDEOS
    assert_close(step(cached, *batch("teg")), step(whole, *batch("teg")), 0.0)


def test_rows_made_on_demand_are_the_same_rows() -> None:
    made: list[slice] = []

    def later(clip: Tensor) -> RowsOnDemand:
        def make(rows: slice) -> Tensor:
            made.append(rows)
            return clip[rows]

        return RowsOnDemand(len(clip), make)

    clips, indices = batch("teg")
    modules = objective("teg"), objective("teg")
    for module in modules:
        module.chunk_size = 3
    assert_close(step(modules[0], [later(clip) for clip in clips], indices), step(modules[1], clips, indices), 0.0)
    assert len(made) == 8  # two chunks of two clips, forward and again backward


def test_chunks_of_checkpointed_stages_count_a_batch_once() -> None:
    cached, plain = objective("teg", checkpoint_stages=True), objective("teg")
    cached.chunk_size = plain.chunk_size = 3
    assert_close(step(cached, *batch("teg")), step(plain, *batch("teg")), 1e-12)


def test_chunks_under_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    cached, kept = objective("teg", torch.float32), objective("teg", torch.float32)
    cached.chunk_size = kept.chunk_size = 3
    clips, indices = batch("teg", torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        ours = cached(clips, indices)
        monkeypatch.setattr(distributed, "recomputed", lambda function, module, *inputs: function(*inputs))
        plain = kept(clips, indices)
    ours["loss"].backward()
    plain["loss"].backward()
    for one, other in zip(cached.parameters(), kept.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-2, atol=1e-3)


class PeakBytes(TorchDispatchMode):
    """The most bytes of tensors made inside that were alive at one time."""

    def __init__(self, *before: Tensor) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._alive = {tensor.untyped_storage()._cdata for tensor in before}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
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


def peak(videos: int, chunk_size: int | None) -> int:
    module = objective("teg", torch.float32)
    module.chunk_size = chunk_size
    clips, indices = batch("teg", torch.float32, videos)
    with PeakBytes(*clips, *module.parameters(), *module.buffers()) as memory:
        module(clips, indices)["loss"].backward()
    return memory.peak


def test_memory_goes_by_the_chunk_forward_and_backward() -> None:
    whole, cached = {n: peak(n, None) for n in (16, 32)}, {n: peak(n, 4) for n in (16, 32)}
    assert cached[16] < 0.6 * whole[16]  # the rest are the weights' gradients
    assert cached[32] - cached[16] < (whole[32] - whole[16]) / 10  # only embeddings grow with the batch
    assert peak(16, 8) > 1.2 * cached[16]  # and the measure sees a larger chunk


@given(length=st.integers(1, 300), chunk_size=st.integers(1, 300))
def test_chunks_cover_the_batch_evenly(length: int, chunk_size: int) -> None:
    chunks = chunk_rows(length, chunk_size)
    assert [row for rows in chunks for row in range(rows.start, rows.stop)] == list(range(length))
    lengths = [rows.stop - rows.start for rows in chunks]
    assert max(lengths) <= chunk_size
    assert max(lengths) - min(lengths) <= 1
    assert len(chunks) == -(-length // chunk_size)
