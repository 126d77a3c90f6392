r"""Properties of a family of distributions before it is built: parameters, constraints, dimensions."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from pyro.distributions import TorchDistribution, constraints
from torch.distributions import transform_to
from torch.distributions.constraints import Constraint
from torch.distributions.transforms import Transform

# Parametrisations of one quantity. The one that the user names is used, else the first.
ALIASES = (
    ("logits", "probs"),
    ("scale_tril", "covariance_matrix", "precision_matrix"),
    ("gate_logits", "gate"),
)


def parameters_of(family: type[TorchDistribution]) -> dict[str, inspect.Parameter]:
    """Returns the family's own constructor arguments."""
    parameters = dict(inspect.signature(family).parameters)
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {
        name: parameter
        for name, parameter in parameters.items()
        if name != "validate_args" and parameter.kind not in variadic
    }


def constraints_of(family: type[TorchDistribution], event_shape: Sequence[int] | None = None) -> dict[str, Constraint]:
    """Returns the constraints of the parameters.

    Some families compute their constraints for each instance. These are known only if they follow from the event shape
    (the degrees of freedom of a `Wishart`). If they depend on each other (the bounds of a `Uniform`), each of them is
    ``constraints.dependent``.
    """
    declared: Any = family.arg_constraints
    if isinstance(declared, dict):
        return declared
    if isinstance(declared, property) and declared.fget is not None and event_shape is not None:
        try:
            return dict(declared.fget(SimpleNamespace(event_shape=torch.Size(event_shape))))
        except (AttributeError, IndexError, NotImplementedError):
            pass
    return {name: constraints.dependent for name in parameters_of(family)}


def transform_onto(constraint: Constraint) -> Transform:
    """Returns torch's transform onto a constraint; for lower triangular matrices, the one with a positive diagonal.

    Raises:
        NotImplementedError: Where no transform is known.
    """
    if isinstance(constraint, type(constraints.lower_triangular)):
        constraint = constraints.lower_cholesky
    return transform_to(constraint)


def event_dim_of(family: type[TorchDistribution]) -> int | None:
    """Returns the number of dimensions of one event; None if it is unknown before the family is built."""
    support = getattr(family, "support", None)
    if not isinstance(support, Constraint):
        return None
    try:
        return int(support.event_dim)
    except NotImplementedError:
        return None
