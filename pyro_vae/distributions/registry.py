r"""What a family of distributions tells about itself before it is built."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution, constraints
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch.distributions import Distribution, Independent, transform_to
from torch.distributions.constraints import Constraint
from torch.distributions.transforms import Transform

from pyro_vae.distributions.continuous_bernoulli import ContinuousBernoulli
from pyro_vae.distributions.discretized_logistic import DiscretizedLogisticMixture
from pyro_vae.distributions.multinomial import DirichletMultinomial, Multinomial
from pyro_vae.distributions.simplex import LogisticNormal
from pyro_vae.distributions.von_mises_fisher import SphericalUniform, VonMisesFisher
from pyro_vae.errors import InputError

# Parametrisations of one quantity: the one that is named is used, else the first.
ALIASES = (
    ("logits", "probs"),
    ("scale_tril", "covariance_matrix", "precision_matrix"),
    ("gate_logits", "gate"),
)

# Ours stand in the place of the originals, and add to them.
OWN: tuple[type[TorchDistribution], ...] = (
    ContinuousBernoulli,
    DirichletMultinomial,
    DiscretizedLogisticMixture,
    LogisticNormal,
    Multinomial,
    SphericalUniform,
    VonMisesFisher,
)


def _exported() -> dict[str, type[TorchDistribution]]:
    exported = {
        name: member
        for name, member in vars(dist).items()
        if inspect.isclass(member) and issubclass(member, Distribution) and not name.startswith("_")
    }
    return dict(sorted({**exported, **{own.__name__: own for own in OWN}}.items()))


FAMILIES: dict[str, type[TorchDistribution]] = _exported()
"""Every family by name: what `pyro.distributions` exports, and our own."""


# What other libraries and textbooks call them.
OTHER_NAMES = {
    "Gaussian": "Normal",
    "MultivariateGaussian": "MultivariateNormal",
    "Multinoulli": "Categorical",
    "NegBinomial": "NegativeBinomial",
    "Student": "StudentT",
    "T": "StudentT",
}


def usual_name(name: str) -> str:
    """Returns what a family is called here, where others call it otherwise; else the name itself.

    Example:
        >>> usual_name("gaussian")
        'Normal'
    """
    return {other.lower(): family for other, family in OTHER_NAMES.items()}.get(name.lower(), name)


def family_in_place_of(family: type[Distribution]) -> type[TorchDistribution]:
    """Returns Pyro's family where it is made of one of torch's, and our own where it replaces one of Pyro's.

    Raises:
        InputError: For a family of torch's that is none of Pyro's.
    """
    if not issubclass(family, TorchDistributionMixin):
        of_pyro = getattr(dist, family.__name__, None)
        if not (inspect.isclass(of_pyro) and issubclass(of_pyro, family)):
            raise InputError(
                f"Conditional: `{family.__name__}` is no class of pyro.distributions; make it one by a subclass, "
                f"class {family.__name__}({family.__name__}, pyro.distributions.TorchDistributionMixin)."
            )
        family = of_pyro
    for own in OWN:
        if own.__name__ == family.__name__ and family in own.__bases__:
            return own
    return family


def parameters_of(family: type[TorchDistribution]) -> dict[str, inspect.Parameter]:
    """The family's own constructor arguments."""
    parameters = dict(inspect.signature(family).parameters)
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {
        name: parameter
        for name, parameter in parameters.items()
        if name != "validate_args" and parameter.kind not in variadic
    }


def constraints_of(family: type[TorchDistribution], event_shape: Sequence[int] | None = None) -> dict[str, Constraint]:
    """The constraints of the parameters.

    Constraints that are a property of the instance are known where they follow from the event shape alone (the
    degrees of freedom of a `Wishart`); none are where they depend on each other (the bounds of a `Uniform`).
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
    """Returns torch's transform onto a constraint; onto lower triangular matrices, that with a positive diagonal.

    Raises:
        NotImplementedError: Where no transform is known.
    """
    if isinstance(constraint, type(constraints.lower_triangular)):
        constraint = constraints.lower_cholesky
    return transform_to(constraint)


def event_dim_of(family: type[TorchDistribution]) -> int | None:
    """The number of dimensions of one event; None where the family tells it only once it is built."""
    support = getattr(family, "support", None)
    if not isinstance(support, Constraint):
        return None
    try:
        return int(support.event_dim)
    except NotImplementedError:
        return None


def declared_sizes(family: type[TorchDistribution], constants: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The sizes that a family itself declares for its parameters, given its constant arguments.

    A family of one's own declares them by a static method ``parameter_shapes(**constants)``.
    """
    method = getattr(family, "parameter_shapes", None)
    if method is None:
        return {}
    accepted = inspect.signature(method).parameters
    return dict(method(**{name: value for name, value in constants.items() if name in accepted}))


def implied_constants(family: type[TorchDistribution], event_shape: Sequence[int]) -> dict[str, Any]:
    """The constant arguments that follow from the shape of an event.

    A family of one's own declares them by a static method ``constants_for(event_shape)``.
    """
    method = getattr(family, "constants_for", None)
    return {} if method is None else dict(method(torch.Size(event_shape)))


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
