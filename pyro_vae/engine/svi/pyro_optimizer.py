r"""The optimizers of a ``PyroOptim``, one for each parameter, as one."""

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
    """All of a PyroOptim's optimizers behind the interface of one, each taking its own step."""

    def __init__(self, optim: PyroOptim, parameters: Sequence[Tensor]) -> None:
        # Not the constructor of the base class, which would make groups of its own.
        self.optim, self.parameters = optim, list(parameters)
        self._optimizer_step_pre_hooks = OrderedDict()
        self._optimizer_step_post_hooks = OrderedDict()

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.optim(self.parameters)

    def zero_grad(self, set_to_none: bool = True) -> None:
        for parameter in self.parameters:
            parameter.grad = None if set_to_none or parameter.grad is None else torch.zeros_like(parameter.grad)


class MergedOptimizer:
    r"""The optimizers that a ``PyroOptim`` keeps for some parameters, as one optimizer with their very states.

    States and groups are the same objects, so that what compiled steps change is changed for Pyro too. The counters
    of steps become entries of one tensor; so steps that others take in between show at once.

    Arguments:
        optim: The user's own.
        parameters: Unconstrained values in the parameter store, of which each has its optimizer already.
        fuse: Whether a rule is used where one is known.

    Attributes:
        optimizer: For a `Ledger`.
        ledger: Of the steps.
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
        """Whether an option other than the learning rate is another than before."""
        return self._read() != self._set

    @property
    def replaced(self) -> bool:
        """Whether Pyro has other optimizers, or states of them, than before."""
        if any(o.state is not s for o, s in zip(self._inner, self._states, strict=True)):
            return True
        objects = self.optim.optim_objs
        return any(objects.get(p) is not o for p, o in zip(self.parameters, self._own, strict=True))

    def follow(self) -> bool:
        """Takes over steps that others took; returns whether they moved all parameters alike."""
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
        """Counts a step that a graph took."""
        if self._counts is not None:
            self._counts += 1
            self._known += 1

    # ------------------------------------------------------------------ its parts

    def _read(self) -> list[Any]:
        return [read(group) for read, group in zip(self._readers, self._groups, strict=True)]

    def _rule(self) -> Rule | None:
        """The rule that all of them follow; None where they take their own steps."""
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
        # The inner dictionaries are shared. An optimizer without memory has none, and is to get none.
        own = zip(self._inner, self.parameters, strict=True)
        whole.state = cast(Any, {p: o.state[p] if p in o.state or _remembers(o) else {} for o, p in own})
        return whole

    def _adopt(self) -> None:
        """Makes the counters entries of one tensor."""
        self._entries: list[dict[str, Any]] = [o.state[p] for o, p in zip(self._inner, self.parameters, strict=True)]
        first = self._counts is None
        self._counts = torch.stack([entry["step"].detach().clone() for entry in self._entries])
        self._views = list(self._counts.unbind())
        for entry, view in zip(self._entries, self._views, strict=True):
            entry["step"] = view
        if first:
            self._known = self._counts.clone()


def _remembers(optimizer: torch.optim.Optimizer) -> bool:
    return not isinstance(optimizer, torch.optim.SGD) or bool(optimizer.param_groups[0]["momentum"])


def _reader(group: dict[str, Any]) -> Callable[[dict[str, Any]], Any]:
    """Reads what decides about steps beside the learning rate."""
    return itemgetter(*options_of(group)) if options_of(group) else len
