r"""The protocol of the parts of a VAE: what a prior, a likelihood and a posterior are, and what each may tell.

A part is an `nn.Module` whose ``forward`` returns a Pyro distribution; nothing more is required. The attributes here
are optional. The classes are to be read: a part of one's own inherits from none of them, and has the attributes that it
has something to tell by. Only the functions here read these attributes, and say what holds where one is missing; what
a family or a support may tell is in `pyro_vae.distributions.protocol`.

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

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from pyro.distributions import TorchDistribution
from torch import Tensor, nn


class Part(Protocol):
    """What every part may tell.

    Attributes:
        event_shape: Shape of one draw; a layer of a `Hierarchy` must have it. Default: unknown until the part is
            called.
        given: The network from a context to features, by which a wrong width is explained, and whose hidden layers a
            posterior that is left out has in reverse. Default: the part explains a width itself.
        head: The layer on ``given``; None where ``given`` emits the distribution's parameters itself. Default: some
            layer stands there.
        blocks: For each named layer of z, the slice of z that it has, which `Reads` selects by. A distribution that the
            part returns has them too, and then a method ``block_log_prob(value)`` that returns the log-density of each
            layer, by name. Default: no layers.
        to_spec: Method that returns what an experiment file says of the part, without its network; see
            `pyro_vae.networks.specification`. Default: a file has no word for it.
    """

    event_shape: Sequence[int]
    given: nn.Module | None
    head: nn.Module | None
    blocks: Mapping[str, slice]

    def to_spec(self) -> dict[str, Any]:
        """Returns what an experiment file says of the part."""
        ...


class Prior(Part, Protocol):
    """What p(z) may tell. It is called with the context where batches have one, else without arguments.

    Attributes:
        needs_posterior: Whether it is made of the posterior, which ``forward`` then takes as ``posterior=``. Default:
            False.
    """

    needs_posterior: bool

    def forward(self, context: Tensor | None = None) -> TorchDistribution:
        """Returns p(z) with ``batch_shape == ()``, or ``context.shape[:-1]`` given a context ``(..., C)``."""
        ...


class Likelihood(Part, Protocol):
    """What p(x|z) may tell.

    Attributes:
        takes_offset: Whether a parameter of it takes the batch's ``offset``, which is the second argument of
            ``forward`` where there is one. Data with an offset are refused in an experiment file where it is False.
            Default: False.
        column_names: Names of the cells of a datum, by which the columns of a data frame are put in order. Default:
            none, and the columns stay in the order that they have.
    """

    takes_offset: bool
    column_names: Sequence[str] | None

    def forward(self, context: Tensor, offset: Tensor | None = None) -> TorchDistribution:
        """Returns p(x|z) with ``batch_shape == context.shape[:-1]``."""
        ...


class Posterior(Part, Protocol):
    """What q(z|x) may tell: what every part may."""

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


def event_shape_of(part: nn.Module) -> Sequence[int] | None:
    """Returns the shape of one draw; None where the part does not tell it before it is called."""
    return getattr(part, "event_shape", None)


def network_of(part: nn.Module) -> nn.Module | None:
    """Returns the network of a part, the attribute ``given``; None where it tells none."""
    network = getattr(part, "given", None)
    return network if isinstance(network, nn.Module) else None


def emits_parameters(part: nn.Module) -> bool:
    """Whether the network of a part emits the distribution's parameters itself, without a layer on top."""
    return getattr(part, "head", True) is None


def blocks_of(part: object) -> dict[str, slice]:
    """Returns the named blocks of a distribution, or of a module that returns one; none where it has no layers."""
    blocks = getattr(part, "blocks", {})
    return blocks if isinstance(blocks, dict) else {}
