"""Optimisers and the learning-rate schedule, in PyTorch's form and in the form of the paper's family of recipes.

The reference code keeps the learning rate *inside* the velocity (v ← m·v - lr·g; w ← w + v); PyTorch keeps it outside
(v ← m·v + g; w ← w - lr·v). Both are the same while the rate is constant and differ as soon as it moves.
:class:`ReferenceSGD` and :class:`ReferenceLARS` are the reference's updates, exactly; ``sgd`` and ``adamw`` are
PyTorch's own. Learning rates count for the mean loss over the global batch: gradients are averaged over processes, as
DDP does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn
from torch.optim.optimizer import ParamsT

_KERNEL_MODULES = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
_VECTOR_MODULES = (nn.LayerNorm, nn.RMSNorm, nn.Embedding)  # whose parameters may look like a matrix


@dataclass
class OptimConfig:
    """How the weights move.

    Args:
        name: sgd and adamw are PyTorch's; reference_sgd and lars are those of the paper's family of recipes, with the
            learning rate inside the velocity.
        learning_rate: Peak of the schedule, for the mean loss over the global batch. (The family's published 0.32 is
            applied to a sum over its replicas; see docs/benchmarks.md.)
        momentum: Of sgd, reference_sgd and lars.
        nesterov: Nesterov's momentum for sgd, reference_sgd and lars.
        weight_decay: On weights of convolutions, linear layers and attention only; biases and normalisation have none.
            Added to the gradient, except with adamw, which decays the weights themselves.
        betas: Of adamw.
        trust_coefficient: Of lars: step length of a layer in units of its weights' norm.
    """

    name: Literal["sgd", "reference_sgd", "adamw", "lars"] = "sgd"
    learning_rate: float = 0.32
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 1e-6
    betas: tuple[float, float] = (0.9, 0.999)
    trust_coefficient: float = 1e-3

    def __post_init__(self) -> None:
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ValueError(f"learning_rate must be above 0, got {self.learning_rate}")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay must be 0 or more, got {self.weight_decay}")
        if not 0 < self.trust_coefficient < math.inf:
            raise ValueError(f"trust_coefficient must be above 0, got {self.trust_coefficient}")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must be two numbers of at least 0 and below 1, got {self.betas}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must be at least 0 and below 1, got {self.momentum}")
        others = {"betas": "adamw", "trust_coefficient": "lars"}
        ignored = [name for name, owner in others.items() if self.name != owner]
        ignored += ["momentum", "nesterov"] if self.name == "adamw" else []
        fields = type(self).__dataclass_fields__
        self.betas = (self.betas[0], self.betas[1])
        if given := [name for name in ignored if getattr(self, name) != fields[name].default]:
            raise ValueError(f"the optimiser {self.name} has no {' and no '.join(given)}: leave it out")
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs a momentum above 0")


def warmup_cosine(step: int, *, base_lr: float, warmup_steps: int, total_steps: int) -> float:
    """Learning rate of one update: linear warm-up from 0, then half a cosine down to 0.

    As in the reference code, the cosine counts from step 0 and not from the end of the warm-up, so the peak is the
    cosine's value at ``warmup_steps``, a little below ``base_lr``; the first update has rate 0.

    Args:
        step: Number of updates done before this one.
        base_lr: Rate at the top of the cosine.
        warmup_steps: Updates of the linear warm-up; 0 for none.
        total_steps: Updates after which the rate is and stays 0.

    Raises:
        ValueError: If the warm-up is not shorter than the whole run: the rate would be 0 throughout.

    Example:
        >>> [round(warmup_cosine(s, base_lr=1.0, warmup_steps=2, total_steps=4), 2) for s in range(5)]
        [0.0, 0.25, 0.5, 0.15, 0.0]
    """
    if not 0 <= warmup_steps < total_steps:
        raise ValueError(
            f"the warm-up of {warmup_steps} steps must be shorter than the run of {total_steps} steps, or the learning "
            f"rate would be 0 throughout: train longer, or warm up for fewer steps"
        )

    def cosine(at: int) -> float:
        return 0.5 * base_lr * (1.0 + math.cos(math.pi * min(at, total_steps) / total_steps))

    return step / warmup_steps * cosine(warmup_steps) if step < warmup_steps else cosine(step)


def schedule(*, warmup_steps: int, total_steps: int) -> Callable[[int], float]:
    """:func:`warmup_cosine` as the factor that ``torch.optim.lr_scheduler.LambdaLR`` asks for, stepped every update."""
    warmup_cosine(0, base_lr=1.0, warmup_steps=warmup_steps, total_steps=total_steps)  # refuse bad lengths now

    def factor(step: int) -> float:
        return warmup_cosine(step, base_lr=1.0, warmup_steps=warmup_steps, total_steps=total_steps)

    return factor


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Split trainable parameters into kernels, which decay, and others, which do not.

    Kernels are the weights of convolutions and linear layers, and whatever else is a matrix, such as the joint one of an
    attention's queries, keys and values. Others are vectors: biases, scales and shifts of normalisation, learned tokens.
    This is the reference's rule (variables named "kernel"), by what a parameter is instead of by its name.

    Args:
        module: Whose parameters; frozen ones are left out, shared ones appear once.
        weight_decay: Of the kernels.

    Returns:
        Up to two groups, ``kernels`` first, for any ``torch.optim`` optimiser; each has a ``name``.
    """
    kernels = {
        id(parameter)
        for layer in module.modules()
        for name, parameter in layer.named_parameters(recurse=False)
        if _is_kernel(layer, name, parameter)
    }
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = (
        ("kernels", [p for p in trainable if id(p) in kernels], weight_decay),
        ("others", [p for p in trainable if id(p) not in kernels], 0.0),
    )
    return [{"name": name, "params": params, "weight_decay": decay} for name, params, decay in groups if params]


def _is_kernel(layer: nn.Module, name: str, parameter: Tensor) -> bool:
    if isinstance(layer, _KERNEL_MODULES):
        return name == "weight"  # also where it is one row or column
    return not isinstance(layer, _VECTOR_MODULES) and sum(size > 1 for size in parameter.shape) > 1


def build_optimizer(module: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """The optimiser of a module's trainable parameters, weight decay on kernels only.

    State that is loaded into it is laid out as the parameters are: fused updates read memory in order.

    Raises:
        ValueError: If nothing in ``module`` is trainable.
    """
    optimizer = _optimizer(module, config)
    optimizer.register_load_state_dict_post_hook(_lay_out_state)
    return optimizer


def _lay_out_state(optimizer: torch.optim.Optimizer) -> None:
    """Give what an optimiser keeps of each parameter that parameter's memory layout."""
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _optimizer(module: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    groups = parameter_groups(module, config.weight_decay)
    if not groups:
        raise ValueError("there is nothing to train: every parameter is frozen")
    rate, momentum, nesterov = config.learning_rate, config.momentum, config.nesterov
    # Elsewhere None leaves the choice of implementation to PyTorch.
    fused = _can_fuse(parameter for group in groups for parameter in group["params"]) or None
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=rate, momentum=momentum, nesterov=nesterov, fused=fused)
    if config.name == "adamw":
        return torch.optim.AdamW(groups, lr=rate, betas=config.betas, fused=fused)
    if config.name == "reference_sgd":
        return ReferenceSGD(groups, lr=rate, momentum=momentum, nesterov=nesterov)
    if config.name == "lars":
        for group in groups:
            group["layer_adaptation"] = group["name"] == "kernels"
        return ReferenceLARS(
            groups, lr=rate, momentum=momentum, nesterov=nesterov, trust_coefficient=config.trust_coefficient
        )
    raise ValueError(f"no optimiser {config.name!r}: choose sgd, reference_sgd, adamw or lars")


def _can_fuse(parameters: Iterable[Tensor]) -> bool:
    """Whether PyTorch has one kernel for the whole update of these parameters."""
    return all(parameter.device.type in ("cpu", "cuda") and parameter.is_floating_point() for parameter in parameters)


class ReferenceSGD(torch.optim.Optimizer):
    """SGD with the learning rate inside the velocity, as Keras has it: v ← m·v - lr·g; w ← w + v.

    With ``nesterov``: w ← w + m·v - lr·g, with the new v. Weight decay is L2: g ← g + weight_decay·w.

    Args:
        params: Parameters or groups; a group may set its own ``weight_decay``.
        lr: Learning rate.
        momentum: m.
        nesterov: Look ahead along the new velocity.
        weight_decay: λ of the loss term λ/2·|w|².
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        momentum: float = 0.9,
        nesterov: bool = False,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay})

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Do one update; ``closure`` recomputes the loss, if given."""
        loss = _evaluate(closure)
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                gradient = _with_decay(weight, group["weight_decay"])
                velocity = _velocity(self.state[weight], weight)
                velocity.mul_(group["momentum"]).sub_(gradient, alpha=group["lr"])
                if group["nesterov"]:
                    weight.add_(velocity, alpha=group["momentum"]).sub_(gradient, alpha=group["lr"])
                else:
                    weight.add_(velocity)
        return loss


class ReferenceLARS(torch.optim.Optimizer):
    """Layer-wise adaptive rates as the reference family's code base has them.

    With g ← g + weight_decay·w, and trust(u) = trust_coefficient·|w|/|u| where both norms are above 0, else 1:

    - classic momentum: v ← m·v + lr·trust(g)·g; w ← w - v (nesterov: w ← w - m·v - lr·trust(g)·g);
    - popular momentum: v ← m·v + g; u = v (nesterov: m·v + g); w ← w - lr·trust(u)·u.

    Other implementations differ from both: they divide by |g| + weight_decay·|w| and keep the rate outside.

    Args:
        params: Parameters or groups; a group may set its own ``weight_decay`` and ``layer_adaptation``.
        lr: Learning rate.
        momentum: m.
        nesterov: Look ahead along the new velocity.
        weight_decay: L2 added to the gradient.
        trust_coefficient: The reference's ``eeta``.
        classic_momentum: Rate and trust inside the velocity (the reference's default), or outside ("popular").
        layer_adaptation: Whether trust is computed; False makes it 1, for biases and normalisation.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        momentum: float = 0.9,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        trust_coefficient: float = 1e-3,
        classic_momentum: bool = True,
        layer_adaptation: bool = True,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "nesterov": nesterov,
            "weight_decay": weight_decay,
            "trust_coefficient": trust_coefficient,
            "classic_momentum": classic_momentum,
            "layer_adaptation": layer_adaptation,
        }
        super().__init__(params, defaults)

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Do one update; ``closure`` recomputes the loss, if given."""
        loss = _evaluate(closure)
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._update(weight, group)
        return loss

    def _update(self, weight: Tensor, group: dict[str, Any]) -> None:
        """Move one weight; rate and trust enter before the velocity (classic) or after it (popular)."""
        momentum: float = group["momentum"]
        gradient = _with_decay(weight, group["weight_decay"])
        velocity = _velocity(self.state[weight], weight)
        if group["classic_momentum"]:
            gradient = gradient * (group["lr"] * _trust(weight, gradient, group))
        velocity.mul_(momentum).add_(gradient)
        update = velocity * momentum + gradient if group["nesterov"] else velocity
        if not group["classic_momentum"]:
            update = update * (group["lr"] * _trust(weight, update, group))
        weight.sub_(update)


def _trust(weight: Tensor, update: Tensor, group: dict[str, Any]) -> Tensor:
    """LARS's ratio of a weight's norm to its update's, a scalar that stays on the device."""
    one = weight.new_ones(())
    if not group["layer_adaptation"]:
        return one
    weight_norm, update_norm = weight.norm(), update.norm()
    ratio = group["trust_coefficient"] * weight_norm / update_norm
    return torch.where((weight_norm > 0) & (update_norm > 0), ratio, one)


def _with_decay(weight: Tensor, weight_decay: float) -> Tensor:
    """The gradient with L2 added; ``weight.grad`` itself stays as it is."""
    assert weight.grad is not None
    return weight.grad.add(weight, alpha=weight_decay) if weight_decay else weight.grad


def _velocity(state: dict[str, Any], weight: Tensor) -> Tensor:
    """The weight's running velocity, 0 before its first update."""
    if "velocity" not in state:
        state["velocity"] = torch.zeros_like(weight, memory_format=torch.preserve_format)
    velocity: Tensor = state["velocity"]
    return velocity


def _evaluate(closure: Callable[[], float] | None) -> float | None:
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()
