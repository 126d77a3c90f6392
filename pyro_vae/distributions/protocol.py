r"""The protocol of families and of supports: what each may tell beside what Pyro asks of it, and what is so by default.

A family is a class of `pyro.distributions`, with ``arg_constraints`` and ``support``; a support is a constraint of
torch's. All that the classes here name is optional. They are to be read: a family or a support of one's own inherits
from neither, and defines what it has to tell. Only the functions here read these attributes.
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

Observing = Callable[[Tensor, Tensor], tuple[TorchDistribution, Tensor]]


class Family(Protocol):
    """What a class of distributions may tell.

    Attributes:
        posterior_family: The family of a posterior for it as prior, where none follows from its support: a sphere has
            one. Default: errors advise the family itself.
    """

    posterior_family: type[TorchDistribution]

    @staticmethod
    def parameter_shapes(**constants: Any) -> Mapping[str, tuple[int, ...]]:
        """Returns the shape of each parameter for one cell, by name, where the event does not tell it.

        Default: no parameter has a shape of its own.

        Arguments:
            **constants: Arguments of the family that are Python numbers; those that the method names are passed.
        """
        ...

    @staticmethod
    def constants_for(event_shape: Sequence[int]) -> Mapping[str, Any]:
        """Returns the arguments that follow from the shape of an event, by name. Default: none does."""
        ...

    def observing(self, x: Tensor, mask: Tensor) -> tuple[TorchDistribution, Tensor]:
        """Returns the distribution of the observed cells, and x with the others filled from their supports.

        Default: a distribution whose cells are independent and of one family is masked cell by cell, and any other
        takes no mask.

        Arguments:
            x: Shape ``(..., *event_shape)``.
            mask: True where a cell is observed, shape of ``x``.
        """
        ...


class Support(Protocol):
    """What a constraint may tell."""

    def complaint(self, value: Tensor) -> str:
        """Returns what is wrong with one value outside the support. Default: that it lies outside."""
        ...


class CellSupport(Protocol):
    """What a constraint on vectors tells whose cells have supports of their own: all of it, or nothing.

    Default: a value is judged as a whole.

    Attributes:
        supports: Of the cells, in their order.
        names: What an error calls the cells.
    """

    supports: Sequence[Constraint]
    names: Sequence[str]

    def check_cells(self, value: Tensor) -> Tensor:
        """Returns which cells lie in their support, boolean, shape of ``value``."""
        ...


def posterior_family_of(family: type[Distribution] | Distribution) -> type[TorchDistribution] | None:
    """Returns the posterior that a family, or a distribution of it, names for itself as prior; None where it does not.

    Example:
        >>> from pyro_vae.distributions.von_mises_fisher import SphericalUniform
        >>> posterior_family_of(SphericalUniform).__name__
        'VonMisesFisher'
    """
    return getattr(family, "posterior_family", None)


def declared_sizes(family: type[TorchDistribution], constants: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Returns the shapes that a family declares for its parameters, by `Family.parameter_shapes`; those of one cell.

    Arguments:
        family: The family.
        constants: Its arguments that are Python numbers.

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


def observing_of(cells: Distribution) -> Observing | None:
    """Returns the method by which a distribution hides cells; see `Family.observing`. None where it has none."""
    return getattr(cells, "observing", None)


def complaint_of(support: Constraint) -> Callable[[Tensor], str] | None:
    """Returns the method by which a support says what is wrong with a value; None where it has none."""
    return getattr(support, "complaint", None)


def cell_support(support: Constraint) -> CellSupport | None:
    """Returns the support itself where its cells have supports of their own; None where they do not."""
    own: Any = support
    return own if hasattr(own, "check_cells") else None
