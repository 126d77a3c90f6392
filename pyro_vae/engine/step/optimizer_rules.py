r"""Update rules of torch's optimizers as pure functions of tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from pyro_vae.engine.compilation.computed_once import computed_once

State = dict[str, Tensor]


@dataclass(frozen=True)
class Rule:
    """The update rule of an optimizer for one parameter.

    Attributes:
        update: Function from the parameter, its gradient, its state, the learning rate of this step (a float64
            scalar), the number of the step, from 1 (a float64 scalar), and the group's options to the new parameter
            and state.
        initial: Function from the parameter and the group's options to the state before the first step.
        counts: Whether the optimizer keeps a counter of its steps.
    """

    update: Callable[[Tensor, Tensor, State, Tensor, Tensor, Mapping[str, Any]], tuple[Tensor, State]]
    initial: Callable[[Tensor, Mapping[str, Any]], State]
    counts: bool = True


def rule_for(optimizer: torch.optim.Optimizer) -> Rule | None:
    """Returns the update rule of an optimizer of torch.

    None if no rule is known, if the instance has its own `step` method, or if there are hooks.
    """
    hooks = (
        *(optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks),
        *(_global_optimizer_pre_hooks, _global_optimizer_post_hooks),
    )
    step = vars(optimizer).get("step")  # a learning rate schedule sets one that counts
    if any(hooks) or any(group.get("differentiable") for group in optimizer.param_groups):
        return None
    if step is not None and not getattr(step, "_wrapped_by_lr_sched", False):
        return None
    return RULES.get(type(optimizer))


def options_of(group: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a group's options, without its parameters and its learning rate, which may change at every step."""
    return {k: v for k, v in group.items() if k not in {"params", "lr", "initial_lr", "foreach", "fused", "capturable"}}


def _gradient(parameter: Tensor, gradient: Tensor, options: Mapping[str, Any], decay: bool = True) -> Tensor:
    gradient = -gradient if options.get("maximize") else gradient
    weight = options.get("weight_decay", 0)
    return gradient + weight * parameter if decay and weight else gradient


def _sgd(p: Tensor, g: Tensor, state: State, rate: Tensor, step: Tensor, o: Mapping[str, Any]) -> tuple[Tensor, State]:
    g = _gradient(p, g, o)
    if not o["momentum"]:
        return p - rate.to(p.dtype) * g, {}
    # In torch, the first buffer is the gradient itself, whatever the dampening.
    moved = o["momentum"] * state["momentum_buffer"] + (1 - o["dampening"]) * g
    buffer = torch.where(step == 1, g, moved)
    g = g + o["momentum"] * buffer if o["nesterov"] else buffer
    return p - rate.to(p.dtype) * g, {"momentum_buffer": buffer}


def _adagrad(
    p: Tensor, g: Tensor, state: State, rate: Tensor, step: Tensor, o: Mapping[str, Any]
) -> tuple[Tensor, State]:
    g = _gradient(p, g, o)
    total = state["sum"] + g * g
    rate = rate / (1 + (step - 1) * o["lr_decay"])
    return p - rate.to(p.dtype) * (g / (total.sqrt() + o["eps"])), {"sum": total}


def _adam(p: Tensor, g: Tensor, state: State, rate: Tensor, step: Tensor, o: Mapping[str, Any]) -> tuple[Tensor, State]:
    decoupled = bool(o.get("decoupled_weight_decay"))
    g = _gradient(p, g, o, decay=not decoupled)
    if decoupled and o["weight_decay"]:
        p = p * (1 - rate * o["weight_decay"]).to(p.dtype)
    b1, b2 = (float(b) for b in o["betas"])
    mean = state["exp_avg"] + (1 - b1) * (g - state["exp_avg"])
    square = b2 * state["exp_avg_sq"] + (1 - b2) * g * g
    new = {"exp_avg": mean, "exp_avg_sq": square}
    if o["amsgrad"]:
        new["max_exp_avg_sq"] = square = torch.maximum(state["max_exp_avg_sq"], square)
    size = computed_once((rate / (1 - b1**step)).to(p.dtype))
    root = computed_once((1 - b2**step).sqrt().to(p.dtype))
    return p - size * (mean / (square.sqrt() / root + o["eps"])), new


def _zeros(*names: str) -> Callable[[Tensor, Mapping[str, Any]], State]:
    return lambda p, options: {name: torch.zeros_like(p, memory_format=torch.preserve_format) for name in names}


def _of_adam(p: Tensor, options: Mapping[str, Any]) -> State:
    names = ("exp_avg", "exp_avg_sq", *(["max_exp_avg_sq"] if options["amsgrad"] else []))
    return _zeros(*names)(p, options)


RULES: dict[type[torch.optim.Optimizer], Rule] = {
    torch.optim.SGD: Rule(_sgd, lambda p, o: _zeros("momentum_buffer")(p, o) if o["momentum"] else {}, False),
    torch.optim.Adagrad: Rule(_adagrad, lambda p, o: {"sum": torch.full_like(p, o["initial_accumulator_value"])}),
    torch.optim.Adam: Rule(_adam, _of_adam),
    torch.optim.AdamW: Rule(_adam, _of_adam),
}
