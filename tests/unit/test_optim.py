"""Schedule, parameter groups, and optimisers that continue bit for bit."""

from __future__ import annotations

import copy
import itertools
from typing import Any, get_args, get_type_hints

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from timegrain.models.boundary import BoundaryConfig, BoundaryDetector
from timegrain.models.classifiers import AttentiveClassifier, LinearClassifier
from timegrain.models.hub import BACKBONES, EncoderConfig, VideoEncoder, build_backbone
from timegrain.models.localizer import ActionLocalizer
from timegrain.optim import (
    OptimConfig,
    ReferenceLARS,
    ReferenceSGD,
    build_optimizer,
    parameter_groups,
    schedule,
    warmup_cosine,
)
from timegrain.tasks.config import DataConfig, ModelConfig, ObjectiveConfig, RunConfig, with_defaults
from timegrain.tasks.pretrain import build_objective
from timegrain.tasks.setup import with_queue

NAMES = ("sgd", "reference_sgd", "adamw", "lars")
LENGTHS = st.tuples(st.integers(0, 50), st.integers(1, 400)).map(lambda pair: (pair[0], pair[0] + pair[1]))


@given(LENGTHS, st.floats(1e-4, 100))
def test_schedule_rises_then_falls_to_zero(lengths: tuple[int, int], base: float) -> None:
    warmup, total = lengths
    rates = [warmup_cosine(s, base_lr=base, warmup_steps=warmup, total_steps=total) for s in range(total + 5)]
    assert all(0 <= rate <= base for rate in rates)
    assert all(low < high for low, high in itertools.pairwise(rates[: warmup + 1]))
    assert all(high > low for high, low in itertools.pairwise(rates[warmup : total + 1]))
    assert rates[total:] == pytest.approx([0.0] * 5, abs=1e-15 * base)
    assert max(rates) == rates[warmup]
    if warmup:
        assert rates[0] == 0
        assert rates[warmup - 1] == pytest.approx(rates[warmup] * (warmup - 1) / warmup)


@given(LENGTHS, st.integers(0, 500))
def test_schedule_is_proportional_to_its_base(lengths: tuple[int, int], step: int) -> None:
    factor = schedule(warmup_steps=lengths[0], total_steps=lengths[1])
    rate = warmup_cosine(step, base_lr=0.32, warmup_steps=lengths[0], total_steps=lengths[1])
    assert rate == pytest.approx(0.32 * factor(step), rel=1e-12)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "adamw", "momentum": 0.8}, "the optimiser adamw has no momentum"),
        ({"name": "adamw", "nesterov": True}, "has no nesterov"),
        ({"name": "sgd", "betas": (0.9, 0.99)}, "the optimiser sgd has no betas"),
        ({"name": "reference_sgd", "trust_coefficient": 0.1}, "has no trust_coefficient"),
    ],
)
def test_what_an_optimiser_does_not_have_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        OptimConfig(**options)
    assert OptimConfig(name="adamw", betas=[0.9, 0.999], momentum=0.9).betas == (0.9, 0.999)


@pytest.mark.parametrize(("warmup", "total"), [(5, 5), (6, 5), (0, 0), (-1, 5)])
def test_a_run_that_never_leaves_its_warm_up_is_refused(warmup: int, total: int) -> None:
    with pytest.raises(ValueError, match=f"warm-up of {warmup} steps must be shorter than the run of {total} steps"):
        warmup_cosine(0, base_lr=1.0, warmup_steps=warmup, total_steps=total)
    with pytest.raises(ValueError, match="warm-up"):
        schedule(warmup_steps=warmup, total_steps=total)


class Mixture(nn.Module):
    """Every kind of parameter: shared, frozen, bare, normalised."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(3, 4, (1, 3, 3))
        self.norm = nn.BatchNorm3d(4)
        self.linear = nn.Linear(4, 4)
        self.tied = nn.Linear(4, 4, bias=False)
        self.tied.weight = self.linear.weight
        self.frozen = nn.Linear(4, 4)
        self.frozen.requires_grad_(False)
        self.token = nn.Parameter(torch.zeros(1, 4))


def test_groups_cover_every_trainable_parameter_once() -> None:
    module = Mixture()
    kernels, others = parameter_groups(module, 0.1)
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    assert [names[id(p)] for p in kernels["params"]] == ["conv.weight", "linear.weight"]
    assert sorted(names[id(p)] for p in others["params"]) == sorted(
        ["conv.bias", "norm.weight", "norm.bias", "linear.bias", "token"]
    )
    assert (kernels["name"], kernels["weight_decay"]) == ("kernels", 0.1)
    assert (others["name"], others["weight_decay"]) == ("others", 0.0)


def networks() -> dict[str, nn.Module]:
    """One of every network that a command trains, on the meta device: only their parameters' names and kinds count."""
    clip = {"num_frames": 8, "stride": 2, "crop_size": 32}
    with torch.device("meta"):
        made: dict[str, nn.Module] = {f"backbone {name}": build_backbone(name) for name in BACKBONES}
        for name in get_args(get_type_hints(ObjectiveConfig)["name"]):
            data, objective = with_defaults(DataConfig(crop_size=24, batch_size=4), ObjectiveConfig(name=name))
            objective = with_queue(objective, data, RunConfig(), 100)
            made[f"objective {name}"] = build_objective(data, ModelConfig(backbone="r3d_tiny"), objective, None)
        made["linear"], made["attentive"] = LinearClassifier(12, 3), AttentiveClassifier(12, 3, num_blocks=2)
        made["localizer"] = ActionLocalizer(VideoEncoder(EncoderConfig("r3d_tiny")), 3)
        for method in get_args(get_type_hints(BoundaryConfig)["method"]):
            config = BoundaryConfig(method=method, backbone="r3d_tiny", frozen=method in ("tcn", "bmn"), **clip)
            made[f"boundaries {method}"] = BoundaryDetector(config)
        made["boundaries resnet50"] = BoundaryDetector(BoundaryConfig(method="pc", backbone="resnet50", **clip))
    return made


def test_of_every_network_only_biases_and_norms_do_not_decay() -> None:
    norms = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm)
    for name, network in networks().items():
        of_norms = {
            f"{place}.{part}".lstrip(".")
            for place, layer in network.named_modules()
            if isinstance(layer, norms)
            for part, _ in layer.named_parameters(recurse=False)
        }
        decaying = {id(p) for g in parameter_groups(network, 0.1) if g["weight_decay"] for p in g["params"]}
        free = {place for place, p in network.named_parameters() if p.requires_grad and id(p) not in decaying}
        wanted = {place for place, _ in network.named_parameters() if place.endswith("bias")} | of_norms
        trained = {place for place, p in network.named_parameters() if p.requires_grad}
        # A learned query is a token, not a map between features.
        assert free == (wanted & trained) | ({"query"} if name == "attentive" else set()), name
    assert "blocks.0.self_attn.in_proj_weight" in dict(networks()["attentive"].named_parameters())


def test_attention_with_keys_of_another_size_decays_too() -> None:
    attention = nn.MultiheadAttention(4, 2, kdim=3, vdim=5, add_bias_kv=True)
    kernels, others = parameter_groups(attention, 0.1)
    assert len(kernels["params"]) == 4  # queries, keys, values, out
    assert {parameter.numel() for parameter in others["params"]} == {4, 12}


def test_an_empty_group_is_left_out() -> None:
    (group,) = parameter_groups(nn.Linear(2, 2, bias=False), 0.1)
    assert group["name"] == "kernels"
    (group,) = parameter_groups(nn.BatchNorm1d(2), 0.1)
    assert group["name"] == "others"


def test_nothing_to_train_is_an_error() -> None:
    with pytest.raises(ValueError, match="nothing to train"):
        build_optimizer(nn.Linear(2, 2).requires_grad_(False), OptimConfig())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"weight_decay": -1.0}, "weight_decay"),
        ({"weight_decay": float("inf")}, "weight_decay"),
        ({"trust_coefficient": 0.0}, "trust_coefficient"),
        ({"betas": (0.9, 1.0)}, "betas"),
        ({"momentum": 1.0}, "momentum"),
        ({"momentum": 0.0, "nesterov": True}, "nesterov"),
    ],
)
def test_impossible_settings_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OptimConfig(**options)


def test_an_unknown_name_lists_the_known_ones() -> None:
    config = OptimConfig(name="rmsprop")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="choose sgd, reference_sgd, adamw or lars"):
        build_optimizer(nn.Linear(2, 2), config)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("sgd", torch.optim.SGD),
        ("adamw", torch.optim.AdamW),
        ("reference_sgd", ReferenceSGD),
        ("lars", ReferenceLARS),
    ],
)
def test_settings_arrive(name: Any, kind: type) -> None:
    own: dict[str, Any] = {"betas": (0.8, 0.95)} if name == "adamw" else {"momentum": 0.8}
    config = OptimConfig(name=name, learning_rate=0.5, weight_decay=0.01, **own)
    optimizer = build_optimizer(Mixture(), config)
    assert type(optimizer) is kind
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.01, 0.0]
    for group in optimizer.param_groups:
        assert group["lr"] == 0.5
        assert group["betas"] == (0.8, 0.95) if name == "adamw" else group["momentum"] == 0.8
    if name == "lars":
        assert [group["layer_adaptation"] for group in optimizer.param_groups] == [True, False]
        assert [group["trust_coefficient"] for group in optimizer.param_groups] == [1e-3, 1e-3]


def small_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))


def train(
    network: nn.Module, optimizer: torch.optim.Optimizer, steps: range, scheduler: torch.optim.lr_scheduler.LambdaLR
) -> None:
    for step in steps:
        inputs = torch.randn(16, 6, generator=torch.Generator().manual_seed(step)).to(next(network.parameters()))
        optimizer.zero_grad()
        network(inputs).square().sum().backward()
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize(
    ("name", "nesterov"),
    [("adamw", False), *itertools.product([name for name in NAMES if name != "adamw"], [False, True])],
)
def test_resumed_training_is_bit_identical(name: Any, nesterov: bool, tmp_path: Any) -> None:
    config = OptimConfig(name=name, learning_rate=0.01, nesterov=nesterov, weight_decay=1e-3)

    def parts() -> tuple[nn.Module, torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
        network = small_network()
        optimizer = build_optimizer(network, config)
        factor = schedule(warmup_steps=2, total_steps=9)
        return network, optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)

    network, optimizer, scheduler = parts()
    before = [p.detach().clone() for p in network.parameters()]
    train(network, optimizer, range(4), scheduler)
    torch.save([network.state_dict(), optimizer.state_dict(), scheduler.state_dict()], tmp_path / "half.pt")
    train(network, optimizer, range(4, 8), scheduler)

    resumed, resumed_optimizer, resumed_scheduler = parts()
    states = torch.load(tmp_path / "half.pt", weights_only=True)
    for part, state in zip((resumed, resumed_optimizer, resumed_scheduler), states, strict=True):
        part.load_state_dict(state)
    train(resumed, resumed_optimizer, range(4, 8), resumed_scheduler)
    for whole, continued, start in zip(network.parameters(), resumed.parameters(), before, strict=True):
        assert torch.equal(whole, continued)
        assert whole.ndim == 1 or not torch.equal(whole, start)  # a bias before a norm has no gradient


@pytest.mark.parametrize("nesterov", [False, True])
def test_reference_sgd_is_torch_sgd_while_the_rate_is_constant(nesterov: bool) -> None:
    ours, theirs = small_network().double(), small_network().double()
    options = {"lr": 0.02, "momentum": 0.9, "nesterov": nesterov, "weight_decay": 0.01}
    constant = {"warmup_steps": 0, "total_steps": 10**9}
    for network, kind in ((ours, ReferenceSGD), (theirs, torch.optim.SGD)):
        optimizer = kind(network.parameters(), **options)
        train(network, optimizer, range(6), torch.optim.lr_scheduler.LambdaLR(optimizer, schedule(**constant)))
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_lars_steps_by_the_norm_of_the_weights_whatever_the_gradients_scale() -> None:
    lengths = []
    for scale in (1.0, 1000.0):
        weight = torch.full((3, 2), 0.5).requires_grad_()
        weight.grad = torch.ones(3, 2) * scale
        ReferenceLARS([weight], lr=2.0, trust_coefficient=0.01).step()
        lengths.append((weight.detach() - 0.5).norm())
    torch.testing.assert_close(lengths, [torch.full((3, 2), 0.5).norm() * 0.02] * 2)


@pytest.mark.parametrize("kind", [ReferenceSGD, ReferenceLARS])
def test_closures_and_missing_gradients(kind: type[torch.optim.Optimizer]) -> None:
    used, unused = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    optimizer = kind([used, unused], lr=0.1)  # type: ignore[call-arg]

    def closure() -> float:
        optimizer.zero_grad()
        loss = used.square().sum()
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) == 2.0
    assert not torch.equal(used.detach(), torch.ones(2))
    assert torch.equal(unused.detach(), torch.ones(2))
    gradient = used.grad.clone()
    optimizer.step()
    assert torch.equal(used.grad, gradient)  # weight decay and momentum leave the gradient itself alone


@pytest.mark.parametrize("name", NAMES)
def test_state_in_another_layout_goes_on_the_same(name: Any) -> None:
    """A run begun on a GPU and continued on a CPU, where kernels are channels-last."""

    def go_on(layout: torch.memory_format, optimizer_state: dict[str, Any] | None) -> tuple[nn.Conv3d, dict[str, Any]]:
        torch.manual_seed(0)
        network = nn.Conv3d(4, 5, (1, 3, 3), bias=False)
        network.weight.data = network.weight.data.contiguous(memory_format=layout)
        optimizer = build_optimizer(network, OptimConfig(name=name, learning_rate=0.1))
        if optimizer_state is not None:
            optimizer.load_state_dict(copy.deepcopy(optimizer_state))  # else its tensors are used as they are
        clips = torch.randn(2, 4, 3, 6, 6, generator=torch.Generator().manual_seed(1))
        network(clips).square().mean().backward()
        optimizer.step()
        return network, optimizer.state_dict()

    _, state = go_on(torch.contiguous_format, None)
    plain, _ = go_on(torch.contiguous_format, state)
    turned, found = go_on(torch.channels_last_3d, state)
    torch.testing.assert_close(plain.weight, turned.weight)
    kept = [value for value in found["state"][0].values() if isinstance(value, torch.Tensor) and value.ndim == 5]
    assert kept
    assert all(value.is_contiguous(memory_format=torch.channels_last_3d) for value in kept)
