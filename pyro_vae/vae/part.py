r"""The protocol of the parts of a VAE: attributes of a prior, a likelihood and a posterior, and their defaults.

A part is an `nn.Module` whose ``forward`` returns a Pyro distribution; nothing more is required. The attributes here
are optional. The classes are documentation: your own part does not inherit from them; it defines the attributes that it
needs. Only the functions here read these attributes; they return the default if one is missing. For the attributes of
families and supports see `pyro_vae.distributions.protocol`.

Example:
    >>> import pyro.distributions as dist, torch
    >>> from pyro_vae import VAE, Conditional, Fixed, mlp
    >>> class Counts(nn.Module):
    ...     column_names = ("visits", "calls")
    ...
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.network = nn.Linear(3, 2)
    ...
    ...     def forward(self, context):
    ...         return dist.Poisson(self.network(context).exp()).to_event(1)
    >>> prior = Conditional(dist.Normal, (3,), loc=Fixed(0.0), scale=Fixed(1.0))
    >>> vae = VAE(prior, Counts(), mlp(2, 10))
    >>> vae.log_weights(torch.ones(5, 2)).shape
    torch.Size([1, 5])
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from pyro_vae.distributions.statistics import Statistics


class Part(Protocol):
    """Optional attributes of every part.

    Attributes:
        event_shape: Shape of one draw; a layer of a `Hierarchy` must have it. Default: unknown until the part is
            called.
        given: Network from a context to features. Error messages about a wrong width describe it, and a posterior that
            is left out has its hidden layers in reverse. Default: messages are those of the part itself.
        head: Layer on ``given``; None if ``given`` emits the distribution's parameters itself. Default: there is a
            layer.
        blocks: Slice of z of each named layer, from which `Reads` selects. The distribution that the part returns then
            has ``blocks`` too, and a method ``block_log_prob(value)`` that returns the log-density of each layer, by
            name. Default: no layers.
        to_spec: Method that returns the part's entry in an experiment file, without its network; see
            `pyro_vae.networks.specification`. Default: an experiment file cannot express the part.
    """

    event_shape: Sequence[int]
    given: nn.Module | None
    head: nn.Module | None
    blocks: Mapping[str, slice]

    def to_spec(self) -> dict[str, Any]:
        """Returns the part's entry in an experiment file."""
        ...


class Prior(Part, Protocol):
    """Optional attributes of p(z). It is called with the context if batches have one, else without arguments.

    Attributes:
        needs_posterior: Whether the prior is made of the posterior, which ``forward`` then takes as ``posterior=``.
            Default: False.
    """

    needs_posterior: bool

    def forward(self, context: Tensor | None = None) -> TorchDistribution:
        """Returns p(z) with ``batch_shape == ()``, or ``context.shape[:-1]`` given a context ``(..., C)``."""
        ...


class Likelihood(Part, Protocol):
    """Optional attributes of p(x|z).

    Attributes:
        takes_offset: Whether a parameter takes the batch's ``offset``, second argument of ``forward``. If False, data
            with an offset are refused. Default: False.
        column_names: Names of the cells of a datum; the columns of a data frame are put in this order. Default: none;
            the columns keep their order.
        start_at: Method that takes the `Statistics` of training data before the first step, and puts parameters that
            were neither set nor trained at their location and scale. Default: all parameters stay as they are.
    """

    takes_offset: bool
    column_names: Sequence[str] | None

    def start_at(self, data: Statistics) -> None:
        """Puts parameters at the location and scale of data, in place."""
        ...

    def forward(self, context: Tensor, offset: Tensor | None = None) -> TorchDistribution:
        """Returns p(x|z) with ``batch_shape == context.shape[:-1]``."""
        ...


class Posterior(Part, Protocol):
    """Optional attributes of q(z|x): those of every part."""

    def forward(self, context: Tensor) -> TorchDistribution:
        """Returns q(z|x) with ``batch_shape == context.shape[:-1]``."""
        ...


def needs_posterior(prior: nn.Module) -> bool:
    """Whether a prior is made of the posterior, as `VampPrior` is; see `Prior`."""
    return bool(getattr(prior, "needs_posterior", False))


def takes_offset(likelihood: nn.Module) -> bool:
    """Whether a parameter of a likelihood takes an offset; see `Likelihood`."""
    return bool(getattr(likelihood, "takes_offset", False))


def column_names(likelihood: nn.Module) -> Sequence[str] | None:
    """Returns the names of the cells of a datum; None where the likelihood has none."""
    return getattr(likelihood, "column_names", None)


def starts_at_data(likelihood: nn.Module) -> bool:
    """Whether a likelihood has a method ``start_at``; see `Likelihood`."""
    return getattr(likelihood, "start_at", None) is not None


def start_at(likelihood: nn.Module, data: Statistics) -> None:
    """Puts a likelihood at the location and scale of data, where it has a method for it; see `Likelihood`."""
    method: Callable[[Statistics], None] | None = getattr(likelihood, "start_at", None)
    if method is not None:
        method(data)


def event_shape_of(part: nn.Module) -> Sequence[int] | None:
    """Returns the shape of one draw; None if the part does not have it."""
    return getattr(part, "event_shape", None)


def network_of(part: nn.Module) -> nn.Module | None:
    """Returns the network of a part, the attribute ``given``; None if it has none."""
    network = getattr(part, "given", None)
    return network if isinstance(network, nn.Module) else None


def emits_parameters(part: nn.Module) -> bool:
    """Whether the network of a part emits the distribution's parameters itself, without a layer on top."""
    return getattr(part, "head", True) is None


def blocks_of(part: object) -> dict[str, slice]:
    """Returns the named blocks of a distribution, or of a module that returns one; none where it has no layers."""
    blocks = getattr(part, "blocks", {})
    return blocks if isinstance(blocks, dict) else {}
