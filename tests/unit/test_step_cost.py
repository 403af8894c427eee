"""What `timegrain pretrain` and `timegrain plan` say that a step takes is what a step takes, counted on real tensors."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from timegrain.models.costs import stage_costs
from timegrain.models.hub import EncoderConfig, VideoEncoder, build_backbone
from timegrain.optim import OptimConfig, build_optimizer
from timegrain.tasks.config import DataConfig, ModelConfig, ObjectiveConfig, RunConfig, clip_specs, with_defaults
from timegrain.tasks.objective import build_encoder
from timegrain.tasks.pretrain import build_objective
from timegrain.tasks.step_cost import Ledger, optimizer_bytes, process_bytes, state_bytes, step_cost

VIDEOS = 6


@pytest.fixture(autouse=True)
def convolutions_of_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: a CPU's own products for kernels of one place keep and count other tensors."""
    monkeypatch.setattr("timegrain.models.blocks.suits_cpu", lambda *_: False)


CLIPS: dict[str, dict[str, int]] = {
    "teg": {"long_frames": 8, "short_frames": 4},
    "cvrl": {"num_frames": 8},
    "simclr": {},
    "moco": {"num_frames": 8},
    "byol": {"num_frames": 8},
}


def parts(name: str, run: RunConfig, **model: Any):
    """Settings, objective and clips of a small run."""
    data, objective = with_defaults(
        DataConfig(crop_size=32, batch_size=VIDEOS, **CLIPS[name]),
        ObjectiveConfig(name=name, queue_size=64 if name == "moco" else None),  # type: ignore[arg-type]
    )
    torch.manual_seed(0)
    model_config = ModelConfig(backbone="r3d_tiny", head_hidden=32, head_layers=1, head_out=16, **model)
    module, specs = build_objective(data, model_config, objective, run.chunk_size), clip_specs(data, objective)
    module.encoder.backbone.checkpoint_stages |= run.checkpoint_activations
    return module, specs, step_cost(module.encoder.config, name, specs, VIDEOS, run)


def real_step(module: Any, specs: Any, mixed: bool = False) -> tuple[Ledger, int, dict[int, int]]:
    """A step on real tensors: the ledger, bytes alive between both passes, storages of clips and of what was saved."""
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage()._cdata not in owned:
            saved[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return tensor

    before = [*module.state_dict().values()]
    owned = {tensor.untyped_storage()._cdata for tensor in before}
    indices = [torch.arange(spec.num_frames).expand(VIDEOS, -1) * spec.stride for spec in specs]
    with Ledger(*before, *indices) as ledger:
        clips = [torch.rand(VIDEOS, 3, spec.num_frames, 32, 32) for spec in specs]
        saved.update((clip.untyped_storage()._cdata, clip.nbytes) for clip in clips)  # the batch holds them either way
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            if module.chunk_size is None:
                with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                    loss = module(clips, indices)["loss"]
            else:  # the hooks of a checkpoint are its own
                loss = module(clips, indices)["loss"]
        kept = ledger.now
        loss.backward()
    return ledger, kept, saved


@pytest.mark.parametrize(("name", "run"), [
    *(pytest.param(name, RunConfig(), id=name) for name in sorted(CLIPS)),
    pytest.param("teg", RunConfig(checkpoint_activations=True), id="teg checkpointed"),
])  # fmt: skip
def test_a_step_takes_what_was_counted_on_its_shapes(name: str, run: RunConfig):
    module, specs, cost = parts(name, run)
    ledger, kept, saved = real_step(module, specs)
    assert cost.kept == pytest.approx(kept, rel=0.02)
    assert cost.peak == pytest.approx(ledger.peak, rel=0.02)
    assert cost.flops == pytest.approx(ledger.flops, rel=0.02)  # the loss's own products are not counted
    if not run.checkpoint_activations:
        assert cost.kept == pytest.approx(sum(saved.values()), rel=0.05)


@pytest.mark.parametrize("name", ["teg", "cvrl", "byol"])
def test_chunks_are_counted_as_they_are(name: str):
    run = RunConfig(chunk_size=2)
    module, specs, cost = parts(name, run)
    ledger, _, _ = real_step(module, specs)
    pixels = VIDEOS * sum(3 * spec.num_frames * 32**2 for spec in specs)
    # The real step above holds its clips as floats; a run holds pixels and makes the colours of a chunk when needed.
    chunk = 4 * 2 * max(3 * spec.num_frames * 32**2 for spec in specs)
    assert cost.peak == pytest.approx(ledger.peak - 3 * pixels + chunk, rel=0.1)
    assert cost.peak < parts(name, RunConfig())[2].peak
    assert cost.flops == pytest.approx(ledger.flops, rel=0.02)


def test_sixteen_bits_halve_activations_and_not_clips():
    # Without the pool, which autocast computes in 32 bits on CPUs and in 16 on GPUs.
    module, specs, cost = parts("teg", RunConfig(precision="bf16-mixed"), options={"stem_pool": False})
    state = state_bytes(module, OptimConfig(), mixed=True)
    _, kept, _ = real_step(module, specs, mixed=True)
    assert cost.kept + state.half_weights == pytest.approx(kept, rel=0.06)
    assert cost.kept < 0.75 * parts("teg", RunConfig(), options={"stem_pool": False})[2].kept


def test_a_larger_batch_and_more_chunks_are_extrapolated_as_they_would_be_counted():
    config = EncoderConfig(backbone="r3d_tiny", head_hidden=32, head_num_hidden=1, crop_size=32)
    specs = clip_specs(*with_defaults(DataConfig(), ObjectiveConfig()))
    few, more, many = (step_cost(config, "teg", specs, videos, RunConfig(chunk_size=4)) for videos in (8, 16, 1024))
    assert more.flops == 2 * few.flops
    assert more.peak - few.peak == pytest.approx((many.peak - more.peak) / (1008 / 8), rel=0.01)
    assert more.peak - few.peak >= 8 * sum(3 * spec.num_frames * 32**2 for spec in specs)


@pytest.mark.parametrize(
    ("name", "momentum"),
    [("adamw", 0.9), *((name, value) for name in ("sgd", "reference_sgd", "lars") for value in (0.0, 0.9))],
)
def test_weights_gradients_and_optimiser_are_exact(name: Any, momentum: float):
    module, specs, cost = parts("byol", RunConfig())
    config = OptimConfig(name=name, learning_rate=0.01, momentum=momentum)
    state = state_bytes(module, config)
    real_step(module, specs)
    optimizer = build_optimizer(module, config)
    optimizer.step()
    held = [value for values in optimizer.state.values() for value in values.values() if isinstance(value, Tensor)]
    assert state.optimizer == optimizer_bytes(list(optimizer.state), config) == sum(value.nbytes for value in held)
    assert state.weights == sum(value.nbytes for value in module.state_dict().values())
    assert state.gradients == sum(p.grad.nbytes for p in module.parameters() if p.grad is not None)
    assert process_bytes(state, cost) == state.weights + state.optimizer + cost.peak
    assert state_bytes(module, config, processes=2).buckets == state.gradients


def test_operations_are_those_of_table_two():
    """Forward once and backward twice, but for the pixels' gradient; heads are a thousandth."""
    specs = clip_specs(*with_defaults(DataConfig(), ObjectiveConfig()))
    cost = step_cost(EncoderConfig(heads=("fine",)), "teg", specs, 2, RunConfig())
    with torch.device("meta"):
        backbone = build_backbone("r3d50")
    multiply_adds, stem = 0, 0
    for spec in specs:
        costs = stage_costs(backbone, spec.num_frames, 224, 224)
        multiply_adds += sum(stage.multiply_adds for stage in costs)
        stem += costs[0].multiply_adds
    with torch.device("meta"):
        head = sum(p.numel() for p in VideoEncoder(EncoderConfig(heads=("fine",))).heads.parameters() if p.ndim == 2)
    heads = head * sum(backbone.num_time_steps(spec.num_frames) for spec in specs)
    assert cost.flops / 2 == 2 * (3 * multiply_adds - stem + 3 * heads)


def test_a_level_of_weight_zero_costs_nothing():
    whole = ObjectiveConfig(alpha=0.5)
    one = ObjectiveConfig(alpha=0.0)
    data = with_defaults(DataConfig(crop_size=32), one)[0]
    model = ModelConfig(backbone="r3d_tiny", head_hidden=32)
    both, persistent = (
        build_encoder(data, model, with_defaults(data, config)[1]) for config in (whole, one)
    )  # fmt: skip
    assert list(persistent.heads) == ["persistent"]
    specs = clip_specs(*with_defaults(data, one))
    costs = [step_cost(encoder.config, "teg", specs, 4, RunConfig()) for encoder in (both, persistent)]
    alone = step_cost(replace(both.config, heads=("persistent",)), "teg", specs, 4, RunConfig())
    assert costs[1] == alone
    assert costs[1].flops < costs[0].flops
