r"""What a family of distributions tells about itself before it is built."""

from __future__ import annotations

import inspect
from typing import Any

from pyro.distributions import TorchDistribution, constraints
from torch.distributions import Distribution, Independent
from torch.distributions.constraints import Constraint

from pyro_vae.errors import InputError

# Parametrisations of one quantity: the one that is named is used, else the first.
ALIASES = (
    ("logits", "probs"),
    ("scale_tril", "covariance_matrix", "precision_matrix"),
    ("gate_logits", "gate"),
)


def parameters_of(family: type[TorchDistribution]) -> dict[str, inspect.Parameter]:
    """The family's own constructor arguments."""
    parameters = dict(inspect.signature(family).parameters)
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {
        name: parameter
        for name, parameter in parameters.items()
        if name != "validate_args" and parameter.kind not in variadic
    }


def constraints_of(family: type[TorchDistribution]) -> dict[str, Constraint]:
    """The constraints of the parameters; none where they depend on each other (a property of the instance)."""
    declared = family.arg_constraints
    if not isinstance(declared, dict):
        return {name: constraints.dependent for name in parameters_of(family)}
    return declared


def event_dim_of(family: type[TorchDistribution]) -> int:
    """The number of dimensions of one event.

    Raises:
        InputError: Where the family tells it only once it is built.
    """
    support = getattr(family, "support", None)
    if not isinstance(support, Constraint):
        raise InputError(
            f"Conditional: `{family.__name__}` does not declare its support before it is built, so its event "
            "dimension is unknown; pass your own nn.Module whose forward(context) returns it."
        )
    try:
        return int(support.event_dim)
    except NotImplementedError:
        raise InputError(
            f"Conditional: the support of `{family.__name__}` depends on its parameters; "
            "pass your own nn.Module whose forward(context) returns it."
        ) from None


def is_discrete(constraint: Constraint) -> bool:
    """Whether a constraint holds whole numbers only; False where that depends on other parameters."""
    try:
        return bool(constraint.is_discrete)
    except NotImplementedError:  # depends on the other parameters
        return False


def cells_of(distribution: Distribution) -> Any:
    """The distribution inside all `Independent`: that of the single cells, or blocks, of an event."""
    while isinstance(distribution, Independent):
        distribution = distribution.base_dist
    return distribution
