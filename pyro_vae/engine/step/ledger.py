r"""Shared state of the steps of a run: learning rates, counters, and a flag for failure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vae.engine.step.optimizer_rules import State, options_of, rule_for


class Ledger:
    """Shared state of the steps of a run, on the device: learning rates, counters, and a flag for failure.

    After the first loss or gradient that is not finite, steps change nothing. Call `read` after the optimizer took
    steps outside the engine, and `write` before it does.

    Arguments:
        optimizer: The user's optimizer.
        moved: The parameters that each kind of step moves.
        device: Device of the parameters.
        previous: Tensors for the values of parameters before their last update, by the parameter's id.

    Attributes:
        rule: Update rule of the optimizer; None if the optimizer takes its own step with the gradients.
        failed: Whether a loss or gradient was not finite, a boolean scalar.
        done: Number of updates made, an integer scalar.
        rates: Learning rate of each of the optimizer's groups, float64 scalars.
        counts: Number of steps of each set of parameters that always move together, float64 scalars.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        moved: Sequence[Sequence[nn.Parameter]],
        device: torch.device,
        previous: Mapping[int, Tensor] | None = None,
    ) -> None:
        self.optimizer, self.rule, self._previous = optimizer, rule_for(optimizer), dict(previous or {})
        self.options = [options_of(group) for group in optimizer.param_groups]
        self._group = {id(p): i for i, group in enumerate(optimizer.param_groups) for p in group["params"]}
        self.failed = torch.zeros((), dtype=torch.bool, device=device)
        self.done = torch.zeros((), dtype=torch.int64, device=device)
        self._known = [float(group["lr"]) for group in optimizer.param_groups]
        self.rates = [torch.tensor(rate, dtype=torch.float64, device=device) for rate in self._known]
        together: dict[tuple[Any, ...], list[nn.Parameter]] = {}
        for parameter in {id(p): p for parameters in moved for p in parameters}.values():
            steps = tuple(any(p is parameter for p in parameters) for parameters in moved)
            together.setdefault((steps, self._taken(parameter)), []).append(parameter)
        self._together = list(together.values())
        self._part = {id(p): i for i, parameters in enumerate(self._together) for p in parameters}
        self.counts = [torch.zeros((), dtype=torch.float64, device=device) for _ in self._together]
        self.read()

    def group_of(self, parameter: nn.Parameter) -> int:
        """Returns the index of a parameter's learning rate in `rates`, and of its options in `options`."""
        return self._group[id(parameter)]

    def part_of(self, parameter: nn.Parameter) -> int:
        """Returns the index of a parameter's counter in `counts`."""
        return self._part[id(parameter)]

    def previous_of(self, parameter: nn.Parameter) -> list[Tensor]:
        """Returns the buffer for a parameter's previous value in a list; an empty list if it is not kept."""
        return [self._previous[id(parameter)]] if id(parameter) in self._previous else []

    def state_of(self, parameter: nn.Parameter) -> State:
        """Returns the optimizer's state of a parameter without its counter; initialises it if needed."""
        if self.rule is None:
            return {}
        begun = self.rule.initial(parameter.detach(), self.options[self.group_of(parameter)])
        if not begun:
            return {}
        state = self.optimizer.state[parameter]
        for key, value in begun.items():
            if state.get(key) is None:
                state[key] = value
        return {key: state[key] for key in begun}

    def read(self) -> None:
        """Copies the optimizer's step counters to `counts`."""
        for count, parameters in zip(self.counts, self._together, strict=True):
            count.fill_(self._taken(parameters[0]))

    def write(self) -> None:
        """Copies `counts` to the optimizer's step counters."""
        if self.rule is None or not self.rule.counts:
            return
        for count, parameters in zip(self.counts, self._together, strict=True):
            steps = float(count)
            for parameter in parameters:
                state = self.optimizer.state[parameter]
                if "step" in state:
                    state["step"].fill_(steps)
                elif steps:
                    state["step"] = torch.tensor(steps, dtype=torch.float32)

    def read_options(self) -> None:
        """Reads the options of the optimizer's groups, such as a weight decay, for steps that are captured later."""
        self.options = [options_of(group) for group in self.optimizer.param_groups]

    def read_rates(self) -> None:
        """Copies the learning rates of the optimizer's groups to `rates`."""
        for i, group in enumerate(self.optimizer.param_groups):
            rate = float(group["lr"])
            if rate != self._known[i]:
                self._known[i] = rate
                self.rates[i].fill_(rate)

    def write_rates(self, rates: Sequence[float]) -> None:
        """Copies the learning rates of the last step, which are in `rates` already, to the optimizer's groups."""
        self._known = list(rates)
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate

    def _taken(self, parameter: nn.Parameter) -> float:
        state = self.optimizer.state.get(parameter, {})
        # SGD with momentum has no counter; if it has a buffer, the first step is over.
        return float(state.get("step", state.get("momentum_buffer") is not None))
