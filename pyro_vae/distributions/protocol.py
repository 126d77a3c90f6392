r"""The protocol of families and of supports: optional attributes beyond those of Pyro, and their defaults.

A family is a class of `pyro.distributions`, with ``arg_constraints`` and ``support``; a support is a constraint of
torch's. All attributes of the classes here are optional. The classes are documentation: your own family or support does
not inherit from them; it defines the attributes that it needs. Only the functions here read these attributes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Distribution
from torch.distributions.constraints import Constraint

from pyro_vae.distributions.start_rule import Known, Rule, Start
from pyro_vae.distributions.statistics import Statistics

Observing = Callable[[Tensor, Tensor], tuple[TorchDistribution, Tensor]]


class Family(Protocol):
    """Optional attributes of a class of distributions.

    Attributes:
        posterior_family: Family of the posterior if this family is the prior and no posterior follows from its support,
            as on a sphere. Default: error messages advise the family itself.
    """

    posterior_family: type[TorchDistribution]

    @staticmethod
    def parameter_shapes(**constants: Any) -> Mapping[str, tuple[int, ...]]:
        """Returns the shape of each parameter for one cell, by name, if it does not follow from the event.

        Default: no parameter has a shape of its own.

        Arguments:
            **constants: Arguments of the family that are Python numbers; only those that the method accepts are passed.
        """
        ...

    @staticmethod
    def constants_for(event_shape: Sequence[int]) -> Mapping[str, Any]:
        """Returns the arguments that follow from the shape of an event, by name. Default: none."""
        ...

    @staticmethod
    def start(data: Statistics, known: Known) -> Start:
        """Returns initial parameters at the location and scale of data.

        Default: the rule in `pyro_vae.distributions.start` of the nearest class that has one, else none.

        Arguments:
            data: Statistics of the data, whose cells are those of an event.
            known: Parameters that are declared, and sizes of the others.
        """
        ...

    def observing(self, x: Tensor, mask: Tensor) -> tuple[TorchDistribution, Tensor]:
        """Returns the distribution of the observed cells, and x with hidden cells filled by values of their supports.

        Default: if the cells are independent and of one family, they are masked one by one; any other distribution
        refuses a mask.

        Arguments:
            x: Data, shape ``(..., *event_shape)``.
            mask: True where a cell is observed, shape of ``x``.
        """
        ...


class Support(Protocol):
    """Optional method of a constraint."""

    def complaint(self, value: Tensor) -> str:
        """Returns what is wrong with one value outside the support. Default: a message that it lies outside."""
        ...


class CellSupport(Protocol):
    """Attributes of a constraint on vectors if each cell has its own support; it defines all of them, or none.

    Default: a value is checked as a whole.

    Attributes:
        supports: Supports of the cells, in the order of the cells.
        names: Names of the cells, for error messages.
    """

    supports: Sequence[Constraint]
    names: Sequence[str]

    def check_cells(self, value: Tensor) -> Tensor:
        """Returns which cells lie in their support, boolean, shape of ``value``."""
        ...


def posterior_family_of(family: type[Distribution] | Distribution) -> type[TorchDistribution] | None:
    """Returns the attribute ``posterior_family`` of a family, or of a distribution; None if it has none.

    Example:
        >>> from pyro_vae.distributions.von_mises_fisher import SphericalUniform
        >>> posterior_family_of(SphericalUniform).__name__
        'VonMisesFisher'
    """
    return getattr(family, "posterior_family", None)


def declared_sizes(family: type[TorchDistribution], constants: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the parameters for one cell that a family declares by `Family.parameter_shapes`.

    Arguments:
        family: Class of distributions.
        constants: Arguments of the family that are Python numbers.

    Example:
        >>> from pyro_vae.distributions.discretized_logistic import DiscretizedLogisticMixture
        >>> declared_sizes(DiscretizedLogisticMixture, {"components": 3, "levels": 256})["locs"]
        (3,)
    """
    method: Callable[..., Mapping[str, tuple[int, ...]]] | None = getattr(family, "parameter_shapes", None)
    if method is None:
        return {}
    accepted = inspect.signature(method).parameters
    return dict(method(**{name: value for name, value in constants.items() if name in accepted}))


def implied_constants(family: type[TorchDistribution], event_shape: Sequence[int]) -> dict[str, Any]:
    """Returns the arguments of a family that follow from the shape of an event, by `Family.constants_for`.

    Example:
        >>> from pyro_vae.distributions.von_mises_fisher import SphericalUniform
        >>> implied_constants(SphericalUniform, (3,))["dimension"]
        3
    """
    method: Callable[[torch.Size], Mapping[str, Any]] | None = getattr(family, "constants_for", None)
    return {} if method is None else dict(method(torch.Size(event_shape)))


def start_of(family: type[Distribution]) -> Rule | None:
    """Returns the method `Family.start` of a family; None if it has none."""
    return getattr(family, "start", None)


def observing_of(cells: Distribution) -> Observing | None:
    """Returns the method `Family.observing` of a distribution, which hides cells; None if it has none."""
    return getattr(cells, "observing", None)


def complaint_of(support: Constraint) -> Callable[[Tensor], str] | None:
    """Returns the method `Support.complaint` of a support; None if it has none."""
    return getattr(support, "complaint", None)


def cell_support(support: Constraint) -> CellSupport | None:
    """Returns the support itself if each cell has its own support, as in `CellSupport`; else None."""
    own: Any = support
    return own if hasattr(own, "check_cells") else None
