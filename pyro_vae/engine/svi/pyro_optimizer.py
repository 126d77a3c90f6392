r"""The optimizers of a ``PyroOptim``, one for each parameter, as a single optimizer."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any, cast

import torch
from pyro.optim import PyroOptim
from pyro.optim.optim import is_scheduler
from torch import Tensor, nn

from pyro_vae.engine.step.ledger import Ledger
from pyro_vae.engine.step.optimizer_rules import Rule, options_of, rule_for


class _Whole(torch.optim.Optimizer):
    """All optimizers of a PyroOptim with the interface of a single one; each takes its own step."""

    def __init__(self, optim: PyroOptim, parameters: Sequence[Tensor]) -> None:
        # Without the constructor of the base class, which would make new groups.
        self.optim, self.parameters = optim, list(parameters)
        self._optimizer_step_pre_hooks = OrderedDict()
        self._optimizer_step_post_hooks = OrderedDict()

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.optim(self.parameters)

    def zero_grad(self, set_to_none: bool = True) -> None:
        for parameter in self.parameters:
            parameter.grad = None if set_to_none or parameter.grad is None else torch.zeros_like(parameter.grad)


class MergedOptimizer:
    r"""The optimizers that a ``PyroOptim`` keeps for some parameters, as a single optimizer with the same states.

    States and groups are shared objects, so compiled steps change them for Pyro too. The step counters become entries
    of one tensor, which shows the steps that others take in between.

    Arguments:
        optim: The user's ``PyroOptim``.
        parameters: Unconstrained values in the parameter store; each must have its optimizer already.
        fuse: Whether to use the optimizer's update rule, if it is known.

    Attributes:
        optimizer: The single optimizer, for a `Ledger`.
        ledger: Ledger of the steps.
    """

    def __init__(self, optim: PyroOptim, parameters: Sequence[Tensor], fuse: bool = True) -> None:
        self.optim, self.parameters = optim, list(parameters)
        self._own = [optim.optim_objs[p] for p in self.parameters]
        self._inner: list[torch.optim.Optimizer] = [o.optimizer if is_scheduler(o) else o for o in self._own]
        self._clips = [optim.grad_clip.get(p) for p in self.parameters]
        self._groups: list[dict[str, Any]] = [group for o in self._inner for group in o.param_groups]
        self._readers = [_reader(group) for group in self._groups]
        self._set = self._read()
        rule = self._rule() if fuse else None
        self.optimizer = self._whole(rule is not None)
        self._states = [o.state for o in self._inner]
        self._counts: Tensor | None = None
        self._known = torch.empty(0)
        if rule is not None and rule.counts:
            self._adopt()
        moved = cast(list[nn.Parameter], self.parameters)
        self.ledger = Ledger(self.optimizer, [moved], self.parameters[0].device)

    @property
    def options_changed(self) -> bool:
        """Whether an option other than the learning rate has changed."""
        return self._read() != self._set

    @property
    def replaced(self) -> bool:
        """Whether Pyro's optimizers or their states were replaced by other objects."""
        if any(o.state is not s for o, s in zip(self._inner, self._states, strict=True)):
            return True
        objects = self.optim.optim_objs
        return any(objects.get(p) is not o for p, o in zip(self.parameters, self._own, strict=True))

    def follow(self) -> bool:
        """Takes over the counts of steps outside the program; returns whether all parameters made equally many."""
        if self._counts is None:
            return True
        if any(s["step"] is not v for s, v in zip(self._entries, self._views, strict=True)):
            self._adopt()
        if torch.equal(self._counts, self._known):
            return True
        others = self._counts - self._known
        self._known = self._counts.clone()
        self.ledger.read()
        return bool((others == others[0]).all())

    def advance(self) -> None:
        """Counts a step of the program."""
        if self._counts is not None:
            self._counts += 1
            self._known += 1

    # ------------------------------------------------------------------ its parts

    def _read(self) -> list[Any]:
        return [read(group) for read, group in zip(self._readers, self._groups, strict=True)]

    def _rule(self) -> Rule | None:
        """Returns the update rule that all optimizers follow; None if they take their own steps."""
        alone = all(len(o.param_groups) == 1 and len(o.param_groups[0]["params"]) == 1 for o in self._inner)
        same = all(type(o) is type(self._inner[0]) and rule_for(o) is not None for o in self._inner)
        clipped = any(clip is not None for clip in self._clips)
        rule = rule_for(self._inner[0]) if alone and same and not clipped else None
        if rule is not None and rule.counts:
            states = [o.state.get(p, {}) for o, p in zip(self._inner, self.parameters, strict=True)]
            if not all(isinstance(state.get("step"), Tensor) for state in states):
                return None
        return rule

    def _whole(self, fused: bool) -> torch.optim.Optimizer:
        whole: torch.optim.Optimizer = _Whole(self.optim, self.parameters)
        if fused:
            hooks = whole._optimizer_step_pre_hooks, whole._optimizer_step_post_hooks
            whole = object.__new__(type(self._inner[0]))
            whole._optimizer_step_pre_hooks, whole._optimizer_step_post_hooks = hooks
        whole.param_groups = self._groups
        # The inner dictionaries are shared. Optimizers without state must not get one.
        own = zip(self._inner, self.parameters, strict=True)
        whole.state = cast(Any, {p: o.state[p] if p in o.state or _has_state(o) else {} for o, p in own})
        return whole

    def _adopt(self) -> None:
        """Turns the step counters into entries of one tensor."""
        self._entries: list[dict[str, Any]] = [o.state[p] for o, p in zip(self._inner, self.parameters, strict=True)]
        first = self._counts is None
        self._counts = torch.stack([entry["step"].detach().clone() for entry in self._entries])
        self._views = list(self._counts.unbind())
        for entry, view in zip(self._entries, self._views, strict=True):
            entry["step"] = view
        if first:
            self._known = self._counts.clone()


def _has_state(optimizer: torch.optim.Optimizer) -> bool:
    return not isinstance(optimizer, torch.optim.SGD) or bool(optimizer.param_groups[0]["momentum"])


def _reader(group: dict[str, Any]) -> Callable[[dict[str, Any]], Any]:
    """Returns a function that reads the options of a group other than the learning rate."""
    return itemgetter(*options_of(group)) if options_of(group) else len
