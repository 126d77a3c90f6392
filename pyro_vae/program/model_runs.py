r"""Runs of a model for what does not depend on its latents: observed values, masks, scales, supports and plates."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import pyro
import torch
from pyro.distributions import MaskedDistribution
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.distributions import Independent
from torch.distributions.constraints import Constraint
from torch.distributions.transforms import IndependentTransform, Transform

from pyro_vae.distributions.simplex import bijection_onto
from pyro_vae.errors import InputError
from pyro_vae.program import running
from pyro_vae.program.parts import Found, observing, uncounted
from pyro_vae.runtime.modes import evaluating
from pyro_vae.runtime.random_streams import isolated

# A mask: none, one for all cells, or a boolean tensor that broadcasts with a value.
Mask = bool | Tensor | None


class _Apart(Messenger):
    """Keeps sites and plates of the block from the handlers around it; ``pyro.param`` statements reach them."""

    def _process_message(self, msg: Any) -> None:
        msg["stop"] = msg["type"] != "param"


class ModelRuns:
    """A model that runs by itself inside a guide; a copy keeps the model.

    Its modules run in evaluation mode, and they do not count as modules of the guide.

    Arguments:
        model: The model.
        data: Example of its argument.

    Attributes:
        first: Trace of the first run on the example.

    Raises:
        InputError: If the model fails on the example.
    """

    def __init__(self, model: Any, data: Any) -> None:
        self.model, found = model, Found()
        try:
            with torch.no_grad(), isolated(0), observing(model, found):
                self.first = running.run(model, data)
        except InputError:
            raise
        except Exception as error:
            reason = " ".join(str(error).split())
            raise InputError(
                f"auto_guide: the model fails on the example: {type(error).__name__}: {reason}. It is called with one "
                "argument, the batch."
            ) from error
        self.modules = nn.ModuleList(found.modules.values())

    def __deepcopy__(self, memo: dict[int, Any]) -> ModelRuns:
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {"model": self.model, "modules": self.modules}

    def __call__(self, data: Any, values: Mapping[str, Tensor] | None = None) -> Trace:
        """Returns the trace of a run.

        Arguments:
            data: The batch.
            values: Values of latent sites, by name; others are drawn.
        """
        with ExitStack() as stack:
            stack.enter_context(_Apart())
            stack.enter_context(uncounted())
            stack.enter_context(pyro.validation_enabled(False))
            stack.enter_context(evaluating(self.modules))
            return running.run(self.model, data, given=values)

    def check(self, data: Any) -> None:
        """Raises an `InputError` if anything that the guide reads from a run changes from run to run."""
        with torch.enable_grad(), isolated(1), pyro.get_param_store().scope():
            other = self(data)
        for name, node in running.observed(self.first).items():
            _check_same(name, "the observed value", node["value"], other.nodes[name]["value"])
            _check_same(name, "the mask", mask_of(node), mask_of(other.nodes[name]))
        for name, node in running.latent(self.first).items():
            its = other.nodes[name]
            _check_same(name, "the mask", mask_of(node), mask_of(its))
            _check_same(name, "the scale", node["scale"], its["scale"])
            if not node["fn"].support.is_discrete:
                _check_same(name, "the support", *(_at_probe(each) for each in (node, its)))


def _check_same(name: str, what: str, mine: Any, its: Any) -> None:
    mine, its = (torch.as_tensor(float("nan") if each is None else each).detach() for each in (mine, its))
    if mine.shape != its.shape or not bool(((mine == its) | ((mine != mine) & (its != its))).all()):
        raise InputError(
            f"auto_guide: {what} of the site `{name}` differs between two runs on the same batch: it depends on a "
            "latent or on another draw; write the guide by hand."
        )


def _at_probe(node: Any) -> Tensor:
    """The value of a site at one point of the unconstrained space."""
    step = onto_support(node["fn"].support, node["fn"].event_shape, node["name"])
    value: Tensor = step(torch.full_like(step.inv(node["value"]), 0.3))
    if value.requires_grad:
        raise InputError(
            f"auto_guide: the support of the site `{node['name']}` depends on a latent or on a parameter; draw it on a "
            "fixed support and move the value by pyro.deterministic, or write the guide by hand."
        )
    return value


def onto_support(support: Constraint, event_shape: torch.Size, name: str) -> Transform:
    """Returns the bijection from real numbers onto a site's support, for whole events.

    Raises:
        InputError: If none is known; the message names the site.
    """
    try:
        step = bijection_onto(support)
    except NotImplementedError:
        raise InputError(
            f"auto_guide: no bijection onto the support {support} of the site `{name}` is known; write the guide by "
            "hand, with a distribution on this support."
        ) from None
    missing = len(event_shape) - step.codomain.event_dim
    return IndependentTransform(step, missing) if missing > 0 else step


def mask_of(node: Any) -> Mask:
    """Returns the mask of a site: that of the block around it, and those of its distribution.

    Returns:
        None or True: nothing is hidden; False: everything is; or a tensor, true where a cell counts. It has the event
        dimensions of the value, of size 1 where whole events are hidden.
    """
    fn, events = node["fn"], len(node["fn"].event_shape)
    masks = [_with_events(node["mask"], events)]
    while isinstance(fn, MaskedDistribution | Independent):
        if isinstance(fn, MaskedDistribution):
            masks.append(_with_events(fn._mask, len(fn.event_shape)))
        fn = fn.base_dist
    tensors = [mask for mask in masks if isinstance(mask, Tensor)]
    if any(mask is False for mask in masks):
        return False
    if not tensors:
        return None
    first, *others = torch.broadcast_tensors(*tensors)
    for mask in others:
        first = first & mask
    return first


def _with_events(mask: Mask, events: int) -> Mask:
    return mask.bool().reshape(mask.shape + (1,) * events) if isinstance(mask, Tensor) else mask
