r"""Properties of a support: its innermost constraint, whether it is discrete, whether it is the real line."""

from __future__ import annotations

from typing import Any

from pyro.distributions import TorchDistribution
from torch.distributions import Distribution, Independent, constraints
from torch.distributions.constraints import Constraint, MixtureSameFamilyConstraint


def base_support(support: Constraint) -> Constraint:
    """Returns the constraint inside all `constraints.independent`: that of a cell, or of a block of cells."""
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    return support


def is_discrete(constraint: Constraint) -> bool:
    """Whether a constraint allows whole numbers only; False if that depends on other parameters."""
    try:
        return bool(constraint.is_discrete)
    except NotImplementedError:  # depends on the other parameters
        return False


def cells_of(distribution: Distribution) -> Any:
    """Returns the distribution inside all `Independent`: that of the single cells, or blocks, of an event."""
    while isinstance(distribution, Independent):
        distribution = distribution.base_dist
    return distribution


def is_real(support: Constraint) -> bool:
    """Whether every cell may be any real number."""
    return base_support(support) is constraints.real


def support_of(distribution: TorchDistribution) -> Constraint:
    """Returns a distribution's support; for a mixture, that of its components."""
    support = distribution.support
    while isinstance(support, MixtureSameFamilyConstraint):
        support = support.base_constraint
    return support
